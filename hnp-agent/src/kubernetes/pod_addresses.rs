//! Follows the addresses of the pods on the agent's node: how the gateway knows its callers.
//!
//! Whole pods are asked for, because metadata has no addresses; of this node only. What is known stays known
//! while the server does not answer. A pod with hostNetwork has the node's own address, which is everybody's
//! on the node, and is left out; so is one that has ended, whose address may be another's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::{self, ApiError};
use super::pods::{SILENCE, WATCH};
use super::retry::{Failures, Retry};
use crate::config::plan::Kubernetes;
use crate::proxy::gateway::PodAddresses;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;
use crate::workload::Workload;

/// What the metrics say of it.
#[derive(Debug, Default)]
pub struct AddressStatus {
    in_step: AtomicBool,
    failures: Failures,
}

impl AddressStatus {
    /// Writes `hnp_pod_addresses_in_step` and `hnp_pod_addresses_failures`; for
    /// [`crate::telemetry::Telemetry::register`].
    pub fn write(&self, out: &mut Exposition<'_, '_>) {
        out.single(&names::POD_ADDRESSES_IN_STEP, u64::from(self.in_step.load(Relaxed)));
        self.failures.write(&names::POD_ADDRESSES_FAILURES, out);
    }
}

/// Follows them until `cancel`.
pub async fn follow_addresses(
    cluster: Kubernetes,
    published: watch::Sender<Arc<PodAddresses>>,
    status: Arc<AddressStatus>,
    cancel: CancellationToken,
) {
    let following = async {
        let mut retry = Retry::default();
        loop {
            // Client and all anew: the cluster's CA may have been replaced.
            let error = match pods(&cluster) {
                Ok(pods) => keep(pods, &published, &status, &mut retry).await,
                Err(error) => error,
            };
            status.in_step.store(false, Relaxed);
            let cause = error.cause();
            status.failures.count(cause);
            let (pause, is_news) = retry.failed(cause);
            if is_news {
                let (code, fix) = (cause.code(), cause.fix());
                tracing::warn!(cause = code, %error, fix, "cannot follow pods' addresses, so new pods are refused by the gateway; trying again");
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = following => {}
    }
}

fn pods(
    cluster: &Kubernetes,
) -> Result<impl Stream<Item = watcher::Result<Event<Pod>>> + Send + use<>, ApiError> {
    let pods: Api<Pod> = Api::all(client::client(cluster, SILENCE)?);
    let of_this_node = watcher::Config::default()
        .fields(&format!("spec.nodeName={}", cluster.node_name))
        .timeout(WATCH.as_secs() as u32);
    Ok(watcher(pods, of_this_node))
}

/// Takes in what the server says, until it says what is wrong.
async fn keep(
    pods: impl Stream<Item = watcher::Result<Event<Pod>>>,
    published: &watch::Sender<Arc<PodAddresses>>,
    status: &AddressStatus,
    retry: &mut Retry,
) -> ApiError {
    let mut pods = std::pin::pin!(pods);
    // By UID.
    let mut known: HashMap<String, Vec<IpAddr>> = HashMap::new();
    let mut whole = false;
    while let Some(event) = pods.next().await {
        match event {
            Ok(Event::Init) => {
                known.clear();
                whole = false;
            }
            Ok(Event::InitApply(pod) | Event::Apply(pod)) => {
                if let Some((uid, addrs)) = entry(&pod) {
                    known.insert(uid, addrs);
                }
            }
            Ok(Event::InitDone) => {
                whole = true;
                status.in_step.store(true, Relaxed);
                if retry.succeeded() {
                    tracing::info!(pods = known.len(), "pods' addresses are followed again");
                }
            }
            Ok(Event::Delete(pod)) => drop(pod.metadata.uid.and_then(|uid| known.remove(&uid))),
            // The server has forgotten what came since; the watcher lists anew by itself.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {}
            Err(error) => return error.into(),
        }
        // Half a list is none.
        if whole {
            published.send_replace(Arc::new(by_address(&known)));
        }
    }
    ApiError::Unreachable("the watch ended".into())
}

fn by_address(known: &HashMap<String, Vec<IpAddr>>) -> PodAddresses {
    let pods = known.iter().flat_map(|(uid, addrs)| {
        let pod = Arc::new(Workload { pod_uid: Some(uid.clone()), ..Workload::default() });
        addrs.iter().map(move |addr| (*addr, Arc::clone(&pod)))
    });
    pods.collect()
}

/// A pod's UID and its own addresses: none, while or when it has none of its own.
fn entry(pod: &Pod) -> Option<(String, Vec<IpAddr>)> {
    let uid = pod.metadata.uid.clone()?;
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let Some(status) = pod.status.as_ref().filter(|_| !host_network) else { return Some((uid, Vec::new())) };
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let all = status.pod_ips.iter().flatten().map(|pod_ip| &pod_ip.ip).chain(&status.pod_ip);
    let addrs = all.filter_map(|text| Some(text.parse::<IpAddr>().ok()?.to_canonical()));
    Some((uid, if ended { Vec::new() } else { addrs.collect() }))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, host_network: bool, phase: &str, addrs: &[&str]) -> Pod {
        let addrs: Vec<_> = addrs.iter().map(|addr| json!({"ip": addr})).collect();
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "ns", "name": uid, "uid": uid},
            "spec": {"hostNetwork": host_network, "containers": []},
            "status": {"phase": phase, "podIPs": addrs},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn pods_with_addresses_of_their_own_are_known_once_the_list_is_whole() {
        let published = watch::Sender::<Arc<PodAddresses>>::default();
        let who = |addr: &str| {
            let pods = published.borrow().clone();
            pods.get(&addr.parse::<IpAddr>().unwrap()).and_then(|pod| pod.pod_uid.clone())
        };
        let (status, mut retry) = (AddressStatus::default(), Retry::default());
        let first = vec![
            Ok(Event::Init),
            Ok(Event::InitApply(pod("a", false, "Running", &["10.0.0.1", "fd00::1"]))),
            Ok(Event::InitApply(pod("node", true, "Running", &["192.0.2.1"]))),
            Ok(Event::InitApply(pod("ended", false, "Succeeded", &["10.0.0.3"]))),
            Ok(Event::InitDone),
            Ok(Event::Apply(pod("b", false, "Pending", &[]))),
            Ok(Event::Apply(pod("b", false, "Running", &["10.0.0.2"]))),
        ];
        keep(stream::iter(first), &published, &status, &mut retry).await;
        assert_eq!((who("10.0.0.1").as_deref(), who("fd00::1").as_deref()), (Some("a"), Some("a")));
        assert_eq!(who("10.0.0.2").as_deref(), Some("b"));
        assert_eq!((who("192.0.2.1"), who("10.0.0.3")), (None, None));
        let half = vec![Ok(Event::Init), Ok(Event::InitApply(pod("c", false, "Running", &["10.0.0.9"])))];
        keep(stream::iter(half), &published, &status, &mut retry).await;
        assert_eq!((who("10.0.0.1").as_deref(), who("10.0.0.9")), (Some("a"), None), "half a list is none");
        let gone = vec![
            Ok(Event::Init),
            Ok(Event::InitApply(pod("c", false, "Running", &["10.0.0.9"]))),
            Ok(Event::InitDone),
            Ok(Event::Delete(pod("c", false, "Running", &["10.0.0.9"]))),
        ];
        keep(stream::iter(gone), &published, &status, &mut retry).await;
        assert_eq!((who("10.0.0.1"), who("10.0.0.9")), (None, None));
    }
}
