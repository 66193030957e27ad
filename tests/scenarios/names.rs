//! Destinations by name follow the name server: on the records' time, with what the search list says,
//! and readiness waits for names that have not resolved.

use std::time::Duration;

use hnp_tests::agent::{Agent, CAPABILITIES, Config, Route};
use hnp_tests::client::{self, Job, RawCase, Target};
use hnp_tests::dns::{Answer, Dns};
use hnp_tests::manager::{Manager, Setup};
use hnp_tests::poll::eventually;
use hnp_tests::process::Place;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, MANAGER6, OTHER4};

const NAME: &str = "moving.hnp.test";
/// A look-up per second, and a loaded machine.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn readiness_waits_for_a_name_and_names_it() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let dns = Dns::start(&scene);
    let mut agent = Agent::spawn(scene.agent_place(), &by_name(&scene, "1h"), CAPABILITIES);
    eventually(SOON, "readiness names what it waits for", || {
        agent.get("/readyz").is_ok_and(|(status, body)| status == 503 && body.contains(NAME))
    });
    assert_eq!(agent.get("/healthz").expect("it runs").0, 200, "waiting is not sickness");
    assert!(agent.metrics().sum("hnp_names_pending", &[]) >= 1.0);
    dns.set_addresses(NAME, &[MANAGER4.into()], 60);
    agent.wait_until_ready();
    assert!(captured(&scene.pod(), MANAGER4));
}

#[test]
fn a_destination_moves_with_its_name() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let dns = Dns::start(&scene);
    dns.set_addresses(NAME, &[MANAGER4.into()], 1);
    let _agent = Agent::start(&scene, &by_name(&scene, "2s"));
    let pod = scene.pod();
    assert!(captured(&pod, MANAGER4) && !captured(&pod, OTHER4));

    dns.set_addresses(NAME, &[OTHER4.into()], 1);
    let took = eventually(SOON, "the new address is captured", || captured(&pod, OTHER4));
    eprintln!("captured {:.1} s after the change; TTL 1 s", took.as_secs_f64());
    eventually(SOON, "the old address is let go after the grace time", || !captured(&pod, MANAGER4));
    assert!(captured(&pod, OTHER4));
}

#[test]
fn every_address_of_a_name_is_captured() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let dns = Dns::start(&scene);
    dns.set_addresses(NAME, &[MANAGER4.into(), OTHER4.into(), MANAGER6.into()], 60);
    let agent = Agent::start(&scene, &by_name(&scene, "1h"));
    let pod = scene.pod();
    eventually(SOON, "both families are captured", || agent.metrics().sum("hnp_destinations", &[]) == 3.0);
    let targets = vec![
        Target::new((MANAGER4, 80), NAME, "manager"),
        Target::new((OTHER4, 80), NAME, "manager"),
        Target::new((MANAGER6, 80), NAME, "manager"),
    ];
    client::run(&pod, &Job::Short { targets, total: 30, concurrency: 3 }).assert_all_ok(30);
}

#[test]
fn a_name_server_that_fails_later_takes_nothing_away() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let dns = Dns::start(&scene);
    dns.set_addresses(NAME, &[MANAGER4.into()], 1);
    let agent = Agent::start(&scene, &by_name(&scene, "1h"));
    let pod = scene.pod();
    for failure in [Answer::Failure, Answer::Silence, Answer::NotFound] {
        dns.set(NAME, failure.clone());
        eventually(SOON, "the failure is noticed", || agent.metrics().sum("hnp_names_failing", &[]) >= 1.0);
        assert!(captured(&pod, MANAGER4), "{failure:?}");
        dns.set_addresses(NAME, &[MANAGER4.into()], 1);
        eventually(SOON, "the recovery is noticed", || agent.metrics().sum("hnp_names_failing", &[]) == 0.0);
    }
}

#[test]
fn short_names_follow_the_search_list() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let dns = Dns::start(&scene);
    dns.set_addresses("manager.chaos.svc.cluster.local", &[MANAGER4.into()], 60);
    scene.set_resolv_conf(
        "nameserver 198.18.0.53\nsearch chaos.svc.cluster.local svc.cluster.local\noptions ndots:5 timeout:1\n",
    );
    let route =
        Route::strict("manager", &["manager:80"], "https://manager.hnp.test:80").with(IDENTITY, TRUST);
    let _agent = Agent::start(&scene, &scene.config().route(route));
    assert!(dns.queries("manager.chaos.svc.cluster.local") > 0);
    // And what the pod itself would type.
    let answer = scene.pod().command("curl").args(["-s", "http://manager/hello?token=short"]).run().ok();
    assert!(answer.contains("\"client_serial\":\"5a"), "{answer}");
}

#[test]
fn the_upstream_is_looked_up_anew_when_it_moves() {
    let scene = Scene::for_test();
    let dns = Dns::start(&scene);
    dns.set_addresses("up.hnp.test", &[MANAGER4.into()], 1);
    let server = scene.servers.server(&["up.hnp.test"]);
    let start = |name: &str, addr: std::net::Ipv4Addr| {
        let setup = Setup::new(name, 443).on(&[addr.into()]);
        Manager::start(&scene, setup.tls(hnp_tests::manager::Mode::Strict, &server, &scene.clients))
    };
    let first = start("first", MANAGER4);
    let _second = start("second", OTHER4);
    let route = Route::strict("manager", &["198.18.0.9:80"], "https://up.hnp.test").set("pool_idle", "0");
    let _agent = scene.agent_with(route);
    let pod = scene.pod();
    let answered_by = |name: &str| {
        let text = ask(&pod, MANAGER4).text();
        text.contains(&format!("\"manager\":\"{name}\""))
    };
    assert!(answered_by("first"));
    dns.set_addresses("up.hnp.test", &[OTHER4.into()], 1);
    eventually(SOON, "the upstream's new address is dialled", || answered_by("second"));
    drop(first);
}

fn by_name(scene: &Scene, grace: &str) -> Config {
    let route = Route::strict("manager", &[&format!("{NAME}:80")], "https://manager.hnp.test:80");
    let mut config = scene.config().route(route.with(IDENTITY, TRUST));
    config.resolver += &format!(", grace: {grace}");
    config
}

/// Whether what a pod sends to this address goes through the agent: the strict manager serves it then
/// and refuses it otherwise, on the same port.
fn captured(pod: &Place, addr: std::net::Ipv4Addr) -> bool {
    let answer = ask(pod, addr);
    match answer.status() {
        Some(200) => true,
        Some(400) => false,
        other => panic!("{other:?}: {}", answer.text()),
    }
}

fn ask(pod: &Place, addr: std::net::Ipv4Addr) -> client::RawAnswer {
    let host = if addr == MANAGER4 { NAME } else { MANAGER_NAME };
    let host = if addr == OTHER4 { NAME } else { host };
    let request = format!("GET /hello HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    client::raw(pod, (addr, 80), vec![RawCase::new(request)]).remove(0)
}
