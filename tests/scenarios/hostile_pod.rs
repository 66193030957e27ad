//! One hostile pod is its own loss: whatever it does with connections, the quiet ones beside it are served, and the agent's
//! memory and descriptors stay within what the configuration says.
//!
//! The quiet pods' times are printed and not asserted: this machine has its clients on the same processors. What the hostile
//! pod's own work does to them is measured, too: with the same load on a server that is none of the agent's.

use std::time::{Duration, Instant};

use hnp_tests::agent::{Agent, Config};
use hnp_tests::aloud::say;
use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::manager::{Manager, Setup};
use hnp_tests::poll::eventually;
use hnp_tests::process::Running;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{self, MANAGER_NAME, MANAGER4, Pod};

const QUIET: usize = 20;
/// What all may have, and what one may have of it.
const ALL: u64 = 1200;
const ONE: u64 = 300;
/// More than all may have.
const HOSTILE: u64 = 2400;
const SOON: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

#[test]
fn a_hostile_pod_takes_what_one_may_have_and_nobody_elses() {
    // Its load would be every other scenario's.
    let _alone = topology::alone();
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let agent = Agent::start(&scene, &config(&scene, ONE));
    let (quiet, hostile) = (pods(&scene), scene.pod());
    let alone = serve_all(&quiet);
    let before = agent.resident_bytes();
    let _elsewhere = Manager::start(&scene, Setup::new("manager", 8080));
    let attacks = attack(&hostile, 8080);
    let elsewhere = serve_all(&quiet);
    drop(attacks);

    let attacks = attack(&hostile, 80);
    let refused = || agent.metrics().sum("hnp_connections_total", &[("reason", "workload_connections")]);
    eventually(SOON, "it has taken what it may have", || refused() > 0.0);
    let beside = serve_all(&quiet);
    let (files, resident) = (agent.open_files(), agent.resident_bytes());
    let [p99_alone, p99_elsewhere, p99_beside] = [&alone, &elsewhere, &beside].map(|reports| middle(reports));
    say(&format!(
        "quiet pods' p99: {p99_alone:.1} ms alone, {p99_elsewhere:.1} ms beside a pod that is hostile to another server, \
         {p99_beside:.1} ms beside one that is to the agent ({:.2} and {:.2} times); the agent holds {files} descriptors and \
         {} MiB ({} before); {} connections turned away",
        p99_beside / p99_alone,
        p99_beside / p99_elsewhere,
        resident / MIB,
        before / MIB,
        refused(),
    ));
    // Its connections, those who are told, both with an upstream connection at most, and what an agent has.
    assert!((files as u64) < 2 * (ALL + 200) + 400, "{files} descriptors");
    // Each connection two buffers at most, beside itself.
    assert!(resident < before + ALL * 2 * 64 * 1024 + 64 * MIB, "{resident} bytes, {before} before");
    drop(attacks);
    eventually(SOON, "all of it is given back", || agent.metrics().sum("hnp_connections_open", &[]) <= 1.0);
    drop(agent);

    // The control: let one have all but one, and the hostile pod does take the others' places.
    let agent = Agent::start(&scene, &config(&scene, ALL - 1));
    let _attacks = hold(&hostile, 80);
    eventually(SOON, "it has taken nearly all there are", || {
        agent.metrics().sum("hnp_connections_open", &[]) >= (ALL - 2) as f64
    });
    let hungry = client::load(&quiet[0], &held(20)).spawn();
    let served = |hungry: &Running| !hungry.stdout().is_empty();
    // As long as all twenty needed before.
    let patience = Duration::from_secs_f64(beside.iter().map(|report| report.seconds).fold(2.0, f64::max));
    let until = Instant::now() + patience;
    while Instant::now() < until && !served(&hungry) {
        hnp_tests::poll::pause();
    }
    assert!(!served(&hungry), "{}", hungry.stdout());
}

fn config(scene: &Scene, one: u64) -> Config {
    // Who says half a thing keeps his place for as long as the scenario takes.
    let mut config = scene.config().route(scene.route().set("timeouts", "{head: 120s, idle: 120s}"));
    // More than the kernel would let a pod have by itself, so that it is the agent's limit that holds.
    config.capture = "connections_per_pod: 100000".to_owned();
    config.limits = format!("connections: {ALL}, per_workload: {{connections: {one}}}");
    config
}

fn pods(scene: &Scene) -> Vec<Pod> {
    (0..QUIET).map(|_| scene.pod()).collect()
}

fn target(port: u16) -> Target {
    Target::new((MANAGER4, port), MANAGER_NAME, "manager")
}

fn held(connections: u64) -> Job {
    Job::Held { targets: vec![target(80)], connections }
}

/// Every quiet pod a few requests a second, at the same time; all are served.
fn serve_all(quiet: &[Pod]) -> Vec<Report> {
    let job = Job::Steady { target: target(80), rate: 20, connections: 2, seconds: 4.0 };
    let running: Vec<Running> = quiet.iter().map(|pod| client::load(pod, &job).spawn()).collect();
    let reports: Vec<Report> = running.into_iter().map(|one| one.wait(SOON).json()).collect();
    for report in &reports {
        report.assert_all_ok(80);
    }
    reports
}

/// The median of the pods' p99.
fn middle(reports: &[Report]) -> f64 {
    let mut all: Vec<f64> = reports.iter().map(|report| report.p99_ms).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// All that it can think of: connections it holds and says nothing on, new ones as fast as it can, garbage, and half a hello.
fn attack(hostile: &Pod, port: u16) -> Vec<Running> {
    const GARBAGE: &str = "import os, socket, sys, time\n\
        end = time.time() + 60\n\
        while time.time() < end:\n\
        \x20 for what in (os.urandom(200), b'\\x16\\x03\\x01\\x02\\x00\\x01\\x00\\x01\\xfc\\x03\\x03', b'GET / HTTP/1.1\\r\\nHost: manager.hnp.test\\r\\n\\r\\n' * 50):\n\
        \x20  try:\n\
        \x20   s = socket.create_connection(('198.18.0.9', int(sys.argv[1])), 1); s.send(what); time.sleep(0.005); s.close()\n\
        \x20  except OSError: pass";
    let storm = Job::Storm { target: target(port), rate: 200, at_most: 200, seconds: 60.0 };
    let garbage =
        hostile.command(hnp_tests::tools::python()).args(["-c", GARBAGE, &port.to_string()]).spawn();
    let mut all = hold(hostile, port);
    all.extend([client::load(hostile, &storm).deadline(2 * SOON).spawn(), garbage]);
    all
}

/// Connects so often, asks for much and reads nothing; again where it was turned away. A process has a thousand descriptors
/// on many machines, so there are several.
fn hold(hostile: &Pod, port: u16) -> Vec<Running> {
    const HOLD: &str = "import socket, sys, time\n\
        held = []\n\
        ask = b'GET /bytes/1000000?seed=1 HTTP/1.1\\r\\nHost: manager.hnp.test\\r\\n\\r\\n'\n\
        end = time.time() + 90\n\
        while time.time() < end:\n\
        \x20 if len(held) < int(sys.argv[1]):\n\
        \x20  try:\n\
        \x20   s = socket.create_connection(('198.18.0.9', int(sys.argv[2])), 5); s.send(ask if len(held) % 4 == 0 else b'G'); held.append(s)\n\
        \x20  except OSError: time.sleep(0.01)\n\
        \x20 else: time.sleep(0.1)";
    let (each, port) = ((HOSTILE / 4).to_string(), port.to_string());
    let one = || {
        hostile
            .command(hnp_tests::tools::python())
            .args(["-c", HOLD, &each, &port])
            .deadline(2 * SOON)
            .spawn()
    };
    (0..4).map(|_| one()).collect()
}
