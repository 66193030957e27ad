//! What the kernel under test can do. Where one lacks something, a scenario asserts what hnp promises
//! instead, and the run says so: docs/kernels.md is the table.
//!
//! Probed, never told by a version number: distributions carry features back.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::OnceLock;

/// Names a file to which each lack that a scenario met is added: scenario, feature and consequence, with
/// tabulators between them. `cargo xtask test --tier vm` reads it.
const VARIABLE: &str = "HNP_TEST_LACKS";

/// Something that not every kernel has and hnp can do without, at a price.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Feature {
    /// The helper `bpf_set_retval` in programs on socket addresses.
    SetRetval,
    /// The socket option `SO_NETNS_COOKIE`.
    NetnsCookie,
}

impl Feature {
    /// Its name, and the release of Linux that brought it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SetRetval => "bpf_set_retval (Linux 5.18)",
            Self::NetnsCookie => "SO_NETNS_COOKIE (Linux 5.14)",
        }
    }

    /// What follows where it is missing.
    pub fn without(self) -> &'static str {
        match self {
            Self::SetRetval => {
                "a refused datagram or bind() says EPERM instead of an errno that clients know; a refused \
                 connect() is sent to a closed port of the caller's own loopback: TCP gives the same \
                 ECONNREFUSED, UDP says yes and the datagrams reach nobody"
            }
            Self::NetnsCookie => {
                "the agent's port is kept from pods in their own network namespaces, too, and \
                 capture.raw_sockets cannot be refuse"
            }
        }
    }
}

/// Whether this is a guest of the vm tier, whose kernel has what xtask/src/vm/modules.rs names.
pub fn in_a_guest() -> bool {
    std::env::var_os("HNP_TEST_VM").is_some()
}

/// Whether the kernel has a feature. If not, the calling scenario is noted as one that asserts less.
///
/// # Panics
/// Without root.
pub fn has(feature: Feature) -> bool {
    static SET_RETVAL: OnceLock<bool> = OnceLock::new();
    static NETNS_COOKIE: OnceLock<bool> = OnceLock::new();
    let there = match feature {
        Feature::SetRetval => *SET_RETVAL.get_or_init(has_set_retval),
        Feature::NetnsCookie => *NETNS_COOKIE.get_or_init(has_netns_cookie),
    };
    if !there {
        note(feature);
    }
    there
}

/// How the refusal of a datagram or a bind() reads: `words` of the errno that the programs set, or those of
/// EPERM.
///
/// # Panics
/// Without root.
pub fn refusal(words: &'static str) -> &'static str {
    if has(Feature::SetRetval) { words } else { "Operation not permitted" }
}

/// The name of the errno that a bind() to the agent's port is refused with.
///
/// # Panics
/// Without root.
pub fn refused_bind() -> &'static str {
    if has(Feature::SetRetval) { "EADDRINUSE" } else { "EPERM" }
}

fn note(feature: Feature) {
    let thread = std::thread::current();
    let line = format!("{}\t{}\t{}\n", thread.name().unwrap_or("unnamed"), feature.name(), feature.without());
    eprint!("this kernel lacks: {line}");
    if let Some(path) = std::env::var_os(VARIABLE) {
        // One write each, so that lines of scenarios that run side by side stay whole.
        let file = File::options().create(true).append(true).open(&path);
        let noted = file.and_then(|mut file| file.write_all(line.as_bytes()));
        noted.unwrap_or_else(|error| panic!("{VARIABLE}: {}: {error}", path.display()));
    }
}

/// Whether a program can be attached to what comes in on an interface: by a link (tcx, Linux 6.6), or by a
/// filter, for which modules must be there.
///
/// # Panics
/// Without root.
pub fn can_guard() -> bool {
    has_tcx() || ["sch_ingress", "cls_bpf"].iter().all(|module| is_loaded(module))
}

/// Modules that are built in have no file in sysfs, unless they have parameters; then only tcx says it.
fn is_loaded(module: &str) -> bool {
    std::path::Path::new("/sys/module").join(module).exists()
}

/// Asks for a link on an interface that does not exist.
fn has_tcx() -> bool {
    const BPF_LINK_CREATE: libc::c_int = 28;
    const SCHED_CLS: (u32, u32) = (3, 0);
    const BPF_TCX_INGRESS: u32 = 46;
    let program = load(SCHED_CLS, &RETURN_1)
        .unwrap_or_else(|error| panic!("this needs root: bpf(BPF_PROG_LOAD): {error}"));
    /// The part of `union bpf_attr` that `BPF_LINK_CREATE` reads.
    #[repr(C)]
    struct Attr {
        prog_fd: i32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    let attr = Attr {
        prog_fd: program.as_raw_fd(),
        target_ifindex: i32::MAX.unsigned_abs(),
        attach_type: BPF_TCX_INGRESS,
        flags: 0,
    };
    let pointer: *const Attr = &raw const attr;
    // SAFETY: the kernel reads `attr`, of the size given.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, pointer, size_of::<Attr>()) };
    assert!(fd < 0, "there is no such interface");
    io::Error::last_os_error().raw_os_error() == Some(libc::ENODEV)
}

/// Eight bytes each (linux/bpf.h): code, registers, offset, immediate.
const RETURN_1: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

/// Loads two programs, one of which calls the helper; both end at once, being attached to nothing.
fn has_set_retval() -> bool {
    const SET_ERRNO: [u64; 2] = [0xffff_ff91_0000_01b7, 0x0000_00bb_0000_0085];
    load(CONNECT4, &RETURN_1).unwrap_or_else(|error| panic!("this needs root: bpf(BPF_PROG_LOAD): {error}"));
    load(CONNECT4, &[SET_ERRNO, RETURN_1].concat()).is_ok()
}

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` and `BPF_CGROUP_INET4_CONNECT`.
const CONNECT4: (u32, u32) = (18, 10);

/// Loads a program of a type and for an attach type.
fn load((prog_type, expected_attach_type): (u32, u32), instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    /// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads.
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let (code, license) = (instructions.as_ptr(), c"Apache-2.0".as_ptr());
    let attr = Attr {
        prog_type,
        insn_cnt: u32::try_from(instructions.len()).expect("a few"),
        insns: code as u64,
        license: license as u64,
        expected_attach_type,
        ..Attr::default()
    };
    let pointer: *const Attr = &raw const attr;
    // SAFETY: the kernel reads `attr`, of the size given, and the code and text it points to; all of
    // them outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, pointer, size_of::<Attr>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("descriptors are small")) })
}

fn has_netns_cookie() -> bool {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback is up");
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("eight");
    let value: *mut u64 = &raw mut cookie;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value.cast(), &raw mut length)
    };
    result == 0
}
