//! A gibibyte up and a gibibyte down arrive as they were sent, while the agent's memory stays where
//! it was: bodies are streamed, never kept.

use std::time::Duration;

use hnp_tests::agent::Agent;
use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::pattern::sha256_of;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{self, MANAGER_NAME, MANAGER4, Pod};

const LENGTH: u64 = 1 << 30;
/// How much the agent may grow.
const GROWTH: u64 = 32 << 20;

#[test]
fn a_gibibyte_up_and_a_gibibyte_down() {
    let _alone = topology::alone();
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
    // Warm: what the first request allocates is not growth under load.
    let targets = vec![target.clone()];
    client::run(&pod, &Job::Short { targets, total: 4, concurrency: 2 }).assert_all_ok(4);
    let resting = agent.resident_bytes();

    for (seed, chunked) in [(1, false), (2, true)] {
        let target = target.clone().path("/sink");
        let up = watched(&agent, &pod, resting, &Job::Upload { target, bytes: LENGTH, seed, chunked });
        assert_eq!(up.sha256, sha256_of(seed, LENGTH));
        assert_eq!(manager.last_request().expect("one came").body_sha256, Some(up.sha256));
    }
    for (seed, chunked) in [(3, ""), (4, "&chunked")] {
        let target = target.clone().path(&format!("/bytes/{LENGTH}?seed={seed}{chunked}"));
        let down = watched(&agent, &pod, resting, &Job::Download { target });
        assert_eq!((down.bytes, down.sha256), (LENGTH, sha256_of(seed, LENGTH)));
    }
}

/// Runs a job and looks at the agent's memory all the while.
#[track_caller]
fn watched(agent: &Agent, pod: &Pod, resting: u64, job: &Job) -> Report {
    let mut running = client::load(pod, job).spawn();
    let (mut peak, mut samples) = (0, 0);
    let finished = loop {
        peak = peak.max(agent.resident_bytes());
        samples += 1;
        if let Some(finished) = running.wait_up_to(Duration::from_millis(20)) {
            break finished;
        }
        assert!(samples < 15_000, "five minutes for a gibibyte");
    };
    let report: Report = finished.json();
    let grown = peak.saturating_sub(resting);
    let rate = report.bytes as f64 / report.seconds / 1e6;
    eprintln!("{rate:.0} MB/s; the agent grew by {} KiB over {samples} samples", grown / 1024);
    assert!(samples > 3, "looked at while it ran");
    assert!(grown < GROWTH, "the agent grew by {grown} bytes");
    report
}
