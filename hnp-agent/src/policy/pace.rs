//! How fast something may go: a token bucket in one atomic word, shared by all workers.
//!
//! The word is the moment at which the bucket is full again (GCRA, ITU-T I.371), so nothing has to refill it and nothing is
//! locked. A bucket holds one second's worth.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What a bucket holds, in nanoseconds of its rate.
const DEPTH: u64 = 1_000_000_000;

/// One bucket, full to begin with. The rate is the caller's, per second, so that it can change.
#[derive(Debug, Default)]
pub struct Pace(AtomicU64);

impl Pace {
    /// Takes one, if there is one. `now` is CLOCK_MONOTONIC in nanoseconds, here and below.
    ///
    /// # Errors
    /// There is none; how long until there is.
    pub fn try_take(&self, rate: NonZeroU64, now: u64) -> Result<(), Duration> {
        let latest = now.saturating_add(DEPTH);
        let taken = self.0.fetch_update(Relaxed, Relaxed, |full| {
            let next = full.max(now).saturating_add(cost(1, rate));
            (next <= latest).then_some(next)
        });
        match taken {
            Ok(_) => Ok(()),
            Err(full) => {
                Err(Duration::from_nanos(full.max(now).saturating_add(cost(1, rate)).saturating_sub(latest)))
            }
        }
    }

    /// Takes so many, of a bucket that may be empty; how long whoever did has to wait before he takes more. Each waits
    /// for what he took, and for all that was taken before: however many there are, together they keep the rate.
    pub fn take(&self, n: u64, rate: NonZeroU64, now: u64) -> Duration {
        let next = |full: u64| full.max(now).saturating_add(cost(n, rate));
        let full = self.0.fetch_update(Relaxed, Relaxed, |full| Some(next(full))).unwrap_or_else(|full| full);
        Duration::from_nanos(next(full).saturating_sub(now.saturating_add(DEPTH)))
    }

    /// How long it is until the bucket is no longer empty.
    pub fn owed(&self, now: u64) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed).saturating_sub(now.saturating_add(DEPTH)))
    }

    /// Makes it full: nothing is owed any more.
    pub fn fill(&self) {
        self.0.store(0, Relaxed);
    }

    /// Whether it is full: then it may be forgotten, and a new one is the same.
    pub fn is_full(&self, now: u64) -> bool {
        self.0.load(Relaxed) <= now
    }
}

fn cost(n: u64, rate: NonZeroU64) -> u64 {
    let nanos = u128::from(n) * 1_000_000_000 / u128::from(rate.get());
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(n: u64) -> NonZeroU64 {
        NonZeroU64::new(n).unwrap()
    }

    #[test]
    fn a_seconds_worth_at_once_and_then_the_rate() {
        let pace = Pace::default();
        let now = 5 * SECOND;
        for _ in 0..10 {
            assert_eq!(pace.try_take(rate(10), now), Ok(()));
        }
        assert_eq!(pace.try_take(rate(10), now), Err(Duration::from_millis(100)));
        assert_eq!(
            pace.try_take(rate(10), now),
            Err(Duration::from_millis(100)),
            "who is refused owes nothing"
        );
        assert_eq!(pace.try_take(rate(10), now + SECOND / 10), Ok(()));
        assert!(pace.try_take(rate(10), now + SECOND / 10).is_err());
        assert!(!pace.is_full(now + SECOND) && pace.is_full(now + 11 * SECOND / 10));
        for _ in 0..10 {
            assert_eq!(
                pace.try_take(rate(10), now + 100 * SECOND),
                Ok(()),
                "never more than a second's worth"
            );
        }
        assert!(pace.try_take(rate(10), now + 100 * SECOND).is_err());
    }

    #[test]
    fn however_many_take_they_keep_the_rate_together() {
        let (pace, rate) = (Pace::default(), rate(1000));
        // Ten that take 100 each time they may, for ten seconds of a clock that jumps to the next one's turn.
        let mut due = [SECOND; 10];
        let mut taken = 0;
        loop {
            let (next, now) = due.iter().copied().enumerate().min_by_key(|(_, due)| *due).unwrap();
            if now > 11 * SECOND {
                break;
            }
            taken += 100;
            due[next] = now + 1 + u64::try_from(pace.take(100, rate, now).as_nanos()).unwrap();
        }
        assert!((10_000..=12_100).contains(&taken), "{taken}: ten seconds, one at once, one block each");
        assert!(pace.owed(11 * SECOND) > Duration::ZERO && pace.owed(20 * SECOND) == Duration::ZERO);
        pace.fill();
        assert!(pace.owed(11 * SECOND) == Duration::ZERO && pace.is_full(11 * SECOND));
    }

    #[test]
    fn the_end_of_time_is_no_overflow() {
        let pace = Pace::default();
        pace.take(u64::MAX, rate(1), u64::MAX - 1);
        pace.take(u64::MAX, rate(1), u64::MAX);
        assert!(pace.try_take(rate(1), 0).is_err());
    }
}
