//! Maps that an agent pinned, read and written by the test itself: with system calls of its own, so that one
//! misreading cannot hide in the agent and in its judge.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use crate::topology::World;

// Commands of bpf(2), from linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: u64 = 1;
const BPF_MAP_UPDATE_ELEM: u64 = 2;
const BPF_MAP_GET_NEXT_KEY: u64 = 4;
const BPF_OBJ_GET: u64 = 7;
const BPF_OBJ_GET_INFO_BY_FD: u64 = 15;
/// Replaces the program in a link.
pub const BPF_LINK_UPDATE: u64 = 29;

/// More than any attribute of these commands.
type Attributes = [u64; 16];

/// A pinned map.
#[derive(Debug)]
pub struct PinnedMap {
    fd: OwnedFd,
    key: usize,
    value: usize,
}

impl PinnedMap {
    /// Opens a map that the agent of a world pinned.
    ///
    /// # Panics
    /// When there is none of that name.
    #[track_caller]
    pub fn of(world: &World, name: &str) -> Self {
        let path = world.bpffs().join("maps").join(name);
        Self::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn open(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_encoded_bytes())?;
        let fd = bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0])?;
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) };
        // type, id, key_size, value_size, max_entries, ... of `struct bpf_map_info`
        let mut info = [0_u32; 64];
        let length = u64::try_from(size_of_val(&info)).expect("small");
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut [descriptor(&fd) | length << 32, info.as_mut_ptr() as u64])?;
        let size = |at: usize| usize::try_from(info[at]).expect("small");
        Ok(Self { fd, key: size(2), value: size(3) })
    }

    /// Bytes of a value: what builds of different shapes differ in.
    pub fn value_size(&self) -> usize {
        self.value
    }

    /// All entries, as far as none is added or removed meanwhile.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn entries(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut last: Option<Vec<u8>> = None;
        loop {
            let (mut next, mut value) = (vec![0; self.key], vec![0; self.value]);
            let from = last.as_ref().map_or(0, |key| key.as_ptr() as u64);
            let mut attributes = [descriptor(&self.fd), from, next.as_mut_ptr() as u64, 0];
            match bpf(BPF_MAP_GET_NEXT_KEY, &mut attributes) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return entries,
                outcome => drop(outcome.expect("keys can be listed")),
            }
            let mut attributes = [descriptor(&self.fd), next.as_ptr() as u64, value.as_mut_ptr() as u64, 0];
            // Gone in between: it was none of those that stay.
            if bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes).is_ok() {
                entries.push((next.clone(), value));
            }
            last = Some(next);
        }
    }

    /// Puts a value in.
    ///
    /// # Panics
    /// When the kernel refuses, or the sizes are others.
    pub fn set(&self, key: &[u8], value: &[u8]) {
        assert_eq!((key.len(), value.len()), (self.key, self.value));
        let mut attributes = [descriptor(&self.fd), key.as_ptr() as u64, value.as_ptr() as u64, 0];
        bpf(BPF_MAP_UPDATE_ELEM, &mut attributes).expect("the map can be written");
    }
}

/// Which VIP stands for each address that is captured.
///
/// # Panics
/// When no agent pinned anything.
#[track_caller]
pub fn vips(world: &World) -> BTreeMap<SocketAddr, IpAddr> {
    let entries = PinnedMap::of(world, "DESTINATIONS").entries();
    let vip_of = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let port = u16::from_be_bytes([key[16], key[17]]);
        (SocketAddr::new(address(key), port), address(value))
    };
    entries.iter().map(vip_of).collect()
}

/// Sixteen bytes in network order, IPv4 as `::ffff:a.b.c.d`.
fn address(bytes: &[u8]) -> IpAddr {
    let octets: [u8; 16] = bytes[..16].try_into().expect("sixteen");
    IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
}

fn descriptor(fd: &OwnedFd) -> u64 {
    u64::try_from(fd.as_raw_fd()).expect("not negative")
}

/// bpf(2) on a little-endian machine: two small fields that come one after the other share a word.
fn bpf(command: u64, attributes: &mut [u64]) -> io::Result<i64> {
    let mut all: Attributes = [0; 16];
    all[..attributes.len()].copy_from_slice(attributes);
    // SAFETY: the attributes hold addresses of buffers of the sizes that the kernel names for the map, and
    // these outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, all.as_mut_ptr(), size_of_val(&all)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}
