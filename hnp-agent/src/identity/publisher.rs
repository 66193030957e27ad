//! What every source of an identity hands its findings to: it publishes, counts and says what came of them.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;

use super::files::load::{IdentityError, IdentityWarning, Loaded};
use super::seconds;
use super::snapshot::{IdentitySnapshot, SharedIdentity};
use crate::expiry::Expiry;
use crate::files::published::Published;
use crate::files::watch::ReloadStatus;
use crate::telemetry::readiness::{Pending, Readiness};

/// One identity, as the rest of the agent sees it.
#[derive(Debug)]
pub(super) struct Publisher {
    name: Arc<str>,
    shared: SharedIdentity,
    status: Arc<ReloadStatus>,
    pending: Option<Pending>,
    /// The last generation of the source this one took over from.
    before: u64,
    /// What was said of the age of what is presented.
    expiry: Option<Expiry>,
}

impl Publisher {
    /// Nothing is published yet, and readiness waits for it. Generations and failures of `former` are counted on.
    pub(super) fn new(
        name: Arc<str>,
        former: Option<&Published<IdentitySnapshot>>,
        readiness: &Readiness,
    ) -> Self {
        let before = former.and_then(|former| former.shared.load().as_ref().map(|one| one.generation));
        Self {
            pending: Some(readiness.pending(format!("identity {name}"), "not loaded yet")),
            name,
            shared: Arc::new(ArcSwapOption::empty()),
            status: former.map_or_else(Arc::default, |former| Arc::clone(&former.status)),
            before: before.unwrap_or(0),
            expiry: None,
        }
    }

    pub(super) fn published(&self) -> Published<IdentitySnapshot> {
        Published {
            name: Arc::clone(&self.name),
            shared: Arc::clone(&self.shared),
            status: Arc::clone(&self.status),
        }
    }

    /// What is presented now.
    pub(super) fn serving(&self) -> Option<Arc<IdentitySnapshot>> {
        self.shared.load_full()
    }

    /// The identity that is presented from now on.
    pub(super) fn publish(&mut self, loaded: Loaded) {
        self.publish_as(&loaded, |name, generation| loaded.snapshot(name, generation));
    }

    /// The same, for what is more than a certificate: `snapshot` makes it of name and generation.
    pub(super) fn publish_as(
        &mut self,
        loaded: &Loaded,
        snapshot: impl FnOnce(Arc<str>, u64) -> IdentitySnapshot,
    ) {
        let generation = self.generation() + 1;
        for warning in &loaded.warnings {
            tracing::warn!(identity = %self.name, "{warning}");
        }
        tracing::info!(
            identity = %self.name,
            generation,
            subject = loaded.leaf.subject,
            serial = loaded.leaf.serial,
            not_after = seconds(loaded.leaf.not_after),
            certificates = loaded.certified_key.cert.len(),
            "identity loaded"
        );
        let mut expiry = Expiry::of_leaf(&loaded.origin, loaded.leaf.lifetime());
        if loaded.warnings.iter().any(|warning| matches!(warning, IdentityWarning::Expired { .. })) {
            // That is said already.
            let _ = expiry.look(crate::clock::now());
        }
        self.expiry = Some(expiry);
        self.shared.store(Some(Arc::new(snapshot(Arc::clone(&self.name), generation))));
        self.status.good();
        self.pending = None;
    }

    /// What is not ready yet, and why, while nothing is presented.
    pub(super) fn waiting(&self, why: &str) {
        if let Some(pending) = &self.pending {
            pending.because(why);
        }
    }

    /// What came cannot be used; what is presented stays. `first`: it was not said yet.
    pub(super) fn refused(&self, error: &IdentityError, first: bool) {
        if first {
            tracing::error!(identity = %self.name, serving = self.generation(), "{error}");
        }
        self.waiting(&error.to_string());
        self.status.refused(error.to_string());
    }

    /// The source holds again what is presented.
    pub(super) fn restored(&self) {
        tracing::info!(identity = %self.name, "the source holds again what is presented");
        self.status.good();
    }

    /// Says how far the lifetime of what is presented is over, once for each stage of it.
    pub(super) fn remind(&mut self, now: SystemTime) {
        let Some((stage, words)) = self.expiry.as_mut().and_then(|expiry| expiry.look(now)) else { return };
        let (identity, generation) = (&self.name, self.generation());
        if stage.is_warning() {
            tracing::warn!(%identity, generation, "{words}");
        } else {
            tracing::info!(%identity, generation, "{words}");
        }
    }

    fn generation(&self) -> u64 {
        self.shared.load().as_ref().map_or(self.before, |snapshot| snapshot.generation)
    }
}
