//! Memory that a wave of connections took goes back to the node when the wave is over.
//!
//! The allocator keeps what is freed for the next, which is right while connections come and go. After a storm
//! of them it would keep a storm's worth for ever, on every node.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often it is looked whether a wave is over.
const LOOK: Duration = Duration::from_secs(1);
/// Smaller waves are left to the allocator: it takes about 3 MiB from HTTP connections, 13 from tunnels.
const WAVE: u64 = 1000;

/// Gives memory back whenever most of a wave has gone, until cancelled. `open` is how many connections there are.
pub async fn give_back(open: impl Fn() -> u64, cancel: CancellationToken) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut crest = 0;
    while cancel.run_until_cancelled(tick.tick()).await.is_some() {
        if is_over(&mut crest, open()) {
            trim();
        }
    }
}

/// Whether a wave has ebbed since its crest: half of it at least, and enough to be worth it.
fn is_over(crest: &mut u64, open: u64) -> bool {
    *crest = open.max(*crest);
    let over = *crest - open >= WAVE.max(*crest / 2);
    if over {
        *crest = open;
    }
    over
}

/// Other C libraries give back by themselves.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and the allocator's own locks make it safe beside all other threads.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_is_over_once() {
        let mut crest = 0;
        for (open, over) in [
            (0, false),
            (900, false),
            (0, false),
            (10_000, false),
            (9_000, false),
            (5_001, false),
            (5_000, true),
            (4_900, false),
            (0, true),
            (0, false),
            (1_000, false),
            (1, false),
            (0, true),
        ] {
            assert_eq!(is_over(&mut crest, open), over, "{open}, crest {crest}");
        }
    }
}
