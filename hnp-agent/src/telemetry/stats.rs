//! What one worker counts. Only that worker writes, so the cache lines stay on its core; the scrape
//! adds the workers up.
//!
//! The label set is bounded from the start: the routes of the Plan, `-` for what never reached one,
//! and the reasons of the one table. A pod cannot make this grow.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hnp_common::Reason;

use super::access::{AccessLog, Lines};
use super::record::AccessRecord;
use crate::config::plan::{Plan, RouteIndex};

/// The route label of connections that never reached a route. No route can have this name.
pub const NO_ROUTE: &str = "-";

/// Status classes of requests: none (the client got no answer), then 1xx to 5xx.
pub const STATUS_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Upper bounds of the duration buckets in seconds; one more bucket takes the rest. From a pooled
/// request on the same network (1 ms) to the longest answers a manager's client waits for.
pub const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// The names of the routes, by index and back.
#[derive(Debug)]
pub(super) struct Routes {
    names: Vec<Arc<str>>,
    by_name: HashMap<Arc<str>, RouteIndex>,
}

impl Routes {
    pub(super) fn of(plan: &Plan) -> Self {
        let names: Vec<Arc<str>> = plan.routes.iter().map(|route| Arc::clone(&route.name)).collect();
        let by_name = names.iter().enumerate().map(|(index, name)| (Arc::clone(name), index)).collect();
        Self { names, by_name }
    }

    /// All label values, in the order of [`WorkerStats`]' rows: the routes, then [`NO_ROUTE`].
    pub(super) fn labels(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name).chain([NO_ROUTE])
    }

    /// The row of a route; names that are not in the Plan share the last row.
    fn row(&self, name: Option<&str>) -> usize {
        name.and_then(|name| self.by_name.get(name).copied()).unwrap_or(self.names.len())
    }
}

/// One worker's counters and its share of the access log.
#[derive(Debug)]
pub struct WorkerStats {
    routes: Arc<Routes>,
    pub(super) open: AtomicI64,
    pub(super) rows: Vec<Row>,
    access: Arc<AccessLog>,
    lines: Mutex<Lines>,
}

/// The counters of one route on one worker.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) connections: Vec<AtomicU64>,
    pub(super) requests: Vec<[AtomicU64; STATUS_CLASSES.len()]>,
    pub(super) bytes_up: AtomicU64,
    pub(super) bytes_down: AtomicU64,
    pub(super) request_duration: Histogram,
    pub(super) upstream_connect: Histogram,
    pub(super) dials: Vec<AtomicU64>,
    pub(super) handshakes_full: AtomicU64,
    pub(super) handshakes_resumed: AtomicU64,
    pub(super) pool_hits: AtomicU64,
    pub(super) pool_idle: AtomicI64,
    pub(super) retries: AtomicU64,
}

/// Durations, in the buckets of [`BUCKETS`] and one for the rest.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    pub(super) buckets: [AtomicU64; BUCKETS.len() + 1],
    pub(super) sum_micros: AtomicU64,
}

/// A client connection that counts as open until this is dropped.
#[derive(Debug)]
pub struct OpenConnection(Arc<WorkerStats>);

impl WorkerStats {
    pub(super) fn new(routes: Arc<Routes>, access: Arc<AccessLog>) -> Self {
        let rows = routes.labels().map(|_| Row::new()).collect();
        Self { routes, open: AtomicI64::new(0), rows, access, lines: Mutex::default() }
    }

    /// A client connection was accepted; hold the result as long as it is open.
    pub fn connection_opened(self: &Arc<Self>) -> OpenConnection {
        self.open.fetch_add(1, Relaxed);
        OpenConnection(Arc::clone(self))
    }

    /// A client connection ended that has no record of its own: an HTTP connection, whose requests
    /// have theirs. A connection that ends with a record without `http` is counted by
    /// [`Self::finish`]; do not count it twice.
    pub fn connection_ended(&self, route: Option<RouteIndex>, reason: Reason) {
        let row = route.unwrap_or(self.rows.len() - 1).min(self.rows.len() - 1);
        add(&self.rows[row].connections[position(reason)], 1);
    }

    /// A request (record with `http`) or a connection (record without) ended: counts it and writes
    /// its access line, both from the same record. Never blocks.
    pub fn finish(&self, record: &AccessRecord) {
        let row = &self.rows[self.routes.row(record.route.as_deref())];
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
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        self.access.write(record, &mut lines);
    }

    /// Hands the access lines that wait in this worker's buffer to the writer. For a timer: lines of
    /// a quiet worker must not wait until the buffer is full. Never blocks; false when the writer's
    /// queue is full and the lines stay here for now.
    pub fn flush(&self) -> bool {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        self.access.hand_over(&mut lines)
    }

    /// An attempt to connect to the route's upstream ended; [`Reason::Ok`] when TLS is up.
    pub fn upstream_dialed(&self, route: RouteIndex, reason: Reason) {
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

    /// The number of idle connections of a route changed by `change`.
    pub fn pool_idle_changed(&self, route: RouteIndex, change: i64) {
        self.rows[route].pool_idle.fetch_add(change, Relaxed);
    }

    /// A request was sent again on another connection.
    pub fn retried(&self, route: RouteIndex) {
        add(&self.rows[route].retries, 1);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl Row {
    fn new() -> Self {
        let per_reason = || Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        Self {
            connections: per_reason(),
            requests: Reason::ALL.iter().map(|_| Default::default()).collect(),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            request_duration: Histogram::default(),
            upstream_connect: Histogram::default(),
            dials: per_reason(),
            handshakes_full: AtomicU64::new(0),
            handshakes_resumed: AtomicU64::new(0),
            pool_hits: AtomicU64::new(0),
            pool_idle: AtomicI64::new(0),
            retries: AtomicU64::new(0),
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
