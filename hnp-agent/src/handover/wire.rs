//! What the two agents say to each other: one packet per message, JSON behind a magic number and the
//! protocol's version, descriptors beside it.
//!
//! Compatibility: fields may be added (unknown ones are ignored), and `refused` means the same in every
//! version, so that agents of different versions can tell each other why it does not work.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::HandoverError;

/// The version of the conversation; a change that an older agent would misunderstand makes a new one.
pub(super) const PROTOCOL: u16 = 1;
/// Before the version, in every packet.
const MAGIC: &[u8; 4] = b"hnpH";
/// Far more than any message has: an offer names some conditions.
const LARGEST: usize = 64 * 1024;
/// Descriptors of one packet; the kernel takes 253 (SCM_MAX_FD).
pub(super) const DESCRIPTORS: usize = 128;

/// Everything that is ever said.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(super) enum Message {
    /// New to old: I want to take over.
    Hello { agent: String },
    /// Either way: no. `leaving`: the old one is ending anyway; wait for that and start as usual.
    Refused { agent: String, why: String, leaving: bool },
    /// Old to new, with the lock's descriptor and, if [`Offer::admin`], the admin socket's.
    Offer(Offer),
    /// Old to new, with as many of the listening sockets as fit.
    Listeners,
    /// New to old: all is prepared; stop accepting.
    Pause,
    /// Old to new: nobody accepts now.
    Paused,
    /// New to old: my programs are in place; leave.
    Done,
    /// Old to new: I have left; accept.
    Yours,
}

/// What the running agent hands over, and what the successor must agree with.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Offer {
    /// The version of the running agent.
    pub agent: String,
    /// The inode of the network namespace it listens in.
    pub netns: u64,
    /// The cgroup its programs hang on, by id.
    pub cgroup: u64,
    /// The port it listens on.
    pub port: u16,
    /// Where its gateway listens; an older agent has none.
    #[serde(default)]
    pub gateway: Vec<std::net::SocketAddr>,
    /// The VIP ranges, as they are written in the configuration.
    pub vips: [String; 2],
    /// Number of listening sockets.
    pub listeners: usize,
    /// Where its admin server listens.
    pub admin: Option<std::net::SocketAddr>,
    /// What it waits for itself (conditions of its readiness): a successor need not do better.
    pub pending: Vec<String>,
}

/// Who is at the other end, by the kernel's word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its process id; `None`: it is in a PID namespace that does not show here.
    pub pid: Option<u32>,
    /// Its user id.
    pub uid: u32,
}

/// One conversation.
#[derive(Debug)]
pub(super) struct Channel {
    /// Of the kind SOCK_SEQPACKET: packets stay apart, and descriptors stay with theirs.
    socket: UnixStream,
    peer: Peer,
}

impl Channel {
    /// On a connected SOCK_SEQPACKET socket.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        let cred = socket.peer_cred()?;
        let pid = cred.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
        Ok(Self { socket, peer: Peer { pid, uid: cred.uid() } })
    }

    /// Who is at the other end.
    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// Sends one message, with descriptors.
    pub(super) async fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
        doing: &'static str,
    ) -> Result<(), HandoverError> {
        let packet = encode(message).map_err(|source| HandoverError::System { doing, source })?;
        let raw: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let sent = self.socket.async_io(Interest::WRITABLE, || {
            let packet = [IoSlice::new(&packet)];
            Ok(sendmsg::<()>(self.socket.as_raw_fd(), &packet, control, MsgFlags::MSG_NOSIGNAL, None)?)
        });
        match sent.await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Err(HandoverError::Gone { pid: self.peer.pid, doing }),
            Err(source) => Err(HandoverError::System { doing, source }),
        }
    }

    /// Waits for one message and the descriptors that came with it. Cancel-safe: a packet is taken whole
    /// or not at all.
    pub(super) async fn recv(&self, doing: &'static str) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
        let pid = self.peer.pid;
        let packet = self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await;
        let (bytes, descriptors) = match packet {
            Ok((bytes, _)) if bytes.is_empty() => return Err(HandoverError::Gone { pid, doing }),
            Ok(packet) => packet,
            Err(error) if is_gone(&error) => return Err(HandoverError::Gone { pid, doing }),
            Err(source) => return Err(HandoverError::System { doing, source }),
        };
        match decode(&bytes) {
            Ok(Message::Refused { agent, why, leaving }) => {
                Err(HandoverError::Refused { pid, agent, why, leaving })
            }
            Ok(message) => Ok((message, descriptors)),
            Err(Undecoded::OtherProtocol { agent, theirs }) => {
                Err(HandoverError::OtherProtocol { pid, agent, theirs })
            }
            Err(Undecoded::Nonsense(what)) => Err(HandoverError::Confused { pid, doing, what }),
        }
    }

    /// Waits until the other end is gone, whatever it says before that.
    pub(super) async fn gone(&self) {
        while let Ok((bytes, _)) = self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await {
            if bytes.is_empty() {
                return;
            }
        }
    }
}

fn receive(socket: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; LARGEST];
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTORS]);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut control), flags)?;
    let (length, flags) = (received.bytes, received.flags);
    let mut descriptors = Vec::new();
    // Truncated control data cannot be walked; what came of it is closed with the process.
    if !flags.contains(MsgFlags::MSG_CTRUNC) {
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody else
                // has them.
                descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    if flags.intersects(MsgFlags::MSG_CTRUNC | MsgFlags::MSG_TRUNC) {
        return Err(io::Error::other("a message came truncated; is the limit of open files too low?"));
    }
    bytes.truncate(length);
    Ok((bytes, descriptors))
}

fn encode(message: &Message) -> io::Result<Vec<u8>> {
    let mut packet = MAGIC.to_vec();
    packet.extend_from_slice(&PROTOCOL.to_be_bytes());
    serde_json::to_writer(&mut packet, message)?;
    Ok(packet)
}

#[derive(Debug)]
enum Undecoded {
    OtherProtocol { agent: String, theirs: u16 },
    Nonsense(String),
}

fn decode(packet: &[u8]) -> Result<Message, Undecoded> {
    let shown = || String::from_utf8_lossy(&packet[..packet.len().min(100)]).into_owned();
    let rest = packet.strip_prefix(MAGIC).ok_or_else(|| Undecoded::Nonsense(shown()))?;
    let (version, json) = rest.split_first_chunk().ok_or_else(|| Undecoded::Nonsense(shown()))?;
    let theirs = u16::from_be_bytes(*version);
    let message = serde_json::from_slice(json);
    if theirs != PROTOCOL {
        if let Ok(refused @ Message::Refused { .. }) = message {
            return Ok(refused);
        }
        let agent = serde_json::from_slice(json)
            .ok()
            .and_then(|json: serde_json::Value| Some(json.get("agent")?.as_str()?.to_owned()));
        return Err(Undecoded::OtherProtocol { agent: agent.unwrap_or_else(|| "unknown".into()), theirs });
    }
    message.map_err(|error| Undecoded::Nonsense(format!("{error}: {}", shown())))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_they_were_written() {
        let packet = encode(&Message::Hello { agent: "1.2.3".into() }).unwrap();
        assert!(matches!(decode(&packet), Ok(Message::Hello { agent }) if agent == "1.2.3"));
        assert!(matches!(decode(b"GET / HTTP/1.1\r\n"), Err(Undecoded::Nonsense(_))));
        assert!(matches!(decode(b"hnpH"), Err(Undecoded::Nonsense(_))));
    }

    #[test]
    fn a_newer_agent_is_known_by_name_and_its_refusal_is_understood() {
        let newer = |json: &str| [&MAGIC[..], &9_u16.to_be_bytes(), json.as_bytes()].concat();
        let hello = decode(&newer(r#"{"say":"hello","agent":"9.0.0","more":1}"#));
        assert!(
            matches!(&hello, Err(Undecoded::OtherProtocol { agent, theirs: 9 }) if agent == "9.0.0"),
            "{hello:?}"
        );
        let refused = r#"{"say":"refused","agent":"9.0.0","why":"no","leaving":false,"more":1}"#;
        assert!(matches!(decode(&newer(refused)), Ok(Message::Refused { .. })));
    }
}
