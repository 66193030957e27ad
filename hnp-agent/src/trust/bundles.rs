//! A trust from the SPIFFE Workload API: bundles of our own trust domain and of those it is federated with.
//!
//! Every message is the whole of it: a domain that is not in the next one is not trusted any more. While the socket is gone, the last
//! bundles hold; they live much longer than SVIDs.

use std::collections::BTreeMap;
use std::pin::pin;

use tokio_util::sync::CancellationToken;

use super::domains;
use super::publisher::Publisher;
use crate::config::spiffe::WorkloadApi;
use crate::files::published::Published;
use crate::spiffe::SpiffeError;
use crate::spiffe::endpoint::{self, BRIEF_LOOK, Message, Method, Subscription};
use crate::spiffe::wire::X509Bundles;
use crate::trust::snapshot::TrustSnapshot;

/// One Workload API's bundles and what became of them.
pub(super) struct Source {
    api: WorkloadApi,
    publisher: Publisher,
    current: Option<Content>,
    /// What was said last of what is wrong.
    said: Option<String>,
}

/// What a message says, whatever the order.
#[derive(Eq, PartialEq)]
struct Content(Vec<Vec<u8>>, BTreeMap<String, Vec<u8>>);

impl Content {
    fn of(message: &[u8]) -> Option<Self> {
        let X509Bundles { crls, bundles } = X509Bundles::read(message).ok()?;
        let bundles = bundles.into_iter().map(|(domain, der)| (domain.to_owned(), der.to_vec())).collect();
        Some(Self(crls.into_iter().map(<[u8]>::to_vec).collect(), bundles))
    }
}

impl Source {
    /// Takes the first look, as identities do.
    pub(super) fn open(api: WorkloadApi, publisher: Publisher) -> Self {
        let mut source = Self { api, publisher, current: None, said: None };
        source.take(endpoint::once(&source.api.socket, Method::X509Bundles, BRIEF_LOOK));
        source
    }

    pub(super) fn published(&self) -> Published<TrustSnapshot> {
        self.publisher.published()
    }

    /// Publishes what is pushed until cancelled.
    pub(super) async fn watch(mut self, cancel: CancellationToken) {
        let mut messages = Subscription::new();
        let mut asking = pin!(messages.run(&self.api.socket, Method::X509Bundles));
        loop {
            // All of them are cancel-safe.
            tokio::select! {
                () = cancel.cancelled() => return,
                () = &mut asking => return,
                Some(came) = messages.next() => self.take(came),
            }
        }
    }

    fn take(&mut self, came: Result<Message, SpiffeError>) {
        let message = match came {
            Ok(message) => message,
            Err(error) => return self.refused(&error),
        };
        let content = Content::of(&message);
        if content.is_some() && content == self.current {
            if self.said.take().is_some() {
                self.publisher.restored();
            }
            return;
        }
        match domains::read(&message, &self.publisher.trust) {
            Ok(loaded) => {
                (self.said, self.current) = (None, content);
                self.publisher.publish(loaded);
            }
            Err(what) => self.refused(&SpiffeError { socket: self.api.socket.clone(), what }),
        }
    }

    fn refused(&mut self, error: &SpiffeError) {
        let words = error.to_string();
        // It is tried again and again, and counts once.
        if self.said.as_ref() != Some(&words) {
            self.publisher.refused(&words, true);
            self.said = Some(words);
        }
    }
}
