//! Routes' policies on the data path: asked before a client's first byte goes to a route's upstream, and again when the
//! configuration, or what is known of the pod, has changed.
//!
//! What was decided is the connection's, and a request on it costs one comparison. All of a worker's connections are looked
//! at together, by its housekeeping; one that lost its permission is woken, and ends what it carries with a reset.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hnp_common::Reason;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::worker::Worker;
use crate::config::plan::{LabelsBy, Plan, Policy, RouteIndex};
use crate::policy::{Decision, Subject, decide};
use crate::telemetry::stats::PolicyDecision;
use crate::workload::{Directory, Pod, Workload};

/// So many pods are named that a dry run would refuse.
const NAMED: usize = 1024;

/// Room for so many connections is not worth giving back.
const FEW: usize = 256;

/// What one worker's connections have in common of policies.
pub struct Police {
    directory: Directory,
    /// Those there are now. Each takes itself out: what a weak reference holds on to would keep the memory of a whole wave.
    all: RefCell<HashMap<u64, Weak<Standing>>>,
    next: Cell<u64>,
    /// By what everything was looked at last, and since when that generation is served.
    seen: Cell<Stamp>,
    generation_since: Cell<Option<Instant>>,
    named: RefCell<HashSet<(Arc<str>, Option<String>)>>,
}

/// What decisions depend on: the generation of the configuration, and that of what is known of pods.
type Stamp = (u64, u64);

/// A connection, or a stream of HTTP/2, before the policies. By default one that nobody looks at again.
#[derive(Default)]
pub struct Standing {
    /// Where it is known, and as what.
    home: Weak<Police>,
    place: u64,
    using: RefCell<Option<Using>>,
    revoked: RefCell<Option<String>>,
    /// Of whoever carries bytes.
    waker: RefCell<Option<Waker>>,
}

impl Drop for Standing {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            let mut all = home.all.borrow_mut();
            all.remove(&self.place);
            if all.is_empty() && all.capacity() > FEW {
                // The last of a wave: its places go with it.
                all.shrink_to(0);
            }
        }
    }
}

/// The route in use.
struct Using {
    route: Arc<str>,
    workload: Arc<Workload>,
    stamp: Stamp,
    /// By the policy, whether it is enforced or not.
    allowed: bool,
    /// What is under way was told to end.
    cut: bool,
}

/// What ends an exchange from outside.
#[derive(Clone)]
pub struct Cut {
    kill: CancellationToken,
    standing: Rc<Standing>,
}

impl Police {
    /// By what is known of pods.
    pub fn new(directory: Directory) -> Rc<Self> {
        Rc::new(Self {
            directory,
            all: RefCell::default(),
            next: Cell::new(0),
            seen: Cell::new((0, 0)),
            generation_since: Cell::new(None),
            named: RefCell::default(),
        })
    }

    /// A new connection's.
    pub fn standing(self: &Rc<Self>) -> Rc<Standing> {
        let place = self.next.get();
        self.next.set(place + 1);
        let (using, revoked, waker) = Default::default();
        let standing = Rc::new(Standing { home: Rc::downgrade(self), place, using, revoked, waker });
        self.all.borrow_mut().insert(place, Rc::downgrade(&standing));
        standing
    }

    /// Looks at what is in use again, where anything has changed; `worker` is the newest generation's. Call it a few times a
    /// second.
    pub fn look(&self, worker: &Worker) {
        let stamp = (worker.generation.number, self.directory.changes());
        if stamp == self.seen.get() {
            return;
        }
        if self.generation_since.get().is_none() || stamp.0 != self.seen.get().0 {
            self.generation_since.set(Some(Instant::now()));
        }
        // New rules may ask for what is only being listed now.
        let is_new =
            self.generation_since.get().is_some_and(|since| since.elapsed() < worker.plan.workloads.deadline);
        let mut undecided = false;
        let all: Vec<_> = self.all.borrow().values().filter_map(Weak::upgrade).collect();
        for standing in all {
            undecided |= self.look_at(&standing, worker, stamp, is_new).is_none();
        }
        self.seen.set(if undecided { (stamp.0, u64::MAX) } else { stamp });
    }

    /// `None`: it is to be looked at again.
    fn look_at(&self, standing: &Standing, worker: &Worker, stamp: Stamp, is_new: bool) -> Option<()> {
        let mut using = standing.using.borrow_mut();
        let Some(using) = &mut *using else { return Some(()) };
        let index = worker.plan.routes.iter().position(|route| route.name == using.route);
        // A route that has gone ends its connections by itself.
        let Some((index, policy)) = index.and_then(|at| Some((at, worker.plan.routes[at].policy.as_ref()?)))
        else {
            return Some(());
        };
        let decision = self.decide(&worker.plan, policy, &using.workload);
        if decision.allowed {
            (using.allowed, using.cut, using.stamp) = (true, false, stamp);
            return Some(());
        }
        if !decision.certain && is_new {
            return None;
        }
        let was_allowed = std::mem::replace(&mut using.allowed, false);
        if policy.dry_run {
            // Nothing is to end now; what is under way once it is in earnest is told then.
            using.cut = false;
            if was_allowed {
                worker.stats.policy_decided(index, PolicyDecision::Revoke, true);
                self.name(&using.route, &using.workload, decision);
            }
        } else if !std::mem::replace(&mut using.cut, true) {
            // Also what a dry run has let go on until now.
            worker.stats.policy_decided(index, PolicyDecision::Revoke, false);
            standing.revoke(decision.why.to_string());
        }
        // The next request asks anew, and hears why.
        using.stamp = if policy.dry_run { stamp } else { (0, 0) };
        Some(())
    }

    fn decide(&self, plan: &Plan, policy: &Policy, workload: &Workload) -> Decision {
        let pod = workload.pod_uid.as_deref().and_then(|uid| self.directory.of(uid));
        decide(policy, Subject::of(pod.as_deref(), plan.labels_by()))
    }

    /// The same, after waiting for what may still come.
    async fn decide_in_time(&self, plan: &Plan, policy: &Policy, workload: &Workload) -> Decision {
        let first = self.decide(plan, policy, workload);
        let Some(uid) = workload.pod_uid.as_deref() else { return first };
        let labels_by = plan.labels_by();
        // What the runtime has said under this UID may have been of another pod, until it has answered for this one's cgroup.
        let is_asked = labels_by == LabelsBy::Runtime && policy.selects() && workload.pod.is_awaited();
        if first.certain && !is_asked {
            return first;
        }
        let enough = |pod: &Pod| decide(policy, Subject::of(Some(pod), labels_by)).certain;
        let deadline = plan.workloads.deadline;
        // Whether it came or not, what is known now decides.
        match labels_by {
            LabelsBy::Api => drop(self.directory.wait_for(uid, enough, deadline).await),
            // Once the runtime has answered, or cannot, nobody has more to say.
            LabelsBy::Runtime => drop(workload.pod.wait_for(enough, deadline).await),
        }
        self.decide(plan, policy, workload)
    }

    /// Names a workload that a dry run would have refused, once.
    fn name(&self, route: &Arc<str>, workload: &Workload, decision: Decision) {
        let mut named = self.named.borrow_mut();
        if named.len() < NAMED && named.insert((Arc::clone(route), workload.pod_uid.clone())) {
            let (pod_uid, cgroup) = (&workload.pod_uid, &workload.cgroup);
            tracing::info!(%route, pod_uid, cgroup, why = %decision.why, "the policy would refuse this workload");
        }
    }
}

impl Standing {
    /// Whether the workload may use a route; waits a moment where that cannot be told yet.
    ///
    /// # Errors
    /// It may not.
    pub async fn admit(
        &self,
        worker: &Worker,
        workload: &Arc<Workload>,
        route: RouteIndex,
    ) -> Result<(), (Reason, String)> {
        let plan = &worker.plan.routes[route];
        // Where there is no policy nothing is asked that other workers share.
        let changes = || worker.police.directory.changes();
        let stamp = (worker.generation.number, plan.policy.as_ref().map_or(0, |_| changes()));
        // What was taken back between two requests and is given again since, or is only reported by now, ends none.
        self.revoked.take();
        if let Some(using) = &*self.using.borrow()
            && using.route == plan.name
            && using.stamp == stamp
        {
            return Ok(());
        }
        let allowed = match &plan.policy {
            None => true,
            Some(policy) => {
                let decision = worker.police.decide_in_time(&worker.plan, policy, workload).await;
                let counted = if decision.allowed { PolicyDecision::Allow } else { PolicyDecision::Deny };
                worker.stats.policy_decided(route, counted, policy.dry_run);
                if !decision.allowed && !policy.dry_run {
                    self.leave();
                    return Err((Reason::PolicyDenied, decision.why.to_string()));
                }
                if !decision.allowed {
                    worker.police.name(&plan.name, workload, decision);
                }
                decision.allowed
            }
        };
        // Nor does what was said meanwhile of the route before.
        self.revoked.take();
        let (route, workload) = (Arc::clone(&plan.name), Arc::clone(workload));
        *self.using.borrow_mut() = Some(Using { route, workload, stamp, allowed, cut: false });
        Ok(())
    }

    /// What follows goes where no policy holds.
    pub fn leave(&self) {
        self.using.take();
        self.revoked.take();
    }

    fn revoke(&self, why: String) {
        *self.revoked.borrow_mut() = Some(why);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Cut {
    /// What ends a client's exchanges: the drain's deadline, and its own standing. The caller's task must be woken by
    /// `kill`.
    pub fn new(kill: CancellationToken, standing: Rc<Standing>) -> Self {
        Self { kill, standing }
    }

    /// What comes of `work`, unless what it is for ends before. It is looked at first, so that what was permitted when it
    /// began, and no longer is, moves nothing.
    ///
    /// # Errors
    /// It ended, and why.
    pub async fn unless<T>(&self, work: impl Future<Output = T>) -> Result<T, (Reason, String)> {
        let mut work = pin!(work);
        poll_fn(|cx| match self.poll(cx) {
            Some(ended) => Poll::Ready(Err(ended)),
            None => work.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    /// Whether to end now, and why.
    fn poll(&self, cx: &mut Context<'_>) -> Option<(Reason, String)> {
        if self.kill.is_cancelled() {
            return Some((Reason::Drained, "cut at the drain's deadline".to_owned()));
        }
        // It stays so: whatever is tried again for the same request ends, too.
        if let Some(why) = self.standing.revoked.borrow().clone() {
            return Some((Reason::PolicyRevoked, why));
        }
        let mut waker = self.standing.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        None
    }
}
