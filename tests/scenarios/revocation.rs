//! A certificate that its CA has revoked gets nobody in or through, from the moment the list says so, and over no
//! connection or session of the time before. Where no list says anything, it is refused unless that is allowed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hnp_tests::agent::{Agent, Config};
use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::manager::Manager;
use hnp_tests::poll::eventually;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

const SOON: Duration = Duration::from_secs(20);
/// Longer than the day ago at which lists are made.
const GOOD: Duration = Duration::from_secs(10 * 86_400);
const LATE: Duration = Duration::from_secs(3600);

#[test]
fn a_manager_that_is_revoked_under_way_is_refused_at_once_and_its_open_connection_too() {
    let case = Case::new(&[], |scene| scene.servers.crl(&[], GOOD));
    for _ in 0..3 {
        case.ask().assert_all_ok(1);
    }
    assert_eq!(case.manager.connections().len(), 1, "the connection is kept");
    case.list(&case.scene.servers.crl(&[&case.scene.server.serial], GOOD));
    case.refused("upstream_certificate_revoked");
    // The control: the CA's next list speaks of another.
    case.list(&case.scene.servers.crl(&["5a00"], GOOD));
    eventually(SOON, "the manager is let through again", || case.ask().failures.is_empty());
    assert!(case.manager.connections().len() > 1, "no connection of the time before is used");
    // A list that is broken keeps the one in use.
    case.list("no list");
    let failing = || case.agent.metrics().sum("hnp_trust_reload_failing", &[("trust", TRUST)]);
    eventually(SOON, "the broken list is noticed", || failing() == 1.0);
    case.ask().assert_all_ok(1);
    assert!(case.agent.metrics().sum("hnp_trust_crl_next_update_seconds", &[("trust", TRUST)]) > 1e9);
}

#[test]
fn a_late_list_and_one_of_another_ca_refuse_unless_they_are_allowed() {
    for (list, allowing) in
        [(Case::late as fn(&Scene) -> String, "crl_expired: allow"), (Case::of_another, "crl_unknown: allow")]
    {
        let case = Case::new(&[], list);
        case.refused("upstream_revocation_unknown");
        assert_eq!(case.manager.request_count(), 0);
        drop(case);
        let case = Case::new(&[allowing], list);
        case.ask().assert_all_ok(1);
    }
}

/// A strict manager, and an agent whose trust has revocation lists in a directory.
struct Case {
    agent: Agent,
    pod: Pod,
    manager: Manager,
    scene: Scene,
}

impl Case {
    fn new(settings: &[&str], list: impl Fn(&Scene) -> String) -> Self {
        let scene = Scene::for_test();
        let manager = scene.strict_manager();
        let crls = scene.path("crls");
        fs::create_dir(&crls).expect("the world's directory is ours");
        fs::write(crls.join("servers.crl"), list(&scene)).expect("the world's directory is ours");
        let keys = format!("roots: {}, crls: {}", scene.roots.display(), crls.display());
        let keys = [&[&*keys], settings].concat().join(", ");
        let mut config = Config::new(&scene).identity(IDENTITY, &scene.client);
        // Each worker has connections of its own.
        config.workers = 1;
        let agent = Agent::start(&scene, &config.trust_with(TRUST, &keys).route(scene.route()));
        Self { agent, pod: scene.pod(), manager, scene }
    }

    fn late(scene: &Scene) -> String {
        scene.servers.crl(&[], LATE)
    }

    fn of_another(scene: &Scene) -> String {
        scene.clients.crl(&[], GOOD)
    }

    /// Puts another list in the place of the one that is there, as an editor would.
    fn list(&self, text: &str) {
        let staged = self.scene.path("staged.crl");
        fs::write(&staged, text).expect("the world's directory is ours");
        let place: &Path = &self.scene.path("crls").join("servers.crl");
        fs::rename(&staged, place).expect("the world's directory is ours");
    }

    fn ask(&self) -> Report {
        let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
        client::run(&self.pod, &Job::Short { targets: vec![target], total: 1, concurrency: 1 })
    }

    fn refused(&self, reason: &str) {
        eventually(SOON, reason, || self.ask().failures.iter().any(|failure| failure.contains(reason)));
        let line = self.agent.access_line_with(reason);
        assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("evo")), "{line}");
        let dials = self.agent.metrics().sum("hnp_upstream_dials_total", &[("reason", reason)]);
        assert!(dials >= 1.0, "{dials}");
    }
}
