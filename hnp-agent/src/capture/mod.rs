//! The kernel side's only counterpart: loads, attaches and feeds the BPF programs, takes flows.
//!
//! No other room knows BPF, bpffs or netlink; this one knows no TLS and no HTTP. What is missing on a
//! node is reported in one go before anything is touched, and a start that fails leaves what was there.
//! What is attached outlives the agent: an agent that ends or dies leaves its programs pinned, and they
//! decide by its heartbeat; the next one takes over without a moment in which destinations are open.
//!
//! Everything here blocks for a few system calls at most and needs no runtime.

mod anyip;
mod attach;
mod cgroups;
mod cleanup;
mod counters;
mod destinations;
mod dials;
mod error;
mod examine;
mod exempt;
mod flows;
mod foreign;
mod former;
mod guard;
mod heartbeat;
mod kernel_log;
mod object;
mod older;
mod overrides;
mod pins;
mod preflight;
mod resting;
mod status;
mod sys;
mod uncaptured;
mod vips;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use hnp_common::Verdict;
use hnp_common::layout::{FlowKey, Range};
use tracing::level_filters::LevelFilter;

pub use cleanup::{Cleaned, clean_up};
pub use dials::Dials;
pub use error::{CaptureError, Missing};
pub use examine::examine;
pub use foreign::Foreign;
pub use overrides::PodFacts;
pub use preflight::Node;
pub use status::{CaptureStatus, DestinationStatus, GuardStatus, HookStatus};
pub use uncaptured::{Look, Looking, Uncaptured};

use crate::config::plan;
use crate::proxy::flow::{FlowSource, SharedVipTable};
use crate::proxy::pulse::Pulse;
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
        let exemption = exempt::Exemption::from_former_agent(&plan.bpffs, node)?;
        Ok(Self { exemption, lock })
    }

    /// Takes part in a running agent's turn, by a descriptor from [`Capture::lock`]. Dropping it before a
    /// start leaves everything to that agent.
    ///
    /// # Errors
    /// When that agent has other pins, or its map cannot be written.
    pub fn inherit(node: &Node, plan: &plan::Capture, lock: OwnedFd) -> Result<Self, CaptureError> {
        let lock = pins::Lock::from_inherited(&plan.bpffs, lock)?;
        let exemption = exempt::Exemption::from_former_agent(&plan.bpffs, node)?;
        Ok(Self { exemption, lock })
    }
}

/// The programs in the kernel, seen by the verifier and attached to nothing. They work on the maps that a
/// former agent pinned, so that one may still be running.
pub struct Prepared {
    ready: NotYetHung,
    /// `None`: switched off. It has attached nothing yet.
    guard: Option<guard::Guard>,
}

impl Prepared {
    /// Loads the programs. `strict`: the names of the routes that are strict for every pod.
    ///
    /// # Errors
    /// When the kernel refuses the programs or cannot keep what a strict route promises, or a running agent's
    /// cannot be replaced in place. The message says what to do. Whoever runs goes on undisturbed.
    pub fn load(
        turn: &Turn,
        node: &Node,
        plan: &plan::Capture,
        strict: &[&str],
    ) -> Result<Self, CaptureError> {
        let ready = Hung::load(node, plan, &turn.lock)?;
        let guard = match plan.guard {
            plan::Guard::Auto => Some(ready.loaded.guard(&pins::guard_dir(&plan.bpffs))?),
            plan::Guard::Off => None,
        };
        if let Some(guard) = &guard {
            guard.require(strict)?;
        }
        Ok(Self { ready, guard })
    }
}

/// The running capture. Dropping it leaves what is attached, without a heartbeat;
/// [`Capture::stop`], [`Capture::leave`] and [`Capture::detach`] say what is to become of it.
pub struct Capture {
    // In the order in which they are dropped: the heartbeat first, the lock last: a successor must not find
    // any of it half gone.
    beating: Option<heartbeat::Beating>,
    hung: Hung,
    plan: plan::Capture,
    destinations: destinations::Destinations,
    observed: dials::DialsMap,
    loose_direct: dials::DialsMap,
    exempt: exempt::Exempt,
    /// `None`: switched off.
    guard: Option<guard::Guard>,
    /// `None`: not asked for.
    older: Option<older::OlderFlows>,
    counters: counters::Counters,
    flows: Arc<flows::KernelFlows>,
    /// What the last [`Capture::housekeep`] saw closed, with its socket's cookie.
    closed_flows: HashMap<FlowKey, u64>,
    routes: anyip::Routes,
    lock: pins::Lock,
}

/// The programs on a cgroup. Hung anew when the cgroup is replaced; the maps stay.
struct Hung {
    attachment: attach::Attachment,
    cgroup: cgroups::Cgroup,
    qos: cgroups::QosCgroups,
    loaded: attach::Loaded,
    _log: Option<kernel_log::Reader>,
}

impl Hung {
    fn load(node: &Node, plan: &plan::Capture, lock: &pins::Lock) -> Result<NotYetHung, CaptureError> {
        let mut loaded = first_accepted(node, plan, lock)?;
        let log = kernel_log::Reader::start(&mut loaded.ebpf);
        let mut qos = cgroups::QosCgroups::new(&node.cgroup.path, loaded.map("QOS_CGROUPS")?)?;
        qos.refresh()?;
        Ok(NotYetHung { loaded, log, qos, cgroup: node.cgroup.try_clone()? })
    }
}

/// Loads the first object that this kernel accepts. One that logs asks more of the verifier than one
/// that does not: without CAP_PERFMON, few kernels accept it.
fn first_accepted(
    node: &Node,
    plan: &plan::Capture,
    lock: &pins::Lock,
) -> Result<attach::Loaded, CaptureError> {
    let mut refusal = CaptureError::NotBuiltIn;
    for object in object::to_try(LevelFilter::current() >= LevelFilter::DEBUG) {
        let object = object::for_kernel(object, node.has_set_retval);
        match attach::Loaded::load(&object, node, plan, Ranges::of(plan), lock) {
            Ok(loaded) => {
                if let CaptureError::Verify { program, .. } = refusal {
                    tracing::info!(program, "this kernel refuses the programs that log: they do not log");
                }
                return Ok(loaded);
            }
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

/// Loaded and fed, and not attached.
struct NotYetHung {
    loaded: attach::Loaded,
    log: Option<kernel_log::Reader>,
    qos: cgroups::QosCgroups,
    cgroup: cgroups::Cgroup,
}

impl NotYetHung {
    fn attach(self, lock: &pins::Lock) -> Result<Hung, CaptureError> {
        let Self { loaded, log, qos, cgroup } = self;
        let attachment = loaded.attach(&cgroup, lock)?;
        Ok(Hung { attachment, cgroup, qos, loaded, _log: log })
    }
}

impl Capture {
    /// Makes the VIP ranges local and attaches the programs.
    ///
    /// From here on what a former agent captured stays captured; new destinations come with
    /// [`Capture::sync`], and nothing is redirected before [`Capture::beat`]. `vips` is published by this
    /// room alone. Must be called in the network namespace the agent listens in.
    ///
    /// # Errors
    /// When the kernel refuses a step. The message says what to do. What a former agent left goes on enforcing.
    pub fn start(
        turn: Turn,
        prepared: Prepared,
        plan: &plan::Capture,
        vips: SharedVipTable,
    ) -> Result<Self, CaptureError> {
        let Turn { exemption, mut lock } = turn;
        let mut routes = anyip::Routes::ensure(&[plan.vips4, plan.vips6])?;
        let Prepared { ready, guard } = prepared;
        let loaded = &ready.loaded;
        let maps = destinations::KernelMaps {
            hosts: loaded.map("DESTINATIONS")?,
            networks: loaded.map("NETWORKS")?,
            settings: loaded.map("SETTINGS")?,
            overrides: loaded.map("OVERRIDES")?,
            resting: loaded.map(resting::MAP)?,
        };
        let dials = |name| dials::DialsMap::new(name, loaded.map(name)?);
        let (observed, loose_direct) = (dials("OBSERVED")?, dials("LOOSE_DIRECT")?);
        let counted = observed.last_id()?.max(loose_direct.last_id()?);
        let destinations = destinations::Destinations::new(maps, plan, vips, counted)?;
        let exempt = loaded.exempt()?;
        let counters = counters::Counters::new(loaded.map("COUNTERS")?, loaded.map("PODS")?)?;
        let flows = Arc::new(flows::KernelFlows::new(loaded.map("FLOWS")?, Ranges::of(plan))?);
        let hung = ready.attach(&lock)?;
        lock.own();
        // Nothing fails from here on, and of a dead agent there is only what is ours now.
        if let Some(exemption) = exemption {
            exemption.keep();
        }
        routes.take_over();
        if guard.is_none()
            && let Err(error) = guard::clean_up(&pins::guard_dir(&plan.bpffs))
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a former agent's guard stays");
        }
        Ok(Self {
            beating: None,
            hung,
            plan: plan.clone(),
            destinations,
            observed,
            loose_direct,
            exempt,
            guard,
            older: plan.destroy_older_flows.then(older::OlderFlows::default),
            counters,
            flows,
            closed_flows: HashMap::new(),
            routes,
            lock,
        })
    }

    /// Tells the kernel from now on that the agent serves, as long as every worker's pulse beats.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn beat(&mut self, pulses: Vec<Pulse>) -> Result<(), CaptureError> {
        let map = self.hung.loaded.map("HEARTBEAT")?;
        self.beating = Some(heartbeat::Beating::start(map, self.plan.heartbeat, pulses)?);
        Ok(())
    }

    /// Whether the kernel was told that the agent serves.
    pub fn is_beating(&self) -> bool {
        self.beating.as_ref().is_some_and(heartbeat::Beating::has_begun)
    }

    /// Tells the kernel that the agent serves no more, ahead of its end.
    pub fn stop_beating(&mut self) {
        self.beating = None;
    }

    /// Where workers take the flows of accepted connections from.
    pub fn flow_source(&self) -> Arc<dyn FlowSource> {
        self.flows.clone()
    }

    /// Makes the kernel capture exactly `desired`, and publishes the VIP table that goes with it: a
    /// VIP is known to the agent before the kernel sends anybody there, and until after it stopped.
    /// Flows under way are not touched.
    ///
    /// While names are unresolved (`complete` is false) what a former agent captured stays captured.
    ///
    /// # Errors
    /// When VIPs or map entries run out, or the kernel refuses. What could be done was done: all
    /// that was captured and is still desired stays captured, and the table agrees with the kernel.
    pub fn sync(&mut self, desired: &Desired) -> Result<(), CaptureError> {
        self.hung.qos.refresh()?;
        // What is not captured yet is not guarded yet, and the other way round.
        let captured = self.destinations.sync(desired);
        let guarded = match &mut self.guard {
            Some(guard) => guard.set(&self.destinations.strict_for_all().collect::<Vec<_>>()),
            None => Ok(()),
        };
        if let Some(older) = &mut self.older {
            older.strict_now(&self.hung.cgroup.path, self.destinations.strict_for_all().collect());
        }
        captured.and(guarded)
    }

    /// Whether the kernel can keep what these strict routes promise.
    ///
    /// # Errors
    /// [`CaptureError::GuardImpossible`], with the routes' names and what to do.
    pub fn can_keep(&self, strict: &[&str]) -> Result<(), CaptureError> {
        self.guard.as_ref().map_or(Ok(()), |guard| guard.require(strict))
    }

    /// Whether everybody whom the kernel redirects can be served: a former agent's destinations are not known
    /// before the first [`Capture::sync`], nor, where they are names, before these have resolved.
    pub fn knows_all_destinations(&self) -> bool {
        self.destinations.all_known()
    }

    /// Tells the kernel which pods there are, for routes that override their enforcement for some.
    ///
    /// # Errors
    /// When map entries run out, or the kernel refuses.
    pub fn set_pods(&mut self, pods: Vec<PodFacts>) -> Result<(), CaptureError> {
        self.destinations.set_pods(pods)
    }

    /// Looks whether the programs are still where the pods are. Cheap; to be called every second or so.
    ///
    /// # Errors
    /// [`CaptureError::CgroupReplaced`]: nothing is captured any more until [`Capture::hang_anew`]
    /// succeeds. Any other error says only that it could not be told.
    pub fn check_cgroup(&self) -> Result<(), CaptureError> {
        self.hung.cgroup.still_there()?;
        if self.hung.attachment.is_on(&self.hung.cgroup) {
            Ok(())
        } else {
            Err(CaptureError::CgroupReplaced { path: self.hung.cgroup.path.clone() })
        }
    }

    /// Attaches the programs where the pods' cgroup is now; what is known stays known.
    ///
    /// # Errors
    /// When there is no such cgroup yet, or as for [`Capture::start`]; to be tried again.
    pub fn hang_anew(&mut self) -> Result<&Path, CaptureError> {
        let node = Node::check(&self.plan)?;
        self.hung = Hung::load(&node, &self.plan, &self.lock)?.attach(&self.lock)?;
        if let Some(older) = &self.older {
            older.all_anew(&self.hung.cgroup.path);
        }
        Ok(&self.hung.cgroup.path)
    }

    /// Looks after what changes by itself: kubelet's cgroups, former agents', and flows of connections that
    /// closed without ever being accepted. To be called every half minute or so; what was closed for less
    /// than the time between two calls is never swept.
    ///
    /// # Errors
    /// When the kernel refuses to read or write a map.
    pub fn housekeep(&mut self) -> Result<(), CaptureError> {
        self.destinations.housekeep();
        self.hung.qos.refresh()?;
        self.capture_again()?;
        let swept = self.flows.sweep(&mut self.closed_flows)?;
        if swept > 0 {
            tracing::warn!(swept, "connections closed without having been accepted");
        }
        Ok(())
    }

    /// Who dialled destinations that are only observed for him, as far back as the map reaches: it outlives agents.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn observed(&self) -> Result<Vec<Dials>, CaptureError> {
        self.observed.all(&self.destinations)
    }

    /// Who dialled loose destinations while no agent answered, likewise.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn loose_direct(&self) -> Result<Vec<Dials>, CaptureError> {
        self.loose_direct.all(&self.destinations)
    }

    /// How many such dials there were of all pods together, since the programs are loaded. One call, where to ask who takes
    /// two for each.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn loose_direct_count(&self) -> Result<u64, CaptureError> {
        self.counters.verdict(Verdict::LooseDirect)
    }

    /// Where to look for connections that passed no capture. To be looked for elsewhere: it may take a while.
    pub fn looking(&self) -> Looking {
        Looking { cgroup: self.hung.cgroup.path.clone(), destinations: self.destinations.with_routes() }
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
        if let Some(older) = &self.older {
            out.single(&names::OLDER_FLOWS_DESTROYED, older.destroyed());
        }
        if let Some(guard) = &self.guard {
            let guard::Status { way, interfaces, failing } = guard.status();
            let way = way.map_or("unavailable", guard::Way::as_str);
            out.family(&names::GUARD_INTERFACES, [(&[("way", way)][..], interfaces as u64)]);
            out.single(&names::GUARD_FAILING, failing as u64);
        }
    }

    /// Ends as an agent does that nobody succeeds yet: strict destinations stay refused; where there are
    /// none, the kernel is left as it was found. `true`: enforcement stays.
    ///
    /// # Errors
    /// The first step that failed; the others were tried all the same.
    pub fn stop(self) -> Result<bool, CaptureError> {
        if self.destinations.any_strict() {
            self.leave();
            return Ok(true);
        }
        self.detach().map(|()| false)
    }

    /// Ends, and leaves everything attached. Without a heartbeat from here: loose destinations are direct.
    pub fn leave(self) {
        let Self { beating, routes, .. } = self;
        drop(beating);
        routes.keep();
    }

    /// Ends in favour of an agent that has taken over: nothing is touched any more, not even the heartbeat.
    pub fn hand_over(self) {
        let Self { beating, routes, lock, .. } = self;
        if let Some(beating) = beating {
            beating.hand_over();
        }
        routes.keep();
        lock.give_up();
    }

    /// A duplicate of the lock's descriptor, for [`Turn::inherit`].
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn lock(&self) -> io::Result<OwnedFd> {
        self.lock.duplicate()
    }

    /// No longer exempts the cgroups of former agents that have ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn capture_again(&mut self) -> Result<(), CaptureError> {
        self.exempt.prune(&self.hung.cgroup.path)
    }

    /// Puts this agent's programs back, after another one that wanted to take over had changed them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn put_back(&self) -> Result<(), CaptureError> {
        self.hung.loaded.put_back(&self.hung.attachment, &self.hung.cgroup)
    }

    /// Detaches the programs and removes pins and routes.
    ///
    /// # Errors
    /// The first step that failed; the others were tried all the same.
    pub fn detach(self) -> Result<(), CaptureError> {
        let Self { beating, hung, guard, routes, lock, .. } = self;
        drop(beating);
        hung.attachment.detach();
        let unguarded = guard.map_or(Ok(()), guard::Guard::remove);
        let removed = routes.remove();
        let cleared = lock.clear();
        unguarded.and(removed).and(cleared)
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
