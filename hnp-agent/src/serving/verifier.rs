//! Whether a pod's certificate is accepted: chain and dates by webpki, version 1 by [`super::version1`], and then the
//! names that the route asks for.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};

use super::certificate::ClientCertificate;
use super::version1::Version1;
use crate::config::end_to_end::ClientName;
use crate::config::plan::Peers;
use crate::trust::domains::Domains;
use crate::trust::peer::{self, Refused};
use crate::trust::revocation::Lists;
use crate::trust::snapshot::TrustSnapshot;

/// Verifies pods' certificates on one route's terms.
#[derive(Debug)]
pub(super) struct PodVerifier {
    authority: Authority,
    algorithms: WebPkiSupportedAlgorithms,
    /// Whom the trust takes, whatever the route.
    peers: Peers,
    /// Empty: whoever the anchors vouch for.
    names: Vec<ClientName>,
}

/// Who vouches for pods.
#[derive(Debug)]
enum Authority {
    /// Roots, each for all.
    Roots { inner: Arc<dyn ClientCertVerifier>, anchors: Arc<RootCertStore>, lists: Arc<Lists> },
    /// Each trust domain for its own.
    Domains(Arc<Domains>),
}

impl PodVerifier {
    /// By all that a trust says.
    ///
    /// # Errors
    /// There is no root.
    pub(super) fn by(trust: &TrustSnapshot, names: Vec<ClientName>) -> Result<Self, String> {
        let verifier = match &trust.domains {
            Some(domains) => {
                let algorithms = crate::crypto::provider().signature_verification_algorithms;
                let authority = Authority::Domains(Arc::clone(domains));
                Self { authority, algorithms, peers: Peers::default(), names }
            }
            None => Self::of(Arc::clone(&trust.anchors), Arc::clone(&trust.lists), names)?,
        };
        Ok(Self { peers: trust.peers.clone(), ..verifier })
    }

    /// # Errors
    /// There is no root.
    pub(super) fn of(
        anchors: Arc<RootCertStore>,
        lists: Arc<Lists>,
        names: Vec<ClientName>,
    ) -> Result<Self, String> {
        let provider = crate::crypto::provider();
        let algorithms = provider.signature_verification_algorithms;
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(&anchors), provider);
        let inner = lists.for_clients(builder).build().map_err(|error| error.to_string())?;
        let authority = Authority::Roots { inner, anchors, lists };
        Ok(Self { authority, algorithms, peers: Peers::default(), names })
    }

    pub(super) fn names(&self) -> &[ClientName] {
        &self.names
    }

    fn check_names(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if self.names.is_empty() {
            return Ok(());
        }
        let certificate = ClientCertificate::of(leaf)?;
        let allowed = |name: &ClientName| {
            certificate.uris.iter().any(|uri| name.matches_uri(uri))
                || certificate.dns_names().any(|dns| name.matches_dns(&dns.to_ascii_lowercase()))
        };
        if self.names.iter().any(allowed) { Ok(()) } else { Err(CertificateError::NotValidForName.into()) }
    }
}

impl ClientCertVerifier for PodVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        match &self.authority {
            Authority::Roots { inner, .. } => inner.root_hint_subjects(),
            // Nobody chooses an SVID by its issuer's name.
            Authority::Domains(_) => &[],
        }
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match &self.authority {
            Authority::Domains(domains) => domains.verify_client(leaf, above, now)?,
            Authority::Roots { inner, anchors, lists } => match Version1::of(leaf)? {
                Some(old) => old.verify(anchors, lists, self.algorithms, now)?,
                None => {
                    inner.verify_client_cert(leaf, above, now)?;
                }
            },
        }
        peer::check(&self.peers, leaf).map_err(Refused::into_error)?;
        self.check_names(leaf)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match Version1::of(leaf)? {
            Some(old) => old.verify_tls12(message, signed, self.algorithms),
            None => verify_tls12_signature(message, leaf, signed, &self.algorithms),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match Version1::of(leaf)? {
            Some(old) => {
                let key = SubjectPublicKeyInfoDer::from(old.public_key());
                verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
            }
            None => verify_tls13_signature(message, leaf, signed, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
