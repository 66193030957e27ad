//! Ctrl-C and SIGTERM end the bench as an error does: what it started is ended, what it made is removed.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Result, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on these signals are only noted.
pub(crate) fn catch() -> Result<()> {
    extern "C" fn note(_: i32) {
        ASKED.store(true, Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler stores to an atomic and does nothing else.
        unsafe { sigaction(signal, &action)? };
    }
    Ok(())
}

/// # Errors
/// Once one has come.
pub(crate) fn check() -> Result<()> {
    ensure!(!ASKED.load(Relaxed), "interrupted");
    Ok(())
}
