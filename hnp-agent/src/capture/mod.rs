//! The kernel side's only counterpart: loads, attaches and feeds the BPF programs, takes flows.
//!
//! No other room knows BPF, bpffs or netlink; this one knows no TLS and no HTTP. What is missing on a
//! node is reported in one go before anything is touched, and a start that fails leaves nothing
//! behind. An agent that dies leaves its programs pinned and enforcing; the next one takes over from
//! the pins without a moment in which destinations are open.
//!
//! Everything here blocks for a few system calls at most and needs no runtime.

mod anyip;
mod attach;
mod cgroups;
mod counters;
mod error;
mod exempt;
mod flows;
mod kernel_log;
mod object;
mod pins;
mod preflight;
mod sync;
mod sys;
mod vips;

use std::collections::HashMap;
use std::sync::Arc;

use hnp_common::layout::{FlowKey, Range};

pub use error::{CaptureError, Missing};
pub use preflight::Node;

use crate::config::plan;
use crate::proxy::flow::{FlowSource, SharedVipTable};
use crate::resolve::Desired;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;

/// This agent's turn on the node: nobody else starts beside it, and a dead agent's programs let it listen
/// on its port. Dropping it gives that back.
pub struct Turn {
    // First nobody exempts us any more, then a successor may come.
    exemption: Option<exempt::Exemption>,
    lock: pins::Lock,
}

impl Turn {
    /// Takes the lock, and takes over from a dead agent what must be before the listeners are opened:
    /// its programs keep the agent's port for its cgroup alone.
    ///
    /// # Errors
    /// When another agent is running, or a dead one's map cannot be written.
    pub fn take(node: &Node, plan: &plan::Capture) -> Result<Self, CaptureError> {
        let lock = pins::Lock::take(&plan.bpffs)?;
        let exemption = match node.own_cgroup {
            Some(cgroup) => exempt::Exemption::from_dead_agent(&plan.bpffs, cgroup)?,
            None => None,
        };
        Ok(Self { exemption, lock })
    }
}

/// The running capture. Dropping it detaches; [`Capture::detach`] does the same and says what failed.
pub struct Capture {
    // In the order in which they must be dropped: first nobody is redirected any more, then the routes
    // go, and the lock with the pins last: a successor must not find any of it half gone.
    attachment: attach::Attachment,
    cgroup: cgroups::Cgroup,
    destinations: sync::Destinations,
    counters: counters::Counters,
    flows: Arc<flows::KernelFlows>,
    /// What the last [`Capture::housekeep`] saw closed, with its socket's cookie.
    closed_flows: HashMap<FlowKey, u64>,
    qos: cgroups::QosCgroups,
    routes: anyip::Routes,
    _log: Option<kernel_log::Reader>,
    lock: pins::Lock,
}

impl Capture {
    /// Makes the VIP ranges local, loads the programs and attaches them.
    ///
    /// From here on what a former agent captured stays captured; new destinations come with
    /// [`Capture::sync`]. `vips` is published by this room alone. Must be called in the network
    /// namespace the agent listens in.
    ///
    /// # Errors
    /// When the kernel refuses a step. The message says what to do, and all is as it was: what a dead
    /// agent left goes on enforcing.
    pub fn start(
        turn: Turn,
        node: &Node,
        plan: &plan::Capture,
        vips: SharedVipTable,
    ) -> Result<Self, CaptureError> {
        let object = object::embedded().ok_or(CaptureError::NotBuiltIn)?;
        let ranges = Ranges::of(plan);
        let Turn { exemption, mut lock } = turn;

        let cgroup = node.cgroup.try_clone()?;
        let mut routes = anyip::Routes::ensure(&[plan.vips4, plan.vips6])?;
        let mut loaded = attach::Loaded::load(object, node, plan, ranges)?;
        let log = kernel_log::Reader::start(&mut loaded.ebpf);
        let mut destinations = sync::Destinations::new(loaded.map("DESTINATIONS")?, plan, vips)?;
        destinations.inherit(&plan.bpffs)?;
        let mut qos = cgroups::QosCgroups::new(&node.cgroup.path, loaded.map("QOS_CGROUPS")?)?;
        qos.refresh()?;
        let counters = counters::Counters::new(loaded.map("COUNTERS")?, loaded.map("PODS")?)?;
        let flows = Arc::new(flows::KernelFlows::new(loaded.map("FLOWS")?, ranges)?);
        let attachment = loaded.attach(&cgroup, &mut lock)?;
        // Nothing fails from here on, and of a dead agent there is only what is ours now.
        drop(exemption);
        routes.take_over();
        Ok(Self {
            attachment,
            cgroup,
            destinations,
            counters,
            flows,
            closed_flows: HashMap::new(),
            qos,
            routes,
            _log: log,
            lock,
        })
    }

    /// Where workers take the flows of accepted connections from.
    pub fn flow_source(&self) -> Arc<dyn FlowSource> {
        self.flows.clone()
    }

    /// Makes the kernel capture exactly `desired`, and publishes the VIP table that goes with it: a
    /// VIP is known to the agent before the kernel sends anybody there, and until after it stopped.
    ///
    /// While names are unresolved (`complete` is false) what a former agent captured stays captured.
    ///
    /// # Errors
    /// When VIPs or map entries run out, or the kernel refuses. What could be done was done: all
    /// that was captured and is still desired stays captured, and the table agrees with the kernel.
    pub fn sync(&mut self, desired: &Desired) -> Result<(), CaptureError> {
        self.qos.refresh()?;
        self.destinations.sync(desired)
    }

    /// Looks whether the programs are still where the pods are. Cheap; to be called every second or so.
    ///
    /// # Errors
    /// [`CaptureError::CgroupReplaced`]: nothing is captured any more, and will not be. Any other error
    /// says only that it could not be told.
    pub fn check_cgroup(&self) -> Result<(), CaptureError> {
        self.cgroup.still_there()
    }

    /// Looks after what changes by itself: kubelet's cgroups, and flows of connections that closed
    /// without ever being accepted. To be called every half minute or so; what was closed for less
    /// than the time between two calls is never swept.
    ///
    /// # Errors
    /// When the kernel refuses to read or write a map.
    pub fn housekeep(&mut self) -> Result<(), CaptureError> {
        self.qos.refresh()?;
        let swept = self.flows.sweep(&mut self.closed_flows)?;
        if swept > 0 {
            tracing::warn!(swept, "connections closed without having been accepted");
        }
        Ok(())
    }

    /// Writes what the kernel counts and what is captured, at a scrape.
    pub fn write_metrics(&self, out: &mut Exposition<'_, '_>) {
        let unreadable = |error: CaptureError| tracing::warn!(%error, "the kernel's counters cannot be read");
        match self.counters.verdicts() {
            Ok(verdicts) => {
                let labels: Vec<_> =
                    verdicts.iter().map(|(name, count)| ([("verdict", *name)], *count)).collect();
                out.family(
                    &names::KERNEL_VERDICTS,
                    labels.iter().map(|(labels, count)| (&labels[..], *count)),
                );
            }
            Err(error) => unreadable(error),
        }
        match self.flows.count() {
            Ok(count) => out.single(&names::FLOWS, count as u64),
            Err(error) => unreadable(error),
        }
        match self.counters.open_connections() {
            Ok(count) => out.single(&names::CAPTURED_OPEN, count),
            Err(error) => unreadable(error),
        }
        out.single(&names::DESTINATIONS, self.destinations.len() as u64);
    }

    /// Detaches the programs and removes pins and routes, as a clean exit does.
    ///
    /// # Errors
    /// The first step that failed; the others were tried all the same.
    pub fn detach(self) -> Result<(), CaptureError> {
        let Self { attachment, routes, mut lock, .. } = self;
        drop(attachment);
        let removed = routes.remove();
        let cleared = lock.clear();
        removed.and(cleared)
    }
}

/// The two VIP ranges, in the kernel's form.
#[derive(Clone, Copy, Debug)]
struct Ranges {
    v4: Range,
    v6: Range,
}

impl Ranges {
    fn of(plan: &plan::Capture) -> Self {
        let range = |cidr: plan::Cidr| Range::of(cidr.addr, cidr.prefix);
        Self { v4: range(plan.vips4), v6: range(plan.vips6) }
    }
}

/// A range as it is written.
fn written(range: plan::Cidr) -> String {
    format!("{}/{}", range.addr, range.prefix)
}
