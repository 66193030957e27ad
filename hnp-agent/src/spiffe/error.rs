//! Why the Workload API gave nothing that can be used. Each says what to do; none holds a byte of a key.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::humane;
use crate::grpc::Failure;

/// What went wrong, and at whose socket.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", socket.display())]
pub struct SpiffeError {
    /// The Workload API's socket.
    pub socket: PathBuf,
    /// What went wrong there.
    pub what: Trouble,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The socket cannot be opened.
    #[error("{}", unreachable(.0))]
    Unreachable(io::Error),
    /// Nothing came in time.
    #[error("no answer of a SPIFFE Workload API within {}; is that a SPIRE agent's socket, and is the agent healthy \
             (spire-agent healthcheck -socketPath SOCKET)?", humane(*.0))]
    Silent(Duration),
    /// The conversation broke off, or is none.
    #[error("the conversation with the SPIFFE Workload API broke off: {0}")]
    Broken(String),
    /// It answered with an error of gRPC.
    #[error("{}", refused(*code, message))]
    Status {
        /// Its number.
        code: u32,
        /// Its words.
        message: String,
    },
    /// What came is no answer.
    #[error("the answer of the SPIFFE Workload API cannot be read: {0}")]
    Unreadable(String),
    /// The identity that is wanted is not among those that came.
    #[error("{wanted} is not among those given out to this agent: {}; see the entry's -hint and -spiffeID \
             (spire-server entry show)", has.join(", "))]
    NotAmong {
        /// Which one.
        wanted: String,
        /// Those that came.
        has: Vec<String>,
    },
    /// An SVID cannot be used.
    #[error("the SVID {id} cannot be used: {why}")]
    BadSvid {
        /// As it is called.
        id: String,
        /// What is wrong with it.
        why: String,
    },
    /// An SVID is not valid now.
    #[error(
        "the SVID {id} {why}; is this node's clock right, and does the SPIRE agent still reach its server?"
    )]
    NotNow {
        /// As it is called.
        id: String,
        /// Which date it is.
        why: String,
    },
    /// No bundle can be used.
    #[error("the bundle of {domain} cannot be used: {why}")]
    BadBundle {
        /// Whose it is.
        domain: String,
        /// What is wrong with it.
        why: String,
    },
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(error) => Self::Unreachable(error),
            Failure::Silent(deadline) => Self::Silent(deadline),
            Failure::Broken(why) => Self::Broken(why),
            Failure::Status { code, message } => Self::Status { code, message },
            Failure::Unreadable(why) => Self::Unreadable(why),
        }
    }
}

/// gRPC's numbers for what the Workload Endpoint's standard speaks of (section 6).
const INVALID_ARGUMENT: u32 = 3;
const PERMISSION_DENIED: u32 = 7;
const UNIMPLEMENTED: u32 = 12;
const UNAVAILABLE: u32 = 14;

impl SpiffeError {
    /// Asking again will not help before somebody has changed something (SPIFFE Workload Endpoint section 6).
    pub fn is_final(&self) -> bool {
        matches!(self.what, Trouble::Status { code: INVALID_ARGUMENT | UNIMPLEMENTED, .. })
    }

    /// A later moment may make the same bytes good.
    pub fn may_pass(&self) -> bool {
        matches!(self.what, Trouble::NotNow { .. })
    }
}

fn unreachable(error: &io::Error) -> String {
    let what = match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such socket; is a SPIRE agent running on this node, and is the directory of its socket mounted \
             into this pod (hostPath, or the SPIFFE CSI driver)?"
        }
        io::ErrorKind::PermissionDenied => {
            "the socket may not be opened; whoever runs the SPIRE agent lets this agent's user write to it (its mode \
             and its directory's; SELinux and AppArmor, too)"
        }
        io::ErrorKind::ConnectionRefused => "nobody answers at the socket; the SPIRE agent has stopped",
        _ => "the socket cannot be used",
    };
    format!("{what} ({error})")
}

fn refused(code: u32, message: &str) -> String {
    let what = match code {
        PERMISSION_DENIED => {
            "no identity is registered for this agent (PermissionDenied); register one whose selectors fit its pod or \
             process (spire-server entry create -parentID NODE -spiffeID spiffe://... -selector k8s:ns:... -selector \
             k8s:sa:...)"
        }
        INVALID_ARGUMENT => {
            "the request was refused as wrong (InvalidArgument); is that a SPIFFE Workload API's socket?"
        }
        UNIMPLEMENTED => {
            "X.509-SVIDs are not given out there (Unimplemented); is that a SPIFFE Workload API's socket, and is its X.509 \
             profile on?"
        }
        UNAVAILABLE => {
            "the SPIFFE Workload API is not available now (Unavailable); the SPIRE agent's log says why"
        }
        _ => "the SPIFFE Workload API failed; the SPIRE agent's log says why",
    };
    if message.is_empty() {
        format!("{what} (gRPC status {code})")
    } else {
        format!("{what} (gRPC status {code}: {message})")
    }
}
