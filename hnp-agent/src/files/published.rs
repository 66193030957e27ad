//! What reloaded files have come to, for whoever uses it or reports on it.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::watch::ReloadStatus;

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
