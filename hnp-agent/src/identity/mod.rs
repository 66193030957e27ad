//! Identities: where certificate and key come from, and what is published of them.
//!
//! Each kind of source has a room of its own and hands validated snapshots to a publisher, which keeps
//! the last good one: what is broken is logged once and raises a metric, and a source that never had
//! anything keeps readiness down and says why. Nobody beyond this room knows which kind it is.

pub mod files;
pub mod issuer;
mod publisher;
pub mod snapshot;
pub mod spiffe;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use crate::config::plan::{Identity, IdentitySource};
use crate::files::published::{AllPublished, Published};
use crate::files::watch::ReloadStatus;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;
use crate::telemetry::readiness::Readiness;
use crate::workload::Directory;
use files::load::{IdentityError, Loaded};
use issuer::Issuer;
use publisher::Publisher;
use snapshot::{IdentitySnapshot, SharedIdentity};

/// An identity's source, opened: good files are published when this exists.
pub enum Source {
    /// Files.
    Files(files::Source),
    /// The SPIFFE Workload API.
    Spiffe(spiffe::Source),
    /// An intermediate, with which the agent issues one for each workload.
    Issuer(issuer::Source),
}

impl Source {
    /// Takes the first look. `former` is what an earlier definition under this name has published: its generations
    /// and failures are counted on. `directory` is whom an issuer believes.
    pub fn open(
        identity: &Identity,
        former: Option<&Published<IdentitySnapshot>>,
        readiness: &Readiness,
        directory: &Directory,
    ) -> Self {
        let publisher = Publisher::new(Arc::clone(&identity.name), former, readiness);
        match &identity.source {
            IdentitySource::Files(files) => Self::Files(files::Source::open(files.clone(), publisher)),
            IdentitySource::Spiffe(spiffe) => Self::Spiffe(spiffe::Source::open(spiffe.clone(), publisher)),
            IdentitySource::Issuer(issuer) => {
                Self::Issuer(issuer::Source::open(issuer.clone(), publisher, directory.clone(), former))
            }
        }
    }

    /// What is published, and how the source is doing.
    pub fn published(&self) -> Published<IdentitySnapshot> {
        match self {
            Self::Files(source) => source.published(),
            Self::Spiffe(source) => source.published(),
            Self::Issuer(source) => source.published(),
        }
    }

    /// Publishes changes until cancelled.
    pub async fn watch(self, cancel: CancellationToken) {
        match self {
            Self::Files(source) => source.watch(cancel).await,
            Self::Spiffe(source) => source.watch(cancel).await,
            Self::Issuer(source) => source.watch(cancel).await,
        }
    }
}

/// One look at an identity, for whoever serves nothing by it; of an issuer, at its intermediate.
///
/// # Errors
/// What is wrong with it.
pub fn load(identity: &Identity) -> Result<Loaded, IdentityError> {
    match &identity.source {
        IdentitySource::Files(files) => files::load::load(files),
        IdentitySource::Spiffe(spiffe) => spiffe::load(spiffe),
        IdentitySource::Issuer(issuer) => {
            issuer::mint::load(issuer, crate::clock::now()).map(|(loaded, _)| loaded)
        }
    }
}

/// Whether a definition that is not in use yet could be: `former` is what serves under its name now.
///
/// # Errors
/// What is wrong with it.
pub fn usable(
    identity: &Identity,
    former: Option<&Published<IdentitySnapshot>>,
) -> Result<(), IdentityError> {
    let serving = former.and_then(|former| former.shared.load_full());
    match &identity.source {
        IdentitySource::Files(files) => files::usable(files, serving.as_deref()),
        IdentitySource::Spiffe(spiffe) => spiffe::usable(spiffe),
        IdentitySource::Issuer(issuer) => issuer::usable(issuer, crate::clock::now()),
    }
}

/// The metrics of all identities in the configuration, for [`crate::telemetry::Telemetry::register`].
pub fn metrics(
    all: AllPublished<IdentitySnapshot>,
) -> impl Fn(&mut Exposition<'_, '_>) + Send + Sync + 'static {
    move |out| {
        let all = all.load();
        let labels: Vec<_> = all.iter().map(|one| [("identity", &*one.name)]).collect();
        let leaf = |read: fn(&IdentitySnapshot) -> SystemTime| {
            all.iter().zip(&labels).filter_map(move |(one, labels)| {
                one.shared.load().as_ref().map(|snapshot| (&labels[..], seconds(read(snapshot))))
            })
        };
        out.family(&names::IDENTITY_NOT_BEFORE, leaf(|snapshot| snapshot.leaf.not_before));
        out.family(&names::IDENTITY_NOT_AFTER, leaf(|snapshot| snapshot.leaf.not_after));
        let each = |read: fn(&SharedIdentity, &ReloadStatus) -> u64| {
            all.iter().zip(&labels).map(move |(one, labels)| (&labels[..], read(&one.shared, &one.status)))
        };
        out.family(
            &names::IDENTITY_GENERATION,
            each(|shared, _| shared.load().as_ref().map_or(0, |snapshot| snapshot.generation)),
        );
        out.family(&names::IDENTITY_RELOAD_FAILURES, each(|_, status| status.failures()));
        out.family(&names::IDENTITY_RELOAD_FAILING, each(|_, status| status.is_failing().into()));
        let issuers: Vec<_> = all
            .iter()
            .zip(&labels)
            .filter_map(|(one, labels)| {
                let snapshot = one.shared.load();
                Some((&labels[..], Arc::clone(snapshot.as_ref()?.issuer()?)))
            })
            .collect();
        let of_issuers =
            |read: fn(&Issuer) -> f64| issuers.iter().map(move |(labels, issuer)| (*labels, read(issuer)));
        out.family(&names::ISSUED, of_issuers(|issuer| issuer.stats().minted() as f64));
        out.family(&names::ISSUE_FAILURES, of_issuers(|issuer| issuer.stats().failures() as f64));
        out.family(&names::ISSUE_CPU, of_issuers(|issuer| issuer.stats().cost().as_secs_f64()));
        out.family(&names::ISSUED_CACHED, of_issuers(|issuer| issuer.cached() as f64));
    }
}

/// Seconds since 1970, negative before it.
pub(crate) fn seconds(at: SystemTime) -> f64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}
