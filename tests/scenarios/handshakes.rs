//! Beside others, a workload begins so many handshakes a second and waits with the rest: nothing is lost, and nobody else waits.

use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, Job, RawCase, Report, Target};
use hnp_tests::manager::{Manager, Mode, Service, Setup};
use hnp_tests::poll::eventually;
use hnp_tests::process::Running;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

/// Polled for; ten times what it should take.
const SOON: Duration = Duration::from_secs(10);
const OPAQUE: u16 = 9000;
const SAID: &str = "all that there is to say\n";

#[test]
fn beside_others_they_go_at_the_workloads_pace_and_nothing_is_lost() {
    let scene = Scene::for_test();
    let _managers = managers(&scene);
    let agent = Agent::start(&scene, &with(&scene, "handshakes_per_second: 1"));
    let (busy, other) = (scene.pod(), scene.pod());
    // The control: who has the agent to itself waits for nothing.
    all_answered(at_once(&busy, 5));
    assert_eq!(waits(&agent), 0.0);
    let holder = holds(&agent, &other);
    // What it did before is not held against it: one at once, and at most one a second then. Who closes his direction while
    // he waits has not left.
    all_answered(at_once(&busy, 5));
    assert!(waits(&agent) >= 2.0, "{}", waits(&agent));
    let waited = agent.access_line("a wait", |line| line["handshake_wait_ms"].as_u64() > Some(100));
    assert_eq!((&waited["reason"], &waited["mode"]), (&"ok".into(), &"opaque".into()), "{waited}");
    assert_eq!(waited["pod_uid"], busy.uid, "{waited}");
    // The controls: the other one's do not wait, nor does a request that a pool serves, nor anybody at a rate that all keep.
    let before = waits(&agent);
    all_answered(at_once(&other, 1));
    client::run(&busy, &Job::Held { targets: vec![http()], connections: 5 }).assert_all_ok(5);
    assert_eq!(waits(&agent), before);
    agent.reload(&with(&scene, "handshakes_per_second: 1000"));
    all_answered(at_once(&busy, 5));
    assert_eq!(waits(&agent), before);
    drop(holder);
}

#[test]
fn a_line_that_is_full_says_so() {
    let scene = Scene::for_test();
    let _managers = managers(&scene);
    let agent = Agent::start(&scene, &with(&scene, "handshakes_per_second: 1"));
    let (busy, other) = (scene.pod(), scene.pod());
    let holder = holds(&agent, &other);
    let crowd = at_once(&busy, 60);
    let refused = agent.access_line_with("workload_rate");
    let detail = refused["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("limits.per_workload.handshakes_per_second"), "{refused}");
    assert_eq!((&refused["route"], &refused["pod_uid"]), (&"lines".into(), &busy.uid.as_str().into()));
    // The controls: the other one is served, and so is who needs no handshake of his own.
    all_answered(at_once(&other, 1));
    client::run(&busy, &Job::Held { targets: vec![http()], connections: 1 }).assert_all_ok(1);
    drop((holder, crowd));
}

#[test]
fn a_permission_that_is_taken_back_holds_for_who_waits() {
    let scene = Scene::for_test();
    let (_manager, echo) = managers(&scene);
    let rate = "handshakes_per_second: 1";
    let agent = Agent::start(&scene, &with_policy(&scene, rate, "{default: allow}"));
    let (busy, other) = (scene.pod(), scene.pod());
    let holder = holds(&agent, &other);
    let crowd = at_once(&busy, 20);
    eventually(SOON, "they stand in line", || waits(&agent) >= 15.0);
    agent.reload(&with_policy(&scene, rate, "{default: deny}"));
    let begun = echo.connections().len();
    // All at once, and not each when its time has come.
    let revoked = || agent.metrics().sum("hnp_connections_total", &[("reason", "policy_revoked")]);
    eventually(SOON, "they are let go", || revoked() >= 10.0);
    assert!(echo.connections().len() <= begun + 1, "{begun} and {}", echo.connections().len());
    drop((holder, crowd));
}

/// What speaks HTTP, and what says what it hears.
fn managers(scene: &Scene) -> (Manager, Manager) {
    let echo = Setup::new("echo", OPAQUE).tls(Mode::Strict, &scene.server, &scene.clients);
    (scene.strict_manager(), Manager::start(scene, echo.service(Service::Echo)))
}

fn with(scene: &Scene, limit: &str) -> Config {
    with_policy(scene, limit, "{default: allow}")
}

fn with_policy(scene: &Scene, limit: &str, policy: &str) -> Config {
    let at = format!("{MANAGER4}:{OPAQUE}");
    let lines = Route::opaque("lines", &[&at], &format!("https://{MANAGER_NAME}:{OPAQUE}"));
    let lines = lines.with(IDENTITY, TRUST).set("policy", policy);
    let mut config = scene.config().route(scene.route()).route(lines);
    config.limits = format!("per_workload: {{{limit}}}");
    config
}

fn http() -> Target {
    Target::new((MANAGER4, 80), MANAGER_NAME, "manager")
}

/// A pod with a connection, so that no other is alone.
fn holds(agent: &Agent, pod: &Pod) -> Running {
    let open = || agent.metrics().sum("hnp_connections_open", &[]);
    eventually(SOON, "nobody is there", || open() == 0.0);
    let holder = client::load(pod, &Job::Idle { target: http(), connections: 1, opaque: false }).spawn();
    eventually(SOON, "the other one is there", || open() == 1.0);
    holder
}

/// So many connections at the same time, each of which wants a handshake of its own.
fn at_once(pod: &Pod, count: usize) -> Vec<Running> {
    let said = RawCase::new(SAID).then_half_close();
    // Longer than any of them waits here.
    let said = RawCase { quiet_ms: 60_000, ..said };
    let job = Job::Raw { addr: (MANAGER4, OPAQUE).into(), cases: vec![said] };
    (0..count).map(|_| client::load(pod, &job).deadline(9 * SOON).spawn()).collect()
}

fn all_answered(running: Vec<Running>) {
    for one in running {
        let answers = one.wait(9 * SOON).json::<Report>().answers;
        assert!(answers.len() == 1 && answers[0].text().contains(&format!("\n{SAID}")), "{answers:?}");
    }
}

fn waits(agent: &Agent) -> f64 {
    agent.metrics().sum("hnp_workload_handshake_waits_total", &[])
}
