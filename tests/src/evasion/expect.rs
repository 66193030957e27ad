//! What a technique is to come to, in each phase of the agent's life.

use super::{Attempt, Ending, Technique};
use crate::kernel::{self, Feature};
use crate::manager::Request;

/// Where the agent is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// Ready.
    Alive,
    /// Killed; nobody has come after it.
    Killed,
    /// Killed and started, again and again.
    Restarting,
}

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Killed => "killed",
            Self::Restarting => "restarting",
        }
    }
}

/// What an attempt is to come to. That nothing leaks is expected of all.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expect {
    /// Carried over mutual TLS by a living agent; refused by ECONNREFUSED without one.
    Served,
    /// The agent answers with a status; ECONNREFUSED without one.
    Answered(&'static str),
    /// Refused by an error, with and without an agent.
    Refused(&'static str),
    /// A living agent closes the connection without a word; ECONNREFUSED without one.
    Ignored,
    /// Answered by somebody else, whatever the agent does.
    Untouched,
    /// Whatever it comes to.
    Nothing,
}

/// What a technique came to.
pub(super) struct Outcome<'a> {
    pub(super) technique: Technique,
    pub(super) alive: &'a Ending,
    pub(super) killed: &'a Ending,
    pub(super) restarting: &'a [Attempt],
    /// What the manager got of the attempt with a living agent.
    pub(super) requests: Vec<Request>,
    /// The certificate that the agent has.
    pub(super) client_serial: &'a str,
    /// What was seen on the wire to the manager.
    pub(super) tls_connections: usize,
}

impl Expect {
    /// # Panics
    /// When it came to something else.
    #[track_caller]
    pub(super) fn compare(self, outcome: &Outcome<'_>) {
        let Outcome { alive, killed, .. } = *outcome;
        let answered =
            |end: &Ending, what: &str| matches!(end, Ending::Sent { answer } if answer.contains(what));
        match self {
            Self::Nothing => {}
            Self::Refused(errno) => {
                let waits = |attempt: &&Attempt| attempt.end == Ending::Waiting;
                let restarting = outcome.restarting.iter().filter(|attempt| !waits(attempt));
                let phases = [(alive, Phase::Alive), (killed, Phase::Killed)];
                for (end, phase) in
                    phases.into_iter().chain(restarting.map(|attempt| (&attempt.end, Phase::Restarting)))
                {
                    if !is_lesser_refusal(end, errno, outcome.technique) {
                        assert_errno(end, errno, phase);
                    }
                }
            }
            Self::Untouched => {
                assert!(answered(alive, " 200"), "{alive:?}");
                assert!(answered(killed, " 200"), "{killed:?}");
            }
            Self::Answered(status) => {
                assert!(answered(alive, status), "{alive:?}");
                assert_errno(killed, "ECONNREFUSED", Phase::Killed);
            }
            Self::Ignored => {
                let silent = match alive {
                    Ending::Sent { answer } => answer.is_empty(),
                    // From connect() too: on one processor the agent is done before the caller wakes up. A
                    // reset in the place of a connection would be ECONNREFUSED.
                    Ending::Failed { errno, .. } => errno == "ECONNRESET",
                    Ending::Impossible { .. } | Ending::Waiting => false,
                };
                assert!(silent, "{alive:?}");
                assert_errno(killed, "ECONNREFUSED", Phase::Killed);
            }
            Self::Served => {
                assert!(!outcome.requests.is_empty(), "the manager got it: {alive:?}");
                for request in &outcome.requests {
                    assert_eq!(request.client_serial(), outcome.client_serial, "over mutual TLS");
                }
                assert!(answered(alive, " 200"), "{alive:?}");
                assert!(outcome.tls_connections > 0, "the sniffer sees what the manager answers");
                assert_errno(killed, "ECONNREFUSED", Phase::Killed);
            }
        }
    }
}

/// What a refusal comes to where the programs cannot choose its errno (before Linux 5.18). A connect() says
/// ECONNREFUSED there, too; only a connected UDP socket cannot be told, and its datagrams reach nobody.
fn is_lesser_refusal(end: &Ending, wanted: &str, technique: Technique) -> bool {
    let lesser = match end {
        Ending::Failed { call, errno } => errno != wanted && errno == "EPERM" && call != "connect",
        Ending::Sent { answer } => answer.is_empty() && technique == Technique::UdpConnected,
        Ending::Impossible { .. } | Ending::Waiting => false,
    };
    lesser && !kernel::has(Feature::SetRetval)
}

#[track_caller]
fn assert_errno(end: &Ending, wanted: &str, phase: Phase) {
    let is = matches!(end, Ending::Failed { errno, .. } if errno == wanted);
    assert!(is, "{phase:?}: {end:?}, not {wanted}");
}
