//! Transient pods, each of them living for less than a second with one POST as its first act: all of them are
//! carried over mutual TLS, and each access line names the pod that it was.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hnp_tests::aloud::say;
use hnp_tests::kernel;
use hnp_tests::node::{AgentPod, Ended, Node, Pod, Spec};
use hnp_tests::scene::Scene;

use super::first_act::{assert_attributed, post};
use super::manifest;

/// How many, and how many at a time: making pods keeps two processors busy. An emulated one takes seconds for each.
const PODS: usize = 200;
const PODS_IN_A_GUEST: usize = 12;
const AT_A_TIME: usize = 4;
/// What transient means.
const SHORT: Duration = Duration::from_secs(1);

#[test]
fn two_hundred_pods_of_less_than_a_second_are_all_carried_and_all_told_apart() {
    let scene = Scene::for_test();
    let node = Node::start(&scene);
    let manager = scene.strict_manager();
    let agent = AgentPod::start(&node, &scene, &manifest());
    let pods = if kernel::in_a_guest() { PODS_IN_A_GUEST } else { PODS };

    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= pods {
                        return;
                    }
                    let spec = post(&format!("job-{number}"), &format!("job-{number}"));
                    let (pod, ended) = node.run(&spec).expect("a pod runs");
                    done.lock().expect("no panic while held").push((spec, pod, ended));
                }
            });
        }
    });
    let took = started.elapsed();
    let done: Vec<(Spec, Pod, Ended)> = done.into_inner().expect("no panic while held");
    assert_eq!(done.len(), pods);

    for (spec, pod, ended) in &done {
        assert_eq!(ended.status, 0, "{spec:?} {ended:?}");
        assert!(ended.output.contains("HTTP/1.1 200 "), "{spec:?} {ended:?}");
        let request = manager.request(&spec.name);
        assert_eq!(
            (request.method.as_str(), request.client_serial()),
            ("POST", scene.client_serial.as_str())
        );
        assert!(!pod.uid.is_empty());
    }
    let lines = agent.wait_for_lines(pods, |line| line["path"] == "/hello");
    assert_eq!(lines.len(), pods, "one line for each request");
    let mut by_uid: HashMap<&str, _> =
        lines.iter().map(|line| (line["pod_uid"].as_str().unwrap_or_default(), line)).collect();
    for (spec, pod, _) in &done {
        let line = by_uid.remove(pod.uid.as_str());
        assert_attributed(line.unwrap_or_else(|| panic!("no line of {spec:?} {pod:?}")), pod, spec);
    }
    assert!(by_uid.is_empty(), "lines of pods that never were: {by_uid:#?}");

    let mut lived: Vec<Duration> = done.iter().map(|(_, _, ended)| ended.lived).collect();
    lived.sort();
    let short = lived.iter().filter(|lived| **lived < SHORT).count();
    let milliseconds = |of: usize| lived[of].as_millis();
    say(&format!(
        "{pods} pods in {:.1} s, {AT_A_TIME} at a time, from start to end {} ms (median), {} ms at most, {short} of them \
         less than a second; all carried, all told apart",
        took.as_secs_f64(),
        milliseconds(pods / 2),
        milliseconds(pods - 1),
    ));
}
