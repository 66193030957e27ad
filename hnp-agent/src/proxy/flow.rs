//! What the data path knows of a captured connection before it has read a byte.
//!
//! The proxy owns these types and asks for flows through [`FlowSource`]; it knows no BPF map.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hnp_common::Reason;

use crate::config::plan::{AddrRange, RouteIndex};
use crate::generation::Generation;

/// One captured connection, as the kernel recorded it at connect().
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flow {
    /// The client's address and port as the agent sees them.
    pub client: SocketAddr,
    /// The VIP the client was sent to.
    pub vip: IpAddr,
    /// What the client dialled. Equal to VIP and agent port on a direct flow.
    pub orig_dst: SocketAddr,
    /// The cgroup of the calling task: the inode of its directory on cgroup2.
    pub cgroup_id: u64,
    /// The cgroups one and two levels below the attached one, zero where there is none: one of them
    /// is the pod's, and it outlives the container's.
    pub ancestor_ids: [u64; 2],
    /// The client dialled the VIP itself.
    pub direct: bool,
    /// What the kernel enforced for this client is strict.
    pub strict: bool,
}

/// Where the data path gets flows from. `capture` implements it on the kernel's maps; tests fake it.
pub trait FlowSource: Send + Sync + 'static {
    /// Takes (reads and deletes) the flow of an accepted connection.
    ///
    /// # Errors
    /// [`Reason::NotVip`] when `local` is outside the VIP ranges, [`Reason::NoFlow`] when the kernel
    /// recorded none: the connection did not come through capture.
    fn take(&self, client: SocketAddr, local: SocketAddr) -> Result<Flow, Reason>;
}

/// What one VIP stands for at the moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VipEntry {
    /// What the VIP stands for.
    pub destination: AddrRange,
    /// The routes whose destinations include it, in the order of the Plan: several when names share
    /// an address. Never empty.
    pub routes: Vec<RouteIndex>,
    /// What the routes are counted in. The newest, but where the destination left the configuration
    /// and connections may still be on their way.
    pub generation: Arc<Generation>,
}

/// All VIPs in use. Published as a whole; readers see one consistent table.
#[derive(Clone, Debug, Default)]
pub struct VipTable {
    /// The newest generation; `None` before the first destinations were applied.
    pub generation: Option<Arc<Generation>>,
    /// By VIP.
    pub entries: std::collections::HashMap<IpAddr, VipEntry>,
}

/// The table as it is handed to workers: swapped when destinations change.
pub type SharedVipTable = Arc<arc_swap::ArcSwap<VipTable>>;
