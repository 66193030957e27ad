//! Trust: what the agent accepts from the other side.
//!
//! Roots come from a file or the system's store, are reloaded like identities (a broken change keeps
//! the old ones), and become rustls' own verifier: there is no way to switch verification off.

pub mod load;
pub mod reason;
pub mod revocation;
pub mod snapshot;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use tokio_util::sync::CancellationToken;

use crate::config::plan::{Roots, Trust};
use crate::expiry::{Expiry, Lifetime};
use crate::files::published::{AllPublished, Published};
use crate::files::reload::{Reload, Step};
use crate::files::watch::{self, Fingerprints, ReloadStatus};
use crate::identity::seconds;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;
use crate::telemetry::readiness::{Pending, Readiness};
use load::Loaded;
pub use reason::{reason_of, reason_of_io, tls_reason};
use snapshot::{RootDates, SharedTrust, TrustSnapshot};

/// How often the system's store is compared: it changes with package upgrades, and reading it means
/// parsing some 140 certificates.
const SYSTEM_POLL: Duration = Duration::from_secs(60);

/// One trust's roots and what became of them.
#[derive(Debug)]
pub struct Source {
    trust: Arc<Trust>,
    shared: SharedTrust,
    status: Arc<ReloadStatus>,
    reload: Reload,
    fingerprints: Fingerprints,
    pending: Option<Pending>,
    /// The last generation of the source this one took over from.
    before: u64,
    /// What was said of the age of the roots in use.
    expiry: Vec<Expiry>,
}

impl Source {
    /// Takes the first look. With good roots the trust is published when this returns; without,
    /// readiness stays down until [`Self::watch`] has seen good ones.
    /// `former` is what an earlier definition under this name has published: its generations and failures are counted
    /// on.
    pub fn open(trust: Arc<Trust>, former: Option<&Published<TrustSnapshot>>, readiness: &Readiness) -> Self {
        let before = former.and_then(|former| former.shared.load().as_ref().map(|one| one.generation));
        let name = format!("trust {}", trust.name);
        let mut source = Self {
            pending: Some(readiness.pending(name, "not loaded yet")),
            trust,
            shared: Arc::new(ArcSwapOption::empty()),
            status: former.map_or_else(Arc::default, |former| Arc::clone(&former.status)),
            reload: Reload::new(),
            fingerprints: Fingerprints::default(),
            before: before.unwrap_or(0),
            expiry: Vec::new(),
        };
        source.look(Instant::now());
        source
    }

    /// What is published, and how the files are doing.
    pub fn published(&self) -> Published<TrustSnapshot> {
        Published {
            name: Arc::clone(&self.trust.name),
            shared: Arc::clone(&self.shared),
            status: Arc::clone(&self.status),
        }
    }

    /// Publishes changes until cancelled.
    pub async fn watch(mut self, cancel: CancellationToken) {
        let named = match &self.trust.roots {
            Roots::File(path) => Some(path),
            Roots::System => None,
        };
        let named: Vec<_> = named.into_iter().chain(&self.trust.revocation.crls).collect();
        // Of a directory, what lies in it, too: it is watched by its own name.
        let files: Vec<PathBuf> =
            named.iter().flat_map(|path| [path.to_path_buf(), path.join("all")]).collect();
        let poll = if named.is_empty() { SYSTEM_POLL } else { watch::POLL };
        watch::follow(&files, poll, cancel, |now| {
            let again = self.look(now);
            self.remind(crate::clock::now());
            again
        })
        .await;
    }

    /// Says how far the lifetime of roots is over, once for each stage of it. Nobody asked for those of the system's store
    /// by name, and whoever maintains it takes out what has ended.
    fn remind(&mut self, now: SystemTime) {
        if self.trust.roots == Roots::System {
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

    /// One look at the roots; when to look again, if sooner than usual.
    fn look(&mut self, now: Instant) -> Option<Instant> {
        let source = load::Source::read(&self.trust);
        let content = source.fingerprint(&self.fingerprints);
        match self.reload.look(now, content, || source.load(&self.trust)) {
            Step::Same => {}
            Step::LookAgain(at) => {
                if let Some(pending) = &self.pending {
                    pending.because("the roots cannot be read; waiting for a change to finish");
                }
                return Some(at);
            }
            Step::Publish(loaded) => self.publish(loaded),
            Step::Refuse { error, first } => {
                if first {
                    tracing::error!(trust = %self.trust.name, serving = self.generation(), "{error}");
                }
                if let Some(pending) = &self.pending {
                    pending.because(error.to_string());
                }
                self.status.refused(error.to_string());
            }
            Step::Restored => {
                tracing::info!(trust = %self.trust.name, "the file holds again the roots in use");
                self.status.good();
            }
        }
        None
    }

    fn publish(&mut self, loaded: Loaded) {
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

    fn generation(&self) -> u64 {
        self.shared.load().as_ref().map_or(self.before, |snapshot| snapshot.generation)
    }
}

/// The metrics of all trusts in the configuration, for [`crate::telemetry::Telemetry::register`].
pub fn metrics(all: AllPublished<TrustSnapshot>) -> impl Fn(&mut Exposition<'_, '_>) + Send + Sync + 'static {
    move |out| {
        let all = all.load();
        let labels: Vec<_> = all.iter().map(|one| [("trust", &*one.name)]).collect();
        let each = |read: fn(&SharedTrust, &ReloadStatus) -> u64| {
            all.iter().zip(&labels).map(move |(one, labels)| (&labels[..], read(&one.shared, &one.status)))
        };
        let generation = |shared: &SharedTrust, _: &ReloadStatus| {
            shared.load().as_ref().map_or(0, |snapshot| snapshot.generation)
        };
        let roots = |shared: &SharedTrust, _: &ReloadStatus| {
            shared.load().as_ref().map_or(0, |snapshot| snapshot.roots as u64)
        };
        out.family(&names::TRUST_GENERATION, each(generation));
        out.family(&names::TRUST_ROOTS, each(roots));
        let snapshots: Vec<_> = all.iter().map(|one| one.shared.load_full()).collect();
        let watched: Vec<_> = all
            .iter()
            .zip(&snapshots)
            .flat_map(|(one, snapshot)| snapshot.iter().map(move |snapshot| (&*one.name, snapshot)))
            .flat_map(|(trust, snapshot)| snapshot.dates.iter().map(move |root| (trust, root)))
            .map(|(trust, root)| {
                ([("trust", trust), ("root", &*root.subject), ("serial", &*root.serial)], root.lifetime)
            })
            .collect();
        let dates = |read: fn(&Lifetime) -> SystemTime| {
            watched.iter().map(move |(labels, lifetime)| (&labels[..], seconds(read(lifetime))))
        };
        out.family(&names::TRUST_ROOT_NOT_BEFORE, dates(|lifetime| lifetime.not_before));
        out.family(&names::TRUST_ROOT_NOT_AFTER, dates(|lifetime| lifetime.not_after));
        let next = all.iter().zip(&labels).zip(&snapshots).filter_map(|((_, labels), snapshot)| {
            Some((&labels[..], seconds(snapshot.as_ref()?.lists.next_update()?)))
        });
        out.family(&names::TRUST_CRL_NEXT_UPDATE, next);
        out.family(&names::TRUST_RELOAD_FAILURES, each(|_, status| status.failures()));
        out.family(&names::TRUST_RELOAD_FAILING, each(|_, status| status.is_failing().into()));
    }
}

#[cfg(test)]
mod tests;
