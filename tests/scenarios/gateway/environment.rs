//! The vendor's variables and nothing else: no file, no capability.

use std::time::Duration;

use hnp_tests::agent::Agent;
use hnp_tests::process::{Finished, Place};
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

use super::node_of;

#[test]
fn the_vendors_variables_alone_make_a_gateway() {
    for [certificate, key] in [
        ["CLIENT_CERT_PATH", "CLIENT_KEY_PATH"],
        ["PROXY_CLIENT_CERT_PATH", "PROXY_CLIENT_KEY_PATH"],
        ["DELEGATE_CLIENT_CERTIFICATE_PATH", "DELEGATE_CLIENT_CERTIFICATE_KEY_PATH"],
    ] {
        let case = Case::new();
        let (cert_path, key_path) = case.client();
        let url = format!("https://{MANAGER_NAME}:80/prefix");
        let roots = case.scene.roots.display().to_string();
        let variables =
            [("PROXY_URL", &*url), (certificate, &*cert_path), (key, &*key_path), ("SSL_CERT_FILE", &*roots)];
        let agent = Agent::on_variables(case.scene.agent_place(), &variables);
        let proxy = format!("http://{}:7777", node_of(&case.pod));

        // Reverse proxy, forward proxy, CONNECT: what a pod's three variables lead to.
        let origin = curl(&case.pod, &["-sS", "--fail", &format!("{proxy}/a")]);
        assert!(origin.ok().contains("\"manager\":\"manager\""), "{origin}");
        assert_eq!(case.manager.last_request().expect("one came").target, "/prefix/a", "the base path");
        let absolute =
            curl(&case.pod, &["-sS", "--fail", "--proxy", &proxy, &format!("http://{MANAGER_NAME}/b")]);
        assert!(absolute.ok().contains("\"manager\":\"manager\""), "{absolute}");
        let serials = case.manager.requests();
        assert!(serials.iter().all(|seen| seen.client_serial() == case.scene.client_serial));
        let tls = |more: &[&str]| {
            let url = format!("https://{MANAGER_NAME}:80/c");
            curl(
                &case.pod,
                &[&["-sS", "--fail", "--proxy", &proxy, "--cacert", &roots, &url][..], more].concat(),
            )
        };
        let tunnel = tls(&["--cert", &cert_path, "--key", &key_path]);
        assert!(tunnel.ok().contains("\"manager\":\"manager\""), "{tunnel}");
        assert!(!tls(&[]).status.success(), "the control: a tunnel lends nothing");
        let elsewhere = curl(&case.pod, &["-sS", "--proxy", &proxy, "http://elsewhere.test/"]);
        assert!(elsewhere.text().contains("destination_refused"), "{elsewhere}");
        // The control: without the gateway the strict manager refuses.
        let straight = curl(&case.pod, &["-si", &format!("http://{MANAGER_NAME}/d")]);
        assert!(straight.text().contains(" 400 "), "{straight}");
        // Somebody with a public address is not served.
        let outside = curl(
            &case.scene.manager_side(),
            &["-sS", &format!("http://{}:7777/e", hnp_tests::topology::NODE4)],
        );
        assert!(outside.text().contains("caller_refused"), "{outside}");
        agent.hang_up();
        agent.log_line("came from the environment");
        let ended = agent.stop(Duration::from_secs(20));
        assert!(ended.status.success(), "{ended}");
    }
}

#[test]
fn check_prints_what_the_variables_amount_to_and_names_them_in_mistakes() {
    let case = Case::new();
    let (cert_path, key_path) = case.client();
    let roots = case.scene.roots.display().to_string();
    let check = |variables: &[(&str, &str)]| {
        Agent::with_variables(&case.scene.agent_place(), "check", variables).run()
    };
    let url = ("PROXY_URL", "https://account.harness.test:8443/gateway");
    let pair =
        [("CLIENT_CERT_PATH", &*cert_path), ("CLIENT_KEY_PATH", &*key_path), ("SSL_CERT_FILE", &*roots)];
    let proxy = [("HTTPS_PROXY", "http://node:geheim@proxy.corp:3128"), ("NO_PROXY", "10.96.0.1,.svc")];
    let checked = check(&[&[url], &pair[..], &proxy].concat());
    for line in [
        "route manager (loose, http, reverse-proxy)",
        "  destinations  account.harness.test:8443, account.harness.test:80",
        "  upstream      https://account.harness.test:8443/gateway (certificate for account.harness.test) through proxy environment",
        "  listens on    0.0.0.0:7777, [::]:7777",
        "  default route manager",
        "  url           http://proxy.corp:3128",
        "environment: no mistakes",
    ] {
        assert!(checked.ok().lines().any(|found| found == line), "{line:?} is not in\n{checked}");
    }
    assert!(!format!("{checked}").contains("geheim"), "{checked}");
    let missing = case.scene.path("missing").display().to_string();
    for (variables, words) in [
        (vec![], "environment: PROXY_URL: is not set"),
        (vec![url], "environment: CLIENT_CERT_PATH: is not set"),
        (vec![url, pair[0]], "environment: CLIENT_KEY_PATH: is not set, and CLIENT_CERT_PATH is"),
        (
            vec![url, pair[0], pair[1], ("PROXY_CLIENT_CERT_PATH", "/a"), ("PROXY_CLIENT_KEY_PATH", "/b")],
            "environment: PROXY_CLIENT_CERT_PATH: is \"/a\", and CLIENT_CERT_PATH is",
        ),
        (
            vec![("PROXY_URL", "http://chaos-agent-proxy.hce:7777"), pair[0], pair[1]],
            "environment: PROXY_URL: \"http://chaos-agent-proxy.hce:7777\" would leave the node in cleartext",
        ),
        (vec![url, ("CLIENT_CERT_PATH", &missing), pair[1], pair[2]], "environment: CLIENT_CERT_PATH: "),
    ] {
        let refused = check(&variables);
        assert!(!refused.status.success() && refused.stderr.contains(words), "{words}: {refused}");
        if !words.ends_with("CLIENT_CERT_PATH: ") {
            let run = Agent::with_variables(&case.scene.agent_place(), "run", &variables).run();
            assert!(!run.status.success() && run.stderr.contains(words), "{words}: {run}");
        }
    }
}

#[test]
fn behind_a_corporate_proxy_by_its_variables() {
    use hnp_tests::corporate::{Corporate, INSIDE_NAME, PROXY_NAME, Squid, SquidSetup};
    use hnp_tests::manager::Manager;
    let scene = Scene::for_test();
    let corporate = Corporate::lay(&scene);
    let leaf = scene.servers.server(&[INSIDE_NAME]);
    let manager = Manager::strict(&scene, "manager", 80, &leaf, &scene.clients);
    let setup = SquidSetup { credentials: Some(("node", "p@ss")), ..SquidSetup::default() };
    let squid = Squid::start(&scene, &corporate, 3128, &setup);
    let pod = scene.pod();
    let (files, roots) = (&scene.client, scene.roots.display().to_string());
    let (url, proxy) = (format!("https://{INSIDE_NAME}:80"), format!("http://node:p%40ss@{PROXY_NAME}:3128"));
    let pair = [files.certificate.display().to_string(), files.key.display().to_string()];
    let variables = [
        ("PROXY_URL", &*url),
        ("CLIENT_CERT_PATH", &*pair[0]),
        ("CLIENT_KEY_PATH", &*pair[1]),
        ("SSL_CERT_FILE", &*roots),
        ("HTTPS_PROXY", &*proxy),
    ];
    let ask = || curl(&pod, &["-sS", &format!("http://{}:7777/a", node_of(&pod))]);
    for (more, served) in [(("NO_PROXY", "10.96.0.1,.svc"), true), (("NO_PROXY", ".hnp.test"), false)] {
        let agent = Agent::on_variables(scene.agent_place(), &[&variables[..], &[more]].concat());
        // The control: the node alone knows neither the name nor a way to it.
        assert_eq!(ask().text().contains("\"manager\":\"manager\""), served, "{}", ask());
        let ended = agent.stop(Duration::from_secs(20));
        let said = format!("{}{}", ended.text(), ended.stderr);
        assert!(!said.contains("p@ss") && !said.contains("p%40ss"), "{said}");
    }
    assert_eq!(manager.request_count(), 1);
    assert_eq!(squid.tunnels().len(), 1, "{:?}", squid.tunnels());
}

#[test]
fn with_a_file_the_environment_is_not_looked_at() {
    let case = Case::new();
    let mut config = super::uncaptured(case.scene.config().route(case.scene.route()));
    // A proxy that nobody runs, and a manager that is none: taken, every request would fail.
    config.env = vec![
        ("HTTPS_PROXY", format!("http://{MANAGER4}:1")),
        ("https_proxy", format!("http://{MANAGER4}:1")),
        ("PROXY_URL", "https://elsewhere.hnp.test".to_owned()),
    ];
    let agent = super::start(&case.scene, &config);
    let url = format!("http://{}:7777/a", node_of(&case.pod));
    let answer = curl(&case.pod, &["-sS", "--fail", &url]);
    assert!(answer.ok().contains("\"manager\":\"manager\""), "{answer}");
    let line = agent.access_line("the request", |line| line["reason"] == "ok");
    assert!(line["upstream_proxy"].is_null(), "{line}");
}

struct Case {
    pod: Pod,
    manager: hnp_tests::manager::Manager,
    scene: Scene,
}

impl Case {
    fn new() -> Self {
        let scene = Scene::for_test();
        Self { pod: scene.pod(), manager: scene.strict_manager(), scene }
    }

    /// Certificate and key, as variables hold them.
    fn client(&self) -> (String, String) {
        let files = &self.scene.client;
        (files.certificate.display().to_string(), files.key.display().to_string())
    }
}

fn curl(place: &Place, arguments: &[&str]) -> Finished {
    place.command("curl").args(arguments).run()
}
