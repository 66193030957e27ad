//! Follows the labels of the pods on the agent's node, for routes that select pods by them.
//!
//! kube-runtime's watch of the pods' metadata, limited to this node: it lists again where the server has
//! forgotten what came since. What is known stays known while the server does not answer; a pod whose
//! labels are not known gets the strictest of what it may get.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use tokio_util::sync::CancellationToken;

use super::client::{self, ApiError};
use super::retry::{Failures, Retry};
use crate::config::plan::Kubernetes;
use crate::config::selector::Labels;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;
use crate::workload::PodCgroup;

/// After so long without an event the watch is begun anew: who has gone without a word is noticed.
pub(super) const WATCH: Duration = Duration::from_secs(120);
/// Nothing came on a connection for longer than any watch lasts.
pub(super) const SILENCE: Duration = Duration::from_secs(130);
/// Static pods are in the API as mirrors, under another UID than the kubelet's, which both annotations hold.
const MIRROR: [&str; 2] = ["kubernetes.io/config.mirror", "kubernetes.io/config.hash"];

/// Namespace, name and UID: anybody may write annotations, so a UID alone would be a pod of anybody's choice.
type Key = (String, String, String);

/// The labels of pods, as far as they are known. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct PodLabels(Arc<State>);

#[derive(Debug, Default)]
struct State {
    known: RwLock<HashMap<Key, Arc<Labels>>>,
    in_step: AtomicBool,
    failures: Failures,
}

impl PodLabels {
    /// A pod's labels.
    pub fn of(&self, pod: &PodCgroup) -> Option<Arc<Labels>> {
        let key = (pod.namespace.to_string(), pod.name.to_string(), pod.uid.clone());
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// Writes `hnp_pod_labels_in_step` and `hnp_pod_labels_failures`; for
    /// [`crate::telemetry::Telemetry::register`].
    pub fn write(&self, out: &mut Exposition<'_, '_>) {
        out.single(&names::POD_LABELS_IN_STEP, u64::from(self.0.in_step.load(Relaxed)));
        self.0.failures.write(&names::POD_LABELS_FAILURES, out);
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<Key, Arc<Labels>>) -> T) -> T {
        change(&mut self.0.known.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Follows them from when they are `wanted` until `cancel`.
pub async fn follow(
    cluster: Kubernetes,
    wanted: impl Future<Output = ()>,
    labels: PodLabels,
    cancel: CancellationToken,
) {
    let following = async {
        wanted.await;
        let mut retry = Retry::default();
        loop {
            // Client and all anew: the cluster's CA may have been replaced.
            let error = match pods(&cluster) {
                Ok(pods) => keep(pods, &labels, &mut retry).await,
                Err(error) => error,
            };
            labels.0.in_step.store(false, Relaxed);
            let cause = error.cause();
            labels.0.failures.count(cause);
            let (pause, is_news) = retry.failed(cause);
            if is_news {
                let (code, fix) = (cause.code(), cause.fix());
                tracing::warn!(cause = code, %error, fix, "cannot follow pods' labels; trying again");
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = following => {}
    }
}

type Meta = PartialObjectMeta<Pod>;

fn pods(
    cluster: &Kubernetes,
) -> Result<impl Stream<Item = watcher::Result<Event<Meta>>> + Send + use<>, ApiError> {
    let pods: Api<Meta> = Api::all(client::client(cluster, SILENCE)?);
    let of_this_node = watcher::Config::default()
        .fields(&format!("spec.nodeName={}", cluster.node_name))
        .timeout(WATCH.as_secs() as u32);
    Ok(watcher(pods, of_this_node))
}

/// Takes in what the server says, until it says what is wrong.
async fn keep(
    pods: impl Stream<Item = watcher::Result<Event<Meta>>>,
    labels: &PodLabels,
    retry: &mut Retry,
) -> ApiError {
    let mut pods = std::pin::pin!(pods);
    let mut listed = HashMap::new();
    while let Some(event) = pods.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => listed.extend(entry(pod)),
            Ok(Event::InitDone) => {
                let count = listed.len();
                labels.change(|known| *known = std::mem::take(&mut listed));
                labels.0.in_step.store(true, Relaxed);
                if retry.succeeded() {
                    tracing::info!(pods = count, "pods' labels are followed again");
                }
            }
            Ok(Event::Apply(pod)) => labels.change(|known| known.extend(entry(pod))),
            Ok(Event::Delete(pod)) => {
                if let Some((key, _)) = entry(pod) {
                    labels.change(|known| known.remove(&key));
                }
            }
            // The server has forgotten what came since; the watcher lists anew by itself.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {}
            Err(error) => return error.into(),
        }
    }
    ApiError::Unreachable("the watch ended".into())
}

fn entry(pod: Meta) -> Option<(Key, Arc<Labels>)> {
    let meta = pod.metadata;
    let annotations = meta.annotations.unwrap_or_default();
    let [mirror, hash] = MIRROR.map(|name| annotations.get(name));
    let uid = hash.filter(|_| mirror == hash).cloned().or(meta.uid)?;
    Some(((meta.namespace?, meta.name?, uid), Arc::new(meta.labels.unwrap_or_default())))
}

impl From<watcher::Error> for ApiError {
    fn from(error: watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => error.into(),
            watcher::Error::WatchError(status) => (*status).into(),
            watcher::Error::NoResourceVersion => {
                Self::Refused { code: 200, message: "an answer without a resource version".into() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, app: &str) -> Meta {
        let mirror = json!({MIRROR[0]: uid, MIRROR[1]: uid});
        pod_with(uid, app, if uid.starts_with("static") { mirror } else { json!({}) })
    }

    fn pod_with(uid: &str, app: &str, annotations: serde_json::Value) -> Meta {
        serde_json::from_value(json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {
                "namespace": "ns", "name": uid, "uid": uid.replace("static", "mirror"),
                "labels": {"app": app}, "annotations": annotations,
            },
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn lists_replace_what_was_known_only_once_they_are_whole() {
        let labels = PodLabels::default();
        let known = |uid: &str| {
            let (uid, namespace, name) = (uid.to_owned(), "ns".into(), uid.into());
            let pod = PodCgroup { cgroup_id: 1, uid, namespace, name };
            labels.of(&pod).map(|labels| labels["app"].clone())
        };
        let mut retry = Retry::default();
        let gone = || Err(watcher::Error::NoResourceVersion);
        let first = [
            Ok(Event::Init),
            Ok(Event::InitApply(pod("a", "1"))),
            Ok(Event::InitApply(pod("static-b", "2"))),
            Ok(Event::InitDone),
            Ok(Event::Apply(pod("a", "3"))),
            Ok(Event::Apply(pod("c", "4"))),
            Ok(Event::Delete(pod("c", "4"))),
            gone(),
        ];
        let error = keep(stream::iter(first), &labels, &mut retry).await;
        assert!(error.to_string().contains("without a resource version"), "{error}");
        assert_eq!((known("a").as_deref(), known("static-b").as_deref()), (Some("3"), Some("2")));
        assert_eq!((known("c"), known("mirror-b")), (None, None));

        // A pod of somebody's that says it is another one is not.
        let forged = pod_with("e", "9", json!({MIRROR[0]: "a", MIRROR[1]: "a"}));
        let expired = serde_json::from_value(json!({"code": 410, "message": "too old"})).unwrap();
        let events = [
            Ok(Event::Apply(forged)),
            Ok(Event::Apply(pod_with("f", "8", json!({MIRROR[1]: "g"})))),
            // No reason to begin anew: what follows is taken in.
            Err(watcher::Error::WatchError(Box::new(expired))),
            Ok(Event::Apply(pod("h", "7"))),
            gone(),
        ];
        keep(stream::iter(events), &labels, &mut retry).await;
        assert_eq!(
            (known("a").as_deref(), known("f").as_deref(), known("h").as_deref()),
            (Some("3"), Some("8"), Some("7"))
        );
        assert_eq!((known("e"), known("g")), (None, None));

        // Half a list is none.
        let half = [Ok(Event::Init), Ok(Event::InitApply(pod("d", "5"))), gone()];
        keep(stream::iter(half), &labels, &mut retry).await;
        assert_eq!((known("a").as_deref(), known("d")), (Some("3"), None));
        let whole = [Ok(Event::Init), Ok(Event::InitApply(pod("d", "5"))), Ok(Event::InitDone), gone()];
        keep(stream::iter(whole), &labels, &mut retry).await;
        assert_eq!((known("a"), known("d").as_deref()), (None, Some("5")));
    }
}
