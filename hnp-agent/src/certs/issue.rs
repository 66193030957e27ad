//! What certificates are like that are made here, and the making.
//!
//! Version 3 by RFC 5280: CAs with basicConstraints and keyUsage, critical, and a key identifier; leaves with
//! the one usage they are for, both key identifiers, and a random serial.

use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SerialNumber, SignatureAlgorithm, SigningKey,
    date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::judge::{Wanted, judge};
use super::key::{self, KeyType};
use super::names::{Name, Permitted};
use super::store::{Kind, NewFile};
use super::when::{self, Until};
use super::{Authority, CertsError, Subject, der};
use crate::expiry::Lifetime;
use crate::telemetry::rfc3339;

/// RFC 5280 section 4.2.1.2.
const SUBJECT_KEY_IDENTIFIER: &[u64] = &[2, 5, 29, 14];

/// 126 bits that nobody can guess: more than the 64 that public CAs must have, and within the 20 bytes of RFC 5280
/// section 4.1.2.2.
const SERIAL_BYTES: usize = 16;

/// What a certificate is to be for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// Somebody who presents it in TLS, as a client, as a server or as both.
    Leaf {
        /// It may be presented by a client.
        client: bool,
        /// It may be presented by a server.
        server: bool,
        /// Whom it vouches for.
        names: Vec<Name>,
    },
    /// A CA below another one, which issues leaves and no further CA.
    Intermediate {
        /// What it may issue for; anything, where there is nothing.
        permitted: Vec<Permitted>,
    },
}

/// Whom a leaf is for, and in which part of a handshake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf<'a> {
    pub(crate) subject: &'a Subject,
    pub(crate) names: &'a [Name],
    pub(crate) client: bool,
    pub(crate) server: bool,
}

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whom it is for; a name is made up where there is none.
    pub subject: Option<Subject>,
    /// What it is for.
    pub purpose: Purpose,
    /// The kind of its key.
    pub key: KeyType,
    /// When it ends.
    pub until: Until,
}

/// A certificate that was made, with its key where that is new.
pub struct Issued {
    /// Leaf first; what goes into one file.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8 in PEM.
    pub key_pem: Option<String>,
    /// What should be known.
    pub notes: Vec<String>,
}

/// Whose signature goes on a certificate.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) subject: Subject,
    pub(super) key_id: Vec<u8>,
    pub(super) key: Zeroizing<KeyPair>,
}

/// Its key's kind, for a certificate that is signed later: what rcgen makes gets other names first.
struct Unsigned<'k>(&'k KeyPair);

impl PublicKeyData for Unsigned<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Unsigned<'_> {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Vec::new())
    }
}

/// Makes a root: a CA that nobody vouches for but whoever is given its certificate.
///
/// # Errors
/// The dates make no sense, or the system has no random numbers.
pub fn init_ca(
    subject: Option<Subject>,
    key: KeyType,
    until: Until,
    now: SystemTime,
) -> Result<Issued, CertsError> {
    let validity = when::from_now(now, until).map_err(CertsError::Wrong)?;
    let key = key.generate()?;
    let key_id = key_id(&key.subject_public_key_info());
    // A name of its own: two CAs of one name cannot be told apart by what refuses the certificates of one of them.
    let subject = subject.unwrap_or_else(|| Subject::common_name(&unique("hnp CA", &key_id)));
    let signer = Signer { subject, key_id, key: Zeroizing::new(key) };
    let params = ca_params(BasicConstraints::Unconstrained, &[]);
    let certificate = sign(params, validity, &signer.subject, (&*signer.key, &signer.key_id), &signer)?;
    Ok(Issued { chain: vec![certificate], key_pem: Some(key::to_pem(&signer.key)), notes: Vec::new() })
}

impl Authority {
    /// Makes a key and a certificate for it, and has it judged.
    ///
    /// # Errors
    /// The CA cannot issue this, or what it issues would be refused.
    pub fn issue(&self, request: &Request, now: SystemTime) -> Result<Issued, CertsError> {
        let mut validity = when::from_now(now, request.until).map_err(CertsError::Wrong)?;
        let notes = self.clamp(&mut validity).into_iter().collect();
        let key = request.key.generate()?;
        let own_id = key_id(&key.subject_public_key_info());
        let (params, unnamed) = match &request.purpose {
            Purpose::Leaf { client, server, names } => {
                if *server && names.is_empty() {
                    let what =
                        "a server's certificate needs a name: --name for a DNS name, --ip for an address";
                    return Err(CertsError::Wrong(what.into()));
                }
                let first = names.first().map(Name::text);
                let fits = |name: &String| name.len() <= super::subject::MAX_COMMON_NAME;
                let name =
                    first.filter(fits).unwrap_or_else(|| if *server { "server" } else { "client" }.into());
                (leaf_params(*client, *server, names, request.key)?, name)
            }
            Purpose::Intermediate { permitted } => {
                self.allows_intermediates()?;
                (ca_params(BasicConstraints::Constrained(0), permitted), unique("hnp intermediate", &own_id))
            }
        };
        let subject = request.subject.clone().unwrap_or_else(|| Subject::common_name(&unnamed));
        let certificate = sign(params, validity, &subject, (&key, &own_id), &self.signer)?;
        let chain = self.under(certificate);
        if let Purpose::Leaf { client, server, names } = &request.purpose {
            let host = names.iter().find(|name| !matches!(name, Name::Uri(_)));
            self.judged(&chain, *client, *server, host, now)?;
        }
        Ok(Issued { chain, key_pem: Some(key::to_pem(&key)), notes })
    }

    /// A certificate for a key that its owner keeps, which ends with its CA at the latest, and what stands above it.
    /// It is not judged: for those that are made by the hundred, after one like them was ([`Self::judged`]).
    ///
    /// # Errors
    /// The CA has expired, or a name cannot be written.
    pub(crate) fn certify(
        &self,
        (key, kind): (&KeyPair, KeyType),
        leaf: &Leaf<'_>,
        until: Until,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, CertsError> {
        if now > self.not_after {
            let why = format!("it has expired at {}", rfc3339(self.not_after));
            return Err(CertsError::CannotIssue { path: self.path.clone(), why });
        }
        let mut validity = when::from_now(now, until).map_err(CertsError::Wrong)?;
        self.clamp(&mut validity);
        let params = leaf_params(leaf.client, leaf.server, leaf.names, kind)?;
        let own_id = key_id(&key.subject_public_key_info());
        Ok(self.under(sign(params, validity, leaf.subject, (key, &own_id), &self.signer)?))
    }

    /// A certificate with what stands above it, without the root.
    pub(super) fn under(&self, certificate: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        std::iter::once(certificate).chain(self.above.iter().cloned()).collect()
    }

    /// Nothing outlives its CA; a note where that makes a difference.
    pub(super) fn clamp(&self, validity: &mut Lifetime) -> Option<String> {
        (validity.not_after > self.not_after).then(|| {
            validity.not_after = self.not_after;
            let end = rfc3339(self.not_after);
            format!(
                "it ends with its CA, {} ({end}); renew the CA first for a later end",
                self.path.display()
            )
        })
    }

    /// Judges what was made as its peers would.
    pub(crate) fn judged(
        &self,
        chain: &[CertificateDer<'static>],
        client: bool,
        server: bool,
        host: Option<&Name>,
        now: SystemTime,
    ) -> Result<(), CertsError> {
        let mut all = Vec::new();
        if client {
            all.push(Wanted::Client(Vec::new()));
        }
        if server {
            all.extend(host.map(|host| Wanted::Server(host.text().replace('*', "any"))));
        }
        for wanted in all {
            judge(&self.roots, chain, &wanted, now).map_err(|error| CertsError::Refused {
                by: wanted.role().judged_by(),
                why: error.to_string(),
            })?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key.
        let Self { chain, key_pem: _, notes } = self;
        f.debug_struct("Issued").field("chain", chain).field("notes", notes).finish_non_exhaustive()
    }
}

impl Issued {
    /// The files to write, the key first: whoever sees the certificate finds its key.
    pub fn files(&self, certificate: &std::path::Path, key: &std::path::Path) -> Vec<NewFile> {
        let key = self.key_pem.as_ref().map(|pem| NewFile {
            path: key.to_owned(),
            content: pem.clone().into_bytes(),
            kind: Kind::PrivateKey,
        });
        let certificate = NewFile {
            path: certificate.to_owned(),
            content: self.chain_pem().into_bytes(),
            kind: Kind::Certificate,
        };
        key.into_iter().chain([certificate]).collect()
    }

    /// The chain in PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|one| key::pem("CERTIFICATE", one)).collect()
    }
}

/// Signs a certificate for a key with its identifier, with names that are taken over as they are.
pub(super) fn sign(
    mut params: CertificateParams,
    validity: Lifetime,
    subject: &Subject,
    (public, own_id): (&impl PublicKeyData, &[u8]),
    signer: &Signer,
) -> Result<CertificateDer<'static>, CertsError> {
    let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    params.not_before = date_time_ymd(1970, 1, 1) + seconds(validity.not_before);
    params.not_after = date_time_ymd(1970, 1, 1) + seconds(validity.not_after);
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    params.use_authority_key_identifier_extension = own_id != signer.key_id;
    params.key_identifier_method = KeyIdMethod::PreSpecified(own_id.to_vec());
    // rcgen writes it together with basicConstraints.
    if params.is_ca == IsCa::NoCa {
        let id = der::tlv(der::OCTET_STRING, own_id);
        params.custom_extensions.push(CustomExtension::from_oid_content(SUBJECT_KEY_IDENTIFIER, id));
    }
    let mut issuer = CertificateParams::default();
    issuer.key_identifier_method = KeyIdMethod::PreSpecified(signer.key_id.clone());
    let certificate = params.signed_by(public, &Issuer::from_params(&issuer, Unsigned(&signer.key)))?;
    let named = der::with_names(certificate.der(), signer.subject.der(), subject.der(), |signed| {
        signer.key.sign(signed)
    });
    let named =
        named.ok_or_else(|| CertsError::Wrong("the certificate that was made cannot be read".into()))?;
    Ok(CertificateDer::from(named?))
}

/// RFC 7093 section 2, method 1: twenty bytes of the key's SHA-256.
pub(super) fn key_id(public_key_info: &[u8]) -> Vec<u8> {
    Sha256::digest(public_key_info)[..20].to_vec()
}

/// A name with what tells it from others of its kind.
fn unique(name: &str, key_id: &[u8]) -> String {
    format!("{name} {}", crate::x509::hex(&key_id[..4]))
}

fn ca_params(constraints: BasicConstraints, permitted: &[Permitted]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if !permitted.is_empty() {
        let permitted_subtrees = permitted.iter().map(|one| one.0.clone()).collect();
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    }
    params
}

fn leaf_params(
    client: bool,
    server: bool,
    names: &[Name],
    key: KeyType,
) -> Result<CertificateParams, CertsError> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.iter().map(Name::to_san).collect::<Result<_, _>>()?;
    params.is_ca = IsCa::ExplicitNoCa;
    (params.key_usages, params.extended_key_usages) = usages(client, server, key);
    Ok(params)
}

/// What a leaf's key may do, and for whom.
pub(super) fn usages(
    client: bool,
    server: bool,
    key: KeyType,
) -> (Vec<KeyUsagePurpose>, Vec<ExtendedKeyUsagePurpose>) {
    let mut may = vec![KeyUsagePurpose::DigitalSignature];
    // Older clients of TLS 1.2 send their secret encrypted.
    if server && key.enciphers() {
        may.push(KeyUsagePurpose::KeyEncipherment);
    }
    let client = client.then_some(ExtendedKeyUsagePurpose::ClientAuth);
    let server = server.then_some(ExtendedKeyUsagePurpose::ServerAuth);
    let whose = client.into_iter().chain(server).collect();
    (may, whose)
}

/// Positive, and never with a zero in front.
fn serial() -> Result<[u8; SERIAL_BYTES], CertsError> {
    let mut serial = [0; SERIAL_BYTES];
    let random = crate::crypto::provider().secure_random;
    random.fill(&mut serial).map_err(|_| CertsError::Wrong("the system has no random numbers".into()))?;
    serial[0] = (serial[0] & 0x7f) | 0x40;
    Ok(serial)
}
