//! Which change of a node takes a taint off, and nothing else.
//!
//! Pure. The change is a JSON patch (RFC 6902) that tests what it is about to remove: taints are a list,
//! and whoever changes it at the same time moves what stands in it. The server applies all of a patch or
//! nothing, on the node as it is at that moment. A resource version would do as well, but it changes with
//! every word kubelet says about the node; this fails only when the list itself has moved.

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

/// The operations that remove every taint of this key, whatever its value and effect; `None` when the node
/// has none.
pub(super) fn removal(node: &Node, key: &str) -> Option<Value> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    // From the end, so that what is removed moves nothing that is still to be removed.
    let operations: Vec<Value> = taints
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, taint)| taint.key == key)
        .flat_map(|(index, _)| {
            [
                json!({"op": "test", "path": format!("/spec/taints/{index}/key"), "value": key}),
                json!({"op": "remove", "path": format!("/spec/taints/{index}")}),
            ]
        })
        .collect();
    (!operations.is_empty()).then_some(Value::Array(operations))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "hnp.dev/agent-not-ready";

    fn node(spec: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec})).unwrap()
    }

    #[test]
    fn every_taint_of_the_key_is_removed_from_the_end_and_tested_first() {
        let node = node(json!({"taints": [
            {"key": KEY, "effect": "NoExecute", "timeAdded": "2026-11-01T00:00:00Z"},
            {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"},
            {"key": KEY, "effect": "NoSchedule", "value": "true"},
            {"key": "hnp.dev/agent-not-ready-yet", "effect": "NoSchedule"},
        ]}));
        let expected = json!([
            {"op": "test", "path": "/spec/taints/2/key", "value": KEY},
            {"op": "remove", "path": "/spec/taints/2"},
            {"op": "test", "path": "/spec/taints/0/key", "value": KEY},
            {"op": "remove", "path": "/spec/taints/0"},
        ]);
        assert_eq!(removal(&node, KEY), Some(expected));
    }

    #[test]
    fn a_node_without_it_is_left_alone() {
        for spec in
            [json!({}), json!({"taints": []}), json!({"taints": [{"key": "a/b", "effect": "NoExecute"}]})]
        {
            assert_eq!(removal(&node(spec.clone()), KEY), None, "{spec}");
        }
    }
}
