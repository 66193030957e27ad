//! Wires the rooms together, and owns the order in which they start and the one drain.
//!
//! Start: look at what the node has (nothing is touched before that), take the turn from whoever was
//! here before, take the port, load identities and trusts, attach, serve, then capture destinations as they are known. So no connection is ever
//! redirected to a port that nobody answers yet. Stop: readiness falls, listeners close, what runs may
//! finish until the deadline. What is strict stays refused; else the kernel is left as it was found.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::capture::{Capture, CaptureError, Node, Turn};
use crate::config::plan::{Enforcement, Plan};
use crate::generation::Generation;
use crate::proxy::flow::SharedVipTable;
use crate::proxy::listener;
use crate::proxy::pulse::Pulse;
use crate::proxy::thread::{self, Parts};
use crate::proxy::worker::Surroundings;
use crate::reload::{ConfigFile, Reloader};
use crate::resolve::{Desired, NameStatus, Resolver, keep_in_step};
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;
use crate::telemetry::log::Diagnostics;
use crate::telemetry::readiness::{Pending, Readiness};
use crate::upkeep::{self, SharedCapture};
use crate::workload::{CgroupWorkloads, Pods, WorkloadSource};
use crate::{kubernetes, observed};

/// How long the last access lines may take to be written after a drain.
const LAST_LINES: Duration = Duration::from_secs(2);

type WorkerThread = JoinHandle<std::io::Result<usize>>;

/// Runs the agent until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Whatever kept it from starting, in words that say what to do. Nothing is left behind.
pub fn run(plan: Plan, file: &ConfigFile, diagnostics: Diagnostics) -> Result<()> {
    accept_signals()?;
    let node = Node::check(&plan.capture)?;
    raise_file_limit();
    let port = plan.capture.port;
    // Before the port: a dead agent's programs still keep it for that agent's cgroup.
    let turn = Turn::take(&node, &plan.capture)?;
    let listeners = listener::open(port, plan.workers).with_context(|| {
        format!("cannot listen on port {port}: if something else uses it, set `capture.port` to a free port")
    })?;
    // The control plane's own thread: names, files, admin. Load on the workers cannot starve it.
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(serve(plan, file, diagnostics, node, turn, listeners))
}

async fn serve(
    plan: Plan,
    file: &ConfigFile,
    diagnostics: Diagnostics,
    node: Node,
    turn: Turn,
    listeners: Vec<listener::Listeners>,
) -> Result<()> {
    // Before anything is touched, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    let tasks = Tasks::default();
    let telemetry = Telemetry::new(&plan);
    let readiness = Readiness::new();
    let starting = readiness.pending("start", "the agent is starting");

    let reloader = Reloader::start(file, plan, diagnostics, &readiness, &telemetry, &tasks);
    let generations = reloader.generations();
    let first = generations.borrow().clone();
    let plan = first.plan.clone();
    let admin = match plan.admin.listen {
        Some(addr) => Some(admin::bind(addr).await?),
        None => None,
    };

    let vips = SharedVipTable::new(ArcSwap::default());
    let workloads: Arc<dyn WorkloadSource> =
        Arc::new(CgroupWorkloads::new(node.mount(), node.cgroup().to_owned()));
    let resolver = Resolver::new(&plan.resolver)?;
    let strict = plan.routes.iter().any(|route| route.weakest_enforcement() == Enforcement::Strict);
    let capture = Capture::start(turn, &node, &plan.capture, strict, vips.clone())?;
    let flows = capture.flow_source();
    let capture = SharedCapture::new(capture);
    let counters = capture.clone();
    telemetry.register(move |out| {
        if let Some(capture) = &*counters.lock() {
            capture.write_metrics(out);
        }
    });
    let observed = observed::Table::default();
    if let Some(listener) = admin {
        let observed = observed.clone();
        tasks.spawn(admin::serve(listener, telemetry.clone(), readiness.clone(), observed, tasks.token()));
    }

    let pulses = vec![Pulse::default(); plan.workers];
    let stop = CancellationToken::new();
    let kill = CancellationToken::new();
    let mut workers = Vec::with_capacity(plan.workers);
    let mut failed: Option<anyhow::Error> = None;
    for (index, listeners) in listeners.into_iter().enumerate() {
        let around = Surroundings {
            flows: flows.clone(),
            vips: vips.clone(),
            workloads: workloads.clone(),
            counters: telemetry.worker(index),
            // A child of its own: nothing on the data path locks what another worker locks.
            stop: stop.child_token(),
            kill: kill.child_token(),
            first_flow_id: (index as u64) << 48 | 1,
        };
        let parts =
            Parts { index, generation: first.clone(), listeners, pulse: pulses[index].clone(), around };
        match thread::spawn(parts) {
            Ok(worker) => workers.push(worker),
            Err(error) => failed = Some(error.into()),
        }
    }

    let mut why = "the start failed";
    if failed.is_none() {
        tasks.spawn(follow_names(&generations, resolver, &readiness, starting, &telemetry, &capture, &tasks));
        tasks.spawn(reloader.watch(hangup, tasks.token()));
        let pods = Pods::new(node.cgroup().to_owned(), plan.capture.pod_logs.clone());
        let follow =
            upkeep::Follow { capture: capture.clone(), pods, workloads: workloads.clone(), observed };
        tasks.spawn(upkeep::follow_pods(generations.clone(), follow, tasks.token()));
        tasks.spawn(upkeep::keep_house(capture.clone(), tasks.token()));
        tasks.spawn(upkeep::stay_attached(capture.clone(), readiness.clone(), tasks.token()));
        look_after_the_startup_taint(&plan, &readiness, &telemetry, &tasks);
        if let Some(capture) = &mut *capture.lock() {
            capture.beat(pulses)?;
        }
        let beating = readiness.pending("heartbeat", "the workers have not answered yet");
        tasks.spawn(upkeep::until_serving(capture.clone(), beating));
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            cgroup = %node.cgroup().display(),
            port = plan.capture.port,
            workers = plan.workers,
            routes = plan.routes.len(),
            "capturing"
        );
        // All branches are cancel-safe, and none is polled twice.
        why = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = any_ended(&workers) => "a worker ended",
        };
    }
    let draining = readiness.pending("drain", format!("draining: {why}"));
    // From here on nobody is redirected: strict destinations are refused, loose ones direct.
    if let Some(capture) = &mut *capture.lock() {
        capture.stop_beating();
    }
    let deadline = generations.borrow().plan.drain_deadline;
    let drained = drain(deadline, why, workers, &stop, &kill).await;
    failed = failed.or(drained.map(anyhow::Error::from));
    tasks.end().await;
    if let Some(capture) = capture.take()
        && capture.stop().context("cannot take the programs off again")?
    {
        tracing::info!(
            "strict destinations stay refused until an agent runs again; `hnp-agent cleanup` ends that"
        );
    }
    if !telemetry.flush(LAST_LINES) {
        tracing::warn!("the last access lines could not be written in time");
    }
    drop(draining);
    failed.map_or(Ok(()), |error| Err(error.context(why)))
}

/// Names as they resolve, and with them what the kernel captures. Whoever waits for `starting` waits until
/// the first destinations were applied: names that are still missing hold readiness down by themselves.
fn follow_names(
    generations: &Receiver<Arc<Generation>>,
    resolver: Resolver,
    readiness: &Readiness,
    starting: Pending,
    telemetry: &Arc<Telemetry>,
    capture: &SharedCapture,
    tasks: &Tasks,
) -> impl Future<Output = ()> + Send + use<> {
    let status = Arc::new(NameStatus::default());
    let gauges = status.clone();
    telemetry.register(move |out| gauges.write(out));
    let capture = capture.clone();
    let mut starting = Some(starting);
    let apply = move |desired: Desired| {
        capture.lock().as_mut().map_or(Ok(()), |capture| capture.sync(&desired))?;
        drop(starting.take());
        Ok::<_, CaptureError>(())
    };
    keep_in_step(generations.clone(), resolver, readiness.clone(), status, apply, tasks.token())
}

/// The node's startup taint, where the Plan names one.
fn look_after_the_startup_taint(
    plan: &Plan,
    readiness: &Readiness,
    telemetry: &Arc<Telemetry>,
    tasks: &Tasks,
) {
    let Some(cluster) = plan.kubernetes.clone().filter(|cluster| cluster.startup_taint.is_some()) else {
        return;
    };
    let status = Arc::new(kubernetes::TaintStatus::default());
    let gauges = status.clone();
    telemetry.register(move |out| gauges.write(out));
    tasks.spawn(kubernetes::take_off(cluster, readiness.clone(), status, tasks.token()));
}

/// Stops accepting, waits until the last connection ended or the deadline passed, cuts what is left.
async fn drain(
    deadline: Duration,
    why: &str,
    workers: Vec<WorkerThread>,
    stop: &CancellationToken,
    kill: &CancellationToken,
) -> Option<std::io::Error> {
    tracing::info!(why, ?deadline, "draining");
    stop.cancel();
    if tokio::time::timeout(deadline, all_ended(&workers)).await.is_err() {
        kill.cancel();
        all_ended(&workers).await;
    }
    let mut cut = 0;
    let mut failed = None;
    for worker in workers {
        match worker.join() {
            Ok(Ok(n)) => cut += n,
            Ok(Err(error)) => failed = Some(error),
            Err(_) => failed = Some(std::io::Error::other("a worker panicked; see stderr")),
        }
    }
    if cut > 0 {
        tracing::warn!(cut, ?deadline, "connections were still open at the drain's deadline and were cut");
    } else {
        tracing::info!("drained: no connection was cut");
    }
    failed
}

/// Threads have no future to wait on, and this happens once in a process's life.
const JOIN_POLL: Duration = Duration::from_millis(20);

async fn all_ended(workers: &[WorkerThread]) {
    while !workers.iter().all(JoinHandle::is_finished) {
        tokio::time::sleep(JOIN_POLL).await;
    }
}

async fn any_ended(workers: &[WorkerThread]) {
    while !workers.iter().any(JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A parent that blocks signals hands that down; an agent that cannot be told to stop would be killed
/// without a drain, and one that hears no SIGHUP would not reload. Before any thread is made, so that all have it.
fn accept_signals() -> Result<()> {
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.add(Signal::SIGINT);
    stop.add(Signal::SIGHUP);
    stop.thread_unblock().context("cannot unblock SIGTERM, SIGINT and SIGHUP")
}

/// Two descriptors per connection: the soft limit is raised to the hard one.
fn raise_file_limit() {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => {
            if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
                tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot read the limit of open files"),
    }
}
