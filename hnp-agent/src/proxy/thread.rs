//! A worker thread: one current-thread runtime, its listeners, its connections, its housekeeping.
//!
//! Nothing here is shared with another worker but counters that only this one writes. It ends when
//! it was told to stop and its last connection is gone, or when it is told to end now.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::buffer::Stock;
use super::flow::{FlowSource, SharedVipTable};
use super::listener::{self, Listeners};
use super::pulse::Pulse;
use super::worker::Worker;
use crate::config::plan::Plan;
use crate::identity::snapshot::SharedIdentity;
use crate::resolve::Resolver;
use crate::telemetry::stats::WorkerStats;
use crate::trust::snapshot::SharedTrust;
use crate::upstream::Upstreams;
use crate::workload::WorkloadSource;

/// How often a quiet worker's access lines are handed to the writer.
const FLUSH: Duration = Duration::from_millis(100);
/// How many of those pass between two looks at the pool.
const SWEEP: u32 = 10;

/// What a worker is made of; all of it may cross to its thread.
pub struct Parts {
    /// The worker's number, from 0.
    pub index: usize,
    /// The configuration.
    pub plan: Arc<Plan>,
    /// Its listening sockets.
    pub listeners: Listeners,
    /// Where flows are taken from.
    pub flows: Arc<dyn FlowSource>,
    /// What VIPs stand for.
    pub vips: SharedVipTable,
    /// Who is calling.
    pub workloads: Arc<dyn WorkloadSource>,
    /// In the order of the Plan.
    pub identities: Vec<SharedIdentity>,
    /// In the order of the Plan.
    pub trusts: Vec<SharedTrust>,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
    /// Says that it answers.
    pub pulse: Pulse,
    /// Cancelled when the drain begins.
    pub stop: CancellationToken,
    /// Cancelled at the drain's deadline.
    pub kill: CancellationToken,
}

/// Starts the thread. It returns how many connections were cut at the drain's deadline.
///
/// # Errors
/// The thread could not be made.
pub fn spawn(parts: Parts) -> io::Result<JoinHandle<io::Result<usize>>> {
    std::thread::Builder::new().name(format!("worker-{}", parts.index)).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, run(parts))
    })
}

async fn run(parts: Parts) -> io::Result<usize> {
    // Each family's listener holds one while it waits.
    let permits = (parts.plan.limits.connections / parts.plan.workers).max(2);
    let resolver = Resolver::new(&parts.plan.resolver).map_err(io::Error::other)?;
    let worker = Rc::new(Worker {
        upstreams: Upstreams::new(parts.plan.clone(), parts.identities, parts.trusts, resolver),
        stock: Stock::new(parts.plan.limits.buffer_bytes),
        flows: parts.flows,
        vips: parts.vips,
        workloads: parts.workloads,
        stats: parts.stats,
        stop: parts.stop,
        kill: parts.kill,
        next_flow_id: Cell::new((parts.index as u64) << 48 | 1),
        plan: parts.plan,
    });
    let connections = TaskTracker::new();
    let serve = listener::serve(worker.clone(), parts.listeners, permits, connections.clone());
    let until_done = async {
        serve.await?;
        connections.close();
        tokio::select! {
            () = connections.wait() => Ok(0),
            () = worker.kill.cancelled() => {
                let cut = connections.len();
                connections.wait().await;
                Ok(cut)
            }
        }
    };
    tokio::select! {
        cut = until_done => cut,
        never = keep_house(&worker, &parts.pulse) => never,
    }
}

async fn keep_house(worker: &Worker, pulse: &Pulse) -> ! {
    let mut idle = vec![0_i64; worker.plan.routes.len()];
    let mut tick = interval(FLUSH);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        for _ in 0..SWEEP {
            tick.tick().await;
            pulse.beat();
            worker.stats.flush();
        }
        worker.upstreams.sweep();
        for (route, before) in idle.iter_mut().enumerate() {
            let now = i64::try_from(worker.upstreams.idle(route)).unwrap_or(i64::MAX);
            worker.stats.pool_idle_changed(route, now - *before);
            *before = now;
        }
    }
}
