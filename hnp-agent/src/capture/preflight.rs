//! What a node must have, checked in one go and before anything is touched.
//!
//! Kernel features are probed and never inferred from a version: distributions backport.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use nix::sys::statfs::{FsType, statfs};

use super::cgroups::{self, Cgroup};
use super::error::{CaptureError, Missing};
use super::sys;
use crate::config::plan;

/// A node that has what capture needs: the proof that it was looked at.
#[derive(Debug)]
pub struct Node {
    /// The cgroup to attach to.
    pub(super) cgroup: Cgroup,
    /// The agent's own cgroup, when it lies below that.
    pub(super) own_cgroup: Option<u64>,
    /// Names the agent's network namespace in the kernel; `None` before Linux 5.14.
    pub(super) netns_cookie: Option<u64>,
    /// Whether refusals can carry an errno of ours (Linux 5.18).
    pub(super) has_set_retval: bool,
}

impl Node {
    /// Looks at everything and touches nothing.
    ///
    /// # Errors
    /// All that is missing, each with why it matters and what to do.
    pub fn check(plan: &plan::Capture) -> Result<Self, CaptureError> {
        if super::object::embedded().is_empty() {
            return Err(CaptureError::NotBuiltIn);
        }
        check(plan)
    }

    /// Where the cgroup2 file system that holds it is mounted.
    pub fn mount(&self) -> PathBuf {
        cgroups::mounts().into_iter().find(|mount| self.cgroup.path.starts_with(mount)).unwrap_or_default()
    }

    /// The id of the cgroup that capture attaches to.
    pub fn cgroup_id(&self) -> u64 {
        self.cgroup.id
    }

    /// The directory of the cgroup that capture attaches to.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup.path
    }
}

fn check(plan: &plan::Capture) -> Result<Node, CaptureError> {
    let mut missing = Vec::new();
    let capable = capabilities(plan, &mut missing);
    let cgroup = find_cgroup(plan, &mut missing);
    bpffs(&plan.bpffs, &mut missing);
    // Without the capabilities every probe fails, and none of the answers would mean anything.
    let has_set_retval = capable && kernel(&mut missing);
    let netns_cookie = sys::netns_cookie().ok();
    if plan.raw_sockets == plan::RawSockets::Refuse && netns_cookie.is_none() {
        missing.push(Missing {
            what: "kernel feature: SO_NETNS_COOKIE".into(),
            why: "leaving the node's own network namespace its raw sockets (capture.raw_sockets: refuse)",
            fix: "use Linux 5.14 or newer, or set capture.raw_sockets: allow".into(),
        });
    }
    match cgroup {
        Some(cgroup) if missing.is_empty() => {
            Ok(Node { own_cgroup: cgroups::own_below(&cgroup.path), netns_cookie, has_set_retval, cgroup })
        }
        _ => Err(CaptureError::Preflight(missing)),
    }
}

fn capabilities(plan: &plan::Capture, missing: &mut Vec<Missing>) -> bool {
    const NET_ADMIN: (u32, &str, &str) =
        (12, "CAP_NET_ADMIN", "attaching programs to a cgroup, and the route for the VIPs");
    const BPF: (u32, &str, &str) = (39, "CAP_BPF", "loading BPF programs and maps");
    const SYS_ADMIN: (u32, &str, &str) =
        (21, "CAP_SYS_ADMIN", "entering pods' network namespaces (capture.destroy_older_flows)");
    const SYS_PTRACE: (u32, &str, &str) =
        (19, "CAP_SYS_PTRACE", "finding pods' network namespaces (capture.destroy_older_flows)");
    let effective = match effective_capabilities() {
        Ok(effective) => effective,
        Err(error) => {
            missing.push(Missing {
                what: format!("/proc/self/status: {error}"),
                why: "telling which capabilities the agent has",
                fix: "mount /proc".into(),
            });
            return false;
        }
    };
    let before = missing.len();
    let mut needed = vec![BPF, NET_ADMIN];
    if plan.destroy_older_flows {
        needed.extend([SYS_ADMIN, SYS_PTRACE]);
    }
    for (bit, name, why) in needed {
        if effective & (1 << bit) == 0 {
            missing.push(Missing {
                what: format!("capability {name}"),
                why,
                fix: format!("start the agent with {name} (container: securityContext.capabilities.add)"),
            });
        }
    }
    missing.len() == before
}

fn effective_capabilities() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    parse_effective(&status).ok_or_else(|| io::Error::other("no CapEff in it"))
}

fn parse_effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn find_cgroup(plan: &plan::Capture, missing: &mut Vec<Missing>) -> Option<Cgroup> {
    match cgroups::find(plan.cgroup.as_deref()) {
        Ok(cgroup) => Some(cgroup),
        Err(lack) => {
            missing.push(lack);
            None
        }
    }
}

fn bpffs(dir: &Path, missing: &mut Vec<Missing>) {
    const MAGIC: FsType = FsType(0xcafe_4a11);
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match statfs(existing).map(|stat| stat.filesystem_type()) {
        Ok(MAGIC) => {}
        Ok(_) | Err(_) => missing.push(Missing {
            what: format!("a BPF file system at {}", dir.display()),
            why: "pinning programs and maps, so that enforcement outlives the agent",
            fix: format!(
                "mount -t bpf bpf {} (container: a hostPath volume of it)",
                mount_point_for(dir).display()
            ),
        }),
    }
}

/// Where a bpffs would be mounted for pins in `dir`: at its parent, unless that is a directory such
/// as `/`.
fn mount_point_for(dir: &Path) -> PathBuf {
    let usual = Path::new("/sys/fs/bpf");
    if dir.starts_with(usual) { usual.into() } else { dir.parent().unwrap_or(dir).into() }
}

/// Probes the kernel; returns whether it has `bpf_set_retval`, which is the only thing there is a way
/// without.
fn kernel(missing: &mut Vec<Missing>) -> bool {
    // Asked first: a refusal answers every other probe, and says nothing of what the kernel has.
    if let Err(error) = is_map_supported(MapType::LruHash)
        && error.io_error.raw_os_error() == Some(libc::EPERM)
    {
        missing.push(Missing {
            what: "bpf(2): it is refused (EPERM), although the capabilities are there".into(),
            why: "loading BPF programs and maps",
            fix: "start the agent outside of any user namespace, let its seccomp profile permit bpf(2), \
                  and see whether kernel lockdown forbids it"
                .into(),
        });
        return false;
    }
    let mut lacks = |what: &str, why, since: &str| {
        missing.push(Missing {
            what: format!("kernel feature: {what}"),
            why,
            fix: format!("use a kernel that has it: Linux {since} or newer, with CONFIG_CGROUP_BPF"),
        });
    };
    let hook = ProgramType::CgroupSockAddr;
    for (program, name, why, since) in [
        (hook, "cgroup socket address programs", "redirecting connect()", "5.8"),
        (ProgramType::SockOps, "sock_ops programs", "telling the agent who connects", "4.13"),
    ] {
        if !matches!(is_program_supported(program), Ok(true)) {
            lacks(name, why, since);
        }
    }
    for (map, name, why, since) in [
        (MapType::Hash, "hash maps", "the list of destinations", "3.19"),
        (MapType::LpmTrie, "longest-prefix maps", "destinations that are ranges", "4.11"),
        (MapType::LruHash, "LRU hash maps", "the limit per pod", "4.10"),
        (MapType::PerCpuArray, "per-CPU arrays", "counters", "4.6"),
        (MapType::SkStorage, "socket storage", "remembering what a pod dialled", "5.2"),
    ] {
        if !matches!(is_map_supported(map), Ok(true)) {
            lacks(name, why, since);
        }
    }
    for (helper, name, why, since) in [
        (BpfHelper::BPF_FUNC_sk_storage_get, "bpf_sk_storage_get", "remembering what a pod dialled", "5.3"),
        (BpfHelper::BPF_FUNC_sk_storage_delete, "bpf_sk_storage_delete", "forgetting it", "5.3"),
        (BpfHelper::BPF_FUNC_get_current_cgroup_id, "bpf_get_current_cgroup_id", "telling who calls", "5.7"),
        (
            BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id,
            "bpf_get_current_ancestor_cgroup_id",
            "telling which pod calls",
            "5.7",
        ),
        (BpfHelper::BPF_FUNC_get_socket_cookie, "bpf_get_socket_cookie", "telling sockets apart", "4.18"),
        (BpfHelper::BPF_FUNC_get_netns_cookie, "bpf_get_netns_cookie", "guarding the agent's port", "5.7"),
    ] {
        if !matches!(is_helper_supported(hook, helper), Ok(true)) {
            lacks(name, why, since);
        }
    }
    matches!(is_helper_supported(hook, BpfHelper::BPF_FUNC_set_retval), Ok(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_effective_set() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000008000001000\nCapBnd:\t0\n";
        assert_eq!(parse_effective(status), Some(1 << 39 | 1 << 12));
        assert_eq!(parse_effective("CapPrm:\t1\n"), None);
    }

    #[test]
    fn all_that_is_missing_comes_in_one_message() {
        let plan = plan::Capture {
            mode: plan::CaptureMode::On,
            cgroup: Some("/nowhere/kubepods".into()),
            bpffs: "/nowhere/hnp".into(),
            vips4: plan::Cidr { addr: [169, 254, 77, 0].into(), prefix: 24 },
            vips6: plan::Cidr { addr: "fd00:77::".parse().expect("an address"), prefix: 64 },
            port: 15001,
            connections_per_pod: 16,
            heartbeat: std::time::Duration::from_secs(2),
            pod_logs: "/var/log/pods".into(),
            guard: plan::Guard::Auto,
            raw_sockets: plan::RawSockets::Allow,
            destroy_older_flows: false,
        };
        let message = check(&plan).expect_err("neither exists").to_string();
        assert!(message.contains("/nowhere/kubepods"), "{message}");
        assert!(message.contains("BPF file system at /nowhere/hnp"), "{message}");
        assert_eq!(message.matches("needed:").count(), message.matches("do:").count());
    }
}
