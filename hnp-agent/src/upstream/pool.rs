//! Idle connections, by everything that decides who they speak for and whom they trust.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::time::Instant;

use super::UpstreamConnection;
use super::warm::REFRESH;
use crate::config::plan::{Host, Protocol, ReverseProxy, UpstreamProtocol};
use crate::config::upstream_proxy::UpstreamProxy;
use crate::identity::snapshot::IdentitySnapshot;
use crate::trust::snapshot::TrustSnapshot;

/// How long a connection may wait for its next request. Below the idle limits of the servers one
/// meets (nginx 75 s, many gateways 60 s, HAProxy often 30 s), so that hnp closes first and no
/// request is sent into a closing connection.
pub(super) const MAX_IDLE: Duration = Duration::from_secs(25);

/// Two requests share a connection, or a TLS session, only where all of this is equal.
///
/// Nothing in it is a place in a Plan: a route that a reload leaves as it is keeps its connections.
#[derive(Clone, Debug)]
pub struct PoolKey {
    /// The route's name: routes share no connections, and through them no limits.
    pub route: Arc<str>,
    /// The host that is dialled.
    pub host: Host,
    /// The port that is dialled.
    pub port: u16,
    /// The name that SNI announces and the certificate must carry.
    pub server_name: ServerName<'static>,
    /// The proxy on the way, if there is one.
    pub proxy: Option<ProxyKey>,
    /// What ALPN offers.
    pub offer: Offer,
    /// The identity presented. Compared by its address: it is never changed in place, and the key keeps
    /// it, so that no other can have this address.
    pub identity: Arc<IdentitySnapshot>,
    /// The trust that verified the upstream; compared as the identity.
    pub trust: Arc<TrustSnapshot>,
}

/// What ALPN offers, in the order of preference.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offer {
    /// No extension at all: the bytes are not ours to name.
    Nothing,
    /// `http/1.1`.
    Http1,
    /// `h2`, `http/1.1`.
    Http2,
}

impl Offer {
    /// A route's, where a request asks for nothing less.
    pub fn of(mode: &ReverseProxy) -> Self {
        match (mode.protocol, mode.upstream_protocol) {
            (Protocol::Opaque, _) => Self::Nothing,
            (Protocol::Http, UpstreamProtocol::Auto) => Self::Http2,
            (Protocol::Http, UpstreamProtocol::Http1) => Self::Http1,
        }
    }

    /// As rustls takes it.
    pub fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }
}

/// A proxy as part of a key: with all that its definition says, credentials included.
#[derive(Clone, Debug)]
pub struct ProxyKey {
    /// Its definition.
    pub proxy: Arc<UpstreamProxy>,
    /// The trust that verified it; compared by its address. There is one where it is spoken to over TLS.
    pub trust: Option<Arc<TrustSnapshot>>,
}

impl PartialEq for ProxyKey {
    fn eq(&self, other: &Self) -> bool {
        self.proxy == other.proxy
            && self.trust.as_ref().map(Arc::as_ptr) == other.trust.as_ref().map(Arc::as_ptr)
    }
}

impl Eq for ProxyKey {}

impl Hash for ProxyKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.proxy.name.hash(state);
        self.trust.as_ref().map(Arc::as_ptr).hash(state);
    }
}

impl PartialEq for PoolKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.identity, &other.identity)
            && Arc::ptr_eq(&self.trust, &other.trust)
            && self.port == other.port
            && self.offer == other.offer
            && self.route == other.route
            && self.host == other.host
            && self.server_name == other.server_name
            && self.proxy == other.proxy
    }
}

impl Eq for PoolKey {}

impl Hash for PoolKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // What else is in it differs hardly ever where these are equal.
        self.route.hash(state);
        Arc::as_ptr(&self.identity).hash(state);
        Arc::as_ptr(&self.trust).hash(state);
    }
}

/// One idle connection among those of all workloads of a route.
pub(super) struct Shared {
    pub(super) route: Arc<str>,
    /// How many there may be.
    pub(super) most: usize,
    pub(super) since: Instant,
}

/// The routes that have more than they may, and since when those have waited, at the least, that are to go.
pub(super) fn too_many(mut waiting: Vec<Shared>) -> Vec<(Arc<str>, Instant)> {
    waiting.sort_unstable_by(|a, b| a.route.cmp(&b.route).then(b.since.cmp(&a.since)));
    let routes = waiting.chunk_by(|a, b| a.route == b.route);
    routes.filter_map(|all| all.get(all[0].most).map(|first| (first.route.clone(), first.since))).collect()
}

/// One worker's idle connections.
#[derive(Default)]
pub(super) struct Pool {
    idle: HashMap<Rc<PoolKey>, Vec<Idle>>,
}

struct Idle {
    connection: UpstreamConnection,
    since: Instant,
}

impl Pool {
    /// The connection that was used last, so that the others can age and go.
    pub(super) fn take(&mut self, key: &Rc<PoolKey>, now: Instant) -> Option<UpstreamConnection> {
        let idle = self.idle.get_mut(key)?;
        while let Some(mut candidate) = idle.pop() {
            if now.duration_since(candidate.since) < MAX_IDLE && candidate.connection.is_quiet() {
                candidate.connection.reused = true;
                return Some(candidate.connection);
            }
        }
        None
    }

    /// Keeps a connection, at most `limit` of its kind. Whether it is quiet is seen when it is taken.
    pub(super) fn give_back(&mut self, connection: UpstreamConnection, limit: usize, now: Instant) {
        let Some(key) = connection.key.clone() else { return };
        let idle = self.idle.entry(key).or_default();
        if idle.len() < limit {
            idle.push(Idle { connection, since: now });
        }
    }

    /// Keeps a connection that nobody has used yet. What the server has to say after the handshake may be
    /// still to come or unread.
    pub(super) fn keep(&mut self, connection: UpstreamConnection, limit: usize, now: Instant) {
        let Some(key) = connection.key.clone() else { return };
        let idle = self.idle.entry(key).or_default();
        if idle.len() < limit {
            idle.push(Idle { connection, since: now });
        }
    }

    /// How many of a kind have not waited for long.
    pub(super) fn fresh(&self, key: &Rc<PoolKey>, now: Instant) -> usize {
        let fresh = |one: &&Idle| now.duration_since(one.since) < REFRESH;
        self.idle.get(key).map_or(0, |idle| idle.iter().filter(fresh).count())
    }

    /// Drops what is not `live`, too old, closed or spoken on out of turn; and what is more than may be idle `together`
    /// on a route whose workloads have connections of their own, the one that has waited longest first.
    pub(super) fn sweep(
        &mut self,
        live: impl Fn(&PoolKey) -> bool,
        together: impl Fn(&PoolKey) -> Option<usize>,
        now: Instant,
    ) {
        self.idle.retain(|key, idle| {
            if !live(key) {
                return false;
            }
            idle.retain_mut(|one| now.duration_since(one.since) < MAX_IDLE && one.connection.is_quiet());
            !idle.is_empty()
        });
        let waiting = self.idle.iter().filter_map(|(key, idle)| Some((key, idle, together(key)?)));
        let waiting = waiting.flat_map(|(key, idle, most)| {
            idle.iter().map(move |one| Shared { route: key.route.clone(), most, since: one.since })
        });
        for (route, until) in too_many(waiting.collect()) {
            for (_, idle) in self.idle.iter_mut().filter(|(key, _)| key.route == route) {
                idle.retain(|one| one.since > until);
            }
        }
        self.idle.retain(|_, idle| !idle.is_empty());
    }

    /// How many are idle for a route.
    pub(super) fn idle(&self, route: &str) -> usize {
        self.idle.iter().filter(|(key, _)| *key.route == *route).map(|(_, idle)| idle.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_is_idle_together_the_latest_stay() {
        let begin = Instant::now();
        let one = |route: &str, most, second| Shared {
            route: route.into(),
            most,
            since: begin + Duration::from_secs(second),
        };
        let at = |second| begin + Duration::from_secs(second);
        assert_eq!(too_many(vec![]), []);
        assert_eq!(too_many(vec![one("a", 2, 1), one("a", 2, 2), one("b", 1, 3)]), []);
        let waiting = [3, 1, 4, 2].map(|second| one("a", 2, second));
        let other = [7, 8].map(|second| one("b", 1, second));
        let over = too_many(waiting.into_iter().chain(other).collect());
        // Those since then or before go: 1 and 2 of the one route, 7 of the other.
        assert_eq!(over, [("a".into(), at(2)), ("b".into(), at(7))]);
        assert_eq!(too_many(vec![one("a", 0, 5)]), [("a".into(), at(5))]);
    }
}
