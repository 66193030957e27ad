//! What the agent asks of the API server of the cluster its node belongs to.
//!
//! Four things: that the taint with which a new node registers is taken off once the agent is ready, so that
//! no pod starts where nothing is captured yet; which labels and service accounts the node's pods have, where routes
//! select by them and issuers ask for them; which addresses they have, where there is a gateway; and whether the agent's own DaemonSet is being deleted. None is needed for
//! capture or the relay; an API server that cannot be reached costs the node its pods, not its enforcement. `client`
//! reaches the server, `patch` says what to change (pure), `startup_taint`, `pods`, `pod_addresses` and `installation` are the loops
//! around them, `retry` their rhythm when they fail.

mod client;
mod installation;
mod patch;
mod pod_addresses;
mod pods;
mod retry;
mod startup_taint;

pub use installation::Installation;
pub use pod_addresses::{AddressStatus, follow_addresses};
pub use pods::{PodStatus, follow};
pub use startup_taint::{TaintStatus, take_off};
