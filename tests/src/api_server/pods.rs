//! Pods as an API server lists and watches them: whole or metadata only, of one node, from a resource
//! version on.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{State, failure, lock};

/// What the kinds of these calls are called where only metadata is asked for.
const METADATA: &str = "PartialObjectMetadata";

/// The pods and what happened to them.
#[derive(Debug)]
pub(super) struct Pods {
    now: Vec<Pod>,
    /// Every change since `oldest`, with its version.
    log: Vec<(u64, &'static str, Pod)>,
    oldest: u64,
    version: watch::Sender<u64>,
}

#[derive(Clone, Debug)]
struct Pod {
    node: String,
    object: Value,
}

impl Pod {
    fn given(&self, form: Form) -> Value {
        match form {
            Form::Whole => self.object.clone(),
            Form::Metadata => json!({
                "apiVersion": "meta.k8s.io/v1",
                "kind": METADATA,
                "metadata": self.object["metadata"],
            }),
        }
    }

    fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }
}

/// How much of a pod is given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    Metadata,
    Whole,
}

/// How a call on the pods is answered.
pub(super) enum Answer {
    /// At once.
    Whole(StatusCode, Value),
    /// With what happens from a version on, to pods of a node.
    Watch(u64, String, Form),
}

impl Default for Pods {
    fn default() -> Self {
        Self { now: Vec::new(), log: Vec::new(), oldest: 0, version: watch::Sender::new(1) }
    }
}

impl Pods {
    pub(super) fn apply(&mut self, name: &str, uid: &str, node: &str, labels: Value) {
        self.apply_with(name, uid, node, labels, (json!({"containers": []}), json!({"phase": "Pending"})));
    }

    /// In the namespace `default`.
    pub(super) fn apply_with(
        &mut self,
        name: &str,
        uid: &str,
        node: &str,
        labels: Value,
        (mut spec, status): (Value, Value),
    ) {
        // As the server fills it in.
        spec["serviceAccountName"] = json!("default");
        let metadata = json!({"name": name, "namespace": "default", "uid": uid, "labels": labels});
        self.apply_whole(node, metadata, spec, status);
    }

    pub(super) fn apply_whole(&mut self, node: &str, mut metadata: Value, spec: Value, status: Value) {
        let uid = metadata["uid"].as_str().unwrap_or_default().to_owned();
        let is_new = !self.now.iter().any(|pod| pod.uid() == uid);
        let version = self.next_version();
        metadata["resourceVersion"] = json!(version.to_string());
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "spec": spec,
            "status": status,
            "metadata": metadata,
        });
        self.now.retain(|pod| pod.uid() != uid);
        let pod = Pod { node: node.to_owned(), object };
        self.now.push(pod.clone());
        self.log.push((version, if is_new { "ADDED" } else { "MODIFIED" }, pod));
    }

    pub(super) fn delete(&mut self, uid: &str) {
        let version = self.next_version();
        if let Some(at) = self.now.iter().position(|pod| pod.uid() == uid) {
            let mut pod = self.now.remove(at);
            pod.object["metadata"]["resourceVersion"] = json!(version.to_string());
            self.log.push((version, "DELETED", pod));
        }
    }

    pub(super) fn forget(&mut self) {
        self.oldest = self.next_version();
        self.log.clear();
    }

    /// Wakes with every change.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn next_version(&mut self) -> u64 {
        let next = *self.version.borrow() + 1;
        self.version.send_replace(next);
        next
    }

    pub(super) fn answer(&self, method: &Method, accept: &str, query: &str) -> Answer {
        let refuse = |code, reason, what: &str| {
            let (code, body) = failure(code, reason, what);
            Answer::Whole(code, body)
        };
        if *method != Method::GET {
            return refuse(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "read them");
        }
        let form = if accept.contains(METADATA) { Form::Metadata } else { Form::Whole };
        let given = |key: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == key).map(|(_, value)| value.replace("%3D", "="))
        };
        let selector = given("fieldSelector").unwrap_or_default();
        let Some(node) = selector.strip_prefix("spec.nodeName=") else {
            return refuse(StatusCode::FORBIDDEN, "Forbidden", "other nodes' pods are not yours");
        };
        if given("watch").as_deref() == Some("true") {
            let since = given("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or_default();
            return Answer::Watch(since, node.to_owned(), form);
        }
        let items: Vec<Value> =
            self.now.iter().filter(|pod| pod.node == node).map(|pod| pod.given(form)).collect();
        let (version, kind) = match form {
            Form::Metadata => ("meta.k8s.io/v1", format!("{METADATA}List")),
            Form::Whole => ("v1", "PodList".to_owned()),
        };
        Answer::Whole(
            StatusCode::OK,
            json!({
                "apiVersion": version,
                "kind": kind,
                "metadata": {"resourceVersion": self.version.borrow().to_string()},
                "items": items,
            }),
        )
    }
}

/// One line of JSON for each change, as long as the client reads.
pub(super) fn watch(
    state: Arc<Mutex<State>>,
    changed: watch::Receiver<u64>,
    since: u64,
    (node, form): (String, Form),
) -> StreamBody<impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync> {
    let lines = stream::unfold((since, changed, false), move |(mut since, mut changed, ended)| {
        let (state, node) = (Arc::clone(&state), node.clone());
        async move {
            if ended {
                return None;
            }
            loop {
                changed.borrow_and_update();
                let (line, last) = next_line(&lock(&state).pods, &mut since, (&node, form));
                if let Some(line) = line {
                    return Some((Ok(Frame::data(Bytes::from(line))), (since, changed, last)));
                }
                // The server goes before its watchers do.
                match tokio::time::timeout(Duration::from_secs(3600), changed.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return None,
                }
            }
        }
    });
    StreamBody::new(lines)
}

/// The first change after `since` that concerns the node, and whether the watch ends with it.
fn next_line(pods: &Pods, since: &mut u64, (node, form): (&str, Form)) -> (Option<String>, bool) {
    if *since < pods.oldest {
        let (_, status) = failure(StatusCode::GONE, "Expired", "too old resource version");
        return (Some(format!("{}\n", json!({"type": "ERROR", "object": status}))), true);
    }
    let next = pods.log.iter().find(|(version, _, pod)| version > since && pod.node == node);
    let Some((version, kind, pod)) = next else { return (None, false) };
    *since = *version;
    (Some(format!("{}\n", json!({"type": kind, "object": pod.given(form)}))), false)
}
