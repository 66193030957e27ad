//! The cgroup tree as far as capture needs it: where it is mounted, which cgroup holds the pods, which
//! ones stand between that and a pod, and where the agent itself is.
//!
//! Layouts differ (cgroupfs or systemd driver, kind, hybrid mounts), so nothing is hard-coded but the
//! names kubelet gives: the tree is walked.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::error::{CaptureError, Missing};

/// How deep below the mount kubepods is looked for: kind nests it four levels down.
pub(super) const SEARCH_DEPTH: usize = 6;

/// A cgroup to attach to.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// Its directory.
    pub(super) path: PathBuf,
    /// Its id: the directory's inode.
    pub(super) id: u64,
    /// Its open directory.
    pub(super) dir: File,
}

impl Cgroup {
    /// Notices when the cgroup was removed or made again: every link to it is gone then.
    pub(super) fn still_there(&self) -> Result<(), CaptureError> {
        match fs::metadata(&self.path) {
            Ok(meta) if meta.ino() == self.id => Ok(()),
            // Another reason than being gone says nothing about the links.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CaptureError::File { doing: "look at", path: self.path.clone(), source: error })
            }
            Ok(_) | Err(_) => Err(CaptureError::CgroupReplaced { path: self.path.clone() }),
        }
    }

    /// The same, with a descriptor of its own.
    pub(super) fn try_clone(&self) -> Result<Self, CaptureError> {
        let dir = self.dir.try_clone().map_err(|source| CaptureError::File {
            doing: "open",
            path: self.path.clone(),
            source,
        })?;
        Ok(Self { path: self.path.clone(), id: self.id, dir })
    }
}

/// Opens the configured cgroup, or looks for kubepods.
pub(super) fn find(configured: Option<&Path>) -> Result<Cgroup, Missing> {
    match configured {
        Some(path) => open(path).map_err(|error| Missing {
            what: format!("the cgroup {}: {error}", path.display()),
            why: "the programs hang on the cgroup that holds all pods",
            fix: "correct `capture.cgroup`, or leave it out to have it found".into(),
        }),
        None => search(),
    }
}

fn search() -> Result<Cgroup, Missing> {
    let why = "the programs hang on the cgroup that holds all pods";
    let Some(mount) = mounts().into_iter().next() else {
        return Err(Missing {
            what: "a cgroup2 file system".into(),
            why,
            fix: "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or mount the host's \
                  /sys/fs/cgroup into the container"
                .into(),
        });
    };
    let mut found = Vec::new();
    walk(&mount, SEARCH_DEPTH, &mut |dir| {
        let kubepods = is_kubepods(dir);
        if kubepods {
            found.push(dir.to_owned());
        }
        !kubepods
    });
    match found.as_slice() {
        [only] => open(only).map_err(|error| Missing {
            what: format!("access to the cgroup {}: {error}", only.display()),
            why,
            fix: "let the agent read it".into(),
        }),
        [] => Err(Missing {
            what: format!("a cgroup named kubepods or *kubepods.slice below {}", mount.display()),
            why,
            fix: "start kubelet first, or name the cgroup in `capture.cgroup`".into(),
        }),
        several => Err(Missing {
            what: format!("one kubepods cgroup; there are several: {several:?}"),
            why,
            fix: "name the right one in `capture.cgroup`".into(),
        }),
    }
}

fn open(path: &Path) -> io::Result<Cgroup> {
    let dir = File::open(path)?;
    let stat = fstatfs(&dir).map_err(io::Error::from)?;
    let meta = dir.metadata()?;
    if stat.filesystem_type() != CGROUP2_SUPER_MAGIC || !meta.is_dir() {
        return Err(io::Error::other("not a directory on cgroup2"));
    }
    Ok(Cgroup { path: path.to_owned(), id: meta.ino(), dir })
}

/// Where cgroup2 is mounted, the usual places first.
pub(super) fn mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = parse_mounts(&text);
    found.sort_by_key(|path| match path.to_str() {
        Some("/sys/fs/cgroup") => 0,
        Some("/sys/fs/cgroup/unified") => 1,
        Some(_) | None => 2,
    });
    found
}

/// The mount points of type cgroup2 in proc_pid_mountinfo(5).
fn parse_mounts(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            (right.split(' ').next()? == "cgroup2").then(|| left.split(' ').nth(4).map(PathBuf::from))?
        })
        .collect()
}

fn is_kubepods(dir: &Path) -> bool {
    let stem = stem(dir);
    stem == "kubepods" || stem.ends_with("-kubepods")
}

/// The cgroups of pods that are not Guaranteed stand one level deeper, below one of these.
fn is_qos(dir: &Path) -> bool {
    let stem = stem(dir);
    ["burstable", "besteffort"]
        .iter()
        .any(|qos| stem.strip_suffix(qos).is_some_and(|rest| rest.is_empty() || rest.ends_with('-')))
}

/// The name without systemd's suffix.
fn stem(dir: &Path) -> &str {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_suffix(".slice").unwrap_or(name)
}

/// Visits the directories below `dir`; `visit` says whether to go deeper. What cannot be looked at is left out.
pub(super) fn walk(dir: &Path, depth: usize, visit: &mut impl FnMut(&Path) -> bool) {
    try_walk(dir, depth, visit, &mut |_| {});
}

/// The same, and tells what could not be looked at. A cgroup that vanishes meanwhile is no loss.
fn try_walk(
    dir: &Path,
    depth: usize,
    visit: &mut impl FnMut(&Path) -> bool,
    missed: &mut impl FnMut(&io::Error),
) {
    if depth == 0 {
        return;
    }
    let mut look = || -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            match entry.and_then(|entry| Ok((entry.file_type()?.is_dir(), entry.path()))) {
                Ok((true, path)) if visit(&path) => try_walk(&path, depth - 1, visit, missed),
                Ok(_) => {}
                Err(error) => tell(&error, missed),
            }
        }
        Ok(())
    };
    if let Err(error) = look() {
        tell(&error, missed);
    }
}

fn tell(error: &io::Error, missed: &mut impl FnMut(&io::Error)) {
    if error.kind() != io::ErrorKind::NotFound {
        missed(error);
    }
}

/// The id of the agent's own cgroup, when it lies at or below `attached`.
///
/// Found by the list of processes and not by /proc/self/cgroup: that one is relative to the cgroup
/// namespace, and a container sees the host's tree only through a mount.
pub(super) fn own_below(attached: &Path) -> Option<u64> {
    let own = std::process::id().to_string();
    let holds_us = |dir: &Path| {
        fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|procs| procs.lines().any(|pid| pid == own))
    };
    let mut found = holds_us(attached).then(|| attached.to_owned());
    walk(attached, SEARCH_DEPTH, &mut |dir| {
        if found.is_none() && holds_us(dir) {
            found = Some(dir.to_owned());
        }
        found.is_none()
    });
    Some(fs::metadata(found?).ok()?.ino())
}

/// Which of these cgroups at or below `attached` are gone or have no process in them, for certain: what cannot be
/// looked at may be in use.
///
/// Looks where [`own_below`] looks.
pub(super) fn unused(attached: &Path, ids: &[u64]) -> Vec<u64> {
    let whole = Cell::new(true);
    let mut missed = |_: &io::Error| whole.set(false);
    let mut found = Vec::new();
    let mut look = |dir: &Path| {
        match fs::metadata(dir) {
            Ok(meta) if ids.contains(&meta.ino()) => {
                // Processes of other PID namespaces are listed too, as zeroes.
                let procs = fs::read_to_string(dir.join("cgroup.procs"));
                found.push((meta.ino(), procs.map_or(true, |procs| !procs.is_empty())));
            }
            Ok(_) => {}
            Err(error) => tell(&error, &mut |_| whole.set(false)),
        }
        true
    };
    look(attached);
    try_walk(attached, SEARCH_DEPTH, &mut look, &mut missed);
    let empty = |id: &u64| found.contains(&(*id, false));
    let gone = |id: &u64| whole.get() && found.iter().all(|(known, _)| known != id);
    ids.iter().filter(|id| empty(id) || gone(id)).copied().collect()
}

/// Tells the kernel which cgroups stand between the attached one and the pods.
pub(super) struct QosCgroups {
    attached: PathBuf,
    map: HashMap<MapData, u64, u8>,
    known: Vec<u64>,
}

impl QosCgroups {
    pub(super) fn new(attached: &Path, map: Map) -> Result<Self, CaptureError> {
        let map = HashMap::try_from(map).map_err(|source| error("open", source))?;
        Ok(Self { attached: attached.to_owned(), map, known: Vec::new() })
    }

    /// Looks again: kubelet makes and replaces these cgroups as it likes.
    pub(super) fn refresh(&mut self) -> Result<(), CaptureError> {
        let mut ids = Vec::new();
        walk(&self.attached, 1, &mut |dir| {
            if is_qos(dir)
                && let Ok(meta) = fs::metadata(dir)
            {
                ids.push(meta.ino());
            }
            false
        });
        for id in ids.iter().filter(|id| !self.known.contains(id)) {
            self.map.insert(id, 1, 0).map_err(|source| error("insert into", source))?;
        }
        for id in self.known.iter().filter(|id| !ids.contains(id)) {
            self.map.remove(id).map_err(|source| error("remove from", source))?;
        }
        self.known = ids;
        Ok(())
    }
}

fn error(doing: &'static str, source: aya::maps::MapError) -> CaptureError {
    CaptureError::Map { doing, map: "QOS_CGROUPS", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_wherever_it_is_mounted() {
        let hybrid = "36 32 0:30 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                      42 32 0:38 / /sys/fs/cgroup/unified rw,relatime shared:15 - cgroup2 cgroup2 rw\n\
                      50 25 0:40 / /sys/fs/bpf rw - bpf bpf rw\n";
        assert_eq!(parse_mounts(hybrid), [PathBuf::from("/sys/fs/cgroup/unified")]);
        assert!(parse_mounts("").is_empty());
    }

    #[test]
    fn only_what_is_gone_or_empty_for_certain_is_unused() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, procs: Option<&str>| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            if let Some(procs) = procs {
                fs::write(path.join("cgroup.procs"), procs).unwrap();
            }
            fs::metadata(&path).unwrap().ino()
        };
        let empty = make("pod1/empty", Some(""));
        let used = make("pod1/used", Some("12\n"));
        let elsewhere = make("pod2/elsewhere", Some("0\n"));
        let unreadable = make("pod2/unreadable", None);
        let gone = u64::MAX;
        assert_eq!(unused(dir.path(), &[empty, used, elsewhere, unreadable, gone]), [empty, gone]);
        // A file in a directory's place: what is below could not be looked at, so nothing is known to be gone.
        assert!(unused(&dir.path().join("pod1/used/cgroup.procs"), &[used, gone]).is_empty());
    }

    #[test]
    fn knows_kubelets_names() {
        for name in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice"] {
            assert!(is_kubepods(Path::new(name)), "{name}");
        }
        for name in ["kubepods-burstable.slice", "kubelet.slice", "mykubepods", "system.slice"] {
            assert!(!is_kubepods(Path::new(name)), "{name}");
        }
        for name in
            ["burstable", "besteffort", "kubepods-burstable.slice", "kubelet-kubepods-besteffort.slice"]
        {
            assert!(is_qos(Path::new(name)), "{name}");
        }
        for name in ["pod1234", "kubepods-pod12.slice", "kubepods-burstable-podab.slice", "unburstable"] {
            assert!(!is_qos(Path::new(name)), "{name}");
        }
    }
}
