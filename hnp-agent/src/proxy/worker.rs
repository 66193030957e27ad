//! What one worker thread shares among its connections: everything, and with no other thread.
//!
//! A [`Worker`] is one generation of it; a connection is served with that of its VIP. [`Lanes`] is the
//! thread with all its generations: it makes the next one when a connection of it arrives, and forgets
//! one when its last connection has ended.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::buffer::Stock;
use super::flow::{FlowSource, SharedVipTable, VipEntry};
use super::gateway::{Callers, STRANGERS};
use super::places::Places;
use super::police::Police;
use super::turned_away;
use crate::clock::monotonic_ns;
use crate::config::plan::Plan;
use crate::generation::Generation;
use crate::policy::Usages;
use crate::resolve::{Resolver, SettingsError};
use crate::telemetry::stats::{WorkerCounters, WorkerStats};
use crate::upstream::{Pools, Upstreams};
use crate::workload::{Directory, WorkloadSource};

/// One worker's world under one generation of the configuration.
pub struct Worker {
    /// What it serves by.
    pub generation: Arc<Generation>,
    /// Its configuration.
    pub plan: Arc<Plan>,
    /// The way to the upstreams.
    pub upstreams: Rc<Upstreams>,
    /// Who may use which route.
    pub police: Rc<Police>,
    /// Counters and access lines.
    pub stats: Rc<WorkerStats>,
    /// Blocks for bytes under way.
    pub stock: Rc<Stock>,
    /// Cancelled when the drain begins: finish what runs, begin nothing.
    pub stop: CancellationToken,
    /// Cancelled at the drain's deadline: end now.
    pub kill: CancellationToken,
}

/// What of a worker does not depend on the configuration.
pub struct Surroundings {
    /// Where flows are taken from.
    pub flows: Arc<dyn FlowSource>,
    /// What VIPs stand for.
    pub vips: SharedVipTable,
    /// Who is calling.
    pub workloads: Arc<dyn WorkloadSource>,
    /// Who asks the gateway.
    pub callers: Callers,
    /// What is known of pods.
    pub directory: Directory,
    /// What each workload uses, counted over all workers.
    pub usages: Usages,
    /// Counters and access lines.
    pub counters: Arc<WorkerCounters>,
    /// Cancelled when the drain begins.
    pub stop: CancellationToken,
    /// Cancelled at the drain's deadline.
    pub kill: CancellationToken,
    /// The first flow id: the worker's number in the upper 16 bits.
    pub first_flow_id: u64,
}

/// One worker thread.
pub struct Lanes {
    /// What of it stays.
    pub around: Surroundings,
    pools: Rc<Pools>,
    /// Who may use which route.
    pub police: Rc<Police>,
    current: RefCell<Rc<Worker>>,
    /// Those that still serve connections, or that VIPs still refer to.
    former: RefCell<Vec<Rc<Worker>>>,
    next_flow_id: Cell<u64>,
    /// Clients of the gateway that are not served.
    pub strangers: Places,
    /// Clients whose workloads have what they may have, and who are told so.
    pub told: Places,
    /// Requests over HTTP/2 under way: as many as there may be connections, each of which may have many.
    pub streams: Places,
}

/// What has become of a connection's route since it was accepted.
pub enum Since {
    /// Nothing.
    Same,
    /// It is served by these routes of this generation now.
    Changed(Rc<Worker>, VipEntry),
    /// Its destination has left the configuration.
    Gone,
}

impl Lanes {
    /// A thread that begins with a generation.
    ///
    /// # Errors
    /// The files that say how names are resolved exist and cannot be read.
    pub fn new(generation: Arc<Generation>, around: Surroundings) -> Result<Self, SettingsError> {
        let resolver = Resolver::new(&generation.plan.resolver)?;
        let pools = Rc::<Pools>::default();
        let stock = Stock::new(generation.plan.limits.buffer_bytes);
        let police = Police::new(around.directory.clone());
        let plan = &generation.plan;
        let streams = Places::new(plan.limits.connections / plan.workers);
        let first = Rc::new(worker(generation, &around, resolver, stock, (&pools, &police)));
        Ok(Self {
            pools,
            police,
            current: RefCell::new(first),
            former: RefCell::default(),
            next_flow_id: Cell::new(around.first_flow_id),
            strangers: Places::new(STRANGERS),
            told: Places::new(turned_away::TOLD),
            streams,
            around,
        })
    }

    /// A number no other connection of this agent has.
    pub fn flow_id(&self) -> u64 {
        self.next_flow_id.replace(self.next_flow_id.get() + 1)
    }

    /// The newest generation this thread has heard of.
    pub fn current(&self) -> Rc<Worker> {
        self.current.borrow().clone()
    }

    /// The worker of the newest generation that was published: what a client is served by who is known by no
    /// VIP.
    pub fn newest(&self) -> Rc<Worker> {
        match &self.around.vips.load().generation {
            Some(newest) => self.of(newest),
            None => self.current(),
        }
    }

    /// The worker of a generation: the current one, nearly always.
    pub fn of(&self, generation: &Arc<Generation>) -> Rc<Worker> {
        let current = self.current();
        if Arc::ptr_eq(&current.generation, generation) {
            return current;
        }
        let mut former = self.former.borrow_mut();
        if let Some(known) = former.iter().find(|one| Arc::ptr_eq(&one.generation, generation)) {
            return known.clone();
        }
        let plan = &generation.plan;
        let resolver = current.upstreams.resolver();
        let resolver = resolver.replaced_by(&plan.resolver).unwrap_or_else(|| resolver.clone());
        let stock = match plan.limits.buffer_bytes {
            same if same == current.plan.limits.buffer_bytes => current.stock.clone(),
            other => Stock::new(other),
        };
        let new =
            Rc::new(worker(generation.clone(), &self.around, resolver, stock, (&self.pools, &self.police)));
        if generation.number > current.generation.number {
            former.push(self.current.replace(new.clone()));
        } else {
            former.push(new.clone());
        }
        new
    }

    /// Looks whether a connection to `vip` that is served by `worker` is still served by it. One
    /// comparison where nothing was reloaded.
    pub fn since(&self, worker: &Worker, vip: IpAddr) -> Since {
        let table = self.around.vips.load();
        let Some(newest) = &table.generation else { return Since::Same };
        if Arc::ptr_eq(newest, &worker.generation) {
            return Since::Same;
        }
        match table.entries.get(&vip) {
            Some(entry) if Arc::ptr_eq(newest, &entry.generation) => {
                Since::Changed(self.of(newest), entry.clone())
            }
            Some(_) | None => Since::Gone,
        }
    }

    /// Takes back permissions that policies do not give any more, and has the connections that there are go at the newest
    /// configuration's pace. Call it a few times a second.
    pub fn look_at_policies(&self) {
        let newest = self.newest();
        self.around.usages.go_by(&newest.plan.limits.per_workload, newest.generation.number);
        self.police.look(&newest);
    }

    /// Forgets generations that nobody needs any more, and looks after the pool, with what it is to hold ahead
    /// of use. Call it every second or so.
    pub fn sweep(&self) {
        let table = self.around.vips.load();
        if let Some(newest) = &table.generation {
            self.of(newest);
        }
        let referred =
            |one: &Rc<Worker>| table.entries.values().any(|e| Arc::ptr_eq(&e.generation, &one.generation));
        self.former.borrow_mut().retain(|one| Rc::strong_count(one) > 1 || referred(one));
        let (current, former) = (self.current(), self.former.borrow());
        let all = former.iter().chain([&current]);
        self.pools.sweep(all.map(|worker| &*worker.upstreams));
        if !self.around.stop.is_cancelled() {
            current.upstreams.keep_warm();
        }
        self.around.usages.sweep(monotonic_ns());
        self.around.counters.pool_idle(|route| self.pools.idle(route));
        self.around.counters.upstream_shared(|route| self.pools.shared(route));
    }

    /// Idle upstream connections of a route.
    pub fn idle(&self, route: &str) -> usize {
        self.pools.idle(route)
    }
}

fn worker(
    generation: Arc<Generation>,
    around: &Surroundings,
    resolver: Resolver,
    stock: Rc<Stock>,
    (pools, police): (&Rc<Pools>, &Rc<Police>),
) -> Worker {
    let stats = Rc::new(around.counters.of(&generation.plan));
    let upstreams = Upstreams::new(generation.clone(), resolver, stats.clone(), pools.clone());
    Worker {
        plan: generation.plan.clone(),
        upstreams: Rc::new(upstreams),
        police: police.clone(),
        stats,
        stock,
        stop: around.stop.clone(),
        kill: around.kill.clone(),
        generation,
    }
}
