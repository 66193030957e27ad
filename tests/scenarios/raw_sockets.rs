//! Where the operator says so, pods get no raw IP sockets; by default they do.

use std::collections::BTreeMap;
use std::time::Duration;

use hnp_tests::agent::{Agent, CAPABILITIES, Config, Route};
use hnp_tests::kernel::{self, Feature};
use hnp_tests::process::Place;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::tools::python;

const SOCKET_TYPES: &str = include_str!("../clients/socket_types.py");

#[test]
fn pods_get_none_where_they_are_refused_and_the_node_and_other_types_are_untouched() {
    let scene = Scene::for_test();
    let (pod, plugin) = (scene.pod(), scene.host_network_pod());
    let all = made(&pod);
    assert!(all.values().all(|said| said == "made"), "the control, before there is an agent: {all:?}");
    let refuse = config(&scene, "raw_sockets: refuse");
    if !kernel::has(Feature::NetnsCookie) {
        // It could not leave the node's plugins theirs.
        let refused = Agent::spawn(scene.agent_place(), &refuse, CAPABILITIES).wait(Duration::from_secs(20));
        assert!(
            !refused.status.success() && refused.stderr.contains("capture.raw_sockets: allow"),
            "{refused}"
        );
        return;
    }
    let agent = Agent::start(&scene, &refuse);
    let expected: BTreeMap<String, String> = all
        .keys()
        .map(|name| {
            let raw = ["icmp", "icmp6", "any"].contains(&name.as_str());
            (name.clone(), if raw { "EPERM" } else { "made" }.to_owned())
        })
        .collect();
    assert_eq!(made(&pod), expected);
    assert_eq!(made(&plugin), all, "a network plugin's pod on the node's network");
    assert_eq!(made(pod.outside_cgroup()), all, "who is in no pod");
    assert_eq!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "raw_socket_refused")]), 3.0);

    // A take-over that breaks off could not put it back, so it does not change it.
    let end = Duration::from_secs(20);
    let other = Agent::take_over(scene.agent_place(), &config(&scene, "")).wait(end);
    assert!(!other.status.success() && other.stderr.contains("capture.raw_sockets is another"), "{other}");
    assert_eq!(made(&pod), expected);
    let mut next = Agent::take_over(scene.agent_place(), &refuse);
    let mut former = agent;
    assert!(former.wait(end).status.success(), "the control: with the same it takes over");
    next.wait_until_ready();
    let agent = next;
    assert_eq!(made(&pod), expected);

    // It outlives the agent, as all enforcement does; and goes with the next one that does not ask for it.
    agent.kill();
    assert_eq!(made(&pod), expected);
    let agent = Agent::start(&scene, &config(&scene, ""));
    assert_eq!(made(&pod), all);
    assert!(agent.stop(end).status.success());
    let agent = Agent::start(&scene, &refuse);
    assert_eq!(made(&pod), expected);
    agent.kill();
    assert!(Agent::clean_up(&scene).status.success());
    assert_eq!(made(&pod), all, "a cleanup takes it off, too");
}

fn config(scene: &Scene, capture: &str) -> Config {
    let route = Route::strict("manager", DESTINATIONS, UPSTREAM).with(IDENTITY, TRUST);
    let mut config = scene.config().route(route);
    config.capture = capture.to_owned();
    config
}

/// What comes of each type of socket there.
fn made(place: &Place) -> BTreeMap<String, String> {
    let said = place.command(python()).args(["-c", SOCKET_TYPES]).run().ok();
    said.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}
