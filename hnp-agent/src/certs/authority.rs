//! A CA from its files: the certificate that the key belongs to, what stands above it, and whether it may issue.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{ParsedExtension, X509Certificate, X509Error, X509Version};
use zeroize::Zeroizing;

use super::issue::Signer;
use super::{CertsError, Subject};
use crate::identity::files::load::{IdentityError, Opening, PrivateKey, certificates, private_keys};
use crate::telemetry::rfc3339;
use crate::x509;

/// A CA that can issue now.
#[derive(Debug)]
pub struct Authority {
    pub(super) path: PathBuf,
    /// The certificate that the key belongs to.
    pub(super) certificate: CertificateDer<'static>,
    /// What goes below a leaf in its file, so that whoever has the root can follow: the certificate itself and
    /// those above it, without the root. Empty for a root.
    pub(super) above: Vec<CertificateDer<'static>>,
    /// The topmost one, for judging what is issued.
    pub(super) roots: Arc<RootCertStore>,
    pub(super) signer: Signer,
    /// Last moment it is valid.
    pub(super) not_after: SystemTime,
    /// How many CAs may stand between it and a leaf; `None`: any number.
    path_length: Option<u32>,
}

impl Authority {
    /// Reads a CA; `passphrase_file` has what opens its key, if that is encrypted.
    ///
    /// # Errors
    /// A file is not what it should be, they do not belong together, or the certificate may not issue now.
    pub fn load(
        certificate: &Path,
        key: &Path,
        passphrase_file: Option<&Path>,
        now: SystemTime,
    ) -> Result<Self, CertsError> {
        Self::load_as(certificate, key, passphrase_file, |ca| may_issue(ca, now))
    }

    /// Reads a root that is to be renewed: its dates do not matter.
    ///
    /// # Errors
    /// As for [`Self::load`], and it is no root.
    pub fn load_to_renew(
        certificate: &Path,
        key: &Path,
        passphrase_file: Option<&Path>,
    ) -> Result<Self, CertsError> {
        Self::load_as(certificate, key, passphrase_file, |ca| {
            if !is_self_signed(ca.as_raw()) {
                return Err("only a root renews itself; name its issuer with --ca and --ca-key".into());
            }
            may_issue(ca, x509::moment(ca.validity().not_after))
        })
    }

    fn load_as(
        certificate: &Path,
        key: &Path,
        passphrase_file: Option<&Path>,
        may_issue: impl FnOnce(&X509Certificate<'_>) -> Result<Option<u32>, String>,
    ) -> Result<Self, CertsError> {
        let all = certificates(
            certificate,
            &crate::files::read(certificate).map_err(|source| unreadable(certificate, source))?,
        )?;
        let key_file = crate::files::read_secret(key).map_err(|source| unreadable(key, source))?;
        let opening = passphrase_file.map(Opening::read).transpose()?;
        let keys = private_keys(key, &key_file, opening.as_ref())?;
        Self::of((certificate, &all), (key, &keys), may_issue)
    }

    /// A CA that can issue now, from files that were read.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub(crate) fn read(
        (certificate, all): (&Path, &[CertificateDer<'static>]),
        (key, keys): (&Path, &[PrivateKey]),
        now: SystemTime,
    ) -> Result<Self, CertsError> {
        Self::of((certificate, all), (key, keys), |ca| may_issue(ca, now))
    }

    fn of(
        (certificate, all): (&Path, &[CertificateDer<'static>]),
        (key, keys): (&Path, &[PrivateKey]),
        may_issue: impl FnOnce(&X509Certificate<'_>) -> Result<Option<u32>, String>,
    ) -> Result<Self, CertsError> {
        let found = all.iter().find_map(|one| Some((one, keys.iter().find(|key| key.is_of(one))?)));
        let (own, own_key) = found.ok_or_else(|| CertsError::KeyOfAnother {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        })?;
        let cannot = |why: String| CertsError::CannotIssue { path: certificate.to_owned(), why };
        let parsed = x509::parse(own).map_err(&cannot)?;
        let path_length = may_issue(&parsed).map_err(&cannot)?;
        let path = chain(own, all);
        let mut roots = RootCertStore::empty();
        let top = path.last().unwrap_or(own);
        roots.add(top.clone()).map_err(|error| cannot(format!("it cannot be a root: {error}")))?;
        Ok(Self {
            path: certificate.to_owned(),
            above: path.iter().filter(|one| !is_self_signed(one)).cloned().collect(),
            roots: Arc::new(roots),
            not_after: x509::moment(parsed.validity().not_after),
            path_length,
            signer: Signer {
                subject: Subject::from_der(parsed.subject().as_raw()),
                key_id: key_id(&parsed),
                key: Zeroizing::new(KeyPair::try_from(&*own_key.der)?),
            },
            certificate: own.clone(),
        })
    }

    /// What it is called.
    pub fn name(&self) -> String {
        self.signer.subject.text()
    }

    /// The certificate that the key belongs to.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// How many CAs may stand between it and a leaf; `None`: any number.
    pub(crate) fn path_length(&self) -> Option<u32> {
        self.path_length
    }

    /// Whether a CA may stand below it.
    pub(super) fn allows_intermediates(&self) -> Result<(), CertsError> {
        match self.path_length {
            Some(0) => Err(CertsError::CannotIssue {
                path: self.path.clone(),
                why: "it is an intermediate of path length 0, which issues no further one; issue it from the root".into(),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

/// Why a file cannot be read; the CA's own files have a way to get them.
fn unreadable(path: &Path, source: std::io::Error) -> CertsError {
    match source.kind() {
        std::io::ErrorKind::NotFound => CertsError::NoCa { path: path.to_owned() },
        _ => IdentityError::Unreadable { path: path.to_owned(), source }.into(),
    }
}

/// Whether a certificate may issue others now (RFC 5280 section 6.1.4 (k) to (n)); its path length.
fn may_issue(ca: &X509Certificate<'_>, now: SystemTime) -> Result<Option<u32>, String> {
    if ca.version() != X509Version::V3 {
        return Err("it is an X.509 version 1 certificate, which says nothing of issuing; make a CA with `hnp-agent certs \
                    init-ca`".into());
    }
    let constraints = match ca.basic_constraints() {
        Ok(Some(extension)) if extension.value.ca => extension.value,
        _ => {
            return Err(
                "it is no CA's certificate (basicConstraints has no CA:TRUE); name the CA with --ca".into()
            );
        }
    };
    if let Ok(Some(usage)) = ca.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err("its keyUsage does not let it sign certificates".into());
    }
    let (not_before, not_after) =
        (x509::moment(ca.validity().not_before), x509::moment(ca.validity().not_after));
    if now > not_after {
        return Err(format!(
            "it has expired at {}; `hnp-agent certs renew` gives it another term",
            rfc3339(not_after)
        ));
    }
    if now < not_before {
        return Err(format!(
            "it becomes valid only at {}: is this machine's clock right?",
            rfc3339(not_before)
        ));
    }
    Ok(constraints.path_len_constraint)
}

/// From a certificate upwards, as far as its file goes; itself first.
fn chain(own: &CertificateDer<'static>, all: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
    let mut chain = vec![own.clone()];
    while let Some(last) = chain.last()
        && !is_self_signed(last)
        && let Some(next) = all.iter().find(|one| !chain.contains(one) && signs(one, last))
    {
        chain.push(next.clone());
    }
    chain
}

/// Whether one certificate's key signed another. For putting chains in order; what is made is judged by webpki.
pub(crate) fn signs(issuer: &[u8], certificate: &[u8]) -> bool {
    let (Ok(issuer), Ok(certificate)) = (x509::parse(issuer), x509::parse(certificate)) else { return false };
    let signed = || match certificate.verify_signature(Some(issuer.public_key())) {
        // P-521: the name has to do.
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => true,
        Err(_) => false,
    };
    issuer.subject().as_raw() == certificate.issuer().as_raw() && signed()
}

pub(crate) fn is_self_signed(certificate: &[u8]) -> bool {
    signs(certificate, certificate)
}

/// The subject key identifier; made from the key where there is none.
pub(super) fn key_id(ca: &X509Certificate<'_>) -> Vec<u8> {
    let found = ca.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    found.unwrap_or_else(|| super::issue::key_id(ca.public_key().raw))
}
