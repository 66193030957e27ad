//! Beside others, a workload begins so many handshakes a second and waits with the rest: nothing is lost, and nobody else waits.

use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, Job, RawAnswer, RawCase, Target};
use hnp_tests::manager::{Manager, Mode, Service, Setup};
use hnp_tests::poll::eventually;
use hnp_tests::process::Running;
use hnp_tests::scene::{IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

/// Polled for; ten times what it should take.
const SOON: Duration = Duration::from_secs(10);
/// A route whose connections serve one request each.
const COLD: u16 = 81;
const GET: &str = "GET /hello HTTP/1.1\r\nHost: manager.hnp.test\r\nConnection: close\r\n\r\n";

#[test]
fn beside_others_they_go_at_the_workloads_pace() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let agent = Agent::start(&scene, &with(&scene, 2));
    let (busy, other) = (scene.pod(), scene.pod());
    // The control: who has the agent to itself waits for nothing.
    assert!(ask(&busy, COLD, 8).iter().all(|answer| answer.status() == Some(200)));
    assert_eq!(waits(&agent), 0.0);
    let holder = holds(&agent, &other, 1.0);
    // What it did before is not held against it: two at once, and four of which each waits.
    assert!(ask(&busy, COLD, 6).iter().all(|answer| answer.status() == Some(200)));
    assert!(waits(&agent) >= 3.0, "{}", waits(&agent));
    let waited = agent.access_line("a wait", |line| line["handshake_wait_ms"].as_f64() > Some(100.0));
    assert_eq!(
        (&waited["reason"], &waited["pod_uid"]),
        (&"ok".into(), &busy.uid.as_str().into()),
        "{waited}"
    );
    // The controls: the other one's does not wait, nor does anybody at a rate that all keep.
    let before = waits(&agent);
    assert_eq!(ask(&other, COLD, 1)[0].status(), Some(200));
    assert_eq!(waits(&agent), before);
    agent.reload(&with(&scene, 1000));
    assert!(ask(&busy, COLD, 6).iter().all(|answer| answer.status() == Some(200)));
    assert_eq!(waits(&agent), before);
    drop(holder);
}

#[test]
fn bytes_that_nobody_understands_wait_whole() {
    let scene = Scene::for_test();
    let echo = Setup::new("echo", 9000).tls(Mode::Strict, &scene.server, &scene.clients);
    let (_manager, _echo) = (scene.strict_manager(), Manager::start(&scene, echo.service(Service::Echo)));
    let opaque = Route::opaque("lines", &["198.18.0.9:9000"], "https://manager.hnp.test:9000");
    let agent = Agent::start(&scene, &with(&scene, 1).route(opaque.with(IDENTITY, TRUST)));
    let (busy, other) = (scene.pod(), scene.pod());
    let holder = holds(&agent, &other, 1.0);
    let said = RawCase::new("all that there is to say\n").then_half_close();
    // Who closes his direction while he waits has not left.
    let answers = client::raw(&busy, (MANAGER4, 9000), vec![said; 3]);
    assert!(
        answers.iter().all(|answer| answer.text().contains("\nall that there is to say\n")),
        "{answers:?}"
    );
    let waited = agent.access_line("a wait", |line| line["handshake_wait_ms"].as_f64() > Some(100.0));
    assert_eq!((&waited["reason"], &waited["mode"]), (&"ok".into(), &"opaque".into()), "{waited}");
    drop(holder);
}

#[test]
fn who_waits_takes_a_connection_that_another_one_has_done_with() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let agent = Agent::start(&scene, &with(&scene, 1));
    let (busy, other) = (scene.pod(), scene.pod());
    let holder = holds(&agent, &other, 1.0);
    // A line of twenty seconds and more.
    let mut storm = storm(&busy, 24);
    eventually(SOON, "the line is long", || waits(&agent) >= 22.0);
    let before = waits(&agent);
    let job = Job::Raw { addr: (MANAGER4, 80).into(), cases: vec![RawCase::new(GET)] };
    let mut last = client::load(&busy, &job).deadline(6 * SOON).spawn();
    eventually(SOON, "it stands in line", || waits(&agent) == before + 1.0);
    assert!(last.is_alive());
    assert_eq!(ask(&other, 80, 1)[0].status(), Some(200), "the other one waits for nothing");
    let answers = last.wait(6 * SOON).json::<client::Report>().answers;
    assert_eq!(answers[0].status(), Some(200));
    let waited =
        |line: &serde_json::Value| line["route"] == "manager" && !line["handshake_wait_ms"].is_null();
    let line = agent.access_line("its request", waited);
    assert_eq!(line["reused"], true, "on the other one's: {line}");
    // The control: those whose connections nobody can give back still wait.
    assert!(storm.is_alive());
    drop((holder, storm));
}

#[test]
fn a_line_that_is_full_says_so() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let agent = Agent::start(&scene, &with(&scene, 1));
    let (busy, other) = (scene.pod(), scene.pod());
    let holder = holds(&agent, &other, 1.0);
    let storm = storm(&busy, 60);
    let refused = agent.access_line_with("workload_rate");
    let detail = refused["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("limits.per_workload.handshakes_per_second"), "{refused}");
    assert_eq!((&refused["route"], &refused["status"]), (&"cold".into(), &429.into()), "{refused}");
    // The controls: the other one is served, and so is who needs no handshake.
    assert_eq!(ask(&other, 80, 1)[0].status(), Some(200));
    assert_eq!(ask(&busy, 80, 1)[0].status(), Some(200));
    drop((holder, storm));
}

/// Handshakes a second of one workload.
fn with(scene: &Scene, rate: u32) -> Config {
    let cold = Route::strict("cold", &[&format!("{MANAGER4}:{COLD}")], UPSTREAM).set("pool_idle", "0");
    let mut config = scene.config().route(scene.route()).route(cold.with(IDENTITY, TRUST));
    // Warm connections are a worker's: one of them, so that it is known who finds which.
    config.workers = 1;
    config.limits = format!("per_workload: {{handshakes_per_second: {rate}}}");
    config
}

/// A pod with a connection, so that no other is alone; once there are so many in all.
fn holds(agent: &Agent, pod: &Pod, open: f64) -> Running {
    let target = Target::new((MANAGER4, COLD), MANAGER_NAME, "manager");
    let holder = client::load(pod, &Job::Idle { target, connections: 1, opaque: false }).spawn();
    eventually(SOON, "the other one is there", || agent.metrics().sum("hnp_connections_open", &[]) == open);
    holder
}

/// So many connections within a second, whose requests all want a handshake.
fn storm(pod: &Pod, count: u64) -> Running {
    let target = Target::new((MANAGER4, COLD), MANAGER_NAME, "manager");
    let job = Job::Storm { target, rate: count, at_most: count, seconds: 1.0 };
    client::load(pod, &job).deadline(12 * SOON).spawn()
}

fn ask(pod: &Pod, port: u16, times: usize) -> Vec<RawAnswer> {
    client::raw(pod, (MANAGER4, port), vec![RawCase::new(GET); times])
}

fn waits(agent: &Agent) -> f64 {
    agent.metrics().sum("hnp_workload_handshake_waits_total", &[])
}
