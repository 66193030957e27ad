//! Identity sources: publish validated snapshots, keep the last good one.
//!
//! A [`Source`] is opened at start (one synchronous look, so an agent with good files is ready at
//! once) and then watched. A broken change keeps the old identity serving, is logged once and raises
//! a metric; a source that never loaded keeps readiness down and says why.

mod error;
mod layout;
pub mod load;
mod passphrase;
pub mod snapshot;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use tokio_util::sync::CancellationToken;

use crate::config::plan::{Identity, IdentityFiles};
use crate::expiry::Expiry;
use crate::files::published::{AllPublished, Published};
use crate::files::reload::{Reload, Step};
use crate::files::watch::{self, Fingerprints, ReloadStatus};
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;
use crate::telemetry::readiness::{Pending, Readiness};
use load::{Files, IdentityError, IdentityWarning, Loaded};
use snapshot::{IdentitySnapshot, SharedIdentity};

/// One identity's files and what became of them.
#[derive(Debug)]
pub struct Source {
    identity: Arc<Identity>,
    shared: SharedIdentity,
    status: Arc<ReloadStatus>,
    reload: Reload,
    fingerprints: Fingerprints,
    pending: Option<Pending>,
    /// The last generation of the source this one took over from.
    before: u64,
    /// What was said of the age of what is presented.
    expiry: Option<Expiry>,
}

impl Source {
    /// Takes the first look. With good files the identity is published when this returns; without,
    /// readiness stays down until [`Self::watch`] has seen good ones.
    pub fn open(identity: Arc<Identity>, readiness: &Readiness) -> Self {
        Self::start(identity, readiness, Arc::default(), 0)
    }

    /// The same for an identity whose definition has changed: generations and failures are counted on.
    pub fn open_after(
        identity: Arc<Identity>,
        former: &Published<IdentitySnapshot>,
        readiness: &Readiness,
    ) -> Self {
        let generation = former.shared.load().as_ref().map_or(0, |snapshot| snapshot.generation);
        Self::start(identity, readiness, Arc::clone(&former.status), generation)
    }

    fn start(identity: Arc<Identity>, readiness: &Readiness, status: Arc<ReloadStatus>, before: u64) -> Self {
        let name = format!("identity {}", identity.name);
        let mut source = Self {
            pending: Some(readiness.pending(name, "not loaded yet")),
            identity,
            shared: Arc::new(ArcSwapOption::empty()),
            status,
            reload: Reload::new(),
            fingerprints: Fingerprints::default(),
            before,
            expiry: None,
        };
        source.look(Instant::now());
        source
    }

    /// What is published, and how the files are doing.
    pub fn published(&self) -> Published<IdentitySnapshot> {
        Published {
            name: Arc::clone(&self.identity.name),
            shared: Arc::clone(&self.shared),
            status: Arc::clone(&self.status),
        }
    }

    /// Publishes changes until cancelled.
    pub async fn watch(mut self, cancel: CancellationToken) {
        let mut files: Vec<PathBuf> = match &self.identity.files {
            IdentityFiles::Pair { certificate, key } => vec![certificate.clone(), key.clone()],
            IdentityFiles::Directory(directory) => layout::all(directory),
        };
        files.extend(self.identity.passphrase_file.clone());
        watch::follow(&files, watch::POLL, cancel, |now| {
            let again = self.look(now);
            self.remind(crate::clock::now());
            again
        })
        .await;
    }

    /// Says how far the lifetime of what is presented is over, once for each stage of it.
    fn remind(&mut self, now: SystemTime) {
        let Some((stage, words)) = self.expiry.as_mut().and_then(|expiry| expiry.look(now)) else { return };
        let (identity, generation) = (&self.identity.name, self.generation());
        if stage.is_warning() {
            tracing::warn!(%identity, generation, "{words}");
        } else {
            tracing::info!(%identity, generation, "{words}");
        }
    }

    /// One look at the files; when to look again, if sooner than usual.
    fn look(&mut self, now: Instant) -> Option<Instant> {
        let files = Files::read(&self.identity);
        let content = files.fingerprint(&self.fingerprints);
        let serving = self.shared.load();
        let step =
            self.reload.look(now, content, || acceptable(files, serving.as_deref(), crate::clock::now()));
        match step {
            Step::Same => {}
            Step::LookAgain(at) => {
                if let Some(pending) = &self.pending {
                    pending.because("the files are incomplete or do not fit; waiting for a change to finish");
                }
                return Some(at);
            }
            Step::Publish(loaded) => self.publish(loaded),
            Step::Refuse { error, first } => {
                if first {
                    tracing::error!(identity = %self.identity.name, serving = self.generation(), "{error}");
                }
                if let Some(pending) = &self.pending {
                    pending.because(error.to_string());
                }
                self.status.refused(error.to_string());
            }
            Step::Restored => {
                tracing::info!(identity = %self.identity.name, "the files hold again what is presented");
                self.status.good();
            }
        }
        None
    }

    fn publish(&mut self, loaded: Loaded) {
        let generation = self.generation() + 1;
        let name = Arc::clone(&self.identity.name);
        for warning in &loaded.warnings {
            tracing::warn!(identity = %name, "{warning}");
        }
        tracing::info!(
            identity = %name,
            generation,
            subject = loaded.leaf.subject,
            serial = loaded.leaf.serial,
            not_after = seconds(loaded.leaf.not_after),
            certificates = loaded.certified_key.cert.len(),
            "identity loaded"
        );
        let mut expiry = Expiry::of_leaf(&loaded.certificate, loaded.leaf.lifetime());
        if loaded.warnings.iter().any(|warning| matches!(warning, IdentityWarning::Expired { .. })) {
            // That is said already.
            let _ = expiry.look(crate::clock::now());
        }
        self.expiry = Some(expiry);
        self.shared.store(Some(Arc::new(loaded.snapshot(name, generation))));
        self.status.good();
        self.pending = None;
    }

    fn generation(&self) -> u64 {
        self.shared.load().as_ref().map_or(self.before, |snapshot| snapshot.generation)
    }
}

/// Whether a definition that is not in use yet could be: `former` is what serves under its name now.
///
/// # Errors
/// What is wrong with its files.
pub fn usable(
    identity: &Identity,
    former: Option<&Published<IdentitySnapshot>>,
) -> Result<(), IdentityError> {
    let serving = former.and_then(|former| former.shared.load_full());
    acceptable(Files::read(identity), serving.as_deref(), crate::clock::now()).map(drop)
}

/// A pair that cannot be used today must not replace one that can.
fn acceptable(
    files: Files<'_>,
    serving: Option<&IdentitySnapshot>,
    now: SystemTime,
) -> Result<Loaded, IdentityError> {
    let loaded = files.load(now)?;
    match loaded.not_now() {
        Some(warning) if serving.is_some_and(|serving| serving.leaf.is_valid_at(now)) => {
            Err(IdentityError::NotNow(warning.clone()))
        }
        Some(_) | None => Ok(loaded),
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
    }
}

/// Seconds since 1970, negative before it.
pub(crate) fn seconds(at: SystemTime) -> f64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests;
