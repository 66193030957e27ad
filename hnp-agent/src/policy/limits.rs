//! How much of this agent one workload may have: connections at a time, new ones a second, bytes a second.
//!
//! Connections of one pod come to every worker, so what is counted is shared by all of them: a few atomic words per
//! workload, found once per connection under one of sixteen locks, and kept by the connection for as long as it lives.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hnp_common::Reason;

use super::pace::Pace;
use crate::config::plan::PerWorkload;
use crate::telemetry::{Telemetry, names};
use crate::workload::Workload;

/// More than there are workers on most nodes, so that two of them seldom want the same one.
const SHARDS: usize = 16;
/// A workload that is refused is spoken of as often as this; the metrics have every one.
const SPOKEN_OF: Duration = Duration::from_secs(10);

/// Whose connections are counted together.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Key {
    /// A pod, by its UID: all its containers.
    Pod(Box<str>),
    /// A cgroup that is no pod's, by its id.
    Cgroup(u64),
    /// A client of the gateway who is not known to be a pod.
    Address(IpAddr),
}

impl Key {
    /// Of a captured connection.
    pub fn captured(workload: &Workload, cgroup_id: u64) -> Self {
        workload.pod_uid.as_deref().map_or(Self::Cgroup(cgroup_id), |uid| Self::Pod(uid.into()))
    }

    /// Of a client of the gateway.
    pub fn at_gateway(workload: &Workload, addr: IpAddr) -> Self {
        workload.pod_uid.as_deref().map_or(Self::Address(addr), |uid| Self::Pod(uid.into()))
    }

    fn shard(&self) -> usize {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        self.hash(&mut hasher);
        (hasher.finish() % SHARDS as u64) as usize
    }
}

/// What all workloads use at the moment. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Usages(Arc<State>);

#[derive(Debug, Default)]
struct State {
    shards: [Mutex<HashMap<Key, Arc<Usage>>>; SHARDS],
    /// Bytes a second of each workload; 0: as many as it likes. Of the generation whose number stands beside it.
    bytes_per_second: AtomicU64,
    generation: AtomicU64,
    /// How often a connection has waited for its bytes.
    waits: AtomicU64,
}

/// What one workload uses.
#[derive(Debug, Default)]
struct Usage {
    open: AtomicUsize,
    begun: Pace,
    bytes: Pace,
    /// When it was last said that it is refused, CLOCK_MONOTONIC in nanoseconds; 0: never.
    spoken_of: AtomicU64,
    refused: AtomicU64,
}

/// A connection's place among those of its workload; dropping it gives it back.
#[derive(Debug)]
pub struct Seat {
    usage: Arc<Usage>,
    usages: Usages,
}

/// Why a connection has none.
#[derive(Debug, Eq, PartialEq)]
pub struct Refused {
    /// Which limit.
    pub reason: Reason,
    /// Which limit it is, in the words of the configuration.
    pub detail: String,
    /// How many were refused since the log last spoke of this workload, with this one, where it is time to.
    pub speak: Option<u64>,
}

impl Usages {
    /// Counts a new connection in. `now` is CLOCK_MONOTONIC in nanoseconds.
    ///
    /// # Errors
    /// The workload has as many as it may have, or has begun as many.
    pub fn enter(&self, key: Key, limits: &PerWorkload, now: u64) -> Result<Seat, Refused> {
        let usage = Arc::clone(self.shard(key.shard()).entry(key).or_default());
        let seat = Seat { usage, usages: self.clone() };
        let most = limits.connections;
        let refuse = |reason, detail| Err(seat.usage.refuse(reason, detail, now));
        if seat.usage.open.fetch_add(1, Relaxed) >= most {
            let detail = format!("the workload has {most} connections (`limits.per_workload.connections`)");
            return refuse(Reason::WorkloadConnections, detail);
        }
        if let Some(rate) = limits.new_connections_per_second
            && seat.usage.begun.try_take(rate, now).is_err()
        {
            let detail = format!(
                "the workload has begun {rate} connections within a second \
                 (`limits.per_workload.new_connections_per_second`)"
            );
            return refuse(Reason::WorkloadRate, detail);
        }
        Ok(seat)
    }

    /// From now on workloads move so many bytes a second, also on the connections that they have: what the former rate
    /// made them owe is forgotten. Does nothing where that of this generation, or a later one, holds already.
    pub fn bytes_per_second(&self, rate: Option<NonZeroU64>, generation: u64) {
        let state = &*self.0;
        if state.generation.load(Relaxed) >= generation
            || state.generation.fetch_max(generation, Relaxed) >= generation
        {
            return;
        }
        let rate = rate.map_or(0, NonZeroU64::get);
        if state.bytes_per_second.swap(rate, Relaxed) != rate {
            for shard in 0..SHARDS {
                self.shard(shard).values().for_each(|usage| usage.bytes.fill());
            }
        }
    }

    /// Forgets workloads that have no connection and owe nothing. Call it every few seconds.
    pub fn sweep(&self, now: u64) {
        for shard in 0..SHARDS {
            // Whoever else holds one is about to count a connection in: under the lock nobody begins to.
            self.shard(shard).retain(|_, usage| {
                Arc::strong_count(usage) > 1 || !usage.begun.is_full(now) || !usage.bytes.is_full(now)
            });
        }
    }

    /// Shows them in the metrics: no pod is a label, there is no end of pods.
    pub fn register(&self, telemetry: &Telemetry) {
        let usages = self.clone();
        telemetry.register(move |out| {
            out.single(&names::WORKLOADS, usages.len() as u64);
            out.single(&names::WORKLOAD_WAITS, usages.waits());
        });
    }

    /// How many workloads are counted.
    pub fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.shard(shard).len()).sum()
    }

    /// None is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a connection has waited for its bytes so far.
    pub fn waits(&self) -> u64 {
        self.0.waits.load(Relaxed)
    }

    fn shard(&self, shard: usize) -> MutexGuard<'_, HashMap<Key, Arc<Usage>>> {
        self.0.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Usage {
    fn refuse(&self, reason: Reason, detail: String, now: u64) -> Refused {
        let refused = self.refused.fetch_add(1, Relaxed) + 1;
        let last = self.spoken_of.load(Relaxed);
        let is_time = last == 0 || Duration::from_nanos(now.saturating_sub(last)) >= SPOKEN_OF;
        let speaks = is_time && self.spoken_of.compare_exchange(last, now.max(1), Relaxed, Relaxed).is_ok();
        if speaks {
            self.refused.fetch_sub(refused, Relaxed);
        }
        Refused { reason, detail, speak: speaks.then_some(refused) }
    }
}

impl Seat {
    /// How many bytes a second its workload may move at the moment.
    pub fn rate(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.usages.0.bytes_per_second.load(Relaxed))
    }

    /// Takes bytes that were moved out of the workload's share; how long the connection has to wait before it
    /// moves more.
    pub fn pay(&self, bytes: usize, rate: NonZeroU64, now: u64) -> Duration {
        let wait = self.usage.bytes.take(bytes as u64, rate, now);
        if wait > Duration::ZERO {
            self.usages.0.waits.fetch_add(1, Relaxed);
        }
        wait
    }

    /// How long a connection that has moved nothing yet has to wait, for what the others of its workload have.
    pub fn owed(&self, now: u64) -> Duration {
        self.usage.bytes.owed(now)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.usage.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limits(connections: usize, rate: Option<u64>) -> PerWorkload {
        let new_connections_per_second = rate.and_then(NonZeroU64::new);
        PerWorkload { connections, new_connections_per_second, bytes_per_second: None }
    }

    fn pod(uid: &str) -> Key {
        Key::Pod(uid.into())
    }

    #[test]
    fn a_workload_has_its_places_and_takes_nobody_elses() {
        let (usages, limits) = (Usages::default(), limits(2, None));
        let held: Vec<_> = (0..2).map(|_| usages.enter(pod("a"), &limits, SECOND).unwrap()).collect();
        assert_eq!(usages.enter(pod("a"), &limits, SECOND).unwrap_err().reason, Reason::WorkloadConnections);
        for other in [pod("b"), Key::Cgroup(7), Key::Address([10, 0, 0, 1].into())] {
            assert!(usages.enter(other, &limits, SECOND).is_ok());
        }
        drop(held);
        assert!(usages.enter(pod("a"), &limits, SECOND).is_ok(), "what was refused holds no place");
    }

    #[test]
    fn new_ones_come_at_the_rate_and_count_when_they_have_ended_too() {
        let (usages, limits) = (Usages::default(), limits(100, Some(3)));
        for _ in 0..3 {
            drop(usages.enter(pod("a"), &limits, SECOND).unwrap());
        }
        assert_eq!(usages.enter(pod("a"), &limits, SECOND).unwrap_err().reason, Reason::WorkloadRate);
        assert!(usages.enter(pod("b"), &limits, SECOND).is_ok());
        assert!(usages.enter(pod("a"), &limits, SECOND + SECOND / 3 + 1).is_ok());
    }

    #[test]
    fn the_log_speaks_of_a_workload_now_and_then_and_counts_meanwhile() {
        let (usages, limits) = (Usages::default(), limits(0, None));
        let speak = |key, at| usages.enter(key, &limits, at).unwrap_err().speak;
        assert_eq!(speak(pod("a"), SECOND), Some(1));
        for _ in 0..5 {
            assert_eq!(speak(pod("a"), 2 * SECOND), None);
        }
        assert_eq!(speak(pod("b"), 2 * SECOND), Some(1));
        assert_eq!(speak(pod("a"), 11 * SECOND), Some(6));
    }

    #[test]
    fn a_rate_is_the_latest_generations_and_forgives_what_another_made_owed() {
        let usages = Usages::default();
        let seat = usages.enter(pod("a"), &limits(5, None), SECOND).unwrap();
        assert_eq!(seat.rate(), None);
        let rate = NonZeroU64::new(10).unwrap();
        usages.bytes_per_second(Some(rate), 2);
        assert_eq!(seat.rate(), Some(rate), "that of a connection from before, too");
        assert!(seat.pay(30, rate, SECOND) > Duration::ZERO);
        usages.bytes_per_second(None, 1);
        usages.bytes_per_second(Some(rate), 3);
        assert_eq!(
            (seat.rate(), seat.owed(SECOND)),
            (Some(rate), Duration::from_secs(2)),
            "nothing has changed"
        );
        usages.bytes_per_second(NonZeroU64::new(20), 4);
        assert_eq!((seat.rate(), seat.owed(SECOND)), (NonZeroU64::new(20), Duration::ZERO));
        usages.bytes_per_second(None, 5);
        assert_eq!(seat.rate(), None);
    }

    #[test]
    fn who_has_gone_and_owes_nothing_is_forgotten() {
        let (usages, paced) = (Usages::default(), limits(5, Some(1)));
        let held = usages.enter(pod("holds"), &limits(5, None), SECOND).unwrap();
        drop(usages.enter(pod("owes"), &paced, SECOND).unwrap());
        drop(usages.enter(pod("gone"), &limits(5, None), SECOND).unwrap());
        let rate = NonZeroU64::new(10).unwrap();
        let seat = usages.enter(pod("moved"), &limits(5, None), SECOND).unwrap();
        assert_eq!(seat.pay(30, rate, SECOND), Duration::from_secs(2));
        assert_eq!((seat.owed(SECOND), usages.waits()), (Duration::from_secs(2), 1));
        drop(seat);
        usages.sweep(SECOND);
        assert_eq!(usages.len(), 3);
        usages.sweep(3 * SECOND);
        assert_eq!(usages.len(), 2, "bytes are owed for longer");
        drop(held);
        usages.sweep(5 * SECOND);
        assert!(usages.is_empty());
    }
}
