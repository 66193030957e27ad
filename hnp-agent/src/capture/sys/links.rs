//! Links: what attaches a program to a cgroup.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::{Attr, bpf, raw};

// Commands of bpf(2), from linux/bpf.h.
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `BPF_LINK_CREATE`.
#[repr(C)]
struct Create {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

// SAFETY: the layout of linux/bpf.h; no addresses.
unsafe impl Attr for Create {
    const COMMANDS: &'static [libc::c_int] = &[BPF_LINK_CREATE];
}

/// `BPF_LINK_CREATE` to an interface (tcx).
#[repr(C)]
struct CreateTcx {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

// SAFETY: the layout of linux/bpf.h; no addresses.
unsafe impl Attr for CreateTcx {
    const COMMANDS: &'static [libc::c_int] = &[BPF_LINK_CREATE];
}

/// `BPF_LINK_UPDATE`.
#[repr(C)]
struct Update {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

// SAFETY: the layout of linux/bpf.h; no addresses.
unsafe impl Attr for Update {
    const COMMANDS: &'static [libc::c_int] = &[BPF_LINK_UPDATE];
}

/// `BPF_LINK_DETACH`.
#[repr(C)]
struct Detach {
    link_fd: u32,
}

// SAFETY: the layout of linux/bpf.h; no addresses.
unsafe impl Attr for Detach {
    const COMMANDS: &'static [libc::c_int] = &[BPF_LINK_DETACH];
}

/// `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

// SAFETY: the layout of linux/bpf.h. The address is set in this file only, to a value of `info_len` bytes
// that outlives the call.
unsafe impl Attr for GetInfo {
    const COMMANDS: &'static [libc::c_int] = &[BPF_OBJ_GET_INFO_BY_FD];
}

/// `BPF_PROG_QUERY`, as it was when cgroups came (4.15).
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

// SAFETY: the layout of linux/bpf.h. The address is set in `attached_programs` only, to an array of
// `prog_cnt` words that outlives the call.
unsafe impl Attr for Query {
    const COMMANDS: &'static [libc::c_int] = &[BPF_PROG_QUERY];
}

/// `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

// SAFETY: the layout of linux/bpf.h; no addresses.
unsafe impl Attr for ById {
    const COMMANDS: &'static [libc::c_int] = &[BPF_PROG_GET_FD_BY_ID];
}

/// `struct bpf_link_info` of a link to a cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::capture) struct LinkInfo {
    kind: u32,
    id: u32,
    pub(in crate::capture) program_id: u32,
    pad: u32,
    /// 0 once the cgroup is gone.
    pub(in crate::capture) cgroup_id: u64,
    pub(in crate::capture) attach_type: u32,
    pad2: u32,
}

/// Attaches a program to a cgroup, beside whatever else is attached there. `attach_type` is the
/// program's `enum bpf_attach_type`. It stays attached while the link is open or pinned.
pub(in crate::capture) fn link_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    // Links to cgroups are always of the multi kind; a flag that says so is refused.
    let mut attr = Create { prog_fd: raw(program), target_fd: raw(cgroup), attach_type, flags: 0 };
    let fd = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us, and close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a classifier to what an interface receives, before whatever else is attached there (tcx,
/// Linux 6.6). `ENODEV`: there is no such interface. `EINVAL`: the kernel has no tcx.
pub(in crate::capture) fn link_to_ingress(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    const BPF_TCX_INGRESS: u32 = 46;
    // Before a program that is not named: the first.
    const BPF_F_BEFORE: u32 = 1 << 3;
    let mut attr = CreateTcx {
        prog_fd: raw(program),
        target_ifindex: interface,
        attach_type: BPF_TCX_INGRESS,
        flags: BPF_F_BEFORE,
        relative_fd: 0,
        pad: 0,
        expected_revision: 0,
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us, and close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Puts a program in the place of the one that a link attaches. No call in between sees neither.
/// `ENOLINK`: what it was attached to is gone.
pub(in crate::capture) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Update { link_fd: raw(link), new_prog_fd: raw(program), flags: 0, old_prog_fd: 0 };
    bpf(BPF_LINK_UPDATE, &mut attr).map(|_| ())
}

/// Detaches a link at once, pinned or not.
pub(in crate::capture) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut Detach { link_fd: raw(link) }).map(|_| ())
}

/// What a link to a cgroup attaches, and to what.
pub(in crate::capture) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let address: *mut LinkInfo = &mut info;
    let mut attr =
        GetInfo { bpf_fd: raw(link), info_len: size_of::<LinkInfo>() as u32, info: address as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// The ids of the programs attached to this very cgroup, and the flags they were attached with.
pub(in crate::capture) fn attached_programs(
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<(Vec<u32>, u32)> {
    // The kernel allows 64 on one cgroup and hook (BPF_CGROUP_MAX_PROGS).
    let mut ids = [0_u32; 64];
    let mut attr = Query {
        target_fd: raw(cgroup),
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        pad: 0,
    };
    // The kernel answers in the same structure.
    bpf(BPF_PROG_QUERY, &mut attr)?;
    Ok((ids[..(attr.prog_cnt as usize).min(ids.len())].to_vec(), attr.attach_flags))
}

/// A program's name; `None` without CAP_SYS_ADMIN, or when it is gone.
pub(in crate::capture) fn program_name(id: u32) -> Option<String> {
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut ById { id, next_id: 0, open_flags: 0 }).ok()?;
    // SAFETY: the kernel has just made this descriptor for us, and close-on-exec.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // `name` stands 64 bytes into `struct bpf_prog_info` and has 16.
    let mut info = [0_u8; 80];
    let mut attr = GetInfo {
        bpf_fd: fd.as_raw_fd() as u32,
        info_len: info.len() as u32,
        info: info.as_mut_ptr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).ok()?;
    let name: Vec<u8> = info[64..].iter().copied().take_while(|byte| *byte != 0).collect();
    (!name.is_empty()).then(|| String::from_utf8_lossy(&name).into_owned())
}
