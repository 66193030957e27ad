//! The loop around [`super::reload`]: looks when something moved in the files' directories, and
//! every [`POLL`] whatever inotify says.
//!
//! Directories are watched and not files: Kubernetes swaps the symlink `..data` beside them, editors
//! and certificate agents rename a new file over the old one. Polling compares content, so a missed
//! event (an unwatchable mount, a link that points elsewhere) costs a second and not a rotation.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::reload::Fingerprint;

/// How often content is compared when no event came.
pub const POLL: Duration = Duration::from_secs(1);
/// After an event, what belongs together may still be on its way; also bounds the looks per second
/// in a directory where somebody writes without pause.
const GATHER: Duration = Duration::from_millis(50);

/// What `/metrics` and `/readyz` say about something that is reloaded.
#[derive(Debug, Default)]
pub struct ReloadStatus {
    failures: AtomicU64,
    failing: AtomicBool,
    error: Mutex<Option<String>>,
}

impl ReloadStatus {
    /// Changes that were refused so far.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// True while the files are not what is in use, because they are broken.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Relaxed)
    }

    /// Why, while [`Self::is_failing`].
    pub fn error(&self) -> Option<String> {
        self.lock().clone()
    }

    pub(crate) fn refused(&self, error: String) {
        self.failures.fetch_add(1, Relaxed);
        self.failing.store(true, Relaxed);
        *self.lock() = Some(error);
    }

    pub(crate) fn good(&self) {
        self.failing.store(false, Relaxed);
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes fingerprints of content. Keyed per process, so that key material cannot be guessed from one.
#[derive(Clone, Debug, Default)]
pub struct Fingerprints(RandomState);

impl Fingerprints {
    /// The fingerprint of several pieces; a piece that cannot be read has its error's kind for content.
    pub fn of<'a>(
        &self,
        pieces: impl IntoIterator<Item = Result<&'a [u8], std::io::ErrorKind>>,
    ) -> Fingerprint {
        let mut hasher = self.0.build_hasher();
        for piece in pieces {
            match piece {
                Ok(bytes) => {
                    hasher.write_usize(bytes.len());
                    hasher.write(bytes);
                }
                Err(kind) => hasher.write(format!("unreadable: {kind:?}").as_bytes()),
            }
        }
        hasher.finish()
    }
}

/// Calls `look` when files in the directories of `files` move, every `poll`, and when it asked to be
/// called again. Ends on cancellation; safe to drop at any time.
pub async fn follow(
    files: &[PathBuf],
    poll: Duration,
    cancel: CancellationToken,
    mut look: impl FnMut(Instant) -> Option<Instant>,
) {
    let (moved, mut events) = mpsc::channel(1);
    // Kept alive to the end: dropping it ends the events.
    let _watcher = watcher(files, moved);
    loop {
        let again = look(Instant::now());
        let wait = again.map_or(poll, |at| at.saturating_duration_since(Instant::now())).min(poll);
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            Some(()) = events.recv() => {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(GATHER) => {}
                }
                while events.try_recv().is_ok() {}
            }
        }
    }
}

fn watcher(files: &[PathBuf], moved: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        // Our own reads are events too; anything that went wrong is a reason to look.
        if !event.is_ok_and(|event| event.kind.is_access() && !closed_after_writing(event.kind)) {
            // Full means that a look is due anyway.
            let _ = moved.try_send(());
        }
    };
    let mut watcher = match notify::recommended_watcher(on_event) {
        Ok(watcher) => watcher,
        Err(error) => {
            tracing::warn!(%error, "files are polled only: inotify cannot be used (fs.inotify limits?)");
            return None;
        }
    };
    let mut directories: Vec<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    directories.sort_unstable();
    directories.dedup();
    for directory in directories {
        if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
            tracing::debug!(directory = %directory.display(), %error, "polled only");
        }
    }
    Some(watcher)
}

fn closed_after_writing(kind: notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    kind == notify::EventKind::Access(AccessKind::Close(AccessMode::Write))
}
