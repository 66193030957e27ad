//! The same connect() from another place: another cgroup, another namespace, or with somebody else's
//! socket.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use hnp_tests::cgroup;
use hnp_tests::evasion::{Attack, Technique};
use nix::sched::{CloneFlags, setns, unshare};

use crate::lend;
use crate::streams::{dial, tcp};
use crate::sys::{Answer as _, No, Outcome};

/// Where the attacker was when it started.
pub(crate) struct Home {
    netns: File,
    cgroup: PathBuf,
    moved: bool,
}

impl Home {
    pub(crate) fn find() -> Result<Self> {
        let netns = File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")?;
        let text = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
        let path =
            text.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup of version 2")?;
        Ok(Self { netns, cgroup: cgroup::mount_point()?.join(path), moved: false })
    }

    /// Goes back, so that the next attempt begins where the first one did.
    pub(crate) fn return_to(&mut self) -> Result<()> {
        if std::mem::take(&mut self.moved) {
            setns(&self.netns, CloneFlags::CLONE_NEWNET).context("setns")?;
            fs::write(self.cgroup.join("cgroup.procs"), "0").context("the way back")?;
        }
        Ok(())
    }
}

pub(crate) fn carry_out(attack: &Attack, home: &mut Home) -> Outcome {
    home.moved = true;
    match attack.technique {
        Technique::ChildCgroup => {
            let child = home.cgroup.join("child");
            fs::create_dir_all(&child).of("mkdir")?;
            move_to(&child)?;
            dial(&tcp(attack.target)?, attack)
        }
        Technique::CgroupNamespace => {
            unshare(CloneFlags::CLONE_NEWCGROUP).probe("unshare(CLONE_NEWCGROUP)")?;
            dial(&tcp(attack.target)?, attack)
        }
        Technique::OtherNetns => {
            let path = attack.netns.as_deref().ok_or_else(|| No::missing("network namespace"))?;
            setns(File::open(path).of("open")?, CloneFlags::CLONE_NEWNET).of("setns")?;
            dial(&tcp(attack.target)?, attack)
        }
        Technique::FreshNetns => {
            let socket = tcp(attack.target)?;
            unshare(CloneFlags::CLONE_NEWNET).of("unshare(CLONE_NEWNET)")?;
            dial(&socket, attack)
        }
        Technique::MovedBetween => {
            let socket = tcp(attack.target)?;
            move_to(attack.cgroup.as_deref().ok_or_else(|| No::missing("cgroup"))?)?;
            dial(&socket, attack)
        }
        _ => {
            let lender = attack.lender.as_deref().ok_or_else(|| No::missing("lender"))?;
            dial(&lend::borrow(lender, attack.target)?, attack)
        }
    }
}

fn move_to(cgroup: &std::path::Path) -> Outcome<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").of("write(cgroup.procs)")
}
