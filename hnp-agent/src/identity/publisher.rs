//! What every source of an identity hands its findings to: it publishes, counts and says what came of them.

use std::sync::Arc;
use std::time::SystemTime;

use super::files::load::{IdentityError, IdentityWarning, Loaded};
use super::seconds;
use super::snapshot::IdentitySnapshot;
use crate::expiry::Expiry;
use crate::files::published::{Publication, Published};
use crate::telemetry::readiness::Readiness;

/// One identity, as the rest of the agent sees it.
#[derive(Debug)]
pub(super) struct Publisher {
    publication: Publication<IdentitySnapshot>,
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
        let generation = |snapshot: &IdentitySnapshot| snapshot.generation;
        let publication = Publication::new("identity", name, former, generation, readiness);
        Self { publication, expiry: None }
    }

    pub(super) fn published(&self) -> Published<IdentitySnapshot> {
        self.publication.published().clone()
    }

    /// What is presented now.
    pub(super) fn serving(&self) -> Option<Arc<IdentitySnapshot>> {
        self.publication.published().shared.load_full()
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
        let generation = self.publication.generation() + 1;
        for warning in &loaded.warnings {
            tracing::warn!(identity = %self.publication.name(), "{warning}");
        }
        tracing::info!(
            identity = %self.publication.name(),
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
        let name = Arc::clone(self.publication.name());
        self.publication.publish(|generation| snapshot(name, generation));
    }

    /// What is not ready yet, and why, while nothing is presented.
    pub(super) fn waiting(&self, why: &str) {
        self.publication.waiting(why);
    }

    /// What came cannot be used; what is presented stays. `first`: it was not said yet.
    pub(super) fn refused(&self, error: &IdentityError, first: bool) {
        if first {
            let (identity, serving) = (self.publication.name(), self.publication.generation());
            tracing::error!(%identity, serving, "{error}");
        }
        self.publication.refused(error.to_string());
    }

    /// The source holds again what is presented.
    pub(super) fn restored(&self) {
        tracing::info!(identity = %self.publication.name(), "the source holds again what is presented");
        self.publication.restored();
    }

    /// Says how far the lifetime of what is presented is over, once for each stage of it.
    pub(super) fn remind(&mut self, now: SystemTime) {
        let Some((stage, words)) = self.expiry.as_mut().and_then(|expiry| expiry.look(now)) else { return };
        let (identity, generation) = (self.publication.name(), self.publication.generation());
        if stage.is_warning() {
            tracing::warn!(%identity, generation, "{words}");
        } else {
            tracing::info!(%identity, generation, "{words}");
        }
    }
}
