//! Connections made ahead of use are there before the first request, come back when they are gone, speak for the
//! identity that is the route's now, and are nobody's who did not ask for them.

use std::fs;
use std::time::{Duration, Instant};

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, RawCase};
use hnp_tests::manager::{Connection, Manager};
use hnp_tests::openssl_peer::{OpensslPeer, Version};
use hnp_tests::pki::Ca;
use hnp_tests::poll::eventually;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};

/// What another route reaches, without a connection made ahead.
const OTHER: &str = "https://manager.hnp.test:81";
const SOON: Duration = Duration::from_secs(20);

#[test]
fn after_a_rotation_the_first_request_goes_over_one_of_the_new_identity() {
    let scene = Scene::for_test();
    let (manager, other) = (scene.strict_manager(), scene.loose_manager("other", 81));
    let agent = Agent::start(&scene, &config(&scene, 2));
    eventually(SOON, "both are there", || of(&manager, &scene.client_serial) == 2 && idle(&agent) == 2.0);
    let next = scene.clients.client();
    let staged = next.write(scene.dir(), "staged");
    fs::rename(&staged.certificate, &scene.client.certificate).expect("the world's directory is ours");
    fs::rename(&staged.key, &scene.client.key).expect("the world's directory is ours");
    eventually(SOON, "both of the new identity are", || of(&manager, &next.serial) == 2);
    eventually(SOON, "the former ones are gone", || idle(&agent) == 2.0);
    assert_eq!(manager.request_count(), 0, "nobody has asked for anything yet");

    let get = format!("GET /x HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
    let answer = client::raw(&scene.pod(), (MANAGER4, 80), vec![RawCase::new(get)]).remove(0);
    assert_eq!(answer.status(), Some(200), "{}", answer.text());
    let request = manager.last_request().expect("one came");
    assert_eq!(request.client_serial(), next.serial);
    let line = agent.access_line("the request", |line| line["status"] == 200);
    assert_eq!(line["reused"], true, "{line}");
    // The control: the route beside it has none.
    assert!(other.connections().is_empty(), "{:?}", other.connections());
    assert_eq!(agent.metrics().sum("hnp_upstream_dials", &[("route", "other")]), 0.0);
}

#[test]
fn those_that_age_or_die_are_replaced_and_a_manager_that_is_away_is_not_stormed() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let agent = Agent::start(&scene, &config(&scene, 1));
    let serves = |manager: &Manager| of(manager, &scene.client_serial);
    eventually(SOON, "it is there", || serves(&manager) == 1 && idle(&agent) == 1.0);
    // 15 s later, and 10 s before the first one goes.
    eventually(Duration::from_secs(60), "another one before the first is too old", || serves(&manager) == 2);
    assert!(idle(&agent) >= 1.0, "there was always one");
    drop(manager);
    let refused = || agent.metrics().sum("hnp_upstream_dials", &[("reason", "upstream_refused")]);
    let took = eventually(SOON, "it is dialled in vain", || refused() >= 2.0);
    let most = 3.0 + 2.0 * took.as_secs_f64();
    assert!(refused() <= most, "{} dials in {took:?}", refused());
    assert_eq!(idle(&agent), 0.0);
    let manager = scene.strict_manager();
    eventually(Duration::from_secs(60), "it is there again", || serves(&manager) == 1 && idle(&agent) == 1.0);
    assert_eq!(manager.request_count(), 0);
}

#[test]
fn a_manager_that_refuses_our_certificate_after_the_handshake_is_not_stormed() {
    let scene = Scene::for_test();
    let others = Ca::new("another clients' CA");
    let refusing = OpensslPeer::start(&scene, 80, Version::Tls13, &scene.server, &others);
    let began = Instant::now();
    let agent = Agent::start(&scene, &config(&scene, 1));
    let dials = || agent.metrics().sum("hnp_upstream_dials", &[("route", "manager")]);
    // To the agent each of them is a handshake that went well.
    eventually(Duration::from_secs(60), "it is dialled again", || dials() >= 5.0);
    // Half of 1, 2, 4 and 8 s at least.
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(7500), "five dials in {took:?}");
    assert_eq!(agent.metrics().sum("hnp_upstream_dials", &[("reason", "ok")]), dials());
    eventually(SOON, "the server says why", || !refusing.connections().is_empty());
}

fn config(scene: &Scene, warm: usize) -> Config {
    let first = Route::strict("manager", DESTINATIONS, UPSTREAM).set("pool_warm", &warm.to_string());
    let second = Route::strict("other", &["other.hnp.test:80"], OTHER);
    scene.add_host("other.hnp.test", &["198.18.0.10".parse().expect("an address")]);
    let mut config = scene.config().route(first.with(IDENTITY, TRUST)).route(second.with(IDENTITY, TRUST));
    // Each worker has its own.
    config.workers = 1;
    config
}

fn idle(agent: &Agent) -> f64 {
    agent.metrics().sum("hnp_pool_idle", &[("route", "manager")])
}

/// How many connections have presented a certificate.
fn of(manager: &Manager, serial: &str) -> usize {
    let presented = |connection: &Connection| {
        let client = connection.tls.as_ref().and_then(|tls| tls.client.as_ref());
        client.is_some_and(|client| client.serial == serial)
    };
    manager.connections().iter().filter(|connection| presented(connection)).count()
}
