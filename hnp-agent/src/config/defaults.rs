//! What holds when the configuration says nothing, each with its reason.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::time::Duration;

use super::plan::Cidr;

/// The usual mount of bpffs, and a directory of our own in it.
pub const BPFFS: &str = "/sys/fs/bpf/hnp";
/// Link-local, so no router forwards it and no cluster hands it out; away from the addresses that
/// clouds use for metadata (169.254.169.254, 169.254.170.2) and from node-local DNS (169.254.20.10).
pub const VIPS4: Cidr = Cidr { addr: IpAddr::V4(Ipv4Addr::new(169, 254, 77, 0)), prefix: 24 };
/// A unique local range: link-local IPv6 would need a scope in every connect().
pub const VIPS6: Cidr = Cidr { addr: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0)), prefix: 64 };
/// Above the well-known ports and below the ephemeral range (32768), so no client socket takes it.
pub const PORT: u16 = 15_001;
/// A pod with more open connections to managers leaks them; a fifth of [`CONNECTIONS`], so that one
/// pod cannot take the node's share.
pub const CONNECTIONS_PER_POD: u32 = 4096;
/// Ten beats of 200 ms: a busy node may miss some, and a dead agent's loose routes go direct soon.
pub const HEARTBEAT: Duration = Duration::from_secs(2);
/// kubelet makes `<namespace>_<pod>_<uid>` here before it starts a pod's first container.
pub const POD_LOGS: &str = "/var/log/pods";

/// A strict route's promise is meant for pods that try, too; without strict routes it costs nothing.
pub const GUARD: super::plan::Guard = super::plan::Guard::Auto;

/// Refusing them breaks ping in many images; the guard sees what they send.
pub const RAW_SOCKETS: super::plan::RawSockets = super::plan::RawSockets::Allow;

/// A head comes in one or two packets; ten seconds survive a lossy network and end a slow-loris.
pub const TIMEOUT_HEAD: Duration = Duration::from_secs(10);
/// Longer than the 60 s that most HTTP clients keep idle connections, so the client closes first.
pub const TIMEOUT_IDLE: Duration = Duration::from_secs(90);
/// Two lost SYNs (1 s and 3 s) are survived, a black hole is reported while the client still waits.
pub const TIMEOUT_CONNECT: Duration = Duration::from_secs(5);
/// A handshake is two round trips and one signature; with 2 s of injected delay it still fits.
pub const TIMEOUT_TLS: Duration = Duration::from_secs(5);
/// A proxy resolves and dials before it answers: twice what the agent itself gives that.
pub const TIMEOUT_PROXY_ANSWER: Duration = Duration::from_secs(10);
/// The usual patience of HTTP clients with a slow answer.
pub const TIMEOUT_RESPONSE: Duration = Duration::from_secs(60);
/// A pod's address reaches the API within a second or two of its start; half of the patience of clients.
pub const TIMEOUT_CALLER: Duration = Duration::from_secs(5);
/// The port of the vendor's proxy, so that what pods were told of it stays right; of both families.
pub const GATEWAY_LISTEN: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7777),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7777),
];
/// A dead path is noticed in twice that, well before the answer's own deadline; a living one hardly ever gets
/// a PING.
pub const TIMEOUT_PING: Duration = Duration::from_secs(10);
/// Idle upstream connections a worker keeps per route: enough for bursts of a node's pods, and few
/// enough that a hundred nodes do not burden a manager.
pub const POOL_IDLE: usize = 32;
/// None: each is one per worker and node at the manager, made anew every 15 s while nobody uses it. Worth it where
/// the way is long, which the agent cannot know.
pub const POOL_WARM: usize = 0;

/// How long a certificate for a workload is valid: long enough for an intermediate to be renewed by hand if need be, and
/// short enough that nobody has to revoke one.
pub const ISSUED_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// It is renewed when two thirds are over, by a task that looks several times a second.
pub const SHORTEST_LIFETIME: Duration = Duration::from_secs(6);
/// Certificates for workloads at a time: several times the pods that a node may have, at some 4 KiB each.
pub const MAX_IDENTITIES: usize = 4096;

/// Client connections at a time. At two sockets each it stays below common limits of open files
/// (65,536) and at some 10 KiB each below 256 MiB.
pub const CONNECTIONS: usize = 20_000;
/// What one workload may have of them: what capture lets a pod have, and never more than half, so that whatever one does,
/// others are served.
pub fn per_workload(connections: usize, captured: u32) -> usize {
    (connections / 2).clamp(1, captured.max(1) as usize)
}
/// So many handshakes a second of one pod move its neighbours' 99th percentile by a tenth or so on two cores
/// (`cargo xtask bench neighbours`), and a pod whose connections are kept needs a few in its life.
pub const HANDSHAKES: NonZeroU64 = NonZeroU64::new(20).unwrap();
/// What common servers take at most as a request's head (nginx 32 KiB, Node 16 KiB), doubled.
pub const HEAD_BYTES: usize = 64 * 1024;
/// Four TLS records; larger buffers did not make streams faster, smaller ones cost system calls.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// Where the C library looks for name servers.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where the C library looks for names first.
pub const HOSTS: &str = "/etc/hosts";
/// Clients cache names too: an address stays captured this long after the name left it.
pub const RESOLVER_GRACE: Duration = Duration::from_secs(5 * 60);
/// A TTL of 0 must not become a look-up in a loop.
pub const RESOLVER_MIN_TTL: Duration = Duration::from_secs(5);
/// A TTL of a day must not delay a failover by a day.
pub const RESOLVER_MAX_TTL: Duration = Duration::from_secs(5 * 60);

/// The API server hears of a pod's service account and labels before the kubelet does, and tells the agent within a second or
/// two; the runtime answers in milliseconds, but for a restart.
pub const WORKLOAD_DEADLINE: Duration = Duration::from_secs(2);

/// Where Kubernetes puts a pod's token and the cluster's CA.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Of our own domain, so nobody else's controller adds or removes it; in the words of what others call
/// such a taint.
pub const STARTUP_TAINT: &str = "hnp.dev/agent-not-ready";

/// Loopback only: metrics name workloads and upstreams.
pub const ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_090);
/// What log collectors of clusters parse without a rule.
pub const LOG_FORMAT: super::plan::LogFormat = super::plan::LogFormat::Json;
/// Start, stop, reloads and failures; nothing per connection.
pub const LOG_LEVEL: &str = "info";
/// Gone after a boot, like the agent that could be asked there.
pub const RUN_DIR: &str = "/run/hnp";
/// Kubernetes kills a pod 30 s after SIGTERM unless told otherwise; leave time to report.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(25);

/// One worker per CPU this process may use. The standard library looks at the affinity mask and at
/// the CPU quota of the cgroup (v1 and v2), which is the container's limit.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
