//! SVIDs under load, in an outage, and one of several.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use hnp_tests::agent::{Agent, Config};
use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::poll::{eventually, until};
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::spiffe::{Given, WorkloadApi};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};

use super::{RUNNER, SOON, ask, hour, issued, socket, was_refused};

const RATE: u64 = 500;
const SECONDS: f64 = 20.0;
/// Between two SVIDs.
const PERIOD: Duration = Duration::from_secs(2);
/// An SVID's lifetime: the next one but three is there when it ends.
const LIFETIME: Duration = Duration::from_secs(8);
/// Long enough for an agent to start, on slow machines too.
const OUTAGE_LIFETIME: Duration = Duration::from_secs(20);

fn given(scene: &Scene, lifetime: Duration) -> (Given, String) {
    let leaf = issued(&scene.clients, &[RUNNER], lifetime);
    (Given::nothing().svid(RUNNER, &leaf, &scene.clients, ""), leaf.serial)
}

fn config(scene: &Scene, keys: &str) -> Config {
    let socket = socket(scene);
    let keys = format!("spiffe: {{socket: {}{keys}}}", socket.display());
    Config::new(scene).identity_with(IDENTITY, &keys).trust(TRUST, &scene.roots).route(scene.route())
}

#[test]
fn a_new_svid_every_two_seconds_under_load_costs_no_request() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (first, _) = given(&scene, LIFETIME);
    let api = WorkloadApi::start(&socket(&scene), first);
    let agent = Agent::start(&scene, &config(&scene, ""));
    let pod = scene.pod();
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
    let steady = Job::Steady { target, rate: RATE, connections: 20, seconds: SECONDS };
    let load = client::load(&pod, &steady).spawn();
    let began = Instant::now();
    let mut serials = HashSet::new();
    while began.elapsed().as_secs_f64() < SECONDS + 1.0 {
        let (next, serial) = given(&scene, LIFETIME);
        api.give(next);
        eventually(SOON, "the manager sees the new SVID", || {
            manager.last_request().is_some_and(|request| request.client_serial() == serial)
                || began.elapsed().as_secs_f64() > SECONDS
        });
        serials.insert(serial);
        let due = began + PERIOD * u32::try_from(serials.len()).expect("a few");
        eventually(PERIOD * 2, "it is time for the next one", || Instant::now() >= due);
    }
    let report: Report = load.wait(Duration::from_secs(60)).json();
    eprintln!("{} requests, p99 {:.1} ms, the slowest {:.1} ms", report.ok, report.p99_ms, report.slowest_ms);
    report.assert_all_ok((RATE as f64 * SECONDS) as u64);
    // The manager verifies dates itself: whoever had presented an expired one would be among the failed.
    let connections = manager.connections();
    let failed: Vec<_> = connections.iter().filter_map(|connection| connection.error.as_deref()).collect();
    assert!(!failed.iter().any(|error| error.contains("ertificate")), "{failed:?}");
    let mut shown = HashSet::new();
    for connection in &connections {
        let tls = connection.tls.as_ref().expect("every handshake was finished");
        let client = tls.client.as_ref().expect("the manager is strict");
        assert!(tls.at <= client.not_after, "an expired SVID was presented: {connection:?}");
        shown.insert(&*client.serial);
    }
    eprintln!("{} SVIDs on {} connections", shown.len(), connections.len());
    assert!(shown.len() >= 8, "{} of {} SVIDs were presented", shown.len(), serials.len());
    assert_eq!(agent.metrics().sum("hnp_identity_reload_failures", &[("identity", IDENTITY)]), 0.0);
}

#[test]
fn while_the_socket_is_gone_the_last_svid_serves_until_it_ends_and_then_a_reason_does() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let ends = SystemTime::now() + OUTAGE_LIFETIME;
    let (first, _) = given(&scene, OUTAGE_LIFETIME);
    let api = WorkloadApi::start(&socket(&scene), first);
    let mut agent = Agent::start(&scene, &config(&scene, ""));
    let pod = scene.pod();
    ask(&pod).assert_all_ok(1);
    drop(api);
    let failing = || agent.metrics().sum("hnp_identity_reload_failing", &[("identity", IDENTITY)]);
    eventually(SOON, "the socket is missed", || failing() == 1.0);
    assert!(agent.log().contains("there is no such socket; is a SPIRE agent running on this node"));
    // Whole seconds are all that a certificate knows.
    let margin = Duration::from_secs(2);
    let (refused, _) = until(OUTAGE_LIFETIME + SOON, "the last SVID is over", || {
        let asked = SystemTime::now();
        let report = ask(&pod);
        if report.ok == 1 {
            assert!(asked < ends + margin, "it is presented beyond its end");
            return None;
        }
        assert!(asked + margin > ends, "it served no longer, although it was valid: {:?}", report.failures);
        Some(report)
    });
    assert!(was_refused(&refused, "identity_expired"), "{:?}", refused.failures);
    let line = agent.access_line_with("identity_expired");
    assert_eq!(line["status"], 503, "{line}");
    assert!(line["detail"].as_str().expect("words").contains("its source gives no other"), "{line}");
    let before = manager.connections().len();
    assert!(was_refused(&ask(&pod), "identity_expired"));
    assert_eq!(manager.connections().len(), before, "nobody was dialled with it");
    assert!(agent.metrics().sum("hnp_requests_total", &[("reason", "identity_expired")]) >= 2.0);

    // The control: the socket is back, and the same agent serves.
    let (next, serial) = given(&scene, Duration::from_secs(3600));
    let _api = WorkloadApi::start(&socket(&scene), next);
    let (_, took) = until(SOON, "it serves again", || (ask(&pod).ok == 1).then_some(()));
    eprintln!("served again after {:.1} s", took.as_secs_f64());
    assert_eq!(manager.last_request().expect("one came").client_serial(), serial);
    eventually(SOON, "the alarm is over", || failing() == 0.0);
    assert!(agent.is_alive());
}

#[test]
fn of_several_svids_the_one_with_the_hint_is_presented() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let ids = ["spiffe://ours.test/a", "spiffe://ours.test/b", "spiffe://ours.test/c"];
    let leaves = ids.map(|id| hour(&scene.clients, &[id]));
    let mut all = Given::nothing();
    for ((id, leaf), hint) in ids.iter().zip(&leaves).zip(["", "internal", "external"]) {
        all = all.svid(id, leaf, &scene.clients, hint);
    }
    let _api = WorkloadApi::start(&socket(&scene), all);
    let pod = scene.pod();
    for (keys, expected) in [("", 0), (", hint: external", 2), (", id: \"spiffe://ours.test/b\"", 1)] {
        let config = config(&scene, keys);
        let agent = Agent::start(&scene, &config);
        ask(&pod).assert_all_ok(1);
        assert_eq!(
            manager.last_request().expect("one came").client_serial(),
            leaves[expected].serial,
            "{keys}"
        );
        let checked = Agent::check(&scene.agent_place(), &config).ok();
        assert!(checked.contains(&format!("SPIFFE ID     {}", ids[expected])), "{checked}");
        agent.stop(SOON);
    }
    let checked = Agent::check(&scene.agent_place(), &config(&scene, ", hint: other"));
    assert!(!checked.status.success() && checked.stderr.contains("the hint other is not among"), "{checked}");
}

#[test]
fn an_agent_that_is_not_registered_is_told_what_to_do_and_serves_as_soon_as_it_is() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let config = config(&scene, "");
    let checked = Agent::check(&scene.agent_place(), &config);
    assert!(!checked.status.success() && checked.stderr.contains("there is no such socket"), "{checked}");
    let api = WorkloadApi::start(&socket(&scene), Given::nothing());
    let checked = Agent::check(&scene.agent_place(), &config);
    assert!(
        checked.stderr.contains("no identity is registered for this agent (PermissionDenied)"),
        "{checked}"
    );
    assert!(checked.stderr.contains("spire-server entry create"), "{checked}");
    let mut agent = Agent::spawn(scene.agent_place(), &config, hnp_tests::agent::CAPABILITIES);
    eventually(SOON, "readiness waits for it", || {
        agent
            .get("/readyz")
            .is_ok_and(|(status, text)| status == 503 && text.contains("no identity is registered"))
    });
    let doctor = doctor(&scene, &agent);
    let finding = doctor.iter().find(|line| line["area"] == "identity").expect("it looks at the identity");
    assert_eq!(
        (&finding["state"], &finding["reason"]),
        (&"bad".into(), &"identity_unavailable".into()),
        "{finding}"
    );

    let (first, _) = given(&scene, Duration::from_secs(3600));
    api.give(first);
    agent.wait_until_ready();
    ask(&scene.pod()).assert_all_ok(1);
}

fn doctor(scene: &Scene, agent: &Agent) -> Vec<serde_json::Value> {
    let file = agent.config_file().display().to_string();
    let done = Agent::tool(scene, &["doctor", "--config", &file, "--route", "manager", "--json"]);
    let all: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done}"));
    all["findings"].as_array().unwrap_or_else(|| panic!("{done}")).clone()
}
