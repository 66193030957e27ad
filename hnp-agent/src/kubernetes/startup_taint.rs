//! Takes the startup taint off the agent's node, for as long as the agent lives.
//!
//! New nodes register with the taint, so that no pod is scheduled before the agent captures; the agent
//! removes it when it is ready for the first time. It goes on looking now and then, because a node that
//! was deleted from the API and registered anew has the taint again, and would be without pods for ever.
//! A taint that is not there is nothing to speak of. Failures are tried again for ever, with growing
//! pauses, and hold nothing up: capture does not depend on any of this.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::client::{self, ApiError, Outcome};
use super::retry::{Failures, Retry};
use crate::backoff;
use crate::config::plan::Kubernetes;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;
use crate::telemetry::readiness::Readiness;

/// Between two looks at a node that is without the taint. A thousand nodes ask three times a second.
const LOOK_AGAIN: Duration = Duration::from_secs(5 * 60);

/// How the taint is doing, for the metrics.
#[derive(Debug, Default)]
pub struct TaintStatus {
    /// True once the API server said that the taint is not there.
    gone: AtomicBool,
    failures: Failures,
}

impl TaintStatus {
    /// Writes `hnp_startup_taint` and `hnp_startup_taint_failures`; for
    /// [`crate::telemetry::Telemetry::register`].
    pub fn write(&self, out: &mut Exposition<'_, '_>) {
        out.single(&names::STARTUP_TAINT, u64::from(!self.gone.load(Relaxed)));
        self.failures.write(&names::STARTUP_TAINT_FAILURES, out);
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
    let mut keeper = Keeper { node: &cluster.node_name, key, status: &status, retry: Retry::default() };
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
    retry: Retry,
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
                let failed = self.retry.succeeded();
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
                return backoff::jittered(LOOK_AGAIN);
            }
            Err(error) => error,
        };
        let cause = error.cause();
        self.status.failures.count(cause);
        let (pause, is_news) = self.retry.failed(cause);
        if is_news {
            let (code, fix) = (cause.code(), cause.fix());
            tracing::warn!(node, taint, cause = code, %error, fix, "cannot look after the startup taint; trying again");
        }
        pause
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::Instant;

    use super::super::client::Cause;
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
        let mut keeper = Keeper { node: "n", key: "a/b", status, retry: Retry::default() };
        let day = Duration::from_secs(86_400);
        assert!(tokio::time::timeout(day, keeper.run(readiness, attempt)).await.is_err());
        times.into_inner()
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
        assert_eq!(status.failures.of(Cause::ServerError), 10);
        assert_eq!(status.failures.of(Cause::Conflict), 1);
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
}
