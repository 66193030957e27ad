//! From a route to an open connection: resolve, TCP, TLS, each with its deadline and its reasons.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hnp_common::Reason;
use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::h2::{Terms, Turn, Waited};
use super::{
    ConnectionInfo, Offer, PoolKey, ProxyKey, Transport, UpstreamConnection, Upstreams, eyeballs, presentable,
};
use crate::config::plan::{Host, Route, RouteIndex};
use crate::resolve::{ResolveError, Resolved};
use crate::telemetry::record::{HttpVersion, WayRecord};
use crate::trust;

/// Why no connection came about.
#[derive(Clone, Debug)]
pub struct DialError {
    /// The operator's code.
    pub reason: Reason,
    /// The developer's words; never key material.
    pub detail: String,
    /// The last address tried.
    pub addr: Option<SocketAddr>,
    /// A moment later the same may succeed: what is dialled was not there, broke off or could not be found.
    pub(super) passes: bool,
    /// How long was waited for that.
    pub outage: Duration,
}

impl DialError {
    /// One that nobody need wait for.
    pub fn new(reason: Reason, detail: impl Into<String>, addr: Option<SocketAddr>) -> Self {
        Self { reason, detail: detail.into(), addr, passes: false, outage: Duration::ZERO }
    }

    /// The same; whether it may pass.
    pub(super) fn may_pass(self, passes: bool) -> Self {
        Self { passes, ..self }
    }
}

impl Upstreams {
    /// A connection of its own, which speaks HTTP/1.1 or what the client speaks.
    pub(super) async fn dial_tls(
        &self,
        route: RouteIndex,
        key: Rc<PoolKey>,
        end: Instant,
    ) -> Result<UpstreamConnection, DialError> {
        let (tls, info) = self.handshake(route, &key, end).await?;
        Ok(UpstreamConnection::own(tls, Rc::new(info), key))
    }

    /// A stream on a connection that is shared, or a connection of its own where the upstream prefers HTTP/1.1.
    /// `after`: on none older than that.
    pub(super) async fn dial_shared(
        &self,
        route: RouteIndex,
        key: Rc<PoolKey>,
        after: Option<u64>,
        end: Instant,
    ) -> Result<UpstreamConnection, DialError> {
        let links = &self.shared.links;
        let mut patience = 3;
        let making = loop {
            match links.turn(&key, after) {
                Turn::Stream(connection) => return Ok(connection),
                Turn::Make(making) => break making,
                Turn::Wait(waiting) => match waiting.wait().await? {
                    Waited::Look if patience > 0 => patience -= 1,
                    Waited::Look | Waited::Alone => break links.alone(&key),
                },
            }
        };
        let (tls, info) = match self.handshake(route, &key, end).await {
            Ok(done) => done,
            Err(error) => {
                making.failed(&error);
                return Err(error);
            }
        };
        let addr = info.addr;
        let info = Rc::new(info);
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            making.own();
            return Ok(UpstreamConnection::own(tls, info, key));
        }
        let plan = &self.plan().routes[route];
        let terms = Terms {
            head_limit: self.plan().limits.head_bytes,
            keep: plan.upstream.pool_idle > 0,
            ping: plan.timeouts.ping,
        };
        making.share(tls, info, terms).await.map_err(|error| {
            let tls = trust::tls_reason(&error);
            let detail = format!("beginning HTTP/2: {error}");
            let failed = DialError::new(tls.unwrap_or(Reason::UpstreamClosed), detail, Some(addr));
            self.explained(route, &key, failed.may_pass(tls.is_none()))
        })
    }

    /// Dials, and counts what came of it.
    async fn handshake(
        &self,
        route: RouteIndex,
        key: &Rc<PoolKey>,
        end: Instant,
    ) -> Result<(Box<TlsStream<Transport>>, ConnectionInfo), DialError> {
        let done = self.dial(route, key, end).await.map_err(|error| self.explained(route, key, error));
        self.count(route, &done);
        if let Ok((_, info)) = &done {
            self.stats.upstream_handshake(route, info.resumed);
        }
        done
    }

    fn count<T>(&self, route: RouteIndex, dialled: &Result<T, DialError>) {
        let reason = dialled.as_ref().map_or_else(|error| error.reason, |_| Reason::Ok);
        self.stats.upstream_dialed(route, reason);
    }

    async fn dial(
        &self,
        route: RouteIndex,
        key: &Rc<PoolKey>,
        end: Instant,
    ) -> Result<(Box<TlsStream<Transport>>, ConnectionInfo), DialError> {
        let plan = &self.plan().routes[route];
        let started = Instant::now();
        let (transport, addr) = self.way(plan, key.proxy.as_ref(), end).await?;

        let failed = |reason, detail| DialError::new(reason, detail, Some(addr));
        presentable(&key.identity)?;
        let config = self
            .shared
            .configs
            .borrow_mut()
            .config(key)
            .map_err(|error| failed(Reason::Internal, error.to_string()))?;
        let handshake = TlsConnector::from(config).connect(key.server_name.clone(), transport);
        let tls = match timeout(plan.timeouts.tls, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                // What TLS itself objects to stays; a connection that broke may have met a restart.
                let broke = trust::tls_reason(&error).is_none();
                return Err(failed(trust::reason_of_io(&error), trust::words_of_io(&error)).may_pass(broke));
            }
            Err(_) => {
                let detail = format!("no TLS handshake within {:?}", plan.timeouts.tls);
                return Err(failed(Reason::UpstreamTlsTimeout, detail));
            }
        };
        self.shared.configs.borrow_mut().opened(key, tls.get_ref().1);
        let info = ConnectionInfo {
            way: Arc::new(WayRecord::of(plan)),
            addr,
            connect: started.elapsed(),
            tls_version: tls_version(tls.get_ref().1),
            key_exchange: key_exchange(tls.get_ref().1),
            protocol: match (key.offer, tls.get_ref().1.alpn_protocol()) {
                (Offer::Nothing, _) => None,
                (_, Some(b"h2")) => Some(HttpVersion::H2),
                (_, _) => Some(HttpVersion::Http1),
            },
            resumed: tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed),
            identity_generation: Some(key.identity.generation),
            spiffe_id: key.identity.of_workload().map(|of| Arc::clone(&of.spiffe_id)),
        };
        Ok((Box::new(tls), info))
    }

    /// One attempt on the way to a route's upstream, through its proxy where it has one, before anything is said
    /// to it. `end`: by when it must have connected.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial_plain(&self, route: RouteIndex, end: Instant) -> Result<UpstreamConnection, DialError> {
        let plan = &self.plan().routes[route];
        let started = Instant::now();
        let proxy = self.proxy(plan)?;
        let way = self.way(plan, proxy.as_ref(), end).await;
        self.count(route, &way);
        let (transport, addr) = way?;
        Ok(UpstreamConnection::plain(transport, WayRecord::of(plan), addr, started.elapsed()))
    }

    /// The way to a route's upstream, before anything is said to it; and the address that was dialled.
    async fn way(
        &self,
        plan: &Route,
        proxy: Option<&ProxyKey>,
        end: Instant,
    ) -> Result<(Transport, SocketAddr), DialError> {
        let upstream = &plan.upstream;
        if let Some(proxy) = proxy {
            return self.tunnel(upstream, proxy, end).await;
        }
        let (tcp, addr) = self.reach(&upstream.host, upstream.port, end).await?;
        Ok((Transport::Tcp(tcp), addr))
    }

    /// Resolves and connects, both before `end`.
    pub(super) async fn reach(
        &self,
        host: &Host,
        port: u16,
        end: Instant,
    ) -> Result<(TcpStream, SocketAddr), DialError> {
        let left = || end.saturating_duration_since(Instant::now());
        let addrs = self.addresses(self.resolver.lookup(host), host, port, left()).await?;
        let tcp = self.tcp(&addrs, left()).await?;
        let addr = tcp.peer_addr().unwrap_or(addrs[0]);
        Ok((tcp, addr))
    }

    /// Where a host is, by this look-up of it.
    pub(crate) async fn addresses(
        &self,
        lookup: impl Future<Output = Result<Resolved, ResolveError>>,
        host: &Host,
        port: u16,
        deadline: Duration,
    ) -> Result<Vec<SocketAddr>, DialError> {
        let failed = |reason, detail| DialError::new(reason, detail, None);
        let addrs = match host {
            Host::Addr(addr) => vec![*addr],
            Host::Name(name) => match timeout(deadline, lookup).await {
                Ok(Ok(resolved)) => resolved.addrs,
                Ok(Err(ResolveError::NotFound)) => {
                    return Err(failed(Reason::UpstreamNameNotFound, format!("{name} has no address")));
                }
                Ok(Err(ResolveError::Failed(error))) => {
                    return Err(failed(Reason::UpstreamDnsFailed, format!("{name}: {error}")).may_pass(true));
                }
                Err(_) => {
                    return Err(failed(
                        Reason::UpstreamDnsFailed,
                        format!("{name}: no answer within {deadline:?}"),
                    )
                    .may_pass(true));
                }
            },
        };
        Ok(addrs.into_iter().map(|addr| SocketAddr::new(addr, port)).collect())
    }

    /// The first of the addresses that answers, within `deadline`; see [`eyeballs`].
    pub(super) async fn tcp(&self, addrs: &[SocketAddr], deadline: Duration) -> Result<TcpStream, DialError> {
        let (vips, addrs): (Vec<SocketAddr>, Vec<SocketAddr>) =
            addrs.iter().partition(|addr| self.is_vip(addr.ip()));
        let lost = match eyeballs::race(&addrs, Instant::now() + deadline, TcpStream::connect).await {
            Ok((_, tcp)) => {
                // Heads and small bodies must not wait for an ACK (Nagle); a failure costs only latency.
                let _ = tcp.set_nodelay(true);
                return Ok(tcp);
            }
            Err(lost) => lost,
        };
        let failed = |addr, reason, detail| DialError::new(reason, detail, Some(addr));
        let vips = vips.into_iter().map(|addr| {
            let detail = format!("{addr} is a VIP of this node: the upstream would be hnp");
            failed(addr, Reason::UpstreamUnreachable, detail)
        });
        let refused = lost.failed.into_iter().map(|(addr, error)| {
            let reason = tcp_reason(&error);
            failed(addr, reason, format!("{addr}: {error}")).may_pass(reason != Reason::TooManyConnections)
        });
        let silent = lost.silent.into_iter().map(|addr| {
            let detail = format!("{addr}: no connection within {deadline:?}");
            failed(addr, Reason::UpstreamConnectTimeout, detail).may_pass(true)
        });
        // `max_by_key` takes the last of equals; the first address is the one people know.
        let all: Vec<DialError> = vips.chain(refused).chain(silent).collect();
        let nothing = || DialError::new(Reason::UpstreamNameNotFound, "the name has no address", None);
        Err(all.into_iter().rev().max_by_key(|error| tells(error.reason)).unwrap_or_else(nothing))
    }

    fn is_vip(&self, addr: IpAddr) -> bool {
        self.plan().capture.vips4.contains(addr) || self.plan().capture.vips6.contains(addr)
    }
}

/// Which of several addresses' failures says most: a refusal shows a living host, silence shows none.
fn tells(reason: Reason) -> u8 {
    match reason {
        Reason::UpstreamRefused => 2,
        Reason::UpstreamConnectTimeout => 1,
        _ => 0,
    }
}

fn tcp_reason(error: &io::Error) -> Reason {
    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::EADDRNOTAVAIL)) {
        // Out of descriptors or of ports: this node's trouble, not the upstream's.
        return Reason::TooManyConnections;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Reason::UpstreamRefused,
        io::ErrorKind::TimedOut => Reason::UpstreamConnectTimeout,
        _ => Reason::UpstreamUnreachable,
    }
}

/// The version of a session, once the server has chosen it.
pub(crate) fn tls_version(session: &rustls::ClientConnection) -> Option<&'static str> {
    match session.protocol_version()? {
        ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
        ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
        _ => None,
    }
}

/// The group of a session's key exchange.
pub(crate) fn key_exchange(session: &rustls::ClientConnection) -> Option<&'static str> {
    Some(match session.negotiated_key_exchange_group()?.name() {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::secp256r1MLKEM768 => "secp256r1MLKEM768",
        NamedGroup::MLKEM768 => "MLKEM768",
        NamedGroup::MLKEM1024 => "MLKEM1024",
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "secp256r1",
        NamedGroup::secp384r1 => "secp384r1",
        NamedGroup::secp521r1 => "secp521r1",
        _ => "other",
    })
}
