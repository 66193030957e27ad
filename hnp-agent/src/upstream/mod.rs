//! What the agent dials: resolve, TCP, TLS with the node's identity, and a pool that never mixes.
//!
//! One [`Upstreams`] per worker, shared with nobody. A connection is pooled under everything that
//! decides who it speaks for and whom it trusts ([`PoolKey`]): when an identity or a trust has a new
//! generation, no request travels on a connection or a TLS session of the old one.

mod connection;
mod dial;
mod pool;
mod tls;

pub use connection::{ConnectionInfo, Io, UpstreamConnection};
pub use dial::DialError;
pub use pool::PoolKey;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hnp_common::Reason;
use tokio::time::Instant;

use crate::config::plan::{Plan, Route, RouteIndex};
use crate::identity::snapshot::{IdentitySnapshot, SharedIdentity};
use crate::resolve::Resolver;
use crate::trust::snapshot::{SharedTrust, TrustSnapshot};
use pool::Pool;
use tls::TlsConfigs;

/// One worker's way to every route's upstream.
pub struct Upstreams {
    plan: Arc<Plan>,
    identities: Vec<SharedIdentity>,
    trusts: Vec<SharedTrust>,
    resolver: Resolver,
    configs: RefCell<TlsConfigs>,
    pool: RefCell<Pool>,
}

/// The generations a new connection of a route would speak for.
struct Current {
    identity: Arc<IdentitySnapshot>,
    trust: Arc<TrustSnapshot>,
}

impl Upstreams {
    /// `identities` and `trusts` are in the order of the Plan.
    pub fn new(
        plan: Arc<Plan>,
        identities: Vec<SharedIdentity>,
        trusts: Vec<SharedTrust>,
        resolver: Resolver,
    ) -> Self {
        Self { plan, identities, trusts, resolver, configs: RefCell::default(), pool: RefCell::default() }
    }

    /// A connection to the route's upstream: a warm one if there is one, else a new one.
    ///
    /// # Errors
    /// See [`DialError`]; nothing was sent to anybody who was not verified.
    pub async fn connect(&self, route: RouteIndex) -> Result<UpstreamConnection, DialError> {
        let current = self.current(&self.plan.routes[route])?;
        let key = self.key(route, &current);
        if let Some(warm) = self.pool.borrow_mut().take(&key, Instant::now()) {
            return Ok(warm);
        }
        // Boxed: dialling is rare and its future large, and every connection's future would hold it.
        Box::pin(self.dial_tls(route, key, &current)).await
    }

    /// A new connection, never a pooled one: for a retry, and for opaque routes.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect_fresh(&self, route: RouteIndex) -> Result<UpstreamConnection, DialError> {
        let current = self.current(&self.plan.routes[route])?;
        let key = self.key(route, &current);
        Box::pin(self.dial_tls(route, key, &current)).await
    }

    /// A cleartext connection to where a client was going: passthrough. Never pooled.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect_direct(
        &self,
        addr: SocketAddr,
        deadline: Duration,
    ) -> Result<UpstreamConnection, DialError> {
        let started = Instant::now();
        let tcp = Box::pin(self.tcp(&[addr], deadline)).await?;
        Ok(UpstreamConnection::plain(tcp, addr, started.elapsed()))
    }

    /// Takes a connection back. Only for one whose request and answer both ended exactly; it is
    /// dropped where its generation is over or the pool is full.
    pub fn give_back(&self, route: RouteIndex, connection: UpstreamConnection) {
        let plan = &self.plan.routes[route];
        let Ok(current) = self.current(plan) else { return };
        if connection.key.as_deref() == Some(&*self.key(route, &current)) {
            self.pool.borrow_mut().give_back(connection, plan.upstream.pool_idle, Instant::now());
        }
    }

    /// Closes idle connections that are too old, whose generation is over, or that the other side closed.
    /// Call it every second or so.
    pub fn sweep(&self) {
        let mut live = Vec::with_capacity(self.plan.routes.len());
        for (index, route) in self.plan.routes.iter().enumerate() {
            if let Ok(current) = self.current(route) {
                live.push(self.key(index, &current));
            }
        }
        self.pool.borrow_mut().sweep(&live, Instant::now());
        self.configs.borrow_mut().retain(&live);
    }

    /// Idle connections held for a route, for the gauge.
    pub fn idle(&self, route: RouteIndex) -> usize {
        self.pool.borrow().idle(route)
    }

    fn current(&self, route: &Route) -> Result<Current, DialError> {
        let unavailable = |what: &str, name: &str| DialError {
            reason: Reason::IdentityUnavailable,
            detail: format!(
                "{what} `{name}` could not be loaded; see the log for the file and the mistake in it"
            ),
            addr: None,
        };
        let identity = self.identities[route.identity]
            .load_full()
            .ok_or_else(|| unavailable("identity", &self.plan.identities[route.identity].name))?;
        let trust = self.trusts[route.trust]
            .load_full()
            .ok_or_else(|| unavailable("trust", &self.plan.trusts[route.trust].name))?;
        Ok(Current { identity, trust })
    }

    fn key(&self, route: RouteIndex, current: &Current) -> Rc<PoolKey> {
        self.configs.borrow_mut().key(route, &self.plan.routes[route], current)
    }
}
