//! From PEM files to a certificate chain and key that belong together.
//!
//! Not through rustls' own builder: that refuses X.509 version 1, and version 1 is what the vendor's
//! recipe makes with OpenSSL 3.0. What the builder checks is checked here: that the key is of a kind
//! that can sign, and that its public half is the one in the leaf. Errors name file, block and what
//! was expected; they never hold a byte of a key.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::SectionKind;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};
use zeroize::Zeroizing;

use super::super::snapshot::{Holder, IdentitySnapshot, LeafInfo, Origin};
pub use super::error::{IdentityError, IdentityWarning};
use super::layout;
use super::passphrase::{DecryptError, Passphrase};
use crate::config::plan::{IdentityFiles, IdentityPlace};
use crate::files::pem;
use crate::files::watch::Fingerprints;
use crate::x509::{self, parse};

/// A chain and key that belong together.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Ready to be presented.
    pub certified_key: Arc<CertifiedKey>,
    /// What the leaf says.
    pub leaf: LeafInfo,
    /// Where they are from.
    pub origin: Origin,
    /// What is allowed and should be known.
    pub warnings: Vec<IdentityWarning>,
}

impl Loaded {
    /// As it is published.
    pub fn snapshot(&self, name: Arc<str>, generation: u64) -> IdentitySnapshot {
        let (certified_key, leaf) = (Arc::clone(&self.certified_key), self.leaf.clone());
        let until = match self.origin {
            // Servers judge it: one that takes what has expired is served, and a warning says so.
            Origin::File(_) => None,
            Origin::WorkloadApi { .. } => Some(leaf.not_after),
        };
        IdentitySnapshot { name, generation, certified_key, leaf, holder: Holder::Agent, until }
    }
}

/// Reads and checks an identity's files.
///
/// # Errors
/// Names the file, the block in it, and what was expected.
pub fn load(files: &IdentityFiles) -> Result<Loaded, IdentityError> {
    Files::read(files).load(crate::clock::now())
}

/// The bytes of all files, as they were at one look.
#[derive(Debug)]
pub(in crate::identity) struct Files<'a> {
    passphrase_file: Option<&'a Path>,
    /// What lies where, or why that is not known.
    found: Result<Found, IdentityError>,
}

#[derive(Debug)]
struct Found {
    certificate: Bytes<Vec<u8>>,
    key: Bytes<Zeroizing<Vec<u8>>>,
    passphrase: Option<Bytes<Zeroizing<Vec<u8>>>>,
}

#[derive(Debug)]
struct Bytes<B> {
    path: PathBuf,
    bytes: io::Result<B>,
    mode: Option<u32>,
}

impl<B> Bytes<B> {
    fn read(path: PathBuf, read: impl FnOnce(&Path) -> io::Result<B>) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&path).map(|meta| meta.permissions().mode() & 0o7777).ok();
        Self { bytes: read(&path), path, mode }
    }

    fn take(self) -> Result<(PathBuf, B), IdentityError> {
        match self.bytes {
            Ok(bytes) => Ok((self.path, bytes)),
            Err(source) => Err(IdentityError::Unreadable { path: self.path, source }),
        }
    }

    /// What is to be said of a file with a secret in it.
    fn for_all(&self, what: &'static str) -> Option<IdentityWarning> {
        let mode = self.mode.filter(|mode| mode & 0o007 != 0)?;
        Some(IdentityWarning::KeyForAll { path: self.path.clone(), mode, what })
    }
}

impl<'a> Files<'a> {
    pub(in crate::identity) fn read(files: &'a IdentityFiles) -> Self {
        let passphrase_file = files.passphrase_file.as_deref();
        let places = match &files.place {
            IdentityPlace::Pair { certificate, key } => Ok((certificate.clone(), key.clone())),
            IdentityPlace::Directory(directory) => layout::find(directory),
        };
        let found = places.map(|(certificate, key)| Found {
            certificate: Bytes::read(certificate, crate::files::read),
            key: Bytes::read(key, crate::files::read_secret),
            passphrase: passphrase_file.map(|path| Bytes::read(path.to_owned(), Passphrase::read)),
        });
        Self { passphrase_file, found }
    }

    pub(in crate::identity) fn fingerprint(&self, fingerprints: &Fingerprints) -> u64 {
        let Ok(found) = &self.found else {
            let why = self.found.as_ref().err().map(ToString::to_string).unwrap_or_default();
            return fingerprints.of([Err(io::ErrorKind::NotFound), Ok(why.as_bytes())]);
        };
        let certificate = found.certificate.bytes.as_deref().map_err(io::Error::kind);
        let key = found.key.bytes.as_deref().map_err(io::Error::kind);
        let passphrase = found.passphrase.as_ref().map(|one| one.bytes.as_deref().map_err(io::Error::kind));
        let secrets = [Some(key), passphrase].into_iter().flatten().map(|one| one.map(Vec::as_slice));
        fingerprints.of(std::iter::once(certificate).chain(secrets))
    }

    /// Both files, read; whether they belong together is not looked at.
    pub(in crate::identity) fn pair(self) -> Result<Pair, IdentityError> {
        let Found { certificate, key, passphrase } = self.found?;
        let mut warnings = Vec::new();
        warnings.extend(key.for_all("key"));
        warnings.extend(passphrase.as_ref().and_then(|file| file.for_all("key's passphrase")));
        let (cert_path, cert_file) = certificate.take()?;
        let (key_path, key_file) = key.take()?;
        let passphrase = passphrase.map(|file| {
            let (path, bytes) = file.take()?;
            Passphrase::of_file(bytes).ok_or(IdentityError::NoPassphrase { path })
        });
        let opening = match (self.passphrase_file, passphrase.transpose()?) {
            (Some(file), Some(passphrase)) => Some(Opening { file, passphrase }),
            _ => None,
        };

        let chain = certificates(&cert_path, &cert_file)?;
        let keys = private_keys(&key_path, &key_file, opening.as_ref())?;
        if let Some(opening) = &opening
            && !keys.iter().any(|key| key.was_encrypted)
        {
            let path = opening.file.to_owned();
            warnings.push(IdentityWarning::NeedlessPassphrase { path, key: key_path.clone() });
        }
        Ok(Pair { cert_path, chain, key_path, keys, warnings })
    }

    pub(in crate::identity) fn load(self, now: SystemTime) -> Result<Loaded, IdentityError> {
        let Pair { cert_path, chain, key_path, keys, mut warnings } = self.pair()?;
        let public_keys = chain.iter().map(|der| public_key_of(der)).collect::<Vec<_>>();
        let Some(key) = keys.iter().find(|key| is_key_of(&*key.signing, &public_keys[0])) else {
            let later =
                public_keys[1..].iter().any(|public| keys.iter().any(|key| is_key_of(&*key.signing, public)));
            return Err(IdentityError::Mismatch {
                certificate: cert_path,
                key: key_path,
                hint: if later { "; it belongs to a later one: put that one first" } else { "" },
            });
        };
        let leaf = leaf_info(&chain[0]).map_err(|why| IdentityError::BadCertificate {
            path: cert_path.clone(),
            line: 1,
            why,
        })?;
        warnings.extend(dates_warning(&cert_path, &leaf, now));
        if leaf.version < 3 {
            warnings.push(IdentityWarning::OldVersion { path: cert_path.clone(), version: leaf.version });
        }
        let certified_key = Arc::new(CertifiedKey::new(chain, Arc::clone(&key.signing)));
        Ok(Loaded { certified_key, leaf, origin: Origin::File(cert_path), warnings })
    }
}

/// Certificates and keys as two files have them.
pub(in crate::identity) struct Pair {
    pub(in crate::identity) cert_path: PathBuf,
    /// Never empty.
    pub(in crate::identity) chain: Vec<CertificateDer<'static>>,
    pub(in crate::identity) key_path: PathBuf,
    /// Never empty.
    pub(in crate::identity) keys: Vec<PrivateKey>,
    pub(in crate::identity) warnings: Vec<IdentityWarning>,
}

impl Loaded {
    /// The warning about the leaf's dates, if it has one: such a pair must not replace a valid one.
    pub fn not_now(&self) -> Option<&IdentityWarning> {
        self.warnings.iter().find(|warning| match warning {
            IdentityWarning::Expired { .. } | IdentityWarning::NotYetValid { .. } => true,
            IdentityWarning::OldVersion { .. }
            | IdentityWarning::KeyForAll { .. }
            | IdentityWarning::RootIssues { .. }
            | IdentityWarning::PathLength { .. }
            | IdentityWarning::NeedlessPassphrase { .. } => false,
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

/// What opens encrypted keys.
pub(crate) struct Opening<'a> {
    file: &'a Path,
    passphrase: Passphrase,
}

impl<'a> Opening<'a> {
    /// By the passphrase in a file.
    ///
    /// # Errors
    /// It cannot be read or is empty.
    pub(crate) fn read(file: &'a Path) -> Result<Self, IdentityError> {
        let bytes = Passphrase::read(file)
            .map_err(|source| IdentityError::Unreadable { path: file.to_owned(), source })?;
        let passphrase = Passphrase::of_file(bytes);
        let none = || IdentityError::NoPassphrase { path: file.to_owned() };
        Ok(Self { file, passphrase: passphrase.ok_or_else(none)? })
    }
}

/// A private key as a file has it, and ready to sign.
#[derive(Debug)]
pub(crate) struct PrivateKey {
    pub(crate) der: Zeroizing<PrivateKeyDer<'static>>,
    pub(crate) signing: Arc<dyn SigningKey>,
    was_encrypted: bool,
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
/// Names the file, the block in it, and what was expected; also where a key is encrypted and there is no `opening`.
pub(crate) fn private_keys(
    path: &Path,
    file: &[u8],
    opening: Option<&Opening<'_>>,
) -> Result<Vec<PrivateKey>, IdentityError> {
    let broken = |source| IdentityError::Pem { path: path.to_owned(), source };
    let blocks = pem::blocks(file).map_err(broken)?;
    let mut keys = Vec::new();
    for block in blocks.iter().filter(|block| block.label.ends_with("PRIVATE KEY")) {
        let line = block.line;
        if block.has_encryption_headers() {
            return Err(IdentityError::TraditionallyEncrypted { path: path.to_owned(), line });
        }
        let unsupported =
            || IdentityError::UnsupportedKey { path: path.to_owned(), label: block.label.clone(), line };
        let was_encrypted = block.label == "ENCRYPTED PRIVATE KEY";
        // rustls' own types do not overwrite what they held.
        let der = Zeroizing::new(if was_encrypted {
            let mut der = opened(path, line, &block.der().map_err(broken)?, opening)?;
            PrivateKeyDer::Pkcs8(std::mem::take(&mut *der).into())
        } else {
            match block.decode().map_err(broken)? {
                Some((SectionKind::PrivateKey, der)) => PrivateKeyDer::Pkcs8(der.into()),
                Some((SectionKind::RsaPrivateKey, der)) => PrivateKeyDer::Pkcs1(der.into()),
                Some((SectionKind::EcPrivateKey, der)) => PrivateKeyDer::Sec1(der.into()),
                Some(_) | None => return Err(unsupported()),
            }
        });
        let signing = crate::crypto::signing_key(&der).map_err(|_| unsupported())?;
        keys.push(PrivateKey { der, signing, was_encrypted });
    }
    if keys.is_empty() {
        return Err(IdentityError::NoKey { path: path.to_owned(), found: pem::found(&blocks) });
    }
    Ok(keys)
}

/// The DER in an encrypted block.
///
/// # Errors
/// There is no `opening`, or it is not the key's.
pub(crate) fn opened(
    path: &Path,
    line: usize,
    encrypted: &[u8],
    opening: Option<&Opening<'_>>,
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let path = path.to_owned();
    let Some(opening) = opening else { return Err(IdentityError::Encrypted { path, line }) };
    opening.passphrase.open(encrypted).map_err(|error| match error {
        DecryptError::Wrong => {
            IdentityError::WrongPassphrase { path, line, passphrase_file: opening.file.to_owned() }
        }
        DecryptError::Unsupported(why) => IdentityError::UnsupportedEncryption { path, line, why },
    })
}

/// The bits of the public key in a certificate; the algorithm around them may be spelt in two ways.
pub(in crate::identity) fn public_key_of(der: &[u8]) -> Vec<u8> {
    let certificate = parse(der).expect("certificates are parsed when they are read");
    certificate.public_key().subject_public_key.data.to_vec()
}

pub(in crate::identity) fn is_key_of(key: &dyn SigningKey, public: &[u8]) -> bool {
    let Some(spki) = key.public_key() else { return false };
    SubjectPublicKeyInfo::from_der(&spki).is_ok_and(|(_, spki)| *spki.subject_public_key.data == *public)
}

/// What a leaf says.
///
/// # Errors
/// It is of no version that there is.
pub(in crate::identity) fn leaf_info(der: &[u8]) -> Result<LeafInfo, String> {
    let certificate = parse(der).expect("certificates are parsed when they are read");
    let version = certificate.version().0.saturating_add(1);
    if !(1..=3).contains(&version) {
        return Err(format!("version {version}"));
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
