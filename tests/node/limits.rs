//! The agent within the limits of its deployment: a tenth of a processor and 128 MiB.

use hnp_tests::aloud::say;
use hnp_tests::kernel;
use hnp_tests::node::{AgentPod, Node};
use hnp_tests::scene::Scene;

use super::first_act::post;
use super::manifest;

/// How many pods it carries in these limits, one after the other.
const PODS: usize = 5;

#[test]
fn a_tenth_of_a_processor_and_128_mebibytes_are_enough_to_start_and_to_serve() {
    let scene = Scene::for_test();
    let node = Node::start(&scene);
    let missing: Vec<&str> =
        ["cpu", "memory"].into_iter().filter(|name| !node.has_controller(name)).collect();
    let manager = scene.strict_manager();
    let limited = manifest().limit("cpu", "100m").limit("memory", "128Mi");
    let agent = AgentPod::start(&node, &scene, &limited);
    for number in 0..PODS {
        let name = format!("job-{number}");
        let (_, ended) = node.run(&post(&name, &name)).expect("a pod runs");
        assert!(ended.output.contains("HTTP/1.1 200 "), "{ended:?}");
        assert_eq!(manager.request(&name).client_serial(), scene.client_serial);
    }
    if missing.is_empty() {
        let of = |file| agent.cgroup_file(file).unwrap_or_default().trim().to_owned();
        assert_eq!(of("cpu.max"), "10000 100000");
        assert_eq!(of("memory.max"), (128 << 20).to_string());
        // Killed for want of memory, the container would have been started anew by nobody.
        assert!(of("memory.events").contains("oom_kill 0"), "{}", of("memory.events"));
        // memory.peak is of Linux 5.19.
        let (peak, current) = (of("memory.peak"), of("memory.current"));
        say(&format!(
            "the agent in 100m and 128 MiB: memory now {current}, at most {peak} bytes; {}",
            of("cpu.stat").replace('\n', ", ")
        ));
    } else {
        assert!(!kernel::in_a_guest(), "a guest's cgroup2 lacks the controllers {missing:?}");
        say(&format!(
            "THE LIMITS WERE NOT IN FORCE: this machine's cgroup2 lacks the controllers {missing:?}; \
             they are with cargo xtask test --tier node --kernel lts"
        ));
    }
}
