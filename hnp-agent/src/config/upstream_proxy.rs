//! A corporate proxy that upstreams are dialled through: what is known of it, and which upstreams it
//! is not for.
//!
//! `no_proxy` follows curl where users' lists come from environment variables: a name stands for itself
//! and everything below it, with or without a dot in front. Addresses and ranges are compared with
//! upstreams that are written as addresses; no name is resolved for it, because behind such a proxy
//! names often resolve nowhere else.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;

use super::plan::{Cidr, Host};

/// A proxy that opens tunnels by CONNECT (RFC 9110 section 9.3.6).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamProxy {
    /// The name routes refer to.
    pub name: Arc<str>,
    /// The host that is dialled.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
    /// TLS to the proxy itself; `None` speaks to it in cleartext.
    pub tls: Option<ProxyTls>,
    /// Who the proxy is told asks.
    pub credentials: ProxyCredentials,
    /// Upstreams that are dialled without it.
    pub no_proxy: Vec<NoProxy>,
    /// Its deadlines.
    pub timeouts: ProxyTimeouts,
}

/// How a proxy is verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProxyTls {
    /// The name of the trust; routes carry its place in the Plan.
    pub trust: Arc<str>,
    /// The name the proxy's certificate must carry and that SNI announces.
    pub server_name: ServerName<'static>,
}

/// Where the credentials for a proxy come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProxyCredentials {
    /// It asks for none.
    None,
    /// They stood in the URL.
    Url(BasicCredentials),
    /// A file with one line, read anew for every tunnel: a secret that changes needs no reload.
    File(PathBuf),
}

/// `user:password` as RFC 7617 has them. Nothing shows them but [`Self::as_bytes`].
#[derive(Clone, Eq, PartialEq)]
pub struct BasicCredentials(Vec<u8>);

/// A proxy's deadlines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProxyTimeouts {
    /// Resolve and TCP connect to the proxy.
    pub connect: Duration,
    /// TLS handshake with the proxy.
    pub tls: Duration,
    /// From CONNECT to the end of the answer's head: the proxy resolves and dials in this time.
    pub answer: Duration,
}

/// Upstreams that are dialled without the proxy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NoProxy {
    /// `*`: all of them.
    All,
    /// `example.com` or `.example.com`: the name and every name below it, as in curl.
    Name(Arc<str>),
    /// `*.example.com`: every name below it, not the name itself, as in `passthrough`.
    Below(Arc<str>),
    /// An address or a range.
    Net(Cidr),
}

/// Why a line is no credentials. Never quotes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CredentialsError {
    /// Nothing between user and password.
    #[error("has no colon; expected one line, user:password")]
    NoColon,
    /// More than one line.
    #[error("has more than one line; expected one, user:password")]
    Lines,
    /// RFC 7617 section 2.
    #[error("has a control character in it; expected one line, user:password")]
    Control,
    /// Too long for any proxy's limit of a head.
    #[error("is longer than 4096 bytes; expected one line, user:password")]
    TooLong,
}

impl BasicCredentials {
    /// From `user:password`; the first colon parts them.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CredentialsError> {
        if bytes.len() > 4096 {
            return Err(CredentialsError::TooLong);
        }
        if bytes.contains(&b'\n') {
            return Err(CredentialsError::Lines);
        }
        if bytes.iter().any(u8::is_ascii_control) {
            return Err(CredentialsError::Control);
        }
        if !bytes.contains(&b':') {
            return Err(CredentialsError::NoColon);
        }
        Ok(Self(bytes.to_owned()))
    }

    /// From a file's content: one line, with or without a line end.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn parse_file(bytes: &[u8]) -> Result<Self, CredentialsError> {
        let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        Self::parse(line.strip_suffix(b"\r").unwrap_or(line))
    }

    /// `user:password`, for the header.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for BasicCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl UpstreamProxy {
    /// Whether an upstream is dialled without it.
    pub fn is_not_for(&self, upstream: &Host) -> bool {
        self.no_proxy.iter().any(|rule| rule.matches(upstream))
    }

    /// Host and port, as people write them.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl NoProxy {
    fn matches(&self, upstream: &Host) -> bool {
        let below = |name: &str, parent: &str| {
            name.strip_suffix(parent).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
        };
        match (self, upstream) {
            (Self::All, _) => true,
            (Self::Name(parent), Host::Name(name)) => name == parent || below(name, parent),
            (Self::Below(parent), Host::Name(name)) => below(name, parent),
            (Self::Net(net), Host::Addr(addr)) => net.contains(*addr),
            (Self::Name(_) | Self::Below(_), Host::Addr(_)) | (Self::Net(_), Host::Name(_)) => false,
        }
    }
}

impl From<IpAddr> for NoProxy {
    fn from(addr: IpAddr) -> Self {
        Self::Net(Cidr::host(addr))
    }
}

impl fmt::Display for NoProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Name(name) => f.write_str(name),
            Self::Below(parent) => write!(f, "*.{parent}"),
            Self::Net(net) => match net.single() {
                Some(addr) => addr.fmt(f),
                None => net.fmt(f),
            },
        }
    }
}

impl fmt::Display for UpstreamProxy {
    /// As a URL, without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_one_line_and_are_never_shown() {
        for (text, inner) in [
            ("user:pass", "user:pass"),
            ("user:pass\n", "user:pass"),
            ("user:pass\r\n", "user:pass"),
            ("user:pa:ss word%@", "user:pa:ss word%@"),
            ("user:", "user:"),
            (":", ":"),
            ("üser:pässword\n", "üser:pässword"),
        ] {
            let credentials = BasicCredentials::parse_file(text.as_bytes()).unwrap();
            assert_eq!(credentials.as_bytes(), inner.as_bytes());
            assert_eq!(format!("{credentials:?}"), "***");
        }
        for (text, error) in [
            ("", CredentialsError::NoColon),
            ("secret", CredentialsError::NoColon),
            ("a:secret\nb:secret\n", CredentialsError::Lines),
            ("a:secret\n\n", CredentialsError::Lines),
            ("a:sec\tret", CredentialsError::Control),
            ("a:sec\rret", CredentialsError::Control),
        ] {
            assert_eq!(BasicCredentials::parse_file(text.as_bytes()), Err(error), "{text:?}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn a_plain_name_is_the_name_and_all_below_it() {
        let name = |text: &str| Host::Name(text.into());
        let rule = NoProxy::Name("example.com".into());
        for inside in ["example.com", "a.example.com", "a.b.example.com"] {
            assert!(rule.matches(&name(inside)), "{inside}");
        }
        for outside in ["xexample.com", "example.com.evil.test", "com", "example.org"] {
            assert!(!rule.matches(&name(outside)), "{outside}");
        }
        let below = NoProxy::Below("example.com".into());
        assert!(below.matches(&name("a.example.com")) && !below.matches(&name("example.com")));
        assert!(!below.matches(&name("xexample.com")));
    }

    #[test]
    fn addresses_and_ranges_are_for_upstreams_written_as_addresses() {
        let host = |text: &str| Host::Addr(text.parse().unwrap());
        let net = NoProxy::Net(Cidr { addr: "10.0.0.0".parse().unwrap(), prefix: 8 });
        assert!(net.matches(&host("10.255.0.1")) && !net.matches(&host("11.0.0.1")));
        assert!(!net.matches(&Host::Name("ten.example.com".into())), "nothing is resolved for it");
        let net6 = NoProxy::Net(Cidr { addr: "fd00::".parse().unwrap(), prefix: 64 });
        assert!(net6.matches(&host("fd00::1")) && !net6.matches(&host("fd00:0:0:1::1")));
        let one = NoProxy::from("10.0.0.1".parse::<IpAddr>().unwrap());
        assert!(one.matches(&host("10.0.0.1")) && !one.matches(&host("10.0.0.2")));
        assert_eq!(one.to_string(), "10.0.0.1");
        for all in [host("10.0.0.1"), host("fd00::1"), Host::Name("a.test".into())] {
            assert!(NoProxy::All.matches(&all));
        }
    }
}
