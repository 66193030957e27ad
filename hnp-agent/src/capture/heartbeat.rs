//! Tells the kernel that the agent serves, for as long as every worker answers.
//!
//! Each worker notes when its runtime last turned; the stamp is the oldest of these times. So one worker
//! that hangs makes the whole heartbeat stale, and nothing needs to be alive to find that out. On a
//! thread of its own, for the control runtime may be busy reading files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aya::maps::{Array, Map, MapData, MapError};
use hnp_common::layout::Heartbeat;

use super::error::CaptureError;
use crate::clock::monotonic_ns;
use crate::proxy::pulse::Pulse;

/// How often the kernel is told.
const BEAT: Duration = Duration::from_millis(200);
/// Until the first time: nothing is redirected before.
const FIRST: Duration = Duration::from_millis(5);

/// Stamps until it is dropped; then the heartbeat is stale at once.
pub(super) struct Beating {
    stop: Arc<AtomicBool>,
    /// Leave the last stamp: another agent goes on.
    keep: Arc<AtomicBool>,
    /// The kernel was told once.
    begun: Arc<AtomicBool>,
    /// What the kernel was told last; 0: nothing yet.
    stamped_ns: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Beating {
    /// Stamps as long as all of `pulses` beat. `limit` is how old the stamp may be.
    pub(super) fn start(map: Map, limit: Duration, pulses: Vec<Pulse>) -> Result<Self, CaptureError> {
        let mut map: Array<MapData, Heartbeat> = Array::try_from(map).map_err(error)?;
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let (stop, keep) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let begun = Arc::new(AtomicBool::new(false));
        let stamped_ns = Arc::new(AtomicU64::new(0));
        let (stopped, kept, told, last) = (stop.clone(), keep.clone(), begun.clone(), stamped_ns.clone());
        let mut stamp = move |stamp_ns| {
            if let Err(error) = map.set(0, Heartbeat { stamp_ns, limit_ns }, 0) {
                tracing::warn!(%error, "cannot tell the kernel that the agent serves");
            }
        };
        let beat = move || {
            while !stopped.load(Ordering::Acquire) {
                let oldest = pulses.iter().map(Pulse::last_ns).min().unwrap_or(0);
                if oldest != 0 {
                    stamp(oldest);
                    last.store(oldest, Ordering::Relaxed);
                    told.store(true, Ordering::Release);
                }
                thread::park_timeout(if oldest == 0 { FIRST } else { BEAT });
            }
            if !kept.load(Ordering::Acquire) {
                stamp(0);
            }
        };
        let thread = thread::Builder::new().name("heartbeat".into()).spawn(beat);
        let thread = thread.map_err(|source| CaptureError::Thread { name: "heartbeat", source })?;
        Ok(Self { stop, keep, begun, stamped_ns, thread: Some(thread) })
    }

    /// Whether the kernel was told yet.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// How old the stamp is that the kernel goes by; `None` before the first.
    pub(super) fn age(&self) -> Option<Duration> {
        let stamped = self.stamped_ns.load(Ordering::Relaxed);
        (stamped != 0).then(|| Duration::from_nanos(monotonic_ns().saturating_sub(stamped)))
    }

    /// Ends without a word: another agent's stamps must not be overwritten.
    pub(super) fn hand_over(self) {
        self.keep.store(true, Ordering::Release);
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::warn!("the heartbeat's thread panicked");
            }
        }
    }
}

fn error(source: MapError) -> CaptureError {
    CaptureError::Map { doing: "open", map: "HEARTBEAT", source }
}
