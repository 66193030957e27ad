//! Whether a pod's certificate is accepted: chain and dates by webpki, version 1 by [`super::version1`], and then the
//! names that the route asks for.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};

use super::certificate::ClientCertificate;
use super::version1::Version1;
use crate::config::end_to_end::ClientName;
use crate::trust::revocation::Lists;

/// Verifies pods' certificates on one route's terms.
#[derive(Debug)]
pub(super) struct PodVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    anchors: Arc<RootCertStore>,
    lists: Arc<Lists>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Empty: whoever the anchors vouch for.
    names: Vec<ClientName>,
}

impl PodVerifier {
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
        Ok(Self { inner, anchors, lists, algorithms, names })
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
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match Version1::of(leaf)? {
            Some(old) => old.verify(&self.anchors, &self.lists, self.algorithms, now)?,
            None => {
                self.inner.verify_client_cert(leaf, above, now)?;
            }
        }
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
            None => self.inner.verify_tls12_signature(message, leaf, signed),
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
            None => self.inner.verify_tls13_signature(message, leaf, signed),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
