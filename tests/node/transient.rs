//! Transient pods, each of them living for less than a second with one POST as its first act: all of them are
//! carried over mutual TLS, and each access line names the pod that it was; also while the runtime, asked for the names,
//! says nothing.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hnp_tests::aloud::say;
use hnp_tests::api_server::Cluster;
use hnp_tests::kernel;
use hnp_tests::manager::Manager;
use hnp_tests::node::{AgentPod, Ended, Node, Pod, Relay, Spec, rendering};
use hnp_tests::poll::eventually;
use hnp_tests::scene::Scene;
use serde_json::Value;

use super::first_act::{self, assert_attributed};
use super::manifest;
use super::renderings::{MANAGER, SOCKET, manager, node, post, scene};

/// How many, and how many at a time: making pods keeps two processors busy. An emulated one takes seconds for each.
const PODS: usize = 200;
const PODS_IN_A_GUEST: usize = 12;
const AT_A_TIME: usize = 4;
/// What transient means.
const SHORT: Duration = Duration::from_secs(1);

/// How long the runtime says nothing to the agent.
const PAUSE: Duration = Duration::from_secs(2);

#[test]
fn two_hundred_pods_of_less_than_a_second_are_all_carried_and_all_told_apart() {
    let scene = Scene::for_test();
    let node = Node::start(&scene);
    let manager = scene.strict_manager();
    let agent = AgentPod::start(&node, &scene, &manifest());
    let done = run_all(&first_act::post, &|spec| node.run(spec).expect("a pod runs"), &|_| {});
    assert_all_carried(&scene, &manager, &agent, &done);
}

/// Names are here the runtime's alone: kubelet's directories are not mounted.
#[test]
fn they_are_told_apart_by_a_runtime_that_says_nothing_for_two_seconds() {
    let scene = scene(MANAGER);
    let cluster = Cluster::new(&scene);
    let node = node(&scene).in_cluster(&cluster);
    let manager = manager(&scene, MANAGER, 8443);
    let relay = Relay::start(&node, SOCKET);
    let manifest = rendering("runtime-socket", "1.30").without_volume("pod-logs");

    // The control: without the socket nobody names them.
    let agent = AgentPod::as_rendered(&node, &scene, &manifest.clone().without_volume("runtime"));
    agent.wait_until_ready();
    let (pod, ended) = node.run(&post("nameless", MANAGER)).expect("a pod runs");
    assert!(ended.output.contains("HTTP/1.1 200 "), "{ended:?}");
    let lines = agent.wait_for_lines(1, |line| line["path"] == "/hello");
    assert_eq!((&lines[0]["pod_uid"], lines[0].get("pod")), (&Value::from(pod.uid), None));
    agent.stop();

    let agent = AgentPod::as_rendered(&node, &scene, &manifest);
    agent.wait_until_ready();
    let (begin, paused) = std::sync::mpsc::channel();
    let relay = &relay;
    let (done, during, waited) = std::thread::scope(|scope| {
        let pausing = scope.spawn(move || {
            let before: usize = paused.recv().expect("half of the pods come");
            relay.pause(true);
            // Held up like the agent.
            let asking = scope.spawn(|| relay.ask());
            let until = Instant::now() + PAUSE;
            eventually(PAUSE * 2, "the pause is long enough", || Instant::now() >= until);
            relay.pause(false);
            (before, asking.join().expect("the runtime answers in the end"))
        });
        let ended = AtomicUsize::new(0);
        let done = run_all(
            &|name, _| post(name, MANAGER),
            &|spec| {
                let ran = node.run_and_keep(spec).expect("a pod runs");
                ended.fetch_add(1, Ordering::Relaxed);
                ran
            },
            &|number| {
                if number == pods() / 2 {
                    begin.send(ended.load(Ordering::Relaxed)).expect("somebody waits for it");
                }
            },
        );
        let (before, waited) = pausing.join().expect("no panic in it");
        (done, before, waited)
    });
    assert!(waited >= PAUSE, "the runtime has answered after {waited:?}");
    assert_all_carried(&scene, &manager, &agent, &done);
    say(&format!("the runtime said nothing for {waited:?}, from the {during}th pod's end on"));
    for (_, pod, _) in &done {
        node.forget(pod).expect("a pod goes");
    }
}

fn pods() -> usize {
    if kernel::in_a_guest() { PODS_IN_A_GUEST } else { PODS }
}

type Done = Vec<(Spec, Pod, Ended)>;

/// Runs all of them; `begins` is told of each number before it is run.
fn run_all(
    of: &(dyn Fn(&str, &str) -> Spec + Sync),
    run: &(dyn Fn(&Spec) -> (Pod, Ended) + Sync),
    begins: &(dyn Fn(usize) + Sync),
) -> Done {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= pods() {
                        return;
                    }
                    begins(number);
                    let name = format!("job-{number}");
                    let spec = of(&name, &name);
                    let (pod, ended) = run(&spec);
                    done.lock().expect("no panic while held").push((spec, pod, ended));
                }
            });
        }
    });
    let done: Done = done.into_inner().expect("no panic while held");
    say(&format!("{} pods in {:.1} s, {AT_A_TIME} at a time", done.len(), started.elapsed().as_secs_f64()));
    done
}

fn assert_all_carried(scene: &Scene, manager: &Manager, agent: &AgentPod<'_>, done: &Done) {
    let pods = pods();
    assert_eq!(done.len(), pods);
    for (spec, pod, ended) in done {
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
    for (spec, pod, _) in done {
        let line = by_uid.remove(pod.uid.as_str());
        assert_attributed(line.unwrap_or_else(|| panic!("no line of {spec:?} {pod:?}")), pod, spec);
    }
    assert!(by_uid.is_empty(), "lines of pods that never were: {by_uid:#?}");

    let mut lived: Vec<Duration> = done.iter().map(|(_, _, ended)| ended.lived).collect();
    lived.sort();
    let short = lived.iter().filter(|lived| **lived < SHORT).count();
    let milliseconds = |of: usize| lived[of].as_millis();
    say(&format!(
        "{pods} pods: from start to end {} ms (median), {} ms at most, {short} of them less than a second; all carried, all told apart",
        milliseconds(pods / 2),
        milliseconds(pods - 1),
    ));
}
