//! TLS on the gateway's own port: for clients that trust its certificate, and for callers that are known by theirs
//! and by nothing else.

use std::path::PathBuf;
use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::manager::{Manager, Mode, Setup};
use hnp_tests::pki::{Ca, Files, Spec};
use hnp_tests::poll::eventually;
use hnp_tests::process::Finished;
use hnp_tests::scene::{DESTINATIONS, Scene};
use hnp_tests::topology::{MANAGER_NAME, Pod};

use super::{node_of, start, strict};

/// curl's word for a certificate that it does not take (CURLE_PEER_FAILED_VERIFICATION).
const NOT_VERIFIED: i32 = 60;
const PODS: &str = "sources: [10.244.0.0/16, 'fd00:244::/32']";

#[test]
fn every_form_inside_of_tls() {
    let case =
        Case::new(&format!("{PODS}, tls: {{serving: [serving], client_auth: none}}"), |config, route| {
            config.route(route)
        });
    let (proxy, plain) = (case.url(), format!("http://{MANAGER_NAME}/hello"));
    let direct = format!("{}/hello", case.url());
    for arguments in [
        &["--proxy", &proxy, &plain][..],
        &["--proxytunnel", "--proxy", &proxy, &plain],
        &["--http1.1", &direct],
        &["--http2", &direct],
    ] {
        let answer = case.curl(None, arguments);
        assert!(answer.ok().contains("\"manager\":\"manager\""), "{arguments:?}: {answer}");
        let seen = case.manager.last_request().expect("one came");
        assert_eq!(seen.client_serial(), case.scene.client_serial);
        assert!(seen.head.header("x-forwarded-client-cert").is_none(), "nobody was verified");
    }
    let line = case.agent.access_line("a request in TLS", |line| line["gateway"] == "absolute");
    assert_eq!((&line["client_tls"], &line["reason"]), (&"TLSv1.3".into(), &"ok".into()), "{line}");
    // The controls: a client that does not trust the certificate sends nothing, whatever else it trusts.
    let other = Ca::new("others").write(case.scene.dir(), "others");
    for trusted in [None, Some(&other)] {
        let mut command = case.pod.command("curl").args(["-sS", "--proxy", &proxy, &plain]);
        if let Some(roots) = trusted {
            command = command.arg("--proxy-cacert").arg(roots);
        }
        let refused = command.run();
        assert_eq!(refused.status.code(), Some(NOT_VERIFIED), "{refused}");
    }
    case.agent.access_line_with("pod_tls_failed");
    assert_eq!(case.manager.request_count(), 4);
}

#[test]
fn whoever_shows_a_certificate_is_served_and_nobody_else() {
    let case =
        Case::new("tls: {serving: [serving], client_trust: pods}", |config, route| config.route(route));
    let direct = format!("{}/hello", case.url());
    assert!(case.curl(Some(&case.client), &[&direct]).ok().contains("\"manager\":\"manager\""));
    let seen = case.manager.last_request().expect("one came");
    assert_eq!(seen.client_serial(), case.scene.client_serial, "the agent's certificate");
    let forwarded = seen.head.header("x-forwarded-client-cert").expect("it is told who called");
    assert!(forwarded.contains("CN=runner") && forwarded.ends_with(";DNS=runner"), "{forwarded}");
    // The controls: no certificate, another CA's, and in the clear.
    assert!(!case.curl(None, &[&direct]).status.success());
    case.agent.access_line_with("pod_certificate_missing");
    let other = Ca::new("others").issue(&Spec::client("runner").named()).write(case.scene.dir(), "other");
    assert!(!case.curl(Some(&other), &[&direct]).status.success());
    case.agent.access_line_with("pod_certificate_unknown_ca");
    let plain = direct.replace("https", "http");
    let refused = case.pod.command("curl").args(["-sS", "-w", "%{http_code}", &plain]).run();
    assert!(refused.ok().contains("caller_refused") && refused.text().ends_with("403"), "{refused}");
    assert_eq!(case.manager.request_count(), 1);
}

#[test]
fn the_pods_own_tls_within_it() {
    let case = Case::new(&format!("{PODS}, tls: {{serving: [serving], client_auth: none}}"), |config, _| {
        config.route(Route::tunnel("tls", &["manager.hnp.test:443"], "https://manager.hnp.test:80"))
    });
    let (proxy, url) = (case.url(), format!("https://{MANAGER_NAME}/hello"));
    let own = &case.scene.client;
    let (roots, other) = (&case.scene.roots, &Ca::new("others").write(case.scene.dir(), "others"));
    let curl = |proxys: &PathBuf, managers: &PathBuf, with_own: bool| {
        let command = case.pod.command("curl").args(["-sS", "--proxy", &proxy, &url]);
        let command = command.arg("--proxy-cacert").arg(proxys).arg("--cacert").arg(managers);
        if with_own {
            command.arg("--cert").arg(&own.certificate).arg("--key").arg(&own.key)
        } else {
            command
        }
        .run()
    };
    assert!(curl(roots, roots, true).ok().contains("\"manager\":\"manager\""));
    // The controls: nobody lends a certificate in a tunnel, and each of the two is verified against its own roots.
    let refused = curl(roots, roots, false);
    assert!(!refused.status.success() && refused.stderr.contains("certificate required"), "{refused}");
    let refused = curl(other, roots, true);
    assert_eq!(refused.status.code(), Some(NOT_VERIFIED), "{refused}");
    let refused = curl(roots, other, true);
    assert!(!refused.status.success(), "{refused}");
    // curl has no code of its own for it within another TLS, but says it to the manager.
    eventually(Duration::from_secs(5), "the manager hears why", || {
        let last = case.manager.connections().pop().and_then(|last| last.error);
        last.is_some_and(|error| error.contains("UnknownCA"))
    });
    assert_eq!(case.manager.request_count(), 1);
}

struct Case {
    pod: Pod,
    agent: Agent,
    manager: Manager,
    client: Files,
    scene: Scene,
}

impl Case {
    #[track_caller]
    fn new(gateway: &str, routes: impl FnOnce(Config, Route) -> Config) -> Self {
        let scene = Scene::for_test();
        let manager = Setup::new("manager", 80).tls(Mode::Strict, &scene.server, &scene.clients);
        let manager = Manager::start(&scene, manager);
        let (pod, pods) = (scene.pod(), Ca::new("hnp test pods"));
        let client = pods.issue(&Spec::client("runner").named()).write(scene.dir(), "pod");
        let serving = scene.servers.server(&[&node_of(&pod)]).write(scene.dir(), "serving");
        let config = scene.config().identity("serving", &serving);
        let config = config.trust("pods", &pods.write(scene.dir(), "pods"));
        let mut config = routes(config, strict("manager", DESTINATIONS));
        config.capture = "off".to_owned();
        config.gateway = gateway.to_owned();
        let agent = start(&scene, &config);
        Self { pod, agent, manager, client, scene }
    }

    fn url(&self) -> String {
        format!("https://{}:7777", node_of(&self.pod))
    }

    fn curl(&self, own: Option<&Files>, arguments: &[&str]) -> Finished {
        let mut command = self.pod.command("curl").args(["-sS", "--proxy-cacert"]).arg(&self.scene.roots);
        command = command.arg("--cacert").arg(&self.scene.roots);
        if let Some(files) = own {
            command = command.arg("--cert").arg(&files.certificate).arg("--key").arg(&files.key);
        }
        command.args(arguments).run()
    }
}
