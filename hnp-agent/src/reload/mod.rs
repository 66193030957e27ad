//! The configuration is read again when its file changes, and on SIGHUP.
//!
//! What can be used becomes the next [`Generation`]: published to [`keep_in_step`], which has capture
//! publish it to the workers together with the VIP table that counts in it. What cannot be used changes
//! nothing: one line says all that is wrong with it, a metric stays up until the file is good again, and
//! readiness is not touched, because the old configuration serves on.
//!
//! [`keep_in_step`]: crate::resolve::keep_in_step

mod candidate;
mod difference;
mod sources;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::signal::unix::Signal;
use tokio::sync::watch::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

use crate::config::plan::Plan;
use crate::config::{self, LoadError};
use crate::files::reload::{Fingerprint, Reload, Step};
use crate::files::watch::{self, Fingerprints, ReloadStatus};
use crate::generation::Generation;
use crate::tasks::Tasks;
use crate::telemetry::log::Diagnostics;
use crate::telemetry::readiness::Readiness;
use crate::telemetry::{Telemetry, names};
use crate::workload::Directory;
use candidate::Candidate;
use difference::Difference;
use sources::Sources;

/// What the agent was started with, and what it said.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// The file; absolute, so that its directory can be watched. `None`: it was the environment, which never
    /// changes for a process.
    pub path: Option<PathBuf>,
    /// What the Plan of the start was read from.
    pub text: String,
}

impl ConfigFile {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or is no text.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = config::read(path)?;
        let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
        Ok(Self { path: Some(std::path::absolute(path).map_err(unreadable)?), text })
    }
}

/// Who reads the configuration again.
pub struct Reloader {
    /// Empty, and never read, where there is no file.
    path: PathBuf,
    has_file: bool,
    reload: Reload,
    fingerprints: Fingerprints,
    sources: Sources,
    can_keep: CanKeep,
    telemetry: Arc<Telemetry>,
    diagnostics: Diagnostics,
    generations: Sender<Arc<Generation>>,
    status: Arc<Status>,
}

/// Why the kernel cannot keep what strict routes, by name, promise; `None`: it can.
type CanKeep = Box<dyn Fn(&[&str]) -> Option<String> + Send>;

/// What the metrics say.
#[derive(Debug, Default)]
struct Status {
    reload: ReloadStatus,
    taken: AtomicU64,
    waiting: AtomicU64,
}

/// What had us look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cause {
    /// The file moved, or it was time.
    Watch,
    /// SIGHUP: somebody waits for an answer, whatever it is.
    Signal,
}

impl Reloader {
    /// Opens the identities and trusts of the Plan, which is the first generation, and watches them. `directory` is whom
    /// issuers believe.
    pub fn start(
        file: &ConfigFile,
        plan: Plan,
        diagnostics: Diagnostics,
        directory: Directory,
        readiness: &Readiness,
        telemetry: &Arc<Telemetry>,
        tasks: &Tasks,
    ) -> Self {
        let fingerprints = Fingerprints::default();
        let reload = Reload::publishing(fingerprints.of([Ok(file.text.as_bytes())]));
        let mut sources = Sources::new(directory, readiness, telemetry, tasks);
        let first = sources.generation(1, plan);
        let (generations, _) = tokio::sync::watch::channel(first);
        let status = Arc::<Status>::default();
        let (shown, generation) = (Arc::clone(&status), generations.subscribe());
        telemetry.register(move |out| {
            out.single(&names::CONFIG_GENERATION, generation.borrow().number);
            out.single(&names::CONFIG_RELOADS, shown.taken.load(Relaxed));
            out.single(&names::CONFIG_RELOAD_FAILURES, shown.reload.failures());
            out.single(&names::CONFIG_RELOAD_FAILING, u64::from(shown.reload.is_failing()));
            out.single(&names::CONFIG_RESTART_NEEDED, shown.waiting.load(Relaxed));
        });
        Self {
            has_file: file.path.is_some(),
            path: file.path.clone().unwrap_or_default(),
            reload,
            fingerprints,
            sources,
            can_keep: Box::new(|_| None),
            telemetry: Arc::clone(telemetry),
            diagnostics,
            generations,
            status,
        }
    }

    /// Has a configuration refused for strict routes that the kernel cannot keep. `can_keep` is told their
    /// names and says why not.
    #[must_use]
    pub fn asking(self, can_keep: impl Fn(&[&str]) -> Option<String> + Send + 'static) -> Self {
        Self { can_keep: Box::new(can_keep), ..self }
    }

    /// The generation in force, and its successors.
    pub fn generations(&self) -> Receiver<Arc<Generation>> {
        self.generations.subscribe()
    }

    /// Follows the file and the signal until cancelled.
    pub async fn watch(self, mut hangup: Signal, cancel: CancellationToken) {
        if !self.has_file {
            return nothing_to_read(hangup, cancel).await;
        }
        let files = [self.path.clone()];
        let reloader = Mutex::new(self);
        let look = |now, cause| reloader.lock().unwrap_or_else(PoisonError::into_inner).look(now, cause);
        let following = watch::follow(&files, watch::POLL, cancel, |now| look(now, Cause::Watch));
        let mut following = std::pin::pin!(following);
        loop {
            // Both are cancel-safe, and a look is never cut short.
            tokio::select! {
                () = &mut following => return,
                Some(()) = hangup.recv() => {
                    look(Instant::now(), Cause::Signal);
                }
            }
        }
    }

    /// One look at the file; when to look again, if sooner than usual.
    fn look(&mut self, now: Instant, cause: Cause) -> Option<Instant> {
        let text = config::read(&self.path);
        let content = self.fingerprint(&text);
        let current = self.generations.borrow().clone();
        let (path, asked) = (&self.path, (&self.sources, &self.can_keep));
        let step = self.reload.look(now, content, || Candidate::of(text, path, &current.plan, asked));
        match step {
            Step::Same if cause == Cause::Signal => self.say_again(),
            Step::Same => {}
            // Whoever sends a signal has written what he wanted to write.
            Step::LookAgain(settled) if cause == Cause::Signal => return self.look(settled, cause),
            Step::LookAgain(at) => return Some(at),
            Step::Publish(candidate) => self.take(candidate, &current),
            Step::Refuse { error, first } => {
                if first || cause == Cause::Signal {
                    self.refused(&error.to_string());
                }
                self.status.reload.refused(error.to_string());
            }
            Step::Restored => {
                tracing::info!(file = %self.path.display(), generation = current.number, "the file holds again the configuration in force");
                self.status.reload.good();
            }
        }
        None
    }

    fn fingerprint(&self, text: &Result<String, LoadError>) -> Fingerprint {
        match text {
            Ok(text) => self.fingerprints.of([Ok(text.as_bytes())]),
            // What cannot be read has its words for content; the marker keeps the two apart.
            Err(error) => self.fingerprints.of([Ok(error.to_string().as_bytes()), Ok(b"unreadable")]),
        }
    }

    fn take(&mut self, candidate: Candidate, current: &Generation) {
        let Candidate { plan, waiting, warnings } = candidate;
        let file = self.path.display();
        for warning in warnings {
            tracing::warn!(%file, "{warning}");
        }
        let difference = Difference::between(&current.plan, &plan);
        if difference.is_nothing() {
            tracing::info!(%file, generation = current.number, "the configuration was read again; nothing in force changes");
        } else {
            if let Err(error) = self.diagnostics.set_level(&plan.log.level) {
                tracing::warn!(%error, "log.level stays as it was");
            }
            self.telemetry.add_routes(&plan);
            let next = self.sources.generation(current.number + 1, plan);
            let Difference { added, removed, changed, settings } = difference;
            tracing::info!(
                %file,
                generation = next.number,
                routes_added = added.join(", "),
                routes_removed = removed.join(", "),
                routes_changed = changed.join(", "),
                settings_changed = settings.join(", "),
                "configuration reloaded"
            );
            self.generations.send_replace(next);
        }
        if !waiting.is_empty() {
            let keys = waiting.join(", ");
            tracing::warn!(%file, keys, "these keys changed and wait for a restart; until then the agent goes on with the old values");
        }
        self.status.waiting.store(waiting.len() as u64, Relaxed);
        self.status.taken.fetch_add(1, Relaxed);
        self.status.reload.good();
    }

    /// Nothing is new; whoever asked is told how it stands.
    fn say_again(&self) {
        match self.status.reload.error() {
            Some(error) => self.refused(&error),
            None => {
                let generation = self.generations.borrow().number;
                tracing::info!(file = %self.path.display(), generation, "SIGHUP: the configuration has not changed");
            }
        }
    }

    fn refused(&self, mistakes: &str) {
        let generation = self.generations.borrow().number;
        tracing::error!(file = %self.path.display(), generation, mistakes, "the configuration cannot be used; the old one stays in force");
    }
}

/// Whoever sends SIGHUP to an agent without a file is told so.
async fn nothing_to_read(mut hangup: Signal, cancel: CancellationToken) {
    loop {
        // Both are cancel-safe.
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(()) = hangup.recv() => {
                tracing::info!("SIGHUP: the configuration came from the environment; to change it, start anew");
            }
        }
    }
}

#[cfg(test)]
mod tests;
