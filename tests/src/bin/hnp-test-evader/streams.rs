//! TCP by all the ways in which a socket can be connected.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;

use hnp_tests::evasion::{Attack, Ending, Technique};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::VsockAddr;
use socket2::{Domain, Socket, Type};

use crate::sys::{Answer as _, Outcome, disconnect, set_int, socket};

const IPPROTO_MPTCP: i32 = 262;
/// linux/tcp.h
const TCP_FASTOPEN_CONNECT: i32 = 30;
/// linux/in.h
const IPPROTO_SMC: i32 = 256;
/// linux/socket.h
const AF_SMC: i32 = 43;

/// Marks that node software uses: Cilium's host and proxy, kube-proxy's masquerade and drop, Istio,
/// Calico, WireGuard; and the range of small numbers that anybody would choose.
const MARKS: &[u32] =
    &[0xc00, 0xe00, 0x200, 0xb00, 0x4000, 0x8000, 0x539, 0x53a, 0x1_0000, 0xca6c, 1, 2, 7, 99];

pub(crate) fn carry_out(attack: &Attack) -> Outcome {
    let target = attack.target;
    match attack.technique {
        Technique::NonBlocking => non_blocking(attack),
        Technique::Mptcp => dial(&new(target, IPPROTO_MPTCP)?, attack),
        Technique::Smc => dial(&smc(target)?, attack),
        Technique::FastOpenSendto => {
            let socket = tcp(target)?;
            let flags = libc::MSG_FASTOPEN;
            socket.send_to_with_flags(&attack.bytes, &target.into(), flags).probe("sendto(MSG_FASTOPEN)")?;
            answer(&socket)
        }
        Technique::FastOpenConnect => {
            let socket = tcp(target)?;
            set_int(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
                .probe("setsockopt(TCP_FASTOPEN_CONNECT)")?;
            dial(&socket, attack)
        }
        Technique::ForgedMark => {
            let mut end = Ending::Waiting;
            for &mark in MARKS {
                let socket = tcp(target)?;
                socket.set_mark(mark).of("setsockopt(SO_MARK)")?;
                end = dial(&socket, attack)?;
            }
            Ok(end)
        }
        Technique::ReconnectFromElsewhere => {
            let socket = tcp(target)?;
            socket.connect(&attack.elsewhere.into()).of("connect(elsewhere)")?;
            disconnect(&socket)?;
            dial(&socket, attack)
        }
        Technique::Reconnect => {
            let socket = tcp(target)?;
            socket.connect(&target.into()).of("connect")?;
            disconnect(&socket)?;
            dial(&socket, attack)
        }
        Technique::BoundToTarget => {
            let socket = tcp(target)?;
            socket.bind(&SocketAddr::new(target.ip(), 0).into()).of("bind")?;
            socket.connect(&unspecified(target).into()).of("connect")?;
            converse(&socket, &attack.bytes)
        }
        Technique::FixedPort => {
            let socket = tcp(target)?;
            socket.set_reuse_address(true).of("setsockopt(SO_REUSEADDR)")?;
            socket.bind(&SocketAddr::new(unspecified(target).ip(), 33_333).into()).of("bind")?;
            // The port is to be free again at once.
            socket.set_linger(Some(std::time::Duration::ZERO)).of("setsockopt(SO_LINGER)")?;
            dial(&socket, attack)
        }
        Technique::BoundToDevice => {
            let socket = tcp(target)?;
            socket.bind_device(Some(b"eth0")).of("setsockopt(SO_BINDTODEVICE)")?;
            dial(&socket, attack)
        }
        Technique::Vsock => vsock(attack),
        Technique::TakePort => take_port(attack),
        _ => dial(&tcp(target)?, attack),
    }
}

/// A TCP socket for an address.
pub(crate) fn tcp(target: SocketAddr) -> Outcome<Socket> {
    new(target, libc::IPPROTO_TCP)
}

fn new(target: SocketAddr, protocol: i32) -> Outcome<Socket> {
    socket(Domain::for_address(target), Type::STREAM, protocol)
}

/// As a protocol since Linux 6.11, as a family before.
fn smc(target: SocketAddr) -> Outcome<Socket> {
    let over6 = i32::from(target.is_ipv6());
    new(target, IPPROTO_SMC).or_else(|_| socket(Domain::from(AF_SMC), Type::STREAM, over6))
}

/// Connects to the target and says what is to be said.
pub(crate) fn dial(socket: &Socket, attack: &Attack) -> Outcome {
    socket.connect(&attack.target.into()).of("connect")?;
    converse(socket, &attack.bytes)
}

/// Writes, and reads what comes back.
pub(crate) fn converse(mut socket: &Socket, bytes: &[u8]) -> Outcome {
    socket.write_all(bytes).of("write")?;
    answer(socket)
}

/// The first line of each answer that comes, up to the end of the stream.
fn answer(mut socket: &Socket) -> Outcome {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    // Whoever speaks something else than HTTP may wait for us to go on.
    while all.is_empty() || all.starts_with(b"HTTP") {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => all.extend_from_slice(&buffer[..length]),
            // Said and not answered is said nevertheless.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(_) if !all.is_empty() => break,
            Err(error) => return Err(error).of("read"),
        }
    }
    let text = String::from_utf8_lossy(&all);
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("HTTP/")).collect();
    let answer = if lines.is_empty() { text.chars().take(60).collect() } else { lines.join(" | ") };
    Ok(Ending::Sent { answer })
}

fn non_blocking(attack: &Attack) -> Outcome {
    let socket = tcp(attack.target)?;
    socket.set_nonblocking(true).of("fcntl(O_NONBLOCK)")?;
    match socket.connect(&attack.target.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            let patience = PollTimeout::try_from(crate::PATIENCE).unwrap_or(PollTimeout::MAX);
            let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            poll(&mut wanted, patience).of("poll")?;
            if let Some(error) = socket.take_error().of("getsockopt(SO_ERROR)")? {
                return Err(error).of("connect");
            }
        }
        outcome => outcome.of("connect")?,
    }
    socket.set_nonblocking(false).of("fcntl(O_NONBLOCK)")?;
    converse(&socket, &attack.bytes)
}

/// To this machine alone: what lies beyond it is not ours to dial. Without a loopback of its own the
/// kernel would hand it to the machine's host.
fn vsock(attack: &Attack) -> Outcome {
    if !std::path::Path::new("/sys/module/vsock_loopback").exists() {
        return Err(nix::errno::Errno::ENODEV).probe("(vsock_loopback)");
    }
    let socket = socket(Domain::VSOCK, Type::STREAM, 0)?;
    let addr = VsockAddr::new(libc::VMADDR_CID_LOCAL, u32::from(attack.target.port()));
    nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &addr).probe("connect(vsock)")?;
    converse(&socket, &attack.bytes)
}

fn take_port(attack: &Attack) -> Outcome {
    let listener = tcp(attack.target)?;
    listener.set_reuse_port(true).of("setsockopt(SO_REUSEPORT)")?;
    listener
        .bind(&SocketAddr::new(unspecified(attack.target).ip(), attack.target.port()).into())
        .of("bind")?;
    listener.listen(64).of("listen")?;
    let (stolen, _) = listener.accept().of("accept")?;
    // Gone without a trace, or its TIME_WAIT would keep the port from whoever comes next.
    stolen.set_linger(Some(std::time::Duration::ZERO)).of("setsockopt(SO_LINGER)")?;
    stolen.set_read_timeout(Some(crate::PATIENCE)).of("setsockopt(SO_RCVTIMEO)")?;
    let mut buffer = [0; 4096];
    let length = (&stolen).read(&mut buffer).of("read")?;
    Ok(Ending::Sent { answer: String::from_utf8_lossy(&buffer[..length]).into_owned() })
}

/// The unspecified address of the target's family, on its port.
fn unspecified(target: SocketAddr) -> SocketAddr {
    match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, target.port()).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, target.port()).into(),
    }
}
