//! Who is served: whoever the API server knows as a pod of this node by the address he comes from, or
//! whoever comes from a range that was listed. Never anybody by what he says of himself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::gateway::Gateway;
use crate::config::humane;
use crate::config::plan::Plan;
use crate::workload::Workload;

/// The addresses of this node's pods, without those of pods with hostNetwork. Published as a whole.
pub type PodAddresses = HashMap<IpAddr, Arc<Workload>>;

/// Where a worker looks callers up. A lock that others share, once per connection.
#[derive(Clone, Debug)]
pub struct Callers(watch::Receiver<Arc<PodAddresses>>);

impl Callers {
    /// Follows what is published.
    pub fn new(pods: watch::Receiver<Arc<PodAddresses>>) -> Self {
        Self(pods)
    }

    /// Knows nobody, ever.
    pub fn nobody() -> Self {
        Self(watch::Sender::default().subscribe())
    }

    /// Who comes from this address, where that is somebody who is served; `None`: nobody who is known yet.
    ///
    /// # Errors
    /// He is not served, and will not be; the words say why.
    pub(super) fn look_up(
        &self,
        plan: &Plan,
        gateway: &Gateway,
        addr: IpAddr,
    ) -> Result<Option<Arc<Workload>>, String> {
        let (addr, knows) = (addr.to_canonical(), plan.knows_callers());
        if !gateway.serves(addr, knows) {
            return Err(outside(addr));
        }
        Ok(if knows { self.0.borrow().get(&addr).cloned() } else { Some(Arc::default()) })
    }

    /// Waits for one who is not known yet.
    ///
    /// # Errors
    /// He did not become known in time.
    pub(super) async fn wait_for(&self, gateway: &Gateway, addr: IpAddr) -> Result<Arc<Workload>, String> {
        let (addr, wait) = (addr.to_canonical(), gateway.timeouts.caller);
        let known = timeout(wait, self.known(addr)).await;
        known.ok().flatten().ok_or_else(|| {
            let waited = humane(wait);
            format!("the API server named no pod of this node with the address {addr} within {waited}")
        })
    }

    async fn known(&self, addr: IpAddr) -> Option<Arc<Workload>> {
        let mut news = self.0.clone();
        match news.wait_for(|pods| pods.contains_key(&addr)).await {
            Ok(pods) => pods.get(&addr).cloned(),
            // Nobody follows the pods; that does not change.
            Err(_) => None,
        }
    }
}

/// Why an address is not served.
pub(super) fn outside(addr: IpAddr) -> String {
    format!("{} lies outside of `gateway.sources`", addr.to_canonical())
}

/// So many of a worker's clients who are not known, or not served, are told why, or waited for: more than a burst of
/// new pods makes, and few beside all connections that a worker may have.
pub(in crate::proxy) const STRANGERS: usize = 256;
