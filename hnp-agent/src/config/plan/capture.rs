//! Where and how connections are captured.

use std::path::PathBuf;
use std::time::Duration;

use super::Cidr;

/// Where and how connections are captured.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Whether anything is captured at all. The VIP ranges are kept clear of in either case: another agent on
    /// this node may use them.
    pub mode: CaptureMode,
    /// The cgroup the programs hang on; `None`: look for `kubepods*` under the cgroup2 mount.
    pub cgroup: Option<PathBuf>,
    /// Where links and maps are pinned (a directory on bpffs).
    pub bpffs: PathBuf,
    /// The node-local range VIPs for IPv4 destinations are taken from.
    pub vips4: Cidr,
    /// The node-local range VIPs for IPv6 destinations are taken from.
    pub vips6: Cidr,
    /// The port the agent listens on, on every VIP.
    pub port: u16,
    /// How many captured connections one pod may have open at a time.
    pub connections_per_pod: u32,
    /// How old the agent's heartbeat may be before the kernel takes it for dead.
    pub heartbeat: Duration,
    /// Where the namespace and name of pods are read from: a directory as kubelet's `/var/log/pods`.
    pub pod_logs: PathBuf,
    /// Whether pods' veths are guarded where strict routes want it.
    pub guard: Guard,
    /// Whether pods may have raw IP sockets.
    pub raw_sockets: RawSockets,
    /// Whether flows to strict destinations that are older than their capture are destroyed at once.
    pub destroy_older_flows: bool,
}

/// Whether the agent captures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CaptureMode {
    /// What pods dial is taken at connect().
    On,
    /// Nothing is loaded into the kernel and no capability is needed; only the gateway serves.
    Off,
}

/// Whether pods may make raw IP sockets in network namespaces of their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RawSockets {
    /// As the kernel has it: with CAP_NET_RAW.
    Allow,
    /// Nobody, whatever his capabilities.
    Refuse,
}

/// Whether what passes no socket hook is kept from strict destinations.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Guard {
    /// Where a strict route wants it; a kernel that cannot refuses the start.
    Auto,
    /// Never.
    Off,
}
