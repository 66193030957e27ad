//! Where the kernel has no way to attach the guard, a strict route is refused by name and nothing is
//! touched; where it has one, the same configurations serve. The vm tier runs this a second time, when it has
//! taken the modules sch_ingress and cls_bpf from the guest: kernels before Linux 6.6 have no other way.

use std::time::Duration;

use hnp_tests::agent::{self, Agent, CAPABILITIES, Config, Route};
use hnp_tests::client::{self, Job, Target};
use hnp_tests::kernel;
use hnp_tests::poll::eventually;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

/// Time enough for any end.
const END: Duration = Duration::from_secs(20);
/// What the operator is told: which route, what is missing, and each way out.
const WORDS: [&str; 6] =
    ["\\\"manager\\\"", "clsact", "sch_ingress", "cls_bpf", "enforcement: loose", "capture.guard: off"];

#[test]
fn strict_is_refused_by_name_where_it_cannot_be_guarded() {
    let scene = Scene::for_test();
    let (_manager, pod) = (scene.strict_manager(), scene.pod());
    let can_guard = kernel::can_guard();
    eprintln!("this kernel {} a way to attach the guard", if can_guard { "has" } else { "has NOT" });
    let (strict, loose) = (config(&scene, "strict"), config(&scene, "loose"));

    // At a start.
    let before = agent::remains(&scene);
    let mut first = Agent::spawn(scene.agent_place(), &strict, CAPABILITIES);
    if can_guard {
        first.wait_until_ready();
        assert_serves(&pod);
        assert!(first.stop(END).status.success());
        assert!(Agent::clean_up(&scene).status.success());
    } else {
        let ended = first.wait(END);
        assert!(!ended.status.success(), "{ended}");
        says_what_to_do(&ended.stderr);
    }
    assert_eq!(agent::remains(&scene), before, "nothing is left behind");

    // In a reload: what is in force goes on.
    let agent = Agent::start(&scene, &loose);
    assert_serves(&pod);
    agent.replace_config(&strict.to_yaml());
    let metric = |name: &str| agent.metrics().sum(name, &[]);
    if can_guard {
        eventually(END, "it is in force", || metric("hnp_config_generation") == 2.0);
        eventually(END, "the pod is guarded", || metric("hnp_guard_interfaces") == 1.0);
        assert_eq!(metric("hnp_config_reload_failing"), 0.0);
    } else {
        eventually(END, "it is refused", || metric("hnp_config_reload_failing") == 1.0);
        says_what_to_do(&agent.log());
        assert_eq!(metric("hnp_config_generation"), 1.0);
    }
    assert_serves(&pod);
    agent.kill();
    assert!(Agent::clean_up(&scene).status.success());

    // The way out that the message names holds on every kernel.
    let mut unguarded = strict;
    unguarded.capture = "guard: off".to_owned();
    let agent = Agent::start(&scene, &unguarded);
    assert_serves(&pod);
    assert!(agent.stop(END).status.success());
    assert!(Agent::clean_up(&scene).status.success());
}

fn config(scene: &Scene, enforcement: &str) -> Config {
    let route = match enforcement {
        "strict" => Route::strict("manager", DESTINATIONS, UPSTREAM),
        _ => Route::loose("manager", DESTINATIONS, UPSTREAM),
    };
    scene.config().route(route.with(IDENTITY, TRUST))
}

#[track_caller]
fn says_what_to_do(log: &str) {
    for word in WORDS {
        // On standard error as it is, in the log as JSON.
        assert!(log.contains(word) || log.contains(&word.replace('\\', "")), "{word}: {log}");
    }
}

#[track_caller]
fn assert_serves(pod: &Pod) {
    let targets = vec![Target::new((MANAGER4, 80), MANAGER_NAME, "manager")];
    client::run(pod, &Job::Short { targets, total: 3, concurrency: 1 }).assert_all_ok(3);
}
