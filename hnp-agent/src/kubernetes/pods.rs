//! Follows the pods on the agent's node: their labels, for routes that select pods by them, and their service accounts,
//! for identities that are issued by them. What the server tells goes to the directory of pods.
//!
//! kube-runtime's watch of pods, limited to this node: it lists again where the server has forgotten what came
//! since. Of what the server tells only these few fields are read. What is known stays known while the server does not
//! answer; a pod whose labels are not known gets the strictest of what it may get, and one whose service account is not
//! known gets no identity.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::core::{ApiResource, NotUsed, Object};
use kube::runtime::watcher::{self, Event, watcher};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::client::{self, ApiError};
use super::retry::{Failures, Retry};
use crate::config::plan::Kubernetes;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;
use crate::telemetry::readiness::Pending;
use crate::workload::{Account, Directory, Facts, Owner, Teller, short_annotations};

/// After so long without an event the watch is begun anew: who has gone without a word is noticed.
pub(super) const WATCH: Duration = Duration::from_secs(120);
/// Nothing came on a connection for longer than any watch lasts.
pub(super) const SILENCE: Duration = Duration::from_secs(130);
/// Static pods are in the API as mirrors, under another UID than the kubelet's, which both annotations hold.
const MIRROR: [&str; 2] = ["kubernetes.io/config.mirror", "kubernetes.io/config.hash"];

/// How following them goes.
#[derive(Debug, Default)]
pub struct PodStatus {
    in_step: AtomicBool,
    failures: Failures,
}

impl PodStatus {
    /// Writes `hnp_pod_labels_in_step` and `hnp_pod_labels_failures`; for
    /// [`crate::telemetry::Telemetry::register`].
    pub fn write(&self, out: &mut Exposition<'_, '_>) {
        out.single(&names::POD_LABELS_IN_STEP, u64::from(self.in_step.load(Relaxed)));
        self.failures.write(&names::POD_LABELS_FAILURES, out);
    }
}

/// Follows them from when they are `wanted` until `cancel`; `pending` is over when they have been listed once.
pub async fn follow(
    cluster: Kubernetes,
    wanted: impl Future<Output = Option<Pending>>,
    directory: Directory,
    status: Arc<PodStatus>,
    cancel: CancellationToken,
) {
    let following = async {
        let mut pending = wanted.await;
        let mut retry = Retry::default();
        loop {
            // Client and all anew: the cluster's CA may have been replaced.
            let error = match pods(&cluster) {
                Ok(pods) => keep(pods, (&directory, &status), &mut pending, &mut retry).await,
                Err(error) => error,
            };
            status.in_step.store(false, Relaxed);
            let cause = error.cause();
            status.failures.count(cause);
            let (pause, is_news) = retry.failed(cause);
            if is_news {
                let (code, fix) = (cause.code(), cause.fix());
                tracing::warn!(cause = code, %error, fix, "cannot follow pods' labels and service accounts; trying again");
                if let Some(pending) = &pending {
                    pending.because(format!("the API server has not listed this node's pods: {error}"));
                }
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = following => {}
    }
}

/// What is read of a pod.
type Seen = Object<SeenSpec, NotUsed>;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenSpec {
    service_account_name: Option<String>,
}

fn pods(
    cluster: &Kubernetes,
) -> Result<impl Stream<Item = watcher::Result<Event<Seen>>> + Send + use<>, ApiError> {
    let pods: Api<Seen> = Api::all_with(client::client(cluster, SILENCE)?, &ApiResource::erase::<Pod>(&()));
    let of_this_node = watcher::Config::default()
        .fields(&format!("spec.nodeName={}", cluster.node_name))
        .timeout(WATCH.as_secs() as u32);
    Ok(watcher(pods, of_this_node))
}

/// Takes in what the server says, until it says what is wrong.
async fn keep(
    pods: impl Stream<Item = watcher::Result<Event<Seen>>>,
    (directory, status): (&Directory, &PodStatus),
    pending: &mut Option<Pending>,
    retry: &mut Retry,
) -> ApiError {
    let mut pods = std::pin::pin!(pods);
    let mut listed = Vec::new();
    while let Some(event) = pods.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => listed.extend(facts(pod)),
            Ok(Event::InitDone) => {
                let count = listed.len();
                directory.tell_all(Teller::Api, std::mem::take(&mut listed));
                status.in_step.store(true, Relaxed);
                *pending = None;
                if retry.succeeded() {
                    tracing::info!(pods = count, "pods' labels and service accounts are followed again");
                }
            }
            Ok(Event::Apply(pod)) => directory.tell(Teller::Api, facts(pod)),
            Ok(Event::Delete(pod)) => {
                if let Some(facts) = facts(pod) {
                    directory.withdraw(Teller::Api, &facts);
                }
            }
            // The server has forgotten what came since; the watcher lists anew by itself.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {}
            Err(error) => return error.into(),
        }
    }
    ApiError::Unreachable("the watch ended".into())
}

/// What the server says of a pod. A static pod is known to it by another UID than to its node, and what it runs as to nobody:
/// where a pod claims to be the mirror of one, that is passed on as a claim.
fn facts(pod: Seen) -> Option<Facts> {
    let Object { metadata: meta, spec, .. } = pod;
    let (namespace, name): (Arc<str>, Arc<str>) = (meta.namespace?.into(), meta.name?.into());
    let annotations = meta.annotations.unwrap_or_default();
    let [mirror, hash] = MIRROR.map(|name| annotations.get(name));
    let claimed = hash.filter(|_| mirror == hash).cloned();
    // By the UID that the server gave it: whatever its annotations say, it is no other pod's. The server fills the name in
    // where nobody has written it (ServiceAccount admission).
    let account = spec.service_account_name.filter(|name| !name.is_empty() && mirror.or(hash).is_none());
    let account =
        account.map(|name| Arc::new(Account { namespace: Arc::clone(&namespace), name: name.into() }));
    let owner = meta.owner_references.into_iter().flatten().find(|owner| owner.controller == Some(true));
    Some(Facts {
        claimed: claimed.is_some(),
        uid: claimed.or(meta.uid)?.into(),
        namespace,
        name,
        labels: Some(Arc::new(meta.labels.unwrap_or_default())),
        annotations: Some(short_annotations(annotations)),
        account,
        owner: owner.map(|owner| Owner { kind: owner.kind.into(), name: owner.name.into() }),
    })
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

    fn pod(uid: &str, app: &str) -> Seen {
        let mirror = json!({MIRROR[0]: uid, MIRROR[1]: uid});
        pod_with(uid, app, if uid.starts_with("static") { mirror } else { json!({}) })
    }

    fn pod_with(uid: &str, app: &str, annotations: serde_json::Value) -> Seen {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "spec": {"containers": [], "serviceAccountName": format!("of-{uid}")},
            "status": {"phase": "Running"},
            "metadata": {
                "namespace": "ns", "name": uid, "uid": uid.replace("static", "mirror"),
                "labels": {"app": app}, "annotations": annotations,
            },
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn lists_replace_what_was_known_only_once_they_are_whole() {
        let (directory, status) = (Directory::default(), PodStatus::default());
        let learnt = (&directory, &status);
        // What kubelet's log directories say.
        let names = ["a", "static-b", "c", "d", "e", "f", "g", "h"];
        directory.tell_all(Teller::Logs, names.map(|name| Facts::named(name, "ns", name)));
        let account = |uid: &str| Some(directory.of(uid)?.confirmed_account()?.name.to_string());
        let known = |uid: &str| Some(directory.of(uid)?.confirmed_labels()?["app"].clone());
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
        let error = keep(stream::iter(first), learnt, &mut None, &mut retry).await;
        assert!(error.to_string().contains("without a resource version"), "{error}");
        assert_eq!((known("a").as_deref(), known("static-b").as_deref()), (Some("3"), Some("2")));
        assert_eq!((known("c"), known("mirror-b")), (None, None));
        // Accounts are of the server's UIDs alone, and of static pods there are none.
        assert_eq!((account("a").as_deref(), account("c")), (Some("of-a"), None));
        assert_eq!((account("static-b"), account("mirror-b")), (None, None));

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
        keep(stream::iter(events), learnt, &mut None, &mut retry).await;
        assert_eq!(
            (known("a").as_deref(), known("f").as_deref(), known("h").as_deref()),
            (Some("3"), Some("8"), Some("7"))
        );
        assert_eq!((known("e"), known("g")), (None, None));
        assert_eq!((account("a").as_deref(), account("e"), account("g")), (Some("of-a"), None, None));
        assert_eq!(account("h").as_deref(), Some("of-h"));

        // Half a list is none.
        let half = [Ok(Event::Init), Ok(Event::InitApply(pod("d", "5"))), gone()];
        keep(stream::iter(half), learnt, &mut None, &mut retry).await;
        assert_eq!((known("a").as_deref(), known("d")), (Some("3"), None));
        assert_eq!((account("a").as_deref(), account("d")), (Some("of-a"), None));
        let whole = [Ok(Event::Init), Ok(Event::InitApply(pod("d", "5"))), Ok(Event::InitDone), gone()];
        keep(stream::iter(whole), learnt, &mut None, &mut retry).await;
        assert_eq!((known("a"), known("d").as_deref()), (None, Some("5")));
        assert_eq!((account("a"), account("d").as_deref()), (None, Some("of-d")));
    }
}
