//! What capture needs while it runs: attached where the pods are, swept, and told which pods there are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch::Receiver;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::capture::{Capture, CaptureError, PodFacts};
use crate::config::plan::Enforcement;
use crate::generation::Generation;
use crate::observed;
use crate::telemetry::readiness::{Pending, Readiness};
use crate::workload::{PodCgroup, Pods, WorkloadSource};

/// The running capture, shared by what looks after it; `None` once it has ended.
#[derive(Clone)]
pub struct SharedCapture(Arc<Mutex<Option<Capture>>>);

impl SharedCapture {
    /// Shares it.
    pub fn new(capture: Capture) -> Self {
        Self(Arc::new(Mutex::new(Some(capture))))
    }

    /// Has it, for a few system calls.
    pub fn lock(&self) -> MutexGuard<'_, Option<Capture>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it out for its end.
    pub fn take(&self) -> Option<Capture> {
        self.lock().take()
    }
}

/// Holds readiness down until the kernel knows that the agent serves: nothing is redirected before.
pub async fn until_serving(capture: SharedCapture, starting: Pending) {
    while capture.lock().as_ref().is_some_and(|capture| !capture.is_beating()) {
        sleep(Duration::from_millis(5)).await;
    }
    drop(starting);
}

/// How often capture looks after itself: kubelet's cgroups, flows that nobody took.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// Sweeps, until `cancel`.
pub async fn keep_house(capture: SharedCapture, cancel: CancellationToken) {
    let mut tick = interval(HOUSEKEEPING);
    while let Some(()) = next(&mut tick, &cancel).await {
        if let Some(capture) = &mut *capture.lock()
            && let Err(error) = capture.housekeep()
        {
            tracing::warn!(%error, "capture could not look after itself; trying again");
        }
    }
}

/// What [`follow_pods`] works on.
pub struct Follow {
    /// Told which pods there are, and asked who dialled observed destinations.
    pub capture: SharedCapture,
    /// Where pods are looked for.
    pub pods: Pods,
    /// Who a cgroup is.
    pub workloads: Arc<dyn WorkloadSource>,
    /// Where observations go.
    pub observed: observed::Table,
}

/// How often it is looked which pods there are: their first connections come some hundred milliseconds
/// after their cgroups, and until the kernel has heard of them the strictest holds.
const LOOK_FOR_PODS: Duration = Duration::from_millis(200);

/// Follows pods for routes that treat some otherwise, and names who dials observed destinations, until
/// `cancel`. Does nothing while the Plan asks for neither.
pub async fn follow_pods(generations: Receiver<Arc<Generation>>, follow: Follow, cancel: CancellationToken) {
    let mut tick = interval(LOOK_FOR_PODS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<(u64, Vec<PodCgroup>)> = None;
    let mut failed = false;
    while next(&mut tick, &cancel).await.is_some() {
        let generation = generations.borrow().clone();
        let plan = &*generation.plan;
        let overridden = plan.routes.iter().any(|route| !route.overrides.is_empty());
        let observing = plan.routes.iter().any(|route| route.weakest_enforcement() == Enforcement::Observe);
        if !overridden && !observing {
            continue;
        }
        let pods = match follow.pods.list() {
            Ok(pods) => (generation.number, pods),
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(
                        %error,
                        "cannot read `capture.pod_logs`: overrides hold for no pod, the strictest for all"
                    );
                }
                continue;
            }
        };
        let mut capture = follow.capture.lock();
        let Some(capture) = &mut *capture else { return };
        if observing {
            match capture.observations() {
                Ok(seen) => follow.observed.take(seen, plan, &pods.1, &*follow.workloads),
                Err(error) => tracing::warn!(%error, "cannot read who dialled observed destinations"),
            }
        }
        if overridden && told.as_ref() != Some(&pods) {
            let facts =
                |pod: &PodCgroup| PodFacts { cgroup_id: pod.cgroup_id, namespace: pod.namespace.clone() };
            match capture.set_pods(plan, pods.1.iter().map(facts).collect()) {
                Ok(()) => told = Some(pods),
                Err(error) => {
                    tracing::warn!(%error, "cannot tell the kernel which pods there are; trying again");
                }
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
        if let Some(capture) = &mut *capture.lock() {
            look(capture, &mut lost, &readiness);
        }
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
