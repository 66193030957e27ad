//! An issuer among what a route shows to pods: a certificate for each name of the route, within what its intermediate
//! may issue for, made again before it ends, and for nobody else's names.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hnp_tests::agent::{self, Agent, Config, Route};
use hnp_tests::manager::{Manager, Mode, Setup};
use hnp_tests::pki::Ca;
use hnp_tests::poll::until;
use hnp_tests::process::Finished;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

const DESTINATIONS: &[&str] = &["manager.hnp.test:443", "198.18.0.9:443"];
const UPSTREAM: &str = "https://manager.hnp.test:8443";

struct Case {
    scene: Scene,
    pod: Pod,
    agent: Agent,
    manager: Manager,
    /// The folder with the CA and the intermediate.
    folder: PathBuf,
    config: Config,
}

impl Case {
    #[track_caller]
    fn new(permitted: &str, lifetime: &str) -> Self {
        let scene = Scene::for_test();
        let folder = scene.path("pki");
        std::fs::create_dir(&folder).expect("the world's directory is ours");
        for arguments in [&["init-ca"][..], &["issue", "intermediate", "--permit-dns", permitted]] {
            let made =
                Command::new(agent::binary()).arg("certs").args(arguments).current_dir(&folder).output();
            let made = made.expect("the agent starts");
            assert!(made.status.success(), "{arguments:?}: {made:?}");
        }
        let manager = Setup::new("manager", 8443).tls(Mode::Strict, &scene.server, &scene.clients);
        let manager = Manager::start(&scene, manager);
        let [certificate, key] = ["intermediate.crt", "intermediate.key"].map(|file| folder.join(file));
        let issuer = format!(
            "issuer: {{certificate: {}, key: {}, trust_domain: hnp.test, lifetime: {lifetime}}}",
            certificate.display(),
            key.display()
        );
        let route = Route::strict("tls", DESTINATIONS, UPSTREAM)
            .with(IDENTITY, TRUST)
            .set("mode", "end-to-end")
            .set("end_to_end", "{serving: [node], client_auth: none}");
        let config = scene.config().identity_with("node", &issuer).route(route);
        let agent = Agent::start(&scene, &config);
        Self { pod: scene.pod(), agent, manager, folder, config, scene }
    }

    fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    fn curl(&self, host: &str, roots: &Path) -> Finished {
        let url = format!("https://{host}/hello");
        let to = format!("{host}:443:{MANAGER4}");
        self.pod.command("curl").args(["-sS", &url, "--resolve", &to, "--cacert"]).arg(roots).run()
    }

    fn issued(&self) -> f64 {
        self.agent.metrics().sum("hnp_issued_certificates_total", &[("identity", "node")])
    }

    /// What the leaf that is shown for a name says.
    fn shown(&self, name: &str) -> String {
        let dialled = format!("{MANAGER4}:443");
        let show = format!(
            "openssl s_client -connect {dialled} -servername {name} </dev/null 2>/dev/null | openssl x509 -noout -serial -ext \
             subjectAltName,extendedKeyUsage"
        );
        self.pod.command("sh").args(["-c", &show]).run().text()
    }
}

#[test]
fn pods_are_shown_a_certificate_for_each_name_of_the_route() {
    let case = Case::new("hnp.test", "1h");
    let address = MANAGER4.to_string();
    for host in [MANAGER_NAME, &address] {
        assert!(case.curl(host, &case.ca()).ok().contains("\"manager\":\"manager\""), "{host}");
        let seen = case.manager.last_request().expect("one came");
        assert_eq!(seen.client_serial(), case.scene.client_serial, "the agent's own goes to the manager");
    }
    let shown = case.shown(MANAGER_NAME);
    assert!(
        shown.contains("DNS:manager.hnp.test") && shown.contains("TLS Web Server Authentication"),
        "{shown}"
    );
    assert_eq!(shown, case.shown(MANAGER_NAME), "made once");
    assert_eq!(case.issued(), 2.0);
    // The controls: another name that the intermediate could issue for, and a client that trusts another CA.
    let requests = case.manager.request_count();
    let other = Ca::new("other").write(case.scene.dir(), "other");
    for (host, roots) in [("git.hnp.test", case.ca()), (MANAGER_NAME, other)] {
        let refused = case.curl(host, &roots);
        assert!(!refused.status.success(), "{host}: {refused}");
    }
    assert_eq!(case.manager.request_count(), requests);
    assert_eq!(case.issued(), 2.0, "nobody has one made by asking for it");
}

#[test]
fn an_intermediate_that_may_not_issue_for_the_name_shows_nothing() {
    let case = Case::new("other.test", "1h");
    let refused = case.curl(MANAGER_NAME, &case.ca());
    assert!(!refused.status.success(), "{refused}");
    case.agent.log_line("no certificate can be shown to pods");
    let line = case.agent.access_line_with("pod_tls_failed");
    assert_eq!(line["route"], "tls", "{line}");
    assert_eq!((case.issued(), case.manager.connections().len()), (0.0, 0));
    let checked = Agent::check(&case.scene.agent_place(), &case.config);
    let said = format!("{}{}", checked.text(), checked.stderr);
    assert!(said.contains("has no certificate for manager.hnp.test:"), "{said}");
    // The control is the test above, and this: it says nothing of addresses.
    assert!(case.curl(&MANAGER4.to_string(), &case.ca()).status.success());
    assert_eq!(case.issued(), 1.0);
}

#[test]
fn it_is_made_again_before_it_ends() {
    let case = Case::new("hnp.test", "6s");
    let first = case.shown(MANAGER_NAME);
    assert!(first.contains("DNS:manager.hnp.test"), "{first}");
    // Every handshake on the way is with a good one: curl says when it is not.
    let (again, _) = until(Duration::from_secs(60), "another certificate is shown", || {
        assert!(case.curl(MANAGER_NAME, &case.ca()).status.success());
        let shown = case.shown(MANAGER_NAME);
        (shown != first).then_some(shown)
    });
    assert!(again.contains("DNS:manager.hnp.test"), "{again}");
}
