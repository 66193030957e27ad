//! Files that are read again when they change: what identities and trusts have in common.
//!
//! `pem` finds the blocks in a PEM file and names the broken one; `reload` is the rule that decides
//! what a change means (publish, wait, keep the old), pure and with `now` as an argument; `watch`
//! is the loop around it, with inotify for speed and polling for certainty; `published` is what came of
//! it.

pub mod pem;
pub mod published;
pub mod reload;
#[cfg(test)]
pub(crate) mod testpki;
pub mod watch;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// The largest file that is read; a system's whole store of roots has 250 KiB.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Reads a small file.
///
/// # Errors
/// The system's, and [`std::io::ErrorKind::FileTooLarge`] past 4 MiB.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// The most files of a directory that are read; `/etc/ssl/certs` has some 300.
const MAX_FILES: usize = 4096;

/// A file of a directory, or the file itself, and what reading it gave.
pub type ReadFile = (PathBuf, std::io::Result<Vec<u8>>);

/// Reads a file, or all files of a directory in the order of their names: not what is below it, and nothing whose
/// name begins with a dot (Kubernetes keeps its versions there). Symbolic links are followed.
///
/// # Errors
/// The directory's.
pub fn read_all(path: &Path) -> std::io::Result<Vec<ReadFile>> {
    if !path.is_dir() {
        return Ok(vec![(path.to_owned(), read(path))]);
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && !path.is_dir() {
            paths.push(path);
        }
    }
    if paths.len() > MAX_FILES {
        let what = format!("it holds {} files, more than {MAX_FILES}", paths.len());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
    }
    paths.sort();
    Ok(paths.into_iter().map(|path| (read(&path), path)).map(|(bytes, path)| (path, bytes)).collect())
}

/// Reads a small file with a secret in it: the bytes are overwritten when they are dropped, and no copy is left
/// behind by a buffer that had to grow.
///
/// # Errors
/// As for [`read`].
pub fn read_secret(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut file = std::fs::File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    let size = usize::try_from(metadata.len()).expect("at most 4 MiB");
    // One byte more than there should be: a file that grows meanwhile is seen.
    let mut bytes = Zeroizing::new(vec![0; size + 1]);
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if filled > size {
        return Err(std::io::Error::new(std::io::ErrorKind::ResourceBusy, "it grows while it is read"));
    }
    bytes.truncate(filled);
    Ok(bytes)
}
