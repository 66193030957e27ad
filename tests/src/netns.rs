//! Network namespaces by name, as `ip netns` makes them, without starting a process for each.
//!
//! A namespace is entered by a thread of its own, which ends with the closure: the test's threads
//! never change place.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";

/// A named network namespace. Clones share it; removing it is the world's business.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    file: Arc<File>,
}

impl Netns {
    /// Makes a namespace, with its loopback up.
    ///
    /// # Errors
    /// Without root, or when the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        fs::create_dir_all(NAMES).context(NAMES)?;
        let path = path_of(name);
        File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        let made = on_a_thread(|| -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .context("binding the namespace to its name")
        });
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let netns = Self { name: name.to_owned(), file: Arc::new(File::open(&path)?) };
        // Nobody else is on these links: without this a link's own address is tentative for a second or
        // two, and neighbours that are asked from it do not answer.
        for which in ["default", "all"] {
            netns.sysctl(&format!("net/ipv6/conf/{which}/accept_dad"), "0")?;
        }
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The name, as `ip netns exec` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace, as `nsenter --net=` takes it.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// The open namespace, for `setns` after a fork.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a thread inside the namespace. Sockets made there belong to it for good.
    ///
    /// # Panics
    /// With the panic of `work`, and when the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            self.enter().expect("a namespace that we made can be entered");
            work()
        })
    }

    /// Moves the calling thread into the namespace, for as long as it lives.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).with_context(|| format!("setns({})", self.name))
    }

    /// Runs lines of `ip -batch` inside the namespace.
    ///
    /// # Errors
    /// With what `ip` said, when one line fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let output = self.run(|| -> Result<_> {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("starting `ip` (package iproute2)")?;
            child.stdin.take().expect("stdin is piped").write_all(batch.as_bytes())?;
            Ok(child.wait_with_output()?)
        })?;
        ensure!(
            output.status.success(),
            "ip -batch in {}: {}\n{batch}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Writes a sysctl of the namespace, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When the kernel has no such setting.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| fs::write(&path, value)).with_context(|| path.display().to_string())
    }
}

/// The names of all namespaces that begin with `prefix`.
pub fn names_with(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(NAMES) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Removes a namespace's name; the namespace ends when the last process in it does.
///
/// # Errors
/// When the name remains.
pub fn remove(name: &str) -> Result<()> {
    let path = path_of(name);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => bail!("{}: {error}", path.display()),
        _ => Ok(()),
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NAMES).join(name)
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
