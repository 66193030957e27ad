//! The pod's own TLS ends at the agent: on the route's certificate, for pods whose certificate the route takes,
//! and what it said reaches the log and the manager. The request goes on with the agent's identity.

use std::fs;
use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::manager::{Manager, Mode, Service, Setup};
use hnp_tests::pki::{self, Ca, Files, Spec};
use hnp_tests::poll::eventually;
use hnp_tests::process::{Finished, Place};
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

/// What pods dial, and where the upstream is: nobody listens on the destination's own port.
const DESTINATIONS: &[&str] = &["manager.hnp.test:443", "198.18.0.9:443"];
const UPSTREAM: &str = "https://manager.hnp.test:8443";

#[test]
fn a_pod_is_verified_and_the_agent_speaks_for_it() {
    let case = Case::new(Mode::Strict, "client_trust: pods");
    let forged = ["-H", "X-Forwarded-Client-Cert: Hash=forged", "-H", "x_forwarded_client_cert: Hash=forged"];
    assert!(case.curl(&case.pod, Some(&case.client), &forged).ok().contains("\"manager\":\"manager\""));
    let seen = case.manager.last_request().expect("one came");
    assert_eq!(seen.client_serial(), case.scene.client_serial, "the agent's certificate");
    let forwarded = seen.head.header("x-forwarded-client-cert").expect("it is told who called");
    assert!(
        forwarded.starts_with("Hash=") && forwarded.contains(";Subject=\"O=Example ORG,CN=runner\""),
        "{forwarded}"
    );
    assert!(forwarded.ends_with(";DNS=runner") && !forwarded.contains("forged"), "{forwarded}");
    assert!(seen.head.header("x_forwarded_client_cert").is_none());
    let line = case.agent.access_line("the request", |line| line["mode"] == "end-to-end");
    assert_eq!((&line["reason"], &line["client_tls"]), (&"ok".into(), &"TLSv1.3".into()), "{line}");
    assert_eq!(
        (&line["client_subject"], &line["client_san"]),
        (&"O=Example ORG,CN=runner".into(), &"runner".into()),
        "{line}"
    );
    assert_eq!(line["client_serial"], pki::serial_of(&case.client.certificate), "{line}");
    // The controls: without a certificate nobody gets in, and outside of the pod nobody carries it.
    let refused = case.curl(&case.pod, None, &[]);
    assert!(!refused.status.success() && refused.stderr.contains("certificate required"), "{refused}");
    case.agent.access_line_with("pod_certificate_missing");
    assert!(!case.curl(case.pod.outside_cgroup(), Some(&case.client), &[]).status.success());
    assert_eq!(case.manager.request_count(), 1);
}

#[test]
fn a_pods_own_handshakes_are_at_its_workloads_pace() {
    let case = Case::with_roots(Scene::for_test(), Mode::Strict, "client_auth: none", |mut config| {
        config.limits = "per_workload: {handshakes_per_second: 1}".to_owned();
        config
    });
    let waits = || case.agent.metrics().sum("hnp_workload_handshake_waits_total", &[]);
    let asks = || (0..4).for_each(|_| assert!(case.curl(&case.pod, None, &[]).status.success()));
    // The control: it is alone.
    asks();
    assert_eq!(waits(), 0.0);
    let open = |count: f64| {
        let what = format!("{count} connections are open");
        let soon = Duration::from_secs(10);
        eventually(soon, &what, || case.agent.metrics().sum("hnp_connections_open", &[]) == count);
    };
    open(0.0);
    let other = case.scene.pod();
    let at = format!("{MANAGER4}:443");
    let holder = other.command("openssl").args(["s_client", "-quiet", "-servername", MANAGER_NAME]);
    let _holder = holder.args(["-connect", &at]).spawn();
    open(1.0);
    asks();
    assert!(waits() >= 2.0, "{}", waits());
}

#[test]
fn a_loose_manager_sees_the_same_request() {
    let case = Case::new(Mode::Loose, "client_trust: pods");
    assert!(case.curl(&case.pod, Some(&case.client), &[]).status.success());
    assert_eq!(case.manager.last_request().expect("one came").client_serial(), case.scene.client_serial);
}

#[test]
fn pods_without_a_certificate_where_the_route_asks_for_none() {
    let case = Case::new(Mode::Strict, "client_auth: none");
    let forged = ["-H", "X-Forwarded-Client-Cert: Hash=forged"];
    assert!(case.curl(&case.pod, None, &forged).status.success());
    let seen = case.manager.last_request().expect("one came");
    assert_eq!(seen.client_serial(), case.scene.client_serial);
    assert!(seen.head.header("x-forwarded-client-cert").is_none(), "nobody was verified");
    // The control: a pod that does not trust the serving certificate's CA sends nothing.
    let other = Ca::new("other").write(case.scene.dir(), "other");
    let url = format!("https://{MANAGER_NAME}/hello");
    let refused = case.pod.command("curl").args(["-sS", &url, "--cacert"]).arg(&other).run();
    assert!(!refused.status.success(), "{refused}");
    let line = case.agent.access_line_with("pod_tls_failed");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("UnknownCA")), "{line}");
}

#[test]
fn each_wrong_certificate_has_its_reason() {
    let case =
        Case::new(Mode::Strict, "client_trust: pods, client_names: [runner, 'spiffe://test/ns/chaos/*']");
    let dir = case.scene.dir();
    let pods = &case.pods;
    for (stem, leaf, reason) in [
        ("expired", pods.issue(&Spec::client("runner").named().expired()), "pod_certificate_expired"),
        ("other", Ca::new("others").issue(&Spec::client("runner").named()), "pod_certificate_unknown_ca"),
        (
            "twin",
            Ca::new("hnp test pods").issue(&Spec::client("runner").named()),
            "pod_certificate_unknown_ca",
        ),
        ("name", pods.issue(&Spec::client("walker").named()), "pod_certificate_name"),
        ("usage", pods.server(&["runner"]), "pod_certificate_bad"),
    ] {
        let refused = case.curl(&case.pod, Some(&leaf.write(dir, stem)), &[]);
        assert!(!refused.status.success(), "{stem}: {refused}");
        let line = case.agent.access_line_with(reason);
        assert_eq!((&line["route"], &line["mode"]), (&"tls".into(), &"end-to-end".into()), "{line}");
    }
    assert_eq!(case.manager.connections().len(), 0, "nobody was dialled for them");
    // The control.
    assert!(case.curl(&case.pod, Some(&case.client), &[]).status.success());
}

#[test]
fn the_vendors_version_1_certificate_in_both_versions_of_tls() {
    let scene = Scene::for_test();
    let (dir, twin) = (scene.path("vendor"), scene.path("twin"));
    let [files, forged] = [&dir, &twin].map(|dir| {
        fs::create_dir(dir).expect("the world's directory is ours");
        pki::vendor_recipe(dir)
    });
    let text = tools::run(&dir, "openssl", &["x509", "-in", "client.crt", "-noout", "-text"]);
    assert!(text.contains("Version: 1 "), "this machine's openssl makes something else: {text}");
    let case = Case::with_roots(scene, Mode::Strict, "client_trust: vendor", |config| {
        config.trust("vendor", &dir.join("ca.crt"))
    });
    for version in ["1.2", "1.3"] {
        let tls = ["--tlsv1.2", "--tls-max", version];
        assert!(case.curl(&case.pod, Some(&files), &tls).status.success(), "TLS {version}");
        let seen = case.manager.last_request().expect("one came");
        let forwarded = seen.head.header("x-forwarded-client-cert").expect("it is told who called");
        assert!(forwarded.ends_with(";Subject=\"CN=Client,O=Example ORG\""), "{forwarded}");
        case.agent.access_line("of this version", |line| line["client_tls"] == format!("TLSv{version}"));
        // The control: the same recipe run again, which makes a CA of the same name with another key.
        let refused = case.curl(&case.pod, Some(&forged), &tls);
        assert!(!refused.status.success(), "TLS {version}: {refused}");
    }
    case.agent.access_line_with("pod_certificate_unknown_ca");
    assert_eq!(case.manager.request_count(), 2);
}

#[test]
fn plaintext_and_other_names_are_refused() {
    let case = Case::new(Mode::Strict, "client_trust: pods");
    let url = format!("http://{MANAGER_NAME}:443/hello");
    let plain = case.pod.command("curl").args(["-sS", "-w", "%{http_code}", &url]).run();
    assert!(plain.ok().contains("tls_expected") && plain.text().ends_with("421"), "{plain}");
    let other =
        case.curl(&case.pod, Some(&case.client), &["-H", "Host: elsewhere.hnp.test", "-w", "%{http_code}"]);
    assert!(other.ok().contains("host_refused") && other.text().ends_with("421"), "{other}");
    assert_eq!(case.manager.request_count(), 0);
    // The control.
    assert!(case.curl(&case.pod, Some(&case.client), &[]).status.success());
}

#[test]
fn what_came_in_tls_goes_to_no_other_name_in_the_clear() {
    let scene = Scene::for_test();
    let listener = Manager::start(&scene, Setup::new("elsewhere", 443));
    let manager = Setup::new("manager", 8443).tls(Mode::Strict, &scene.server, &scene.clients);
    let route = Route::loose("tls", &DESTINATIONS[..1], UPSTREAM);
    let case = Case::start(scene, manager, route, "client_auth: none", |config| config);
    let other = case.curl(&case.pod, None, &["-H", "Host: elsewhere.hnp.test", "-w", "%{http_code}"]);
    assert!(other.ok().contains("host_refused") && other.text().ends_with("421"), "{other}");
    assert_eq!(listener.connections().len(), 0);
    // The controls: its own name goes on, and what asks for the other name in the clear passes as ever.
    assert!(case.curl(&case.pod, None, &[]).status.success());
    let url = format!("http://{MANAGER4}:443/hello");
    let plain = case.pod.command("curl").args(["-sS", "-H", "Host: elsewhere.hnp.test", &url]).run();
    assert!(plain.ok().contains("\"manager\":\"elsewhere\""), "{plain}");
}

#[test]
fn python_with_its_own_certificate_keeps_its_connection() {
    let case = Case::new(Mode::Strict, "client_trust: pods");
    let script = format!(
        "import requests\n\
         s = requests.Session()\n\
         s.verify = {:?}\n\
         s.cert = ({:?}, {:?})\n\
         for n in range(3):\n    r = s.post('https://{MANAGER_NAME}/hello', data=b'x' * 100000)\n    r.raise_for_status()\n    print(r.status_code)\n",
        case.scene.roots, case.client.certificate, case.client.key
    );
    let answer = case.pod.command("python3").args(["-c", &script]).run();
    assert_eq!(answer.ok(), "200\n200\n200\n");
    let flows = || {
        let lines = case.agent.access_lines();
        let ours = lines.into_iter().filter(|line| line["mode"] == "end-to-end");
        ours.map(|line| line["flow"].clone()).collect::<Vec<_>>()
    };
    eventually(Duration::from_secs(20), "three lines are written", || flows().len() == 3);
    assert!(flows().iter().all(|flow| *flow == flows()[0]), "one connection: {:?}", flows());
}

#[test]
fn opaque_bytes_come_out_of_it() {
    let scene = Scene::for_test();
    let echo =
        Setup::new("echo", 8443).tls(Mode::Strict, &scene.server, &scene.clients).service(Service::Echo);
    let case = Case::opaque(scene, echo);
    let script = format!(
        "import socket, ssl\n\
         c = ssl.create_default_context(cafile={:?})\n\
         c.load_cert_chain({:?}, {:?})\n\
         s = c.wrap_socket(socket.create_connection(('{MANAGER_NAME}', 443)), server_hostname='{MANAGER_NAME}')\n\
         s.sendall(b'hello\\n')\n\
         f = s.makefile('rb')\n\
         print(f.readline(), f.readline())\n",
        case.scene.roots, case.client.certificate, case.client.key
    );
    let answer = case.pod.command("python3").args(["-c", &script]).run();
    assert_eq!(answer.ok().trim(), r"b'220 ready\r\n' b'hello\n'");
    let line =
        case.agent.access_line("the connection", |line| line["client_subject"] == "O=Example ORG,CN=runner");
    assert_eq!((&line["mode"], &line["bytes_up"]), (&"end-to-end".into(), &6.into()), "{line}");
    let tls = case.manager.connections().remove(0).tls.expect("mutual TLS");
    assert_eq!(tls.client.expect("ours").serial, case.scene.client_serial);
}

#[test]
fn sessions_are_resumed_and_end_with_the_roots_they_were_made_under() {
    let case = Case::new(Mode::Strict, "client_trust: pods");
    let session = case.scene.path("session");
    let save = ["-sess_out".to_owned(), session.display().to_string()];
    let resume = ["-sess_in".to_owned(), session.display().to_string()];
    assert!(case.s_client(&save).contains("HTTP/1.1 200"));
    let again = case.s_client(&resume);
    assert!(again.contains("HTTP/1.1 200") && again.contains("Reused"), "{again}");
    case.agent.access_line("the resumed one", |line| line["client_resumed"] == true);
    // Other roots: neither the session nor the certificate gets anybody in.
    fs::write(case.scene.path("pods.crt"), Ca::new("new pods").pem()).expect("the world's directory is ours");
    // Not the first refusal: between a handshake and its request the roots may change, and then the request is refused.
    eventually(Duration::from_secs(20), "the new roots hold", || {
        !case.s_client(&resume).contains("HTTP/1.1 200")
            && case.agent.access_lines().iter().any(|line| line["reason"] == "pod_certificate_unknown_ca")
    });
}

#[test]
fn a_pod_that_is_revoked_is_refused_and_so_is_its_session() {
    let scene = Scene::for_test();
    let pods = Ca::new("hnp listed pods");
    let [leaf, other] = [0, 1].map(|_| pods.issue(&Spec::client("runner").named()));
    let crl = scene.path("listed.crl");
    let good_for = Duration::from_secs(10 * 86_400);
    fs::write(&crl, pods.crl(&[], good_for)).expect("the world's directory is ours");
    let keys = format!("roots: {}, crls: {}", pods.write(scene.dir(), "listed").display(), crl.display());
    let case = Case::with_roots(scene, Mode::Strict, "client_trust: listed", |config| {
        config.trust_with("listed", &keys)
    });
    leaf.write(case.scene.dir(), "pod");
    let session = case.scene.path("session");
    let resume = ["-sess_in".to_owned(), session.display().to_string()];
    assert!(case.s_client(&["-sess_out".to_owned(), session.display().to_string()]).contains("HTTP/1.1 200"));
    let again = case.s_client(&resume);
    assert!(again.contains("HTTP/1.1 200") && again.contains("Reused"), "{again}");
    fs::write(&crl, pods.crl(&[&leaf.serial], good_for)).expect("the world's directory is ours");
    // Not the first refusal: between a handshake and its request the list may change, and then the request is refused.
    eventually(Duration::from_secs(20), "the session gets nobody in", || {
        !case.s_client(&resume).contains("HTTP/1.1 200")
            && case.agent.access_lines().iter().any(|line| line["reason"] == "pod_certificate_revoked")
    });
    let served = case.manager.request_count();
    assert!(!case.curl(&case.pod, Some(&case.client), &[]).status.success());
    assert_eq!(case.manager.request_count(), served);
    // The control: another of the same CA, of the same name.
    let other = other.write(case.scene.dir(), "other");
    assert!(case.curl(&case.pod, Some(&other), &[]).status.success());
}

#[test]
fn a_renewed_serving_certificate_is_shown_to_the_next_pod() {
    let case = Case::new(Mode::Strict, "client_trust: pods");
    let shown = || {
        let text = case.s_client(&[]);
        let pem =
            text.split("-----BEGIN CERTIFICATE-----").nth(1).and_then(|rest| rest.split("-----END").next());
        let pem = pem.map(|body| format!("-----BEGIN CERTIFICATE-----{body}-----END CERTIFICATE-----\n"));
        let path = case.scene.path("shown.crt");
        fs::write(&path, pem.unwrap_or_default()).expect("the world's directory is ours");
        pki::serial_of(&path)
    };
    let serving = Files { certificate: case.scene.path("serving.crt"), key: case.scene.path("serving.key") };
    assert_eq!(shown(), pki::serial_of(&serving.certificate));
    let renewed = case.scene.servers.server(&[MANAGER_NAME]);
    renewed.write(case.scene.dir(), "serving");
    eventually(Duration::from_secs(20), "the new one is shown", || shown() == renewed.serial);
}

struct Case {
    pod: Pod,
    agent: Agent,
    manager: Manager,
    pods: Ca,
    client: Files,
    scene: Scene,
}

impl Case {
    /// `settings` go into the route's `end_to_end`.
    #[track_caller]
    fn new(mode: Mode, settings: &str) -> Self {
        Self::with_roots(Scene::for_test(), mode, settings, |config| config)
    }

    #[track_caller]
    fn with_roots(scene: Scene, mode: Mode, settings: &str, more: impl FnOnce(Config) -> Config) -> Self {
        let manager = Setup::new("manager", 8443).tls(mode, &scene.server, &scene.clients);
        let route = Route::strict("tls", DESTINATIONS, UPSTREAM);
        Self::start(scene, manager, route, settings, more)
    }

    #[track_caller]
    fn opaque(scene: Scene, manager: Setup) -> Self {
        let route = Route::opaque("tls", DESTINATIONS, UPSTREAM);
        Self::start(scene, manager, route, "client_trust: pods", |config| config)
    }

    #[track_caller]
    fn start(
        scene: Scene,
        manager: Setup,
        route: Route,
        settings: &str,
        more: impl FnOnce(Config) -> Config,
    ) -> Self {
        let pods = Ca::new("hnp test pods");
        let client = pods.issue(&Spec::client("runner").named()).write(scene.dir(), "pod");
        let manager = Manager::start(&scene, manager);
        let serving = scene.servers.server(&[MANAGER_NAME]).write(scene.dir(), "serving");
        let config = scene.config().identity("serving", &serving);
        let config = config.trust("pods", &pods.write(scene.dir(), "pods"));
        let route = route
            .with(IDENTITY, TRUST)
            .set("mode", "end-to-end")
            .set("end_to_end", &format!("{{serving: [serving], {settings}}}"));
        let agent = Agent::start(&scene, &more(config).route(route));
        Self { pod: scene.pod(), agent, manager, pods, client, scene }
    }

    fn curl(&self, place: &Place, own: Option<&Files>, more: &[&str]) -> Finished {
        let url = format!("https://{MANAGER_NAME}/hello");
        let mut command = place.command("curl").args(["-sS", &url, "--cacert"]).arg(&self.scene.roots);
        if let Some(files) = own {
            command = command.arg("--cert").arg(&files.certificate).arg("--key").arg(&files.key);
        }
        command.args(more).run()
    }

    /// What openssl's own client says, and gets for one request.
    fn s_client(&self, more: &[String]) -> String {
        let mut command =
            self.pod.command("openssl").args(["s_client", "-ign_eof", "-showcerts", "-servername"]);
        command = command
            .args([MANAGER_NAME, "-connect", &format!("{MANAGER4}:443"), "-CAfile"])
            .arg(&self.scene.roots);
        command =
            command.arg("-cert").arg(&self.client.certificate).arg("-key").arg(&self.client.key).args(more);
        let request = format!("GET /hello HTTP/1.1\r\nHost: {MANAGER_NAME}\r\nConnection: close\r\n\r\n");
        let finished = command.stdin(request).run();
        format!("{}{}", finished.text(), finished.stderr)
    }
}
