//! Two seconds of delay on the way to the manager, as a fault injector makes them: a connection that is warm
//! takes one delayed round trip, also the first request's where connections are made ahead of use, and a burst of new
//! pods' connections is served within a client's patience.

use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::aloud;
use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::delay::Delay;
use hnp_tests::manager::{Http2, Manager, Mode, Setup};
use hnp_tests::poll::{eventually, patience, until};
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

#[test]
fn the_first_request_takes_one_round_trip_where_a_connection_was_made_ahead() {
    ahead(|setup| setup);
}

#[test]
fn so_it_does_over_http2() {
    ahead(|setup| setup.http2(Http2::default()));
}

/// The same pod's first request with a warm connection and without.
fn ahead(change: impl Fn(Setup) -> Setup) {
    let scene = Scene::for_test();
    let setup = Setup::new("manager", 443).tls(Mode::Strict, &scene.server, &scene.clients);
    let manager = Manager::start(&scene, change(setup));
    let delay = Delay::start(&scene, 443, 8443, DELAY);
    let upstream = format!("https://{MANAGER_NAME}:{}", delay.port());
    let pod = scene.pod();
    let first = |warm: usize| {
        let route = Route::strict("manager", DESTINATIONS, &upstream)
            .with(IDENTITY, TRUST)
            .set("pool_warm", &warm.to_string());
        let mut config = scene.config().route(route);
        config.workers = 1;
        let agent = Agent::start(&scene, &config);
        let idle = || agent.metrics().sum("hnp_pool_idle", &[("route", "manager")]) as usize;
        eventually(Duration::from_secs(60), "what is to be there ahead is there", || idle() >= warm);
        let known = manager.request_count();
        let handshakes = manager.connections().iter().filter(|connection| connection.tls.is_some()).count();
        assert_eq!(agent.metrics().sum("hnp_upstream_dials", &[]) as usize, warm, "dialled so far");
        let targets = vec![Target::new((MANAGER4, 80), MANAGER_NAME, "manager")];
        let report = client::run(&pod, &Job::Short { targets, total: 1, concurrency: 1 });
        assert_eq!(report.failures, Vec::<String>::new());
        assert_eq!(manager.request_count(), known + 1);
        let line = agent.access_line("the request", |line| line["status"] == 200);
        assert_eq!(line["reused"], warm > 0, "{line}");
        agent.stop(Duration::from_secs(20));
        (Duration::from_secs_f64(report.slowest_ms / 1e3), handshakes)
    };
    // The control: nobody has dialled before it came, and it pays for all of it.
    let (cold, before) = first(0);
    assert_eq!(before, 0, "nothing is dialled ahead where nobody asked for it");
    let (warm, before) = first(1);
    assert!(before > 0);
    aloud::say(&format!(
        "a pod's first request: {cold:.2?} without a connection, {warm:.2?} with one made ahead"
    ));
    assert!(cold >= 3 * DELAY, "{cold:?}");
    assert!(warm >= DELAY && warm < 2 * DELAY, "{warm:?}");
}
