//! Other people's programs on the pods' cgroup and above it.
//!
//! Programs attached with `BPF_F_ALLOW_MULTI`, as every link is, run beside ours. Legacy ones do not: one
//! without flags forbids ours (EPERM), and one with `BPF_F_ALLOW_OVERRIDE` would be silenced below our
//! cgroup by ours. Both are somebody's, so the start ends with their names instead.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::cgroups::{self, Cgroup};
use super::error::CaptureError;
use super::sys;

/// `BPF_F_ALLOW_MULTI`.
const ALLOW_MULTI: u32 = 2;

/// A program that cannot share its cgroup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Foreign {
    /// Where it is attached.
    pub cgroup: PathBuf,
    /// Its number in the kernel.
    pub id: u32,
    /// Its name; `None` where the agent may not ask (CAP_SYS_ADMIN).
    pub name: Option<String>,
    /// It would be silenced by ours, rather than forbid it.
    pub overridable: bool,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = if self.overridable { "BPF_F_ALLOW_OVERRIDE" } else { "no flags" };
        match &self.name {
            Some(name) => write!(f, "{name:?} (id {})", self.id)?,
            None => write!(f, "id {} (bpftool prog show id {0})", self.id)?,
        }
        write!(f, ", attached to {} with {flags}", self.cgroup.display())
    }
}

/// Looks at the cgroup and all above it that can be seen from here.
pub(super) fn check(
    cgroup: &Cgroup,
    attach_types: impl IntoIterator<Item = u32>,
) -> Result<(), CaptureError> {
    let mounts = cgroups::mounts();
    let root = mounts.iter().find(|mount| cgroup.path.starts_with(mount));
    let within = |dir: &&Path| root.is_some_and(|root| dir.starts_with(root));
    let dirs: Vec<_> = cgroup.path.ancestors().take_while(within).collect();
    let mut found: Vec<Foreign> = Vec::new();
    for attach_type in attach_types {
        for dir in &dirs {
            // What cannot be asked is answered by the attach itself.
            let Ok(open) = File::open(dir) else { continue };
            let Ok((ids, flags)) = sys::attached_programs(open.as_fd(), attach_type) else { continue };
            if flags & ALLOW_MULTI != 0 {
                continue;
            }
            for id in ids {
                if found.iter().any(|seen| seen.id == id) {
                    continue;
                }
                let (cgroup, name) = (dir.to_path_buf(), sys::program_name(id));
                found.push(Foreign { cgroup, id, name, overridable: flags != 0 });
            }
        }
    }
    if found.is_empty() { Ok(()) } else { Err(CaptureError::Foreign(found)) }
}
