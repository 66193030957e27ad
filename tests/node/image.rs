//! The image holds the agent and nothing that an operator might count on.

use hnp_tests::node::{AgentPod, Node, config};
use hnp_tests::scene::Scene;

use super::manifest;

/// What the manifest mounts in its place is left out. The control is every other scenario of this tier: the same pod with a
/// file of roots is ready.
#[test]
fn there_is_no_root_store_in_it_and_the_agent_says_what_to_mount() {
    let scene = Scene::for_test();
    let node = Node::start(&scene);
    let agent = AgentPod::spawn(
        &node,
        &scene,
        &manifest().without_volume("system-roots"),
        &config(&scene, "roots: system"),
    );
    agent.wait_for_words("hnp's image holds no store, so in a pod mount a file with the roots");
    if let Ok(answer) = agent.get("/readyz") {
        assert!(!answer.starts_with("HTTP/1.1 200 "), "ready without roots: {answer}");
    }
}
