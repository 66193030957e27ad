//! The moves a child makes between fork and exec: into its cgroup, its network namespace, a mount
//! namespace of its own, and down to the capabilities it may have. System calls only.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Place;

/// Everything the child needs to move itself, prepared before the fork.
pub(super) struct MoveIn {
    cgroup_procs: File,
    netns: RawFd,
    root: CString,
    binds: Vec<(CString, CString)>,
    drop_capabilities: Vec<u8>,
}

impl MoveIn {
    pub(super) fn prepare(place: &Place, keep: Option<&[u8]>) -> Result<Self> {
        let procs = place.cgroup.join("cgroup.procs");
        Ok(Self {
            cgroup_procs: File::options()
                .write(true)
                .open(&procs)
                .with_context(|| procs.display().to_string())?,
            netns: place.netns.raw_fd(),
            root: c"/".to_owned(),
            binds: place
                .world
                .etc_files()
                .into_iter()
                .map(|(from, to)| (c_string(&from), c_string(&to)))
                .collect(),
            drop_capabilities: match keep {
                None => Vec::new(),
                Some(keep) => (0..=last_capability()?).filter(|cap| !keep.contains(cap)).collect(),
            },
        })
    }

    /// Runs between fork and exec: system calls only.
    pub(super) fn enter(&self) -> io::Result<()> {
        // SAFETY: each call gets descriptors and NUL-terminated strings that `self` keeps alive.
        unsafe {
            checked(libc::write(self.cgroup_procs.as_raw_fd(), c"0".as_ptr().cast(), 1) as libc::c_int)?;
            checked(libc::setns(self.netns, libc::CLONE_NEWNET))?;
            checked(libc::unshare(libc::CLONE_NEWNS))?;
            let none = std::ptr::null();
            let private = libc::MS_REC | libc::MS_PRIVATE;
            checked(libc::mount(none, self.root.as_ptr(), none, private, none.cast()))?;
            for (from, to) in &self.binds {
                checked(libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast()))?;
            }
            for &capability in &self.drop_capabilities {
                checked(libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0))?;
            }
        }
        Ok(())
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn last_capability() -> Result<u8> {
    let path = "/proc/sys/kernel/cap_last_cap";
    fs::read_to_string(path).context(path)?.trim().parse().context(path)
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("paths hold no NUL")
}
