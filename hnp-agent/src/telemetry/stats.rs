//! What one worker counts. Only that worker writes, so the cache lines stay on its core; the scrape
//! adds the workers up.
//!
//! The label set is bounded: the routes of the configurations since the start, `-` for what never
//! reached one, and the reasons of the one table. A pod cannot make this grow.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hnp_common::Reason;

use super::access::{AccessLog, Lines};
use super::flows::{Place, Seen};
use super::health::Health;
use super::migration::{Beginning, Migration};
use super::record::AccessRecord;
use crate::config::plan::{Plan, RouteIndex};
use crate::workload::Workload;

/// The route label of connections that never reached a route. No route can have this name.
pub const NO_ROUTE: &str = "-";

/// Status classes of requests: none (the client got no answer), then 1xx to 5xx.
pub const STATUS_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Upper bounds of the duration buckets in seconds; one more bucket takes the rest. From a pooled
/// request on the same network (1 ms) to the longest answers a manager's client waits for.
pub const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// How long a line waits for its pod's name while somebody is asked for it, and how many do on each worker.
const LINE_WAITS: Duration = Duration::from_secs(6);
const LATE_LINES: usize = 1024;

/// One worker's counters and its share of the access log, for as long as the agent runs.
///
/// A route's row is found by its name and never removed: what a reload leaves, and what it brings back,
/// goes on counting where it was.
#[derive(Debug)]
pub struct WorkerCounters {
    pub(super) open: AtomicI64,
    pub(super) none: Arc<Row>,
    rows: Mutex<Vec<(Arc<str>, Arc<Row>)>>,
    access: Arc<AccessLog>,
    lines: Mutex<Lines>,
    late: Mutex<VecDeque<(Instant, AccessRecord)>>,
    pub(super) seen: Seen,
    pub(super) migration: Migration,
}

/// A worker's counters as one generation of the configuration sees them: rows by the routes' places.
#[derive(Debug)]
pub struct WorkerStats {
    worker: Arc<WorkerCounters>,
    rows: Vec<Arc<Row>>,
    names: Vec<Arc<str>>,
    by_name: HashMap<Arc<str>, RouteIndex>,
}

/// The counters of one route on one worker.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) connections: Vec<AtomicU64>,
    /// By the places of [`Beginning::ALL`].
    pub(super) begun: [AtomicU64; Beginning::ALL.len()],
    pub(super) requests: Vec<[AtomicU64; STATUS_CLASSES.len()]>,
    pub(super) bytes_up: AtomicU64,
    pub(super) bytes_down: AtomicU64,
    pub(super) request_duration: Histogram,
    pub(super) upstream_connect: Histogram,
    pub(super) dials: Vec<AtomicU64>,
    pub(super) handshakes_full: AtomicU64,
    pub(super) handshakes_resumed: AtomicU64,
    pub(super) pool_hits: AtomicU64,
    pub(super) pool_idle: AtomicU64,
    pub(super) upstream_shared: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) outage_waits: AtomicU64,
    pub(super) health: Health,
    /// By [`PolicyDecision`], enforced and as a dry run.
    pub(super) policy: [[AtomicU64; 2]; PolicyDecision::ALL.len()],
}

/// What a policy decided, as metrics have it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PolicyDecision {
    /// The workload may use the route.
    Allow,
    /// It may not.
    Deny,
    /// It may no longer.
    Revoke,
}

impl PolicyDecision {
    pub(super) const ALL: [Self; 3] = [Self::Allow, Self::Deny, Self::Revoke];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Revoke => "revoke",
        }
    }
}

/// Durations, in the buckets of [`BUCKETS`] and one for the rest.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    pub(super) buckets: [AtomicU64; BUCKETS.len() + 1],
    pub(super) sum_micros: AtomicU64,
}

/// A client connection that counts as open until this is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    worker: Arc<WorkerCounters>,
    place: Option<Place>,
}

impl WorkerCounters {
    /// Those of one of so many workers.
    pub(super) fn new(access: Arc<AccessLog>, workers: usize) -> Self {
        let (none, rows) = (Arc::new(Row::new()), Mutex::default());
        let (lines, late) = (Mutex::default(), Mutex::default());
        let (seen, migration) = (Seen::new(workers), Migration::new(workers));
        Self { open: AtomicI64::new(0), none, rows, access, lines, late, seen, migration }
    }

    /// The view of a Plan.
    pub fn of(self: &Arc<Self>, plan: &Plan) -> WorkerStats {
        let rows = plan.routes.iter().map(|route| self.row(&route.name)).collect();
        let names: Vec<_> = plan.routes.iter().map(|route| Arc::clone(&route.name)).collect();
        let by_name = names.iter().cloned().zip(0..).collect();
        WorkerStats { worker: Arc::clone(self), rows, names, by_name }
    }

    /// The row of a route, new where there is none yet.
    pub(super) fn row(&self, name: &Arc<str>) -> Arc<Row> {
        let mut rows = self.rows();
        if let Some((_, row)) = rows.iter().find(|(known, _)| known == name) {
            return Arc::clone(row);
        }
        let row = Arc::new(Row::new());
        rows.push((Arc::clone(name), Arc::clone(&row)));
        row
    }

    /// A client connection was accepted; hold the result as long as it is open.
    pub fn connection_opened(self: &Arc<Self>) -> OpenConnection {
        self.open.fetch_add(1, Relaxed);
        OpenConnection { worker: Arc::clone(self), place: None }
    }

    /// The number of idle connections of each route, by its name.
    pub fn pool_idle(&self, count: impl Fn(&str) -> usize) {
        for (name, row) in self.rows().iter() {
            row.pool_idle.store(count(name) as u64, Relaxed);
        }
    }

    /// The number of open HTTP/2 connections to each route's upstream, by the route's name.
    pub fn upstream_shared(&self, count: impl Fn(&str) -> usize) {
        for (name, row) in self.rows().iter() {
            row.upstream_shared.store(count(name) as u64, Relaxed);
        }
    }

    /// Hands the access lines that wait in this worker's buffer to the writer. For a timer: lines of
    /// a quiet worker must not wait until the buffer is full. Never blocks; false when the writer's
    /// queue is full and the lines stay here for now.
    pub fn flush(&self) -> bool {
        self.migration.name();
        self.write_late(LINE_WAITS);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        self.access.hand_over(&mut lines)
    }

    /// Writes the lines whose pods are known by now, that have waited for so long, or that are too many.
    pub(super) fn write_late(&self, most: Duration) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if late.is_empty() {
            return;
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut surplus = late.len().saturating_sub(LATE_LINES);
        late.retain(|(since, record)| {
            let waits = surplus == 0 && record.workload.pod.is_awaited() && since.elapsed() < most;
            surplus = surplus.saturating_sub(1);
            if !waits {
                self.access.write(record, &mut lines);
            }
            waits
        });
    }

    fn rows(&self) -> MutexGuard<'_, Vec<(Arc<str>, Arc<Row>)>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkerStats {
    /// A client connection ended that has no record of its own: an HTTP connection, whose requests
    /// have theirs. A connection that ends with a record without `http` is counted by
    /// [`Self::finish`]; do not count it twice.
    pub fn connection_ended(&self, route: Option<RouteIndex>, reason: Reason) {
        let row = route.map_or(&self.worker.none, |route| &self.rows[route]);
        add(&row.connections[position(reason)], 1);
    }

    /// A captured connection has begun, on a route that is to carry it.
    pub fn begun(&self, route: RouteIndex, workload: &Arc<Workload>, with: Beginning) {
        add(&self.rows[route].begun[with as usize], 1);
        self.worker.migration.begun(&self.names[route], workload, with);
    }

    /// A workload has sent what only a strict route refuses, for this reason; `refused`: this one did.
    pub fn strict_alone(&self, route: RouteIndex, workload: &Arc<Workload>, reason: Reason, refused: bool) {
        self.worker.migration.strict_alone(&self.names[route], workload, reason, refused);
    }

    /// A request (record with `http`) or a connection (record without) ended: counts it and writes
    /// its access line, both from the same record. Never blocks.
    pub fn finish(&self, record: &AccessRecord) {
        let route = record.route.as_deref().and_then(|name| self.by_name.get(name));
        let row = route.map_or(&self.worker.none, |route| &self.rows[*route]);
        add(&row.bytes_up, record.bytes_up);
        add(&row.bytes_down, record.bytes_down);
        match &record.http {
            Some(http) => {
                add(&row.requests[position(record.reason)][status_class(http.status)], 1);
                row.request_duration.observe(record.duration);
            }
            None => add(&row.connections[position(record.reason)], 1),
        }
        if let Some(upstream) = &record.upstream
            && !upstream.reused
            && upstream.connect > Duration::ZERO
        {
            row.upstream_connect.observe(upstream.connect);
        }
        row.health.note(record);
        let worker = &self.worker;
        if worker.access.is_on() && record.workload.pod.is_awaited() {
            let mut late = worker.late.lock().unwrap_or_else(PoisonError::into_inner);
            late.push_back((Instant::now(), record.clone()));
            let too_many = late.len() > LATE_LINES;
            drop(late);
            if too_many {
                worker.write_late(LINE_WAITS);
            }
            return;
        }
        let mut lines = worker.lines.lock().unwrap_or_else(PoisonError::into_inner);
        worker.access.write(record, &mut lines);
    }

    /// Shows what is known of a record among the live flows: all of it the first time, then what its upstream is.
    pub fn shown(&self, place: Option<Place>, record: &AccessRecord) -> Place {
        self.worker.seen.shown(place, record)
    }

    /// Shows it no more. What has ended with a record is among the recent ones for a while.
    pub fn ended(&self, place: Option<Place>, record: Option<AccessRecord>) {
        self.worker.seen.ended(place, record);
    }

    /// An attempt to connect to the route's upstream ended; [`Reason::Ok`] when TLS is up.
    pub fn upstream_dialed(&self, route: RouteIndex, reason: Reason) {
        self.rows[route].health.dialled(reason);
        add(&self.rows[route].dials[position(reason)], 1);
    }

    /// A TLS handshake with the route's upstream succeeded.
    pub fn upstream_handshake(&self, route: RouteIndex, resumed: bool) {
        let row = &self.rows[route];
        add(if resumed { &row.handshakes_resumed } else { &row.handshakes_full }, 1);
    }

    /// A request found an idle connection.
    pub fn pool_hit(&self, route: RouteIndex) {
        add(&self.rows[route].pool_hits, 1);
    }

    /// How many have so far.
    pub fn pool_hits(&self, route: RouteIndex) -> u64 {
        self.rows[route].pool_hits.load(Relaxed)
    }

    /// A request or a connection has waited because the upstream could not be dialled, whatever came of it.
    pub fn outage_waited(&self, route: RouteIndex) {
        add(&self.rows[route].outage_waits, 1);
    }

    /// A route's policy decided.
    pub fn policy_decided(&self, route: RouteIndex, decision: PolicyDecision, dry_run: bool) {
        add(&self.rows[route].policy[decision as usize][usize::from(dry_run)], 1);
    }

    /// A request was sent again on another connection.
    pub fn retried(&self, route: RouteIndex) {
        add(&self.rows[route].retries, 1);
    }
}

impl OpenConnection {
    /// Shows it among the live flows from now on: `base` says whose it is.
    pub fn known(&mut self, base: &AccessRecord) {
        self.place = Some(self.worker.seen.connected(base));
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.worker.open.fetch_sub(1, Relaxed);
        if let Some(place) = self.place {
            self.worker.seen.disconnected(place);
        }
    }
}

impl Row {
    fn new() -> Self {
        let per_reason = || Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        Self {
            connections: per_reason(),
            begun: Default::default(),
            requests: Reason::ALL.iter().map(|_| Default::default()).collect(),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            request_duration: Histogram::default(),
            upstream_connect: Histogram::default(),
            dials: per_reason(),
            handshakes_full: AtomicU64::new(0),
            handshakes_resumed: AtomicU64::new(0),
            pool_hits: AtomicU64::new(0),
            pool_idle: AtomicU64::new(0),
            upstream_shared: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            outage_waits: AtomicU64::new(0),
            health: Health::default(),
            policy: Default::default(),
        }
    }
}

impl Histogram {
    fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        add(&self.buckets[bucket], 1);
        add(&self.sum_micros, u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

/// Position of a reason in [`Reason::ALL`]. Numbers have gaps, so they are mapped once.
fn position(reason: Reason) -> usize {
    const POSITIONS: [u8; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < Reason::ALL.len() {
            table[Reason::ALL[i].number() as usize] = i as u8;
            i += 1;
        }
        table
    };
    usize::from(POSITIONS[usize::from(reason.number())])
}

fn status_class(status: u16) -> usize {
    let class = usize::from(status / 100);
    if class < STATUS_CLASSES.len() { class } else { 0 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(position(*reason), index, "{reason:?}");
        }
    }

    #[test]
    fn status_classes_take_any_number() {
        for (status, class) in
            [(0, "none"), (101, "1xx"), (200, "2xx"), (599, "5xx"), (600, "none"), (65535, "none")]
        {
            assert_eq!(STATUS_CLASSES[status_class(status)], class, "{status}");
        }
    }

    #[test]
    fn buckets_grow_and_bounds_are_inclusive() {
        assert!(BUCKETS.windows(2).all(|pair| pair[0] < pair[1]));
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_micros(1001));
        histogram.observe(Duration::from_secs(61));
        let counts: Vec<u64> = histogram.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        assert_eq!((counts[0], counts[1], counts[BUCKETS.len()]), (1, 1, 1));
        assert_eq!(histogram.sum_micros.load(Relaxed), 1000 + 1001 + 61_000_000);
    }
}
