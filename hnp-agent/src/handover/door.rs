//! Where the running agent is asked: a socket in the run directory that only its own user may connect to.
//!
//! Only the holder of the lock makes, replaces or removes it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use socket2::{SockAddr, Type};
use tokio::net::{UnixListener, UnixStream};

use super::HandoverError;
use super::wire::Channel;
use crate::run_dir::{self, Name};

const NAME: &str = "agent.sock";
/// Nobody but its own user may connect.
const MODE: u32 = 0o600;
/// Successors that may wait; one at a time is served.
const BACKLOG: i32 = 8;

/// The running agent's socket. Dropping it removes it; whoever holds the lock does so.
#[derive(Debug)]
pub struct Door {
    socket: UnixListener,
    name: Name,
}

impl Door {
    /// Makes the run directory if need be, and listens in it, in the place of whoever did before.
    ///
    /// # Errors
    /// When others can write to the directory, or the socket cannot be made.
    pub fn open(run_dir: &Path) -> Result<Self, HandoverError> {
        let failed = |doing, path: &Path, source| HandoverError::RunDir { doing, path: path.into(), source };
        run_dir::make(run_dir).map_err(|source| failed("use", run_dir, source))?;
        let path = run_dir.join(NAME);
        let listen = || {
            let (socket, name) = run_dir::listen(&path, kind(), MODE, BACKLOG)?;
            Ok(Self { socket: UnixListener::from_std(OwnedFd::from(socket).into())?, name })
        };
        listen().map_err(|source| failed("listen at", &path, source))
    }

    /// Closes the socket, whose name is a successor's from now on.
    pub fn leave(self) {
        self.name.leave();
    }

    /// Waits for somebody to connect. Cancel-safe.
    pub(super) async fn next(&self) -> io::Result<Channel> {
        let (socket, _) = self.socket.accept().await?;
        Channel::new(socket)
    }
}

/// Connects to the running agent. Must be called in a runtime.
pub(super) fn knock(run_dir: &Path) -> Result<Channel, HandoverError> {
    let path = run_dir.join(NAME);
    let connect = || {
        let socket = run_dir::socket(kind())?;
        socket.connect(&SockAddr::unix(&path)?)?;
        Channel::new(UnixStream::from_std(OwnedFd::from(socket).into())?)
    };
    connect().map_err(|source| HandoverError::NobodyThere { path: path.clone(), source })
}

/// Keeps messages apart.
fn kind() -> Type {
    Type::from(libc::SOCK_SEQPACKET)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_left_to_a_successor() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("run/hnp");
        assert!(matches!(knock(&dir), Err(HandoverError::NobodyThere { .. })));
        let first = Door::open(&dir).unwrap();
        let path = dir.join(NAME);
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o750);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let peer = knock(&dir).unwrap().peer();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());

        let second = Door::open(&dir).unwrap();
        first.leave();
        assert!(path.exists(), "it is the second one's");
        drop(second);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_to_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("hnp");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o775)).unwrap();
        let error = Door::open(&dir).unwrap_err();
        assert!(error.to_string().contains("run_dir"), "{error}");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        Door::open(&dir).unwrap();
    }
}
