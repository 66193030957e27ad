//! From two PEM files to a certificate chain and key that belong together.
//!
//! Not through rustls' own builder: that refuses X.509 version 1, and version 1 is what the vendor's
//! recipe makes with OpenSSL 3.0. What the builder checks is checked here: that the key is of a kind
//! that can sign, and that its public half is the one in the leaf. Errors name file, block and what
//! was expected; they never hold a byte of a key.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::SectionKind;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};
use zeroize::Zeroizing;

use super::snapshot::LeafInfo;
use crate::config::plan::Identity;
use crate::files::pem::{self, PemError};
use crate::files::reload::LoadError;
use crate::files::watch::Fingerprints;
use crate::x509::{self, parse, span};

/// A chain and key that belong together.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Ready to be presented.
    pub certified_key: Arc<CertifiedKey>,
    /// What the leaf says.
    pub leaf: LeafInfo,
    /// What is allowed and should be known.
    pub warnings: Vec<IdentityWarning>,
}

/// What is allowed and should be known.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdentityWarning {
    /// The leaf is of an old form.
    #[error("{}: is an X.509 version {version} certificate; it is presented, though some servers refuse it. \
             Sign it with an extension (OpenSSL: a non-empty -extensions section) to get version 3", path.display())]
    OldVersion {
        /// The certificate's file.
        path: PathBuf,
        /// 1 or 2.
        version: u8,
    },
    /// The leaf has expired.
    #[error("{}: has expired {} ago", path.display(), span(*.since))]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// How long ago.
        since: Duration,
    },
    /// The leaf is not valid yet.
    #[error("{}: becomes valid only in {}: is this node's clock right?", path.display(), span(*.until))]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// How long until it is.
        until: Duration,
    },
    /// Everybody on the node may use the key's file.
    #[error("{}: its mode {mode:04o} lets every user on this node read or change the key; chmod o= would do", path.display())]
    KeyForAll {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Why two files are no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file's PEM is broken.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Which block, and what is wrong with it.
        source: PemError,
    },
    /// There is no certificate in the certificate's file.
    #[error("{}: expected a CERTIFICATE block, {found}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What there is.
        found: String,
    },
    /// There is no private key in the key's file.
    #[error("{}: expected a PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY block, {found}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What there is.
        found: String,
    },
    /// The key has a passphrase.
    #[error("{}: the key in line {line} is encrypted; expected a key without a passphrase \
             (openssl pkey -in FILE -out FILE.plain)", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
        /// The block's first line.
        line: usize,
    },
    /// A certificate is not one.
    #[error("{}: the certificate in line {line} is not X.509: {why}", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// The block's first line.
        line: usize,
        /// The parser's words.
        why: String,
    },
    /// The key is of a kind that cannot be used.
    #[error("{}: the {label} in line {line} cannot be used; expected RSA (2048 to 8192 bits), \
             EC (P-256, P-384, P-521) or Ed25519", path.display())]
    UnsupportedKey {
        /// The file.
        path: PathBuf,
        /// The block's label.
        label: String,
        /// The block's first line.
        line: usize,
    },
    /// Key and certificate do not belong together.
    #[error("{}: the key is not the one of the first certificate in {}{hint}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What may have happened.
        hint: &'static str,
    },
    /// The new certificate cannot be used today, and the one that is presented can.
    #[error("{0}; the certificate that is presented is still valid and stays")]
    NotNow(IdentityWarning),
}

impl LoadError for IdentityError {
    fn may_pass(&self) -> bool {
        matches!(self, Self::NotNow(_))
    }
}

/// Reads and checks an identity's files.
///
/// # Errors
/// Names the file, the block in it, and what was expected.
pub fn load(identity: &Identity) -> Result<Loaded, IdentityError> {
    Files::read(identity).load(SystemTime::now())
}

/// The bytes of both files, as they were at one look.
#[derive(Debug)]
pub(super) struct Files<'a> {
    identity: &'a Identity,
    certificate: io::Result<Vec<u8>>,
    key: io::Result<Zeroizing<Vec<u8>>>,
    key_mode: Option<u32>,
}

impl<'a> Files<'a> {
    pub(super) fn read(identity: &'a Identity) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let key_mode = std::fs::metadata(&identity.key).map(|meta| meta.permissions().mode() & 0o7777).ok();
        let certificate = crate::files::read(&identity.certificate);
        Self { identity, certificate, key: crate::files::read_secret(&identity.key), key_mode }
    }

    pub(super) fn fingerprint(&self, fingerprints: &Fingerprints) -> u64 {
        let certificate = self.certificate.as_deref().map_err(io::Error::kind);
        let key = self.key.as_deref().map(Vec::as_slice).map_err(io::Error::kind);
        fingerprints.of([certificate, key])
    }

    pub(super) fn load(self, now: SystemTime) -> Result<Loaded, IdentityError> {
        let Identity { certificate: cert_path, key: key_path, .. } = self.identity;
        let unreadable = |path: &Path, source| IdentityError::Unreadable { path: path.to_owned(), source };
        let cert_file = self.certificate.map_err(|source| unreadable(cert_path, source))?;
        let key_file = self.key.map_err(|source| unreadable(key_path, source))?;

        let chain = certificates(cert_path, &cert_file)?;
        let keys = keys(key_path, &key_file)?;
        let public_keys = chain.iter().map(|der| public_key_of(der)).collect::<Vec<_>>();
        let Some(key) = keys.iter().find(|key| is_key_of(&***key, &public_keys[0])) else {
            let later =
                public_keys[1..].iter().any(|public| keys.iter().any(|key| is_key_of(&**key, public)));
            return Err(IdentityError::Mismatch {
                certificate: cert_path.clone(),
                key: key_path.clone(),
                hint: if later { "; it belongs to a later one: put that one first" } else { "" },
            });
        };
        let leaf = leaf_info(cert_path, &chain[0])?;
        let mut warnings = Vec::new();
        if leaf.version < 3 {
            warnings.push(IdentityWarning::OldVersion { path: cert_path.clone(), version: leaf.version });
        }
        warnings.extend(dates_warning(cert_path, &leaf, now));
        if let Some(mode) = self.key_mode.filter(|mode| mode & 0o007 != 0) {
            warnings.push(IdentityWarning::KeyForAll { path: key_path.clone(), mode });
        }
        let certified_key = Arc::new(CertifiedKey::new(chain, Arc::clone(key)));
        Ok(Loaded { certified_key, leaf, warnings })
    }
}

impl Loaded {
    /// The warning about the leaf's dates, if it has one: such a pair must not replace a valid one.
    pub fn not_now(&self) -> Option<&IdentityWarning> {
        self.warnings.iter().find(|warning| match warning {
            IdentityWarning::Expired { .. } | IdentityWarning::NotYetValid { .. } => true,
            IdentityWarning::OldVersion { .. } | IdentityWarning::KeyForAll { .. } => false,
        })
    }
}

impl LeafInfo {
    /// True when `now` lies within the leaf's dates.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

fn dates_warning(path: &Path, leaf: &LeafInfo, now: SystemTime) -> Option<IdentityWarning> {
    let path = path.to_owned();
    if let Ok(since) = now.duration_since(leaf.not_after) {
        return (!since.is_zero()).then_some(IdentityWarning::Expired { path, since });
    }
    let until = leaf.not_before.duration_since(now).ok().filter(|until| !until.is_zero())?;
    Some(IdentityWarning::NotYetValid { path, until })
}

/// Every certificate of a file, checked to be X.509. Never empty.
///
/// # Errors
/// Names the file, the block in it, and what was expected.
pub(crate) fn certificates(path: &Path, file: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let broken = |source| IdentityError::Pem { path: path.to_owned(), source };
    let blocks = pem::blocks(file).map_err(broken)?;
    let mut chain = Vec::new();
    for block in &blocks {
        // Only these are decoded: a broken block of another kind is none of our business.
        if block.label != "CERTIFICATE" {
            continue;
        }
        let Some((SectionKind::Certificate, der)) = block.decode().map_err(broken)? else { continue };
        if let Err(why) = parse(&der) {
            return Err(IdentityError::BadCertificate { path: path.to_owned(), line: block.line, why });
        }
        chain.push(CertificateDer::from(der));
    }
    if chain.is_empty() {
        return Err(IdentityError::NoCertificate { path: path.to_owned(), found: pem::found(&blocks) });
    }
    Ok(chain)
}

/// Every private key of the file, ready to sign. Never empty.
fn keys(path: &Path, file: &[u8]) -> Result<Vec<Arc<dyn SigningKey>>, IdentityError> {
    Ok(private_keys(path, file)?.into_iter().map(|key| key.signing).collect())
}

/// A private key as a file has it, and ready to sign.
#[derive(Debug)]
pub(crate) struct PrivateKey {
    pub(crate) der: Zeroizing<PrivateKeyDer<'static>>,
    pub(crate) signing: Arc<dyn SigningKey>,
}

impl PrivateKey {
    /// Whether a certificate is for this key.
    pub(crate) fn is_of(&self, certificate: &CertificateDer<'_>) -> bool {
        is_key_of(&*self.signing, &public_key_of(certificate))
    }
}

/// Every private key of a file. Never empty.
///
/// # Errors
/// Names the file, the block in it, and what was expected.
pub(crate) fn private_keys(path: &Path, file: &[u8]) -> Result<Vec<PrivateKey>, IdentityError> {
    let broken = |source| IdentityError::Pem { path: path.to_owned(), source };
    let blocks = pem::blocks(file).map_err(broken)?;
    let mut keys = Vec::new();
    for block in blocks.iter().filter(|block| block.label.ends_with("PRIVATE KEY")) {
        if block.label == "ENCRYPTED PRIVATE KEY" || block.has_encryption_headers() {
            return Err(IdentityError::Encrypted { path: path.to_owned(), line: block.line });
        }
        let unsupported = || IdentityError::UnsupportedKey {
            path: path.to_owned(),
            label: block.label.clone(),
            line: block.line,
        };
        let der = match block.decode().map_err(broken)? {
            Some((SectionKind::PrivateKey, der)) => PrivateKeyDer::Pkcs8(der.into()),
            Some((SectionKind::RsaPrivateKey, der)) => PrivateKeyDer::Pkcs1(der.into()),
            Some((SectionKind::EcPrivateKey, der)) => PrivateKeyDer::Sec1(der.into()),
            Some(_) | None => return Err(unsupported()),
        };
        // rustls' own types do not overwrite what they held.
        let der = Zeroizing::new(der);
        let signing = crate::crypto::signing_key(&der).map_err(|_| unsupported())?;
        keys.push(PrivateKey { der, signing });
    }
    if keys.is_empty() {
        return Err(IdentityError::NoKey { path: path.to_owned(), found: pem::found(&blocks) });
    }
    Ok(keys)
}

/// The bits of the public key in a certificate; the algorithm around them may be spelt in two ways.
fn public_key_of(der: &[u8]) -> Vec<u8> {
    let certificate = parse(der).expect("certificates are parsed when they are read");
    certificate.public_key().subject_public_key.data.to_vec()
}

fn is_key_of(key: &dyn SigningKey, public: &[u8]) -> bool {
    let Some(spki) = key.public_key() else { return false };
    SubjectPublicKeyInfo::from_der(&spki).is_ok_and(|(_, spki)| *spki.subject_public_key.data == *public)
}

fn leaf_info(path: &Path, der: &[u8]) -> Result<LeafInfo, IdentityError> {
    let certificate = parse(der).expect("certificates are parsed when they are read");
    let version = certificate.version().0.saturating_add(1);
    if !(1..=3).contains(&version) {
        let why = format!("version {version}");
        return Err(IdentityError::BadCertificate { path: path.to_owned(), line: 1, why });
    }
    Ok(LeafInfo {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        serial: x509::serial(&certificate),
        not_before: x509::moment(certificate.validity().not_before),
        not_after: x509::moment(certificate.validity().not_after),
        version: u8::try_from(version).expect("it is 1 to 3"),
    })
}

#[cfg(test)]
mod tests;
