//! A hundred thousand connections from fifty pods that come and go: every access line names the pod that
//! made the connection, and nothing is left of any of them.

use std::collections::HashMap;
use std::time::Duration;

use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::poll::eventually;
use hnp_tests::process::Running;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{self, MANAGER_NAME, MANAGER4, Pod};

/// How many pods in all.
const PODS: usize = 50;
/// How many of them at a time.
const AT_A_TIME: usize = 6;
/// Connections of each.
const EACH: u64 = 2_000;

#[test]
fn every_connection_is_the_right_pods_and_nothing_is_left() {
    let _alone = topology::alone();
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let agent = scene.agent();
    // The baseline is that of an agent that has served: its pools and caches are filled.
    let warm = scene.pod();
    client::run(&warm, &job("warm-up", 500)).assert_all_ok(500);
    scene.delete(warm);
    let settled = |what: &str| {
        eventually(Duration::from_secs(40), what, || {
            let metrics = agent.metrics();
            metrics.sum("hnp_flows", &[]) == 0.0
                && metrics.sum("hnp_connections_open", &[]) == 0.0
                && metrics.sum("hnp_captured_connections_open", &[]) == 0.0
        });
    };
    settled("nothing is open before");
    let (files, memory) = (agent.open_files(), agent.resident_bytes());

    let mut running: Vec<(Pod, Running)> = Vec::new();
    let mut uids = Vec::new();
    for _ in 0..PODS {
        if running.len() == AT_A_TIME {
            finish(&scene, running.remove(0));
        }
        let pod = scene.pod();
        uids.push(pod.uid.clone());
        let load = client::load(&pod, &job(&pod.uid, EACH)).spawn();
        running.push((pod, load));
    }
    running.into_iter().for_each(|one| finish(&scene, one));
    assert!(manager.request_count() as u64 >= PODS as u64 * EACH);

    settled("nothing is open after");
    let mut seen: HashMap<String, u64> = HashMap::new();
    eventually(Duration::from_secs(20), "all access lines are written", || {
        seen = attributed(&agent.access_lines());
        seen.values().sum::<u64>() >= PODS as u64 * EACH
    });
    assert_eq!(seen.len(), PODS);
    assert!(uids.iter().all(|uid| seen.get(uid) == Some(&EACH)), "{seen:?}");
    let grown = agent.resident_bytes().saturating_sub(memory);
    eprintln!(
        "{} connections of {PODS} pods; descriptors {files} before and {} after, memory grew by {} KiB",
        PODS as u64 * EACH,
        agent.open_files(),
        grown / 1024
    );
    // Idle connections to the manager are the pool's.
    assert!(agent.open_files() <= files + 64, "{} descriptors, {files} before", agent.open_files());
    assert!(grown < 16 << 20, "memory grew by {grown} bytes");
}

/// By pod: how many lines say so themselves and carry its uid in their path. Any other line is a mistake.
fn attributed(lines: &[serde_json::Value]) -> HashMap<String, u64> {
    let mut seen = HashMap::new();
    for line in lines {
        let path = line["path"].as_str().unwrap_or_default();
        let Some(uid) = path.strip_prefix("/pod/").filter(|uid| *uid != "warm-up") else { continue };
        assert_eq!(line["pod_uid"], uid, "{line}");
        assert_eq!(line["reason"], "ok", "{line}");
        *seen.entry(uid.to_owned()).or_default() += 1;
    }
    seen
}

fn job(uid: &str, total: u64) -> Job {
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager").path(&format!("/pod/{uid}"));
    Job::Short { targets: vec![target], total, concurrency: 16 }
}

fn finish(scene: &Scene, (pod, load): (Pod, Running)) {
    let report: Report = load.wait(Duration::from_secs(120)).json();
    report.assert_all_ok(EACH);
    scene.delete(pod);
}
