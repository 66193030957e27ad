//! Whether the agent is being uninstalled, by what the API server says of its own DaemonSet.
//!
//! SIGTERM is the same for a restart, an update and an uninstall. After the first two an agent comes back, so what is
//! strict must stay refused; after the last none does, and what stayed would cut the manager off for good. The
//! difference is whether the DaemonSet is still there. It is watched from the start, because whoever deletes it deletes
//! the agent's permission to ask along with it, often first; a watch that is open tells all the same. Where nothing is
//! known, it is a restart: refused destinations can be let go by hand, what was sent in the clear cannot be taken back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::api::WatchParams;
use kube::core::{PartialObjectMeta, Status, WatchEvent};
use tokio_util::sync::CancellationToken;

use super::client::{self, ApiError};
use super::pods::{SILENCE, WATCH};
use super::retry::Retry;
use crate::backoff;
use crate::config::plan::{self, Kubernetes};

/// The last question, while the agent drains: well below any grace period.
const LAST_WORD: Duration = Duration::from_secs(5);
/// After a watch has ended, as all do, and while there is no such DaemonSet.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

type Meta = PartialObjectMeta<DaemonSet>;

/// What the server has said of the DaemonSet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Known {
    /// It was never seen: perhaps there is none of that name.
    #[default]
    Nothing,
    /// It is there, and to stay.
    There,
    /// It was there, and is deleted, or is being deleted.
    Going,
}

/// The DaemonSet that the agent's pod is of. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Installation {
    cluster: Kubernetes,
    of: plan::DaemonSet,
    known: Arc<Mutex<Known>>,
}

impl Installation {
    /// Of this cluster; `None` where the Plan names no DaemonSet.
    pub fn new(cluster: Option<&Kubernetes>) -> Option<Self> {
        let cluster = cluster?.clone();
        Some(Self { of: cluster.daemonset.clone()?, cluster, known: Arc::default() })
    }

    /// Follows it until `cancel`. Failures are tried again for ever and hold nothing up.
    pub async fn follow(self, cancel: CancellationToken) {
        let following = async {
            let mut retry = Retry::default();
            loop {
                let Err(error) = self.look_and_watch(&mut retry).await else {
                    tokio::time::sleep(backoff::jittered(LOOK_AGAIN)).await;
                    continue;
                };
                let cause = error.cause();
                let (pause, is_news) = retry.failed(cause);
                if is_news && *self.known() != Known::Going {
                    let (daemonset, code) = (&self.of, cause.code());
                    let fix = "the service account needs `get` and `watch` on this DaemonSet; an uninstall is taken for a \
                               restart meanwhile";
                    tracing::warn!(%daemonset, cause = code, %error, fix, "cannot follow the agent's own DaemonSet; trying again");
                }
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = following => {}
        }
    }

    /// Whether no agent comes back after this one. To be asked once it was told to stop.
    pub async fn is_over(&self) -> bool {
        let asked = tokio::time::timeout(LAST_WORD, self.look()).await.unwrap_or(Err(ApiError::Timeout));
        let (over, daemonset) = (*self.known() == Known::Going, &self.of);
        if let Err(error) = asked
            && !over
        {
            tracing::warn!(
                %daemonset,
                %error,
                "cannot ask whether this is an uninstall, so it is taken for a restart; if no agent is to come back, run \
                 `hnp-agent cleanup` on this node"
            );
        }
        over
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, silence: Duration) -> Result<Api<DaemonSet>, ApiError> {
        Ok(Api::namespaced(client::client(&self.cluster, silence)?, &self.of.namespace))
    }

    /// Asks once; returns the version from which a watch goes on.
    async fn look(&self) -> Result<Option<String>, ApiError> {
        match self.api(LAST_WORD)?.get_metadata(&self.of.name).await {
            Ok(meta) => Ok(self.judge(Some(&meta))),
            Err(kube::Error::Api(status)) if is_about(&status, &self.of.name) => Ok(self.judge(None)),
            Err(error) => Err(error.into()),
        }
    }

    fn judge(&self, found: Option<&Meta>) -> Option<String> {
        let mut known = self.known();
        let (before, daemonset) = (*known, &self.of);
        *known = match (found, before) {
            (Some(meta), _) if meta.metadata.deletion_timestamp.is_none() => Known::There,
            (Some(_), _) | (None, Known::There | Known::Going) => Known::Going,
            (None, Known::Nothing) => Known::Nothing,
        };
        match (before, *known) {
            (Known::Nothing | Known::There, Known::Going) => {
                tracing::info!(%daemonset, "the agent's own DaemonSet is being deleted: told to stop, the agent cleans up");
            }
            (Known::Going, Known::There) => {
                tracing::info!(%daemonset, "the agent's own DaemonSet is there again")
            }
            _ => {}
        }
        found?.metadata.resource_version.clone()
    }

    /// Looks, and follows what becomes of it until the watch ends.
    async fn look_and_watch(&self, retry: &mut Retry) -> Result<(), ApiError> {
        let Some(version) =
            tokio::time::timeout(LAST_WORD, self.look()).await.unwrap_or(Err(ApiError::Timeout))?
        else {
            if *self.known() == Known::Nothing {
                let message = format!("there is no DaemonSet {}", self.of);
                return Err(ApiError::Refused { code: 404, message });
            }
            return Ok(());
        };
        let api = self.api(SILENCE)?;
        let only = WatchParams::default()
            .fields(&format!("metadata.name={}", self.of.name))
            .timeout(WATCH.as_secs() as u32);
        let mut events = api.watch_metadata(&only, &version).await?.boxed();
        if retry.succeeded() {
            tracing::info!(daemonset = %self.of, "the agent's own DaemonSet is followed again");
        }
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(meta) | WatchEvent::Modified(meta) => drop(self.judge(Some(&meta))),
                WatchEvent::Deleted(_) => drop(self.judge(None)),
                WatchEvent::Bookmark(_) => {}
                // The server has forgotten what came since (410): the next look says how things are.
                WatchEvent::Error(_) => break,
            }
        }
        Ok(())
    }
}

/// Whether this very object is not there. A server that does not know the path, or something else that answers in its
/// place, says 404 as well.
fn is_about(status: &Status, name: &str) -> bool {
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn installation() -> Installation {
        let of = plan::DaemonSet { namespace: "hnp".into(), name: "hnp-agent".into() };
        let cluster = Kubernetes {
            api: "https://192.0.2.1".into(),
            service_account: "/nowhere".into(),
            node_name: "n".into(),
            startup_taint: None,
            daemonset: Some(of),
        };
        Installation::new(Some(&cluster)).unwrap()
    }

    fn meta(metadata: serde_json::Value) -> Meta {
        serde_json::from_value(json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata,
        }))
        .unwrap()
    }

    #[test]
    fn only_what_was_there_can_go() {
        let installation = installation();
        let there = meta(json!({"name": "hnp-agent", "resourceVersion": "7"}));
        let going = meta(json!({"name": "hnp-agent", "deletionTimestamp": "2026-11-01T00:00:00Z"}));
        let after = |found: Option<&Meta>| {
            let version = installation.judge(found);
            (*installation.known(), version)
        };
        // A name that is wrong says nothing about an uninstall.
        assert_eq!(after(None), (Known::Nothing, None));
        assert_eq!(after(Some(&there)), (Known::There, Some("7".into())));
        assert_eq!(after(Some(&going)), (Known::Going, None), "deleted in the foreground: its pods go first");
        assert_eq!(after(None), (Known::Going, None));
        assert_eq!(after(Some(&there)).0, Known::There, "installed anew");
        assert_eq!(after(None).0, Known::Going, "deleted in the background: it goes first");
    }

    #[test]
    fn not_every_404_is_about_it() {
        let status = |details: serde_json::Value| {
            serde_json::from_value(json!({"code": 404, "reason": "NotFound", "details": details})).unwrap()
        };
        let kind = "daemonsets";
        assert!(is_about(&status(json!({"name": "hnp-agent", "group": "apps", "kind": kind})), "hnp-agent"));
        assert!(!is_about(&status(json!({"name": "another", "group": "apps", "kind": kind})), "hnp-agent"));
        assert!(!is_about(&status(json!({})), "hnp-agent") && !is_about(&status(json!(null)), "hnp-agent"));
    }

    #[tokio::test]
    async fn who_cannot_ask_goes_by_what_was_known() {
        let installation = installation();
        installation.judge(Some(&meta(json!({"name": "hnp-agent"}))));
        assert!(!installation.is_over().await, "there is no token");
        installation.judge(None);
        assert!(installation.is_over().await);
    }
}
