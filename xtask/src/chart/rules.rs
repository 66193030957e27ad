//! What an API server refuses, or a cluster makes nothing of, although each object fits its schema: names, and what objects
//! say of each other.
//!
//! From the API's reference and its validation, as of Kubernetes 1.28 and later. Rules about pods are in `pod`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::pod;

/// Mistakes in these objects, each with its place.
pub(super) fn mistakes(documents: &[(String, Value)]) -> Vec<String> {
    let objects: Vec<&Value> = documents.iter().map(|(_, object)| object).collect();
    let mut found = Mistakes::default();
    let mut seen = BTreeSet::new();
    for object in &objects {
        let place = place(object);
        if !seen.insert(place.clone()) {
            found.add(&place, "is there twice");
        }
        names(&mut found, &place, object);
        match text(object, "/kind") {
            "DaemonSet" | "Deployment" => {
                pod::workload(&mut found, &place, object);
                references(&mut found, &place, object, &objects);
            }
            "Service" => service(&mut found, &place, object, &objects),
            "Role" | "ClusterRole" => role(&mut found, &place, object),
            "RoleBinding" | "ClusterRoleBinding" => binding(&mut found, &place, object, &objects),
            "NetworkPolicy" => network_policy(&mut found, &place, object),
            _ => {}
        }
    }
    found.0
}

/// Collected as they are found.
#[derive(Debug, Default)]
pub(super) struct Mistakes(Vec<String>);

impl Mistakes {
    pub(super) fn add(&mut self, place: &str, what: impl AsRef<str>) {
        self.0.push(format!("{place}: {}", what.as_ref()));
    }

    pub(super) fn unless(&mut self, good: bool, place: &str, what: impl AsRef<str>) {
        if !good {
            self.add(place, what);
        }
    }
}

/// The list at a pointer; empty where there is none.
pub(super) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text at a pointer; empty where there is none.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The map at a pointer.
pub(super) fn map<'a>(object: &'a Value, pointer: &str) -> Option<&'a Map<String, Value>> {
    object.pointer(pointer).and_then(Value::as_object)
}

/// RFC 1123: lower case, and short enough to be a label's value.
pub(super) fn is_label(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(good)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A port that can be dialled.
pub(super) fn is_port(value: &Value) -> bool {
    value.as_u64().is_some_and(|port| (1..=65535).contains(&port))
}

fn place(object: &Value) -> String {
    let namespace = text(object, "/metadata/namespace");
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!("{} {namespace}{slash}{}", text(object, "/kind"), text(object, "/metadata/name"))
}

fn names(found: &mut Mistakes, place: &str, object: &Value) {
    let name = text(object, "/metadata/name");
    found.unless(is_label(name), place, "metadata.name: not a DNS label of at most 63 characters");
    let is_of_the_cluster = matches!(text(object, "/kind"), "ClusterRole" | "ClusterRoleBinding");
    let namespace = object.pointer("/metadata/namespace");
    found.unless(
        namespace.is_some() != is_of_the_cluster,
        place,
        "metadata.namespace: where there must be one, or none",
    );
    for pointer in ["/metadata/labels", "/spec/selector/matchLabels", "/spec/template/metadata/labels"] {
        for (key, value) in map(object, pointer).into_iter().flatten() {
            let value = value.as_str().unwrap_or("-");
            let end = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
            let good = value.len() <= 63
                && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
                && end(value.bytes().next())
                && end(value.bytes().last());
            found.unless(good, place, format!("{pointer}: {key}: {value:?} is no label's value"));
        }
    }
}

/// Whether each label of one is the other's, too.
fn selects(selector: &Map<String, Value>, labels: Option<&Map<String, Value>>) -> bool {
    !selector.is_empty()
        && selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// What a workload names must be there.
fn references(found: &mut Mistakes, place: &str, workload: &Value, objects: &[&Value]) {
    let labels = map(workload, "/spec/template/metadata/labels");
    let selector = map(workload, "/spec/selector/matchLabels");
    found.unless(
        selector.is_some_and(|selector| selects(selector, labels)),
        place,
        "spec.selector: does not select the template's own labels",
    );
    let namespace = text(workload, "/metadata/namespace");
    let there = |kind: &str, name: &str| {
        objects.iter().any(|object| {
            text(object, "/kind") == kind
                && text(object, "/metadata/name") == name
                && text(object, "/metadata/namespace") == namespace
        })
    };
    for volume in list(workload, "/spec/template/spec/volumes") {
        let name = text(volume, "/configMap/name");
        if !name.is_empty() {
            found.unless(there("ConfigMap", name), place, format!("volumes: there is no ConfigMap {name}"));
        }
    }
    let account = text(workload, "/spec/template/spec/serviceAccountName");
    let is_bound = objects
        .iter()
        .any(|object| list(object, "/subjects").iter().any(|subject| text(subject, "/name") == account));
    if is_bound {
        found.unless(
            there("ServiceAccount", account),
            place,
            format!("there is no ServiceAccount {account}"),
        );
        let token = workload.pointer("/spec/template/spec/automountServiceAccountToken");
        found.unless(token != Some(&json!(false)), place, "has permissions, and no token to use them with");
    }
}

fn service(found: &mut Mistakes, place: &str, service: &Value, objects: &[&Value]) {
    let name = text(service, "/metadata/name");
    found.unless(
        name.starts_with(|c: char| c.is_ascii_lowercase()),
        place,
        "a Service's name begins with a letter",
    );
    let selector = map(service, "/spec/selector");
    let namespace = text(service, "/metadata/namespace");
    let selected = objects.iter().any(|object| {
        text(object, "/metadata/namespace") == namespace
            && selector
                .is_some_and(|selector| selects(selector, map(object, "/spec/template/metadata/labels")))
    });
    found.unless(selected, place, "spec.selector: selects no workload");
    let ports = list(service, "/spec/ports");
    let mut seen = (BTreeSet::new(), BTreeSet::new());
    for port in ports {
        let target = port.pointer("/targetPort").unwrap_or(&port["port"]);
        found.unless(
            is_port(&port["port"]) && is_port(target),
            place,
            "spec.ports: not a port; allowed: 1 to 65535, as numbers",
        );
        found.unless(ports.len() == 1 || port.get("name").is_some(), place, "spec.ports: several need names");
        let unique = seen.0.insert(text(port, "/name"))
            && seen.1.insert((port["port"].to_string(), text(port, "/protocol")));
        found.unless(unique, place, "spec.ports: a name or a port is there twice");
    }
    found.unless(!ports.is_empty(), place, "spec.ports: none");
}

fn role(found: &mut Mistakes, place: &str, role: &Value) {
    const VERBS: [&str; 8] =
        ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    let rules = list(role, "/rules");
    found.unless(!rules.is_empty(), place, "allows nothing; leave it out");
    for rule in rules {
        for verb in list(rule, "/verbs") {
            found.unless(
                VERBS.contains(&verb.as_str().unwrap_or_default()),
                place,
                format!("{verb} is no verb"),
            );
            // The name is not known before the object is.
            let by_name = !list(rule, "/resourceNames").is_empty();
            found.unless(!(by_name && verb == "create"), place, "create cannot be limited to names");
        }
        for pointer in ["/apiGroups", "/resources", "/verbs"] {
            let values = list(rule, pointer);
            found.unless(!values.is_empty(), place, format!("{pointer} is missing"));
            found.unless(!values.contains(&json!("*")), place, format!("{pointer}: everything is too much"));
        }
    }
}

fn binding(found: &mut Mistakes, place: &str, binding: &Value, objects: &[&Value]) {
    let (kind, name) = (text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"));
    let role = objects.iter().any(|object| {
        text(object, "/kind") == kind
            && text(object, "/metadata/name") == name
            && (kind == "ClusterRole" || object["metadata"]["namespace"] == binding["metadata"]["namespace"])
    });
    found.unless(role, place, format!("roleRef: there is no {kind} {name}"));
    found.unless(!list(binding, "/subjects").is_empty(), place, "binds it to nobody");
    for subject in list(binding, "/subjects") {
        let good = text(subject, "/kind") != "ServiceAccount" || !text(subject, "/namespace").is_empty();
        found.unless(good, place, "subjects: a service account needs its namespace");
    }
}

fn network_policy(found: &mut Mistakes, place: &str, policy: &Value) {
    for rule in list(policy, "/spec/egress").iter().chain(list(policy, "/spec/ingress")) {
        for peer in list(rule, "/to").iter().chain(list(rule, "/from")) {
            let cidr = text(peer, "/ipBlock/cidr");
            let good = cidr.split_once('/').is_some_and(|(address, length)| {
                let address = address.parse::<std::net::IpAddr>();
                let longest = if matches!(address, Ok(std::net::IpAddr::V4(_))) { 32 } else { 128 };
                address.is_ok() && length.parse::<u8>().is_ok_and(|length| length <= longest)
            });
            found.unless(peer.get("ipBlock").is_none() || good, place, format!("{cidr:?} is no range"));
        }
        for port in list(rule, "/ports") {
            found.unless(is_port(&port["port"]), place, "ports: not a port");
        }
    }
}

#[cfg(test)]
mod tests;
