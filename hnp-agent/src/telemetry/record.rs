//! The one record that is written when a request (HTTP) or a connection (everything else) ends.
//!
//! Access line and counters are made from the same record, so they cannot disagree.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hnp_common::Reason;

use crate::config::plan::Route;
use crate::serving::certificate::ClientTls;
use crate::workload::Workload;

/// One finished request or connection. Never holds a header value, a query string or a body.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// When it began (first byte of the request, or accept).
    pub started: SystemTime,
    /// From then to the end.
    pub duration: Duration,
    /// Names the connection: unique on this node while the agent runs; also in error bodies.
    pub flow_id: u64,
    /// The route's name; `None` where the connection never reached one.
    pub route: Option<Arc<str>>,
    /// `reverse-proxy`, `end-to-end`, `tunnel`, `opaque` or `passthrough`: how the bytes were carried.
    pub mode: &'static str,
    /// Who called.
    pub workload: Arc<Workload>,
    /// The client's address as the agent sees it.
    pub client: SocketAddr,
    /// What the client dialled.
    pub destination: Option<Dialled>,
    /// The client dialled the VIP itself, not the destination.
    pub direct: bool,
    /// How long its connection has waited to begin a TLS handshake, in milliseconds, because the workload had begun as many as it may.
    pub handshake_wait_ms: u32,
    /// The client's TLS, where it ended here.
    pub client_tls: Option<Arc<ClientTls>>,
    /// The upstream's authority and the address that was used, when one was dialled.
    pub upstream: Option<UpstreamRecord>,
    /// What the client spoke, where there is a request.
    pub client_protocol: HttpVersion,
    /// The request, on HTTP routes.
    pub http: Option<HttpRecord>,
    /// Payload bytes from the client to the upstream (HTTP: head and body as received).
    pub bytes_up: u64,
    /// Payload bytes from the upstream to the client (HTTP: head and body as sent).
    pub bytes_down: u64,
    /// Why it ended.
    pub reason: Reason,
    /// The developer's words for a failure; never key material, never a header value.
    pub detail: Option<String>,
}

impl AccessRecord {
    /// Takes all that it holds; what stays is not to be used.
    pub fn take(&mut self) -> Self {
        let nothing = Self {
            workload: Arc::clone(&self.workload),
            route: None,
            destination: None,
            client_tls: None,
            upstream: None,
            http: None,
            detail: None,
            ..*self
        };
        std::mem::replace(self, nothing)
    }
}

/// What a client dialled. No larger than an address: connections keep it.
#[derive(Clone, Debug)]
pub enum Dialled {
    /// Itself, and was captured.
    Address(SocketAddr),
    /// The gateway, and asked it for this.
    Asked(Arc<AskedRecord>),
}

impl Dialled {
    /// The address, where there is one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(addr) => Some(*addr),
            Self::Asked(asked) => asked.address,
        }
    }
}

/// What a client of the gateway asked for.
#[derive(Clone, Debug)]
pub struct AskedRecord {
    /// `connect`, `absolute` or `origin`: in which form.
    pub form: &'static str,
    /// Host and port; `None` where a request in origin-form named none.
    pub authority: Option<String>,
    /// The same, where it is an address.
    pub address: Option<SocketAddr>,
}

/// The upstream side of a record.
#[derive(Clone, Debug)]
pub struct UpstreamRecord {
    /// Where it is as configured.
    pub way: Arc<WayRecord>,
    /// The address dialled, the proxy's where there is one; `None` if it never came to that.
    pub addr: Option<SocketAddr>,
    /// What was spoken; `None` where the bytes are not ours to understand.
    pub protocol: Option<HttpVersion>,
    /// The connection came from the pool, or other requests share it.
    pub reused: bool,
    /// Resolve, TCP connect and TLS handshake together; zero when reused.
    pub connect: Duration,
    /// How long it waited because the upstream could not be dialled; zero where it could at once.
    pub outage: Duration,
    /// From the last byte of the request's head sent to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// Such as `TLSv1.3`; `None` in cleartext (passthrough).
    pub tls_version: Option<&'static str>,
    /// Such as `X25519MLKEM768`.
    pub key_exchange: Option<&'static str>,
    /// The generation of the identity that was presented.
    pub identity_generation: Option<u64>,
    /// The SPIFFE ID in it, where it was issued for the workload.
    pub spiffe_id: Option<Arc<str>>,
}

/// An HTTP, by what ALPN calls it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HttpVersion {
    /// `http/1.1`
    Http1,
    /// `h2`
    H2,
}

impl HttpVersion {
    /// The word in access lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::H2 => "h2",
        }
    }
}

/// The way to an upstream as configured; shared by all records of a connection, which stay small so.
#[derive(Clone, Debug)]
pub struct WayRecord {
    /// The upstream's authority: host and port, or the address of a passthrough.
    pub authority: String,
    /// The name of the proxy on the way.
    pub proxy: Option<Arc<str>>,
}

impl WayRecord {
    /// The way to a route's upstream.
    pub fn of(route: &Route) -> Self {
        let proxy = route.through().map(|through| Arc::clone(&through.proxy.name));
        Self { authority: route.upstream.authority.clone(), proxy }
    }

    /// The way to where a client was going.
    pub fn direct(destination: String) -> Self {
        Self { authority: destination, proxy: None }
    }
}

/// The HTTP side of a record.
#[derive(Clone, Debug, Default)]
pub struct HttpRecord {
    /// The method as sent.
    pub method: String,
    /// The path without the query: queries carry account ids and keys.
    pub path: String,
    /// Status of the answer that the client got; 0 if it got none.
    pub status: u16,
}
