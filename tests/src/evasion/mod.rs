//! What an attacker in a pod can try to reach a destination without being captured: a name for each
//! technique, what it is told, and what it says the kernel answered.
//!
//! The program that carries them out is `src/bin/hnp-test-evader`. It knows nothing of hnp; it is given
//! an [`Attack`] as JSON and prints one [`Attempt`] as JSON per line. Whether something got through is
//! not its to say: [`crate::sniffer::Sniffer`] looks at the wire, and [`Trial`] puts the two together.

mod expect;
mod stage;
mod trial;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::trial::Trial;

use crate::process::{Cmd, Place};
use crate::{poll, tools};

/// One way to send bytes to an address.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Technique {
    /// `connect()`, as every program does it; the address says which family.
    Connect,
    /// `connect()` on a non-blocking socket, then `poll()`.
    NonBlocking,
    /// `bind()` to a source port first.
    FixedPort,
    /// `SO_BINDTODEVICE` first.
    BoundToDevice,
    /// Multipath TCP.
    Mptcp,
    /// SMC, which falls back to TCP.
    Smc,
    /// TCP Fast Open: `sendto(MSG_FASTOPEN)` instead of `connect()`.
    FastOpenSendto,
    /// TCP Fast Open: `TCP_FASTOPEN_CONNECT`, the SYN leaves with the first write.
    FastOpenConnect,
    /// `IORING_OP_CONNECT`.
    IoUring,
    /// The same, submitted by the kernel's own thread.
    IoUringSqpoll,
    /// Every `SO_MARK` that software on nodes is known to use.
    ForgedMark,
    /// Connected elsewhere, disconnected by `AF_UNSPEC`, connected to the target.
    ReconnectFromElsewhere,
    /// Connected to the target, disconnected by `AF_UNSPEC`, connected to the target again.
    Reconnect,
    /// `bind()` to the target's address, `connect()` to the unspecified one: the kernel fills in the rest.
    BoundToTarget,

    /// From a cgroup below the pod's.
    ChildCgroup,
    /// From a cgroup namespace.
    CgroupNamespace,
    /// From the network namespace [`Attack::netns`].
    OtherNetns,
    /// A socket of the pod's network namespace, connected from a fresh one.
    FreshNetns,
    /// The process moves to [`Attack::cgroup`] between `socket()` and `connect()`.
    MovedBetween,
    /// The socket comes from [`Attack::lender`], by `SCM_RIGHTS`.
    Lent,
    /// The socket is made, then the program waits for [`Attack::go`], then connects.
    OlderSocket,
    /// Connected, then waiting for [`Attack::go`], then sends.
    OlderFlow,
    /// A connected UDP socket that waits for [`Attack::go`], then sends.
    OlderDatagrams,

    /// UDP: `connect()`, `send()`.
    UdpConnected,
    /// UDP: `sendto()`.
    UdpUnconnected,
    /// UDP: connected elsewhere, `sendto()` the target.
    UdpElsewhere,
    /// UDP: an IPv4 address given to an IPv6 socket.
    UdpMixedFamily,
    /// UDP-Lite: `connect()`, `send()`.
    UdpLiteConnected,
    /// UDP-Lite: `sendto()`.
    UdpLiteUnconnected,

    /// A raw socket of `IPPROTO_TCP`: a SYN that carries the bytes.
    RawTcp,
    /// The same with an IP header of its own.
    RawHeader,
    /// AF_PACKET: a SYN that carries the bytes.
    PacketSyn,
    /// AF_PACKET: a segment out of the blue, no SYN before it.
    PacketData,
    /// AF_PACKET: a SYN behind IP options.
    PacketOptions,
    /// AF_PACKET: a SYN in IP fragments, the ports in the first alone.
    PacketFragments,
    /// AF_PACKET: only the second fragment, which has no ports.
    PacketSecondFragment,
    /// AF_PACKET: tagged 802.1Q with VLAN 0, which a receiver takes as untagged.
    PacketVlan,
    /// AF_PACKET: tagged so twice.
    PacketTwoVlans,
    /// AF_PACKET: behind an IPv6 destination options header.
    PacketExtension,
    /// AF_PACKET: behind sixteen of them.
    PacketManyExtensions,
    /// AF_PACKET: a UDP datagram.
    PacketUdp,
    /// AF_PACKET: a UDP-Lite datagram.
    PacketUdpLite,
    /// AF_PACKET: one super-segment whose headers lie outside the linear part of the kernel's buffer.
    PacketOffload,

    /// A vsock connection to whoever runs this machine, and to the machine itself.
    Vsock,
    /// Listens on the target's port with `SO_REUSEPORT` and reads what comes: takes, does not send.
    TakePort,
}

impl Technique {
    /// Whether it begins before the agent does, and waits.
    pub fn waits(self) -> bool {
        matches!(self, Self::OlderSocket | Self::OlderFlow | Self::OlderDatagrams)
    }
}

/// What the attacker is told.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Attack {
    /// How.
    pub technique: Technique,
    /// Whom the bytes are for.
    pub target: SocketAddr,
    /// What is sent; the marker is in it.
    pub bytes: Vec<u8>,
    /// An address that is no destination and answers.
    pub elsewhere: SocketAddr,
    /// Again and again, until killed. What waits for [`Attack::go`] has all it needs made before, and
    /// ends when that is used up.
    pub repeat: bool,
    /// For [`Technique::MovedBetween`].
    pub cgroup: Option<PathBuf>,
    /// For [`Technique::OtherNetns`].
    pub netns: Option<PathBuf>,
    /// For [`Technique::Lent`]: the UNIX socket of a program that lends (`hnp-test-evader lend PATH`).
    pub lender: Option<PathBuf>,
    /// For techniques that wait: the file whose existence ends the waiting.
    pub go: Option<PathBuf>,
}

impl Attack {
    /// Sends `bytes` to `target`, once.
    pub fn new(technique: Technique, target: SocketAddr, bytes: impl Into<Vec<u8>>) -> Self {
        let elsewhere = SocketAddr::new(crate::topology::OTHER4.into(), ELSEWHERE_PORT);
        Self {
            technique,
            target,
            bytes: bytes.into(),
            elsewhere,
            repeat: false,
            cgroup: None,
            netns: None,
            lender: None,
            go: None,
        }
    }

    /// The attacker with this attack, ready to run in a place.
    pub fn command(&self, place: &Place) -> Cmd {
        let text = serde_json::to_vec(self).expect("attacks are plain data");
        let command = place.command(tools::sibling("hnp-test-evader")).stdin(text);
        match std::env::var(poll::PATIENCE) {
            Ok(factor) => command.env(poll::PATIENCE, &factor),
            Err(_) => command,
        }
    }
}

/// The port of [`Attack::elsewhere`] where a trial has somebody listen.
pub const ELSEWHERE_PORT: u16 = 8080;

/// What one attempt came to, as its program saw it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Attempt {
    /// How it ended.
    pub end: Ending,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// How an attempt ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The kernel took the bytes.
    Sent {
        /// The first line of what came back; empty when nothing did.
        answer: String,
    },
    /// A system call said no.
    Failed {
        /// Which one.
        call: String,
        /// The name of the error.
        errno: String,
    },
    /// This kernel does not have what the technique needs.
    Impossible {
        /// Which system call said so.
        call: String,
        /// The name of the error.
        errno: String,
    },
    /// A waiting technique has come to where it waits for [`Attack::go`].
    Waiting,
}

/// An address in the form in which an IPv6 socket dials IPv4.
pub fn v4_mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}
