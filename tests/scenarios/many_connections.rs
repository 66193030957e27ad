//! Thousands of connections: none lost, none led to the wrong destination, nothing left over.

use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::client::{self, Job, Target};
use hnp_tests::manager::{Manager, Mode, Setup};
use hnp_tests::poll::eventually;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{self, MANAGER4, OTHER4, Pod};

#[test]
fn twenty_thousand_short_ones_over_two_destinations() {
    let _alone = topology::alone();
    let two = TwoManagers::new();
    // The control: the client does notice when an answer comes from the wrong manager.
    let mut crossed = two.targets.clone();
    crossed[0].expect = "two".to_owned();
    let crossed = client::run(&two.pod, &Job::Short { targets: crossed, total: 10, concurrency: 2 });
    assert_eq!((crossed.ok, crossed.misrouted), (5, 5));

    let (one, other) = (two.one.request_count(), two.two.request_count());
    let targets = two.targets.clone();
    let report = client::run(&two.pod, &Job::Short { targets, total: 20_000, concurrency: 64 });
    eprintln!(
        "{:.0} connections/s, the slowest request {:.1} ms; the agent holds {} descriptors",
        20_000.0 / report.seconds,
        report.slowest_ms,
        two.agent.open_files()
    );
    report.assert_all_ok(20_000);
    assert_eq!((two.one.request_count() - one, two.two.request_count() - other), (10_000, 10_000));
    two.assert_nothing_left();
}

#[test]
fn two_thousand_are_held_open_and_then_used() {
    let _alone = topology::alone();
    let two = TwoManagers::new();
    let targets = two.targets.clone();
    let report = client::run(&two.pod, &Job::Held { targets, connections: 2_000 });
    report.assert_all_ok(2_000);
    let opened = two.agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "redirected")]);
    assert_eq!(opened, 2_000.0);
    two.assert_nothing_left();
}

struct TwoManagers {
    targets: Vec<Target>,
    pod: Pod,
    agent: Agent,
    one: Manager,
    two: Manager,
    _scene: Scene,
}

impl TwoManagers {
    fn new() -> Self {
        let scene = Scene::for_test();
        scene.set_hosts(&[("one.hnp.test", MANAGER4.into()), ("two.hnp.test", OTHER4.into())]);
        let start = |name: &str, addr: std::net::Ipv4Addr| {
            let server = scene.servers.server(&[&format!("{name}.hnp.test")]);
            let setup = Setup::new(name, 80).on(&[addr.into()]);
            Manager::start(&scene, setup.tls(Mode::Strict, &server, &scene.clients))
        };
        let (one, two) = (start("one", MANAGER4), start("two", OTHER4));
        let route = |name: &str| {
            let (destination, upstream) =
                (format!("{name}.hnp.test:80"), format!("https://{name}.hnp.test:80"));
            Route::strict(name, &[&destination], &upstream).with(IDENTITY, TRUST)
        };
        let agent = Agent::start(&scene, &scene.config().route(route("one")).route(route("two")));
        let pod = scene.pod();
        let targets = vec![
            Target::new((MANAGER4, 80), "one.hnp.test", "one"),
            Target::new((OTHER4, 80), "two.hnp.test", "two"),
        ];
        Self { targets, pod, agent, one, two, _scene: scene }
    }

    /// No flow waits in the kernel's map, no connection is open.
    fn assert_nothing_left(&self) {
        eventually(Duration::from_secs(10), "the flow map is empty and no connection is open", || {
            let metrics = self.agent.metrics();
            assert!(metrics.has("hnp_flows", &[]) && metrics.has("hnp_connections_open", &[]));
            metrics.sum("hnp_flows", &[]) == 0.0 && metrics.sum("hnp_connections_open", &[]) == 0.0
        });
    }
}
