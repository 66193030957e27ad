//! Other people's programs on the pods' cgroup and above it: a socket load balancer works together with
//! hnp, a legacy program that cannot is named.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hnp_tests::agent::{Agent, CAPABILITIES, Config, Route};
use hnp_tests::client::{self, End, RawCase};
use hnp_tests::poll::eventually;
use hnp_tests::process::Place;
use hnp_tests::scene::{IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::tools::python;
use hnp_tests::topology::{MANAGER_NAME, Pod};

const BALANCER: &str = include_str!("../clients/balancer.py");
/// A ClusterIP: nobody has that address.
const SERVICE: &str = "10.96.0.9:80";
const BACKEND: &str = "198.18.0.9:80";
/// `BPF_F_ALLOW_OVERRIDE` and `BPF_F_ALLOW_MULTI` of linux/bpf.h.
const ALLOW_OVERRIDE: u32 = 1;
const ALLOW_MULTI: u32 = 2;

#[test]
fn a_socket_load_balancer_works_together_with_capture_in_either_order() {
    for (name, above, before) in [
        ("on the same cgroup, before", false, true),
        ("on the same cgroup, after", false, false),
        ("above, before", true, true),
        ("above, after", true, false),
    ] {
        let scene = Scene::for_test();
        let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
        assert_eq!(ask(&pod, SERVICE), "not connected", "{name}: without a balancer nobody is there");
        let hang = || balance(&scene.node(), &cgroup(&pod, above), ALLOW_MULTI).expect("it can share");
        if before {
            hang();
            assert_eq!(ask(&pod, SERVICE), "cleartext", "{name}: the control, a balancer alone");
        }
        // ClusterIP and endpoint together: which of them capture sees depends on the order.
        let agent = scene.agent_with(Route::strict("manager", &[SERVICE, BACKEND], UPSTREAM));
        if !before {
            hang();
        }
        for dialled in [SERVICE, BACKEND] {
            assert_eq!(ask(&pod, dialled), "mutual TLS", "{name}: {dialled}");
        }
        let asked = manager.requests();
        assert!(asked.iter().skip(usize::from(before)).all(|request| request.tls.is_some()), "{name}");
        drop(agent);
    }
}

#[test]
fn a_strict_endpoint_behind_a_service_that_is_not_listed_is_not_reached_in_cleartext() {
    let scene = Scene::for_test();
    let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    let agent = scene.agent_with(Route::strict("manager", &[BACKEND], UPSTREAM));
    // Capture is asked first and sees the Service's address, which means nothing to it.
    balance(&scene.node(), &cgroup(&pod, false), ALLOW_MULTI).expect("it can share");
    eventually(Duration::from_secs(20), "the guard stands", || {
        agent.metrics().sum("hnp_guard_interfaces", &[]) >= 1.0
    });
    assert_eq!(ask(&pod, SERVICE), "not connected");
    assert!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "guard_reset")]) >= 1.0);
    assert_eq!(manager.request_count(), 0);
    // The control: the endpoint itself is captured.
    assert_eq!(ask(&pod, BACKEND), "mutual TLS");
}

#[test]
fn a_legacy_program_that_cannot_share_is_named_and_nothing_is_touched() {
    for (flags, words) in [(0, "no flags"), (ALLOW_OVERRIDE, "BPF_F_ALLOW_OVERRIDE")] {
        for above in [false, true] {
            let scene = Scene::for_test();
            let (_manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
            let cgroup = cgroup(&pod, above);
            balance(&scene.node(), &cgroup, flags).expect("the first of them");
            let route = Route::strict("manager", &[SERVICE, BACKEND], UPSTREAM).with(IDENTITY, TRUST);
            let config = scene.config().route(route);
            let ended = refused(&scene, &config);
            let place = format!("attached to {} with {words}", cgroup.display());
            assert!(ended.contains(&place), "{place:?} is not in {ended}");
            assert!(!scene.bpffs().join("links").exists(), "nothing is pinned");
            assert_eq!(ask(&pod, SERVICE), "cleartext", "it goes on as before");
            let found = Agent::doctor(&scene, &config);
            assert!(!found.status.success() && found.text().contains(&place), "{found}");
        }
    }
}

/// Runs an agent that cannot start, and returns what it said.
#[track_caller]
fn refused(scene: &Scene, config: &Config) -> String {
    let ended = Agent::spawn(scene.agent_place(), config, CAPABILITIES).wait(Duration::from_secs(20));
    assert!(!ended.status.success(), "{ended}");
    ended.stderr
}

/// The cgroup that capture hangs on, or the one above.
fn cgroup(pod: &Pod, above: bool) -> PathBuf {
    let kubepods = pod.cgroup().ancestors().find(|dir| dir.ends_with("kubepods")).expect("a pod's");
    if above { kubepods.parent().expect("the world's").to_owned() } else { kubepods.to_owned() }
}

fn balance(node: &Place, cgroup: &Path, flags: u32) -> Result<(), String> {
    let command = node.command(python()).args(["-c", BALANCER]).arg(cgroup);
    let done = command.args([flags.to_string().as_str(), SERVICE, BACKEND]).run();
    if done.status.success() { Ok(()) } else { Err(done.text()) }
}

/// Asks for something there, and says what carried it to the manager.
#[track_caller]
fn ask(pod: &Place, address: &str) -> &'static str {
    let text = format!("GET /hello HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
    let address: std::net::SocketAddr = address.parse().expect("an address");
    let answer = client::raw(pod, address, vec![RawCase::new(text)]).remove(0);
    match &answer.end {
        End::NotConnected(_) => "not connected",
        _ if answer.text().contains("\"tls\":null") => "cleartext",
        _ if answer.status() == Some(200) => "mutual TLS",
        _ => panic!("{answer:?}"),
    }
}
