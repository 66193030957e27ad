//! Trust: what the agent accepts from the other side.
//!
//! Roots come from files, the system's store or the SPIFFE Workload API, are reloaded like identities (a broken change
//! keeps the old ones), and become rustls' own verifier: there is no way to switch verification off. Who is taken of
//! those they vouch for can be narrowed (`peer`), and each SPIFFE trust domain has its own (`domains`).

mod bundles;
pub mod domains;
pub mod load;
pub mod peer;
mod publisher;
pub mod reason;
pub mod revocation;
pub mod snapshot;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::config::plan::{Roots, Trust};
use crate::expiry::Lifetime;
use crate::files::published::{AllPublished, Published};
use crate::files::reload::{Reload, Step};
use crate::files::watch::{self, Fingerprints, ReloadStatus};
use crate::identity::seconds;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;
use crate::telemetry::readiness::Readiness;
use publisher::Publisher;
pub use reason::{reason_of, reason_of_io, tls_reason, words_of_io};
use snapshot::{SharedTrust, TrustSnapshot};

/// How often the system's store is compared: it changes with package upgrades, and reading it means
/// parsing some 140 certificates.
const SYSTEM_POLL: Duration = Duration::from_secs(60);

/// A trust's source, opened: good roots are published when this exists.
pub struct Source(Kind);

enum Kind {
    /// Files, or the system's store.
    Files(Files),
    /// The SPIFFE Workload API.
    Spiffe(bundles::Source),
}

impl Source {
    /// Takes the first look. With good roots the trust is published when this returns; without,
    /// readiness stays down until [`Self::watch`] has seen good ones.
    /// `former` is what an earlier definition under this name has published: its generations and failures are counted
    /// on.
    pub fn open(trust: Arc<Trust>, former: Option<&Published<TrustSnapshot>>, readiness: &Readiness) -> Self {
        let publisher = Publisher::new(Arc::clone(&trust), former, readiness);
        Self(match &trust.roots {
            Roots::File(_) | Roots::System => Kind::Files(Files::open(publisher)),
            Roots::Spiffe(api) => Kind::Spiffe(bundles::Source::open(api.clone(), publisher)),
        })
    }

    /// What is published, and how the source is doing.
    pub fn published(&self) -> Published<TrustSnapshot> {
        match &self.0 {
            Kind::Files(source) => source.publisher.published(),
            Kind::Spiffe(source) => source.published(),
        }
    }

    /// Publishes changes until cancelled.
    pub async fn watch(self, cancel: CancellationToken) {
        match self.0 {
            Kind::Files(source) => source.watch(cancel).await,
            Kind::Spiffe(source) => source.watch(cancel).await,
        }
    }
}

/// One trust's files and what became of them.
struct Files {
    publisher: Publisher,
    reload: Reload,
    fingerprints: Fingerprints,
}

impl Files {
    fn open(publisher: Publisher) -> Self {
        let mut source = Self { publisher, reload: Reload::new(), fingerprints: Fingerprints::default() };
        source.look(Instant::now());
        source
    }

    async fn watch(mut self, cancel: CancellationToken) {
        let trust = Arc::clone(&self.publisher.trust);
        let named = match &trust.roots {
            Roots::File(path) => Some(path),
            Roots::System | Roots::Spiffe(_) => None,
        };
        let named: Vec<_> = named.into_iter().chain(&trust.revocation.crls).collect();
        // Of a directory, what lies in it, too: it is watched by its own name.
        let files: Vec<PathBuf> =
            named.iter().flat_map(|path| [path.to_path_buf(), path.join("all")]).collect();
        let poll = if named.is_empty() { SYSTEM_POLL } else { watch::POLL };
        watch::follow(&files, poll, cancel, |now| {
            let again = self.look(now);
            self.publisher.remind(crate::clock::now());
            again
        })
        .await;
    }

    /// One look at the roots; when to look again, if sooner than usual.
    fn look(&mut self, now: Instant) -> Option<Instant> {
        let trust = &self.publisher.trust;
        let source = load::Source::read(trust);
        let content = source.fingerprint(&self.fingerprints);
        match self.reload.look(now, content, || source.load(trust)) {
            Step::Same => {}
            Step::LookAgain(at) => {
                self.publisher.waiting("the roots cannot be read; waiting for a change to finish");
                return Some(at);
            }
            Step::Publish(loaded) => self.publisher.publish(loaded),
            Step::Refuse { error, first } => self.publisher.refused(&error.to_string(), first),
            Step::Restored => self.publisher.restored(),
        }
        None
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
mod spiffe_tests;
#[cfg(test)]
mod tests;
