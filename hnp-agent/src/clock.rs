//! The clocks: the one on the wall, by which certificates are judged, and the one the kernel's programs share.
//!
//! Nobody else asks for the time of day where it decides about a certificate: what the relay believes of one and what
//! its source believes must be the same moment. So it is also the one place where tests can put another clock (feature
//! `other-clock`): what takes a day is then seen in a minute.

#[cfg(feature = "other-clock")]
mod other;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// The time of day.
#[cfg(not(feature = "other-clock"))]
pub fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(feature = "other-clock")]
pub use other::now;

/// The same in rustls' form: whole seconds since 1970.
pub fn unix_now() -> UnixTime {
    UnixTime::since_unix_epoch(now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

/// The same for rustls' configurations.
pub fn for_tls() -> Arc<dyn TimeProvider> {
    #[derive(Debug)]
    struct OurClock;
    impl TimeProvider for OurClock {
        fn current_time(&self) -> Option<UnixTime> {
            Some(unix_now())
        }
    }
    Arc::new(OurClock)
}

/// CLOCK_MONOTONIC in nanoseconds: what `bpf_ktime_get_ns` gives the programs. It goes on over restarts of
/// the agent and begins anew with the kernel.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one timespec, written by the kernel.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
