//! The few system calls that neither aya nor nix offers, behind safe functions.
//!
//! aya's own `bpf(2)` wrapper is private. It offers no lookup-and-delete for hash maps, does not say what
//! a link hangs on, and its links can neither be given another program nor be detached at once.

mod elements;
mod links;
mod maps;

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

pub(super) use elements::{Elements, map_delete, map_lookup, map_lookup_and_delete};
pub(super) use links::{
    attached_programs, link_detach, link_info, link_to_cgroup, link_to_ingress, link_update, program_name,
};
pub(super) use maps::{Entries, create_map, open_pin, pin};

/// Arguments of a command: the part of `union bpf_attr` that it reads.
///
/// # Safety
/// `repr(C)` with the layout that the kernel documents for [`Attr::COMMANDS`], every byte a field.
/// Addresses in it must be valid, for what the command does with them, while the value lives.
unsafe trait Attr {
    /// The commands this is for.
    const COMMANDS: &'static [libc::c_int];
}

fn bpf<A: Attr>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    debug_assert!(A::COMMANDS.contains(&command));
    let attr: *mut A = attr;
    // SAFETY: the kernel reads and writes `attr` up to the given size and takes what is beyond for zero;
    // `Attr` promises layout and addresses.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// `None` where the kernel says that there is no such thing.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number by which the kernel's programs know this thread's network namespace (Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    let value: *mut u64 = &mut cookie;
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value.cast(), &mut len)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Waits until `fd` can be read, for `timeout` at most; `false`: it cannot.
pub(super) fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    wait_readable_any([fd], timeout).map(|[readable]| readable)
}

/// Waits until one of `fds` can be read or has no writer any more, for `timeout` at most; which.
pub(super) fn wait_readable_any<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    timeout: Duration,
) -> io::Result<[bool; N]> {
    let mut poll = fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let millis = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `N` pollfds, valid during the call.
    match unsafe { libc::poll(poll.as_mut_ptr(), N as libc::nfds_t, millis) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
            error => Err(error),
        },
        _ => Ok(poll.map(|poll| poll.revents != 0)),
    }
}
