//! How upstreams have been of late: what the data path saw of them, without a probe of our own.
//!
//! One [`Health`] per route and worker. A success costs one store; a failure takes a lock that nobody else
//! holds but who looks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hnp_common::Reason;
use hnp_common::reason::Side;
use serde::Serialize;

use super::record::AccessRecord;
use super::rfc3339;
use super::stats::Row;

/// What one worker has seen of a route's upstream.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The last success, in milliseconds since 1970; 0: none.
    good_ms: AtomicU64,
    failure: Mutex<Option<Failure>>,
}

#[derive(Clone, Debug)]
struct Failure {
    at: SystemTime,
    reason: Reason,
    detail: Option<String>,
}

/// How a route's upstream is doing.
#[derive(Clone, Debug, Serialize)]
pub struct UpstreamHealth {
    /// `ok`, `failing` (the last thing seen was a failure) or `unused`.
    pub state: &'static str,
    /// When it was last connected to, or answered.
    pub last_success: Option<String>,
    /// When it last failed.
    pub last_failure: Option<String>,
    /// The reason of that.
    pub last_failure_reason: Option<&'static str>,
    /// The words for it.
    pub last_failure_detail: Option<String>,
    /// Connections that wait in the pools, those of HTTP/2 without a stream included.
    pub idle: u64,
    /// Connections of HTTP/2 that are open.
    pub shared: u64,
}

/// What has ended for one reason.
#[derive(Clone, Debug, Serialize)]
pub struct ReasonCount {
    /// Its code.
    pub reason: &'static str,
    /// Requests and connections.
    pub count: u64,
}

impl Health {
    /// A request or a connection ended that used the upstream, or would have.
    pub(super) fn note(&self, record: &AccessRecord) {
        if record.upstream.is_none() {
            return;
        }
        let at = record.started + record.duration;
        match record.reason {
            Reason::Ok => self.good(at),
            // The pod's doing, the drain's, or let through to elsewhere: nothing about the upstream.
            Reason::Drained | Reason::Passthrough => {}
            reason => match reason.side() {
                Side::None | Side::Client => {}
                Side::Upstream | Side::Local => self.failed(at, reason, record.detail.clone()),
            },
        }
    }

    /// An attempt to connect to it has ended.
    pub(super) fn dialled(&self, reason: Reason) {
        match reason {
            Reason::Ok => self.good(crate::clock::now()),
            // The record that follows has the words; what is dialled ahead of use has none.
            reason => self.failed(crate::clock::now(), reason, None),
        }
    }

    fn good(&self, at: SystemTime) {
        self.good_ms.store(millis(at), Relaxed);
    }

    fn failed(&self, at: SystemTime, reason: Reason, detail: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(Failure { at, reason, detail });
    }
}

impl UpstreamHealth {
    /// Of the rows of all workers.
    pub(super) fn of<'a>(rows: impl Iterator<Item = &'a Row>) -> Self {
        let (mut good, mut failure, mut idle, mut shared) = (0, None::<Failure>, 0, 0);
        for row in rows {
            good = good.max(row.health.good_ms.load(Relaxed));
            let seen = row.health.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(seen) = seen
                && failure.as_ref().is_none_or(|latest| latest.at < seen.at)
            {
                failure = Some(seen);
            }
            idle += row.pool_idle.load(Relaxed);
            shared += row.upstream_shared.load(Relaxed);
        }
        let state = match &failure {
            Some(failure) if millis(failure.at) >= good => "failing",
            Some(_) | None if good > 0 => "ok",
            Some(_) | None => "unused",
        };
        let moment = |ms: u64| rfc3339(UNIX_EPOCH + Duration::from_millis(ms));
        Self {
            state,
            last_success: (good > 0).then(|| moment(good)),
            last_failure: failure.as_ref().map(|failure| rfc3339(failure.at)),
            last_failure_reason: failure.as_ref().map(|failure| failure.reason.code()),
            last_failure_detail: failure.and_then(|failure| failure.detail),
            idle,
            shared,
        }
    }
}

/// What has ended, the most frequent reason first; those of which there is none are left out.
pub(super) fn reasons(routes: &[(Arc<str>, Vec<Arc<Row>>)]) -> Vec<ReasonCount> {
    let rows = || routes.iter().flat_map(|(_, rows)| rows);
    let count = |position: usize| -> u64 {
        rows()
            .map(|row| {
                let requests: u64 = row.requests[position].iter().map(|count| count.load(Relaxed)).sum();
                requests + row.connections[position].load(Relaxed)
            })
            .sum()
    };
    let all = Reason::ALL.iter().enumerate();
    let counts = all.map(|(position, reason)| ReasonCount { reason: reason.code(), count: count(position) });
    let mut counts: Vec<_> = counts.filter(|row| row.count > 0).collect();
    counts.sort_by_key(|row| std::cmp::Reverse(row.count));
    counts
}

fn millis(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
