//! The agent needs CAP_BPF and CAP_NET_ADMIN and nothing else. When something is missing it says
//! what, why it matters and what to do, before it touches anything; nothing is left behind.

use std::time::Duration;

use hnp_tests::agent::{self, Agent, CAP_BPF, CAP_NET_ADMIN, CAPABILITIES, Config};
use hnp_tests::process::{Finished, Place};
use hnp_tests::scene::Scene;

#[test]
fn without_cap_bpf() {
    let scene = Scene::for_test();
    refuses(&scene, &config(&scene), &[CAP_NET_ADMIN], &["CAP_BPF"]);
}

#[test]
fn without_cap_net_admin() {
    let scene = Scene::for_test();
    refuses(&scene, &config(&scene), &[CAP_BPF], &["CAP_NET_ADMIN"]);
}

#[test]
fn without_any_capability_both_are_named() {
    let scene = Scene::for_test();
    refuses(&scene, &config(&scene), &[], &["CAP_BPF", "CAP_NET_ADMIN"]);
}

#[test]
fn without_the_cgroup() {
    let scene = Scene::for_test();
    let mut config = config(&scene);
    config.cgroup = scene.kubepods().with_file_name("no-such-cgroup");
    refuses(&scene, &config, CAPABILITIES, &["no-such-cgroup"]);
    // A directory that is no cgroup2.
    config.cgroup = scene.dir().to_owned();
    refuses(&scene, &config, CAPABILITIES, &["cgroup"]);
}

#[test]
fn without_a_bpffs() {
    let scene = Scene::for_test();
    let mut config = config(&scene);
    config.bpffs = scene.path("no-bpffs/hnp");
    refuses(&scene, &config, CAPABILITIES, &["no-bpffs"]);
    assert!(!scene.path("no-bpffs").exists(), "not made on an ordinary file system");
}

#[test]
fn without_the_port() {
    let scene = Scene::for_test();
    let taken = scene.node_netns().run(|| std::net::TcpListener::bind("0.0.0.0:15001"));
    let _taken = taken.expect("a free port");
    refuses(&scene, &config(&scene), CAPABILITIES, &["15001"]);
}

#[test]
fn with_a_broken_configuration_all_mistakes_are_told_at_once() {
    let scene = Scene::for_test();
    let mut broken = config(&scene);
    broken.workers = 0;
    broken.limits = "connections: many, colour: blue".to_owned();
    for refused in [run(&scene, &broken, CAPABILITIES), Agent::check(&scene.agent_place(), &broken)] {
        assert!(!refused.status.success(), "{refused}");
        for word in ["workers", "limits.connections", "limits.colour", ".yaml:"] {
            assert!(refused.stderr.contains(word), "{word} in {}", refused.stderr);
        }
    }
    assert_eq!(agent::remains(&scene), Vec::<String>::new());
}

#[test]
fn check_needs_no_privilege_and_changes_nothing() {
    let scene = Scene::for_test();
    let place: Place = scene.agent_place();
    let checked = Agent::check(&place, &config(&scene));
    assert!(checked.status.success(), "{checked}");
    assert_eq!(agent::remains(&scene), Vec::<String>::new());
}

#[test]
fn what_it_holds_while_it_runs_is_gone_after_a_cleanup() {
    // The control of this file: with what it needs it starts, and there is something to remove.
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let agent = Agent::start(&scene, &config(&scene));
    let kept = agent::remains(&scene);
    assert!(kept.iter().any(|what| what.starts_with("pin ")), "{kept:?}");
    assert!(kept.iter().any(|what| what.contains("169.254.77.0/24")), "{kept:?}");
    assert!(kept.iter().any(|what| what.contains("fd00:77::/64")), "{kept:?}");
    let ended = agent.stop(Duration::from_secs(20));
    assert!(ended.status.success(), "{ended}");
    let cleaned = Agent::clean_up(&scene);
    assert!(cleaned.status.success(), "{cleaned}");
    assert_eq!(agent::remains(&scene), Vec::<String>::new());
}

fn config(scene: &Scene) -> Config {
    scene.config().route(scene.route())
}

fn run(scene: &Scene, config: &Config, capabilities: &[u8]) -> Finished {
    Agent::spawn(scene.agent_place(), config, capabilities).wait(Duration::from_secs(20))
}

/// The start fails, says these words and what to do, and leaves nothing.
#[track_caller]
fn refuses(scene: &Scene, config: &Config, capabilities: &[u8], words: &[&str]) {
    let before = agent::remains(scene);
    let refused = run(scene, config, capabilities);
    assert!(!refused.status.success(), "{refused}");
    for word in words {
        assert!(refused.stderr.contains(word), "{word} in {refused}");
    }
    assert!(!refused.stderr.contains("panicked"), "{refused}");
    assert_eq!(agent::remains(scene), before, "nothing is left behind");
    assert!(!scene.bpffs().exists(), "not even a directory");
}
