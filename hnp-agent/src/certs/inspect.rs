//! What is in files of certificates and keys, and what belongs together; of a private key never more than its kind.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::sign::SigningKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::SectionKind;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::{Zeroize as _, Zeroizing};

use super::facts::CertificateFacts;
use super::{CertsError, authority, key};
use crate::files::pem;
use crate::identity::files::load::{IdentityError, Opening, opened};
use crate::telemetry::rfc3339;
use crate::x509;

/// One thing in a file.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// The file.
    pub file: PathBuf,
    /// Its line, where the file is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum What {
    /// A certificate.
    Certificate(Box<CertificateFacts>),
    /// A private key: of it, what its public half says.
    PrivateKey(KeyFacts),
    /// A private key with a passphrase, which was not given.
    EncryptedPrivateKey,
    /// A public key.
    PublicKey(KeyFacts),
    /// A request for a certificate.
    CertificateRequest {
        /// Who asks.
        subject: String,
        /// For which key.
        #[serde(flatten)]
        key: KeyFacts,
    },
    /// A list of revoked certificates.
    RevocationList {
        /// Whose.
        issuer: String,
        /// When it was made.
        this_update: String,
        /// When the next one is due.
        next_update: Option<String>,
        /// How many are on it.
        revoked: usize,
    },
    /// A block of PEM that is nothing of the above.
    Other {
        /// Its label.
        label: String,
    },
    /// Something that cannot be read.
    Broken {
        /// What is wrong with it.
        why: String,
    },
}

/// What a key is.
#[derive(Clone, Debug, Serialize)]
pub struct KeyFacts {
    /// Kind and size.
    pub key: String,
    /// The hash of its public half, in DER.
    pub public_key_sha256: String,
    /// Certificates among what was looked at that are for it.
    pub belongs_to: Vec<String>,
}

/// Looks into files; says what is in them and what belongs together. `passphrase_file` has what opens encrypted keys.
///
/// # Errors
/// It cannot be read or is empty.
pub fn inspect(
    files: &[PathBuf],
    passphrase_file: Option<&Path>,
    now: SystemTime,
) -> Result<Vec<Item>, CertsError> {
    let opening = passphrase_file.map(Opening::read).transpose()?;
    let mut found: Vec<Found> =
        files.iter().flat_map(|file| look_into(file, opening.as_ref(), now)).collect();
    let places: Vec<String> = found.iter().map(|one| place(&one.item)).collect();
    for at in 0..found.len() {
        let others = || (0..found.len()).filter(|other| *other != at);
        let with = |wanted: &dyn Fn(&Found) -> bool| -> Vec<String> {
            others().filter(|other| wanted(&found[*other])).map(|other| places[other].clone()).collect()
        };
        let me = &found[at];
        let of_my_key = |other: &Found| other.public.is_some() && other.public == me.public;
        let is_certificate = |other: &Found| matches!(other.item.what, What::Certificate(_));
        let certificates = with(&|other| is_certificate(other) && of_my_key(other));
        let keys = with(&|other| matches!(other.item.what, What::PrivateKey(_)) && of_my_key(other));
        let issuers = with(&|other| is_certificate(other) && authority::signs(&other.der, &me.der));
        match &mut found[at].item.what {
            What::Certificate(facts) => (facts.key_in, facts.issuer_in) = (keys, issuers),
            What::PrivateKey(facts)
            | What::PublicKey(facts)
            | What::CertificateRequest { key: facts, .. } => {
                facts.belongs_to = certificates;
            }
            What::EncryptedPrivateKey
            | What::RevocationList { .. }
            | What::Other { .. }
            | What::Broken { .. } => {}
        }
    }
    Ok(found.into_iter().map(|one| one.item).collect())
}

/// Where an item stands, in words.
pub fn place(item: &Item) -> String {
    match item.line {
        Some(line) => format!("{}:{line}", item.file.display()),
        None => item.file.display().to_string(),
    }
}

/// An item with what it is compared by.
struct Found {
    item: Item,
    der: Vec<u8>,
    /// The bits of the public key; the algorithm around them may be spelt in two ways.
    public: Option<Vec<u8>>,
}

fn look_into(file: &Path, opening: Option<&Opening<'_>>, now: SystemTime) -> Vec<Found> {
    let one = |line, what| Found {
        item: Item { file: file.to_owned(), line, what },
        der: Vec::new(),
        public: None,
    };
    let broken = |line, why: String| vec![one(line, What::Broken { why })];
    // It may hold a key.
    let mut bytes = match crate::files::read_secret(file) {
        Ok(bytes) => bytes,
        Err(error) => return broken(None, format!("cannot be read: {error}")),
    };
    // DER begins with a sequence, and no text does.
    if bytes.first() == Some(&super::der::SEQUENCE) {
        return vec![of_der(file, std::mem::take(&mut *bytes), now)];
    }
    let blocks = match pem::blocks(&bytes) {
        Ok(blocks) if blocks.is_empty() => return broken(None, "holds no PEM block and no DER".into()),
        Ok(blocks) => blocks,
        Err(error) => return broken(None, error.to_string()),
    };
    let of_block = |block: &pem::Block<'_>| {
        let line = Some(block.line);
        let is_encrypted = block.label == "ENCRYPTED PRIVATE KEY";
        let (kind, der) = match (opening, block.decode()) {
            (Some(_), _) if is_encrypted => match decrypted(file, block, opening) {
                Ok(mut der) => (SectionKind::PrivateKey, std::mem::take(&mut *der)),
                Err(error) => return one(line, What::Broken { why: error.to_string() }),
            },
            _ if is_encrypted || block.has_encryption_headers() => {
                return one(line, What::EncryptedPrivateKey);
            }
            (_, Ok(Some(decoded))) => decoded,
            (_, Ok(None)) => return one(line, What::Other { label: block.label.clone() }),
            (_, Err(error)) => return one(line, What::Broken { why: error.to_string() }),
        };
        let (what, public) = described(kind, &der, now).unwrap_or_else(|why| (What::Broken { why }, None));
        let what =
            if let What::Other { .. } = what { What::Other { label: block.label.clone() } } else { what };
        let der = certificate_only(&what, der);
        Found { item: Item { file: file.to_owned(), line, what }, der, public }
    };
    blocks.iter().map(of_block).collect()
}

/// The DER of an encrypted key.
fn decrypted(
    file: &Path,
    block: &pem::Block<'_>,
    opening: Option<&Opening<'_>>,
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let der = block.der().map_err(|source| IdentityError::Pem { path: file.to_owned(), source })?;
    opened(file, block.line, &der, opening)
}

fn of_der(file: &Path, der: Vec<u8>, now: SystemTime) -> Found {
    const KINDS: [SectionKind; 5] = [
        SectionKind::Certificate,
        SectionKind::PrivateKey,
        SectionKind::Crl,
        SectionKind::Csr,
        SectionKind::PublicKey,
    ];
    let found = KINDS.iter().find_map(|kind| described(*kind, &der, now).ok());
    let why = || "is DER, and neither a certificate nor a key, a request or a revocation list".to_owned();
    let (what, public) = found.unwrap_or_else(|| (What::Broken { why: why() }, None));
    let der = certificate_only(&what, der);
    Found { item: Item { file: file.to_owned(), line: None, what }, der, public }
}

/// A private key's bytes go no further.
fn certificate_only(what: &What, mut der: Vec<u8>) -> Vec<u8> {
    if !matches!(what, What::Certificate(_)) {
        der.zeroize();
    }
    der
}

type Described = (What, Option<Vec<u8>>);

fn described(kind: SectionKind, der: &[u8], now: SystemTime) -> Result<Described, String> {
    let words = |error: x509_parser::nom::Err<_>| -> String {
        (error as x509_parser::nom::Err<x509_parser::error::X509Error>).to_string()
    };
    Ok(match kind {
        SectionKind::Certificate => {
            let facts = CertificateFacts::of(der, now)?;
            let public = x509::parse(der)?.public_key().subject_public_key.data.to_vec();
            (What::Certificate(Box::new(facts)), Some(public))
        }
        SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
            let (facts, public) = private_key(der)?;
            (What::PrivateKey(facts), Some(public))
        }
        SectionKind::PublicKey => {
            let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(words)?;
            (What::PublicKey(key_facts(&info)), Some(info.subject_public_key.data.to_vec()))
        }
        SectionKind::Csr => {
            let (_, request) = X509CertificationRequest::from_der(der).map_err(words)?;
            let info = &request.certification_request_info;
            let key = key_facts(&info.subject_pki);
            let public = info.subject_pki.subject_public_key.data.to_vec();
            (What::CertificateRequest { subject: x509::distinguished_name(&info.subject), key }, Some(public))
        }
        SectionKind::Crl => {
            let (_, list) = CertificateRevocationList::from_der(der).map_err(words)?;
            let what = What::RevocationList {
                issuer: x509::distinguished_name(list.issuer()),
                this_update: rfc3339(x509::moment(list.last_update())),
                next_update: list.next_update().map(|date| rfc3339(x509::moment(date))),
                revoked: list.iter_revoked_certificates().count(),
            };
            (what, None)
        }
        // Not our own enum, and it grows.
        _ => (What::Other { label: String::new() }, None),
    })
}

fn private_key(der: &[u8]) -> Result<(KeyFacts, Vec<u8>), String> {
    let unusable = "is no private key that can be used; expected RSA (2048 to 8192 bits), EC (P-256, P-384, P-521) or \
                    Ed25519";
    let key = PrivateKeyDer::try_from(der).map_err(|_| unusable)?;
    let key = crate::crypto::signing_key(&key).map_err(|_| unusable)?;
    let info = SigningKey::public_key(&*key).ok_or("has no public half")?;
    let (_, info) =
        SubjectPublicKeyInfo::from_der(&info).map_err(|_| "has no public half that can be read")?;
    Ok((key_facts(&info), info.subject_public_key.data.to_vec()))
}

fn key_facts(info: &SubjectPublicKeyInfo<'_>) -> KeyFacts {
    KeyFacts {
        key: key::describe(info),
        public_key_sha256: x509::hex(&Sha256::digest(info.raw)),
        belongs_to: Vec::new(),
    }
}
