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
use std::path::Path;

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
