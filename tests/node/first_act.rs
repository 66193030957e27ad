//! A pod's first act, a POST to the manager, arrives over mutual TLS, and is the right pod's in the access line.

use hnp_tests::node::{AgentPod, Node, Pod, Spec};
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};
use serde_json::Value;

use super::manifest;

/// A POST to the manager that carries a token.
pub(super) fn post(name: &str, token: &str) -> Spec {
    Spec::post("shop", name, (&MANAGER4.to_string(), 80), MANAGER_NAME, &format!("/hello?token={token}"))
}

/// What an access line says of a pod.
#[track_caller]
pub(super) fn assert_attributed(line: &Value, pod: &Pod, spec: &Spec) {
    assert_eq!(line["pod_uid"], pod.uid.as_str(), "{line}");
    assert_eq!(line["container"], pod.container.as_str(), "{line}");
    assert_eq!(line["cgroup"], pod.cgroup.as_str(), "{line}");
    for (field, value) in [("namespace", &spec.namespace), ("pod", &spec.name)] {
        assert_eq!(line[field], value.as_str(), "{line}");
    }
}

#[test]
fn a_pods_first_post_arrives_over_mutual_tls_and_is_its_own() {
    let scene = Scene::for_test();
    let node = Node::start(&scene);
    let manager = scene.strict_manager();

    // The control: without the agent the same pod reaches the same port, in the clear, and is turned away.
    let direct = post("direct", "without");
    let (_, ended) = node.run(&direct).expect("a pod runs");
    assert!(ended.output.contains("HTTP/1.1 400 "), "{ended:?}");
    assert!(manager.requests().iter().all(|request| request.client().is_none()));
    manager.forget();

    let agent = AgentPod::start(&node, &scene, &manifest());
    let spec = post("checkout-5d9f", "with");
    let (pod, ended) = node.run(&spec).expect("a pod runs");
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.output.contains("HTTP/1.1 200 "), "{ended:?}");
    // The pod sees the address that it dialled.
    assert!(ended.output.contains(&format!("peer {MANAGER4} 80")), "{ended:?}");
    let request = manager.request("with");
    assert_eq!((request.method.as_str(), request.client_serial()), ("POST", scene.client_serial.as_str()));
    let lines = agent.wait_for_lines(1, |line| line["path"] == "/hello");
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert_attributed(&lines[0], &pod, &spec);

    // Strict outlives the agent: the same pod is refused at connect(), and reaches nobody.
    manager.forget();
    agent.stop();
    let (_, ended) = node.run(&post("after", "after")).expect("a pod runs");
    assert!(ended.output.contains("Connection refused"), "{ended:?}");
    assert_eq!(manager.request_count(), 0);
}
