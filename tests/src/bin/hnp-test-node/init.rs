//! A node: its own mounts, process ids, names and cgroup root, in the network namespace and the cgroup that this
//! program was started in; in it, containerd.
//!
//! Usage: hnp-test-node CONTAINERD CONFIG [FILE OVER]... Prints the process id of the node's first process. When that ends, which
//! it does when it is killed or containerd ends, all of the node ends with it.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

pub(super) fn run(arguments: &[OsString]) -> Result<()> {
    let [containerd, config, files @ ..] = arguments else {
        bail!("usage: hnp-test-node CONTAINERD CONFIG [FILE OVER]...")
    };
    // Its mounts were made its own by whoever started it, and files of /etc may be bound over already.
    let own = CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWPID;
    unshare(own).context("unshare")?;
    lay_out(files).context("making the node")?;
    // SAFETY: there is one thread.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => {
            println!("{child}");
            std::io::stdout().flush()?;
            let status = waitpid(child, None).context("waiting for the node")?;
            ensure!(matches!(status, WaitStatus::Exited(_, 0)), "the node ended: {status:?}");
            Ok(())
        }
        ForkResult::Child => {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")?;
            // The first one in the new process ids, which this shows.
            put("proc", "/proc")?;
            serve(containerd, config)
        }
    }
}

/// Pure cgroup2 at the usual place, as the nodes of today have it, and nothing of the machine's own state.
fn lay_out(files: &[OsString]) -> Result<()> {
    // What is below the old ones is of no use here: each gets a new one on top.
    let _ = umount2("/sys/fs/bpf", MntFlags::MNT_DETACH);
    put("sysfs", "/sys")?;
    put("cgroup2", "/sys/fs/cgroup")?;
    put("bpf", "/sys/fs/bpf")?;
    for dir in ["/run", "/var/lib", "/var/log"] {
        put("tmpfs", dir)?;
    }
    for dir in ["/run/netns", "/run/lock", "/var/lib/cni", "/var/lib/containerd", "/var/log/pods"] {
        fs::create_dir_all(dir).context(dir)?;
    }
    let none = None::<&str>;
    for pair in files.chunks_exact(2) {
        let words = || format!("{} over {}", pair[0].display(), pair[1].display());
        mount(Some(&*pair[0]), &*pair[1], none, MsFlags::MS_BIND, none).with_context(words)?;
    }
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("sharing the mounts")?;
    fs::write("/proc/sys/kernel/hostname", "hnp-node").context("the node's name")?;
    for scope in [INIT, SYSTEM] {
        fs::create_dir_all(scope).context(scope)?;
    }
    // No process may stay where controllers are to be handed down.
    move_to(INIT)
}

const INIT: &str = "/sys/fs/cgroup/init.scope";
const SYSTEM: &str = "/sys/fs/cgroup/system.slice";

fn move_to(cgroup: &str) -> Result<()> {
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").context(cgroup.to_owned())
}

fn put(kind: &str, at: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("{kind} on {at}"))
}

/// Runs containerd, and buries whom its shims leave behind, until it ends.
fn serve(containerd: &OsString, config: &OsString) -> Result<()> {
    move_to(SYSTEM)?;
    let child = Command::new(containerd).arg("--config").arg(config).spawn().context("containerd")?;
    move_to(INIT)?;
    let containerd = Pid::from_raw(child.id().cast_signed());
    loop {
        match waitpid(None, None) {
            Ok(status) if status.pid() == Some(containerd) => bail!("containerd ended: {status:?}"),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the node's processes"),
        }
    }
}
