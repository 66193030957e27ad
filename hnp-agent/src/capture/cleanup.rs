//! Removes every trace of an agent that is gone, and looks whether that is so.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::attach::all_programs;
use super::error::CaptureError;
use super::{anyip, cgroups, guard, pins, sys};

/// What a cleanup found, and what it could not remove.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cleaned {
    /// What was there and is gone.
    pub removed: Vec<String>,
    /// What is still there, each in words for people.
    pub left: Vec<String>,
}

/// Detaches the programs that are pinned in a directory, removes all pins and this network namespace's
/// routes, then looks at the kernel's own lists for what is left.
///
/// # Errors
/// When an agent is running, or the kernel cannot be asked.
pub fn clean_up(bpffs: &Path) -> Result<Cleaned, CaptureError> {
    let lock = pins::Lock::take(bpffs)?;
    let mut cleaned = Cleaned::default();
    let attached = detach_pinned(&lock, &mut cleaned)?;
    for pin in pins::all(bpffs)? {
        cleaned.removed.push(format!("pin {}", pin.display()));
    }
    guard::clean_up(&pins::guard_dir(bpffs))?;
    lock.clear()?;
    for range in anyip::remove_all()? {
        cleaned.removed.push(format!("route local {range} dev lo"));
    }
    // The proof: not what was asked for, but what the kernel lists.
    let here = cgroups_by_id(&attached);
    for Attached { program, program_id, cgroup_id, attach_type } in &attached {
        let Some(dir) = here.iter().find(|(id, _)| id == cgroup_id).map(|(_, dir)| dir) else { continue };
        let listed = File::open(dir).and_then(|dir| sys::attached_programs(dir.as_fd(), *attach_type));
        if listed.is_ok_and(|(ids, _)| ids.contains(program_id)) {
            cleaned.left.push(format!("program {program} (id {program_id}) on {}", dir.display()));
        }
    }
    cleaned.left.extend(pins::all(bpffs)?.into_iter().map(|pin| format!("pin {}", pin.display())));
    cleaned.left.extend(anyip::all()?.into_iter().map(|range| format!("route local {range} dev lo")));
    Ok(cleaned)
}

struct Attached {
    program: &'static str,
    program_id: u32,
    cgroup_id: u64,
    attach_type: u32,
}

/// In the reverse order of attaching, so that nothing is redirected that the others do not know.
fn detach_pinned(lock: &pins::Lock, cleaned: &mut Cleaned) -> Result<Vec<Attached>, CaptureError> {
    let mut attached = Vec::new();
    for (program, _) in all_programs().rev() {
        let path = lock.link(program);
        let opened = sys::open_pin(&path).map_err(|source| CaptureError::Pin { path, source })?;
        let Some(link) = opened else { continue };
        let Ok(info) = sys::link_info(link.as_fd()) else { continue };
        // One whose cgroup is gone hangs on nothing.
        if info.cgroup_id != 0 && sys::link_detach(link.as_fd()).is_ok() {
            cleaned.removed.push(format!("program {program} (id {})", info.program_id));
        }
        let (program_id, cgroup_id) = (info.program_id, info.cgroup_id);
        attached.push(Attached { program, program_id, cgroup_id, attach_type: info.attach_type });
    }
    Ok(attached)
}

/// The directories of these cgroups, where they can be seen from here.
fn cgroups_by_id(attached: &[Attached]) -> Vec<(u64, PathBuf)> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for mount in cgroups::mounts() {
        cgroups::walk(&mount, cgroups::SEARCH_DEPTH, &mut |dir| {
            let id = fs::metadata(dir).map(|meta| meta.ino()).unwrap_or_default();
            if attached.iter().any(|program| program.cgroup_id == id) {
                found.push((id, dir.to_owned()));
            }
            true
        });
    }
    found
}
