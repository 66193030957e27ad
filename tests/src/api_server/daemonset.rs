//! The agents' DaemonSet as an API server gives and watches it: metadata only, by its name and no other, because that is
//! all that their role allows (`resourceNames`).

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{DAEMONSET, State, failure, lock};

/// Where such requests go.
pub(super) const GROUP: &str = "/apis/apps/v1/";

/// The one DaemonSet, and what happened to it.
#[derive(Debug)]
pub(super) struct DaemonSets {
    now: Option<Value>,
    log: Vec<(u64, &'static str, Value)>,
    version: watch::Sender<u64>,
    /// Watches end without a word.
    cut: bool,
}

/// How a call is answered.
pub(super) enum Answer {
    /// At once.
    Whole(StatusCode, Value),
    /// With what happens from a version on.
    Watch(u64),
}

impl Default for DaemonSets {
    fn default() -> Self {
        Self { now: None, log: Vec::new(), version: watch::Sender::new(1), cut: false }
    }
}

impl DaemonSets {
    pub(super) fn install(&mut self) {
        let kind = if self.now.is_some() { "MODIFIED" } else { "ADDED" };
        self.change(kind, json!({}));
    }

    pub(super) fn mark(&mut self) {
        self.change(
            "MODIFIED",
            json!({"deletionTimestamp": "2026-11-01T00:00:00Z", "finalizers": ["foregroundDeletion"]}),
        );
    }

    pub(super) fn delete(&mut self) {
        self.change("DELETED", json!({}));
        self.now = None;
    }

    pub(super) fn cut(&mut self) {
        self.cut = true;
        self.version.send_modify(|_| {});
    }

    /// Wakes with every change.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn change(&mut self, kind: &'static str, mut metadata: Value) {
        let version = *self.version.borrow() + 1;
        let (namespace, name) = DAEMONSET.split_once('/').expect("a namespace and a name");
        metadata["namespace"] = json!(namespace);
        metadata["name"] = json!(name);
        metadata["resourceVersion"] = json!(version.to_string());
        let object = json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": metadata,
        });
        self.now = Some(object.clone());
        self.log.push((version, kind, object));
        self.version.send_replace(version);
    }

    pub(super) fn answer(&self, method: &Method, path: &str, query: &str) -> Answer {
        let refuse = |code, reason, what: &str| {
            let (code, body) = failure(code, reason, what);
            Answer::Whole(code, body)
        };
        let (namespace, name) = DAEMONSET.split_once('/').expect("a namespace and a name");
        let all = format!("{GROUP}namespaces/{namespace}/daemonsets");
        if *method != Method::GET {
            return refuse(StatusCode::FORBIDDEN, "Forbidden", "read it");
        }
        if path == format!("{all}/{name}") {
            return match &self.now {
                Some(object) => Answer::Whole(StatusCode::OK, object.clone()),
                None => {
                    let (code, mut body) =
                        failure(StatusCode::NOT_FOUND, "NotFound", "daemonsets.apps not found");
                    body["details"] = json!({"name": name, "group": "apps", "kind": "daemonsets"});
                    Answer::Whole(code, body)
                }
            };
        }
        let given = |key: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(found, _)| *found == key).map(|(_, value)| value.replace("%3D", "="))
        };
        let only = given("fieldSelector").is_some_and(|selector| selector == format!("metadata.name={name}"));
        if path != all || !only || given("watch").as_deref() != Some("true") {
            return refuse(StatusCode::FORBIDDEN, "Forbidden", "other DaemonSets are not yours");
        }
        Answer::Watch(given("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or_default())
    }
}

/// One line of JSON for each change, as long as the client reads: whether it still may is asked when a watch begins.
pub(super) fn watch(
    state: Arc<Mutex<State>>,
    changed: watch::Receiver<u64>,
    since: u64,
) -> StreamBody<impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync> {
    let lines = stream::unfold((since, changed), move |(since, mut changed)| {
        let state = Arc::clone(&state);
        async move {
            loop {
                changed.borrow_and_update();
                if lock(&state).daemonsets.cut {
                    return None;
                }
                let next = lock(&state).daemonsets.log.iter().find(|(version, ..)| *version > since).cloned();
                if let Some((version, kind, object)) = next {
                    let line = format!("{}\n", json!({"type": kind, "object": object}));
                    return Some((Ok(Frame::data(Bytes::from(line))), (version, changed)));
                }
                // The server goes before its watchers do.
                changed.changed().await.ok()?;
            }
        }
    });
    StreamBody::new(lines)
}
