//! Whether a worker accepts: the switch that a hand-over turns.
//!
//! While it is closed, connections wait in the kernel's queues, and what was accepted before runs on. It
//! is closed for certain once the last accept loop has said so: from then on another process may accept
//! on the same sockets.

use tokio::sync::watch;

/// One worker's switch; each worker has its own, so that the data path locks nothing that another worker
/// locks. Clones turn the same one.
#[derive(Clone, Debug)]
pub struct Gate {
    open: watch::Sender<bool>,
    /// How many accept loops may be accepting.
    inside: watch::Sender<usize>,
}

impl Gate {
    /// A switch that is open, or closed until [`Self::open`].
    pub fn new(open: bool) -> Self {
        Self { open: watch::Sender::new(open), inside: watch::Sender::new(0) }
    }

    /// Lets the worker accept.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Tells the worker to stop accepting. [`Self::closed`] says when it has.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Waits until no loop of the worker accepts any more.
    pub async fn closed(&self) {
        // An error would mean that the sender is gone, and it is ours.
        let _ = self.inside.subscribe().wait_for(|inside| *inside == 0).await;
    }

    /// One accept loop's side of it.
    pub(super) fn entrance(&self) -> Entrance {
        Entrance { open: self.open.subscribe(), inside: self.inside.clone() }
    }
}

/// An accept loop, outside the gate.
#[derive(Debug)]
pub(super) struct Entrance {
    open: watch::Receiver<bool>,
    inside: watch::Sender<usize>,
}

impl Entrance {
    /// Waits until the gate is open, and goes in. The gate may have closed in between: whoever is inside
    /// waits for [`Inside::closed`] first and accepts second.
    pub(super) async fn opened(&mut self) -> Inside {
        if self.open.wait_for(|open| *open).await.is_err() {
            // Nobody can open it any more.
            std::future::pending::<()>().await;
        }
        self.inside.send_modify(|inside| *inside += 1);
        Inside { open: self.open.clone(), inside: self.inside.clone() }
    }
}

/// An accept loop, inside the gate; dropping it says that the loop has left.
#[derive(Debug)]
pub(super) struct Inside {
    open: watch::Receiver<bool>,
    inside: watch::Sender<usize>,
}

impl Inside {
    /// Waits until the gate closes. Cancel-safe.
    pub(super) async fn closed(&mut self) {
        if self.open.wait_for(|open| !*open).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.inside.send_modify(|inside| *inside -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    async fn is_pending(future: impl Future<Output = ()>) -> bool {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn closed_means_that_every_loop_has_left() {
        let gate = Gate::new(true);
        let (mut one, mut two) = (gate.entrance(), gate.entrance());
        let mut one = one.opened().await;
        let mut two = two.opened().await;
        assert!(is_pending(one.closed()).await, "the control: it is open");
        gate.close();
        one.closed().await;
        two.closed().await;
        drop(one);
        assert!(is_pending(gate.closed()).await, "two has not left");
        drop(two);
        gate.closed().await;
    }

    #[tokio::test]
    async fn nobody_enters_a_closed_gate_until_it_opens() {
        let gate = Gate::new(false);
        let mut loop_ = gate.entrance();
        assert!(is_pending(async { drop(loop_.opened().await) }).await);
        gate.closed().await;
        gate.open();
        let mut inside = loop_.opened().await;
        gate.close();
        inside.closed().await;
    }
}
