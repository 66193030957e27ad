//! What concerns the agent as a whole: limits, names, the cluster, its logs.

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
}

/// Health, readiness and metrics.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None` serves nothing.
    pub listen: Option<std::net::SocketAddr>,
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
