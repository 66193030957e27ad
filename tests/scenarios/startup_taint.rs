//! The startup taint of the agent's node goes when the agent is ready, and nothing else of the node does.
//! An API server that fails, in whatever way, harms nothing.

use std::time::Duration;

use hnp_tests::agent::{Agent, CAPABILITIES, Route};
use hnp_tests::api_server::{Behaviour, Cluster, NODE};
use hnp_tests::client::{self, Job, Target};
use hnp_tests::dns::Dns;
use hnp_tests::pki::Ca;
use hnp_tests::poll::eventually;
use hnp_tests::process::Place;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};
use serde_json::json;

const TAINT: &str = "hnp.dev/agent-not-ready";
const NAME: &str = "late.hnp.test";
/// Pauses between attempts, and a loaded machine.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn the_taint_stays_until_the_agent_captures_and_goes_alone() {
    let scene = Scene::for_test();
    let cluster = Cluster::new(&scene);
    let (_manager, dns) = (scene.strict_manager(), Dns::start(&scene));
    let api = cluster.start(json!([
        {"key": TAINT, "effect": "NoExecute", "timeAdded": "2026-11-01T00:00:00Z"},
        {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"},
        {"key": TAINT, "effect": "NoSchedule"},
        {"key": "dedicated", "value": "chaos", "effect": "NoSchedule"},
    ]));
    let before = api.node();
    let route =
        Route::strict("manager", &["198.18.0.9:80", &format!("{NAME}:80")], "https://manager.hnp.test:80");
    let config = cluster.config(scene.config().route(route.with(IDENTITY, TRUST)));
    let mut agent = Agent::spawn(scene.agent_place(), &config, CAPABILITIES);

    // The control: it runs and captures what it knows, and a name is missing, so it is not ready.
    eventually(SOON, "the agent waits for the name alone", || {
        let waits = |body: &str| body.contains(NAME) && body.contains("1 pending");
        agent.get("/readyz").is_ok_and(|(status, body)| status == 503 && waits(&body))
    });
    assert_serves(&scene.pod());
    assert_eq!(api.node(), before);
    assert_eq!(api.calls().len(), 0, "nothing is asked before there is something to do");
    assert_eq!(agent.metrics().sum("hnp_startup_taint", &[]), 1.0);

    dns.set_addresses(NAME, &[MANAGER4.into()], 60);
    agent.wait_until_ready();
    let mut expected = before;
    expected["spec"]["taints"] = json!([
        {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"},
        {"key": "dedicated", "value": "chaos", "effect": "NoSchedule"},
    ]);
    expected["metadata"]["resourceVersion"] = json!("2");
    eventually(SOON, "both taints of the key are gone, and nothing else", || api.node() == expected);
    eventually(SOON, "the gauge", || agent.metrics().sum("hnp_startup_taint", &[]) == 0.0);
    assert_eq!((api.count("GET", 200), api.count("PATCH", 200), api.calls().len()), (1, 1, 2));
    let said = agent.log_line("startup taint removed");
    assert!(said.contains(NODE) && said.contains(TAINT), "{said}");
}

#[test]
fn a_node_without_the_taint_is_left_alone_without_a_word() {
    let scene = Scene::for_test();
    let cluster = Cluster::new(&scene);
    let _manager = scene.strict_manager();
    let api = cluster.start(json!([{"key": "dedicated", "value": "chaos", "effect": "NoSchedule"}]));
    let agent = Agent::start(&scene, &cluster.config(scene.config().route(scene.route())));
    eventually(SOON, "the agent has looked", || agent.metrics().sum("hnp_startup_taint", &[]) == 0.0);
    assert_eq!((api.count("GET", 200), api.calls().len()), (1, 1));
    assert!(!agent.log().contains("startup taint"), "{}", agent.log());
    let looked = agent.resident_bytes();
    assert!(agent.stop(SOON).status.success());

    // The control: told not to look, it does not, and has no such metric.
    let mut off = cluster.config(scene.config().route(scene.route()));
    off.kubernetes += ", startup_taint: off";
    let agent = Agent::start(&scene, &off);
    eprintln!("resident: {} KiB after a look, {} KiB without", looked / 1024, agent.resident_bytes() / 1024);
    assert_serves(&scene.pod());
    assert!(!agent.metrics().has("hnp_startup_taint", &[]));
    assert_eq!(api.calls().len(), 1, "none since");
}

#[test]
fn an_api_server_that_fails_harms_nothing_and_is_asked_until_it_does_not() {
    let scene = Scene::for_test();
    let cluster = Cluster::new(&scene);
    let _manager = scene.strict_manager();
    let taints = json!([{"key": TAINT, "effect": "NoSchedule"}]);
    // Nobody listens there yet.
    let agent = Agent::start(&scene, &cluster.config(scene.config().route(scene.route())));
    let pod = scene.pod();
    let fails = |cause: &str| {
        eventually(SOON, cause, || {
            agent.metrics().sum("hnp_startup_taint_failures", &[("cause", cause)]) >= 1.0
        });
        assert_serves(&pod);
        assert_eq!(agent.metrics().sum("hnp_startup_taint", &[]), 1.0, "{cause}");
        assert_eq!(agent.get("/readyz").expect("it answers").0, 200, "{cause}: readiness is about capture");
    };
    fails("unreachable");

    let api = cluster.start(taints.clone());
    for (behaviour, cause) in [
        (Behaviour::Broken, "server_error"),
        (Behaviour::Unauthorized, "unauthorized"),
        (Behaviour::ReadOnly, "forbidden"),
        (Behaviour::Conflict, "conflict"),
        (Behaviour::Silent, "timeout"),
    ] {
        api.behave(behaviour);
        fails(cause);
        assert_eq!(api.taints(), taints, "{cause}");
    }
    let warnings = |cause: &str| agent.log().matches(&format!("\"cause\":\"{cause}\"")).count();
    assert_eq!(warnings("server_error"), 1, "said once, however often it is tried: {}", agent.log());

    api.behave(Behaviour::Well);
    eventually(SOON, "the taint goes at last", || api.taints() == json!([]));
    agent.log_line("startup taint removed");
    // The token is a secret, also when it is not accepted.
    assert!(!agent.log().contains("token-of-"), "{}", agent.log());
}

#[test]
fn who_changes_the_taints_at_the_same_time_loses_nothing() {
    let scene = Scene::for_test();
    let cluster = Cluster::new(&scene);
    let _manager = scene.strict_manager();
    let (ours, theirs) =
        (json!({"key": TAINT, "effect": "NoSchedule"}), json!({"key": "a/b", "effect": "NoExecute"}));
    let api = cluster.start(json!([ours]));
    // Between the look and the patch another taint gets in front: index 0 is not ours any more.
    api.meddle(json!([theirs, ours]));
    let agent = Agent::start(&scene, &cluster.config(scene.config().route(scene.route())));
    eventually(SOON, "only ours goes", || api.taints() == json!([theirs]));
    assert_eq!((api.count("PATCH", 422), api.count("PATCH", 200)), (1, 1), "{:?}", api.calls());
    assert_eq!(agent.metrics().sum("hnp_startup_taint_failures", &[("cause", "conflict")]), 1.0);
}

#[test]
fn a_server_that_the_clusters_ca_does_not_know_never_sees_the_token() {
    let scene = Scene::for_test();
    let mut cluster = Cluster::new(&scene);
    let _manager = scene.strict_manager();
    let genuine = std::mem::replace(&mut cluster.ca, Ca::new("somebody else"));
    let taints = json!([{"key": TAINT, "effect": "NoSchedule"}]);
    let impostor = cluster.start(taints.clone());
    let agent = Agent::start(&scene, &cluster.config(scene.config().route(scene.route())));
    let warning = agent.log_line("cannot look after the startup taint");
    assert!(warning.contains("UnknownIssuer") && warning.contains("unreachable"), "{warning}");
    assert_eq!(impostor.calls().len(), 0, "no request, so no token");
    drop(impostor);

    // The control: the server that the CA signed for, at the same address.
    cluster.ca = genuine;
    let api = cluster.start(taints);
    eventually(SOON, "the taint goes", || api.taints() == json!([]));
}

#[track_caller]
fn assert_serves(pod: &Place) {
    let targets = vec![Target::new((MANAGER4, 80), MANAGER_NAME, "manager")];
    client::run(pod, &Job::Short { targets, total: 2, concurrency: 1 }).assert_all_ok(2);
}
