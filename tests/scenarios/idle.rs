//! Connections that wait: ten thousand of them beside a steady load, and tunnels up to the descriptor limit. What
//! one takes of the agent's memory is reported, and it is given back when they close.

use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::manager::{Manager, Mode, Service, Setup};
use hnp_tests::poll::eventually;
use hnp_tests::process::Running;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{self, MANAGER_NAME, MANAGER4};
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;
/// Connections are made one after the other, and a slow machine makes some hundreds a second.
const TO_CONNECT: Duration = Duration::from_secs(100);

#[test]
fn ten_thousand_idle_connections_disturb_nobody_and_give_their_memory_back() {
    let _alone = topology::alone();
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let route = Route::strict("manager", DESTINATIONS, UPSTREAM);
    // They wait for longer than all of this takes.
    let route = route.set("timeouts", "{idle: 10m}");
    let agent = Agent::start(&scene, &config(&scene, route));
    let (pod, busy) = (scene.pod(), scene.pod());
    let target = || Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
    let load = || -> Report {
        let job = Job::Steady { target: target(), rate: 1_000, connections: 50, seconds: 3.0 };
        let report = client::run(&busy, &job);
        report.assert_all_ok(report.ok);
        assert!(report.ok > 2_000, "{}", report.ok);
        report
    };
    // What a worker keeps in stock is there when it has been busy once.
    load();
    let (alone, before) = (load(), agent.resident_bytes());
    let idle = client::load(&pod, &Job::Idle { target: target(), connections: 10_000, opaque: false });
    let idle = idle.deadline(TO_CONNECT * 3).spawn();
    wait_for(&agent, 10_000.0);
    let with = agent.resident_bytes();
    let beside = load();
    end(idle, 10_000);
    wait_for(&agent, 0.0);
    eprintln!(
        "{} bytes for each of 10,000; beside 1,000 requests a second: p50 {:.2} ms and {:.2} with them, p99 {:.2} \
         and {:.2}",
        with.saturating_sub(before) / 10_000,
        alone.p50_ms,
        beside.p50_ms,
        alone.p99_ms,
        beside.p99_ms
    );
    // The control: they are there, and are not for nothing.
    assert!(with > before, "{before} {with}");
    returned(&agent, before, with);
}

#[test]
fn tunnels_up_to_the_descriptor_limit() {
    let _alone = topology::alone();
    let scene = Scene::for_test();
    let echo = Setup::new("echo", 80).tls(Mode::Strict, &scene.server, &scene.clients).service(Service::Echo);
    let _echo = Manager::start(&scene, echo);
    let route = Route::opaque("manager", DESTINATIONS, UPSTREAM).set("timeouts", "{idle: 10m}");
    let agent = Agent::start(&scene, &config(&scene, route));
    let pod = scene.pod();
    let job = |connections| Job::Idle {
        target: Target::new((MANAGER4, 80), MANAGER_NAME, "echo"),
        connections,
        opaque: true,
    };
    let few = client::load(&pod, &job(100)).spawn();
    wait_for(&agent, 100.0);
    let before = agent.resident_bytes();
    // Two descriptors each, and some for itself.
    let descriptors = agent.metrics().sum("process_max_fds", &[]);
    let many = (descriptors / 2.0 - 200.0).min(9_000.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand")]
    let many = many as u64;
    let idle = client::load(&pod, &job(many - 100)).deadline(TO_CONNECT * 3).spawn();
    wait_for(&agent, many as f64);
    let with = agent.resident_bytes();
    eprintln!("{} bytes for each of {many}", with.saturating_sub(before) / (many - 100));
    end(idle, many - 100);
    end(few, 100);
    wait_for(&agent, 0.0);
    returned(&agent, before, with);
}

fn config(scene: &Scene, route: Route) -> Config {
    let mut config = scene.config().route(route.with(IDENTITY, TRUST));
    config.capture = "connections_per_pod: 19000".to_owned();
    config.limits = "connections: 40000".to_owned();
    config
}

#[track_caller]
fn wait_for(agent: &Agent, open: f64) {
    eventually(TO_CONNECT, "so many connections are open", || {
        agent.metrics().sum("hnp_connections_open", &[]) == open
    });
}

#[track_caller]
fn end(idle: Running, connections: u64) {
    idle.signal(Signal::SIGTERM);
    let report: Report = idle.wait(Duration::from_secs(20)).json();
    report.assert_all_ok(connections);
}

/// Three quarters of what they took, at least: the allocator keeps some for the next.
#[track_caller]
fn returned(agent: &Agent, before: u64, with: u64) {
    let limit = before + (with - before) / 4 + 4 * MIB;
    eventually(Duration::from_secs(30), "the memory is given back", || agent.resident_bytes() <= limit);
    eprintln!(
        "resident: {} MiB before, {} with, {} after",
        before / MIB,
        with / MIB,
        agent.resident_bytes() / MIB
    );
}
