//! The few system calls that neither aya nor nix offers, behind safe functions.
//!
//! aya's own `bpf(2)` wrapper is private. It offers no lookup-and-delete for hash maps, and its links
//! cannot be detached at once: they end when the kernel gets around to their last reference.

use std::ffi::CString;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

// Commands of bpf(2), from linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Arguments of a command: the part of `union bpf_attr` that it reads.
///
/// # Safety
/// `repr(C)` with the layout that the kernel documents for [`Attr::COMMANDS`], every byte a field.
/// Addresses in it must be valid, for what the command does with them, while the value lives.
unsafe trait Attr {
    /// The commands this is for.
    const COMMANDS: &'static [libc::c_int];
}

/// Commands on map elements.
#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

// SAFETY: the layout of linux/bpf.h. Addresses are set by the callers in this file only, to a key and
// a value of the sizes that `Elements` promises, which outlive the call.
unsafe impl Attr for Element {
    const COMMANDS: &'static [libc::c_int] =
        &[BPF_MAP_LOOKUP_ELEM, BPF_MAP_DELETE_ELEM, BPF_MAP_LOOKUP_AND_DELETE_ELEM];
}

/// `BPF_OBJ_PIN`.
#[repr(C)]
struct Pin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

// SAFETY: the layout of linux/bpf.h; the path is set in `pin` only, to a C string that outlives it.
unsafe impl Attr for Pin {
    const COMMANDS: &'static [libc::c_int] = &[BPF_OBJ_PIN];
}

/// `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

// SAFETY: the layout of linux/bpf.h; no addresses.
unsafe impl Attr for LinkCreate {
    const COMMANDS: &'static [libc::c_int] = &[BPF_LINK_CREATE];
}

/// `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

// SAFETY: the layout of linux/bpf.h; no addresses.
unsafe impl Attr for LinkDetach {
    const COMMANDS: &'static [libc::c_int] = &[BPF_LINK_DETACH];
}

fn bpf<A: Attr>(command: libc::c_int, attr: &A) -> io::Result<libc::c_long> {
    debug_assert!(A::COMMANDS.contains(&command));
    let attr: *const A = attr;
    // SAFETY: the kernel reads `attr` up to the given size and takes what is beyond for zero; `Attr`
    // promises layout and addresses.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Names the key and value of a map, both of exactly the map's sizes.
pub(super) trait Elements {
    /// What the map is looked up by.
    type Key: aya::Pod;
    /// What the map holds.
    type Value: aya::Pod;
}

/// Reads one element; `None`: there is none.
pub(super) fn map_lookup<M: Elements>(fd: BorrowedFd<'_>, key: &M::Key) -> io::Result<Option<M::Value>> {
    lookup::<M>(BPF_MAP_LOOKUP_ELEM, fd, key)
}

/// Reads and deletes one element in one step; `None`: there is none. Hash maps can since Linux 5.14;
/// older kernels answer with an error other than "not found".
pub(super) fn map_lookup_and_delete<M: Elements>(
    fd: BorrowedFd<'_>,
    key: &M::Key,
) -> io::Result<Option<M::Value>> {
    lookup::<M>(BPF_MAP_LOOKUP_AND_DELETE_ELEM, fd, key)
}

/// Deletes one element; `false`: there was none.
pub(super) fn map_delete<M: Elements>(fd: BorrowedFd<'_>, key: &M::Key) -> io::Result<bool> {
    let key: *const M::Key = key;
    let attr = Element { map_fd: raw(fd), pad: 0, key: key as u64, value: 0, flags: 0 };
    Ok(found(bpf(BPF_MAP_DELETE_ELEM, &attr))?.is_some())
}

fn lookup<M: Elements>(
    command: libc::c_int,
    fd: BorrowedFd<'_>,
    key: &M::Key,
) -> io::Result<Option<M::Value>> {
    let mut value = std::mem::MaybeUninit::<M::Value>::uninit();
    let key: *const M::Key = key;
    let attr =
        Element { map_fd: raw(fd), pad: 0, key: key as u64, value: value.as_mut_ptr() as u64, flags: 0 };
    // SAFETY: on success the kernel has written one value of the map's size, which `M` names; any
    // bytes are a valid `Pod`.
    Ok(found(bpf(command, &attr))?.map(|_| unsafe { value.assume_init() }))
}

fn found(result: io::Result<libc::c_long>) -> io::Result<Option<libc::c_long>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Attaches a program to a cgroup, beside whatever else is attached there. `attach_type` is the
/// program's `enum bpf_attach_type`. It stays attached while the link is open or pinned.
pub(super) fn link_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    // Links to cgroups are always of the multi kind; a flag that says so is refused.
    let attr = LinkCreate { prog_fd: raw(program), target_fd: raw(cgroup), attach_type, flags: 0 };
    let fd = bpf(BPF_LINK_CREATE, &attr)?;
    // SAFETY: the kernel has just made this descriptor for us, and close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Detaches a link at once, pinned or not.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &LinkDetach { link_fd: raw(link) }).map(|_| ())
}

/// Pins a link or a map at a path on bpffs, where nothing must be yet.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Pin { pathname: path.as_ptr() as u64, bpf_fd: raw(fd), file_flags: 0 };
    bpf(BPF_OBJ_PIN, &attr).map(|_| ())
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
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
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: one pollfd, valid during the call.
    match unsafe { libc::poll(&mut poll, 1, millis) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        ready => Ok(ready > 0),
    }
}
