//! Pins below `capture.bpffs`: `links/` keep the programs attached, `maps/` keep what they know.
//!
//! What is pinned here outlives the agent: when it dies, strict destinations stay refused rather than
//! open. One lock on the directory says that an agent is alive; pins without a lock are a former one's. The
//! lock belongs to the open directory (flock(2)), so a successor that is given a duplicate of the descriptor
//! holds it too, and alone once its predecessor has closed its own.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::CaptureError;

const LINKS: &str = "links";
const MAPS: &str = "maps";
/// Where new pins lie until all is attached (bpffs has no names with a dot).
const STAGED: [(&str, &str); 2] = [("links-new", LINKS), ("maps-new", MAPS)];

/// The pin directory, locked for this agent. Dropping it leaves what is pinned, and removes what was only
/// staged and the directory if nothing is in it.
#[derive(Debug)]
pub(super) struct Lock {
    dir: PathBuf,
    /// The directory is another agent's: a predecessor's until its pins are replaced, or a successor's.
    lent: bool,
    /// Released last, and by closing it: unlocking would take it from whoever has a duplicate.
    file: Option<File>,
}

impl Lock {
    /// Makes the directory if need be, and locks it.
    pub(super) fn take(dir: &Path) -> Result<Self, CaptureError> {
        loop {
            fs::create_dir_all(dir).map_err(|source| file("make", dir, source))?;
            let open = File::open(dir).map_err(|source| file("open", dir, source))?;
            open.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => CaptureError::Locked { dir: dir.to_owned(), pid: holder(dir) },
                TryLockError::Error(source) => file("lock", dir, source),
            })?;
            // An agent that was just leaving may have removed the directory under the lock.
            if same_directory(&open, dir) {
                return Ok(Self { dir: dir.to_owned(), lent: false, file: Some(open) });
            }
        }
    }

    /// Takes part in the lock of a running agent, by a duplicate of its descriptor. Dropping it gives
    /// nothing up but that: the lock stays the other's until it leaves.
    pub(super) fn from_inherited(dir: &Path, descriptor: OwnedFd) -> Result<Self, CaptureError> {
        let open = File::from(descriptor);
        if !same_directory(&open, dir) {
            return Err(CaptureError::OtherPins { dir: dir.to_owned() });
        }
        Ok(Self { dir: dir.to_owned(), lent: true, file: Some(open) })
    }

    /// A duplicate of the descriptor, for [`Lock::from_inherited`].
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.file.as_ref().ok_or(io::ErrorKind::NotFound)?.as_fd().try_clone_to_owned()
    }

    /// Whether the pins are a running agent's.
    pub(super) fn is_lent(&self) -> bool {
        self.lent
    }

    /// The pins are this agent's alone from now on.
    pub(super) fn own(&mut self) {
        self.lent = false;
    }

    /// The pins and the lock are another agent's: forgets them.
    pub(super) fn give_up(mut self) {
        self.lent = true;
        self.file = None;
    }

    /// Where the link of `program` is pinned.
    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.dir.join(LINKS).join(program)
    }

    /// Where the map `name` is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        map_pin(&self.dir, name)
    }

    /// Where a new link of `program` is to be pinned, until [`Lock::settle`].
    pub(super) fn new_link(&self, program: &str) -> PathBuf {
        self.dir.join("links-new").join(program)
    }

    /// Where a new map `name` is to be pinned, until [`Lock::settle`].
    pub(super) fn new_map(&self, name: &str) -> PathBuf {
        self.dir.join("maps-new").join(name)
    }

    /// Makes room for new pins beside a former agent's.
    pub(super) fn make_room(&self) -> Result<(), CaptureError> {
        for (staged, _) in STAGED {
            self.remove_dir(staged)?;
            let path = self.dir.join(staged);
            fs::create_dir(&path).map_err(|source| file("make", &path, source))?;
        }
        Ok(())
    }

    /// Puts the new pins where they belong, over a former agent's, and removes what neither `programs` nor
    /// `maps` names. Whatever step fails, each hook has a program, the former one's or this one's.
    pub(super) fn settle(&self, programs: &[&str], maps: &[&str]) -> Result<(), CaptureError> {
        for (staged, settled) in STAGED {
            let (from, to) = (self.dir.join(staged), self.dir.join(settled));
            fs::create_dir_all(&to).map_err(|source| file("make", &to, source))?;
            for name in names_in(&from)? {
                let from = from.join(&name);
                fs::rename(&from, to.join(&name)).map_err(|source| file("rename", &from, source))?;
            }
            self.remove_dir(staged)?;
        }
        for (kind, kept) in [(LINKS, programs), (MAPS, maps)] {
            let dir = self.dir.join(kind);
            for name in names_in(&dir)?.into_iter().filter(|name| !kept.contains(&name.as_str())) {
                let path = dir.join(&name);
                fs::remove_file(&path).map_err(|source| file("remove", &path, source))?;
            }
        }
        // Of versions before 0.2.
        self.remove_dir("links-old")?;
        self.remove_dir("maps-old")
    }

    /// Removes all pins. Links first: then nobody runs the programs whose maps go.
    pub(super) fn clear(&self) -> Result<(), CaptureError> {
        for sub in [LINKS, "links-old", "links-new", MAPS, "maps-old", "maps-new"] {
            self.remove_dir(sub)?;
        }
        Ok(())
    }

    fn remove_dir(&self, sub: &str) -> Result<(), CaptureError> {
        let path = self.dir.join(sub);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", &path, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn leave(&self) -> Result<(), CaptureError> {
        for (staged, _) in STAGED {
            self.remove_dir(staged)?;
        }
        match fs::remove_dir(&self.dir) {
            // A mount point, gone already, or with something in it that is to stay.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOENT | libc::ENOTEMPTY)) =>
            {
                Ok(())
            }
            Err(source) => Err(file("remove", &self.dir, source)),
            Ok(()) => Ok(()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.lent {
            return;
        }
        if let Err(error) = self.leave() {
            tracing::warn!(error = &error as &dyn std::error::Error, "pins are left behind");
        }
    }
}

/// Where an agent with this pin directory pins its maps.
pub(super) fn maps_dir(dir: &Path) -> PathBuf {
    dir.join(MAPS)
}

/// All pins in a directory.
pub(super) fn all(dir: &Path) -> Result<Vec<PathBuf>, CaptureError> {
    let dirs = STAGED.map(|(staged, settled)| [dir.join(settled), dir.join(staged)]);
    let mut all = Vec::new();
    for dir in dirs.into_iter().flatten().chain([guard_dir(dir)]).filter(|dir| dir.exists()) {
        all.extend(names_in(&dir)?.into_iter().map(|name| dir.join(name)));
    }
    Ok(all)
}

/// The names of what is pinned in a directory, those that begin with `hnp_connect` first: a former
/// agent's connect programs must not outlive the others.
fn names_in(dir: &Path) -> Result<Vec<String>, CaptureError> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|source| file("read", dir, source))?;
    let mut names: Vec<_> =
        entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_by_key(|name| (!name.starts_with("hnp_connect"), name.clone()));
    Ok(names)
}

/// Where the map `name` of an agent with this pin directory is pinned.
pub(super) fn map_pin(dir: &Path, name: &str) -> PathBuf {
    dir.join("maps").join(name)
}

/// Where the guard of an agent with this pin directory keeps what it attached.
pub(super) fn guard_dir(dir: &Path) -> PathBuf {
    dir.join("guard")
}

/// Who holds the lock, by /proc/locks: `1: FLOCK  ADVISORY  WRITE 77 00:1c:9 0 EOF`. `None` for a
/// process in a PID namespace that does not show here.
fn holder(dir: &Path) -> Option<u32> {
    let inode = fs::metadata(dir).ok()?.ino();
    parse_holder(&fs::read_to_string("/proc/locks").ok()?, inode)
}

/// Whether some agent holds the lock on the directory with this inode.
pub(super) fn is_locked(inode: u64) -> bool {
    fs::read_to_string("/proc/locks")
        .is_ok_and(|locks| locks.lines().any(|line| line.contains(&format!(":{inode} "))))
}

fn parse_holder(locks: &str, inode: u64) -> Option<u32> {
    let suffix = format!(":{inode}");
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "FLOCK").skip(3);
        let pid = words.next()?.parse().ok()?;
        (words.next()?.ends_with(&suffix) && pid != 0).then_some(pid)
    })
}

fn same_directory(open: &File, path: &Path) -> bool {
    match (open.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
    }
}

fn file(doing: &'static str, path: &Path, source: io::Error) -> CaptureError {
    CaptureError::File { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_until_the_first_is_gone() {
        let parent = tempfile::tempdir().expect("temp dir");
        let dir = parent.path().join("hnp");
        let first = Lock::take(&dir).expect("free");
        let second = Lock::take(&dir).expect_err("held");
        assert!(second.to_string().contains("another agent is running"), "{second}");
        let told = format!("process {} holds", std::process::id());
        assert!(second.to_string().contains(&told), "{second}");
        first.make_room().expect("made");
        fs::write(first.new_link("hnp_connect4"), "").expect("a pin");
        first.settle(&["hnp_connect4"], &[]).expect("settled");
        assert!(first.link("hnp_connect4").exists());
        first.clear().expect("cleared");
        drop(first);
        assert!(!dir.exists(), "nothing is left");
        Lock::take(&dir).expect("free again");
    }

    #[test]
    fn a_lock_that_is_handed_over_is_never_free_in_between() {
        let parent = tempfile::tempdir().expect("temp dir");
        let dir = parent.path().join("hnp");
        let first = Lock::take(&dir).expect("free");
        let duplicate = first.duplicate().expect("descriptors are left");
        drop(Lock::from_inherited(&dir, duplicate).expect("the same directory"));
        Lock::take(&dir).expect_err("a successor that gave up has unlocked nothing");

        let duplicate = first.duplicate().expect("descriptors are left");
        let mut second = Lock::from_inherited(&dir, duplicate).expect("the same directory");
        second.make_room().expect("made");
        first.give_up();
        Lock::take(&dir).expect_err("the second one holds it");
        assert!(dir.join("links-new").exists(), "what is the second one's stays");
        second.own();
        drop(second);
        assert!(!dir.exists(), "nothing is left");
        drop(Lock::take(&dir).expect("free"));

        let other = parent.path().join("other");
        let elsewhere = Lock::take(&other).expect("free").duplicate().expect("descriptors are left");
        fs::create_dir_all(&dir).expect("made");
        Lock::from_inherited(&dir, elsewhere).expect_err("another directory");
    }

    #[test]
    fn pins_outlive_their_agent_and_a_start_that_fails() {
        let parent = tempfile::tempdir().expect("temp dir");
        let dir = parent.path().join("hnp");
        fs::create_dir_all(dir.join("maps")).expect("made");
        fs::write(map_pin(&dir, "FLOWS"), "former").expect("a pin");

        drop(Lock::take(&dir).expect("nobody holds it"));
        assert!(map_pin(&dir, "FLOWS").exists(), "they go on enforcing");

        let lock = Lock::take(&dir).expect("free");
        lock.make_room().expect("made");
        fs::write(lock.new_map("PODS"), "").expect("a pin");
        drop(lock);
        assert!(map_pin(&dir, "FLOWS").exists() && !dir.join("maps-new").exists(), "failed while pinning");

        let lock = Lock::take(&dir).expect("free");
        lock.make_room().expect("made");
        fs::write(lock.new_map("FLOWS"), "new").expect("a pin");
        fs::write(map_pin(&dir, "UNKNOWN"), "").expect("a pin");
        lock.settle(&[], &["FLOWS"]).expect("settled");
        drop(lock);
        assert_eq!(fs::read_to_string(map_pin(&dir, "FLOWS")).expect("there"), "new");
        assert!(!map_pin(&dir, "UNKNOWN").exists() && !dir.join("maps-new").exists());
    }
}
