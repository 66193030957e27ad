//! Where pods' TLS ends, on a route or at the gateway: what is shown to pods, and which certificates they must hold.

use std::fmt;
use std::sync::Arc;

use super::plan::{NamePattern, ReverseProxy};

/// What a route needs that ends pods' TLS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndToEnd {
    /// How what was decrypted goes on.
    pub onward: ReverseProxy,
    /// On what terms pods' TLS ends.
    pub tls: PodTls,
}

/// On what terms pods' TLS ends at the agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodTls {
    /// Indices into [`Plan::identities`](super::plan::Plan::identities) of what is shown to pods, by SNI; the first where no other fits. Never
    /// empty.
    pub serving: Vec<usize>,
    /// Which certificates pods must hold.
    pub client_auth: ClientAuth,
}

/// Which certificates pods must hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClientAuth {
    /// None is asked for.
    None,
    /// One that these terms allow.
    Required {
        /// Index into [`Plan::trusts`](super::plan::Plan::trusts).
        trust: usize,
        /// Who among those the trust vouches for; empty: all of them.
        names: Vec<ClientName>,
    },
}

/// A name that a pod's certificate may carry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClientName {
    /// A DNS name, or the common name of a certificate that has no other.
    Dns(NamePattern),
    /// A URI, such as a SPIFFE ID.
    Uri(Arc<str>),
    /// Every URI that begins so; it ends with a slash.
    UriBelow(Arc<str>),
}

impl ClientAuth {
    /// The word in the configuration and in reports.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Required { .. } => "required",
        }
    }
}

impl ClientName {
    /// Whether a DNS name (lower case) is meant.
    pub fn matches_dns(&self, name: &str) -> bool {
        matches!(self, Self::Dns(pattern) if pattern.matches(name))
    }

    /// Whether a URI is meant, byte for byte.
    pub fn matches_uri(&self, uri: &str) -> bool {
        match self {
            Self::Dns(_) => false,
            Self::Uri(exact) => **exact == *uri,
            Self::UriBelow(prefix) => uri.len() > prefix.len() && uri.starts_with(&**prefix),
        }
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(pattern) => pattern.fmt(f),
            Self::Uri(exact) => f.write_str(exact),
            Self::UriBelow(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_uris_are_told_apart() {
        let dns = ClientName::Dns(NamePattern::Below("pods.test".into()));
        assert!(dns.matches_dns("a.pods.test") && !dns.matches_dns("pods.test"));
        assert!(!dns.matches_uri("a.pods.test"));
        let uri = ClientName::Uri("spiffe://t/ns/a".into());
        assert!(uri.matches_uri("spiffe://t/ns/a") && !uri.matches_uri("spiffe://t/ns/ab"));
        assert!(!uri.matches_uri("spiffe://T/ns/a") && !uri.matches_dns("spiffe://t/ns/a"));
        let below = ClientName::UriBelow("spiffe://t/ns/a/".into());
        assert!(below.matches_uri("spiffe://t/ns/a/sa/b"));
        for other in ["spiffe://t/ns/a/", "spiffe://t/ns/a", "spiffe://t/ns/ab/sa/b"] {
            assert!(!below.matches_uri(other), "{other}");
        }
        assert_eq!(below.to_string(), "spiffe://t/ns/a/*");
    }
}
