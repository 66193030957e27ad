//! What is in this process' memory stays there: keys, above all.
//!
//! A core file is a copy of all keys on a disk, and whoever may trace a process may read them. Neither is needed to
//! find out why an agent ended: reasons, metrics and its log are for that. For the same reason the buffers that keys
//! pass through are overwritten ([`crate::files::read_secret`]).

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// From now on no core is written of this process, by whatever ends it, and other processes of the same user can
/// neither trace it nor read its memory. Its children are not concerned: exec(2) ends it.
///
/// # Errors
/// When the kernel refuses, which it has no reason to; a seccomp filter might.
pub fn keep_memory() -> std::io::Result<()> {
    // Both: a handler that cores are piped to gets them whatever the limit, and what root writes to
    // `fs.suid_dumpable` changes nothing here.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    Ok(())
}
