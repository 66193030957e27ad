//! System calls that no crate wraps, and what becomes of an error.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use hnp_tests::evasion::Ending;
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// What an attempt comes to.
pub(crate) type Outcome<T = Ending> = Result<T, No>;

/// A system call that said no.
#[derive(Debug)]
pub(crate) struct No {
    call: String,
    errno: Errno,
    impossible: bool,
}

impl No {
    /// The attack lacks something: a mistake in the scenario.
    pub(crate) fn missing(what: &str) -> Self {
        Self { call: format!("(the attack names no {what})"), errno: Errno::EINVAL, impossible: false }
    }

    pub(crate) fn into_ending(self) -> Ending {
        let (call, errno) = (self.call, format!("{:?}", self.errno));
        if self.impossible { Ending::Impossible { call, errno } } else { Ending::Failed { call, errno } }
    }
}

/// Names the call that an error is of.
pub(crate) trait Answer<T> {
    /// A call that may be refused.
    fn of(self, call: &str) -> Outcome<T>;
    /// A call by which it shows whether the kernel has what the technique needs.
    fn probe(self, call: &str) -> Outcome<T>;
}

impl<T, E: Into<io::Error>> Answer<T> for Result<T, E> {
    fn of(self, call: &str) -> Outcome<T> {
        self.map_err(|error| No { call: call.to_owned(), errno: errno(error.into()), impossible: false })
    }

    fn probe(self, call: &str) -> Outcome<T> {
        self.of(call).map_err(|no| {
            let impossible = matches!(
                no.errno,
                Errno::ENOSYS
                    | Errno::EPROTONOSUPPORT
                    | Errno::EAFNOSUPPORT
                    | Errno::ESOCKTNOSUPPORT
                    | Errno::EOPNOTSUPP
                    | Errno::ENOPROTOOPT
                    | Errno::ENODEV
            );
            No { impossible, ..no }
        })
    }
}

fn errno(error: io::Error) -> Errno {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code),
        None if error.kind() == io::ErrorKind::TimedOut => Errno::ETIMEDOUT,
        None => Errno::EIO,
    }
}

/// socket(2); a family or protocol that is not there makes the technique impossible.
pub(crate) fn socket(domain: Domain, kind: Type, protocol: i32) -> Outcome<Socket> {
    let protocol = (protocol != 0).then(|| Protocol::from(protocol));
    let socket = Socket::new(domain, kind, protocol).probe("socket")?;
    socket.set_write_timeout(Some(crate::PATIENCE)).of("setsockopt(SO_SNDTIMEO)")?;
    socket.set_read_timeout(Some(crate::PATIENCE)).of("setsockopt(SO_RCVTIMEO)")?;
    Ok(socket)
}

/// connect(2) with AF_UNSPEC: ends a connection and keeps the socket.
pub(crate) fn disconnect(socket: impl AsFd) -> Outcome<()> {
    let unspec = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    let length = libc::socklen_t::try_from(size_of_val(&unspec)).expect("it is small");
    // SAFETY: one sockaddr, and the length says so.
    let result = unsafe { libc::connect(socket.as_fd().as_raw_fd(), &raw const unspec, length) };
    Errno::result(result).of("connect(AF_UNSPEC)")?;
    Ok(())
}

/// setsockopt(2) with an int.
pub(crate) fn set_int(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("it is small");
    let pointer = (&raw const value).cast();
    // SAFETY: one int, and the length says so.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, pointer, length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
