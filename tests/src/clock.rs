//! A clock that runs faster than the wall's, which the agent's test build ([`Build::OtherClock`]) and a manager share:
//! certificates of an hour live for seconds, and every dates' check on both sides is the real one.
//!
//! [`Build::OtherClock`]: crate::agent::Build::OtherClock

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// What the agent's test build reads.
const VARIABLE: &str = "HNP_OTHER_CLOCK";

/// A clock: it was a certain moment when it was made, and has gone faster since.
#[derive(Clone, Copy, Debug)]
pub struct FastClock {
    /// [`monotonic_ns`].
    began_ns: u64,
    epoch_seconds: u64,
    rate: u32,
}

impl FastClock {
    /// It is this moment, in whole seconds, and from now on goes so many times faster.
    ///
    /// # Panics
    /// For a moment before 1970.
    pub fn at(moment: SystemTime, rate: u32) -> Self {
        let since = moment.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        Self { began_ns: monotonic_ns(), epoch_seconds: since.as_secs(), rate }
    }

    /// What time it is.
    pub fn now(self) -> SystemTime {
        let since = Duration::from_nanos(monotonic_ns() - self.began_ns);
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.epoch_seconds) + since * self.rate
    }

    /// How long on the wall's clock something takes that takes `length` on this one.
    pub fn on_the_wall(self, length: Duration) -> Duration {
        length / self.rate
    }

    /// What the agent has to find in its environment.
    pub fn env(self) -> (&'static str, String) {
        (VARIABLE, format!("{},{},{}", self.began_ns, self.epoch_seconds, self.rate))
    }

    /// For rustls' configurations.
    pub fn for_tls(self) -> Arc<dyn TimeProvider> {
        Arc::new(self)
    }
}

impl TimeProvider for FastClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.now().duration_since(SystemTime::UNIX_EPOCH).ok()?))
    }
}

/// CLOCK_MONOTONIC in nanoseconds: one clock for all processes of a machine.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one timespec, written by the kernel.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
