//! What an agent leaves on the node when it ends for good, or for a while.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::capture::{Capture, clean_up};

/// Takes everything off where nothing is strict, and where the agent is `uninstalled`; else what is strict stays refused
/// until an agent runs again.
///
/// # Errors
/// When the kernel refuses; what could not be removed is said.
pub(super) fn leave(capture: Capture, uninstalled: bool, bpffs: &Path) -> Result<()> {
    let strict_stays = capture.stop().context("cannot take the programs off again")?;
    match (strict_stays, uninstalled) {
        (false, _) => {}
        (true, false) => tracing::info!(
            "strict destinations stay refused until an agent runs again; `hnp-agent cleanup` ends that"
        ),
        (true, true) => {
            // As an operator would: with the lock, after the agent has let go of it.
            let cleaned = clean_up(bpffs)
                .context("uninstalled, and cannot clean up: run `hnp-agent cleanup` on this node")?;
            for what in &cleaned.left {
                tracing::warn!(
                    what,
                    "uninstalled, and this is still there: run `hnp-agent cleanup` on this node"
                );
            }
            tracing::info!(
                removed = cleaned.removed.len(),
                "uninstalled: programs, pins and routes are off this node; what was strict is direct from now on"
            );
        }
    }
    Ok(())
}
