//! What capture needs while it runs: attached where the pods are, swept, and told which pods there are.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch::Receiver;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::capture::{Capture, CaptureError, Dials, PodFacts};
use crate::config::plan::Enforcement;
use crate::direct;
use crate::generation::Generation;
use crate::proxy::gate::Gate;
use crate::resolve::Desired;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::readiness::{Pending, Readiness};
use crate::workload::{Directory, PodCgroup, Pods, WorkloadSource};

/// The running capture, shared by what looks after it.
///
/// Names may be known before there is a capture: a successor resolves them while its predecessor still
/// serves. What they resolve to is kept, and applied when the capture is there.
#[derive(Clone, Default)]
pub struct SharedCapture(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// `None`: not yet, or no more.
    capture: Option<Capture>,
    /// What came before the capture was there.
    desired: Option<Desired>,
    /// A successor may be changing it: nobody else does.
    held: bool,
    /// Dropped when the first destinations are applied.
    starting: Option<Pending>,
}

impl State {
    fn sync(&mut self, desired: &Desired) -> Result<(), CaptureError> {
        if let Some(capture) = &mut self.capture {
            capture.sync(desired)?;
            self.starting = None;
        }
        Ok(())
    }
}

impl SharedCapture {
    /// None yet. `starting` ends when the first destinations are applied.
    pub fn new(starting: Pending) -> Self {
        Self(Arc::new(Mutex::new(State { starting: Some(starting), ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on it, for a few system calls; `None`: there is none, or a successor may be changing it.
    pub fn with<T>(&self, work: impl FnOnce(&mut Capture) -> T) -> Option<T> {
        let mut state = self.state();
        if state.held { None } else { state.capture.as_mut().map(work) }
    }

    /// The capture is there.
    pub fn put(&self, capture: Capture) {
        self.state().capture = Some(capture);
    }

    /// Applies what came before the capture was there.
    ///
    /// # Errors
    /// As [`Capture::sync`]; to be tried again.
    pub fn catch_up(&self) -> Result<(), CaptureError> {
        let mut state = self.state();
        if let Some(desired) = state.desired.clone() {
            state.sync(&desired)?;
            state.desired = None;
        }
        Ok(())
    }

    /// Has the kernel capture exactly this, now or as soon as there is a capture.
    ///
    /// # Errors
    /// As [`Capture::sync`]; to be tried again.
    pub fn apply(&self, desired: Desired) -> Result<(), CaptureError> {
        let mut state = self.state();
        if state.held {
            return Err(CaptureError::HandingOver);
        }
        if state.capture.is_some() {
            state.desired = None;
            return state.sync(&desired);
        }
        state.desired = Some(desired);
        Ok(())
    }

    /// Nothing is changed in the kernel until [`Self::release`].
    pub fn hold(&self) {
        self.state().held = true;
    }

    /// Goes on, with this agent's own programs where they were.
    pub fn release(&self) {
        let mut state = self.state();
        state.held = false;
        if let Some(Err(error)) = state.capture.as_ref().map(Capture::put_back) {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "a successor's programs stay in place");
        }
    }

    /// It is another agent's from now on: nothing is touched any more.
    pub fn hand_over(&self) {
        if let Some(capture) = self.take() {
            capture.hand_over();
        }
    }

    /// A duplicate of the lock's descriptor.
    ///
    /// # Errors
    /// When there is no capture, or descriptors run out.
    pub fn lock(&self) -> io::Result<OwnedFd> {
        self.state().capture.as_ref().ok_or(io::ErrorKind::NotFound)?.lock()
    }

    /// Writes what the kernel counts; for [`crate::telemetry::Telemetry::register`].
    pub fn write_metrics(&self, out: &mut Exposition<'_, '_>) {
        if let Some(capture) = &self.state().capture {
            capture.write_metrics(out);
        }
    }

    /// Takes it out for its end; `None`: there is none, or it is a successor's.
    pub fn take(&self) -> Option<Capture> {
        self.state().capture.take()
    }
}

/// Holds readiness down until the kernel knows that the agent serves: nothing is redirected before.
pub async fn until_serving(capture: SharedCapture, starting: Pending) {
    while capture.with(|capture| capture.is_beating()) == Some(false) {
        sleep(Duration::from_millis(5)).await;
    }
    drop(starting);
}

/// How long connections wait for names that do not resolve: literal destinations are not to suffer from a
/// name server that is silent.
const UNKNOWN: Duration = Duration::from_millis(500);

/// Lets the workers accept once every destination is known that a former agent captured, or `UNKNOWN` has
/// passed. Until then connections wait in the kernel's queues: accepted earlier, they could only be refused.
pub async fn accept_when_known(capture: SharedCapture, gates: Vec<Gate>, cancel: CancellationToken) {
    let began = Instant::now();
    let mut tick = interval(Duration::from_millis(2));
    while let Some(()) = next(&mut tick, &cancel).await {
        // Under the lock: whoever takes over closes the gates after he holds it.
        let opened = capture.with(|capture| {
            let open = capture.knows_all_destinations() || began.elapsed() >= UNKNOWN;
            if open {
                gates.iter().for_each(Gate::open);
            }
            open
        });
        // `None`: a successor's, or over; what is to become of the gates is decided elsewhere.
        if opened != Some(false) {
            return;
        }
    }
}

/// Before what could not be applied is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Applies what came before the capture was there, if that failed, until it is or `cancel`.
pub async fn catch_up(capture: SharedCapture, cancel: CancellationToken) {
    let mut tick = interval(RETRY);
    while let Some(()) = next(&mut tick, &cancel).await {
        match capture.catch_up() {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "cannot capture all destinations; trying again"),
        }
    }
}

/// How often capture looks after itself: kubelet's cgroups, flows that nobody took.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// Sweeps, until `cancel`.
pub async fn keep_house(capture: SharedCapture, cancel: CancellationToken) {
    let mut tick = interval(HOUSEKEEPING);
    while let Some(()) = next(&mut tick, &cancel).await {
        if let Some(Err(error)) = capture.with(Capture::housekeep) {
            tracing::warn!(%error, "capture could not look after itself; trying again");
        }
    }
}

/// What [`follow_pods`] works on.
pub struct Follow {
    /// Told which pods there are, and asked who goes direct.
    pub capture: SharedCapture,
    /// Where pods are looked for.
    pub pods: Pods,
    /// What is known of them.
    pub directory: Directory,
    /// Who a cgroup is.
    pub workloads: Arc<dyn WorkloadSource>,
    /// Where the answers go.
    pub direct: direct::Table,
}

/// How often it is looked which pods there are: their first connections come some hundred milliseconds
/// after their cgroups, and until the kernel has heard of them the strictest holds.
const LOOK_FOR_PODS: Duration = Duration::from_millis(200);

/// The same while the Plan treats no pod otherwise: the next one may, and until the kernel has heard of a pod that is
/// there by then, the strictest holds for it.
const LOOK_AHEAD: Duration = Duration::from_secs(1);

impl Follow {
    fn name(
        &self,
        cause: direct::Cause,
        read: impl FnOnce(&Capture) -> Result<Vec<Dials>, CaptureError>,
        pods: &[PodCgroup],
    ) {
        match self.capture.with(|capture| read(capture)).transpose() {
            Ok(None) => {}
            Ok(Some(dials)) => self.direct.take(cause, dials, pods, &*self.workloads),
            Err(error) => tracing::warn!(%error, "cannot read who goes direct"),
        }
    }
}

/// Whether it is worth asking who went direct while no agent answered: when more did, when it may be another route's now,
/// and at the start, for a while each.
#[derive(Default)]
struct Unanswered {
    /// How many did, and what the routes were then.
    known: Option<(u64, u64)>,
    until: Option<Instant>,
}

impl Unanswered {
    fn are_new(&mut self, capture: &Capture, generation: u64) -> bool {
        let before = self.known.map_or(0, |(count, _)| count);
        // If it cannot be read, so it will be said at the next scrape.
        let found = Some((capture.loose_direct_count().unwrap_or(before), generation));
        let now = Instant::now();
        if found != self.known || !capture.knows_all_destinations() {
            (self.known, self.until) = (found, Some(now + direct::ASKED));
        }
        self.until.is_some_and(|until| now < until)
    }
}

/// Follows pods for routes that treat some otherwise, now or after the next reload, and names who goes
/// direct, until `cancel`.
pub async fn follow_pods(generations: Receiver<Arc<Generation>>, follow: Follow, cancel: CancellationToken) {
    let mut tick = interval(LOOK_FOR_PODS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<(u64, Vec<PodFacts>)> = None;
    let mut failed = false;
    let mut looked: Option<Instant> = None;
    let mut unanswered = Unanswered::default();
    while next(&mut tick, &cancel).await.is_some() {
        let generation = generations.borrow().clone();
        let plan = &*generation.plan;
        let overridden = plan.routes.iter().any(|route| !route.overrides.is_empty());
        let observing = plan.routes.iter().any(|route| route.weakest_enforcement() == Enforcement::Observe);
        // What is found is told to the directory, by which policies know pods' namespaces.
        let policed = plan.routes.iter().any(|route| route.policy.is_some());
        let needed = overridden || observing || policed;
        if !needed && looked.is_some_and(|looked| looked.elapsed() < LOOK_AHEAD) {
            continue;
        }
        looked = Some(Instant::now());
        let pods = match follow.pods.list() {
            Ok(pods) => Some(pods),
            Err(error) => {
                if needed && !std::mem::replace(&mut failed, true) {
                    tracing::warn!(
                        %error,
                        "cannot read `capture.pod_logs`: overrides hold for no pod, the strictest for all"
                    );
                }
                None
            }
        };
        let known = pods.as_deref().unwrap_or_default();
        if observing {
            follow.name(direct::Cause::Observed, Capture::observed, known);
        }
        let are_new = |capture: &mut Capture| unanswered.are_new(capture, generation.number);
        if follow.capture.with(are_new).unwrap_or_default() {
            follow.name(direct::Cause::NoAgent, Capture::loose_direct, known);
        }
        let Some(pods) = pods else { continue };
        let facts = pods.into_iter().map(|pod: PodCgroup| PodFacts {
            cgroup_id: pod.cgroup_id,
            labels: pod.confirmed_labels(&follow.directory),
            namespace: pod.namespace,
        });
        let facts = (generation.number, facts.collect::<Vec<_>>());
        if told.as_ref() == Some(&facts) {
            continue;
        }
        match follow.capture.with(|capture| capture.set_pods(facts.1.clone())).transpose() {
            Ok(None) => {}
            Ok(Some(())) => told = Some(facts),
            Err(error) => {
                tracing::warn!(%error, "cannot tell the kernel which pods there are; trying again");
            }
        }
    }
}

/// How often it is looked whether the programs still hang where the pods are.
const CGROUP_CHECK: Duration = Duration::from_secs(1);

/// Notices when the pods' cgroup is removed or made again, which takes the programs off without a word,
/// and attaches them anew. Not ready in between: a link that lost its cgroup must not look healthy.
pub async fn stay_attached(capture: SharedCapture, readiness: Readiness, cancel: CancellationToken) {
    let mut tick = interval(CGROUP_CHECK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lost: Option<Pending> = None;
    while let Some(()) = next(&mut tick, &cancel).await {
        capture.with(|capture| look(capture, &mut lost, &readiness));
    }
}

fn look(capture: &mut Capture, lost: &mut Option<Pending>, readiness: &Readiness) {
    match capture.check_cgroup() {
        Ok(()) => *lost = None,
        Err(error @ CaptureError::CgroupReplaced { .. }) => {
            let first = lost.is_none();
            let pending = lost.get_or_insert_with(|| readiness.pending("capture", error.to_string()));
            if first {
                tracing::error!(%error, "attaching anew");
            }
            match capture.hang_anew() {
                Ok(cgroup) => {
                    tracing::info!(cgroup = %cgroup.display(), "attached anew");
                    *lost = None;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot attach anew yet");
                    pending
                        .because(format!("the pods' cgroup was replaced; cannot attach anew yet: {error}"));
                }
            }
        }
        Err(error) => tracing::warn!(%error, "cannot tell whether the cgroup is still there"),
    }
}

async fn next(tick: &mut tokio::time::Interval, cancel: &CancellationToken) -> Option<()> {
    tokio::select! {
        () = cancel.cancelled() => None,
        _ = tick.tick() => Some(()),
    }
}
