//! What the values files in `ci/` are there to show: a rendering may be sound and yet not what was asked for.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::render::{Case, Rendered};
use super::rules::text;
use crate::shell::note;

/// Where something is looked for in an object, and what must be there; `null` is for nothing.
type Promise = (&'static str, &'static str, Value);

/// Compares each rendering with what its values promise.
///
/// # Errors
/// When one does not keep it.
pub(super) fn keep(cases: &[Case], rendered: &[Rendered]) -> Result<()> {
    let mut compared = 0;
    for (case, rendered) in cases.iter().zip(rendered) {
        let stem = &case.stem;
        for (kind, pointer, expected) in of(stem).with_context(|| format!("{stem} promises nothing"))? {
            let object = rendered
                .documents
                .iter()
                .map(|(_, object)| object)
                .find(|object| text(object, "/kind") == kind);
            let found = match pointer.strip_prefix("config:") {
                Some(words) => object.map(|map| json!(text(map, "/data/hnp.yaml").contains(words))),
                None => object.and_then(|object| object.pointer(pointer)).cloned(),
            };
            let found = found.unwrap_or(Value::Null);
            if found != expected {
                bail!("{}: {kind} {pointer}: {found}, and it should be {expected}", case.name);
            }
            compared += 1;
        }
    }
    note(&format!("{compared} promises are kept"));
    Ok(())
}

fn of(stem: &str) -> Option<Vec<Promise>> {
    let volumes = "/spec/template/spec/volumes/2/name";
    let vendor = || -> Vec<Promise> {
        vec![
            ("Service", "/metadata/name", json!("chaos-agent-proxy")),
            ("Service", "/spec/ports/0/port", json!(7777)),
            ("Service", "/spec/internalTrafficPolicy", json!("Local")),
            ("ConfigMap", "config:upstream: https://customer.agent.app.example", json!(true)),
            ("ConfigMap", "config:certificate: /etc/mtls/client.crt", json!(true)),
            ("ConfigMap", "config:key: /etc/mtls/client.key", json!(true)),
            ("ConfigMap", "config:gateway:", json!(true)),
            ("DaemonSet", "/spec/template/spec/hostNetwork", json!(true)),
            // Theirs, and no secret of ours at the same place.
            ("DaemonSet", "/spec/template/spec/volumes/6/name", json!("client-certificate")),
            ("DaemonSet", "/spec/template/spec/volumes/1/name", json!("system-roots")),
            ("DaemonSet", volumes, json!("cgroup")),
        ]
    };
    let captures = || -> Vec<Promise> {
        vec![
            ("DaemonSet", "/spec/template/spec/hostNetwork", json!(true)),
            ("DaemonSet", "/spec/template/spec/dnsPolicy", json!("ClusterFirstWithHostNet")),
            ("DaemonSet", "/spec/template/spec/priorityClassName", json!("system-node-critical")),
            ("DaemonSet", "/spec/template/spec/tolerations", json!([{"operator": "Exists"}])),
            ("DaemonSet", "/spec/template/spec/securityContext/seccompProfile/type", json!("RuntimeDefault")),
            ("DaemonSet", "/spec/template/spec/containers/0/ports", Value::Null),
            (
                "DaemonSet",
                "/spec/template/spec/containers/0/securityContext/readOnlyRootFilesystem",
                json!(true),
            ),
            (
                "DaemonSet",
                "/spec/template/spec/containers/0/securityContext/capabilities",
                json!({"drop": ["ALL"], "add": ["BPF", "NET_ADMIN"]}),
            ),
            ("DaemonSet", "/spec/template/spec/hostPID", Value::Null),
            ("DaemonSet", "/spec/updateStrategy/rollingUpdate/maxSurge", json!(1)),
            ("Service", "/metadata/name", Value::Null),
            // No selector, no issuer, no gateway: nobody asks for pods.
            (
                "ClusterRole",
                "/rules",
                json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]}]),
            ),
            ("Role", "/rules/0/resourceNames", json!(["hnp-agent"])),
        ]
    };
    // Whoever may write to it rules the node's containers: not unless it is asked for.
    let runtime = |folder: &str| -> Vec<Promise> {
        vec![
            (
                "DaemonSet",
                "/spec/template/spec/containers/0/volumeMounts/7",
                json!({"name": "runtime", "mountPath": folder, "readOnly": true}),
            ),
            (
                "DaemonSet",
                "/spec/template/spec/volumes/7",
                json!({"name": "runtime", "hostPath": {"path": folder, "type": "Directory"}}),
            ),
        ]
    };
    match stem {
        "plain" => {
            let none = ("DaemonSet", "/spec/template/spec/volumes/7", Value::Null);
            let unsaid = ("ConfigMap", "config:workloads:", json!(false));
            Some(captures().into_iter().chain([none, unsaid]).collect())
        }
        "runtime-socket" => {
            let said = ("ConfigMap", "config:runtime: /run/crio/crio.sock", json!(true));
            Some(captures().into_iter().chain(runtime("/run/crio")).chain([said]).collect())
        }
        "vendor" => Some(vendor()),
        "vendor-chart-spelling" => {
            let proxy = ("ConfigMap", "config:url: http://proxy.corp.example:3128", json!(true));
            Some(
                vendor()
                    .into_iter()
                    .chain([proxy, ("ConfigMap", "config:- .cluster.local", json!(true))])
                    .collect(),
            )
        }
        "gateway-only" => Some(vec![
            ("ConfigMap", "config:mode: \"off\"", json!(true)),
            ("Service", "/metadata/name", json!("hnp-agent-proxy")),
            ("DaemonSet", "/spec/template/spec/hostNetwork", Value::Null),
            ("DaemonSet", "/spec/template/spec/securityContext/runAsNonRoot", json!(true)),
            ("DaemonSet", "/spec/template/spec/automountServiceAccountToken", json!(false)),
            (
                "DaemonSet",
                "/spec/template/spec/containers/0/securityContext/capabilities",
                json!({"drop": ["ALL"]}),
            ),
            ("ClusterRole", "/rules", Value::Null),
            ("Role", "/rules", Value::Null),
        ]),
        "everything" => Some(vec![
            ("DaemonSet", "/spec/template/spec/hostPID", json!(true)),
            ("DaemonSet", "/spec/template/spec/terminationGracePeriodSeconds", json!(70)),
            (
                "DaemonSet",
                "/spec/template/spec/containers/0/securityContext/seLinuxOptions/type",
                json!("spc_t"),
            ),
            (
                "DaemonSet",
                "/spec/template/spec/containers/0/securityContext/capabilities/add",
                json!(["BPF", "NET_ADMIN", "SYS_RESOURCE", "SYS_ADMIN", "SYS_PTRACE"]),
            ),
            ("DaemonSet", "/spec/template/spec/containers/0/livenessProbe/exec/command/3", json!("/run/hnp")),
            ("DaemonSet", "/spec/template/spec/volumes/6/hostPath/path", json!("/run/containerd")),
            ("ClusterRole", "/rules/1/resources", json!(["pods"])),
            ("PodMonitor", "/spec/podMetricsEndpoints/0/relabelings/0/replacement", json!("${1}:15090")),
            ("NetworkPolicy", "/spec/egress/0/ports/0/port", json!(15001)),
        ]),
        _ => None,
    }
}
