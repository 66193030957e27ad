//! Idle connections, by everything that decides who they speak for and whom they trust.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::time::Instant;

use super::UpstreamConnection;
use crate::config::plan::{Protocol, RouteIndex};

/// How long a connection may wait for its next request. Below the idle limits of the servers one
/// meets (nginx 75 s, many gateways 60 s, HAProxy often 30 s), so that hnp closes first and no
/// request is sent into a closing connection.
const MAX_IDLE: Duration = Duration::from_secs(25);

/// Two requests share a connection, or a TLS session, only where all of this is equal.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PoolKey {
    /// The route: host, port, and through it the limits.
    pub route: RouteIndex,
    /// The name that SNI announces and the certificate must carry.
    pub server_name: ServerName<'static>,
    /// What ALPN offers.
    pub protocol: Protocol,
    /// Index and generation of the identity presented.
    pub identity: (usize, u64),
    /// Index and generation of the trust that verified the upstream.
    pub trust: (usize, u64),
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

    /// Keeps a connection, at most `limit` of its kind.
    pub(super) fn give_back(&mut self, mut connection: UpstreamConnection, limit: usize, now: Instant) {
        let Some(key) = connection.key.clone() else { return };
        let idle = self.idle.entry(key).or_default();
        if idle.len() < limit && connection.is_quiet() {
            idle.push(Idle { connection, since: now });
        }
    }

    /// Drops what is not in `live`, too old, closed or spoken on out of turn.
    pub(super) fn sweep(&mut self, live: &[Rc<PoolKey>], now: Instant) {
        self.idle.retain(|key, idle| {
            if !live.contains(key) {
                return false;
            }
            idle.retain_mut(|one| now.duration_since(one.since) < MAX_IDLE && one.connection.is_quiet());
            !idle.is_empty()
        });
    }

    /// How many are idle for a route.
    pub(super) fn idle(&self, route: RouteIndex) -> usize {
        self.idle.iter().filter(|(key, _)| key.route == route).map(|(_, idle)| idle.len()).sum()
    }
}
