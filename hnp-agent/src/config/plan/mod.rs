//! The Plan: what the agent is going to do, in types that cannot be wrong.
//!
//! Everything here was checked when the configuration was read; nobody checks it again. Defaults
//! live in `defaults.rs`, each with its reason.

mod addresses;
mod agent;
mod capture;
mod enforcement;
mod identity;
mod mode;
mod policy;
mod route;
mod trust;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::gateway::Gateway;
use super::upstream_proxy::UpstreamProxy;

pub use self::addresses::{AddrRange, Cidr, Destination, Host, NamePattern, Target};
pub use self::agent::{
    Admin, DaemonSet, Kubernetes, Limits, Log, LogFormat, PerWorkload, Resolver, RuntimeSocket, Workloads,
};
pub use self::capture::{Capture, CaptureMode, Guard, RawSockets};
pub use self::enforcement::{Enforcement, Override, PodTraits, PossibleEnforcement};
pub use self::identity::{Identity, IdentityFiles, IdentityPlace, IdentitySource, Issuer};
pub use self::mode::{Authority, Mode, Protocol, ReverseProxy, Tunnel, Unreadable, UpstreamProtocol};
pub use self::policy::{LabelsBy, Permission, Policy, Rule, ServiceAccountName};
pub use self::route::{Route, RouteIndex, Through, Timeouts, Upstream, UpstreamWay};
pub use self::trust::{OnDoubt, Peers, Revocation, Roots, TlsVersion, Trust};

/// The whole configuration, validated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where and how connections are captured.
    pub capture: Capture,
    /// Where pods may address the agent themselves; `None`: nowhere.
    pub gateway: Option<Gateway>,
    /// The routes, in the order they were written. At least one.
    pub routes: Vec<Arc<Route>>,
    /// The identities that routes refer to by [`ReverseProxy::identity`].
    pub identities: Vec<Arc<Identity>>,
    /// The trusts that routes refer to by [`ReverseProxy::trust`].
    pub trusts: Vec<Arc<Trust>>,
    /// The proxies that routes refer to by [`Route::way`].
    pub upstream_proxies: Vec<Arc<UpstreamProxy>>,
    /// Limits of the whole agent.
    pub limits: Limits,
    /// How names are resolved.
    pub resolver: Resolver,
    /// Who tells of the pods on this node.
    pub workloads: Workloads,
    /// The cluster this node belongs to; `None` outside of one.
    pub kubernetes: Option<Kubernetes>,
    /// Health, readiness and metrics.
    pub admin: Admin,
    /// Diagnostics and the access log.
    pub log: Log,
    /// Where the running agent can be asked to hand over; it makes the directory if it is missing.
    pub run_dir: PathBuf,
    /// How long a drain may take, from SIGTERM to the last connection.
    pub drain_deadline: Duration,
    /// Number of worker threads.
    pub workers: usize,
}

impl Plan {
    /// Whose word on pods' labels counts where policies ask for them.
    pub fn labels_by(&self) -> LabelsBy {
        if self.kubernetes.is_some() { LabelsBy::Api } else { LabelsBy::Runtime }
    }

    /// Whether the gateway knows its callers as pods of this node, by the API server's word. Where it does
    /// not, [`Gateway::sources`] alone say who is served.
    pub fn knows_callers(&self) -> bool {
        self.capture.mode == CaptureMode::On && self.kubernetes.is_some()
    }

    /// What issues the identities of a route, where each workload has its own.
    pub fn issuer_for(&self, route: &Route) -> Option<&Issuer> {
        self.identities[route.reverse_proxy()?.identity].source.issuer()
    }

    /// The names of the routes that are strict for every pod.
    pub fn strict_routes(&self) -> Vec<&str> {
        let strict = self.routes.iter().filter(|route| route.is_strict_for_all());
        strict.map(|route| &*route.name).collect()
    }
}
