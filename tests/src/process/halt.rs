//! A program that is stopped where it is about to make a certain system call, with ptrace(2): what others see
//! between two of its steps can then be looked at.

use std::io;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use crate::poll::patience;

/// Longer than any program under test is between two system calls.
const QUIET: Duration = Duration::from_secs(30);

/// The bit in a stop's signal that says that it is a system call (`PTRACE_O_TRACESYSGOOD`).
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// A process whose main thread the calling thread follows. Dropping it lets it go.
#[derive(Debug)]
pub struct Halted {
    pid: i32,
    /// It runs: only a stopped one can be let go.
    runs: bool,
}

impl Halted {
    /// Begins to follow a process, which is stopped then.
    ///
    /// # Panics
    /// When it has ended, or somebody else follows it.
    #[track_caller]
    pub fn seize(pid: i32) -> Self {
        ptrace(libc::PTRACE_SEIZE, pid, 0, libc::PTRACE_O_TRACESYSGOOD as usize).expect("it runs");
        let mut halted = Self { pid, runs: true };
        ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0).expect("it runs");
        halted.wait();
        halted
    }

    /// Lets it run until it is about to make a system call with this number and first argument.
    ///
    /// # Panics
    /// When it ends before, or makes no system call for long.
    #[track_caller]
    pub fn until_it_calls(&mut self, number: i64, first: u64) {
        let mut signal = 0;
        loop {
            ptrace(libc::PTRACE_SYSCALL, self.pid, 0, signal).expect("it is stopped");
            self.runs = true;
            let status = self.wait();
            signal = 0;
            match libc::WSTOPSIG(status) {
                SYSCALL_STOP if self.is_about_to_call(number, first) => return,
                // The other end of the call, another call, or an event of ptrace's own.
                SYSCALL_STOP => {}
                _ if status >> 16 != 0 => {}
                other => signal = usize::try_from(other).expect("a signal's number"),
            }
        }
    }

    fn is_about_to_call(&self, number: i64, first: u64) -> bool {
        // SAFETY: plain numbers.
        let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
        let room = size_of_val(&info);
        ptrace(libc::PTRACE_GET_SYSCALL_INFO, self.pid, room, (&raw mut info) as usize)
            .expect("it is stopped at a system call");
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return false;
        }
        // SAFETY: the kernel says that it is an entry.
        let entry = unsafe { info.u.entry };
        entry.nr == u64::try_from(number).expect("not negative") && entry.args[0] == first
    }

    /// Waits for a stop.
    #[track_caller]
    fn wait(&mut self) -> i32 {
        let until = Instant::now() + patience(QUIET);
        loop {
            let mut status = 0;
            // SAFETY: the status is ours.
            let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL | libc::WNOHANG) };
            if waited == self.pid {
                assert!(libc::WIFSTOPPED(status), "it ended (status {status:#x})");
                self.runs = false;
                return status;
            }
            assert!(waited == 0, "waiting for it: {}", io::Error::last_os_error());
            assert!(Instant::now() < until, "it makes no system call");
            // It stops many times in a millisecond.
            std::thread::yield_now();
        }
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        if !self.runs {
            // One that has ended in between needs nothing.
            let _ = ptrace(libc::PTRACE_DETACH, self.pid, 0, 0);
        }
    }
}

fn ptrace(request: libc::c_uint, pid: i32, address: usize, data: usize) -> io::Result<()> {
    let address = null_mut::<libc::c_void>().wrapping_byte_add(address);
    let data = null_mut::<libc::c_void>().wrapping_byte_add(data);
    // SAFETY: the requests of this file take numbers; only `PTRACE_GET_SYSCALL_INFO` takes an address, of a
    // buffer with the size that comes with it.
    if unsafe { libc::ptrace(request, pid, address, data) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
