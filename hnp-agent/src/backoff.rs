//! How long to wait before what failed is tried again: longer each time, and not all at the same time.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// The pause after so many failures in a row (from 1): `first`, doubled with each, at most `longest`; jittered.
pub fn pause(first: Duration, longest: Duration, failures: u32) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16));
    jittered(doubled.min(longest))
}

/// Between half of the pause and all of it: those that failed together do not come back together.
pub fn jittered(pause: Duration) -> Duration {
    within(pause, random())
}

/// Anything from nothing to `most`.
pub fn spread(most: Duration) -> Duration {
    most.mul_f64(fraction(random()))
}

fn within(pause: Duration, random: u64) -> Duration {
    pause.mul_f64(0.5 + 0.5 * fraction(random))
}

fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// Good enough to spread what happens: the keys of a hash map are random.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_takes_away_up_to_half() {
        let pause = Duration::from_secs(10);
        assert_eq!(within(pause, 0), pause / 2);
        assert!(within(pause, u64::MAX) <= pause && within(pause, u64::MAX) > pause.mul_f64(0.999));
        assert_ne!(random(), random());
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let (first, longest) = (Duration::from_millis(50), Duration::from_secs(1));
        for (failures, most) in [(0, 50), (1, 50), (2, 100), (5, 800), (6, 1000), (7, 1000), (u32::MAX, 1000)]
        {
            let (pause, most) = (pause(first, longest, failures), Duration::from_millis(most));
            assert!((most / 2..=most).contains(&pause), "{failures}: {pause:?}");
        }
        assert!(spread(first) <= first);
    }
}
