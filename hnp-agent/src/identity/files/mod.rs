//! An identity from files: watched, because whoever renews the certificate replaces them.
//!
//! Opening takes one synchronous look, so that an agent with good files is ready at once.

mod error;
mod layout;
pub mod load;
mod passphrase;

use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use super::publisher::Publisher;
use super::snapshot::IdentitySnapshot;
use crate::config::plan::{IdentityFiles, IdentityPlace};
use crate::files::published::Published;
use crate::files::reload::{Reload, Step};
use crate::files::watch::{self, Fingerprints};
use load::{Files, IdentityError, Loaded};

/// One identity's files and what became of them.
#[derive(Debug)]
pub struct Source {
    files: IdentityFiles,
    publisher: Publisher,
    reload: Reload,
    fingerprints: Fingerprints,
}

impl Source {
    /// Takes the first look. With good files the identity is published when this returns; without,
    /// readiness stays down until [`Self::watch`] has seen good ones.
    pub(super) fn open(files: IdentityFiles, publisher: Publisher) -> Self {
        let (reload, fingerprints) = (Reload::new(), Fingerprints::default());
        let mut source = Self { files, publisher, reload, fingerprints };
        source.look(Instant::now());
        source
    }

    /// What is published, and how the files are doing.
    pub fn published(&self) -> Published<IdentitySnapshot> {
        self.publisher.published()
    }

    /// Publishes changes until cancelled.
    pub async fn watch(mut self, cancel: CancellationToken) {
        let files = watched(&self.files);
        watch::follow(&files, watch::POLL, cancel, |now| {
            let again = self.look(now);
            self.publisher.remind(crate::clock::now());
            again
        })
        .await;
    }

    /// One look at the files; when to look again, if sooner than usual.
    fn look(&mut self, now: Instant) -> Option<Instant> {
        let files = Files::read(&self.files);
        let content = files.fingerprint(&self.fingerprints);
        let serving = self.publisher.serving();
        let step =
            self.reload.look(now, content, || acceptable(files, serving.as_deref(), crate::clock::now()));
        match step {
            Step::Same => {}
            Step::LookAgain(at) => {
                let why = "the files are incomplete or do not fit; waiting for a change to finish";
                self.publisher.waiting(why);
                return Some(at);
            }
            Step::Publish(loaded) => self.publisher.publish(loaded),
            Step::Refuse { error, first } => self.publisher.refused(&error, first),
            Step::Restored => self.publisher.restored(),
        }
        None
    }
}

/// Every file whose change may be one of these.
pub(super) fn watched(files: &IdentityFiles) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = match &files.place {
        IdentityPlace::Pair { certificate, key } => vec![certificate.clone(), key.clone()],
        IdentityPlace::Directory(directory) => layout::all(directory),
    };
    all.extend(files.passphrase_file.clone());
    all
}

/// Whether files that are not in use yet could be, where `serving` is presented now.
///
/// # Errors
/// What is wrong with them.
pub(super) fn usable(files: &IdentityFiles, serving: Option<&IdentitySnapshot>) -> Result<(), IdentityError> {
    acceptable(Files::read(files), serving, crate::clock::now()).map(drop)
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

#[cfg(test)]
mod tests;
