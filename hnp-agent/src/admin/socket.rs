//! The agent's own socket: `admin.sock` in the run directory, for root and the agent's group.
//!
//! What the port does not say is said here, because whoever may open it may be trusted with it: which pod talks to
//! whom about what. Its name is a successor's as soon as there is one.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use socket2::Type;
use tokio::net::UnixListener;

use crate::run_dir::{self, Name};

/// Its name in the run directory.
pub const NAME: &str = "admin.sock";
/// To connect is to write: its user and his group may.
const MODE: u32 = 0o660;
/// Those that may wait to be accepted.
const BACKLOG: i32 = 32;

/// Listens in the run directory, in the place of whoever did before.
///
/// # Errors
/// When others can write to the directory, or the socket cannot be made.
pub fn open(run_dir: &Path) -> io::Result<(UnixListener, Name)> {
    run_dir::make(run_dir)?;
    let (socket, name) = run_dir::listen(&run_dir.join(NAME), Type::STREAM, MODE, BACKLOG)?;
    Ok((UnixListener::from_std(OwnedFd::from(socket).into())?, name))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[tokio::test]
    async fn the_group_may_connect_others_may_not_and_a_successors_name_stays() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("hnp");
        let (_first, name) = open(&dir).unwrap();
        let path = dir.join(NAME);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&dir), mode(&path)), (0o750, 0o660));
        let (second, successor) = open(&dir).unwrap();
        // Also where it was never told that there is a successor.
        drop(name);
        assert!(path.exists(), "it is the second one's");
        let dialled = tokio::net::UnixStream::connect(&path).await.unwrap();
        second.accept().await.unwrap();
        drop((dialled, successor));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }
}
