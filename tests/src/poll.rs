//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Polls `condition` every 10 ms until it holds, and returns how long that took.
///
/// # Panics
/// When it does not hold within `deadline`; the message names `what`.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    until(deadline, what, || condition().then_some(())).1
}

/// Polls `probe` every 10 ms until it gives a value, and returns it with the time that took.
///
/// # Panics
/// When it gives none within `deadline`; the message names `what`.
#[track_caller]
pub fn until<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> (T, Duration) {
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return (value, started.elapsed());
        }
        assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
