//! What a trust publishes: a verifier for the other side's certificate.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;

use super::domains::Domains;
use super::revocation::Lists;
use crate::config::plan::{Peers, TlsVersion};
use crate::expiry::Lifetime;
use crate::x509;

/// One validated generation of a trust.
#[derive(Debug)]
pub struct TrustSnapshot {
    /// The trust's name in the Plan.
    pub name: Arc<str>,
    /// Grows by one with every published change of this trust, starting at 1.
    pub generation: u64,
    /// Verifies chain, dates and name. There is no variant that does not.
    pub verifier: Arc<dyn ServerCertVerifier>,
    /// The roots themselves, for whoever verifies clients; none where each trust domain has its own.
    pub anchors: Arc<rustls::RootCertStore>,
    /// Those of trust domains, where they come from SPIFFE.
    pub domains: Option<Arc<Domains>>,
    /// How many roots it holds. Never zero.
    pub roots: usize,
    /// Those that expire first, the very first one before the others.
    pub dates: Vec<RootDates>,
    /// What is known of revoked certificates, for whoever verifies clients.
    pub lists: Arc<Lists>,
    /// Who is taken of those that the roots vouch for; [`Self::verifier`] knows already.
    pub peers: Peers,
    /// The oldest TLS that is spoken with whoever is verified by it.
    pub tls_min: TlsVersion,
}

/// How many roots of a trust are watched for their end: a system's store has 140, and the first to end matters first.
pub const WATCHED_ROOTS: usize = 8;

/// A root's name and dates. Verification does not look at a root's dates (RFC 5280 section 6.1.1 (d)); others do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootDates {
    /// Its subject.
    pub subject: String,
    /// Its serial, in hexadecimal.
    pub serial: String,
    /// When it is valid.
    pub lifetime: Lifetime,
}

impl RootDates {
    /// Those of a certificate; `None` where it cannot be read.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let certificate = x509::parse(der).ok()?;
        let validity = certificate.validity();
        Some(Self {
            subject: x509::distinguished_name(certificate.subject()),
            serial: x509::serial(&certificate),
            lifetime: Lifetime {
                not_before: x509::moment(validity.not_before),
                not_after: x509::moment(validity.not_after),
            },
        })
    }

    /// Those that end first, each once.
    pub(super) fn first_to_end(mut all: Vec<Self>) -> Vec<Self> {
        all.sort_by(|one, other| {
            let key = |root: &Self| (root.lifetime.not_after, root.lifetime.not_before);
            key(one).cmp(&key(other)).then_with(|| one.subject.cmp(&other.subject))
        });
        let mut first: Vec<Self> = Vec::new();
        for root in all {
            let same = |known: &Self| known.subject == root.subject && known.serial == root.serial;
            if first.len() < WATCHED_ROOTS && !first.iter().any(same) {
                first.push(root);
            }
        }
        first
    }
}

#[cfg(test)]
impl TrustSnapshot {
    /// Of these roots alone, without revocation.
    pub(crate) fn of_roots(anchors: Arc<rustls::RootCertStore>) -> Self {
        let provider = crate::crypto::provider();
        let builder =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::clone(&anchors), provider);
        Self {
            name: "t".into(),
            generation: 1,
            verifier: builder.build().unwrap(),
            roots: anchors.len(),
            anchors,
            dates: Vec::new(),
            lists: Arc::default(),
            domains: None,
            peers: Peers::default(),
            tls_min: TlsVersion::default(),
        }
    }
}

/// The current generation; `None` until the first one was loaded.
pub type SharedTrust = Arc<arc_swap::ArcSwapOption<TrustSnapshot>>;
