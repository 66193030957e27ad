//! The guard's other half: attaches `hnp_guard` to what comes out of pods, and tells it what to guard.
//!
//! Attached only while there is something to guard, so that a node without strict routes pays nothing.
//! Attached by pinned links, or by filters, which persist by themselves: it outlives the agent, and the
//! next one takes over in place. It stands where pods' veths end, in the agent's network namespace: an
//! agent that is not in the node's own cannot guard, and finds no interface to attach to.

mod clsact;
mod netlink;
mod posts;
mod tables;
mod watch;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use self::posts::Posts;
pub(super) use self::tables::Tables;
use self::watch::Watch;
use super::error::CaptureError;
use crate::config::plan::AddrRange;

/// How the program is attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// By a link (Linux 6.6), before all others.
    Tcx,
    /// By a filter of the first priority at the clsact queueing discipline.
    Clsact,
}

impl Way {
    /// The word for metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// How the guard is doing.
#[derive(Clone, Debug)]
pub(super) struct Status {
    /// How it is attached where it is; else what the kernel said to each way.
    pub(super) way: Result<Way, String>,
    /// Interfaces it is attached to.
    pub(super) interfaces: usize,
    /// Interfaces it could not be attached to.
    pub(super) failing: usize,
}

/// The running guard. Dropping it leaves what is attached, to enforce without an agent.
pub(super) struct Guard {
    tables: Tables,
    posts: Arc<Mutex<Posts>>,
    // Dropped last: its thread has a handle to the posts and ends by itself.
    _watch: Watch,
}

impl Guard {
    /// Finds out how the program can be attached and watches for new interfaces. Attaches nothing yet
    /// and leaves a dead agent's guard as it is, until [`Guard::set`].
    ///
    /// `dir` is the guard's own, on bpffs. The program is `hnp_guard`, the tables are its own. Must be called in the network namespace where pods' veths end.
    ///
    /// # Errors
    /// When netlink or the maps cannot be used.
    pub(super) fn start(program: OwnedFd, tables: Tables, dir: &Path) -> Result<Self, CaptureError> {
        let posts = Arc::new(Mutex::new(Posts::new(program, dir)?));
        let watch = Watch::start(posts.clone())?;
        Ok(Self { tables, posts, _watch: watch })
    }

    /// Whether the guard can be attached at all, as these strict routes need it.
    ///
    /// # Errors
    /// [`CaptureError::GuardImpossible`], with the routes' names.
    pub(super) fn require(&self, strict: &[&str]) -> Result<(), CaptureError> {
        if strict.is_empty() {
            return Ok(());
        }
        let named = |error| match error {
            CaptureError::GuardImpossible { why, .. } => {
                let routes = strict.iter().map(|route| (*route).to_owned()).collect();
                CaptureError::GuardImpossible { routes, why }
            }
            other => other,
        };
        self.posts().way().map(|_| ()).map_err(named)
    }

    /// Guards exactly these; none: the guard is taken off.
    ///
    /// What a dead agent attached is taken over in place, with no moment in which it is off.
    ///
    /// # Errors
    /// When the kernel refuses; what could be done was done, and calling again tries again.
    pub(super) fn set(&mut self, guarded: &[AddrRange]) -> Result<(), CaptureError> {
        // Filled before it is attached, and detached before it is emptied.
        if guarded.is_empty() {
            let off = self.posts().set(Vec::new());
            return off.and(self.tables.set(guarded));
        }
        let told = self.tables.set(guarded);
        let mut addresses: Vec<_> = guarded.iter().map(|guarded| guarded.net.addr).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let on = self.posts().set(addresses);
        told.and(on)
    }

    /// How the guard is doing.
    pub(super) fn status(&self) -> Status {
        self.posts().status()
    }

    /// Takes the guard off.
    ///
    /// # Errors
    /// The first interface it could not be taken off; the others were tried all the same.
    pub(super) fn remove(self) -> Result<(), CaptureError> {
        self.posts().set(Vec::new())
    }

    fn posts(&self) -> std::sync::MutexGuard<'_, Posts> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an onlooker sees of the guard.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// Interfaces with something of ours.
    pub(super) held: usize,
    /// Those among them with a link; the others have a filter.
    pub(super) by_link: usize,
    /// Veths that lead to other namespaces, are no way out of this one, and have nothing of ours.
    pub(super) open: Vec<String>,
}

/// Looks at what is there, and touches nothing. `towards` are guarded addresses: the ways to them are no pods'.
///
/// # Errors
/// When the directory or netlink cannot be read.
pub(super) fn look(dir: &Path, towards: &[IpAddr]) -> io::Result<Look> {
    posts::look(dir, towards)
}

/// Takes off what any agent with this directory left, for a start without a guard.
///
/// # Errors
/// As [`Guard::remove`].
pub(super) fn clean_up(dir: &Path) -> Result<(), CaptureError> {
    posts::clean_up(dir)
}

fn failed(doing: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> CaptureError {
    let what = what.into();
    move |source| CaptureError::Guard { doing, what, source }
}
