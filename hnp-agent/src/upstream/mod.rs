//! What the agent dials: resolve, TCP, TLS with the node's identity, and a pool that never mixes.
//!
//! One [`Upstreams`] per worker and generation of the configuration; a worker's generations share one
//! pool ([`Pools`]), workers share nothing. Where a route names a proxy, the upstream's TLS runs through a
//! tunnel that the proxy opens (`proxy`), end to end. A connection is pooled under everything that
//! decides who it speaks for and whom it trusts ([`PoolKey`]): when an identity or a trust has a new
//! generation, no request travels on a connection or a TLS session of the old one.

mod connection;
mod dial;
mod eyeballs;
mod pool;
mod proxy;
mod tls;

pub use connection::{ConnectionInfo, Io, Transport, UpstreamConnection};
pub use dial::DialError;
pub use pool::{PoolKey, ProxyKey};
pub use proxy::{CredentialsFileError, credentials};

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hnp_common::Reason;
use tokio::time::Instant;

use crate::config::plan::{Host, Plan, Route, RouteIndex};
use crate::generation::Generation;
use crate::resolve::Resolver;
use crate::telemetry::record::WayRecord;
use pool::Pool;
use tls::TlsConfigs;

/// What one worker keeps towards upstreams, whatever the configuration.
#[derive(Default)]
pub struct Pools {
    configs: RefCell<TlsConfigs>,
    pool: RefCell<Pool>,
}

/// One worker's way to every route's upstream, in one generation.
pub struct Upstreams {
    generation: Arc<Generation>,
    resolver: Resolver,
    shared: Rc<Pools>,
    /// By route: the key that is current. Requests find it without building one.
    keys: RefCell<Vec<Option<Rc<PoolKey>>>>,
}

impl Pools {
    /// Closes idle connections that are too old, whose generation is over, or that the other side closed.
    /// `upstreams` are all that may still ask for one. Call it every second or so.
    pub fn sweep<'a>(&self, upstreams: impl Iterator<Item = &'a Upstreams> + Clone) {
        let live: Vec<_> = upstreams.clone().flat_map(Upstreams::live_keys).collect();
        let proxies: Vec<_> = upstreams.flat_map(Upstreams::live_proxies).collect();
        self.pool.borrow_mut().sweep(&live, Instant::now());
        self.configs.borrow_mut().retain(&live, &proxies);
    }

    /// Idle connections held for a route, for the gauge.
    pub fn idle(&self, route: &str) -> usize {
        self.pool.borrow().idle(route)
    }
}

impl Upstreams {
    /// The way under a generation; what it has in common with earlier ones on these pools is used on.
    pub fn new(generation: Arc<Generation>, resolver: Resolver, shared: Rc<Pools>) -> Self {
        let keys = RefCell::new(vec![None; generation.plan.routes.len()]);
        Self { generation, resolver, shared, keys }
    }

    /// The resolver in use.
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    fn plan(&self) -> &Plan {
        &self.generation.plan
    }

    /// A connection to the route's upstream: a warm one if there is one, else a new one.
    ///
    /// # Errors
    /// See [`DialError`]; nothing was sent to anybody who was not verified.
    pub async fn connect(&self, route: RouteIndex) -> Result<UpstreamConnection, DialError> {
        let key = self.key(route)?;
        if let Some(warm) = self.shared.pool.borrow_mut().take(&key, Instant::now()) {
            return Ok(warm);
        }
        // Boxed: dialling is rare and its future large, and every connection's future would hold it.
        Box::pin(self.dial_tls(route, key)).await
    }

    /// A new connection, never a pooled one: for a retry, and for opaque routes.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect_fresh(&self, route: RouteIndex) -> Result<UpstreamConnection, DialError> {
        let key = self.key(route)?;
        Box::pin(self.dial_tls(route, key)).await
    }

    /// A connection to the route's upstream that carries the client's own TLS. Never pooled.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect_tunnel(&self, route: RouteIndex) -> Result<UpstreamConnection, DialError> {
        Box::pin(self.dial_plain(route)).await
    }

    /// A connection to where a client was going: passthrough. Never pooled.
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
        let way = WayRecord::direct(addr.to_string());
        Ok(UpstreamConnection::plain(Transport::Tcp(tcp), way, addr, started.elapsed()))
    }

    /// A connection to a name that a client wrote: to one of its addresses, without those for which
    /// `forbidden` has a word. Never pooled.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect_unless(
        &self,
        forbidden: impl Fn(SocketAddr) -> Option<&'static str>,
        host: &Host,
        port: u16,
        deadline: Duration,
    ) -> Result<UpstreamConnection, DialError> {
        let started = Instant::now();
        let lookup = self.resolver.lookup_once(host);
        let mut addrs = self.addresses(lookup, host, port, deadline).await?;
        let mut refused = None;
        addrs.retain(|addr| {
            let why = forbidden(*addr);
            refused = refused.or(why.map(|why| (*addr, why)));
            why.is_none()
        });
        if let (true, Some((addr, why))) = (addrs.is_empty(), refused) {
            let detail = format!("{host} resolves to {addr}, which is {why}");
            return Err(DialError { reason: Reason::AddressRefused, detail, addr: Some(addr) });
        }
        let left = deadline.saturating_sub(started.elapsed());
        let tcp = Box::pin(self.tcp(&addrs, left)).await?;
        let addr = tcp.peer_addr().unwrap_or(addrs[0]);
        let way = WayRecord::direct(format!("{host}:{port}"));
        Ok(UpstreamConnection::plain(Transport::Tcp(tcp), way, addr, started.elapsed()))
    }

    /// Takes a connection back. Only for one whose request and answer both ended exactly; it is
    /// dropped where its generation is over or the pool is full.
    pub fn give_back(&self, route: RouteIndex, connection: UpstreamConnection) {
        let Ok(key) = self.key(route) else { return };
        if connection.key.as_deref() == Some(&*key) {
            let limit = self.plan().routes[route].upstream.pool_idle;
            self.shared.pool.borrow_mut().give_back(connection, limit, Instant::now());
        }
    }

    /// The proxy on a route's way now.
    fn proxy(&self, route: &Route) -> Result<Option<ProxyKey>, DialError> {
        let Some(through) = route.through() else { return Ok(None) };
        let trust = match through.trust {
            Some(index) => {
                let trust = self.generation.trusts[index].load_full();
                Some(trust.ok_or_else(|| unavailable("trust", &self.plan().trusts[index].name))?)
            }
            None => None,
        };
        Ok(Some(ProxyKey { proxy: Arc::clone(&through.proxy), trust }))
    }

    fn live_proxies(&self) -> impl Iterator<Item = ProxyKey> {
        self.plan().routes.iter().filter_map(|route| self.proxy(route).ok().flatten())
    }

    fn live_keys(&self) -> impl Iterator<Item = Rc<PoolKey>> {
        (0..self.plan().routes.len()).filter_map(|route| self.key(route).ok())
    }

    /// The key of a route's connections now.
    fn key(&self, route: RouteIndex) -> Result<Rc<PoolKey>, DialError> {
        let plan = &self.plan().routes[route];
        let Some(mode) = plan.reverse_proxy() else {
            let detail = "a tunnel presents no identity".into();
            return Err(DialError { reason: Reason::Internal, detail, addr: None });
        };
        let identity = self.generation.identities[mode.identity].load();
        let trust = self.generation.trusts[mode.trust].load();
        let identity = identity
            .as_ref()
            .ok_or_else(|| unavailable("identity", &self.plan().identities[mode.identity].name))?;
        let trust =
            trust.as_ref().ok_or_else(|| unavailable("trust", &self.plan().trusts[mode.trust].name))?;
        let proxy = self.proxy(plan)?;
        let known = &mut self.keys.borrow_mut()[route];
        if let Some(key) = known
            && Arc::ptr_eq(&key.identity, identity)
            && Arc::ptr_eq(&key.trust, trust)
            && key.proxy == proxy
        {
            return Ok(key.clone());
        }
        let key = Rc::new(PoolKey {
            route: plan.name.clone(),
            host: plan.upstream.host.clone(),
            port: plan.upstream.port,
            server_name: plan.upstream.server_name.clone(),
            proxy,
            protocol: mode.protocol,
            identity: identity.clone(),
            trust: trust.clone(),
        });
        *known = Some(key.clone());
        Ok(key)
    }
}

fn unavailable(what: &str, name: &str) -> DialError {
    let detail =
        format!("{what} `{name}` could not be loaded; see the log for the file and the mistake in it");
    DialError { reason: Reason::IdentityUnavailable, detail, addr: None }
}
