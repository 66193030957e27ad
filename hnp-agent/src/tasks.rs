//! Every task of the control runtime has a parent: this. The only caller of `tokio::spawn`.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The control tasks, and the token that ends them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Tasks {
    /// A token that is cancelled when the tasks are told to end; hand it to each of them.
    pub fn token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Runs `task` until it returns; it must return soon after the token is cancelled.
    #[expect(clippy::disallowed_methods, reason = "this is the one place: here the task gets its parent")]
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.tracker.track_future(task));
    }

    /// Cancels the token and waits until every task has returned.
    pub async fn end(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
