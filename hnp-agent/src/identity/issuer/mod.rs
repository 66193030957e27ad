//! Identities that the agent issues itself, one for each workload: the manager can tell pods apart although no pod has a key.
//!
//! The intermediate's files are watched like any identity's, and what is published of them is an [`Issuer`]: the
//! certificates of one generation of the intermediate, by service account. Nobody gets one who was not attributed to a
//! pod by his cgroup, or whose service account the API server has not confirmed (`Pod::confirmed_account`).

mod cache;
pub mod mint;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub use cache::{Issuer, NotIssued, Slot};
pub use stats::Stats;

use super::files::load::{Files, IdentityError, Loaded};
use super::publisher::Publisher;
use super::snapshot::{Holder, IdentitySnapshot};
use crate::config::plan::Issuer as Plan;
use crate::files::published::Published;
use crate::files::reload::{Reload, Step};
use crate::files::watch::{self, Fingerprints};
use crate::workload::Directory;
use cache::Terms;
use mint::Mint;

/// How often it is looked which certificates are to be renewed, and whose pods have gone.
const LOOK: Duration = Duration::from_millis(250);

/// An intermediate's files and what became of them.
#[derive(Debug)]
pub struct Source {
    plan: Plan,
    publisher: Publisher,
    reload: Reload,
    fingerprints: Fingerprints,
    directory: Directory,
    stats: Arc<Stats>,
}

impl Source {
    /// Takes the first look, as [`super::files::Source`] does. `former` is what has issued under this name until now.
    pub(super) fn open(
        plan: Plan,
        publisher: Publisher,
        directory: Directory,
        former: Option<&Published<IdentitySnapshot>>,
    ) -> Self {
        let former = former.and_then(|former| former.shared.load_full());
        let stats = former.as_ref().and_then(|one| one.issuer().map(|issuer| Arc::clone(issuer.stats())));
        let (reload, fingerprints) = (Reload::new(), Fingerprints::default());
        let stats = stats.unwrap_or_default();
        let mut source = Self { plan, publisher, reload, fingerprints, directory, stats };
        source.look(Instant::now());
        source
    }

    /// What is published, and how the files are doing.
    pub fn published(&self) -> Published<IdentitySnapshot> {
        self.publisher.published()
    }

    /// Publishes changes, and renews what was issued, until cancelled. What is asked for after that, under a configuration
    /// that is on its way out, is made when it is asked for.
    pub async fn watch(mut self, cancel: CancellationToken) {
        let published = self.published();
        let files = super::files::watched(&self.plan.intermediate);
        let following = watch::follow(&files, watch::POLL, cancel.clone(), |now| {
            let again = self.look(now);
            self.publisher.remind(crate::clock::now());
            again
        });
        tokio::select! {
            () = following => {}
            () = renew(&published) => {}
        }
    }

    /// One look at the files; when to look again, if sooner than usual.
    fn look(&mut self, now: Instant) -> Option<Instant> {
        let files = Files::read(&self.plan.intermediate);
        let content = files.fingerprint(&self.fingerprints);
        let load = || mint::of_files(&self.plan, files, crate::clock::now());
        match self.reload.look(now, content, load) {
            Step::Same => {}
            Step::LookAgain(at) => {
                let why =
                    "the intermediate's files are incomplete or do not fit; waiting for a change to finish";
                self.publisher.waiting(why);
                return Some(at);
            }
            Step::Publish((loaded, mint)) => self.publish(loaded, mint),
            Step::Refuse { error, first } => self.publisher.refused(&error, first),
            Step::Restored => self.publisher.restored(),
        }
        None
    }

    /// From now on this intermediate issues, and nothing of the one before is presented any more.
    fn publish(&mut self, loaded: Loaded, mint: Mint) {
        let former = self.publisher.serving();
        let former = former.as_ref().and_then(|one| one.issuer());
        let (directory, stats) = (self.directory.clone(), Arc::clone(&self.stats));
        self.publisher.publish_as(&loaded, |name, generation| {
            let terms = Terms {
                name: Arc::clone(&name),
                generation,
                pod_uid: self.plan.pod_uid,
                most: self.plan.max_identities,
            };
            let issuer = Issuer::new(terms, mint, directory, stats);
            if let Some(former) = former {
                issuer.follow(former);
            }
            IdentitySnapshot { holder: Holder::Issuer(issuer), ..loaded.snapshot(name, generation) }
        });
        if let Some(former) = former {
            former.end();
        }
    }
}

/// Renews what was issued and is in use, and lets go of what is not, for ever.
async fn renew(published: &Published<IdentitySnapshot>) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(snapshot) = published.shared.load_full() else { continue };
        let Some(issuer) = snapshot.issuer() else { continue };
        for slot in issuer.look(crate::clock::now()) {
            issuer.renew(&slot, crate::clock::now());
            // Other things have their turn on this thread.
            tokio::task::yield_now().await;
        }
    }
}

/// Whether files that are not in use yet could be.
///
/// # Errors
/// What is wrong with them.
pub(super) fn usable(plan: &Plan, now: SystemTime) -> Result<(), IdentityError> {
    mint::load(plan, now).map(drop)
}
