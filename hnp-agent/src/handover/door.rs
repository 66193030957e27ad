//! Where the running agent is asked: a socket in the run directory that only its own user may connect to.
//!
//! It is moved into place under its final name, so a successor's replaces its predecessor's in one step.
//! Only the holder of the lock makes, replaces or removes it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use super::HandoverError;
use super::wire::Channel;

const NAME: &str = "agent.sock";
/// Successors that may wait; one at a time is served.
const BACKLOG: i32 = 8;

/// The running agent's socket. Dropping it removes it; whoever holds the lock does so.
#[derive(Debug)]
pub struct Door {
    socket: UnixListener,
    path: PathBuf,
    left: bool,
}

impl Door {
    /// Makes the run directory if need be, and listens in it, in the place of whoever did before.
    ///
    /// # Errors
    /// When others can write to the directory, or the socket cannot be made.
    pub fn open(run_dir: &Path) -> Result<Self, HandoverError> {
        let failed = |doing, path: &Path, source| HandoverError::RunDir { doing, path: path.into(), source };
        make(run_dir).map_err(|source| failed("use", run_dir, source))?;
        let path = run_dir.join(NAME);
        // Nobody else makes a socket under this name: the directory is ours, and so is the lock.
        let new = run_dir.join("agent.sock.new");
        Self::listen(&new, &path).map_err(|source| failed("listen at", &path, source))
    }

    fn listen(new: &Path, path: &Path) -> io::Result<Self> {
        match fs::remove_file(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = socket()?;
        socket.bind(&SockAddr::unix(new)?)?;
        // Before it listens: nobody connects by a mode that the umask left open.
        fs::set_permissions(new, fs::Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        fs::rename(new, path)?;
        let socket = UnixListener::from_std(OwnedFd::from(socket).into())?;
        Ok(Self { socket, path: path.to_owned(), left: false })
    }

    /// Closes the socket, whose name is a successor's from now on.
    pub fn leave(mut self) {
        self.left = true;
    }

    /// Waits for somebody to connect. Cancel-safe.
    pub(super) async fn next(&self) -> io::Result<Channel> {
        let (socket, _) = self.socket.accept().await?;
        Channel::new(socket)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if !self.left
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "a socket is left behind");
        }
    }
}

/// Connects to the running agent. Must be called in a runtime.
pub(super) fn knock(run_dir: &Path) -> Result<Channel, HandoverError> {
    let path = run_dir.join(NAME);
    let connect = || {
        let socket = socket()?;
        socket.connect(&SockAddr::unix(&path)?)?;
        Channel::new(UnixStream::from_std(OwnedFd::from(socket).into())?)
    };
    connect().map_err(|source| HandoverError::NobodyThere { path: path.clone(), source })
}

/// Of a kind that the standard library does not make, and serves all the same.
fn socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::from(libc::SOCK_SEQPACKET), None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = fs::metadata(dir)?;
    if meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        let what = format!("it belongs to user {} and has mode {:o}", meta.uid(), meta.mode() & 0o7777);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_left_to_a_successor() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("run/hnp");
        assert!(matches!(knock(&dir), Err(HandoverError::NobodyThere { .. })));
        let first = Door::open(&dir).unwrap();
        let path = dir.join(NAME);
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
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
