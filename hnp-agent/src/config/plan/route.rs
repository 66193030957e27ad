//! Destinations -> upstream: what belongs to one route, and how its upstream is reached.

use std::sync::Arc;
use std::time::Duration;

use super::{
    Destination, Enforcement, Host, Mode, NamePattern, Override, PodTraits, Policy, PossibleEnforcement,
    Protocol, ReverseProxy, Tunnel,
};
use crate::config::end_to_end::EndToEnd;
use crate::config::upstream_proxy::UpstreamProxy;

/// Index of a route in [`super::Plan::routes`].
pub type RouteIndex = usize;

/// Destinations -> upstream, with one mode, one enforcement, one identity, one trust.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// The name used in logs, metrics and errors.
    pub name: Arc<str>,
    /// What pods dial. At least one.
    pub destinations: Vec<Destination>,
    /// What the agent dials.
    pub upstream: Upstream,
    /// How it is reached.
    pub way: UpstreamWay,
    /// How connections are carried, and what that way needs.
    pub mode: Mode,
    /// What happens to connections that cannot be served.
    pub enforcement: Enforcement,
    /// Other enforcements for some pods; the first that matches a pod holds for it.
    pub overrides: Vec<Override>,
    /// Other names on the destinations' addresses that go on untouched to where the client was going.
    pub passthrough: Vec<NamePattern>,
    /// Which workloads may use it; `None`: all.
    pub policy: Option<Policy>,
    /// This route's deadlines.
    pub timeouts: Timeouts,
}

/// What the agent dials: a URL of its own, never derived from the destination.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Upstream {
    /// The host to resolve and, unless [`Upstream::server_name`] says otherwise, to verify.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
    /// What stands before every request's path: empty, or `/base` without a trailing slash.
    pub base_path: String,
    /// The name the certificate must carry and that SNI announces.
    pub server_name: rustls_pki_types::ServerName<'static>,
    /// The host, and the port where it is not 443.
    pub authority: String,
    /// How many idle connections one worker keeps; 0 keeps none.
    pub pool_idle: usize,
    /// How many connections one worker keeps open ahead of use, at most [`Self::pool_idle`]; of HTTP/2, one.
    pub pool_warm: usize,
}

/// How an upstream is reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UpstreamWay {
    /// The agent resolves and dials it.
    Direct,
    /// So it does, because the proxy of this name is not for this upstream.
    Exempt(Arc<str>),
    /// A proxy does.
    Through(Through),
}

/// A proxy on a route's way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Through {
    /// One of [`super::Plan::upstream_proxies`].
    pub proxy: Arc<UpstreamProxy>,
    /// Index into [`super::Plan::trusts`] of the trust that verifies the proxy; there is one where it is spoken
    /// to over TLS.
    pub trust: Option<usize>,
}

/// A route's deadlines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// From the first byte of a connection or request to the end of its head.
    pub head: Duration,
    /// How long a client connection may stay idle between requests (HTTP), or in both directions (opaque).
    pub idle: Duration,
    /// Resolve and TCP connect to the upstream.
    pub connect: Duration,
    /// TLS handshake with the upstream.
    pub tls: Duration,
    /// From the end of the request to the first byte of the answer.
    pub response: Duration,
    /// Over HTTP/2: how long a connection with requests under way may be silent before it gets a PING, and
    /// how long that may go unanswered.
    pub ping: Duration,
}

impl Route {
    /// The proxy that the upstream is dialled through.
    pub fn through(&self) -> Option<&Through> {
        match &self.way {
            UpstreamWay::Through(through) => Some(through),
            UpstreamWay::Direct | UpstreamWay::Exempt(_) => None,
        }
    }

    /// How what the agent reads in the clear goes on; a tunnel reads nothing.
    pub fn reverse_proxy(&self) -> Option<&ReverseProxy> {
        match &self.mode {
            Mode::ReverseProxy(reverse_proxy) => Some(reverse_proxy),
            Mode::EndToEnd(end_to_end) => Some(&end_to_end.onward),
            Mode::Tunnel(_) => None,
        }
    }

    /// Set where the route ends pods' TLS.
    pub fn end_to_end(&self) -> Option<&EndToEnd> {
        match &self.mode {
            Mode::EndToEnd(end_to_end) => Some(end_to_end),
            Mode::ReverseProxy(_) | Mode::Tunnel(_) => None,
        }
    }

    /// Set where the route tunnels.
    pub fn tunnel(&self) -> Option<&Tunnel> {
        match &self.mode {
            Mode::Tunnel(tunnel) => Some(tunnel),
            Mode::ReverseProxy(_) | Mode::EndToEnd(_) => None,
        }
    }

    /// Whether nothing is read of what a client sends, not even its first byte.
    pub fn is_opaque(&self) -> bool {
        matches!(&self.mode, Mode::ReverseProxy(mode) if mode.protocol == Protocol::Opaque)
    }

    /// The enforcement for a pod, as far as what is known of it decides that.
    pub fn enforcement_for(&self, pod: PodTraits<'_>) -> PossibleEnforcement {
        let mut possible: Option<PossibleEnforcement> = None;
        let mut may_be = |enforcement: Enforcement| {
            let so_far = possible.get_or_insert(PossibleEnforcement::only(enforcement));
            so_far.weakest = so_far.weakest.min(enforcement);
            so_far.strictest = so_far.strictest.max(enforcement);
            *so_far
        };
        for other in &self.overrides {
            match other.matches(pod) {
                Some(true) => return may_be(other.enforcement),
                Some(false) => {}
                None => drop(may_be(other.enforcement)),
            }
        }
        may_be(self.enforcement)
    }

    /// The strictest that any pod may get: what one gets that nothing is known of.
    pub fn strictest_enforcement(&self) -> Enforcement {
        self.enforcement_for(PodTraits::default()).strictest
    }

    /// Whether no pod is let off: then packets are refused, too, which do not say whose they are.
    pub fn is_strict_for_all(&self) -> bool {
        self.weakest_enforcement() == Enforcement::Strict
    }

    /// Whether what only the API server knows of pods decides anything.
    pub fn asks_the_api(&self) -> bool {
        self.selects() || self.policy.as_ref().is_some_and(Policy::needs_api)
    }

    /// Whether pods' labels decide what is enforced.
    pub fn selects(&self) -> bool {
        self.overrides.iter().any(|other| other.selector.is_some())
    }

    /// The weakest that any pod may get: what holds for every packet, whoever sent it.
    pub fn weakest_enforcement(&self) -> Enforcement {
        self.overrides.iter().map(|other| other.enforcement).fold(self.enforcement, Ord::min)
    }
}
