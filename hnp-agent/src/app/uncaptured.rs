//! The agent without capture: the gateway, the relay behind it, and nothing in the kernel.
//!
//! It needs no capability, no cgroup and no lock, so several may run on a node, each on its own addresses.
//! There is no hand-over: a queue cannot travel without the lock that says whose turn it is, and where this
//! runs, behind a Service, the next one is started beside the old one.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use hnp_common::Reason;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use super::begin::{STARTING, open_gateway};
use super::drain::Workers;
use super::signals::Signals;
use super::{LAST_LINES, Succession};
use crate::admin::Listener;
use crate::admin::status::Sources;
use crate::config::plan::Plan;
use crate::generation::Generation;
use crate::policy::Usages;
use crate::proxy::flow::{Flow, FlowSource, SharedVipTable, VipTable};
use crate::proxy::gate::Gate;
use crate::proxy::gateway::Callers;
use crate::proxy::listener;
use crate::proxy::pulse::Pulse;
use crate::proxy::thread::{self, Parts};
use crate::proxy::worker::Surroundings;
use crate::reload::{ConfigFile, Reloader};
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;
use crate::telemetry::log::Diagnostics;
use crate::telemetry::readiness::Readiness;
use crate::workload::{Directory, Workload, WorkloadSource};
use crate::{admin, direct, memory};

/// Nothing is captured.
struct Nothing;

impl FlowSource for Nothing {
    fn take(&self, _: std::net::SocketAddr, _: std::net::SocketAddr) -> Result<Flow, Reason> {
        Err(Reason::NoFlow)
    }
}

impl WorkloadSource for Nothing {
    fn identify_cgroup(&self, _: u64, _: [u64; 2]) -> Arc<Workload> {
        Arc::default()
    }
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Whatever kept it from starting.
pub(super) async fn serve(
    plan: Plan,
    file: &ConfigFile,
    diagnostics: Diagnostics,
    succession: Succession,
) -> Result<()> {
    if succession.take_over {
        bail!(
            "`--take-over` is for agents that capture: with `capture: off` start the new agent beside the old one, \
             behind the same Service, or after it has ended"
        );
    }
    let mut signals = Signals::new()?;
    let hangup = signal(SignalKind::hangup())?;
    let since = crate::clock::now();
    let tasks = Tasks::default();
    let telemetry = Telemetry::new(&plan);
    let readiness = Readiness::new();
    let starting = readiness.pending(STARTING, "the agent is starting");
    let mut listeners = listener::none(plan.workers);
    open_gateway(&plan, &mut listeners)?;
    let admin = match plan.admin.listen {
        Some(addr) => Some(admin::bind(addr).await?),
        None => None,
    };
    // Without capture nobody is attributed, and the configuration has no issuer.
    let reloader =
        Reloader::start(file, plan, diagnostics, Directory::default(), &readiness, &telemetry, &tasks);
    let generations = reloader.generations();
    let first = generations.borrow().clone();
    let plan = first.plan.clone();
    let vips = SharedVipTable::new(ArcSwap::default());
    tasks.spawn(publish(generations.clone(), vips.clone(), tasks.token()));

    let usages = Usages::default();
    usages.register(&telemetry);
    let (mut workers, mut failed) = (Workers::default(), None);
    for (index, listeners) in listeners.into_iter().enumerate() {
        let (stop, kill) = workers.tokens();
        let around = Surroundings {
            flows: Arc::new(Nothing),
            vips: vips.clone(),
            workloads: Arc::new(Nothing),
            callers: Callers::nobody(),
            directory: Directory::default(),
            usages: usages.clone(),
            counters: telemetry.worker(index),
            stop,
            kill,
            first_flow_id: (index as u64) << 48 | 1,
        };
        let (generation, pulse, gate) = (first.clone(), Pulse::default(), Gate::new(true));
        match thread::spawn(Parts { index, generation, listeners, gate, pulse, around }) {
            Ok(worker) => workers.add(worker),
            Err(error) => failed = Some(error),
        }
    }
    let sources = Sources {
        since,
        in_force: reloader.in_force(),
        captured: None,
        names: Arc::default(),
        workloads: Arc::new(Nothing),
    };
    let shown = admin::State::new(telemetry.clone(), readiness.clone(), direct::Table::default(), sources);
    if let Some(listener) = admin {
        tasks.spawn(admin::serve(
            Listener::Port { listener, page: plan.admin.page },
            shown.clone(),
            tasks.token(),
        ));
    }
    // Several may run on a node, and whoever runs without privileges can make no directory below /run: where there is
    // one, it was made for this.
    let socket = if plan.run_dir.is_dir() {
        super::open_socket(&plan.run_dir, &shown, &tasks, tasks.token())
    } else {
        None
    };
    let why = if failed.is_none() {
        tasks.spawn(reloader.watch(hangup, tasks.token()));
        let counted = telemetry.clone();
        tasks.spawn(memory::give_back(move || counted.open_connections(), tasks.token()));
        drop(starting);
        let listen: Vec<String> =
            plan.gateway.iter().flat_map(|gateway| &gateway.listen).map(ToString::to_string).collect();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = listen.join(", "),
            workers = plan.workers,
            routes = plan.routes.len(),
            "serving the gateway; nothing is captured"
        );
        // Both branches are cancel-safe.
        tokio::select! {
            why = signals.next() => why,
            () = workers.any_ended() => "a worker ended",
        }
    } else {
        "the start failed"
    };
    let draining = readiness.pending("drain", format!("draining: {why}"));
    let deadline = generations.borrow().plan.drain_deadline;
    let drained = workers.drain(why, deadline).await;
    tasks.end().await;
    drop(socket);
    if !telemetry.flush(LAST_LINES) {
        tracing::warn!("the last access lines could not be written in time");
    }
    drop(draining);
    failed.map_or(drained, Err).context(why)
}

/// Tells the workers of each generation, which capture does otherwise.
async fn publish(
    mut generations: Receiver<Arc<Generation>>,
    vips: SharedVipTable,
    cancel: CancellationToken,
) {
    loop {
        let generation = Some(generations.borrow_and_update().clone());
        vips.store(Arc::new(VipTable { generation, ..VipTable::default() }));
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = generations.changed() => if changed.is_err() { return },
        }
    }
}
