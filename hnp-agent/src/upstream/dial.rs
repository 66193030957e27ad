//! From a route to an open connection: resolve, TCP, TLS, each with its deadline and its reasons.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use hnp_common::Reason;
use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{ConnectionInfo, Io, PoolKey, UpstreamConnection, Upstreams};
use crate::config::plan::{Host, Route, RouteIndex};
use crate::resolve::ResolveError;
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
}

impl Upstreams {
    pub(super) async fn dial_tls(
        &self,
        route: RouteIndex,
        key: Rc<PoolKey>,
    ) -> Result<UpstreamConnection, DialError> {
        let plan = &self.plan().routes[route];
        let started = Instant::now();
        let (tcp, addr) = self.reach(plan).await?;

        let failed = |reason, detail| DialError { reason, detail, addr: Some(addr) };
        let config = self
            .shared
            .configs
            .borrow_mut()
            .config(&key)
            .map_err(|error| failed(Reason::Internal, error.to_string()))?;
        let handshake = TlsConnector::from(config).connect(key.server_name.clone(), tcp);
        let tls = match timeout(plan.timeouts.tls, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                return Err(failed(trust::reason_of_io(&error), error.to_string()));
            }
            Err(_) => {
                let detail = format!("no TLS handshake within {:?}", plan.timeouts.tls);
                return Err(failed(Reason::UpstreamTlsTimeout, detail));
            }
        };
        let info = ConnectionInfo {
            authority: plan.upstream.authority.as_str().into(),
            addr,
            connect: started.elapsed(),
            tls_version: tls_version(&tls),
            key_exchange: key_exchange(&tls),
            resumed: tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed),
            identity_generation: Some(key.identity.generation),
        };
        Ok(UpstreamConnection {
            io: Io::Tls(Box::new(tls)),
            info: Rc::new(info),
            reused: false,
            key: Some(key),
        })
    }

    pub(super) async fn dial_plain(&self, route: RouteIndex) -> Result<UpstreamConnection, DialError> {
        let plan = &self.plan().routes[route];
        let started = Instant::now();
        let (tcp, addr) = self.reach(plan).await?;
        let authority = plan.upstream.authority.as_str().into();
        Ok(UpstreamConnection::plain(tcp, authority, addr, started.elapsed()))
    }

    /// The way to a route's upstream, before anything is said on it; and the address it goes to.
    async fn reach(&self, plan: &Route) -> Result<(TcpStream, SocketAddr), DialError> {
        let started = Instant::now();
        let addrs = self.addresses(&plan.upstream.host, plan.upstream.port, plan.timeouts.connect).await?;
        let tcp = self.tcp(&addrs, plan.timeouts.connect.saturating_sub(started.elapsed())).await?;
        let addr = tcp.peer_addr().unwrap_or(addrs[0]);
        Ok((tcp, addr))
    }

    async fn addresses(
        &self,
        host: &Host,
        port: u16,
        deadline: Duration,
    ) -> Result<Vec<SocketAddr>, DialError> {
        let failed = |reason, detail| DialError { reason, detail, addr: None };
        let addrs = match host {
            Host::Addr(addr) => vec![*addr],
            Host::Name(name) => match timeout(deadline, self.resolver.lookup(host)).await {
                Ok(Ok(resolved)) => resolved.addrs,
                Ok(Err(ResolveError::NotFound)) => {
                    return Err(failed(Reason::UpstreamNameNotFound, format!("{name} has no address")));
                }
                Ok(Err(ResolveError::Failed(error))) => {
                    return Err(failed(Reason::UpstreamDnsFailed, format!("{name}: {error}")));
                }
                Err(_) => {
                    return Err(failed(
                        Reason::UpstreamDnsFailed,
                        format!("{name}: no answer within {deadline:?}"),
                    ));
                }
            },
        };
        Ok(addrs.into_iter().map(|addr| SocketAddr::new(addr, port)).collect())
    }

    /// Tries the addresses in order; each gets an equal share of what is left of `deadline`, so that
    /// one dead address does not use up the time of the others.
    pub(super) async fn tcp(&self, addrs: &[SocketAddr], deadline: Duration) -> Result<TcpStream, DialError> {
        let end = Instant::now() + deadline;
        let mut last = DialError {
            reason: Reason::UpstreamNameNotFound,
            detail: "the name has no address".into(),
            addr: None,
        };
        for (tried, addr) in addrs.iter().enumerate() {
            let failed = |reason, detail| DialError { reason, detail, addr: Some(*addr) };
            let mut note = |error: DialError| {
                if tried == 0 || tells(error.reason) > tells(last.reason) {
                    last = error;
                }
            };
            if self.is_vip(addr.ip()) {
                note(failed(
                    Reason::UpstreamUnreachable,
                    format!("{addr} is a VIP of this node: the upstream would be hnp"),
                ));
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addrs.len() - tried).unwrap_or(1);
            match timeout_at(Instant::now() + share, TcpStream::connect(addr)).await {
                Ok(Ok(tcp)) => {
                    // Heads and small bodies must not wait for an ACK (Nagle); a failure costs only latency.
                    let _ = tcp.set_nodelay(true);
                    return Ok(tcp);
                }
                Ok(Err(error)) => note(failed(tcp_reason(&error), format!("{addr}: {error}"))),
                Err(_) => {
                    note(failed(
                        Reason::UpstreamConnectTimeout,
                        format!("{addr}: no connection within {share:?}"),
                    ));
                }
            }
        }
        Err(last)
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

fn tls_version(tls: &TlsStream<TcpStream>) -> Option<&'static str> {
    match tls.get_ref().1.protocol_version()? {
        ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
        ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
        _ => None,
    }
}

fn key_exchange(tls: &TlsStream<TcpStream>) -> Option<&'static str> {
    Some(match tls.get_ref().1.negotiated_key_exchange_group()?.name() {
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
