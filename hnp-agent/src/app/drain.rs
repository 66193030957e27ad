//! The one drain: stop accepting, wait until the last connection ended or the deadline passed, cut what is
//! left.

use std::thread::JoinHandle;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Threads have no future to wait on, and this happens once in a process's life.
const JOIN_POLL: Duration = Duration::from_millis(20);

/// The worker threads, and the tokens that end them.
#[derive(Default)]
pub(super) struct Workers {
    threads: Vec<JoinHandle<std::io::Result<usize>>>,
    stop: CancellationToken,
    kill: CancellationToken,
}

impl Workers {
    /// Adds a thread, as [`crate::proxy::thread::spawn`] returns it.
    pub(super) fn add(&mut self, thread: JoinHandle<std::io::Result<usize>>) {
        self.threads.push(thread);
    }

    /// Tokens for one worker. Children of their own: nothing on the data path locks what another worker
    /// locks.
    pub(super) fn tokens(&self) -> (CancellationToken, CancellationToken) {
        (self.stop.child_token(), self.kill.child_token())
    }

    /// Waits until one has ended, which none does by itself.
    pub(super) async fn any_ended(&self) {
        while !self.threads.iter().any(JoinHandle::is_finished) {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn all_ended(&self) {
        while !self.threads.iter().all(JoinHandle::is_finished) {
            tokio::time::sleep(JOIN_POLL).await;
        }
    }

    /// Drains; an error is a worker's.
    pub(super) async fn drain(self, why: &str, deadline: Duration) -> std::io::Result<()> {
        tracing::info!(why, ?deadline, "draining");
        self.stop.cancel();
        if tokio::time::timeout(deadline, self.all_ended()).await.is_err() {
            self.kill.cancel();
            self.all_ended().await;
        }
        let mut cut = 0;
        let mut outcome = Ok(());
        for worker in self.threads {
            match worker.join() {
                Ok(Ok(n)) => cut += n,
                Ok(Err(error)) => outcome = Err(error),
                Err(_) => outcome = Err(std::io::Error::other("a worker panicked; see stderr")),
            }
        }
        if cut > 0 {
            tracing::warn!(
                cut,
                ?deadline,
                "connections were still open at the drain's deadline and were cut"
            );
        } else {
            tracing::info!("drained: no connection was cut");
        }
        outcome
    }
}
