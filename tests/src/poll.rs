//! Waiting for a condition, never for a time.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Names how many times longer than written every deadline of the kit is: a whole number, 1 without it.
/// An emulated processor needs it.
pub const PATIENCE: &str = "HNP_TEST_PATIENCE";

/// A deadline on this machine. [`eventually`] and [`until`] ask it themselves.
///
/// # Panics
/// When the variable holds anything but a number.
pub fn patience(deadline: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match std::env::var(PATIENCE) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{PATIENCE}={text:?} is no whole number")),
        Err(_) => 1,
    });
    deadline * *factor
}

/// Sleeps as long as there is between two looks: 10 ms. As much longer as deadlines are, or on a slow
/// processor looking would take all of it.
pub fn pause() {
    std::thread::sleep(patience(Duration::from_millis(10)));
}

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
    let (started, deadline) = (Instant::now(), patience(deadline));
    loop {
        if let Some(value) = probe() {
            return (value, started.elapsed());
        }
        assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        pause();
    }
}
