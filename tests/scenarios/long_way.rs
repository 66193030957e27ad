//! Two seconds of delay on the way to the manager, as a fault injector makes them: a connection that is warm
//! takes one delayed round trip, and a burst of new pods' connections is served within a client's patience.

use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::aloud;
use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::delay::Delay;
use hnp_tests::manager::Manager;
use hnp_tests::poll::{patience, until};
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};

const DELAY: Duration = Duration::from_secs(2);
/// What a client waits for an answer's head. Ten times as long in a guest, where a handshake takes an emulated processor
/// a tenth of a second; the round trips stay what they are.
const BUDGET: Duration = Duration::from_secs(10);
/// New connections at a time.
const BURST: u64 = 200;

#[test]
fn a_warm_connection_takes_one_round_trip_and_a_burst_ends_within_a_clients_patience() {
    let scene = Scene::for_test();
    let _manager = Manager::strict(&scene, "manager", 443, &scene.server, &scene.clients);
    let delay = Delay::start(&scene, 443, 8443, DELAY);
    let upstream = format!("https://{MANAGER_NAME}:{}", delay.port());
    let route = Route::strict("manager", DESTINATIONS, &upstream).with(IDENTITY, TRUST);
    let mut config = scene.config().route(route);
    // One worker has one pool.
    config.workers = 1;
    let _agent = Agent::start(&scene, &config);
    let pod = scene.pod();
    let ask = |total: u64| -> Report {
        let targets = vec![Target::new((MANAGER4, 80), MANAGER_NAME, "manager")];
        client::run(&pod, &Job::Short { targets, total, concurrency: total })
    };
    let seconds = |report: &Report| {
        assert_eq!(report.failures, Vec::<String>::new());
        Duration::from_secs_f64(report.slowest_ms / 1e3)
    };

    let fresh = seconds(&ask(1));
    // The pod's connection is new again, the agent's is not. A second round trip would be one in each of them.
    let (warm, _) = until(Duration::from_secs(60), "a warm connection takes one round trip", || {
        let warm = seconds(&ask(1));
        assert!(warm >= DELAY, "{warm:?}");
        (warm < 2 * DELAY).then_some(warm)
    });
    let burst = seconds(&ask(BURST));
    aloud::say(&format!(
        "a new connection {fresh:.2?}, a warm one {warm:.2?}, the slowest of {BURST} at once {burst:.2?}"
    ));
    // The control: the delay is there, for TCP, TLS and the request.
    assert!(fresh >= 3 * DELAY, "{fresh:?}");
    assert!(burst < patience(BUDGET), "{burst:?}");
}
