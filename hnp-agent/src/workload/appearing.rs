//! Cgroups are noted as they appear, so that callers that have gone by the time they are asked for are known.
//!
//! A container that dials as its first act may have ended, and its pod with it, before its connection is accepted; then no
//! directory says any more whose ids the flow holds. So the cgroup that capture is attached to, the groups right below it and
//! those of pods are watched (inotify), and of what appears there id and path are noted: pods, and their containers. What containers
//! make themselves, below, is theirs by the flow's ancestors. Nobody is asked about what is noted until it calls.
//!
//! Without a watch (no inotify instance left, more pods than are watched, a cgroup that was gone before it was looked at) callers are
//! found as long as their directories are there.

use std::collections::{HashMap, VecDeque};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::cgroupfs::{inode, subdirectories};
use super::names;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names as metrics;

/// How many cgroups are noted; then the oldest are forgotten. A container has one and a pod another, so that is what a busy node makes
/// in an hour, in some 2 MiB.
const NOTED: usize = 8192;
/// How many directories are watched at most: several times the pods that a node may have.
const WATCHED: usize = 2048;
/// How often it is looked whether the cgroup that all are below is still the same, and how soon what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Ids and paths of cgroups, also of those that have gone.
#[derive(Debug, Default)]
pub struct Noted(Mutex<Paths>);

#[derive(Debug, Default)]
struct Paths {
    by_id: HashMap<u64, PathBuf>,
    /// In the order in which they came.
    order: VecDeque<u64>,
}

impl Noted {
    /// Where a cgroup is, or was. Ids are not used twice by 64-bit kernels.
    pub(super) fn path(&self, id: u64) -> Option<PathBuf> {
        self.paths().by_id.get(&id).cloned()
    }

    /// Writes `hnp_cgroups_noted`; for [`crate::telemetry::Telemetry::register`].
    pub fn write(&self, out: &mut Exposition<'_, '_>) {
        out.single(&metrics::CGROUPS_NOTED, self.paths().by_id.len() as u64);
    }

    pub(super) fn note(&self, id: u64, path: PathBuf) {
        let mut paths = self.paths();
        if paths.by_id.insert(id, path).is_none() {
            paths.order.push_back(id);
        }
        if paths.order.len() > NOTED
            && let Some(oldest) = paths.order.pop_front()
        {
            paths.by_id.remove(&oldest);
        }
    }

    fn paths(&self) -> MutexGuard<'_, Paths> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the thread that notes cgroups when dropped.
#[derive(Debug)]
pub struct Watching {
    _end: PipeWriter,
}

impl Watching {
    /// Notes what appears below `attached`, which is below the mount of cgroup2.
    ///
    /// # Errors
    /// When there can be no thread for it.
    pub fn start(mount: PathBuf, attached: PathBuf, noted: Arc<Noted>) -> io::Result<Self> {
        let (ends_when_closed, end) = io::pipe()?;
        thread::Builder::new()
            .name("cgroups".into())
            .spawn(move || note_until(&ends_when_closed, &mount, &attached, &noted))?;
        Ok(Self { _end: end })
    }
}

fn note_until(end: &PipeReader, mount: &Path, attached: &Path, noted: &Noted) {
    let mut failed = false;
    loop {
        match Watch::begin(mount, attached, noted) {
            Ok(mut watch) => {
                failed = false;
                match watch.follow(end) {
                    Over::Asked => return,
                    Over::Replaced => {}
                    Over::Overflown => {
                        tracing::debug!("cgroups came faster than they were noted; all are looked at");
                        continue;
                    }
                }
            }
            Err(error) if !std::mem::replace(&mut failed, true) => {
                tracing::warn!(
                    %error,
                    "cgroups cannot be watched (fs.inotify limits?): pods that end before their connection is looked at may not \
                     be known"
                );
            }
            Err(_) => {}
        }
        if wait(end, None) {
            return;
        }
    }
}

/// Until there is something to read, or a while has passed; whether this is to end.
fn wait(end: &PipeReader, events: Option<&Inotify>) -> bool {
    let on = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut both = vec![on(end.as_fd())];
    both.extend(events.map(|events| on(events.as_fd())));
    let waited = poll(&mut both, u16::try_from(AGAIN.as_millis()).unwrap_or(u16::MAX));
    match waited {
        Ok(_) => both[0].any().unwrap_or(true),
        Err(Errno::EINTR) => false,
        // Nothing can be waited for.
        Err(_) => true,
    }
}

/// Why a watch is over.
#[derive(Debug, Eq, PartialEq)]
enum Over {
    /// It is to end.
    Asked,
    /// The cgroup that all are below is gone, or is another one.
    Replaced,
    /// Events were lost.
    Overflown,
}

struct Watch<'a> {
    mount: &'a Path,
    attached: &'a Path,
    /// What `attached` was when this began.
    id: Option<u64>,
    noted: &'a Noted,
    events: Inotify,
    watched: HashMap<WatchDescriptor, PathBuf>,
}

impl<'a> Watch<'a> {
    /// Notes all that is there.
    fn begin(mount: &'a Path, attached: &'a Path, noted: &'a Noted) -> io::Result<Self> {
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut watch = Self { mount, attached, id: inode(attached), noted, events, watched: HashMap::new() };
        watch.watch(attached)?;
        watch.look_into(attached);
        Ok(watch)
    }

    fn follow(&mut self, end: &PipeReader) -> Over {
        loop {
            if wait(end, Some(&self.events)) {
                return Over::Asked;
            }
            if !self.read() {
                return Over::Overflown;
            }
            // Not every kernel tells the watch of a cgroup that this has gone.
            if inode(self.attached) != self.id {
                return Over::Replaced;
            }
        }
    }

    /// Takes what there is to be read; false: more than that is lost.
    fn read(&mut self) -> bool {
        while let Ok(events) = self.events.read_events() {
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    return false;
                }
                self.take(event);
            }
        }
        true
    }

    fn take(&mut self, event: InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.watched.remove(&event.wd);
            return;
        }
        let Some(path) = self.watched.get(&event.wd).zip(event.name).map(|(above, name)| above.join(name))
        else {
            return;
        };
        if event.mask.contains(AddWatchFlags::IN_CREATE) {
            if let Some(id) = inode(&path) {
                self.appeared(id, path);
            }
        } else if let Some(gone) = self.watched.iter().find_map(|(wd, known)| (*known == path).then_some(*wd))
        {
            self.watched.remove(&gone);
            // The kernel may have removed it already.
            let _ = self.events.rm_watch(gone);
        }
    }

    fn appeared(&mut self, id: u64, path: PathBuf) {
        self.noted.note(id, path.clone());
        // Watched first: what appears before it is listed is told.
        if self.holds_pods_or_containers(&path) && self.watched.len() < WATCHED && self.watch(&path).is_ok() {
            self.look_into(&path);
        }
    }

    fn look_into(&mut self, dir: &Path) {
        for (id, path) in subdirectories(dir) {
            self.appeared(id, path);
        }
    }

    fn watch(&mut self, dir: &Path) -> nix::Result<()> {
        let what = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        let wd = self.events.add_watch(dir, what)?;
        self.watched.insert(wd, dir.to_owned());
        Ok(())
    }

    /// A pod's, or a group's right below the attached one; not a container's, nor what is beside those in a pod.
    fn holds_pods_or_containers(&self, path: &Path) -> bool {
        let parse = |path: &Path| {
            let below = path.strip_prefix(self.attached).unwrap_or(path);
            names::parse(self.attached.strip_prefix(self.mount).unwrap_or(self.attached), below)
        };
        let above = path.parent().unwrap_or(path);
        let (is, within) = (parse(path), parse(above));
        let is_group = above == self.attached && is.pod_uid.is_none();
        let is_pod = is.pod_uid.is_some() && within.pod_uid.is_none() && is.container_id.is_none();
        is_group || is_pod
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "kubepods/besteffort/pod3ff17592-7a4d-4c3d-8a0c-1b6f0a4ad9c0";

    #[test]
    fn pods_and_containers_are_noted_as_they_come_and_outlast_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        let attached = dir.path().join("kubepods");
        let make = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            (inode(&path).unwrap(), path)
        };
        let before = make(&format!("{POD}/before"));
        let noted = Noted::default();
        let mut watch = Watch::begin(dir.path(), &attached, &noted).unwrap();
        let mut take = || {
            assert!(watch.read(), "nothing is lost");
            watch.watched.len()
        };
        assert_eq!(noted.path(before.0), Some(before.1));
        assert_eq!(take(), 3, "the attached one, the class, the pod");
        // One that is made with all that is in it, and what a container makes itself.
        let container = make("kubepods/burstable/pod4ff17592-7a4d-4c3d-8a0c-1b6f0a4ad9c0/c1");
        let nested = make(&format!("{POD}/before/nested"));
        assert_eq!(take(), 5);
        assert_eq!((noted.path(container.0), noted.path(nested.0)), (Some(container.1.clone()), None));
        // The control: one that has gone before anybody looked.
        let (lost, path) = make("kubepods/burstable/pod5ff17592-7a4d-4c3d-8a0c-1b6f0a4ad9c0");
        std::fs::rename(path, dir.path().join("elsewhere")).unwrap();
        take();
        assert_eq!(noted.path(lost), None);
        // A container more in a pod that is known, which goes with its pod. Nothing of it is watched any more.
        let (id, path) = make(&format!("{POD}/later"));
        take();
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert_eq!((take(), noted.path(id)), (4, Some(path)));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let noted = Noted::default();
        for id in 0..2 * NOTED as u64 {
            noted.note(id, PathBuf::new());
            noted.note(id, PathBuf::from("again"));
        }
        assert_eq!(noted.paths().order.len(), NOTED);
        assert_eq!(noted.paths().by_id.len(), NOTED);
        assert_eq!((noted.path(0), noted.path(NOTED as u64)), (None, Some(PathBuf::from("again"))));
    }

    #[test]
    fn a_tree_that_is_made_anew_is_noticed_and_so_is_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let attached = dir.path().join("kubepods");
        std::fs::create_dir(&attached).unwrap();
        let noted = Noted::default();
        let mut watch = Watch::begin(dir.path(), &attached, &noted).unwrap();
        // The old one stays elsewhere, so that its inode is not taken again.
        std::fs::rename(&attached, dir.path().join("before")).unwrap();
        std::fs::create_dir(&attached).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        assert_eq!(watch.follow(&reader), Over::Replaced);
        drop(writer);
        let mut watch = Watch::begin(dir.path(), &attached, &noted).unwrap();
        assert_eq!(watch.follow(&reader), Over::Asked);
    }
}
