//! What one worker thread shares among its connections: everything, and with no other thread.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::buffer::Stock;
use super::flow::{FlowSource, SharedVipTable};
use crate::config::plan::Plan;
use crate::telemetry::stats::WorkerStats;
use crate::upstream::Upstreams;
use crate::workload::WorkloadSource;

/// One worker's world.
pub struct Worker {
    /// The configuration.
    pub plan: Arc<Plan>,
    /// Where flows are taken from.
    pub flows: Arc<dyn FlowSource>,
    /// What VIPs stand for.
    pub vips: SharedVipTable,
    /// Who is calling.
    pub workloads: Arc<dyn WorkloadSource>,
    /// The way to the upstreams.
    pub upstreams: Upstreams,
    /// Counters and access lines.
    pub stats: Arc<WorkerStats>,
    /// Blocks for bytes under way.
    pub stock: Rc<Stock>,
    /// Cancelled when the drain begins: finish what runs, begin nothing.
    pub stop: CancellationToken,
    /// Cancelled at the drain's deadline: end now.
    pub kill: CancellationToken,
    /// The next flow id: the worker's number in the upper 16 bits.
    pub next_flow_id: Cell<u64>,
}

impl Worker {
    /// A number no other connection of this agent has.
    pub fn flow_id(&self) -> u64 {
        self.next_flow_id.replace(self.next_flow_id.get() + 1)
    }
}
