//! Whole maps: pinned, opened again, made, and read without knowing their shape.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{Attr, bpf, found, raw};

// Commands of bpf(2), from linux/bpf.h.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;

/// `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

// SAFETY: the layout of linux/bpf.h; the path is set in this file only, to a C string that outlives it.
unsafe impl Attr for Object {
    const COMMANDS: &'static [libc::c_int] = &[BPF_OBJ_PIN, BPF_OBJ_GET];
}

/// `BPF_MAP_CREATE`, as far as simple maps need it.
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

// SAFETY: the layout of linux/bpf.h; no addresses.
unsafe impl Attr for Create {
    const COMMANDS: &'static [libc::c_int] = &[BPF_MAP_CREATE];
}

/// Commands on elements; `value` is the next key in `BPF_MAP_GET_NEXT_KEY`.
#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

// SAFETY: the layout of linux/bpf.h. Addresses are set in `Entries` only, to buffers of the sizes that the
// kernel itself named for this map, which outlive the call.
unsafe impl Attr for Element {
    const COMMANDS: &'static [libc::c_int] =
        &[BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_MAP_GET_NEXT_KEY];
}

/// Pins a link, a map or a program at a path on bpffs, where nothing must be yet.
pub(in crate::capture) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { pathname: path.as_ptr() as u64, bpf_fd: raw(fd), file_flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attr).map(|_| ())
}

/// Opens what is pinned at a path; `None`: nothing is.
pub(in crate::capture) fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the kernel has just made this descriptor for us, and close-on-exec.
    Ok(found(bpf(BPF_OBJ_GET, &mut attr))?.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

/// Makes a map of a type (`enum bpf_map_type`) that no program refers to.
pub(in crate::capture) fn create_map(
    name: &str,
    map_type: u32,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
) -> io::Result<OwnedFd> {
    let mut map_name = [0; 16];
    for (to, from) in map_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let mut attr = Create {
        map_type,
        key_size: key_size as u32,
        value_size: value_size as u32,
        max_entries,
        map_flags: 0,
        inner_map_fd: 0,
        numa_node: 0,
        map_name,
    };
    let fd = bpf(BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us, and close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A map as bytes: for a build that does not know the shape of another's.
#[derive(Debug)]
pub(in crate::capture) struct Entries {
    map: OwnedFd,
    key_size: usize,
    value_size: usize,
}

impl Entries {
    /// The sizes must be those that the kernel names for this map, which must not be a per-CPU one.
    pub(in crate::capture) fn new(map: OwnedFd, key_size: usize, value_size: usize) -> Self {
        Self { map, key_size, value_size }
    }

    /// Copies all entries into another map whose keys are of the same size. Values are cut or filled up
    /// with zeroes: layouts only grow. Returns how many there were.
    pub(in crate::capture) fn copy_to(&self, to: &Self) -> io::Result<usize> {
        if self.key_size != to.key_size {
            return Err(io::Error::other("the keys are of another size"));
        }
        let mut copied = 0;
        let mut key = self.next_key(None)?;
        while let Some(this) = key {
            // An entry that is deleted meanwhile need not be copied.
            if let Some(mut value) = self.value(&this)? {
                value.resize(to.value_size, 0);
                to.set(&this, &value)?;
                copied += 1;
            }
            key = self.next_key(Some(&this))?;
        }
        Ok(copied)
    }

    fn next_key(&self, after: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_size];
        let key = after.map_or(std::ptr::null(), <[u8]>::as_ptr);
        let found = found(bpf(BPF_MAP_GET_NEXT_KEY, &mut self.element(key, next.as_mut_ptr())))?;
        Ok(found.map(|_| next))
    }

    fn value(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_size];
        let found = found(bpf(BPF_MAP_LOOKUP_ELEM, &mut self.element(key.as_ptr(), value.as_mut_ptr())))?;
        Ok(found.map(|_| value))
    }

    fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        bpf(BPF_MAP_UPDATE_ELEM, &mut self.element(key.as_ptr(), value.as_ptr().cast_mut())).map(|_| ())
    }

    fn element(&self, key: *const u8, value: *mut u8) -> Element {
        Element { map_fd: raw(self.map.as_fd()), pad: 0, key: key as u64, value: value as u64, flags: 0 }
    }
}
