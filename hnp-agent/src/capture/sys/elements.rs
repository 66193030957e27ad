//! Elements of maps whose key and value are known.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Attr, bpf, found, raw};

// Commands of bpf(2), from linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;

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

/// Names the key and value of a map, both of exactly the map's sizes.
pub(in crate::capture) trait Elements {
    /// What the map is looked up by.
    type Key: aya::Pod;
    /// What the map holds.
    type Value: aya::Pod;
}

/// Reads one element; `None`: there is none.
pub(in crate::capture) fn map_lookup<M: Elements>(
    fd: BorrowedFd<'_>,
    key: &M::Key,
) -> io::Result<Option<M::Value>> {
    lookup::<M>(BPF_MAP_LOOKUP_ELEM, fd, key)
}

/// Reads and deletes one element in one step; `None`: there is none. Hash maps can since Linux 5.14;
/// older kernels answer with an error other than "not found".
pub(in crate::capture) fn map_lookup_and_delete<M: Elements>(
    fd: BorrowedFd<'_>,
    key: &M::Key,
) -> io::Result<Option<M::Value>> {
    lookup::<M>(BPF_MAP_LOOKUP_AND_DELETE_ELEM, fd, key)
}

/// Deletes one element; `false`: there was none.
pub(in crate::capture) fn map_delete<M: Elements>(fd: BorrowedFd<'_>, key: &M::Key) -> io::Result<bool> {
    let key: *const M::Key = key;
    let mut attr = Element { map_fd: raw(fd), pad: 0, key: key as u64, value: 0, flags: 0 };
    Ok(found(bpf(BPF_MAP_DELETE_ELEM, &mut attr))?.is_some())
}

fn lookup<M: Elements>(
    command: libc::c_int,
    fd: BorrowedFd<'_>,
    key: &M::Key,
) -> io::Result<Option<M::Value>> {
    let mut value = std::mem::MaybeUninit::<M::Value>::uninit();
    let key: *const M::Key = key;
    let mut attr =
        Element { map_fd: raw(fd), pad: 0, key: key as u64, value: value.as_mut_ptr() as u64, flags: 0 };
    // SAFETY: on success the kernel has written one value of the map's size, which `M` names; any
    // bytes are a valid `Pod`.
    Ok(found(bpf(command, &mut attr))?.map(|_| unsafe { value.assume_init() }))
}
