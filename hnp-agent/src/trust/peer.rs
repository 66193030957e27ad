//! Whom a trust takes, of all that its roots vouch for: by SPIFFE ID, by DNS name.
//!
//! A root of a company vouches for whoever works there. rustls looks at the server's name and at nothing else; this is
//! asked after it, of every chain, so that it can only take away.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::GeneralName;

use crate::config::plan::Peers;
use crate::config::spiffe::TrustDomain;
use crate::{spiffe, x509};

/// Names of a certificate that are said; who has more has them signed for other reasons.
const SAID: usize = 8;

/// Why a peer is not taken, although a root may vouch for it.
#[derive(Clone, Eq, PartialEq)]
pub enum Refused {
    /// It is somebody else.
    Name {
        /// What it is called.
        has: Vec<String>,
        /// Who is taken.
        wanted: Vec<String>,
    },
    /// Its certificate names nobody in the way of SPIFFE.
    NoSvid(String),
    /// Nobody here speaks for its trust domain.
    UnknownDomain {
        /// The domain.
        domain: TrustDomain,
        /// Those with a bundle.
        known: Vec<String>,
    },
}

impl Refused {
    /// As rustls hands it on.
    pub fn into_error(self) -> Error {
        CertificateError::Other(OtherError(Arc::new(self))).into()
    }

    /// What of a verifier's error is one of these.
    pub fn within(error: &CertificateError) -> Option<&Self> {
        match error {
            CertificateError::Other(OtherError(inner)) => inner.downcast_ref(),
            _ => None,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { has, wanted } => {
                let has =
                    if has.is_empty() { "nobody (it has no such names)".into() } else { has.join(", ") };
                write!(f, "its certificate is for {has}, and the trust takes {}", wanted.join(", "))
            }
            Self::NoSvid(why) => write!(f, "its certificate is no X509-SVID: {why}"),
            Self::UnknownDomain { domain, known } => write!(
                f,
                "nobody here speaks for its trust domain {domain}: there are bundles of {}; federate with it (spire-server \
                 bundle set, and -federatesWith in the agent's entry)",
                known.join(", ")
            ),
        }
    }
}

/// As for people: rustls' errors print what is in them in this way.
impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Refused {}

/// What an error of TLS says, in words for the log.
pub fn words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(inner) => match Refused::within(inner) {
            Some(refused) => refused.to_string(),
            None => error.to_string(),
        },
        other => other.to_string(),
    }
}

/// Whether a leaf is for somebody who is taken. Its chain is another's business.
///
/// # Errors
/// It is not.
pub fn check(peers: &Peers, leaf: &[u8]) -> Result<(), Refused> {
    if !peers.ids.is_empty() {
        let id = spiffe::id_of_leaf(leaf).map_err(Refused::NoSvid)?;
        if !peers.ids.iter().any(|pattern| pattern.matches(&id)) {
            let wanted = peers.ids.iter().map(ToString::to_string).collect();
            return Err(Refused::Name { has: vec![id.to_string()], wanted });
        }
    }
    if !peers.names.is_empty() {
        let names = dns_names(leaf);
        if !peers.names.iter().any(|pattern| names.iter().any(|name| pattern.matches(name))) {
            let wanted = peers.names.iter().map(ToString::to_string).collect();
            return Err(Refused::Name { has: names.into_iter().take(SAID).collect(), wanted });
        }
    }
    Ok(())
}

/// DNS names in lower case. A common name is none.
fn dns_names(leaf: &[u8]) -> Vec<String> {
    let Ok(leaf) = x509::parse(leaf) else { return Vec::new() };
    let names = x509::alternative_names(&leaf).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().escape_debug().to_string()),
        _ => None,
    });
    names.collect()
}

/// A verifier of servers, and who is taken of those it takes.
#[derive(Debug)]
pub(super) struct Particular {
    pub(super) inner: Arc<dyn ServerCertVerifier>,
    pub(super) peers: Peers,
}

impl ServerCertVerifier for Particular {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(leaf, above, name, ocsp, now)?;
        check(&self.peers, leaf).map_err(Refused::into_error)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
