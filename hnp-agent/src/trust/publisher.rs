//! What every source of a trust hands its findings to: it publishes, counts and says what came of them.

use std::sync::Arc;
use std::time::SystemTime;

use super::load::Loaded;
use super::snapshot::{RootDates, TrustSnapshot};
use crate::config::plan::{Roots, Trust};
use crate::expiry::Expiry;
use crate::files::published::{Publication, Published};
use crate::telemetry::readiness::Readiness;

/// One trust, as the rest of the agent sees it.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) trust: Arc<Trust>,
    publication: Publication<TrustSnapshot>,
    /// What was said of the age of the roots in use.
    expiry: Vec<Expiry>,
}

impl Publisher {
    /// Nothing is published yet, and readiness waits for it. Generations and failures of `former` are counted on.
    pub(super) fn new(
        trust: Arc<Trust>,
        former: Option<&Published<TrustSnapshot>>,
        readiness: &Readiness,
    ) -> Self {
        let generation = |snapshot: &TrustSnapshot| snapshot.generation;
        let publication = Publication::new("trust", Arc::clone(&trust.name), former, generation, readiness);
        Self { publication, trust, expiry: Vec::new() }
    }

    pub(super) fn published(&self) -> Published<TrustSnapshot> {
        self.publication.published().clone()
    }

    /// What is trusted from now on.
    pub(super) fn publish(&mut self, loaded: Loaded) {
        let generation = self.publication.generation() + 1;
        let name = Arc::clone(&self.trust.name);
        for warning in &loaded.warnings {
            tracing::warn!(trust = %name, "{warning}");
        }
        let (roots, crls) = (loaded.roots, loaded.lists.count());
        tracing::info!(trust = %name, generation, roots, crls, "trust loaded");
        let origin = self.trust.roots.to_string();
        let expiry = |root: &RootDates| Expiry::of_root(&root.subject, &origin, root.lifetime);
        self.expiry = loaded.dates.iter().map(expiry).collect();
        self.publication.publish(|generation| loaded.snapshot(name, generation));
    }

    /// What is not ready yet, and why, while nothing is trusted.
    pub(super) fn waiting(&self, why: &str) {
        self.publication.waiting(why);
    }

    /// What came cannot be used; what is trusted stays. `first`: it was not said yet.
    pub(super) fn refused(&self, error: &str, first: bool) {
        if first {
            let (trust, serving) = (&self.trust.name, self.publication.generation());
            tracing::error!(%trust, serving, "{error}");
        }
        self.publication.refused(error.to_owned());
    }

    /// The source holds again what is trusted.
    pub(super) fn restored(&self) {
        tracing::info!(trust = %self.trust.name, "the source holds again the roots in use");
        self.publication.restored();
    }

    /// Says how far the lifetime of roots is over, once for each stage of it. Nobody asked for those of the system's store
    /// by name, and whoever maintains it takes out what has ended; SPIRE does the same with its own.
    pub(super) fn remind(&mut self, now: SystemTime) {
        if !matches!(self.trust.roots, Roots::File(_)) {
            return;
        }
        let (trust, generation) = (&self.trust.name, self.publication.generation());
        for (stage, words) in self.expiry.iter_mut().filter_map(|expiry| expiry.look(now)) {
            if stage.is_warning() {
                tracing::warn!(%trust, generation, "{words}");
            } else {
                tracing::info!(%trust, generation, "{words}");
            }
        }
    }
}
