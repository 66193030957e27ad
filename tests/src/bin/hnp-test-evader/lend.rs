//! Sockets from somebody else: one process makes them, another one gets them by `SCM_RIGHTS`.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use socket2::{Domain, Socket, Type};

use crate::sys::{Answer as _, No, Outcome};

/// Makes a TCP socket for everybody who comes, until killed.
pub(crate) fn serve(path: &Path) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    for client in listener.incoming() {
        let mut client = client?;
        let mut family = [0];
        client.read_exact(&mut family)?;
        let domain = if family == [6] { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        let descriptors = [socket.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let said = [IoSlice::new(b"!")];
        sendmsg::<UnixAddr>(client.as_raw_fd(), &said, &rights, MsgFlags::empty(), None)?;
    }
    Ok(())
}

/// A socket from the lender, not connected.
pub(crate) fn borrow(path: &Path, target: SocketAddr) -> Outcome<Socket> {
    let mut lender = UnixStream::connect(path).of("connect(AF_UNIX)")?;
    lender.write_all(&[if target.is_ipv6() { 6 } else { 4 }]).of("write(AF_UNIX)")?;
    let mut said = [0];
    let mut buffers = [IoSliceMut::new(&mut said)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let fd = lender.as_raw_fd();
    let message =
        recvmsg::<UnixAddr>(fd, &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).of("recvmsg")?;
    for control in message.cmsgs().of("recvmsg")? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(&descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just given us this descriptor, nobody else has it.
            let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
            socket.set_write_timeout(Some(crate::PATIENCE)).of("setsockopt(SO_SNDTIMEO)")?;
            socket.set_read_timeout(Some(crate::PATIENCE)).of("setsockopt(SO_RCVTIMEO)")?;
            return Ok(socket);
        }
    }
    Err(No::missing("lender that lends"))
}
