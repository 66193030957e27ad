//! Running a program somewhere in a world: in a pod, beside it, on the node.
//!
//! The child moves itself: first into the cgroup, then into the network namespace, then into a mount
//! namespace of its own in which `/etc/hosts` and `/etc/resolv.conf` are the world's. The host's
//! files stay as they are, and the program needs no setting: its environment is empty but for PATH
//! and HOME. Output goes to files, so that no amount of it can stall the child.

mod halt;
mod move_in;

pub use self::halt::Halted;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use self::move_in::MoveIn;
use crate::netns::Netns;
use crate::poll::patience;
use crate::topology::World;

/// Long enough for anything that is not meant to take long.
const DEADLINE: Duration = Duration::from_secs(30);

/// Somewhere programs can run: a network namespace and a cgroup.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) world: Arc<World>,
    pub(crate) netns: Netns,
    pub(crate) cgroup: PathBuf,
}

impl Place {
    /// The network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup's directory.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A program to run here.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Cmd {
        Cmd {
            place: self.clone(),
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: None,
            deadline: DEADLINE,
            capabilities: None,
        }
    }

    /// What to type for a shell in this place.
    pub fn how_to_enter(&self) -> String {
        format!(
            "sh -c 'echo $$ > {}/cgroup.procs && exec nsenter --net={} sh'",
            self.cgroup.display(),
            self.netns.path().display()
        )
    }
}

/// A program that is about to run in a [`Place`].
#[derive(Debug)]
pub struct Cmd {
    place: Place,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
    capabilities: Option<Vec<u8>>,
}

impl Cmd {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// What the program reads on its standard input; nothing by default.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// How long [`Self::run`] waits; 30 s by default.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Reduces the bounding set to exactly these capabilities (numbers of `linux/capability.h`).
    #[must_use]
    pub fn capabilities(mut self, keep: &[u8]) -> Self {
        self.capabilities = Some(keep.to_vec());
        self
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    /// When it cannot be started or is not finished within the deadline.
    #[track_caller]
    pub fn run(self) -> Finished {
        let deadline = self.deadline;
        self.spawn().wait(deadline)
    }

    /// Starts the program. Dropping the handle kills it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn spawn(self) -> Running {
        match self.start() {
            Ok(running) => running,
            Err(error) => panic!("{error:#}"),
        }
    }

    fn start(self) -> Result<Running> {
        static SEQUENCE: AtomicU64 = AtomicU64::new(0);
        let world = &self.place.world;
        let stem = Path::new(&self.program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let base = world.dir().join(format!("{stem}-{}", SEQUENCE.fetch_add(1, Ordering::Relaxed)));
        let (stdout, stderr) = (base.with_extension("out"), base.with_extension("err"));
        let move_in = MoveIn::prepare(&self.place, self.capabilities.as_deref())?;

        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().current_dir(world.dir());
        for key in ["PATH", "HOME"] {
            if let Some(value) = std::env::var_os(key) {
                command.env(key, value);
            }
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        command.stdin(match &self.stdin {
            None => Stdio::null(),
            Some(bytes) => {
                let path = base.with_extension("in");
                File::create(&path)?.write_all(bytes)?;
                File::open(&path)?.into()
            }
        });
        // SAFETY: after the fork `MoveIn::enter` makes system calls on memory and descriptors that
        // were prepared before it; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(move || move_in.enter()) };
        let child = command.spawn().with_context(|| {
            format!("starting {} in {}", self.program.to_string_lossy(), self.place.netns.name())
        })?;
        Ok(Running { child, name: stem, stdout, stderr, started: Instant::now() })
    }
}

/// A program that runs. Killed, by its process id, when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    started: Instant,
}

impl Running {
    /// The process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has written to its standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has written to its standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        // A process that has ended in between needs no signal.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it runs for longer than `deadline` from now ([`patience`] allows for slow machines); it is
    /// killed then.
    #[track_caller]
    pub fn wait(mut self, deadline: Duration) -> Finished {
        let deadline = patience(deadline);
        match self.wait_up_to(deadline) {
            Some(finished) => finished,
            None => panic!(
                "{} (pid {}) did not end within {deadline:?}\nstdout: {}\nstderr: {}",
                self.name,
                self.pid(),
                tail(&self.stdout()),
                tail(&self.stderr())
            ),
        }
    }

    /// Waits for its end; `None` when it runs for longer than `deadline` from now.
    pub fn wait_up_to(&mut self, deadline: Duration) -> Option<Finished> {
        if !exits_within(self.pid(), deadline) {
            return None;
        }
        let status = self.child.wait().expect("our own child can be waited for");
        Some(Finished {
            name: self.name.clone(),
            status,
            stdout: fs::read(&self.stdout).unwrap_or_default(),
            stderr: self.stderr(),
            took: self.started.elapsed(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_alive() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The program's name.
    pub name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// All it wrote to its standard error.
    pub stderr: String,
    /// From its start to its end.
    pub took: Duration,
}

impl Finished {
    /// Its standard output, when it ended well.
    ///
    /// # Panics
    /// When it ended otherwise.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert!(self.status.success(), "{self}");
        self.text()
    }

    /// Its standard output, however it ended.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard output as JSON, when it ended well.
    ///
    /// # Panics
    /// When it ended otherwise or wrote something else.
    #[track_caller]
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        let text = self.ok();
        match serde_json::from_str(text.trim()) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {self}"),
        }
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} after {:?}\nstdout: {}\nstderr: {}",
            self.name,
            self.status,
            self.took,
            tail(&self.text()),
            tail(&self.stderr)
        )
    }
}

/// The last 4000 bytes or so: enough to see what happened, little enough to read.
pub(crate) fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(4000);
    let from = (from..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[from..]
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Whether the process ends within `deadline`; it is not reaped.
fn exits_within(pid: i32, deadline: Duration) -> bool {
    // SAFETY: pidfd_open takes two integers and gives a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "pidfd_open({pid}): {}", io::Error::last_os_error());
    // SAFETY: the kernel has just given us this descriptor, nobody else has it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("descriptors are small")) };
    let until = Instant::now() + deadline;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut wanted = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd, and the count says one.
        match unsafe { libc::poll(&raw mut wanted, 1, milliseconds) } {
            0 if left.as_millis() > 0 => {}
            0 => return false,
            count if count > 0 => return true,
            _ => assert_eq!(io::Error::last_os_error().kind(), io::ErrorKind::Interrupted, "poll(pidfd)"),
        }
    }
}
