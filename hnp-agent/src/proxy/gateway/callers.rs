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

    /// Who comes from this address, where that is somebody who is served. Waits for one who is not known yet.
    ///
    /// # Errors
    /// He is not served; the words say why.
    pub(super) async fn look_up(
        &self,
        plan: &Plan,
        gateway: &Gateway,
        addr: IpAddr,
    ) -> Result<Arc<Workload>, String> {
        let addr = addr.to_canonical();
        let outside = || format!("{addr} lies outside of `gateway.sources`");
        if !plan.knows_callers() {
            return if gateway.serves(addr, false) { Ok(Arc::default()) } else { Err(outside()) };
        }
        if !gateway.serves(addr, true) {
            return Err(outside());
        }
        let wait = gateway.timeouts.caller;
        match timeout(wait, self.known(addr)).await {
            Ok(Some(pod)) => Ok(pod),
            Ok(None) | Err(_) => {
                let waited = humane(wait);
                Err(format!(
                    "the API server named no pod of this node with the address {addr} within {waited}"
                ))
            }
        }
    }

    async fn known(&self, addr: IpAddr) -> Option<Arc<Workload>> {
        if let Some(pod) = self.0.borrow().get(&addr) {
            return Some(Arc::clone(pod));
        }
        let mut news = self.0.clone();
        match news.wait_for(|pods| pods.contains_key(&addr)).await {
            Ok(pods) => pods.get(&addr).cloned(),
            // Nobody follows the pods; that does not change.
            Err(_) => None,
        }
    }
}
