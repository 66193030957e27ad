//! A workload's share of handshakes, as who wants a connection feels it: he waits for the time of his own, or takes a connection
//! that another one has done with, whichever comes first.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{DialError, HasLeft, PoolKey, UpstreamConnection, Upstreams};
use crate::clock::monotonic_ns;
use crate::policy::Seat;
use crate::rota;
use crate::workload::Caller;

/// Who wants a connection.
#[derive(Clone, Copy)]
pub struct Wanting<'a> {
    /// On whose behalf.
    pub caller: Caller<'a>,
    /// Whether he has left meanwhile.
    pub has_left: HasLeft<'a>,
    /// His workload's share of handshakes is this one's; `None`: he shares with nobody.
    pub seat: Option<&'a Seat>,
}

impl Wanting<'static> {
    /// The agent itself, which waits for what it asked for.
    pub const AGENT: Self = Self { caller: Caller::Agent, has_left: &|| false, seat: None };
}

/// One worker's callers who wait for their handshake, by what they would take instead.
#[derive(Default)]
pub(super) struct Hopes(RefCell<HashMap<Rc<PoolKey>, Rc<Notify>>>);

/// One of them. The last of its kind leaves nothing behind.
struct Hope<'a> {
    hopes: &'a Hopes,
    key: Rc<PoolKey>,
    given: Rc<Notify>,
}

impl Hopes {
    fn join(&self, key: &Rc<PoolKey>) -> Hope<'_> {
        let given = Rc::clone(self.0.borrow_mut().entry(Rc::clone(key)).or_default());
        Hope { hopes: self, key: Rc::clone(key), given }
    }

    /// A connection of that kind is idle.
    pub(super) fn given_back(&self, key: &Rc<PoolKey>) {
        if let Some(given) = self.0.borrow().get(key) {
            given.notify_one();
        }
    }
}

impl Drop for Hope<'_> {
    fn drop(&mut self) {
        // The map's and this one's.
        if Rc::strong_count(&self.given) == 2 {
            self.hopes.0.borrow_mut().remove(&self.key);
        }
    }
}

impl Upstreams {
    /// Waits until a handshake may begin for who wants a connection, or until `warm` has one; and how long that took.
    ///
    /// # Errors
    /// The workload's line for handshakes is full.
    pub(super) async fn share(
        &self,
        key: &Rc<PoolKey>,
        wanting: Wanting<'_>,
        warm: impl Fn() -> Option<UpstreamConnection>,
    ) -> Result<(Option<UpstreamConnection>, Duration), DialError> {
        let Some(seat) = wanting.seat else { return Ok((None, Duration::ZERO)) };
        let queued = seat.queue(monotonic_ns());
        let queued = queued.map_err(|refused| DialError::new(refused.reason, refused.detail, None))?;
        let Some(queued) = queued else { return Ok((None, Duration::ZERO)) };
        let (since, hope) = (Instant::now(), self.shared.hopes.join(key));
        let found = loop {
            tokio::select! {
                () = rota::due(&queued) => break None,
                () = hope.given.notified() => {
                    if let Some(found) = warm() {
                        break Some(found);
                    }
                }
            }
        };
        if found.is_none() {
            queued.begin();
        }
        Ok((found, since.elapsed()))
    }
}
