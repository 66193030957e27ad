//! What concerns the agent as a whole: limits, names, the cluster, its logs.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Limits of the whole agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Client connections open at a time, over all workers.
    pub connections: usize,
    /// Bytes of a request's or an answer's head.
    pub head_bytes: usize,
    /// Bytes of each buffer a relay holds while bytes are under way.
    pub buffer_bytes: usize,
    /// What one workload may have of all that.
    pub per_workload: PerWorkload,
}

/// Limits of each workload: a pod, or what is counted in its place (`policy::Key`). Over all workers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PerWorkload {
    /// Connections open at a time; fewer than [`Limits::connections`].
    pub connections: usize,
    /// Connections begun in a second, and as many at once; `None`: any number.
    pub new_connections_per_second: Option<NonZeroU64>,
    /// TLS handshakes begun in a second, and as many at once, while other workloads have connections; what is beyond waits.
    pub handshakes_per_second: NonZeroU64,
    /// Bytes moved in a second, to and from the workload together, and as many at once; `None`: any number.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// How names are resolved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolver {
    /// Normally `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// Normally `/etc/hosts`.
    pub hosts: PathBuf,
    /// How long an address stays captured after the name stopped resolving to it.
    pub grace: Duration,
    /// The shortest time between two look-ups of a name, whatever the TTL says.
    pub min_ttl: Duration,
    /// The longest.
    pub max_ttl: Duration,
}

/// Who tells of the pods on this node, besides the cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workloads {
    /// The container runtime.
    pub runtime: RuntimeSocket,
    /// How long a new connection is held for what a policy asks for and nobody has told of its pod yet.
    pub deadline: Duration,
}

/// The CRI socket of the container runtime.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RuntimeSocket {
    /// The first that is there of those that runtimes usually have.
    Auto,
    /// Nobody is asked.
    Off,
    /// This one.
    Path(PathBuf),
}

/// The cluster this node belongs to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kubernetes {
    /// The API server: `https://HOST:PORT`, with a base path where there is one.
    pub api: String,
    /// Directory with `token` and `ca.crt`, as Kubernetes mounts it into pods.
    pub service_account: PathBuf,
    /// The name of this agent's node in the cluster.
    pub node_name: Arc<str>,
    /// Key of the taint that new nodes register with and that the agent takes off its own once it is
    /// ready; `None` leaves all taints alone.
    pub startup_taint: Option<Arc<str>>,
    /// The DaemonSet that this agent's pod is of; `None`: an uninstall is not told from a restart.
    pub daemonset: Option<DaemonSet>,
}

/// A DaemonSet's place in the cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DaemonSet {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

impl std::fmt::Display for DaemonSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Health, readiness and metrics.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None` serves nothing.
    pub listen: Option<std::net::SocketAddr>,
    /// Whether the page is served there, and `/status` and `/flows`, which it shows: they name pods and what they ask for.
    pub page: bool,
}

/// Diagnostics and the access log.
#[derive(Clone, Debug)]
pub struct Log {
    /// Form of both.
    pub format: LogFormat,
    /// `tracing` filter for diagnostics, such as `info` or `hnp_agent::capture=debug,info`.
    pub level: String,
    /// Whether an access line is written per request or connection.
    pub access: bool,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
