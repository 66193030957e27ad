//! Pins below `capture.bpffs`: `links/` keep the programs attached, `maps/` keep what they know.
//!
//! Links pinned here outlive the agent: when it dies, destinations stay refused rather than open. One
//! lock on the directory says that an agent is alive; pins without a lock are a dead one's.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::error::CaptureError;

/// The pin directory, locked for this agent. Dropping it removes what this agent pinned, and the
/// directory if nothing else is in it.
#[derive(Debug)]
pub(super) struct Lock {
    dir: PathBuf,
    /// The pins below are this agent's. Until then they are a dead one's, which go on enforcing.
    owns_pins: bool,
    /// This agent's pins lie beside a dead one's, below `*-new` (bpffs has no names with a dot).
    staged: bool,
    // Released last.
    _flock: Flock<File>,
}

impl Lock {
    /// Makes the directory if need be, and locks it.
    pub(super) fn take(dir: &Path) -> Result<Self, CaptureError> {
        loop {
            fs::create_dir_all(dir).map_err(|source| file("make", dir, source))?;
            let open = File::open(dir).map_err(|source| file("open", dir, source))?;
            let flock =
                Flock::lock(open, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
                    Errno::EWOULDBLOCK => CaptureError::Locked { dir: dir.to_owned(), pid: holder(dir) },
                    errno => file("lock", dir, errno.into()),
                })?;
            // An agent that was just leaving may have removed the directory under the lock.
            if same_directory(&flock, dir) {
                return Ok(Self { dir: dir.to_owned(), owns_pins: false, staged: false, _flock: flock });
            }
        }
    }

    /// Where the link of `program` is to be pinned, until [`Lock::replace_pins`].
    pub(super) fn new_link(&self, program: &str) -> PathBuf {
        self.dir.join("links-new").join(program)
    }

    /// Where the map `name` is to be pinned, until [`Lock::replace_pins`].
    pub(super) fn new_map(&self, name: &str) -> PathBuf {
        self.dir.join("maps-new").join(name)
    }

    /// Makes room for this agent's pins beside a dead one's. Whoever calls this has attached programs
    /// of his own: an agent that was killed amid [`Lock::replace_pins`] may enforce by what lies there.
    pub(super) fn make_room(&mut self) -> Result<(), CaptureError> {
        for sub in ["links-new", "maps-new"] {
            self.remove_dir(sub)?;
        }
        self.staged = true;
        for sub in ["links-new", "maps-new"] {
            let path = self.dir.join(sub);
            fs::create_dir(&path).map_err(|source| file("make", &path, source))?;
        }
        Ok(())
    }

    /// Puts this agent's pins in the place of a dead one's. Whatever step fails, the dead one's links
    /// are pinned under one name or another and go on enforcing.
    pub(super) fn replace_pins(&mut self) -> Result<(), CaptureError> {
        for sub in ["links", "maps"] {
            let (path, old, new) = (
                self.dir.join(sub),
                self.dir.join(format!("{sub}-old")),
                self.dir.join(format!("{sub}-new")),
            );
            self.remove_dir(&format!("{sub}-old"))?;
            match fs::rename(&path, &old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(file("rename", &path, error));
                }
                Ok(()) | Err(_) => {}
            }
            fs::rename(&new, &path).map_err(|source| file("rename", &new, source))?;
        }
        self.owns_pins = true;
        // Links first: then nobody runs the programs whose maps go.
        for sub in ["links-old", "maps-old"] {
            self.remove_dir(sub)?;
        }
        Ok(())
    }

    /// Removes this agent's pins and the directory. The lock itself goes with the value.
    pub(super) fn clear(&mut self) -> Result<(), CaptureError> {
        if self.owns_pins {
            self.remove_pins()?;
            self.owns_pins = false;
        } else if self.staged {
            self.remove_dir("links-new")?;
            self.remove_dir("maps-new")?;
        }
        self.staged = false;
        match fs::remove_dir(&self.dir) {
            // A mount point, gone already, or with something in it that is not ours.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOENT | libc::ENOTEMPTY)) =>
            {
                Ok(())
            }
            Err(source) => Err(file("remove", &self.dir, source)),
            Ok(()) => Ok(()),
        }
    }

    /// Links first: then nobody runs the programs whose maps go.
    fn remove_pins(&self) -> Result<(), CaptureError> {
        for sub in ["links", "links-old", "links-new", "maps", "maps-old", "maps-new"] {
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
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(error = &error as &dyn std::error::Error, "pins are left behind");
        }
    }
}

/// Where the map `name` of an agent with this pin directory is pinned.
pub(super) fn map_pin(dir: &Path, name: &str) -> PathBuf {
    dir.join("maps").join(name)
}

/// Who holds the lock, by /proc/locks: `1: FLOCK  ADVISORY  WRITE 77 00:1c:9 0 EOF`. `None` for a
/// process in a PID namespace that does not show here.
fn holder(dir: &Path) -> Option<u32> {
    let inode = fs::metadata(dir).ok()?.ino();
    parse_holder(&fs::read_to_string("/proc/locks").ok()?, inode)
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
        let mut first = Lock::take(&dir).expect("free");
        let second = Lock::take(&dir).expect_err("held");
        assert!(second.to_string().contains("another agent is running"), "{second}");
        let told = format!("process {} holds", std::process::id());
        assert!(second.to_string().contains(&told), "{second}");
        first.make_room().expect("made");
        fs::write(first.new_link("hnp_connect4"), "").expect("a pin");
        first.replace_pins().expect("replaced");
        assert!(dir.join("links/hnp_connect4").exists());
        drop(first);
        assert!(!dir.exists(), "nothing is left");
        Lock::take(&dir).expect("free again");
    }

    #[test]
    fn a_dead_agents_pins_outlive_a_start_that_fails() {
        let parent = tempfile::tempdir().expect("temp dir");
        let dir = parent.path().join("hnp");
        fs::create_dir_all(dir.join("maps")).expect("made");
        fs::write(map_pin(&dir, "FLOWS"), "").expect("a pin");

        drop(Lock::take(&dir).expect("nobody holds it"));
        assert!(map_pin(&dir, "FLOWS").exists(), "they go on enforcing");

        let mut lock = Lock::take(&dir).expect("free");
        lock.make_room().expect("made");
        fs::write(lock.new_map("PODS"), "").expect("a pin");
        drop(lock);
        assert!(map_pin(&dir, "FLOWS").exists() && !dir.join("maps-new").exists(), "failed while pinning");

        let mut lock = Lock::take(&dir).expect("free");
        lock.make_room().expect("made");
        lock.replace_pins().expect("replaced");
        assert!(!map_pin(&dir, "FLOWS").exists() && !dir.join("maps-old").exists());
    }
}
