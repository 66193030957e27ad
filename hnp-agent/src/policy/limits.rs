//! How much of this agent one workload may have: connections at a time, new ones, handshakes and bytes a second.
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
use crate::clock::monotonic_ns;
use crate::config::plan::PerWorkload;
use crate::telemetry::{Telemetry, names};
use crate::workload::Workload;

/// More than there are workers on most nodes, so that two of them seldom want the same one.
const SHARDS: usize = 16;
/// A workload that is refused is spoken of as often as this; the metrics have every one.
const SPOKEN_OF: Duration = Duration::from_secs(10);

/// Neighbours that connect now and then are neighbours in between: in nanoseconds.
const COMES_BACK: u64 = 10_000_000_000;
/// No handshake waits for longer: a client's patience is about that, and a longer line would help nobody in it.
const QUEUE: Duration = Duration::from_secs(30);

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
    /// Workloads that have connections.
    seated: AtomicUsize,
    /// Where there is but one: when it counts as alone, CLOCK_MONOTONIC in nanoseconds.
    alone_from: AtomicU64,
    /// Bytes and handshakes a second of each workload; 0: as many as it likes. Of the generation whose number stands beside them.
    bytes_per_second: AtomicU64,
    handshakes_per_second: AtomicU64,
    generation: AtomicU64,
    /// How often a connection has waited for its bytes, and for its handshake.
    waits: AtomicU64,
    handshake_waits: AtomicU64,
}

/// What one workload uses.
#[derive(Debug, Default)]
struct Usage {
    open: AtomicUsize,
    begun: Pace,
    handshakes: Pace,
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

/// A handshake that has to wait for its time.
#[derive(Debug)]
pub struct Queued<'a> {
    seat: &'a Seat,
    /// What made it wait.
    rate: NonZeroU64,
    /// CLOCK_MONOTONIC in nanoseconds.
    due: u64,
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
        let open = seat.usage.open.fetch_add(1, Relaxed);
        if open == 0 {
            self.0.seated.fetch_add(1, Relaxed);
        }
        if open >= most {
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

    /// From now on workloads go at these rates, also on the connections that they have: what a former rate made them owe is
    /// forgotten. Does nothing where those of this generation, or a later one, hold already.
    pub fn go_by(&self, limits: &PerWorkload, generation: u64) {
        let state = &*self.0;
        if state.generation.load(Relaxed) >= generation
            || state.generation.fetch_max(generation, Relaxed) >= generation
        {
            return;
        }
        let bytes = limits.bytes_per_second.map_or(0, NonZeroU64::get);
        if state.bytes_per_second.swap(bytes, Relaxed) != bytes {
            self.forgive(|usage| &usage.bytes);
        }
        let handshakes = limits.handshakes_per_second.get();
        if state.handshakes_per_second.swap(handshakes, Relaxed) != handshakes {
            self.forgive(|usage| &usage.handshakes);
        }
    }

    fn forgive(&self, of: impl Fn(&Usage) -> &Pace) {
        for shard in 0..SHARDS {
            self.shard(shard).values().for_each(|usage| of(usage).fill());
        }
    }

    /// Forgets workloads that have no connection and owe nothing. Call it every few seconds.
    pub fn sweep(&self, now: u64) {
        for shard in 0..SHARDS {
            // Whoever else holds one is about to count a connection in: under the lock nobody begins to.
            self.shard(shard).retain(|_, usage| {
                let owes =
                    [&usage.begun, &usage.handshakes, &usage.bytes].iter().any(|pace| !pace.is_full(now));
                Arc::strong_count(usage) > 1 || owes
            });
        }
    }

    /// Shows them in the metrics: no pod is a label, there is no end of pods.
    pub fn register(&self, telemetry: &Telemetry) {
        let usages = self.clone();
        telemetry.register(move |out| {
            out.single(&names::WORKLOADS, usages.len() as u64);
            out.single(&names::WORKLOAD_WAITS, usages.waits());
            out.single(&names::WORKLOAD_HANDSHAKE_WAITS, usages.handshake_waits());
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

    /// How often a handshake has waited for its time so far.
    pub fn handshake_waits(&self) -> u64 {
        self.0.handshake_waits.load(Relaxed)
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

    /// Takes a handshake out of the workload's share. `None`: it may begin at once, as all may of a workload that has the
    /// agent to itself. `now` is CLOCK_MONOTONIC in nanoseconds, here and below.
    ///
    /// # Errors
    /// So many wait already that it would have to for more than thirty seconds.
    pub fn begin_handshake(&self, now: u64) -> Result<Option<Queued<'_>>, Refused> {
        let pace = &self.usage.handshakes;
        let Some(rate) = self.handshake_rate(now) else {
            // What it owes, it owes to nobody.
            pace.fill();
            return Ok(None);
        };
        if pace.owed(now) > QUEUE {
            let reason = Reason::WorkloadRate;
            let detail = format!(
                "the workload waits for as many handshakes as it may begin in {} s: {rate} in each \
                 (`limits.per_workload.handshakes_per_second`)",
                QUEUE.as_secs()
            );
            // Its access line says so; nobody is turned away at the door.
            return Err(Refused { reason, detail, speak: None });
        }
        let wait = pace.take(1, rate, now);
        if wait == Duration::ZERO {
            return Ok(None);
        }
        self.usages.0.handshake_waits.fetch_add(1, Relaxed);
        Ok(Some(Queued { seat: self, rate, due: now + wait.as_nanos() as u64 }))
    }

    /// `None`: no other workload has connections, or had any of late, and who is alone is in nobody's way.
    fn handshake_rate(&self, now: u64) -> Option<NonZeroU64> {
        let state = &*self.usages.0;
        let rate = NonZeroU64::new(state.handshakes_per_second.load(Relaxed))?;
        (state.seated.load(Relaxed) > 1 || now < state.alone_from.load(Relaxed)).then_some(rate)
    }
}

impl Queued<'_> {
    /// How long until it may begin; zero where what made it wait has ended.
    pub fn left(&self, now: u64) -> Duration {
        if self.seat.handshake_rate(now) != Some(self.rate) {
            return Duration::ZERO;
        }
        Duration::from_nanos(self.due.saturating_sub(now))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let state = &*self.usages.0;
        if self.usage.open.fetch_sub(1, Relaxed) == 1 && state.seated.fetch_sub(1, Relaxed) == 2 {
            state.alone_from.fetch_max(monotonic_ns().saturating_add(COMES_BACK), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limits(connections: usize, rate: Option<u64>) -> PerWorkload {
        let new_connections_per_second = rate.and_then(NonZeroU64::new);
        PerWorkload { connections, new_connections_per_second, ..free() }
    }

    fn free() -> PerWorkload {
        let handshakes_per_second = NonZeroU64::MAX;
        PerWorkload {
            connections: 100,
            new_connections_per_second: None,
            handshakes_per_second,
            bytes_per_second: None,
        }
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
        let go_by = |bytes_per_second, generation| {
            usages.go_by(&PerWorkload { bytes_per_second, ..free() }, generation);
        };
        assert_eq!(seat.rate(), None);
        let rate = NonZeroU64::new(10).unwrap();
        go_by(Some(rate), 2);
        assert_eq!(seat.rate(), Some(rate), "that of a connection from before, too");
        assert!(seat.pay(30, rate, SECOND) > Duration::ZERO);
        go_by(None, 1);
        go_by(Some(rate), 3);
        assert_eq!(
            (seat.rate(), seat.owed(SECOND)),
            (Some(rate), Duration::from_secs(2)),
            "nothing has changed"
        );
        go_by(NonZeroU64::new(20), 4);
        assert_eq!((seat.rate(), seat.owed(SECOND)), (NonZeroU64::new(20), Duration::ZERO));
        go_by(None, 5);
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

    #[test]
    fn handshakes_beyond_the_rate_wait_while_others_have_connections_or_had_of_late() {
        let usages = Usages::default();
        usages.go_by(&PerWorkload { handshakes_per_second: NonZeroU64::new(10).unwrap(), ..free() }, 1);
        // When a neighbour leaves is asked of the clock.
        let now = monotonic_ns();
        let a = usages.enter(pod("a"), &free(), now).unwrap();
        let waits = |now| a.begin_handshake(now).unwrap().map_or(Duration::ZERO, |queued| queued.left(now));
        for _ in 0..100 {
            assert_eq!(waits(now), Duration::ZERO, "alone it has all");
        }
        let another_of_its_own = usages.enter(pod("a"), &free(), now).unwrap();
        assert_eq!(waits(now), Duration::ZERO, "and is no other");
        drop(another_of_its_own);
        assert_eq!(waits(now), Duration::ZERO);
        let b = usages.enter(pod("b"), &free(), now).unwrap();
        for _ in 0..10 {
            assert_eq!(waits(now), Duration::ZERO, "a second's worth at once");
        }
        assert_eq!(waits(now), Duration::from_millis(100), "what it did alone is not held against it");
        assert_eq!(waits(now), Duration::from_millis(200));
        assert_eq!(b.begin_handshake(now).unwrap().map(|queued| queued.left(now)), None);
        let queued = a.begin_handshake(now).unwrap().unwrap();
        assert_eq!(queued.left(now), Duration::from_millis(300));
        assert_eq!(usages.handshake_waits(), 3);
        drop(b);
        assert_eq!(queued.left(now), Duration::from_millis(300), "the other one may come back");
        let later = monotonic_ns() + COMES_BACK;
        assert_eq!(queued.left(later), Duration::ZERO, "it has not");
        assert_eq!(waits(later), Duration::ZERO, "and nothing is owed any more");
        let _b = usages.enter(pod("b"), &free(), now).unwrap();
        for _ in 0..10 {
            assert_eq!(waits(now), Duration::ZERO);
        }
        assert_eq!(waits(now), Duration::from_millis(100));
        usages.go_by(&PerWorkload { handshakes_per_second: NonZeroU64::new(11).unwrap(), ..free() }, 2);
        assert_eq!(queued.left(now), Duration::ZERO, "another rate holds");
        assert_eq!(waits(now), Duration::ZERO);
    }

    #[test]
    fn the_line_for_handshakes_is_bounded() {
        let usages = Usages::default();
        usages.go_by(&PerWorkload { handshakes_per_second: NonZeroU64::new(10).unwrap(), ..free() }, 1);
        let [a, _b] = ["a", "b"].map(|uid| usages.enter(pod(uid), &free(), SECOND).unwrap());
        let begun = (0..1000).take_while(|_| a.begin_handshake(SECOND).is_ok()).count();
        assert_eq!(
            begun, 311,
            "a second's worth at once, thirty seconds' worth in line, and one that finds the end"
        );
        let refused = a.begin_handshake(SECOND).unwrap_err();
        assert_eq!(refused.reason, Reason::WorkloadRate);
        assert!(refused.detail.contains("handshakes_per_second"), "{}", refused.detail);
        assert!(a.begin_handshake(3 * SECOND).is_ok(), "who is refused holds no place");
    }
}
