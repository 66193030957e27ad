//! SPIFFE bundles: each trust domain vouches for its own, and for nobody else.
//!
//! A federated domain's CA could sign an ID of ours; with all roots in one store it would be believed. So the ID is read first,
//! and says which roots are asked (SPIFFE Workload API section 4.6).

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::load::Loaded;
use super::peer::{self, Refused};
use super::revocation::Lists;
use super::snapshot::RootDates;
use crate::config::plan::{Peers, Trust};
use crate::config::spiffe::TrustDomain;
use crate::spiffe::certificates;
use crate::spiffe::error::Trouble;
use crate::spiffe::wire::X509Bundles;

/// Roots by the trust domain that they are of.
#[derive(Debug)]
pub struct Domains {
    all: BTreeMap<TrustDomain, Domain>,
    /// Whether there are revocation lists.
    lists: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Domain {
    roots: Arc<RootCertStore>,
    /// Of workloads that dial; with the revocation lists.
    clients: Arc<dyn ClientCertVerifier>,
}

impl Domains {
    /// The roots that may vouch for a leaf.
    fn of(&self, leaf: &[u8]) -> Result<&Domain, Error> {
        let id = crate::spiffe::id_of_leaf(leaf).map_err(|why| Refused::NoSvid(why).into_error())?;
        self.all.get(id.domain()).ok_or_else(|| {
            let known = self.all.keys().map(ToString::to_string).collect();
            Refused::UnknownDomain { domain: id.domain().clone(), known }.into_error()
        })
    }

    /// Whether a workload that dials is who it says: chain, dates, use, and revocation where there are lists.
    ///
    /// # Errors
    /// It is not.
    pub fn verify_client(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.of(leaf)?.clients.verify_client_cert(leaf, above, now).map(drop)
    }

    /// The same for one that is dialled. Its host's name is no part of an SVID.
    fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let domain = self.of(leaf)?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &domain.roots, above, now, self.algorithms.all)?;
        if self.lists {
            // rustls looks at lists where it looks at a host's name, or at a client. An SVID that says what it is for
            // is for both (X509-SVID section 4.4).
            domain.clients.verify_client_cert(leaf, above, now)?;
        }
        Ok(())
    }
}

/// Verifies servers by their trust domain's bundle.
#[derive(Debug)]
struct ByDomain {
    domains: Arc<Domains>,
    peers: Peers,
}

impl ServerCertVerifier for ByDomain {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.domains.verify_server(leaf, above, now)?;
        peer::check(&self.peers, leaf).map_err(Refused::into_error)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, &self.domains.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.domains.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.domains.algorithms.supported_schemes()
    }
}

/// A message of bundles as a trust. Whole or not at all: half of the domains would be an outage for the others' pods.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read(message: &[u8], trust: &Trust) -> Result<Loaded, Trouble> {
    let bundles = X509Bundles::read(message).map_err(|error| Trouble::Unreadable(error.to_string()))?;
    let (mut dates, mut warnings, mut stores) = (Vec::new(), Vec::new(), Vec::new());
    for (id, der) in bundles.bundles {
        let bad = |why: String| Trouble::BadBundle { domain: id.escape_debug().to_string(), why };
        let domain = TrustDomain::of_id(id).map_err(|why| bad(why.into()))?;
        if der.is_empty() {
            // It has none for certificates, but may have for tokens.
            continue;
        }
        let mut store = RootCertStore::empty();
        let mut why = Vec::new();
        for root in certificates(der).map_err(bad)? {
            let of_this = RootDates::of(&root);
            match store.add(root) {
                Ok(()) => dates.extend(of_this),
                Err(error) => why.push(format!("a certificate of it cannot be a root: {error}")),
            }
        }
        if store.is_empty() {
            return Err(bad(why.join("; ")));
        }
        warnings.extend(why.into_iter().map(|why| format!("the bundle of {domain}: {why}")));
        stores.push((domain, Arc::new(store)));
    }
    let Some((_, any)) = stores.first() else {
        return Err(Trouble::Unreadable("no bundle in it has a certificate".into()));
    };
    let lists = Lists::of_api(&bundles.crls, any)
        .map_err(|error| Trouble::Unreadable(format!("a revocation list: {error}")))?;
    let roots = stores.iter().map(|(_, store)| store.len()).sum();
    let provider = crate::crypto::provider();
    let algorithms = provider.signature_verification_algorithms;
    let mut all = BTreeMap::new();
    for (domain, roots) in stores {
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let clients = lists.for_clients(builder).build();
        let bad = |why: String| Trouble::BadBundle { domain: domain.to_string(), why };
        let clients = clients.map_err(|error| bad(error.to_string()))?;
        all.insert(domain, Domain { roots, clients });
    }
    let domains = Arc::new(Domains { all, lists: lists.count() > 0, algorithms });
    Ok(Loaded {
        verifier: Arc::new(ByDomain { domains: Arc::clone(&domains), peers: trust.peers.clone() }),
        anchors: Arc::new(RootCertStore::empty()),
        domains: Some(domains),
        roots,
        dates: RootDates::first_to_end(dates),
        lists: Arc::new(lists),
        peers: trust.peers.clone(),
        tls_min: trust.tls_min,
        warnings,
    })
}
