//! Wires the rooms together, and owns the order in which they start and the one drain.
//!
//! Start: look at what the node has (nothing is touched before that), take the turn and the port, or ask the
//! running agent for them, load identities and trusts, have the programs verified, attach, serve, then
//! capture destinations as they are known. So no connection is ever redirected to a port that nobody answers
//! yet. Stop: readiness falls, listeners close, what runs may finish until the deadline. What is strict stays
//! refused, else the kernel is left as it was found; after a hand-over, as the successor has it.

mod begin;
mod drain;
mod leaving;
mod signals;
mod standing;
mod uncaptured;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch::{self, Receiver};
use tokio_util::sync::CancellationToken;

use self::begin::{Begun, STARTING};
use self::drain::Workers;
use self::signals::Signals;
use self::standing::Standing;
use crate::admin::status::Sources;
use crate::admin::{self, Listener};
use crate::capture::{Capture, Node, Prepared};
use crate::config::plan::{CaptureMode, Plan, RuntimeSocket};
use crate::generation::Generation;
use crate::handover::{self, Door, Failures, HandedOver, Predecessor};
use crate::policy::Usages;
use crate::proxy::flow::SharedVipTable;
use crate::proxy::gateway::Callers;
use crate::proxy::pulse::Pulse;
use crate::proxy::thread::{self, Parts};
use crate::proxy::worker::Surroundings;
use crate::reload::{ConfigFile, Reloader};
use crate::resolve::{Desired, NameStatus, Resolver, keep_in_step};
use crate::run_dir::Name;
use crate::tasks::Tasks;
use crate::telemetry::log::Diagnostics;
use crate::telemetry::readiness::Readiness;
use crate::telemetry::{Telemetry, names};
use crate::upkeep::{self, SharedCapture};
use crate::workload::appearing::{Noted, Watching};
use crate::workload::runtime::{self, Asking, RuntimeStatus};
use crate::workload::{CgroupWorkloads, Directory, Lookups, PodLogs, Pods, WorkloadSource};
use crate::{direct, kubernetes, memory};

/// How long the last access lines may take to be written after a drain.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Between a process' last word and its end; what takes longer is found when house is kept.
const LEAVES_ITS_CGROUP: Duration = Duration::from_millis(200);

/// How agents follow each other on a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Succession {
    /// Take over from an agent that runs already; where none does, this is an ordinary start.
    pub take_over: bool,
    /// After a hand-over do not end before being told to, or before the successor has.
    pub stay: bool,
}

/// Runs the agent until SIGTERM or SIGINT, or until a successor took over, then drains.
///
/// # Errors
/// Whatever kept it from starting, in words that say what to do. Nothing is left behind.
pub fn run(plan: Plan, file: &ConfigFile, diagnostics: Diagnostics, succession: Succession) -> Result<()> {
    signals::accept()?;
    if plan.capture.mode == CaptureMode::Off {
        raise_file_limit();
        let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return control.block_on(uncaptured::serve(plan, file, diagnostics, succession));
    }
    let node = Node::check(&plan.capture)?;
    raise_file_limit();
    // The control plane's own thread: names, files, admin. Load on the workers cannot starve it.
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(serve(plan, file, diagnostics, node, succession))
}

async fn serve(
    plan: Plan,
    file: &ConfigFile,
    diagnostics: Diagnostics,
    node: Node,
    succession: Succession,
) -> Result<()> {
    // Before anything is touched, so that a signal during the start is not lost.
    let mut signals = Signals::new()?;
    let hangup = signal(SignalKind::hangup())?;
    let since = crate::clock::now();
    let tasks = Tasks::default();
    let telemetry = Telemetry::new(&plan);
    let readiness = Readiness::new();
    let starting = readiness.pending(STARTING, "the agent is starting");
    let Begun { turn, listeners, admin, mut before } = tokio::select! {
        begun = begin::begin(&plan, &node, succession.take_over) => begun?,
        why = signals.next() => bail!("{why} during the start"),
    };
    let directory = Directory::default();
    let reloader =
        Reloader::start(file, plan, diagnostics, directory.clone(), &readiness, &telemetry, &tasks);
    let generations = reloader.generations();
    let first = generations.borrow().clone();
    let plan = first.plan.clone();
    let captured = SharedCapture::new(starting);
    let sockets = (&listeners[..], admin.as_ref(), tasks.token().child_token());
    let standing = Standing::new(&plan, &node, sockets, (&captured, &readiness))?;
    let names = Arc::<NameStatus>::default();
    tasks.spawn(follow_names(&generations, &readiness, (&telemetry, &names), &captured, &tasks)?);
    follow_pods(&plan, &directory, &generations, (&readiness, &telemetry), &tasks);

    let lookups = ask_about_pods(&plan, &directory, &telemetry, &tasks);

    let vips = SharedVipTable::new(ArcSwap::default());
    let (noted, _watching) = note_cgroups(&node, &telemetry);
    let workloads: Arc<dyn WorkloadSource> =
        Arc::new(CgroupWorkloads::new(node.mount(), node.cgroup().to_owned(), lookups, noted));
    let prepared = Prepared::load(&turn, &node, &plan.capture, &plan.strict_routes())?;
    if let Some(before) = &mut before {
        tokio::select! {
            ready = begin::until_as_ready_as(before, &readiness) => ready?,
            why = signals.next() => bail!("{why} before the take-over; the running agent goes on"),
        }
        before.pause().await.context("cannot take over from the running agent")?;
    }
    let mut capture = Capture::start(turn, prepared, &plan.capture, vips.clone())?;
    let flows = capture.flow_source();
    let mut failed: Option<anyhow::Error> = None;

    let callers = follow_callers(&plan, &telemetry, &tasks);
    let usages = Usages::default();
    usages.register(&telemetry);
    let pulses = vec![Pulse::default(); plan.workers];
    let mut workers = Workers::default();
    for (index, (listeners, gate)) in listeners.into_iter().zip(&standing.gates).enumerate() {
        let (stop, kill) = workers.tokens();
        let around = Surroundings {
            flows: flows.clone(),
            vips: vips.clone(),
            workloads: workloads.clone(),
            callers: callers.clone(),
            directory: directory.clone(),
            usages: usages.clone(),
            counters: telemetry.worker(index),
            stop,
            kill,
            first_flow_id: (index as u64) << 48 | 1,
        };
        let (generation, pulse, gate) = (first.clone(), pulses[index].clone(), gate.clone());
        let parts = Parts { index, generation, listeners, gate, pulse, around };
        match thread::spawn(parts) {
            Ok(worker) => workers.add(worker),
            Err(error) => failed = Some(error.into()),
        }
    }
    let mut pause = Duration::ZERO;
    if let Some(before) = before {
        let taken = match failed.take() {
            None => before.take().await.map_err(anyhow::Error::from),
            Some(error) => Err(error),
        };
        pause = match taken {
            Ok(pause) => pause,
            Err(error) => {
                // What is in the kernel and in the queues is the running agent's.
                capture.hand_over();
                return Err(error.context("cannot take over; the running agent goes on"));
            }
        };
        tasks.spawn(see_off(before, pause, captured.clone(), &tasks));
    }
    // Only now is anything of the running agent's changed but its programs.
    let beating = readiness.pending("heartbeat", "the workers have not answered yet");
    if failed.is_none() {
        failed = capture.beat(pulses).err().map(anyhow::Error::from);
    }
    captured.put(capture);
    if let Err(error) = captured.catch_up() {
        tracing::warn!(%error, "cannot capture all destinations yet; trying again");
        tasks.spawn(upkeep::catch_up(captured.clone(), tasks.token()));
    }
    if captured.with(|capture| capture.knows_all_destinations()) == Some(true) {
        standing.accept();
    } else {
        let gates = standing.gates.clone();
        tasks.spawn(upkeep::accept_when_known(captured.clone(), gates, tasks.token()));
    }
    telemetry.register(move |out| out.single(&names::TAKE_OVER_PAUSE, pause.as_secs_f64()));
    let counters = captured.clone();
    telemetry.register(move |out| counters.write_metrics(out));
    let direct = direct::Table::default();
    let sources = Sources {
        since,
        in_force: reloader.in_force(),
        captured: Some(captured.clone()),
        names,
        workloads: workloads.clone(),
    };
    let shown = admin::State::new(telemetry.clone(), readiness.clone(), direct.clone(), sources);
    if let Some(listener) = admin {
        tasks.spawn(admin::serve(
            Listener::Port { listener, page: plan.admin.page },
            shown.clone(),
            standing.admin.clone(),
        ));
    }

    let installation = kubernetes::Installation::new(plan.kubernetes.as_ref());
    let (mut end, mut door, mut socket) = (End::Failed, None, None);
    if failed.is_none() {
        socket = open_socket(&plan.run_dir, &shown, &tasks, standing.admin.clone());
        let keeping = captured.clone();
        // A successor that is taking over judges for itself.
        let can_keep = move |strict: &[&str]| {
            keeping.with(|capture| capture.can_keep(strict))?.err().map(|e| e.to_string())
        };
        tasks.spawn(reloader.asking(can_keep).watch(hangup, tasks.token()));
        let pods =
            Pods::new(node.cgroup().to_owned(), PodLogs(plan.capture.pod_logs.clone()), directory.clone());
        let (capture, workloads) = (captured.clone(), workloads.clone());
        let follow = upkeep::Follow { capture, pods, directory, workloads, direct };
        tasks.spawn(upkeep::follow_pods(generations.clone(), follow, tasks.token()));
        tasks.spawn(upkeep::keep_house(captured.clone(), tasks.token()));
        let counted = telemetry.clone();
        tasks.spawn(memory::give_back(move || counted.open_connections(), tasks.token()));
        tasks.spawn(upkeep::stay_attached(captured.clone(), readiness.clone(), tasks.token()));
        look_after_the_startup_taint(&plan, &readiness, &telemetry, &tasks);
        if let Some(installation) = installation.clone() {
            tasks.spawn(installation.follow(tasks.token()));
        }
        tasks.spawn(upkeep::until_serving(captured.clone(), beating));
        door = open_door(&plan);
        let failures = Failures::default();
        let counted = failures.clone();
        telemetry.register(move |out| counted.write(out));
        let busy = watch::Sender::new(false);
        let mut giving = Box::pin(give(door.as_ref(), &standing, &busy, &failures));
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            cgroup = %node.cgroup().display(),
            port = plan.capture.port,
            workers = plan.workers,
            routes = plan.routes.len(),
            "capturing"
        );
        // All branches are cancel-safe, or not polled again.
        end = tokio::select! {
            why = signals.next() => End::Asked(why),
            () = workers.any_ended() => End::WorkerEnded,
            to = &mut giving => End::HandedOver(to),
        };
        if let End::Asked(why) = end
            && *busy.borrow()
        {
            tracing::info!(why, "a successor is taking over; that comes first");
            // Of the time for the drain, because whoever asks kills when that is over.
            tokio::select! {
                to = &mut giving => end = End::HandedOver(to),
                () = until_idle(&busy) => {}
                () = tokio::time::sleep(plan.drain_deadline / 2) => {}
            }
        }
        drop(giving);
    }
    let why = end.why();
    let draining = readiness.pending("drain", format!("draining: {why}"));
    // From here on nobody is redirected: strict destinations are refused, loose ones direct. A successor's
    // heartbeat is not this agent's to stop.
    captured.with(Capture::stop_beating);
    // The duplicates of the sockets must not outlive the workers' own: the kernel would go on taking
    // connections that nobody accepts.
    drop(standing);
    if let End::HandedOver(_) = &end {
        if let Some(door) = door.take() {
            door.leave();
        }
        if let Some(socket) = socket.take() {
            socket.leave();
        }
    }
    let deadline = generations.borrow().plan.drain_deadline;
    let mut turned_away = handover::TurnedAway::default();
    let drained = async {
        tokio::select! {
            drained = workers.drain(&why, deadline) => drained,
            never = handover::turn_away(door.as_ref(), &mut turned_away) => match never {},
        }
    };
    let uninstalled = async {
        match (&end, &installation) {
            (End::Asked(_), Some(installation)) => installation.is_over().await,
            _ => false,
        }
    };
    let (drained, uninstalled) = tokio::join!(drained, uninstalled);
    tasks.end().await;
    // Before the lock goes with the capture.
    drop((door, socket));
    if let Some(capture) = captured.take() {
        leaving::leave(capture, uninstalled, &plan.capture.bpffs)?;
    }
    if !telemetry.flush(LAST_LINES) {
        tracing::warn!("the last access lines could not be written in time");
    }
    drop((draining, turned_away));
    if let End::HandedOver(to) = &end
        && succession.stay
    {
        stay(to, &mut signals).await;
    }
    failed.or(drained.err().map(anyhow::Error::from)).map_or(Ok(()), |error| Err(error.context(why)))
}

/// Why the agent ends.
enum End {
    /// It has not even begun.
    Failed,
    /// By a signal.
    Asked(&'static str),
    /// Which none does by itself.
    WorkerEnded,
    /// A successor goes on.
    HandedOver(HandedOver),
}

impl End {
    fn why(&self) -> String {
        match self {
            Self::Failed => "the start failed".into(),
            Self::Asked(signal) => (*signal).into(),
            Self::WorkerEnded => "a worker ended".into(),
            Self::HandedOver(HandedOver { to, agent, pause, .. }) => {
                let to = handover::process(to.pid);
                format!("handed over to {to} (hnp-agent {agent}) with a pause of {} ms", pause.as_millis())
            }
        }
    }
}

/// Whoever restarts what ends would have this agent take over again. So it waits for being told, or for the end
/// of its successor: then it is indeed to be restarted.
async fn stay(to: &HandedOver, signals: &mut Signals) {
    tracing::info!(successor = to.to.pid, "handed over and drained; waiting to be stopped");
    let why = tokio::select! {
        why = signals.next() => why,
        () = to.successor_ended() => "the successor has ended",
    };
    tracing::info!(why, "ending");
}

/// An agent that nobody can ask to hand over serves all the same.
fn open_door(plan: &Plan) -> Option<Door> {
    Door::open(&plan.run_dir)
        .inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            tracing::warn!(
                error,
                "no successor can take over from this agent; upgrades have to stop it first"
            );
        })
        .ok()
}

/// The socket that people ask; an agent without one serves all the same.
fn open_socket(
    run_dir: &Path,
    shown: &Arc<admin::State>,
    tasks: &Tasks,
    cancel: CancellationToken,
) -> Option<Name> {
    match admin::socket::open(run_dir) {
        Ok((socket, name)) => {
            tasks.spawn(admin::serve(Listener::Socket(socket), shown.clone(), cancel));
            Some(name)
        }
        Err(error) => {
            let path = run_dir.join(admin::socket::NAME);
            tracing::warn!(%error, path = %path.display(), "cannot listen: `status` and `flows` cannot ask this agent");
            None
        }
    }
}

async fn give(
    door: Option<&Door>,
    standing: &Standing,
    busy: &watch::Sender<bool>,
    failures: &Failures,
) -> HandedOver {
    match door {
        Some(door) => handover::give(door, standing, busy, failures).await,
        None => std::future::pending().await,
    }
}

async fn until_idle(busy: &watch::Sender<bool>) {
    // An error would mean that the sender is gone, and it is here.
    let _ = busy.subscribe().wait_for(|busy| !*busy).await;
}

/// Says that this agent took over, and looks after what its predecessor needs until that has ended.
fn see_off(
    before: Predecessor,
    pause: Duration,
    captured: SharedCapture,
    tasks: &Tasks,
) -> impl Future<Output = ()> + Send + use<> {
    let pid = before.peer().pid;
    let offer = before.offer();
    tracing::info!(
        predecessor = pid,
        version = offer.agent,
        listeners = offer.listeners,
        pause_ms = pause.as_millis() as u64,
        "took over"
    );
    let cancel = tasks.token();
    async move {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = before.ended() => tracing::info!(predecessor = pid, "the agent before this one has ended"),
        }
        // A process that ends leaves its cgroup after it has closed its sockets.
        tokio::time::sleep(LEAVES_ITS_CGROUP).await;
        if let Some(Err(error)) = captured.with(|capture| capture.capture_again()) {
            tracing::warn!(%error, "the agent before this one stays exempt from capture for now");
        }
    }
}

/// Names as they resolve, and with them what the kernel captures.
fn follow_names(
    generations: &Receiver<Arc<Generation>>,
    readiness: &Readiness,
    (telemetry, status): (&Arc<Telemetry>, &Arc<NameStatus>),
    captured: &SharedCapture,
    tasks: &Tasks,
) -> Result<impl Future<Output = ()> + Send + use<>> {
    let resolver = Resolver::new(&generations.borrow().plan.resolver)?;
    let (gauges, status) = (status.clone(), status.clone());
    telemetry.register(move |out| gauges.write(out));
    let captured = captured.clone();
    // Until the task has run, no name is pending: a successor must not take that for being ready.
    let mut unseen = Some(readiness.pending("names", "not looked at yet"));
    let apply = move |desired: Desired| {
        drop(unseen.take());
        captured.apply(desired)
    };
    Ok(keep_in_step(generations.clone(), resolver, readiness.clone(), status, apply, tasks.token()))
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

/// The labels and service accounts of the node's pods, from when a route selects by them or an issuer asks for them.
fn follow_pods(
    plan: &Plan,
    directory: &Directory,
    generations: &Receiver<Arc<Generation>>,
    (readiness, telemetry): (&Readiness, &Arc<Telemetry>),
    tasks: &Tasks,
) {
    let Some(cluster) = plan.kubernetes.clone() else { return };
    let status = Arc::new(kubernetes::PodStatus::default());
    let (shown, telemetry, readiness) = (Arc::clone(&status), telemetry.clone(), readiness.clone());
    let mut generations = generations.clone();
    let issues = |plan: &Plan| plan.routes.iter().any(|route| plan.issuer_for(route).is_some());
    let until_listed =
        || readiness.pending("service accounts", "the API server has not listed this node's pods yet");
    // From the first moment: a successor is to know what its predecessor knows before it takes over.
    let mut pending = issues(plan).then(until_listed);
    let wanted = async move {
        let wants = |generation: &Arc<Generation>| {
            issues(&generation.plan) || generation.plan.routes.iter().any(|route| route.asks_the_api())
        };
        if generations.wait_for(wants).await.is_err() {
            std::future::pending::<()>().await;
        }
        telemetry.register(move |out| shown.write(out));
        pending.take()
    };
    tasks.spawn(kubernetes::follow(cluster, wanted, directory.clone(), status, tasks.token()));
}

/// The container runtime, and who is to be asked about pods whose cgroups are seen first.
fn ask_about_pods(plan: &Plan, directory: &Directory, telemetry: &Arc<Telemetry>, tasks: &Tasks) -> Lookups {
    let (lookups, questions) = Lookups::new(directory.clone());
    let status = Arc::new(RuntimeStatus::default());
    if plan.workloads.runtime != RuntimeSocket::Off {
        let shown = Arc::clone(&status);
        telemetry.register(move |out| shown.write(out));
    }
    let (socket, logs) = (plan.workloads.runtime.clone(), PodLogs(plan.capture.pod_logs.clone()));
    let asking = Asking { socket, directory: directory.clone(), logs, status };
    tasks.spawn(runtime::follow(asking, questions, tasks.token()));
    lookups
}

/// The cgroups of pods and containers, from when they appear.
fn note_cgroups(node: &Node, telemetry: &Telemetry) -> (Arc<Noted>, Option<Watching>) {
    let noted = Arc::<Noted>::default();
    let shown = Arc::clone(&noted);
    telemetry.register(move |out| shown.write(out));
    let watching = Watching::start(node.mount(), node.cgroup().to_owned(), Arc::clone(&noted));
    let watching = watching.inspect_err(|error| tracing::warn!(%error, "cgroups cannot be watched"));
    (noted, watching.ok())
}

/// The addresses of the node's pods, where the gateway knows its callers by them.
fn follow_callers(plan: &Plan, telemetry: &Arc<Telemetry>, tasks: &Tasks) -> Callers {
    let Some(cluster) = plan.kubernetes.clone().filter(|_| plan.gateway.is_some() && plan.knows_callers())
    else {
        return Callers::nobody();
    };
    let (published, callers) = watch::channel(Arc::default());
    let status = Arc::new(kubernetes::AddressStatus::default());
    let shown = status.clone();
    telemetry.register(move |out| shown.write(out));
    tasks.spawn(kubernetes::follow_addresses(cluster, published, status, tasks.token()));
    Callers::new(callers)
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
