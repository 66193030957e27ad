//! An upgrade without a moment in which nobody accepts: a new agent asks the running one for its listening
//! sockets and its lock, and goes on where that one stops.
//!
//! The two talk over a UNIX socket in `run_dir`. The new one prepares everything first (identities, names,
//! programs), so the pause between "the old one stopped accepting" and "the new one accepts" is what attaching
//! takes; meanwhile the kernel queues connections. Until the new one has said that it is done, the old one
//! can go on as if nothing had happened, and does so whenever the other fails, dies or takes too long.
//! This room knows the conversation; what pausing, resuming and leaving mean is the caller's.

mod door;
mod give;
mod take;
mod wire;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use door::Door;
pub use give::{Failures, Gift, Giver, HandedOver, TurnedAway, give, turn_away};
pub use take::{Answer, Leaving, Predecessor, ask};
pub use wire::{Offer, Peer};

/// How long an answer may take that needs no work.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a successor may prepare, from its first word: it loads files, waits for name servers and has
/// the kernel verify its programs. Nothing is paused meanwhile.
const PREPARE: Duration = Duration::from_secs(30);
/// How long nobody may accept. Attaching takes some tens of milliseconds; at a thousand connections a
/// second this fills half of the kernel's queues.
const PAUSE: Duration = Duration::from_secs(3);

/// The other end's process id, or that it cannot be seen from this PID namespace.
pub(crate) fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "a process that cannot be seen from here".to_owned(), |pid| format!("process {pid}"))
}

/// Whom the socket in `run_dir` belongs to, when somebody listens there and can be seen from here.
pub fn holder(run_dir: &Path) -> Option<u32> {
    door::knock(run_dir).ok()?.peer().pid
}

/// Why a hand-over did not come about. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The directory of the socket cannot be used.
    #[error("cannot {doing} {}; `run_dir` must be a directory that only this user can write to", path.display())]
    RunDir {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Nobody listens in the run directory, although an agent is running.
    #[error(
        "nobody can be asked to hand over at {}: is `run_dir` the same directory for both agents (in pods, the \
         same hostPath)? Stop the running agent, then start this one",
        path.display()
    )]
    NobodyThere {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Who is at the other end may not take part.
    #[error("{} runs as user {uid}, and this agent as user {own}: only the same user takes over", process(*.pid))]
    Stranger {
        /// Its process id.
        pid: Option<u32>,
        /// Its user id.
        uid: u32,
        /// Ours.
        own: u32,
    },
    /// The other end said no.
    #[error("{} (hnp-agent {agent}) does not hand over: {why}", process(*.pid))]
    Refused {
        /// Its process id.
        pid: Option<u32>,
        /// Its version.
        agent: String,
        /// Its reason, and what to do.
        why: String,
        /// It is ending: once it has, an ordinary start is possible.
        leaving: bool,
    },
    /// The other end is of a build that talks otherwise.
    #[error(
        "{} (hnp-agent {agent}) speaks version {theirs} of the hand-over, this one (hnp-agent {}) version {}: stop \
         the running agent, then start the new one",
        process(*.pid), env!("CARGO_PKG_VERSION"), wire::PROTOCOL
    )]
    OtherProtocol {
        /// Its process id.
        pid: Option<u32>,
        /// Its version.
        agent: String,
        /// The version of its protocol.
        theirs: u16,
    },
    /// The other end ended, or closed the connection.
    #[error("{} ended, or broke off, while {doing}", process(*.pid))]
    Gone {
        /// Its process id.
        pid: Option<u32>,
        /// What was waited for.
        doing: &'static str,
    },
    /// The other end took too long.
    #[error("{} was silent for {limit:?} while {doing}; if it hangs, kill it", process(*.pid))]
    Silent {
        /// Its process id.
        pid: Option<u32>,
        /// What was waited for.
        doing: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The other end said something that makes no sense here.
    #[error("{} said something else than expected while {doing}: {what}", process(*.pid))]
    Confused {
        /// Its process id.
        pid: Option<u32>,
        /// What was waited for.
        doing: &'static str,
        /// What came.
        what: String,
    },
    /// A system call failed.
    #[error("cannot {doing} in the hand-over")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
