//! The cgroup tree of a world, shaped like a kubelet's, on wherever cgroup2 is mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::poll::patience;

/// How the kubelet of a node names its cgroups.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Driver {
    /// `kubepods/besteffort/pod<uid>/<container>`
    Cgroupfs,
    /// `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<uid>.slice/cri-containerd-<container>.scope`
    Systemd,
}

/// A pod's quality-of-service class, which decides where its cgroup hangs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Qos {
    /// No requests, no limits.
    BestEffort,
    /// Some requests.
    Burstable,
    /// Limits equal to requests; such pods hang directly below kubepods.
    Guaranteed,
}

impl Driver {
    /// The directory that all pods hang under, as the agent's `capture.cgroup` wants it.
    pub fn kubepods(self) -> &'static str {
        match self {
            Self::Cgroupfs => "kubepods",
            Self::Systemd => "kubepods.slice",
        }
    }

    /// The path of a container's cgroup below the node's root.
    pub fn container(self, qos: Qos, uid: &str, container: &str) -> PathBuf {
        let class = match qos {
            Qos::BestEffort => Some("besteffort"),
            Qos::Burstable => Some("burstable"),
            Qos::Guaranteed => None,
        };
        let path = match (self, class) {
            (Self::Cgroupfs, Some(class)) => format!("kubepods/{class}/pod{uid}/{container}"),
            (Self::Cgroupfs, None) => format!("kubepods/pod{uid}/{container}"),
            (Self::Systemd, class) => {
                let uid = uid.replace('-', "_");
                let (parent, prefix) = match class {
                    Some(class) => (format!("kubepods-{class}.slice/"), format!("kubepods-{class}")),
                    None => (String::new(), "kubepods".to_owned()),
                };
                format!("kubepods.slice/{parent}{prefix}-pod{uid}.slice/cri-containerd-{container}.scope")
            }
        };
        path.into()
    }
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts.
///
/// # Errors
/// When it is not mounted.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let mut found = None;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut left = left.split(' ').skip(3);
        if right.starts_with("cgroup2 ")
            && let (Some("/"), Some(place)) = (left.next(), left.next())
        {
            found = Some(PathBuf::from(place));
        }
    }
    match found {
        Some(place) => Ok(place),
        None => bail!("cgroup2 is not mounted; mount it: mount -t cgroup2 none /sys/fs/cgroup"),
    }
}

/// Makes a cgroup and those above it.
///
/// # Errors
/// When the directory cannot be made.
pub fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making cgroup {}", path.display()))
}

/// Ends every process under `root` and removes the tree. Nothing happens when there is none.
///
/// # Errors
/// When processes or directories remain after five seconds.
pub fn remove_tree(root: &Path) -> Result<()> {
    for _ in 0..500 {
        if !root.exists() {
            return Ok(());
        }
        if fs::write(root.join("cgroup.kill"), "1").is_err() {
            // Before Linux 5.14 there is no such file.
            kill_below(root);
        }
        remove_empty(root);
        std::thread::sleep(patience(Duration::from_millis(2)));
    }
    if root.exists() { bail!("cgroup {} is still in use", root.display()) } else { Ok(()) }
}

/// Kills every process in a tree, by its id.
fn kill_below(dir: &Path) {
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        // 0 is a process of another pid namespace; one that has ended in between needs no signal.
        if let Some(pid) = pid.parse().ok().filter(|pid| *pid > 0) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_below(&entry.path());
        }
    }
}

/// Deepest first; directories that are still in use are left for the next round.
fn remove_empty(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::{Driver, Qos};

    const UID: &str = "0a0b-1c";

    #[test]
    fn paths_are_those_of_a_kubelet() {
        let path = |driver: Driver, qos| driver.container(qos, UID, "c0").to_str().expect("ascii").to_owned();
        assert_eq!(path(Driver::Cgroupfs, Qos::Burstable), "kubepods/burstable/pod0a0b-1c/c0");
        assert_eq!(path(Driver::Cgroupfs, Qos::Guaranteed), "kubepods/pod0a0b-1c/c0");
        assert_eq!(
            path(Driver::Systemd, Qos::BestEffort),
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a0b_1c.slice/cri-containerd-c0.scope"
        );
        assert_eq!(
            path(Driver::Systemd, Qos::Guaranteed),
            "kubepods.slice/kubepods-pod0a0b_1c.slice/cri-containerd-c0.scope"
        );
    }
}
