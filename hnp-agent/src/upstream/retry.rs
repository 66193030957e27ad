//! A dial that failed for a reason that may pass is repeated, until the time for connecting is over.
//!
//! A manager that restarts refuses for two or three seconds; nothing was sent to it, so nothing can be done
//! twice, whatever the method. While an upstream is known to be down, those who want it do not all dial: one
//! tries after each pause, and the others hear what came of it. Whose turn it is, is all that is shared; each
//! waits as long as its own deadline says, and no longer than its client.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hnp_common::Reason;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::{DialError, Upstreams};
use crate::backoff;
use crate::config::humane;
use crate::config::plan::{Host, Route, RouteIndex};
use crate::workload::Caller;

/// The first pause: a process that its supervisor starts again is back after some tens of milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest: so late at most is it noticed that an outage is over, and a thousand workers that wait are
/// a thousand packets a second.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Whatever the deadline, the pauses leave room for several attempts.
const PAUSES_IN_A_DEADLINE: u32 = 4;
/// How long the attempt of another one is waited for. One that takes longer is no refusal any more, and to wait
/// for all of it could be to wait for two handshakes in a row: then each tries for itself, once a second at most.
const OTHERS_ATTEMPT: Duration = Duration::from_secs(1);
/// After an outage those who waited begin within this time: a manager that has just come up is not met by all at
/// once, and many then find a connection that another one has given back.
const AFTERWARDS: Duration = Duration::from_millis(250);

/// Whether who waits for a connection has left. Asked before each attempt.
pub type HasLeft<'a> = &'a dyn Fn() -> bool;

/// One worker's upstreams that could not be dialled of late.
#[derive(Default)]
pub(super) struct Outages(RefCell<HashMap<Target, Rc<Outage>>>);

/// What is dialled. Routes share no connections, and no outages.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Target {
    route: Arc<str>,
    host: Host,
    port: u16,
    proxy: Option<Arc<str>>,
}

/// An upstream that is down, as far as is known.
struct Outage {
    failures: Cell<u32>,
    /// When the next attempt may begin.
    next: Cell<Instant>,
    /// Since when one is under way.
    trying: Cell<Option<Instant>>,
    /// What the last one failed of.
    error: RefCell<DialError>,
    /// Tells those who wait that one of these has changed.
    changed: Notify,
}

/// What is to be done now.
enum Turn {
    /// To dial; the others wait for what comes of it.
    Try(Attempt),
    /// To dial: nothing is known to be wrong, or no longer.
    Free,
    /// The time is over, or the client has left.
    Over,
}

/// The one attempt that the others wait for. Dropped, another one has its turn.
struct Attempt(Rc<Outage>);

/// One that wants a connection.
struct Patience<'a> {
    outages: &'a Outages,
    target: Target,
    end: Instant,
    has_left: HasLeft<'a>,
    /// It has waited for an outage.
    waited: bool,
    /// Called when it begins to: whoever waits may be dropped.
    on_wait: &'a dyn Fn(),
    attempts: u32,
    /// When the last of them ended.
    tried: Option<Instant>,
    /// What has gone wrong, see [`Self::note`].
    failed: Option<DialError>,
}

impl Upstreams {
    /// What `dial` makes, repeated while it fails for reasons that may pass and there is time; and how long an
    /// outage was waited out. `warm`: what may be there instead, after a wait. `dial` is told by when it must have
    /// connected.
    pub(super) async fn patiently<T>(
        &self,
        route: RouteIndex,
        caller: Caller<'_>,
        has_left: HasLeft<'_>,
        warm: impl Fn() -> Option<T>,
        dial: impl AsyncFn(Instant) -> Result<T, DialError>,
    ) -> Result<(T, Duration), DialError> {
        let dial = async |end| self.rota().run(caller.likely_pod(), dial(end)).await;
        let plan = &self.plan().routes[route];
        let (started, whole) = (Instant::now(), deadline(plan));
        let mut patience = Patience {
            outages: &self.shared.outages,
            target: Target::of(plan),
            end: started + whole,
            has_left,
            waited: false,
            on_wait: &|| self.stats.outage_waited(route),
            attempts: 0,
            tried: None,
            failed: None,
        };
        let made = patience.make(whole, warm, dial).await;
        if !patience.waited {
            return made.map(|(made, _)| (made, Duration::ZERO));
        }
        made.map(|(made, since)| (made, since.duration_since(started))).map_err(|error| {
            let outage = started.elapsed();
            let (times, all) = (patience.attempts, humane(Duration::from_millis(outage.as_millis() as u64)));
            let detail = format!("{}; {times} attempts in {all}", error.detail);
            DialError { detail, outage, ..error }
        })
    }
}

impl Patience<'_> {
    /// What was made, and when that began.
    async fn make<T>(
        &mut self,
        whole: Duration,
        warm: impl Fn() -> Option<T>,
        dial: impl AsyncFn(Instant) -> Result<T, DialError>,
    ) -> Result<(T, Instant), DialError> {
        loop {
            let turn = self.turn().await;
            if self.waited
                && let Some(found) = warm()
            {
                return Ok((found, Instant::now()));
            }
            let attempt = match turn {
                Turn::Try(attempt) => Some(attempt),
                Turn::Free => {
                    if self.waited {
                        let left = self.end.saturating_duration_since(Instant::now());
                        sleep(backoff::spread(AFTERWARDS.min(left / 2))).await;
                        if let Some(found) = warm() {
                            return Ok((found, Instant::now()));
                        }
                    }
                    None
                }
                Turn::Over => return Err(self.failed.take().unwrap_or_else(|| late(whole))),
            };
            self.attempts += 1;
            let begun = Instant::now();
            let made = dial(self.end).await;
            self.tried = Some(Instant::now());
            match made {
                Ok(made) => {
                    self.outages.end(&self.target);
                    return Ok((made, begun));
                }
                Err(error) if error.passes => {
                    self.outages.failed(&self.target, attempt, &error, whole);
                    self.note(error);
                }
                Err(error) => {
                    // It is there, and has something against us: others need not wait to hear that.
                    self.outages.end(&self.target);
                    return Err(error);
                }
            }
        }
    }

    /// Waits until there is something to do.
    async fn turn(&mut self) -> Turn {
        loop {
            let now = Instant::now();
            let known = self.outages.known(&self.target, now);
            if (self.waited || self.attempts > 0) && (now >= self.end || (self.has_left)()) {
                if let Some(outage) = known {
                    self.note(outage.error.borrow().clone());
                }
                return Turn::Over;
            }
            let Some(outage) = known else { return Turn::Free };
            let until = if let Some(since) = outage.trying.get() {
                let own = self.tried.map_or(since, |tried| tried + LONGEST_PAUSE);
                let until = own.max(since + OTHERS_ATTEMPT);
                if now >= until {
                    return Turn::Free;
                }
                until.min(self.end)
            } else if now >= outage.next.get() {
                outage.trying.set(Some(now));
                return Turn::Try(Attempt(outage));
            } else if outage.next.get() >= self.end {
                // Nothing will happen before that.
                self.note(outage.error.borrow().clone());
                return Turn::Over;
            } else {
                outage.next.get()
            };
            if !std::mem::replace(&mut self.waited, true) {
                (self.on_wait)();
            }
            tokio::select! {
                () = outage.changed.notified() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// The last one counts, but an attempt for which there was little time left says nothing new.
    fn note(&mut self, error: DialError) {
        let ran_out = matches!(error.reason, Reason::UpstreamConnectTimeout | Reason::ProxyTimeout);
        if self.failed.is_none() || !ran_out {
            self.failed = Some(error);
        }
    }
}

impl Outages {
    /// The outage of a target, if there is one that anybody still knows of first hand.
    fn known(&self, target: &Target, now: Instant) -> Option<Rc<Outage>> {
        let outage = self.0.borrow().get(target)?.clone();
        (!outage.is_stale(now)).then_some(outage)
    }

    /// An attempt failed, at whose end there may be no time left for others.
    fn failed(&self, target: &Target, attempt: Option<Attempt>, error: &DialError, whole: Duration) {
        let now = Instant::now();
        let mut all = self.0.borrow_mut();
        let outage = match all.get(target) {
            Some(known) if !known.is_stale(now) => known.clone(),
            Some(_) | None => {
                let outage = Rc::new(Outage::new(error.clone(), now));
                all.insert(target.clone(), outage.clone());
                outage
            }
        };
        // Of many that began together, one counts.
        if attempt.is_some() || now >= outage.next.get() {
            let failures = outage.failures.get().saturating_add(1);
            outage.failures.set(failures);
            let longest = LONGEST_PAUSE.min(whole / PAUSES_IN_A_DEADLINE);
            outage.next.set(now + backoff::pause(FIRST_PAUSE.min(longest), longest, failures));
        }
        *outage.error.borrow_mut() = error.clone();
    }

    /// Somebody answered.
    fn end(&self, target: &Target) {
        if let Some(outage) = self.0.borrow_mut().remove(target) {
            outage.changed.notify_waiters();
        }
    }

    /// Forgets those that nobody has met for a while.
    pub(super) fn sweep(&self, now: Instant) {
        self.0.borrow_mut().retain(|_, outage| !outage.is_stale(now));
    }
}

impl Outage {
    fn new(error: DialError, now: Instant) -> Self {
        Self {
            failures: Cell::new(0),
            next: Cell::new(now),
            trying: Cell::new(None),
            error: RefCell::new(error),
            changed: Notify::new(),
        }
    }

    /// Nobody has tried since: it may be long over.
    fn is_stale(&self, now: Instant) -> bool {
        self.trying.get().is_none() && now >= self.next.get() + LONGEST_PAUSE
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.trying.set(None);
        self.0.changed.notify_waiters();
    }
}

impl Target {
    fn of(route: &Route) -> Self {
        let upstream = &route.upstream;
        Self {
            route: route.name.clone(),
            host: upstream.host.clone(),
            port: upstream.port,
            proxy: route.through().map(|through| through.proxy.name.clone()),
        }
    }
}

/// How long a route's upstream may take to be connected to: the deadline of whoever is dialled.
pub(crate) fn deadline(route: &Route) -> Duration {
    route.through().map_or(route.timeouts.connect, |through| through.proxy.timeouts.connect)
}

/// Only others have tried, and are still at it.
fn late(whole: Duration) -> DialError {
    let detail = format!("no connection within {}", humane(whole));
    DialError::new(Reason::UpstreamConnectTimeout, detail, None)
}

#[cfg(test)]
mod tests;
