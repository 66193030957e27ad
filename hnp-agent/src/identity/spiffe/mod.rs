//! An identity from the SPIFFE Workload API: given out over a UNIX socket, and pushed anew long before it ends.
//!
//! Opening takes one look, so that an agent whose SPIRE agent answers is ready at once. While the socket is gone, the last SVID
//! serves until it expires, and not beyond: SVIDs are short-lived, and a socket comes back.

pub mod svid;
#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::files::load::{IdentityError, Loaded};
use super::publisher::Publisher;
use super::snapshot::IdentitySnapshot;
use crate::config::spiffe::SpiffeIdentity;
use crate::files::published::Published;
use crate::spiffe::SpiffeError;
use crate::spiffe::endpoint::{self, BRIEF_LOOK, LOOK, Message, Method, Subscription};

/// How often it is looked at how old the SVID is, and whether one that was too early is valid now.
const TICK: Duration = Duration::from_secs(1);

/// One identity of a Workload API.
pub struct Source {
    identity: SpiffeIdentity,
    publisher: Publisher,
    /// The last message, where a later moment may make it good.
    early: Option<Message>,
    /// What was said last of what is wrong.
    said: Option<String>,
}

impl Source {
    /// Takes the first look. Without an answer readiness stays down until [`Self::watch`] has one.
    pub(super) fn open(identity: SpiffeIdentity, publisher: Publisher) -> Self {
        let mut source = Self { identity, publisher, early: None, said: None };
        let first = endpoint::once(&source.identity.api.socket, Method::X509Svids, BRIEF_LOOK);
        source.take(first, crate::clock::now());
        source
    }

    /// What is published, and how the source is doing.
    pub(super) fn published(&self) -> Published<IdentitySnapshot> {
        self.publisher.published()
    }

    /// Publishes what is pushed until cancelled.
    pub(super) async fn watch(mut self, cancel: CancellationToken) {
        let mut messages = Subscription::new();
        let mut asking = pin!(messages.run(&self.identity.api.socket, Method::X509Svids));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // All of them are cancel-safe.
            tokio::select! {
                () = cancel.cancelled() => return,
                () = &mut asking => return,
                Some(came) = messages.next() => self.take(came, crate::clock::now()),
                _ = tick.tick() => self.tick(crate::clock::now()),
            }
        }
    }

    fn tick(&mut self, now: SystemTime) {
        if let Some(early) = self.early.take() {
            self.take(Ok(early), now);
        }
        self.publisher.remind(now);
    }

    /// One message, or why there is none.
    fn take(&mut self, came: Result<Message, SpiffeError>, now: SystemTime) {
        let message = match came {
            Ok(message) => message,
            Err(error) => return self.refused(error),
        };
        match svid::read(&message, &self.identity, now) {
            // A message is pushed for whatever changes in it; what is presented may be the same.
            Ok(loaded) if self.publisher.serving().is_some_and(|serving| is_same(&loaded, &serving)) => {
                if self.said.take().is_some() {
                    self.publisher.restored();
                }
            }
            Ok(loaded) => {
                self.said = None;
                self.publisher.publish(loaded);
            }
            Err(error) => {
                self.early = error.may_pass().then_some(message);
                self.refused(error);
            }
        }
    }

    fn refused(&mut self, error: SpiffeError) {
        let words = error.to_string();
        // It is tried again and again, and counts once.
        if self.said.as_ref() != Some(&words) {
            self.said = Some(words);
            self.publisher.refused(&IdentityError::Spiffe(error), true);
        }
    }
}

/// Whether a definition that is not in use yet could be.
///
/// # Errors
/// What the Workload API says.
pub(super) fn usable(identity: &SpiffeIdentity) -> Result<(), IdentityError> {
    look(identity, BRIEF_LOOK).map(drop)
}

/// One look.
///
/// # Errors
/// What the Workload API says, or what is wrong with the SVID.
pub(super) fn load(identity: &SpiffeIdentity) -> Result<Loaded, IdentityError> {
    look(identity, LOOK)
}

fn look(identity: &SpiffeIdentity, deadline: Duration) -> Result<Loaded, IdentityError> {
    let message = endpoint::once(&identity.api.socket, Method::X509Svids, deadline)?;
    Ok(svid::read(&message, identity, crate::clock::now())?)
}

/// The key belongs to the certificate, so the certificates say it all.
fn is_same(loaded: &Loaded, serving: &Arc<IdentitySnapshot>) -> bool {
    loaded.certified_key.cert == serving.certified_key.cert
}
