//! What sources have come to, for whoever uses it or reports on it, and the end that they write it by.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::watch::ReloadStatus;
use crate::telemetry::readiness::{Pending, Readiness};

/// One source's current snapshot, and how its files are doing. Clones are the same.
#[derive(Debug)]
pub struct Published<S> {
    /// The source's name in the Plan.
    pub name: Arc<str>,
    /// Empty until the first good look.
    pub shared: Arc<ArcSwapOption<S>>,
    /// Failures and the alarm.
    pub status: Arc<ReloadStatus>,
}

impl<S> Clone for Published<S> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), shared: self.shared.clone(), status: self.status.clone() }
    }
}

/// All sources of a kind that are in the configuration now.
pub type AllPublished<S> = Arc<ArcSwap<Vec<Published<S>>>>;

/// The writing end of one source: what identities and trusts have in common, whatever is said of them.
#[derive(Debug)]
pub struct Publication<S> {
    published: Published<S>,
    pending: Option<Pending>,
    /// Of what is published; before that, the last one of the source this one took over from.
    generation: u64,
}

impl<S> Publication<S> {
    /// Nothing is published yet, and readiness waits for it under `kind` and name. Generations and failures of `former`
    /// are counted on.
    pub fn new(
        kind: &str,
        name: Arc<str>,
        former: Option<&Published<S>>,
        generation: fn(&S) -> u64,
        readiness: &Readiness,
    ) -> Self {
        let before = former.and_then(|former| former.shared.load().as_deref().map(generation));
        Self {
            pending: Some(readiness.pending(format!("{kind} {name}"), "not loaded yet")),
            published: Published {
                name,
                shared: Arc::new(ArcSwapOption::empty()),
                status: former.map_or_else(Arc::default, |former| Arc::clone(&former.status)),
            },
            generation: before.unwrap_or(0),
        }
    }

    /// What others see of it.
    pub fn published(&self) -> &Published<S> {
        &self.published
    }

    /// The source's name in the Plan.
    pub fn name(&self) -> &Arc<str> {
        &self.published.name
    }

    /// The generation of what is published.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Publishes what `snapshot` makes of the next generation's number.
    pub fn publish(&mut self, snapshot: impl FnOnce(u64) -> S) {
        self.generation += 1;
        self.published.shared.store(Some(Arc::new(snapshot(self.generation))));
        self.published.status.good();
        self.pending = None;
    }

    /// Why nothing is published yet, while that is so.
    pub fn waiting(&self, why: &str) {
        if let Some(pending) = &self.pending {
            pending.because(why);
        }
    }

    /// What came cannot be used; what is published stays.
    pub fn refused(&self, error: String) {
        self.waiting(&error);
        self.published.status.refused(error);
    }

    /// The source holds again what is published.
    pub fn restored(&self) {
        self.published.status.good();
    }
}
