//! Files that appear whole or not at all, and never in the place of others unasked.
//!
//! Each is written beside its place, made durable, and then given its name: by link(2), which fails where the
//! name is taken, whoever took it and however late, or by rename(2), which replaces. Where the second of two
//! cannot be placed, the first is taken back. Between the two a reader may see a new key beside an old certificate,
//! for as long as two system calls take; the agent keeps the pair it has until both fit again.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::CertsError;

/// What a file holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// For everybody.
    Certificate,
    /// For its owner.
    PrivateKey,
}

impl Kind {
    /// The permission bits of a new file.
    pub const fn mode(self) -> u32 {
        match self {
            Self::Certificate => 0o644,
            Self::PrivateKey => 0o600,
        }
    }

    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::PrivateKey => "private key",
        }
    }
}

/// A file to write.
#[derive(Clone, Eq, PartialEq)]
pub struct NewFile {
    /// Its place.
    pub path: PathBuf,
    /// Its bytes.
    pub content: Vec<u8>,
    /// What it holds.
    pub kind: Kind,
}

impl std::fmt::Debug for NewFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the content: it may be a key.
        f.debug_struct("NewFile").field("path", &self.path).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What becomes of a file that is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Existing {
    /// It stays, and nothing is written.
    Keep,
    /// It is replaced by a new file, as if there had been none.
    Replace,
    /// It is replaced, and the new one has its owner, group and mode: whoever read it can go on. A symbolic link
    /// is followed and stays.
    Renew,
}

/// Writes all files, or none.
///
/// # Errors
/// One exists and is to be kept, or cannot be written; names it.
pub fn write(files: &[NewFile], existing: Existing) -> Result<(), CertsError> {
    if existing == Existing::Keep {
        for file in files {
            refuse_existing(&file.path)?;
        }
    }
    let prepared: Vec<Prepared> =
        files.iter().map(|file| Prepared::of(file, existing)).collect::<Result<_, _>>()?;
    let mut placed: Vec<&Prepared> = Vec::new();
    for one in &prepared {
        if let Err(source) = one.place(existing) {
            placed.iter().rev().for_each(|before| before.take_back());
            let path = one.place.clone();
            return Err(match source.kind() {
                io::ErrorKind::AlreadyExists => CertsError::Exists { path },
                _ => CertsError::Unwritable { path, source },
            });
        }
        placed.push(one);
    }
    for one in &prepared {
        // The names are in the directory, which has to last too; where it cannot be synced, it is as good as it gets.
        let _ = File::open(folder(&one.place)).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

/// Fails where a file is there already: before anything else is done.
///
/// # Errors
/// See [`CertsError::Exists`].
pub fn refuse_existing(path: &Path) -> Result<(), CertsError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(CertsError::Exists { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

/// A file beside its place. Dropping it removes what is beside.
#[derive(Debug)]
struct Prepared {
    place: PathBuf,
    beside: PathBuf,
    /// What was there keeps a second name until all is done.
    before: Option<PathBuf>,
}

impl Prepared {
    fn of(file: &NewFile, existing: Existing) -> Result<Self, CertsError> {
        let unwritable = |source| CertsError::Unwritable { path: file.path.clone(), source };
        let followed = match existing {
            Existing::Renew => fs::canonicalize(&file.path).ok(),
            Existing::Keep | Existing::Replace => None,
        };
        let place = followed.unwrap_or_else(|| file.path.clone());
        if place.file_name().is_none() || place.is_dir() {
            return Err(unwritable(io::ErrorKind::IsADirectory.into()));
        }
        let there = match existing {
            Existing::Renew => fs::metadata(&place).ok(),
            Existing::Keep | Existing::Replace => None,
        };
        let mode = match (&there, file.kind) {
            (None, kind) => kind.mode(),
            (Some(there), Kind::Certificate) => there.mode() & 0o777,
            (Some(there), Kind::PrivateKey) => there.mode() & 0o770,
        };
        let (mut new, mut prepared) = Self::beside(&place).map_err(unwritable)?;
        let mut fill = || {
            // Owner first: changing it may clear bits of the mode.
            if let Some(there) = &there
                && let own = new.metadata()?
                && (own.uid(), own.gid()) != (there.uid(), there.gid())
            {
                std::os::unix::fs::fchown(&new, Some(there.uid()), Some(there.gid()))?;
            }
            new.set_permissions(Permissions::from_mode(mode))?;
            new.write_all(&file.content)?;
            new.sync_all()
        };
        fill().map_err(unwritable)?;
        prepared.before = match existing {
            Existing::Keep => None,
            Existing::Replace | Existing::Renew => prepared.second_name().map_err(unwritable)?,
        };
        Ok(prepared)
    }

    /// An empty file that only its owner can open.
    fn beside(place: &Path) -> io::Result<(File, Self)> {
        for attempt in 0..100 {
            let beside = sibling(place, &format!("new{attempt}"));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside) {
                Ok(file) => return Ok((file, Self { place: place.to_owned(), beside, before: None })),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Gives what is there a second name, to be put back by; `None` where there is nothing.
    fn second_name(&self) -> io::Result<Option<PathBuf>> {
        let mut before = self.beside.clone().into_os_string();
        before.push("-before");
        let before = PathBuf::from(before);
        match fs::hard_link(&self.place, &before) {
            Ok(()) => Ok(Some(before)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn place(&self, existing: Existing) -> io::Result<()> {
        match existing {
            Existing::Keep => fs::hard_link(&self.beside, &self.place),
            Existing::Replace | Existing::Renew => fs::rename(&self.beside, &self.place),
        }
    }

    fn take_back(&self) {
        // The error that led here is the one to be told of.
        let _ = match &self.before {
            Some(before) => fs::rename(before, &self.place),
            None => fs::remove_file(&self.place),
        };
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        for one in std::iter::once(&self.beside).chain(&self.before) {
            // Gone already, where it has taken its place.
            let _ = fs::remove_file(one);
        }
    }
}

/// A hidden name in the same directory, so that link and rename stay within one file system.
fn sibling(place: &Path, suffix: &str) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    folder(place).join(format!(".{name}.{}-{suffix}", std::process::id()))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(dir: &Path, content: &str) -> [NewFile; 2] {
        let file = |name: &str, kind| NewFile { path: dir.join(name), content: content.into(), kind };
        [file("x.key", Kind::PrivateKey), file("x.crt", Kind::Certificate)]
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn files_have_their_modes_and_nothing_is_left_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        write(&pair(dir.path(), "one"), Existing::Keep).unwrap();
        assert_eq!(names(dir.path()), ["x.crt", "x.key"]);
        assert_eq!((mode(&dir.path().join("x.key")), mode(&dir.path().join("x.crt"))), (0o600, 0o644));
    }

    #[test]
    fn nothing_is_overwritten_and_half_a_pair_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x.crt"), "precious").unwrap();
        let error = write(&pair(dir.path(), "one"), Existing::Keep).unwrap_err();
        assert!(matches!(&error, CertsError::Exists { path } if path.ends_with("x.crt")), "{error}");
        assert_eq!(names(dir.path()), ["x.crt"], "the key was not there before");
        // Whoever takes the name in between, too: past the first look.
        let prepared = pair(dir.path(), "one").map(|file| Prepared::of(&file, Existing::Keep).unwrap());
        assert_eq!(prepared[1].place(Existing::Keep).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(prepared);
        // A link that leads nowhere is a name that is taken.
        std::os::unix::fs::symlink("/nowhere", dir.path().join("x.key")).unwrap();
        assert!(matches!(write(&pair(dir.path(), "one"), Existing::Keep), Err(CertsError::Exists { .. })));
        assert_eq!(fs::read_to_string(dir.path().join("x.crt")).unwrap(), "precious");
        assert_eq!(names(dir.path()), ["x.crt", "x.key"]);
    }

    #[test]
    fn of_many_writers_at_a_time_one_has_its_pair() {
        let dir = tempfile::tempdir().unwrap();
        let written: Vec<_> = std::thread::scope(|scope| {
            let at = dir.path();
            let writers: Vec<_> = (0..8)
                .map(|n| scope.spawn(move || write(&pair(at, &n.to_string()), Existing::Keep).is_ok()))
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        assert_eq!(written.iter().filter(|ok| **ok).count(), 1);
        let [key, certificate] =
            ["x.key", "x.crt"].map(|name| fs::read_to_string(dir.path().join(name)).unwrap());
        assert!(key == certificate && written[key.parse::<usize>().unwrap()]);
        assert_eq!(names(dir.path()), ["x.crt", "x.key"]);
    }

    #[test]
    fn where_the_second_cannot_be_placed_the_first_is_as_before() {
        let dir = tempfile::tempdir().unwrap();
        write(&pair(dir.path(), "old"), Existing::Keep).unwrap();
        let prepared = pair(dir.path(), "new").map(|file| Prepared::of(&file, Existing::Replace).unwrap());
        prepared[0].place(Existing::Replace).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("x.key")).unwrap(), "new");
        prepared[0].take_back();
        drop(prepared);
        assert_eq!(fs::read_to_string(dir.path().join("x.key")).unwrap(), "old");
        assert_eq!(names(dir.path()), ["x.crt", "x.key"]);
        // A directory in the certificate's place, and no key before.
        let other = tempfile::tempdir().unwrap();
        fs::create_dir(other.path().join("x.crt")).unwrap();
        assert!(matches!(
            write(&pair(other.path(), "new"), Existing::Replace),
            Err(CertsError::Unwritable { .. })
        ));
        assert_eq!(names(other.path()), ["x.crt"]);
    }

    #[test]
    fn a_renewed_file_keeps_its_mode_and_its_links() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        fs::create_dir(&archive).unwrap();
        write(&pair(&archive, "old"), Existing::Keep).unwrap();
        fs::set_permissions(archive.join("x.key"), Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(archive.join("x.crt"), Permissions::from_mode(0o640)).unwrap();
        for name in ["x.key", "x.crt"] {
            std::os::unix::fs::symlink(archive.join(name), dir.path().join(name)).unwrap();
        }
        write(&pair(dir.path(), "new"), Existing::Renew).unwrap();
        assert!(fs::symlink_metadata(dir.path().join("x.crt")).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(archive.join("x.crt")).unwrap(), "new");
        assert_eq!(
            (mode(&archive.join("x.key")), mode(&archive.join("x.crt"))),
            (0o640, 0o640),
            "keys: not for all"
        );
        // Replacing makes a new file, with a new file's mode, in the link's own place.
        write(&pair(dir.path(), "newer"), Existing::Replace).unwrap();
        assert!(!fs::symlink_metadata(dir.path().join("x.crt")).unwrap().is_symlink());
        assert_eq!((mode(&dir.path().join("x.key")), mode(&dir.path().join("x.crt"))), (0o600, 0o644));
        assert_eq!(fs::read_to_string(archive.join("x.crt")).unwrap(), "new");
    }
}
