//! What every source of a trust hands its findings to: it publishes, counts and says what came of them.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;

use super::load::Loaded;
use super::snapshot::{RootDates, SharedTrust, TrustSnapshot};
use crate::config::plan::{Roots, Trust};
use crate::expiry::Expiry;
use crate::files::published::Published;
use crate::files::watch::ReloadStatus;
use crate::telemetry::readiness::{Pending, Readiness};

/// One trust, as the rest of the agent sees it.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) trust: Arc<Trust>,
    shared: SharedTrust,
    status: Arc<ReloadStatus>,
    pending: Option<Pending>,
    /// The last generation of the source this one took over from.
    before: u64,
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
        let before = former.and_then(|former| former.shared.load().as_ref().map(|one| one.generation));
        Self {
            pending: Some(readiness.pending(format!("trust {}", trust.name), "not loaded yet")),
            trust,
            shared: Arc::new(ArcSwapOption::empty()),
            status: former.map_or_else(Arc::default, |former| Arc::clone(&former.status)),
            before: before.unwrap_or(0),
            expiry: Vec::new(),
        }
    }

    pub(super) fn published(&self) -> Published<TrustSnapshot> {
        Published {
            name: Arc::clone(&self.trust.name),
            shared: Arc::clone(&self.shared),
            status: Arc::clone(&self.status),
        }
    }

    /// What is trusted from now on.
    pub(super) fn publish(&mut self, loaded: Loaded) {
        let generation = self.generation() + 1;
        let name = Arc::clone(&self.trust.name);
        for warning in &loaded.warnings {
            tracing::warn!(trust = %name, "{warning}");
        }
        let (roots, crls) = (loaded.roots, loaded.lists.count());
        tracing::info!(trust = %name, generation, roots, crls, "trust loaded");
        let origin = self.trust.roots.to_string();
        let expiry = |root: &RootDates| Expiry::of_root(&root.subject, &origin, root.lifetime);
        self.expiry = loaded.dates.iter().map(expiry).collect();
        self.shared.store(Some(Arc::new(loaded.snapshot(name, generation))));
        self.status.good();
        self.pending = None;
    }

    /// What is not ready yet, and why, while nothing is trusted.
    pub(super) fn waiting(&self, why: &str) {
        if let Some(pending) = &self.pending {
            pending.because(why);
        }
    }

    /// What came cannot be used; what is trusted stays. `first`: it was not said yet.
    pub(super) fn refused(&self, error: &str, first: bool) {
        if first {
            tracing::error!(trust = %self.trust.name, serving = self.generation(), "{error}");
        }
        self.waiting(error);
        self.status.refused(error.to_owned());
    }

    /// The source holds again what is trusted.
    pub(super) fn restored(&self) {
        tracing::info!(trust = %self.trust.name, "the source holds again the roots in use");
        self.status.good();
    }

    /// Says how far the lifetime of roots is over, once for each stage of it. Nobody asked for those of the system's store
    /// by name, and whoever maintains it takes out what has ended; SPIRE does the same with its own.
    pub(super) fn remind(&mut self, now: SystemTime) {
        if !matches!(self.trust.roots, Roots::File(_)) {
            return;
        }
        let (trust, generation) = (&self.trust.name, self.generation());
        for (stage, words) in self.expiry.iter_mut().filter_map(|expiry| expiry.look(now)) {
            if stage.is_warning() {
                tracing::warn!(%trust, generation, "{words}");
            } else {
                tracing::info!(%trust, generation, "{words}");
            }
        }
    }

    fn generation(&self) -> u64 {
        self.shared.load().as_ref().map_or(self.before, |snapshot| snapshot.generation)
    }
}
