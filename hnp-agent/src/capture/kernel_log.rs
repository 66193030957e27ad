//! What the programs log, in builds whose object logs (debug builds).
//!
//! The lines go through the `log` facade, which `tracing` picks up; a thread of its own waits for
//! them, because they come from no runtime.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;

use super::sys;

/// Prints the programs' lines until it is dropped.
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Starts reading, if the object logs.
    pub(super) fn start(ebpf: &mut Ebpf) -> Option<Self> {
        ebpf.map("AYA_LOGS")?;
        let mut logger = EbpfLogger::init(ebpf)
            .inspect_err(|error| tracing::warn!(%error, "the programs' log cannot be read"))
            .ok()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("kernel-log".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match sys::wait_readable(logger.as_fd(), Duration::from_millis(200)) {
                    Ok(true) => logger.flush(),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(%error, "the programs' log cannot be read any more");
                        return;
                    }
                }
            }
        });
        match thread {
            Ok(thread) => Some(Self { stop, thread: Some(thread) }),
            Err(error) => {
                tracing::warn!(%error, "the programs' log has no thread");
                None
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the reader of the programs' log panicked");
        }
    }
}
