//! The run directory: where the agent's sockets lie, and how one takes its predecessor's place.
//!
//! A socket is moved into place under its final name, so a successor's replaces its predecessor's in one step, and
//! nobody connects by a mode that the umask left open. What is found under the name afterwards is removed by
//! whoever put it there, and by nobody else.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Of the directory: its own user's, who alone may write to it; his group may reach what lies in it, as far as that
/// allows it.
const DIR_MODE: u32 = 0o750;

/// Makes the directory if need be.
///
/// # Errors
/// When it cannot be made, or others can write to it.
pub fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir)?;
    let meta = fs::metadata(dir)?;
    if meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        let what = format!("it belongs to user {} and has mode {:o}", meta.uid(), meta.mode() & 0o7777);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

/// A socket's name in the file system, for as long as it is ours. Dropping it removes it.
#[derive(Debug)]
pub struct Name {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
    left: bool,
}

impl Name {
    /// Leaves it: it is a successor's from now on.
    pub fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Where no lock says whose turn it is, another agent may have taken the name.
        if self.left || fs::symlink_metadata(&self.path).is_ok_and(|meta| id(&meta) != self.id) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a socket is left behind");
        }
    }
}

/// Listens at `path` with a socket of this kind, in the place of whoever did before. `mode` says who may connect.
///
/// # Errors
/// When it cannot be made.
pub fn listen(path: &Path, kind: Type, mode: u32, backlog: i32) -> io::Result<(Socket, Name)> {
    // Nobody else makes a socket under this name: the directory is ours, and so is the lock.
    let new = path.with_extension("sock.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let socket = socket(kind)?;
    socket.bind(&SockAddr::unix(&new)?)?;
    // Before it listens: nobody connects by a mode that the umask left open.
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
    socket.listen(backlog)?;
    let id = id(&fs::symlink_metadata(&new)?);
    fs::rename(&new, path)?;
    Ok((socket, Name { path: path.to_owned(), id, left: false }))
}

/// Of kinds that the standard library does not make, and serves all the same.
///
/// # Errors
/// When descriptors run out.
pub fn socket(kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn id(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}
