use super::*;

fn good() -> Vec<(String, Value)> {
    let labels = json!({"app.kubernetes.io/name": "hnp-agent"});
    let objects = [
        json!({"kind": "ServiceAccount", "metadata": {"name": "a", "namespace": "n"}}),
        json!({"kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}}),
        json!({"kind": "ClusterRole", "metadata": {"name": "r"}, "rules": [
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]}]}),
        json!({"kind": "ClusterRoleBinding", "metadata": {"name": "r"}, "roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "ServiceAccount", "name": "a", "namespace": "n"}]}),
        json!({"kind": "Service", "metadata": {"name": "s", "namespace": "n"}, "spec": {
            "selector": labels, "ports": [{"name": "http", "port": 7777, "targetPort": 7777}]}}),
        json!({"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "n"}, "spec": {"egress": [
            {"to": [{"ipBlock": {"cidr": "169.254.77.0/24"}}], "ports": [{"port": 15001}]}]}}),
        json!({"kind": "DaemonSet", "metadata": {"name": "d", "namespace": "n", "labels": labels}, "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": labels, "annotations": {}}, "spec": {
                "serviceAccountName": "a", "hostNetwork": true, "dnsPolicy": "Default",
                "tolerations": [{"operator": "Exists"}],
                "containers": [{
                    "name": "agent",
                    "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                    "securityContext": {"runAsUser": 0, "capabilities": {"drop": ["ALL"], "add": ["BPF"]}},
                    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
                    "livenessProbe": {"httpGet": {"host": "127.0.0.1", "port": 15090}, "failureThreshold": 6},
                    "readinessProbe": {"httpGet": {"host": "127.0.0.1", "port": 15090}, "periodSeconds": 5},
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/w"}],
                }],
                "volumes": [{"name": "v", "configMap": {"name": "c"}}, {"name": "w", "secret": {"defaultMode": 256}}],
            }},
        }}),
    ];
    objects.into_iter().map(|object| ("t.yaml".to_owned(), object)).collect()
}

#[test]
fn what_is_right_is_let_pass() {
    assert_eq!(mistakes(&good()), Vec::<String>::new());
}

#[test]
fn each_mistake_is_found_in_its_place() {
    const AGENT: &str = "/spec/template/spec/containers/0";
    let pod = |rest: &str| format!("/spec/template/spec{rest}");
    let agent = |rest: &str| format!("{AGENT}{rest}");
    let cases = [
        (0, "/metadata/name".into(), json!("A"), "not a DNS label"),
        (0, "/metadata/name".into(), json!("x".repeat(64)), "not a DNS label"),
        (1, "/metadata/name".into(), json!("other"), "there is no ConfigMap c"),
        (0, "/metadata/name".into(), json!("other"), "there is no ServiceAccount a"),
        (2, "/rules/0/verbs/0".into(), json!("read"), "is no verb"),
        (2, "/rules/0/resources/0".into(), json!("*"), "everything is too much"),
        (3, "/roleRef/name".into(), json!("q"), "there is no ClusterRole q"),
        (3, "/subjects/0/namespace".into(), json!(""), "needs its namespace"),
        (4, "/spec/ports/0/port".into(), json!(77777), "not a port"),
        (4, "/spec/ports/0/targetPort".into(), json!("http"), "not a port"),
        (4, "/spec/selector".into(), json!({"app": "other"}), "selects no workload"),
        (4, "/metadata/name".into(), json!("7s"), "begins with a letter"),
        (5, "/spec/egress/0/to/0/ipBlock/cidr".into(), json!("169.254.77.0/33"), "is no range"),
        (6, "/metadata/labels/app.kubernetes.io~1name".into(), json!("a b"), "no label's value"),
        (6, "/spec/selector/matchLabels".into(), json!({"app": "x"}), "does not select"),
        (6, "/spec/updateStrategy/rollingUpdate/maxUnavailable".into(), json!(1), "updateStrategy"),
        (6, agent("/env"), json!([{"name": "N", "value": "a"}, {"name": "N", "value": "b"}]), "N twice"),
        (6, agent("/env/0/valueFrom/fieldRef/fieldPath"), json!("spec.node"), "is no field"),
        (6, agent("/securityContext/capabilities/add/0"), json!("CAP_BPF"), "without CAP_"),
        (6, agent("/resources/requests/memory"), json!("1GiB"), "is no quantity"),
        (6, agent("/resources/requests/memory"), json!("1Gi"), "more than the limit"),
        (6, agent("/livenessProbe/failureThreshold"), json!(1), "kills after 10 s"),
        (6, agent("/livenessProbe/httpGet/port"), json!("http"), "no port has a name"),
        (6, agent("/readinessProbe/periodSeconds"), json!(0), "the next begins"),
        (6, agent("/volumeMounts/0/name"), json!("x"), "there is no volume x"),
        (6, agent("/volumeMounts/0/mountPath"), json!("/w"), "/w twice"),
        (6, agent("/volumeMounts/0/mountPropagation"), json!("Bidirectional"), "for the privileged"),
        (6, agent("/ports"), json!([{"containerPort": 1}]), "ports with hostNetwork"),
        (6, pod("/hostNetwork"), json!(false), "asks the node's loopback"),
        (6, pod("/dnsPolicy"), json!("ClusterFirst"), "dnsPolicy"),
        (6, pod("/automountServiceAccountToken"), json!(false), "no token"),
        (6, pod("/securityContext"), json!({"runAsNonRoot": true}), "runAsUser is 0"),
        (6, pod("/tolerations/0/operator"), json!("Equal"), "only Exists"),
        (6, pod("/volumes/0/name"), json!("w"), "twice"),
        (6, pod("/volumes/1/secret/defaultMode"), json!(0o2000), "is it octal"),
        (6, pod("/volumes/0/emptyDir"), json!({}), "2 sources"),
        (
            6,
            "/spec/template/metadata/annotations".into(),
            json!({"container.apparmor.security.beta.kubernetes.io/agnt": "unconfined"}),
            "no such container",
        ),
    ];
    for (index, pointer, value, expected) in cases {
        let mut objects = good();
        set(&mut objects[index].1, &pointer, value);
        let found = mistakes(&objects);
        assert!(found.iter().any(|mistake| mistake.contains(expected)), "{pointer}: {expected}: {found:?}");
    }
    let twice: Vec<_> = good().into_iter().chain(good().into_iter().take(1)).collect();
    assert_eq!(mistakes(&twice), ["ServiceAccount n/a: is there twice"]);
}

/// Writes a value, in the place of another or as a new key.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).expect("it is there");
    let key = key.replace("~1", "/");
    match parent {
        Value::Array(items) => items[key.parse::<usize>().expect("an index")] = value,
        Value::Object(fields) => drop(fields.insert(key, value)),
        other => panic!("{pointer}: {other}"),
    }
}
