//! What the agent dials: resolve, TCP, TLS with the node's identity, and a pool that never mixes.
//!
//! One [`Upstreams`] per worker and generation of the configuration; a worker's generations share one
//! pool ([`Pools`]), workers share nothing. Where a route names a proxy, the upstream's TLS runs through a
//! tunnel that the proxy opens (`proxy`), end to end. A connection is pooled under everything that
//! decides who it speaks for and whom it trusts ([`PoolKey`]): when an identity or a trust has a new
//! generation, no request travels on a connection or a TLS session of the old one; and where each workload has an
//! identity of its own, none on another's (`keys`). Connections of HTTP/1.1 carry
//! one request at a time and are lent (`pool`); those of HTTP/2 are shared (`h2`).

mod connection;
mod dates;
mod dial;
mod eyeballs;
mod h2;
mod keys;
mod pool;
mod proxy;
mod retry;
mod tls;
mod warm;

pub use connection::{ConnectionInfo, Io, Transport, UpstreamConnection};
pub use dial::DialError;
pub(crate) use dial::{key_exchange, tls_version};
pub(crate) use h2::can_carry;
pub use h2::{Exchange, Unprocessed, fault_reason};
pub use pool::{Offer, PoolKey, ProxyKey};
pub use proxy::{CredentialsFileError, credentials};
pub use retry::HasLeft;
pub(crate) use retry::deadline;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hnp_common::Reason;
use tokio::time::Instant;

use crate::config::plan::{Host, Plan, Route, RouteIndex};
use crate::generation::Generation;
use crate::identity::snapshot::IdentitySnapshot;
use crate::resolve::Resolver;
use crate::rota::Rota;
use crate::telemetry::record::WayRecord;
use crate::telemetry::rfc3339;
use crate::telemetry::stats::WorkerStats;
use crate::workload::Caller;
use dates::Dates;
use h2::Links;
use keys::RouteKeys;
use pool::Pool;
use retry::Outages;
use tls::TlsConfigs;
use warm::Warmth;

/// What one worker keeps towards upstreams, whatever the configuration.
#[derive(Default)]
pub struct Pools {
    configs: RefCell<TlsConfigs>,
    pool: RefCell<Pool>,
    links: Rc<Links>,
    outages: Outages,
    warmth: Warmth,
    rota: Rota,
}

/// What a request needs of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    /// That it speaks HTTP.
    Any,
    /// That it speaks HTTP/1.1: to switch protocols, or for what HTTP/2 cannot carry as it is.
    Http1,
    /// That it can become a WebSocket: over HTTP/2 where a connection is there whose upstream has offered that
    /// (RFC 8441 section 3), else over HTTP/1.1.
    WebSocket,
}

/// One worker's way to every route's upstream, in one generation.
pub struct Upstreams {
    generation: Arc<Generation>,
    resolver: Resolver,
    stats: Rc<WorkerStats>,
    shared: Rc<Pools>,
    /// By route: the keys that are current. Requests find theirs without building one.
    keys: RefCell<Vec<RouteKeys>>,
    dates: Dates,
}

impl Pools {
    /// Closes idle connections that are too old, whose generation is over, or that the other side closed.
    /// `upstreams` are all that may still ask for one. Call it every second or so.
    pub fn sweep<'a>(&self, upstreams: impl Iterator<Item = &'a Upstreams> + Clone) {
        upstreams.clone().for_each(Upstreams::sweep_keys);
        let live = |key: &PoolKey| upstreams.clone().any(|one| one.has(key));
        let idle_together = |key: &PoolKey| upstreams.clone().find_map(|one| one.idle_together(key));
        let proxies: Vec<_> = upstreams.clone().flat_map(Upstreams::live_proxies).collect();
        self.pool.borrow_mut().sweep(live, idle_together, Instant::now());
        self.links.sweep(live, idle_together, Instant::now());
        self.configs.borrow_mut().retain(live, &proxies);
        self.outages.sweep(Instant::now());
        self.warmth.sweep(live);
    }

    /// Idle connections held for a route, for the gauge.
    pub fn idle(&self, route: &str) -> usize {
        self.pool.borrow().idle(route) + self.links.count(route).1
    }

    /// Connections of HTTP/2 that are open for a route, for the gauge.
    pub fn shared(&self, route: &str) -> usize {
        self.links.count(route).0
    }
}

impl Upstreams {
    /// The way under a generation; what it has in common with earlier ones on these pools is used on.
    pub fn new(
        generation: Arc<Generation>,
        resolver: Resolver,
        stats: Rc<WorkerStats>,
        shared: Rc<Pools>,
    ) -> Self {
        let routes = &generation.plan.routes;
        let keys = RefCell::new(routes.iter().map(|_| RouteKeys::default()).collect());
        let dates = Dates::new(routes.len());
        Self { generation, resolver, stats, shared, keys, dates }
    }

    /// The resolver in use.
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Who on this thread takes the next step of a handshake.
    pub fn rota(&self) -> &Rota {
        &self.shared.rota
    }

    fn plan(&self) -> &Plan {
        &self.generation.plan
    }

    /// A connection to the route's upstream that speaks for the caller: a warm one if there is one, else a new one,
    /// for which an outage is waited out.
    ///
    /// # Errors
    /// See [`DialError`]; nothing was sent to anybody who was not verified.
    pub async fn connect(
        &self,
        route: RouteIndex,
        caller: Caller<'_>,
        need: Need,
        has_left: HasLeft<'_>,
    ) -> Result<UpstreamConnection, DialError> {
        if self.is_unconfirmed(route, caller) {
            // Boxed: rare, like dialling.
            Box::pin(self.confirm(route, caller)).await;
        }
        let key = self.key_to_dial(route, caller, need)?;
        if let Some(warm) = self.warm(route, caller, need, &key) {
            return Ok(warm);
        }
        // Boxed: dialling is rare and its future large, and every connection's future would hold it.
        Box::pin(self.connect_new(route, caller, need, None, has_left)).await
    }

    /// `after`: on no shared connection that is older than that.
    async fn connect_new(
        &self,
        route: RouteIndex,
        caller: Caller<'_>,
        need: Need,
        after: Option<u64>,
        has_left: HasLeft<'_>,
    ) -> Result<UpstreamConnection, DialError> {
        // Each time anew: an identity may be rotated in an outage.
        let warm = || match after {
            None => self.warm(route, caller, need, &self.key(route, caller, need).ok()?),
            Some(_) => None,
        };
        let dial = async |end| {
            let key = self.key_to_dial(route, caller, need)?;
            match key.offer {
                Offer::Http2 => self.dial_shared(route, key, after, end).await,
                Offer::Http1 | Offer::Nothing => self.dial_tls(route, key, end).await,
            }
        };
        let (made, outage) = self.patiently(route, caller, has_left, warm, dial).await?;
        Ok(made.after(outage))
    }

    /// For a retry: a connection that is newer than the one that failed, which is known by `failed` if others
    /// shared it.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect_again(
        &self,
        route: RouteIndex,
        caller: Caller<'_>,
        need: Need,
        failed: Option<u64>,
        has_left: HasLeft<'_>,
    ) -> Result<UpstreamConnection, DialError> {
        let after = failed.unwrap_or(self.shared.links.newest());
        Box::pin(self.connect_new(route, caller, need, Some(after), has_left)).await
    }

    /// A new connection, never a pooled one: for opaque routes.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect_fresh(
        &self,
        route: RouteIndex,
        caller: Caller<'_>,
        has_left: HasLeft<'_>,
    ) -> Result<UpstreamConnection, DialError> {
        if self.is_unconfirmed(route, caller) {
            Box::pin(self.confirm(route, caller)).await;
        }
        let dial = async |end| self.dial_tls(route, self.key_to_dial(route, caller, Need::Any)?, end).await;
        let (made, outage) = Box::pin(self.patiently(route, caller, has_left, || None, dial)).await?;
        Ok(made.after(outage))
    }

    /// A connection to the route's upstream that carries the client's own TLS. Never pooled.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect_tunnel(
        &self,
        route: RouteIndex,
        caller: Caller<'_>,
        has_left: HasLeft<'_>,
    ) -> Result<UpstreamConnection, DialError> {
        let dial = async |end| self.dial_plain(route, end).await;
        let (made, outage) = Box::pin(self.patiently(route, caller, has_left, || None, dial)).await?;
        Ok(made.after(outage))
    }

    /// A connection to where a client was going: passthrough. Never pooled, and tried once: who is let through
    /// gets what it would get without us.
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
            return Err(DialError::new(Reason::AddressRefused, detail, Some(addr)));
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
        if self.is_current(route, &connection) {
            let limit = self.plan().routes[route].upstream.pool_idle;
            self.shared.pool.borrow_mut().give_back(connection, limit, Instant::now());
        }
    }

    /// Whether a connection speaks for an identity and trusts the roots that the route has now.
    pub fn is_current(&self, route: RouteIndex, connection: &UpstreamConnection) -> bool {
        connection.key.as_ref().is_some_and(|key| self.is_live(route, key))
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

    fn warm(
        &self,
        route: RouteIndex,
        caller: Caller<'_>,
        need: Need,
        key: &Rc<PoolKey>,
    ) -> Option<UpstreamConnection> {
        if key.offer == Offer::Http2
            && let Some(stream) = self.shared.links.take(key, None)
        {
            return Some(stream);
        }
        if need == Need::WebSocket
            && let Some(stream) =
                self.shared.links.take_for_websocket(&self.key(route, caller, Need::Any).ok()?)
        {
            return Some(stream);
        }
        let mut pool = self.shared.pool.borrow_mut();
        let now = Instant::now();
        pool.take(key, now).or_else(|| match need {
            Need::Any => None,
            // What was made for any request and turned out to be HTTP/1.1 serves, too.
            Need::Http1 | Need::WebSocket => pool.take(&self.key(route, caller, Need::Any).ok()?, now),
        })
    }

    /// The same for a dial, which counts as one where there is none.
    fn key_to_dial(
        &self,
        route: RouteIndex,
        caller: Caller<'_>,
        need: Need,
    ) -> Result<Rc<PoolKey>, DialError> {
        self.key(route, caller, need).inspect_err(|error| self.stats.upstream_dialed(route, error.reason))
    }
}

fn unavailable(what: &str, name: &str) -> DialError {
    let detail = format!(
        "{what} `{name}` could not be loaded; see the log for where it comes from and the mistake in it"
    );
    DialError::new(Reason::IdentityUnavailable, detail, None)
}

/// Whether an identity may be presented now. Asked for every request, pooled connections included, and again before
/// each handshake: what comes before that takes time.
fn presentable(identity: &IdentitySnapshot) -> Result<(), DialError> {
    if identity.is_presentable() {
        return Ok(());
    }
    let (name, since) = (&identity.name, rfc3339(identity.leaf.not_after));
    let detail = format!(
        "identity `{name}` has expired at {since} and its source gives no other; see the log for what it says"
    );
    Err(DialError::new(Reason::IdentityExpired, detail, None))
}
