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
    /// The version up to which watches that allow bookmarks are told that they know everything.
    bookmarked: u64,
    /// How many watches were told that.
    bookmarks: usize,
    /// How often watches were ended without a word.
    cuts: u64,
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
    Watch(Watched),
}

/// What a watch asks for.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    since: u64,
    node: String,
    form: Form,
    /// `allowWatchBookmarks`.
    bookmarks: bool,
}

impl Default for Pods {
    fn default() -> Self {
        let (now, log, version) = (Vec::new(), Vec::new(), watch::Sender::new(1));
        Self { now, log, oldest: 0, bookmarked: 0, bookmarks: 0, cuts: 0, version }
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
        self.next_version();
        self.forget_before();
    }

    /// What came before now; who knows it goes on from here.
    pub(super) fn forget_before(&mut self) {
        self.oldest = *self.version.borrow();
        self.log.clear();
    }

    pub(super) fn bookmark(&mut self) {
        self.bookmarked = *self.version.borrow();
        self.version.send_modify(|_| {});
    }

    /// How many bookmarks were told.
    pub(super) fn bookmarks(&self) -> usize {
        self.bookmarks
    }

    /// What a watch that begins now is given.
    pub(super) fn cuts(&self) -> u64 {
        self.cuts
    }

    pub(super) fn cut(&mut self) {
        self.cuts += 1;
        self.version.send_modify(|_| {});
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
            let bookmarks = given("allowWatchBookmarks").as_deref() == Some("true");
            return Answer::Watch(Watched { since, node: node.to_owned(), form, bookmarks });
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

/// One line of JSON for each change, as long as the client reads and nobody cuts it.
pub(super) fn watch(
    state: Arc<Mutex<State>>,
    changed: watch::Receiver<u64>,
    watched: Watched,
    cuts: u64,
) -> StreamBody<impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync> {
    let lines = stream::unfold((watched, changed, false), move |(mut watched, mut changed, ended)| {
        let state = Arc::clone(&state);
        async move {
            if ended {
                return None;
            }
            loop {
                changed.borrow_and_update();
                let (line, last) = {
                    let pods = &mut lock(&state).pods;
                    if pods.cuts != cuts {
                        return None;
                    }
                    next_line(pods, &mut watched)
                };
                if let Some(line) = line {
                    return Some((Ok(Frame::data(Bytes::from(line))), (watched, changed, last)));
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

/// The first change after what the watch knows that concerns its node, else a bookmark, and whether the watch ends with it.
fn next_line(pods: &mut Pods, watched: &mut Watched) -> (Option<String>, bool) {
    let line = |kind: &str, object: &Value| Some(format!("{}\n", json!({"type": kind, "object": object})));
    if watched.since < pods.oldest {
        let (_, status) = failure(StatusCode::GONE, "Expired", "too old resource version");
        return (line("ERROR", &status), true);
    }
    let is_next = |version: u64, pod: &Pod| version > watched.since && pod.node == watched.node;
    if let Some((version, kind, pod)) = pods.log.iter().find(|(version, _, pod)| is_next(*version, pod)) {
        watched.since = *version;
        return (line(kind, &pod.given(watched.form)), false);
    }
    if !watched.bookmarks || pods.bookmarked <= watched.since {
        return (None, false);
    }
    // Of its object nothing but the version means anything.
    watched.since = pods.bookmarked;
    pods.bookmarks += 1;
    let (version, kind) = match watched.form {
        Form::Metadata => ("meta.k8s.io/v1", METADATA),
        Form::Whole => ("v1", "Pod"),
    };
    let metadata = json!({"resourceVersion": watched.since.to_string(), "creationTimestamp": null});
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": metadata});
    if watched.form == Form::Whole {
        (object["spec"], object["status"]) = (json!({"containers": null}), json!({}));
    }
    (line("BOOKMARK", &object), false)
}
