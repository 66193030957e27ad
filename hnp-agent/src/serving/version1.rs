//! X.509 version 1 leaves: the vendor's recipe makes them with OpenSSL 3.0, and webpki takes version 3 only.
//!
//! A version 1 certificate has no extensions: no usage, no constraints, no names beside its subject. So it is
//! taken only as a leaf, and only where one of the trust's own roots has signed it (RFC 5280 section 6.1.4 (k)
//! forbids such a certificate above another). Dates and signature are verified as for any other.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{
    CertRevocationListError, CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore,
};
use rustls_pki_types::{AlgorithmIdentifier, CertificateDer, UnixTime};
use x509_parser::asn1_rs::{Any, FromDer as _};
use x509_parser::prelude::{X509Certificate, X509Version};

use crate::trust::revocation::Lists;

/// A certificate of version 1, parsed.
pub(super) struct Version1<'c> {
    certificate: X509Certificate<'c>,
    der: &'c [u8],
}

/// A certificate's signature, as the algorithms want it.
struct Signature<'c> {
    /// What was signed, in DER.
    signed: &'c [u8],
    /// The `AlgorithmIdentifier`'s content.
    algorithm: &'c [u8],
    bits: &'c [u8],
}

/// A public key as webpki's algorithms want it.
struct Key<'k> {
    /// What `AlgorithmIdentifier`s are compared with: the sequence's content.
    algorithm: &'k [u8],
    bits: &'k [u8],
}

impl<'c> Version1<'c> {
    /// `None`: it is of version 3, and webpki's.
    ///
    /// # Errors
    /// It is no certificate, or of a version that nobody uses.
    pub(super) fn of(der: &'c CertificateDer<'_>) -> Result<Option<Self>, Error> {
        let Ok(([], certificate)) = X509Certificate::from_der(der) else {
            return Err(CertificateError::BadEncoding.into());
        };
        match certificate.version() {
            X509Version::V1 => Ok(Some(Self { certificate, der })),
            X509Version::V3 => Ok(None),
            _ => Err(CertificateError::BadEncoding.into()),
        }
    }

    /// The `SubjectPublicKeyInfo`, in DER.
    pub(super) fn public_key(&self) -> &[u8] {
        self.certificate.public_key().raw
    }

    /// Chain, dates, signature and revocation, up to one of the roots.
    pub(super) fn verify(
        &self,
        anchors: &RootCertStore,
        lists: &Lists,
        algorithms: WebPkiSupportedAlgorithms,
        now: UnixTime,
    ) -> Result<(), Error> {
        let validity = self.certificate.validity();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if seconds < validity.not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if seconds > validity.not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        let issuer = content(self.certificate.issuer().as_raw())?;
        let signature = self.signature()?;
        let mut seen = false;
        // Constraints of a root could not be checked: the leaf has no name they are about.
        let roots = anchors.roots.iter().filter(|root| root.name_constraints.is_none());
        for root in roots.filter(|root| root.subject.as_ref() == issuer) {
            seen = true;
            let key = Key::of_content(&root.subject_public_key_info)?;
            if signature.is_by(&key, algorithms) {
                let serial = self.certificate.raw_serial();
                return lists.check(self.certificate.issuer().as_raw(), serial, now, |list| {
                    if Signature::of(list)?.is_by(&key, algorithms) {
                        Ok(())
                    } else {
                        Err(CertRevocationListError::BadSignature.into())
                    }
                });
            }
        }
        Err(if seen { CertificateError::BadSignature } else { CertificateError::UnknownIssuer }.into())
    }

    fn signature(&self) -> Result<Signature<'c>, Error> {
        // The signed part names the algorithm too; an attacker may change the one that is not signed.
        if self.certificate.signature_algorithm != self.certificate.tbs_certificate.signature {
            return Err(CertificateError::BadEncoding.into());
        }
        Signature::of(self.der)
    }

    /// The handshake's signature in TLS 1.2, where several algorithms may stand behind a scheme.
    pub(super) fn verify_tls12(
        &self,
        message: &[u8],
        signed: &DigitallySignedStruct,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = Key::of_content(content(self.public_key())?)?;
        let behind = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let (_, behind) = behind.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let mut fitting = behind.iter().filter(|one| one.public_key_alg_id().as_ref() == key.algorithm);
        if fitting.any(|one| one.verify_signature(key.bits, message, signed.signature()).is_ok()) {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }
}

impl<'c> Signature<'c> {
    /// Of a certificate or a revocation list: both are what was signed, the algorithm, and a string of bits.
    fn of(der: &'c [u8]) -> Result<Self, Error> {
        let bad = |_| Error::from(CertificateError::BadEncoding);
        let all = content(der)?;
        let (after_signed, _) = Any::from_der(all).map_err(bad)?;
        let (rest, algorithm) = Any::from_der(after_signed).map_err(bad)?;
        let (_, bits) = Any::from_der(rest).map_err(bad)?;
        let signed = &all[..all.len() - after_signed.len()];
        Ok(Self { signed, algorithm: algorithm.data, bits: whole_bytes(bits.data)? })
    }

    fn is_by(&self, key: &Key<'_>, algorithms: WebPkiSupportedAlgorithms) -> bool {
        let fits = |one: AlgorithmIdentifier, wanted: &[u8]| one.as_ref() == wanted;
        let mut fitting = algorithms.all.iter().filter(|one| {
            fits(one.public_key_alg_id(), key.algorithm) && fits(one.signature_alg_id(), self.algorithm)
        });
        fitting.any(|one| one.verify_signature(key.bits, self.signed, self.bits).is_ok())
    }
}

impl<'k> Key<'k> {
    /// From the content of a `SubjectPublicKeyInfo`: the algorithm, and a string of bits.
    fn of_content(info: &'k [u8]) -> Result<Self, Error> {
        let bad = |_| Error::from(CertificateError::BadEncoding);
        let (rest, algorithm) = Any::from_der(info).map_err(bad)?;
        let (_, bits) = Any::from_der(rest).map_err(bad)?;
        Ok(Self { algorithm: algorithm.data, bits: whole_bytes(bits.data)? })
    }
}

/// What a tag and a length stand around.
fn content(der: &[u8]) -> Result<&[u8], Error> {
    match Any::from_der(der) {
        Ok((_, any)) => Ok(any.data),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}

/// A string of bits whose first byte, the number of bits not used in the last one, is zero.
fn whole_bytes(bits: &[u8]) -> Result<&[u8], Error> {
    match bits {
        [0, bits @ ..] => Ok(bits),
        _ => Err(CertificateError::BadEncoding.into()),
    }
}
