//! What sock_diag(7) is asked: which TCP sockets this network namespace has, and to destroy some.
//!
//! Written by hand: two requests of one fixed layout (linux/inet_diag.h), for which the crates at hand are
//! older than the kernel's `SOCK_DESTROY`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY` of linux/sock_diag.h, Linux 4.5, with CONFIG_INET_DIAG_DESTROY.
const DESTROY: u16 = 21;
/// Bits of the states of include/net/tcp_states.h in which something can still be sent: not TIME_WAIT (6),
/// CLOSE (7) or LISTEN (10).
const STATES: u32 = 0xfff & !(1 << 6 | 1 << 7 | 1 << 10) & !1;
/// `struct nlmsghdr`, `struct inet_diag_req_v2` and `struct inet_diag_sockid`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ID: usize = 48;

/// One socket, as the kernel names it: `struct inet_diag_sockid`, 48 bytes.
type Id = [u8; ID];

/// Destroys every TCP socket whose remote end is meant; returns how many, and the first thing that failed: the
/// others are tried all the same. The process sees ECONNABORTED, the other side a reset.
pub(super) fn destroy(is_meant: &dyn Fn(SocketAddr) -> bool) -> (u64, Option<io::Error>) {
    let (mut count, mut failed) = (0, None);
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        if let Err(error) = destroy_of(family, is_meant, &mut count, &mut failed) {
            failed.get_or_insert(error);
        }
    }
    (count, failed)
}

fn destroy_of(
    family: u8,
    is_meant: &dyn Fn(SocketAddr) -> bool,
    count: &mut u64,
    failed: &mut Option<io::Error>,
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    let mut meant = Vec::new();
    ask(&socket, &request(BY_FAMILY, libc::NLM_F_DUMP, family, STATES, &[0; ID]), &mut |id| {
        if is_meant(remote(family, id)) {
            meant.push(*id);
        }
    })?;
    for id in meant {
        match ask(&socket, &request(DESTROY, libc::NLM_F_ACK, family, 0, &id), &mut |_| {}) {
            Ok(()) => *count += 1,
            // It has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    Ok(())
}

fn request(kind: u16, flags: i32, family: u8, states: u32, id: &Id) -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and port: one question at a time on a socket of our own.
    bytes.extend([0; 8]);
    bytes.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// Sends a request and hands each answer's id on, until the kernel says that it was all.
fn ask(socket: &Socket, request: &[u8], each: &mut dyn FnMut(&Id)) -> io::Result<()> {
    socket.send(request, 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while let Some((kind, body, after)) = next_message(rest) {
            rest = after;
            match i32::from(kind) {
                // Both begin with an errno; a dump that was cut short says so in the end.
                libc::NLMSG_DONE | libc::NLMSG_ERROR => return outcome(body),
                // `struct inet_diag_msg`: four bytes, then the id.
                _ => {
                    if let Some(id) = body.get(4..).and_then(<[u8]>::first_chunk) {
                        each(id);
                    }
                }
            }
        }
    }
}

/// Kind, body, and what follows.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// A negative errno, or 0; the first field of `struct nlmsgerr`.
fn outcome(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) if -code == libc::EOPNOTSUPP => {
            Err(io::Error::other("this kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY)"))
        }
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Ports in network order, then the local and the remote address in 16 bytes each.
fn remote(family: u8, id: &Id) -> SocketAddr {
    let port = u16::from_be_bytes([id[2], id[3]]);
    let mut address = [0; 16];
    address.copy_from_slice(&id[20..36]);
    let ip = if i32::from(family) == libc::AF_INET {
        IpAddr::V4(Ipv4Addr::new(address[0], address[1], address[2], address[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(address))
    };
    SocketAddr::new(ip, port)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_the_sockets_that_are_meant_are_destroyed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("[::1]:0").unwrap();
        let meant = listener.local_addr().unwrap();
        let dialled = TcpStream::connect(meant);
        let (mut gone, stays) = (dialled.unwrap(), TcpStream::connect(other.local_addr().unwrap()).unwrap());
        let seen = std::cell::Cell::new(0);
        let remote = |addr: SocketAddr| {
            seen.set(seen.get() + u32::from(addr == stays.peer_addr().unwrap()));
            addr == meant
        };
        match destroy(&remote) {
            (count, None) => {
                assert_eq!((count, seen.get()), (1, 1));
                assert_eq!(gone.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
                assert!(stays.take_error().unwrap().is_none());
            }
            // Without CAP_NET_ADMIN: listed, and refused.
            (_, Some(error)) => assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}"),
        }
    }
}
