//! How a route carries connections: the modes, and what each needs.

use super::NamePattern;
use crate::config::end_to_end::EndToEnd;

/// How the pod's bytes are understood.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Protocol {
    /// HTTP/1.1, relayed request by request.
    Http,
    /// Any bytes, relayed as they come over one upstream connection per captured one.
    Opaque,
}

/// How a route carries connections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Plaintext in, mutual TLS out.
    ReverseProxy(ReverseProxy),
    /// The pod's own TLS in, verified; mutual TLS out.
    EndToEnd(EndToEnd),
    /// The pod's own TLS, end to end: its hello is read, and every byte goes on as it came.
    Tunnel(Tunnel),
}

/// What a reverse proxy needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReverseProxy {
    /// How the pod's bytes are understood.
    pub protocol: Protocol,
    /// What ALPN offers the upstream.
    pub upstream_protocol: UpstreamProtocol,
    /// The `Host` of forwarded requests.
    pub authority: Authority,
    /// Index into [`super::Plan::identities`].
    pub identity: usize,
    /// Index into [`super::Plan::trusts`].
    pub trust: usize,
}

/// Which HTTP is spoken with an upstream. Means nothing where [`Protocol::Opaque`] is carried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UpstreamProtocol {
    /// HTTP/2 if the upstream chooses it by ALPN, else HTTP/1.1.
    Auto,
    /// HTTP/1.1, and nothing else is offered.
    Http1,
}

/// The `Host` of forwarded requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Authority {
    /// [`super::Upstream::authority`].
    Upstream,
    /// What the client wrote; the upstream's where a client of HTTP/1.0 wrote none.
    Original,
}

/// What a tunnel needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tunnel {
    /// The server names (SNI) that are carried; of an encrypted hello, the outer one. None, where hellos without
    /// a name are carried.
    pub names: Vec<NamePattern>,
    /// A hello that names no server.
    pub nameless: Unreadable,
    /// A hello whose real name is encrypted (Encrypted Client Hello).
    pub encrypted_hello: Unreadable,
}

/// What becomes of a hello that does not say, or not to everybody, whom it is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unreadable {
    /// The client gets a TLS alert.
    Refuse,
    /// It goes to the upstream.
    Tunnel,
}

impl Mode {
    /// The word in the configuration, in logs and in reports.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::ReverseProxy(_) => "reverse-proxy",
            Self::EndToEnd(_) => "end-to-end",
            Self::Tunnel(_) => "tunnel",
        }
    }
}

impl Protocol {
    /// The word in the configuration and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Opaque => "opaque",
        }
    }
}

impl UpstreamProtocol {
    /// The word in the configuration and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http1 => "http/1.1",
        }
    }
}

impl Authority {
    /// The word in the configuration and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Original => "original",
        }
    }
}

impl Unreadable {
    /// The word in the configuration and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Tunnel => "tunnel",
        }
    }
}

impl Tunnel {
    /// Whether a server name (lower case, without a trailing dot) is carried.
    pub fn carries(&self, name: &str) -> bool {
        self.names.iter().any(|pattern| pattern.matches(name))
    }
}
