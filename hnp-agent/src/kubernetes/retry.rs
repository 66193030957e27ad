//! When what failed is tried again, what is said about it, and how often it happened.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::client::Cause;
use crate::backoff;
use crate::telemetry::metrics::{Exposition, Labels};
use crate::telemetry::names::Metric;

/// Pause after a failure: the first, and the longest. Pods wait for this, and a whole cluster may be
/// starting at once.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Since the last success: why it fails now, and how often it has for this reason.
#[derive(Debug, Default)]
pub(super) struct Retry(Option<(Cause, u32)>);

impl Retry {
    /// Whether it had failed before.
    pub(super) fn succeeded(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// How long to wait, and whether this cause is news: those are said, and may be over soon.
    pub(super) fn failed(&mut self, cause: Cause) -> (Duration, bool) {
        let times = match self.0 {
            Some((before, times)) if before == cause => times.saturating_add(1),
            Some(_) | None => 1,
        };
        self.0 = Some((cause, times));
        (backoff::pause(RETRY.0, RETRY.1, times), times == 1)
    }
}

/// How often each cause was met.
#[derive(Debug, Default)]
pub(super) struct Failures([AtomicU64; Cause::ALL.len()]);

impl Failures {
    /// One more.
    pub(super) fn count(&self, cause: Cause) {
        self.0[cause as usize].fetch_add(1, Relaxed);
    }

    /// Writes those that were met.
    pub(super) fn write(&self, metric: &'static Metric, out: &mut Exposition<'_, '_>) {
        let counted: Vec<_> = Cause::ALL
            .iter()
            .map(|cause| ([("cause", cause.code())], self.0[*cause as usize].load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let samples = counted.iter().map(|(labels, count)| (&labels[..] as Labels<'_>, *count));
        out.family(metric, samples);
    }

    #[cfg(test)]
    pub(super) fn of(&self, cause: Cause) -> u64 {
        self.0[cause as usize].load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_numbered_as_they_are_listed() {
        for (index, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, index, "{}", cause.code());
        }
    }
}
