//! Flows to a strict destination that are older than the agent can be destroyed at once, also where there
//! is no guard to reset them; by default that is left to the guard.

use std::fs::File;
use std::net::IpAddr;
use std::time::Duration;

use hnp_tests::agent::{Agent, CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAPABILITIES, Config, Route};
use hnp_tests::poll::eventually;
use hnp_tests::process::Running;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::tools::python;
use hnp_tests::topology::{MANAGER4, MANAGER6, Pod};

const RESTING: &str = include_str!("../clients/resting.py");
const END: Duration = Duration::from_secs(20);
/// What entering pods' network namespaces takes beside the usual.
const MORE: &[u8] = &[CAP_SYS_ADMIN, CAP_SYS_PTRACE];

#[test]
fn they_are_destroyed_at_once_where_that_is_asked_for_and_nothing_else_is() {
    let scene = Scene::for_test();
    let (manager, _other) = (scene.loose_manager("manager", 80), scene.loose_manager("other", 81));
    let pods = [scene.pod(), scene.pod()];
    let rest = |pod: &Pod, address: IpAddr, port: u16| resting(&scene, pod, address, port);
    let strict = [
        rest(&pods[0], MANAGER4.into(), 80),
        rest(&pods[0], MANAGER6.into(), 80),
        rest(&pods[1], MANAGER4.into(), 80),
    ];
    // The control: a port that is no destination, from the same pod.
    let untouched = rest(&pods[0], MANAGER4.into(), 81);
    let config = config(&scene, "guard: off, destroy_older_flows: true");
    let mut agent = Agent::spawn(scene.agent_place(), &config, &[CAPABILITIES, MORE].concat());
    agent.wait_until_ready();
    for client in strict {
        let said = client.wait(END).ok();
        assert!(said.ends_with("ECONNABORTED\n"), "{said}");
    }
    eventually(END, "they are counted", || agent.metrics().sum("hnp_older_flows_destroyed", &[]) == 3.0);
    let found = Agent::doctor(&scene, &config).text();
    assert!(found.contains("older flows: destroyed at once, by sock_diag"), "{found}");
    File::create(scene.path("go")).expect("made");
    assert!(untouched.wait(END).ok().ends_with("answered\n"));
    assert_eq!(manager.request_count(), 3, "each asked once, before");
}

#[test]
fn without_it_and_without_a_guard_they_go_on_and_the_doctor_says_so() {
    let scene = Scene::for_test();
    let (_manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    let client = resting(&scene, &pod, MANAGER4.into(), 80);
    let off = config(&scene, "guard: off");
    let agent = Agent::start(&scene, &off);
    let found = Agent::doctor(&scene, &off).text();
    assert!(found.contains("degraded  guard        older flows: go on in the clear"), "{found}");
    File::create(scene.path("go")).expect("made");
    assert!(client.wait(END).ok().ends_with("answered\n"));
    agent.kill();
    let guarded = config(&scene, "");
    let agent = Agent::start(&scene, &guarded);
    eventually(END, "the guard stands", || agent.metrics().sum("hnp_guard_interfaces", &[]) >= 1.0);
    let found = Agent::doctor(&scene, &guarded).text();
    assert!(found.contains("ok        guard        older flows: reset by the guard"), "{found}");
    agent.kill();
    let asked = config(&scene, "destroy_older_flows: true");
    let said = Agent::spawn(scene.agent_place(), &asked, CAPABILITIES).wait(END).stderr;
    assert!(said.contains("CAP_SYS_ADMIN") && said.contains("capture.destroy_older_flows"), "{said}");
}

fn config(scene: &Scene, capture: &str) -> Config {
    let route = Route::strict("manager", DESTINATIONS, UPSTREAM).with(IDENTITY, TRUST);
    let mut config = scene.config().route(route);
    config.capture = capture.to_owned();
    config
}

/// A connection that has asked once and rests.
fn resting(scene: &Scene, pod: &Pod, address: IpAddr, port: u16) -> Running {
    let arguments = ["-c", RESTING, &address.to_string(), &port.to_string()];
    let client = pod.command(python()).args(arguments).arg(scene.path("go")).deadline(END * 3).spawn();
    eventually(END, "it is open", || client.stdout().contains("open"));
    client
}
