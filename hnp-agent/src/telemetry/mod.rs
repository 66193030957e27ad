//! Reasons, metrics, readiness and the access log. Known by all rooms, knows none.
//!
//! The data path writes to counters and buffers of its own worker only; adding up and formatting
//! for a scrape happen on the control runtime, and the access log is written by a thread of its
//! own. Nothing here can block or fail a request: what cannot be kept is dropped and counted.

mod access;
pub mod flows;
mod health;
pub mod line;
pub mod log;
pub mod metrics;
pub mod migration;
pub mod names;
pub mod readiness;
pub mod record;
pub mod stats;
mod time;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::plan::Plan;
use access::AccessLog;
pub use health::{ReasonCount, UpstreamHealth};
use line::Format;
use metrics::Provider;
use stats::{NO_ROUTE, Row, WorkerCounters};

/// The counters of all workers, the access log and what other rooms have registered.
pub struct Telemetry {
    /// Every route there has been, in the order they came.
    routes: Mutex<Vec<Arc<str>>>,
    workers: Vec<Arc<WorkerCounters>>,
    access: Arc<AccessLog>,
    providers: Mutex<Vec<Provider>>,
}

impl Telemetry {
    /// Telemetry of a whole agent; the access log goes to stdout.
    pub fn new(plan: &Plan) -> Arc<Self> {
        Self::writing_to(plan, Box::new(std::io::stdout()))
    }

    /// The same with another place for the access log.
    pub fn writing_to(plan: &Plan, out: Box<dyn std::io::Write + Send>) -> Arc<Self> {
        let format = plan.log.access.then(|| Format::from(plan.log.format));
        let access = Arc::new(AccessLog::start(format, out));
        let count = plan.workers.max(1);
        let workers = (0..count).map(|_| Arc::new(WorkerCounters::new(Arc::clone(&access), count))).collect();
        let telemetry = Self { routes: Mutex::default(), workers, access, providers: Mutex::default() };
        telemetry.add_routes(plan);
        Arc::new(telemetry)
    }

    /// Counts a Plan's routes from now on; those that are known go on where they are.
    pub fn add_routes(&self, plan: &Plan) {
        let mut routes = self.lock_routes();
        for route in &plan.routes {
            if !routes.contains(&route.name) {
                routes.push(Arc::clone(&route.name));
            }
        }
    }

    /// The counters that worker `index` writes.
    ///
    /// # Panics
    /// If the Plan has no such worker: a bug in the caller.
    pub fn worker(&self, index: usize) -> Arc<WorkerCounters> {
        Arc::clone(&self.workers[index])
    }

    /// Client connections that are open now.
    pub fn open_connections(&self) -> u64 {
        let open: i64 = self.workers.iter().map(|worker| worker.open.load(Relaxed)).sum();
        u64::try_from(open).unwrap_or(0)
    }

    /// The flows that somebody asks for, of all workers.
    pub fn flows(&self, wanted: &flows::Wanted) -> flows::Found {
        flows::find(self.workers.iter().map(|worker| &worker.seen), wanted)
    }

    /// What strict means for whom, as all workers have seen it.
    pub fn migration(&self) -> Vec<migration::Seen> {
        migration::all(self.workers.iter().map(|worker| &worker.migration))
    }

    /// How a route's upstream has been, as all workers have seen it.
    pub fn health(&self, route: &Arc<str>) -> UpstreamHealth {
        let rows: Vec<_> = self.workers.iter().map(|worker| worker.row(route)).collect();
        UpstreamHealth::of(rows.iter().map(|row| &**row))
    }

    /// How many connections and requests have ended, by reason, over all routes.
    pub fn reasons(&self) -> Vec<ReasonCount> {
        health::reasons(&self.rows())
    }

    /// Adds metrics of another room; `provider` is called at every scrape, from any thread.
    pub fn register(&self, provider: impl Fn(&mut metrics::Exposition<'_, '_>) + Send + Sync + 'static) {
        self.lock_providers().push(Arc::new(provider));
    }

    /// The text of `/metrics` (OpenMetrics 1.0; the content type is [`metrics::CONTENT_TYPE`]).
    pub fn metrics_text(self: &Arc<Self>) -> String {
        metrics::render(Arc::clone(self))
    }

    /// Hands over what the workers still hold and waits until the access log is written out.
    /// Returns false when `deadline` came first. For the end of a drain, after the workers stopped;
    /// blocks the calling thread.
    pub fn flush(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        self.workers.iter().for_each(|worker| worker.write_late(Duration::ZERO));
        loop {
            // What does not fit into the queue stays with the worker until the writer made room.
            let handed_over = self.workers.iter().filter(|worker| !worker.flush()).count() == 0;
            let written = self.access.flush(end);
            if handed_over && written || Instant::now() >= end {
                return handed_over && written;
            }
        }
    }

    /// All values of the label `route`, and for each the rows of all workers. [`NO_ROUTE`] is the last.
    fn rows(&self) -> Vec<(Arc<str>, Vec<Arc<Row>>)> {
        let routes = self.lock_routes().clone();
        let rows = |name: &Arc<str>| self.workers.iter().map(|worker| worker.row(name)).collect();
        let none = self.workers.iter().map(|worker| Arc::clone(&worker.none)).collect();
        let mut all: Vec<_> = routes.iter().map(|name| (Arc::clone(name), rows(name))).collect();
        all.push((NO_ROUTE.into(), none));
        all
    }

    fn lock_routes(&self) -> std::sync::MutexGuard<'_, Vec<Arc<str>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn providers(&self) -> Vec<Provider> {
        self.lock_providers().clone()
    }

    fn lock_providers(&self) -> std::sync::MutexGuard<'_, Vec<Provider>> {
        self.providers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `2026-11-21T03:04:05.678Z`.
pub fn rfc3339(at: std::time::SystemTime) -> String {
    let mut text = Vec::new();
    time::write_rfc3339(&mut text, at);
    String::from_utf8(text).expect("it is ASCII")
}

/// Reads what [`rfc3339`] writes, with or without a fraction of a second.
pub fn parse_rfc3339(text: &str) -> Option<std::time::SystemTime> {
    time::read_rfc3339(text)
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}
