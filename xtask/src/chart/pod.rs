//! Rules about workloads and the pods they make: what an API server or a kubelet refuses, or takes and means something else
//! by.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::rules::{Mistakes, is_label, is_port, list, map, text};

/// Capabilities of Linux (capabilities(7)), without the prefix that Kubernetes leaves out.
const CAPABILITIES: [&str; 10] = [
    "ALL",
    "BPF",
    "DAC_OVERRIDE",
    "IPC_LOCK",
    "NET_ADMIN",
    "NET_RAW",
    "PERFMON",
    "SYS_ADMIN",
    "SYS_PTRACE",
    "SYS_RESOURCE",
];
/// What the downward API gives as variables.
const FIELDS: [&str; 8] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.podIP",
    "status.podIPs",
];
/// A take-over waits for ten seconds; a probe that kills earlier than thrice that would kill what is healthy.
const PATIENCE: u64 = 30;

/// A DaemonSet or a Deployment.
pub(super) fn workload(found: &mut Mistakes, place: &str, workload: &Value) {
    let Some(pod) = workload.pointer("/spec/template/spec") else { return found.add(place, "has no pod") };
    let annotations = map(workload, "/spec/template/metadata/annotations");
    rollout(found, place, workload, pod);
    let mut volumes = BTreeSet::new();
    for volume in list(pod, "/volumes") {
        let name = text(volume, "/name");
        found.unless(
            is_label(name) && volumes.insert(name),
            place,
            format!("volumes: {name:?} twice, or no name"),
        );
        let sources =
            volume.as_object().map_or(0, |volume| volume.len() - usize::from(volume.contains_key("name")));
        found.unless(sources == 1, place, format!("volumes: {name}: {sources} sources; allowed: one"));
        for source in ["secret", "configMap", "projected"] {
            let mode =
                volume.pointer(&format!("/{source}/defaultMode")).and_then(Value::as_u64).unwrap_or(0o400);
            found.unless(
                mode <= 0o777,
                place,
                format!("volumes: {name}: defaultMode {mode:o}; is it octal?"),
            );
        }
        found.unless(
            !text(volume, "/hostPath/path").contains(".."),
            place,
            format!("volumes: {name}: has .."),
        );
    }
    let mut mounted = BTreeSet::new();
    let containers: Vec<&str> =
        list(pod, "/containers").iter().map(|container| text(container, "/name")).collect();
    for container in list(pod, "/containers") {
        let place = format!("{place}: {}", text(container, "/name"));
        mounts(found, &place, container, &volumes, &mut mounted);
        variables(found, &place, container);
        security(found, &place, container, pod);
        resources(found, &place, container);
        probes(found, &place, container, pod);
    }
    for volume in volumes.difference(&mounted) {
        found.add(place, format!("volumes: {volume} is mounted nowhere"));
    }
    for key in annotations.into_iter().flatten().map(|(key, _)| key) {
        if let Some(name) = key.strip_prefix("container.apparmor.security.beta.kubernetes.io/") {
            found.unless(containers.contains(&name), place, format!("{key}: there is no such container"));
        }
    }
    for toleration in list(pod, "/tolerations") {
        let (exists, key) = (text(toleration, "/operator") == "Exists", text(toleration, "/key"));
        found.unless(exists || !key.is_empty(), place, "tolerations: without a key only Exists");
        found.unless(!exists || toleration.get("value").is_none(), place, "tolerations: Exists has no value");
    }
    let host_network = pod["hostNetwork"] == json!(true);
    // It would silently be Default.
    found.unless(
        !(host_network && pod["dnsPolicy"] == json!("ClusterFirst")),
        place,
        "dnsPolicy: ClusterFirst with hostNetwork",
    );
}

fn rollout(found: &mut Mistakes, place: &str, workload: &Value, pod: &Value) {
    if text(workload, "/kind") != "DaemonSet" {
        return;
    }
    let at = |key: &str| {
        workload.pointer(&format!("/spec/updateStrategy/rollingUpdate/{key}")).and_then(Value::as_u64)
    };
    let (surge, unavailable) = (at("maxSurge").unwrap_or(0), at("maxUnavailable").unwrap_or(1));
    found.unless(
        (surge > 0) != (unavailable > 0),
        place,
        "updateStrategy: one of maxSurge and maxUnavailable is 0, the other is not",
    );
    let ports = || list(pod, "/containers").iter().flat_map(|container| list(container, "/ports"));
    let host_network = pod["hostNetwork"] == json!(true);
    let taken = ports().any(|port| host_network || port.get("hostPort").is_some());
    found.unless(
        !(surge > 0 && taken),
        place,
        "ports of the node: the second pod of a surge would find them taken",
    );
    found.unless(!(host_network && ports().next().is_some()), place, "ports with hostNetwork are the node's");
    let mut seen = BTreeSet::new();
    for port in ports() {
        let unique = seen.insert((port["containerPort"].to_string(), text(port, "/protocol")));
        found.unless(unique && is_port(&port["containerPort"]), place, "ports: twice, or no port");
    }
}

fn mounts<'a>(
    found: &mut Mistakes,
    place: &str,
    container: &'a Value,
    volumes: &BTreeSet<&str>,
    mounted: &mut BTreeSet<&'a str>,
) {
    let mut paths = BTreeSet::new();
    for mount in list(container, "/volumeMounts") {
        let (name, path) = (text(mount, "/name"), text(mount, "/mountPath"));
        found.unless(volumes.contains(name), place, format!("volumeMounts: there is no volume {name}"));
        found.unless(paths.insert(path), place, format!("volumeMounts: {path} twice"));
        found.unless(
            path.starts_with('/') && !path.contains(':'),
            place,
            format!("volumeMounts: {path:?} is no path"),
        );
        let both_ways = text(mount, "/mountPropagation") == "Bidirectional";
        let privileged = container.pointer("/securityContext/privileged") == Some(&json!(true));
        found.unless(
            !both_ways || privileged,
            place,
            format!("volumeMounts: {name}: Bidirectional is for the privileged"),
        );
        mounted.insert(name);
    }
}

fn variables(found: &mut Mistakes, place: &str, container: &Value) {
    let mut names = BTreeSet::new();
    for variable in list(container, "/env") {
        let name = text(variable, "/name");
        found.unless(names.insert(name), place, format!("env: {name} twice"));
        let both = variable.get("value").is_some() && variable.get("valueFrom").is_some();
        found.unless(!both, place, format!("env: {name} has value and valueFrom"));
        if let Some(field) = variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
            found.unless(FIELDS.contains(&field), place, format!("env: {name}: {field} is no field"));
        }
    }
}

fn security(found: &mut Mistakes, place: &str, container: &Value, pod: &Value) {
    for list_of in ["add", "drop"] {
        for name in list(container, &format!("/securityContext/capabilities/{list_of}")) {
            let known = CAPABILITIES.contains(&name.as_str().unwrap_or_default());
            found.unless(
                known,
                place,
                format!("capabilities: {name}; allowed: as in capabilities(7), without CAP_"),
            );
        }
    }
    let at = |key: &str| {
        let own = container.pointer(&format!("/securityContext/{key}"));
        own.or_else(|| pod.pointer(&format!("/securityContext/{key}")))
    };
    let root = at("runAsUser") == Some(&json!(0));
    found.unless(
        !(root && at("runAsNonRoot") == Some(&json!(true))),
        place,
        "runAsNonRoot, and runAsUser is 0",
    );
    let privileged = at("privileged") == Some(&json!(true));
    found.unless(
        !(privileged && at("allowPrivilegeEscalation") == Some(&json!(false))),
        place,
        "privileged without escalation",
    );
}

fn resources(found: &mut Mistakes, place: &str, container: &Value) {
    for kind in ["requests", "limits"] {
        for (name, value) in map(container, &format!("/resources/{kind}")).into_iter().flatten() {
            let amount = quantity(value);
            found.unless(amount.is_some(), place, format!("resources.{kind}.{name}: {value} is no quantity"));
            let limit = container.pointer(&format!("/resources/limits/{name}")).and_then(quantity);
            if let (Some(amount), Some(limit)) = (amount, limit) {
                found.unless(amount <= limit, place, format!("resources.{kind}.{name}: more than the limit"));
            }
        }
    }
}

/// A quantity (apimachinery's resource.Quantity) as a number.
fn quantity(value: &Value) -> Option<f64> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let factor = match &text[end..] {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(number * factor)
}

fn probes(found: &mut Mistakes, place: &str, container: &Value, pod: &Value) {
    let number =
        |probe: &Value, key: &str, default: u64| probe.get(key).and_then(Value::as_u64).unwrap_or(default);
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get(kind) else { continue };
        let ways =
            ["exec", "httpGet", "tcpSocket", "grpc"].iter().filter(|way| probe.get(**way).is_some()).count();
        found.unless(ways == 1, place, format!("{kind}: {ways} ways to ask; allowed: one"));
        let port = probe.pointer("/httpGet/port").or_else(|| probe.pointer("/tcpSocket/port"));
        found.unless(
            port.is_none_or(is_port),
            place,
            format!("{kind}: a number, because no port has a name"),
        );
        // A pod's own loopback is not kubelet's.
        let loopback = text(probe, "/httpGet/host").starts_with("127.");
        found.unless(
            !loopback || pod["hostNetwork"] == json!(true),
            place,
            format!("{kind}: asks the node's loopback"),
        );
        let (period, timeout) = (number(probe, "periodSeconds", 10), number(probe, "timeoutSeconds", 1));
        found.unless(timeout <= period, place, format!("{kind}: the next begins before this one has ended"));
        if kind == "livenessProbe" {
            found.unless(
                number(probe, "successThreshold", 1) == 1,
                place,
                "livenessProbe: successThreshold must be 1",
            );
            let patience = period * number(probe, "failureThreshold", 3);
            found.unless(patience >= PATIENCE, place, format!("livenessProbe: kills after {patience} s"));
        } else if kind == "readinessProbe" {
            let own = probe.get("terminationGracePeriodSeconds").is_none();
            found.unless(own, place, "readinessProbe: has no terminationGracePeriodSeconds");
        }
    }
}
