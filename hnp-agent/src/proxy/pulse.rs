//! The sign of life of one worker, for whoever has to know that all of them answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::monotonic_ns;

/// When one worker last answered.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// To be called by the worker's own thread, a few times a second.
    pub fn beat(&self) {
        self.0.store(monotonic_ns(), Ordering::Relaxed);
    }

    /// When that last was, CLOCK_MONOTONIC in nanoseconds; 0: never.
    pub fn last_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
