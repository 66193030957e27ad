//! Upstreams by the bundle of their own trust domain.

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::manager::{Manager, Mode, Setup};
use hnp_tests::pki::{Ca, Leaf};
use hnp_tests::poll::eventually;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::spiffe::{Given, WorkloadApi};

use super::{SOON, ask_at, hour, socket, was_refused};

const OURS: &str = "spiffe://ours.test/manager";
const THEIRS: &str = "spiffe://theirs.test/manager";

struct Case {
    managers: Vec<Manager>,
    agent: Agent,
    scene: Scene,
}

impl Case {
    /// A manager with each of these certificates, on ports from 80 on, and a route to each.
    fn new(scene: Scene, leaves: &[Leaf]) -> Self {
        let keys = format!(
            "spiffe: {{socket: {}}}, ids: [\"{OURS}\", \"spiffe://theirs.test/*\"]",
            socket(&scene).display()
        );
        let mut config = Config::new(&scene).identity(IDENTITY, &scene.client).trust_with(TRUST, &keys);
        let mut managers = Vec::new();
        for (port, leaf) in (80..).zip(leaves) {
            let name = format!("m{port}");
            let setup = Setup::new(&name, port).tls(Mode::Strict, leaf, &scene.clients);
            managers.push(Manager::start(&scene, setup));
            let (dialled, upstream) =
                (format!("198.18.0.9:{port}"), format!("https://manager.hnp.test:{port}"));
            config = config.route(Route::strict(&name, &[&dialled], &upstream).with(IDENTITY, TRUST));
        }
        let agent = Agent::start(&scene, &config);
        Self { managers, agent, scene }
    }

    fn serves(&self, port: u16) -> bool {
        ask_at(&self.scene.pod(), port, &format!("m{port}")).ok == 1
    }

    /// With which words it is refused.
    #[track_caller]
    fn refuses(&self, port: u16, reason: &str) -> String {
        let report = ask_at(&self.scene.pod(), port, &format!("m{port}"));
        assert!(was_refused(&report, reason), "{port}: {:?}", report.failures);
        assert_eq!(self.managers[usize::from(port - 80)].request_count(), 0, "nothing was sent to {port}");
        let line = self.agent.access_line("the refusal", |line| {
            line["reason"] == reason && line["route"] == format!("m{port}")
        });
        line["detail"].as_str().expect("words").to_owned()
    }
}

#[test]
fn a_manager_of_another_trust_domain_is_taken_by_that_domains_bundle_alone() {
    let scene = Scene::for_test();
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let leaves = [
        hour(&ours, &[OURS]),
        hour(&theirs, &[THEIRS]),
        // The controls: a CA that is trusted, and not for that ID; two IDs; somebody who is not listed.
        hour(&ours, &[THEIRS]),
        hour(&theirs, &[THEIRS, "spiffe://theirs.test/other"]),
        hour(&ours, &["spiffe://ours.test/pod"]),
    ];
    let both = || Given::nothing().bundle("ours.test", &ours).bundle("theirs.test", &theirs);
    let api = WorkloadApi::start(&socket(&scene), both());
    let case = Case::new(scene, &leaves);
    assert!(case.serves(80) && case.serves(81), "{}", case.agent.access_log());
    case.refuses(82, "upstream_certificate_unknown_ca");
    let words = case.refuses(83, "upstream_certificate_bad");
    assert!(words.contains("2 URIs among its names"), "{words}");
    let words = case.refuses(84, "upstream_certificate_name");
    assert!(
        words.contains("is for spiffe://ours.test/pod, and the trust takes spiffe://ours.test/manager"),
        "{words}"
    );

    // What is not among the next bundles is not trusted any more, kept connections included.
    api.give(Given::nothing().bundle("ours.test", &ours));
    eventually(SOON, "their domain is not trusted any more", || !case.serves(81));
    let line = case.agent.access_line_with("upstream_certificate_unknown_ca");
    assert!(line["detail"].as_str().is_some(), "{line}");
    assert!(case.serves(80));
    // Taken back whole, the last ones hold.
    api.give(Given::nothing());
    let failing = || case.agent.metrics().sum("hnp_trust_reload_failing", &[("trust", TRUST)]);
    eventually(SOON, "it is told", || failing() == 1.0);
    assert!(case.serves(80));
    api.give(both());
    eventually(SOON, "and trusted again", || case.serves(81));
}
