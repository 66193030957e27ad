//! The explicit gateway: where pods that were told of a proxy address the agent, and who may.
//!
//! It lends the node's identity to whoever is served, so there is no form of it that serves everybody
//! without somebody having written that.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::end_to_end::{ClientAuth, PodTls};
use super::plan::{Cidr, Mode, Plan, Protocol, Route, RouteIndex};

/// The gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gateway {
    /// Where it listens. At least one.
    pub listen: Vec<SocketAddr>,
    /// Where callers must come from. Empty only where they are known as pods of this node
    /// ([`Plan::knows_callers`]), and then it narrows nothing.
    pub sources: Vec<Cidr>,
    /// The route for requests that name no destination, as it was written.
    pub route: Option<Arc<str>>,
    /// On what terms clients' TLS ends on its own port; `None`: TLS is refused there.
    pub tls: Option<PodTls>,
    /// Its deadlines.
    pub timeouts: GatewayTimeouts,
}

/// What holds before a route is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GatewayTimeouts {
    /// From the first byte of a connection or request to the end of its head.
    pub head: Duration,
    /// How long a client connection may stay idle before a request.
    pub idle: Duration,
    /// How long a caller whose address is not known yet is waited for: the API server hears of a pod's
    /// address after the pod has begun.
    pub caller: Duration,
}

impl Gateway {
    /// Whether somebody may come from this address, as far as addresses say. `known`: he is a pod of this node.
    pub fn serves(&self, addr: IpAddr, known: bool) -> bool {
        let listed = || self.sources.iter().any(|range| range.contains(addr));
        if known { self.sources.is_empty() || listed() } else { listed() }
    }

    /// Whether somebody may come from anywhere who shows a certificate.
    pub fn certifies(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.client_auth != ClientAuth::None)
    }

    /// The route for requests that name no destination: the one that was written, or the only one that
    /// could carry them.
    pub fn default_route(&self, plan: &Plan) -> Option<RouteIndex> {
        let all = || plan.routes.iter().enumerate().filter(|(_, route)| carries_requests(route));
        match &self.route {
            Some(name) => all().find(|(_, route)| route.name == *name),
            None => all().next().filter(|_| all().count() == 1),
        }
        .map(|(index, _)| index)
    }
}

/// Whether a route takes plaintext HTTP.
pub(super) fn carries_requests(route: &Route) -> bool {
    matches!(&route.mode, Mode::ReverseProxy(mode) if mode.protocol == Protocol::Http)
}
