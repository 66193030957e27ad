//! connect() without the system call of that name: submitted to io_uring.

use std::os::fd::AsRawFd as _;

use hnp_tests::evasion::Attack;
use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;
use socket2::SockAddr;

use crate::streams::{converse, tcp};
use crate::sys::{Answer as _, Outcome};

/// How long the kernel's thread looks for work before it sleeps, in milliseconds.
const IDLE: u32 = 100;

pub(crate) fn carry_out(attack: &Attack, sqpoll: bool) -> Outcome {
    let socket = tcp(attack.target)?;
    let mut builder = IoUring::builder();
    if sqpoll {
        builder.setup_sqpoll(IDLE);
    }
    // Also off by `kernel.io_uring_disabled`, which says EPERM.
    let ring: Result<IoUring, _> = builder.build(4);
    let mut ring = ring
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => Errno::ENOSYS.into(),
            _ => error,
        })
        .probe("io_uring_setup")?;
    // Linux before 5.11 wants files registered where its own thread works on them.
    ring.submitter().register_files(&[socket.as_raw_fd()]).of("io_uring_register")?;
    let addr = SockAddr::from(attack.target);
    let entry = opcode::Connect::new(types::Fixed(0), addr.as_ptr().cast(), addr.len()).build();
    // SAFETY: the address outlives the entry: this function waits for its completion.
    unsafe { ring.submission().push(&entry) }.expect("the queue is empty");
    ring.submit_and_wait(1).of("io_uring_enter")?;
    let result = ring.completion().next().map_or(-libc::EIO, |done| done.result());
    if result < 0 {
        return Err(Errno::from_raw(-result)).of("IORING_OP_CONNECT");
    }
    converse(&socket, &attack.bytes)
}
