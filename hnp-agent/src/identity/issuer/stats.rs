//! What issuing has come to, and what it cost.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

/// Counted over all generations of an intermediate.
#[derive(Debug, Default)]
pub struct Stats {
    minted: AtomicU64,
    failures: AtomicU64,
    /// Microseconds of CPU.
    cost: AtomicU64,
}

impl Stats {
    /// Certificates that were made.
    pub fn minted(&self) -> u64 {
        self.minted.load(Relaxed)
    }

    /// Attempts that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// CPU time that all attempts took.
    pub fn cost(&self) -> Duration {
        Duration::from_micros(self.cost.load(Relaxed))
    }

    /// Counts what `make` makes, and the CPU time it takes.
    pub(super) fn counted<T, E>(&self, make: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let before = cpu();
        let made = make();
        let cost = cpu().saturating_sub(before);
        self.cost.fetch_add(u64::try_from(cost.as_micros()).unwrap_or(u64::MAX), Relaxed);
        if made.is_ok() { &self.minted } else { &self.failures }.fetch_add(1, Relaxed);
        made
    }
}

/// What this thread has used.
fn cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) else { return Duration::ZERO };
    let of = |time: nix::sys::time::TimeVal| {
        Duration::new(
            u64::try_from(time.tv_sec()).unwrap_or(0),
            u32::try_from(time.tv_usec()).unwrap_or(0) * 1000,
        )
    };
    of(usage.user_time()) + of(usage.system_time())
}
