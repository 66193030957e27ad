//! Taking worlds down, by name: also those whose owner was killed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};

use crate::node::HIERARCHIES;
use crate::{cgroup, netns};

/// Removes everything of a world, by its name, whoever made it.
///
/// # Errors
/// When something remains; the first thing is named.
pub fn remove(name: &str) -> Result<()> {
    // Those of version 1, too, that a container was put into for its limits.
    let older = HIERARCHIES.iter().try_for_each(|root| cgroup::remove_tree(&Path::new(root).join(name)));
    let cgroups = cgroup::mount_point().and_then(|mount| cgroup::remove_tree(&mount.join(name))).and(older);
    let mut namespaces = Ok(());
    for netns in netns::names_with(&format!("{name}-")) {
        namespaces = namespaces.and(netns::remove(&netns));
    }
    let dir = dir_of(name);
    let _ = umount2(&dir.join("bpffs"), MntFlags::MNT_DETACH);
    let files = match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    };
    cgroups.and(namespaces).and(files)
}

/// What is left of worlds whose name begins with `prefix`: namespaces, cgroups, directories, mounts.
pub fn leftovers(prefix: &str) -> Vec<String> {
    let mut left: Vec<String> =
        netns::names_with(prefix).into_iter().map(|name| format!("network namespace {name}")).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|place| place.contains(&format!("/{prefix}")))
            .map(|place| format!("mount {place}")),
    );
    for (kind, dir) in
        [("cgroup", cgroup::mount_point().unwrap_or_default()), ("directory", std::env::temp_dir())]
    {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        left.extend(
            entries
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
                .map(|entry| format!("{kind} {}", entry.path().display())),
        );
    }
    left
}

/// Removes worlds whose name begins with `prefix` and whose owner, named by process id, is dead.
pub fn sweep(prefix: &str) {
    let dirs = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for name in dirs.filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.rsplit('-').nth(1).and_then(|pid| pid.parse::<u32>().ok());
        if name.starts_with(prefix) && owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            eprintln!("removing the stale world {name}");
            if let Err(error) = remove(&name) {
                eprintln!("{name}: {error:#}");
            }
        }
    }
}

/// Where a world keeps its files.
pub(super) fn dir_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}
