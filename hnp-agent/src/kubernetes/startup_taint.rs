//! Takes the startup taint off the agent's node, for as long as the agent lives.
//!
//! New nodes register with the taint, so that no pod is scheduled before the agent captures; the agent
//! removes it when it is ready for the first time. It goes on looking now and then, because a node that
//! was deleted from the API and registered anew has the taint again, and would be without pods for ever.
//! A taint that is not there is nothing to speak of. Failures are tried again for ever, with growing
//! pauses, and hold nothing up: capture does not depend on any of this.

use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::client::{self, ApiError, Cause, Outcome};
use crate::config::plan::Kubernetes;
use crate::telemetry::metrics::{Exposition, Labels};
use crate::telemetry::names;
use crate::telemetry::readiness::Readiness;

/// Between two looks at a node that is without the taint. A thousand nodes ask three times a second.
const LOOK_AGAIN: Duration = Duration::from_secs(5 * 60);
/// Pause after a failure: the first, and the longest. Pods wait for this, and a whole cluster may be
/// starting at once.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// How the taint is doing, for the metrics.
#[derive(Debug, Default)]
pub struct TaintStatus {
    /// True once the API server said that the taint is not there.
    gone: AtomicBool,
    failures: [AtomicU64; Cause::ALL.len()],
}

impl TaintStatus {
    /// Writes `hnp_startup_taint` and `hnp_startup_taint_failures`; for
    /// [`crate::telemetry::Telemetry::register`].
    pub fn write(&self, out: &mut Exposition<'_, '_>) {
        out.single(&names::STARTUP_TAINT, u64::from(!self.gone.load(Relaxed)));
        let counted: Vec<_> = Cause::ALL
            .iter()
            .map(|cause| ([("cause", cause.code())], self.failures[*cause as usize].load(Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let samples = counted.iter().map(|(labels, count)| (&labels[..] as Labels<'_>, *count));
        out.family(&names::STARTUP_TAINT_FAILURES, samples);
    }
}

/// Takes the taint off whenever the agent is ready and the node has it, until `cancel`. Returns at once
/// where the Plan names none.
pub async fn take_off(
    cluster: Kubernetes,
    readiness: Readiness,
    status: Arc<TaintStatus>,
    cancel: CancellationToken,
) {
    let Some(key) = cluster.startup_taint.clone() else { return };
    let (cluster, key) = (&cluster, &*key);
    let attempt = || client::attempt(cluster, key);
    let mut keeper = Keeper { node: &cluster.node_name, key, status: &status, failing: None };
    tokio::select! {
        () = cancel.cancelled() => {}
        // Cut anywhere, it leaves a node that was either patched or not.
        never = keeper.run(&readiness, attempt) => match never {},
    }
}

struct Keeper<'a> {
    node: &'a str,
    key: &'a str,
    status: &'a TaintStatus,
    /// Since the last success: why it fails now, and how often it has for this reason.
    failing: Option<(Cause, u32)>,
}

impl Keeper<'_> {
    async fn run<F>(&mut self, readiness: &Readiness, mut attempt: impl FnMut() -> F) -> Infallible
    where
        F: Future<Output = Result<Outcome, ApiError>>,
    {
        loop {
            readiness.ready().await;
            let pause = self.judge(attempt().await);
            tokio::time::sleep(pause).await;
        }
    }

    /// Says what has to be said about an attempt, and when the next one is due.
    fn judge(&mut self, outcome: Result<Outcome, ApiError>) -> Duration {
        let (node, taint) = (self.node, self.key);
        let error = match outcome {
            Ok(outcome) => {
                self.status.gone.store(true, Relaxed);
                let failed = self.failing.take().is_some();
                match outcome {
                    Outcome::Removed => tracing::info!(node, taint, "startup taint removed: pods may come"),
                    Outcome::Absent if failed => {
                        tracing::info!(
                            node,
                            taint,
                            "the API server answers again; there is no startup taint"
                        );
                    }
                    Outcome::Absent => {}
                }
                return jittered(LOOK_AGAIN, random());
            }
            Err(error) => error,
        };
        let cause = error.cause();
        self.status.failures[cause as usize].fetch_add(1, Relaxed);
        // Another cause is news: it is said, and may be over soon.
        let times = match self.failing {
            Some((before, times)) if before == cause => times.saturating_add(1),
            Some(_) | None => {
                let (code, fix) = (cause.code(), cause.fix());
                tracing::warn!(node, taint, cause = code, %error, fix, "cannot look after the startup taint; trying again");
                1
            }
        };
        self.failing = Some((cause, times));
        let doubled = RETRY.0.saturating_mul(1 << (times - 1).min(16));
        jittered(doubled.min(RETRY.1), random())
    }
}

/// Between half of the pause and all of it: nodes that failed together do not come back together.
fn jittered(pause: Duration, random: u64) -> Duration {
    pause.mul_f64(0.5 + 0.5 * (random >> 11) as f64 / (1_u64 << 53) as f64)
}

/// Good enough to spread nodes: the keys of a hash map are random.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::Instant;

    use super::*;

    fn refused(code: u16) -> Result<Outcome, ApiError> {
        Err(ApiError::Refused { code, message: String::new() })
    }

    /// Runs the loop over scripted answers, in paused time, and says when each was asked for.
    async fn asked(
        script: Vec<Result<Outcome, ApiError>>,
        readiness: &Readiness,
        status: &TaintStatus,
    ) -> Vec<Duration> {
        let start = Instant::now();
        let (script, times) = (RefCell::new(script.into_iter()), RefCell::new(Vec::new()));
        let attempt = || {
            let answer = script.borrow_mut().next();
            let times = &times;
            async move {
                let Some(answer) = answer else { return std::future::pending().await };
                times.borrow_mut().push(start.elapsed());
                answer
            }
        };
        let mut keeper = Keeper { node: "n", key: "a/b", status, failing: None };
        let day = Duration::from_secs(86_400);
        assert!(tokio::time::timeout(day, keeper.run(readiness, attempt)).await.is_err());
        times.into_inner()
    }

    #[test]
    fn jitter_takes_away_up_to_half() {
        let pause = Duration::from_secs(10);
        assert_eq!(jittered(pause, 0), pause / 2);
        assert!(jittered(pause, u64::MAX) <= pause && jittered(pause, u64::MAX) > pause.mul_f64(0.999));
        assert_ne!(random(), random());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_retried_with_growing_pauses_and_another_cause_starts_over() {
        let status = TaintStatus::default();
        let mut script: Vec<_> = (0..10).map(|_| refused(500)).collect();
        script.extend([refused(409), Ok(Outcome::Removed), Ok(Outcome::Absent)]);
        let times = asked(script, &Readiness::new(), &status).await;
        assert_eq!(times.len(), 13);
        let pauses: Vec<f64> = times.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).collect();
        let longest = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 0.5, 300.0];
        for (pause, longest) in pauses.iter().zip(longest) {
            assert!(
                (longest * 0.49..=longest * 1.01 + 0.002).contains(pause),
                "{pause} of {longest}: {pauses:?}"
            );
        }
        assert_eq!(status.failures[Cause::ServerError as usize].load(Relaxed), 10);
        assert_eq!(status.failures[Cause::Conflict as usize].load(Relaxed), 1);
        assert!(status.gone.load(Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_asked_before_the_agent_is_ready_nor_while_it_is_not() {
        let (readiness, status) = (Readiness::new(), TaintStatus::default());
        let pending = readiness.pending("name a", "not resolved");
        assert!(asked(vec![Ok(Outcome::Removed)], &readiness, &status).await.is_empty());
        assert!(!status.gone.load(Relaxed));
        drop(pending);
        assert_eq!(asked(vec![Ok(Outcome::Removed)], &readiness, &status).await.len(), 1);
    }

    #[test]
    fn causes_are_numbered_as_they_are_listed() {
        for (index, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, index, "{}", cause.code());
        }
    }
}
