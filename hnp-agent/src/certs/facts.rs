//! What a certificate says, for people and machines.

use std::net::IpAddr;
use std::time::SystemTime;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::{GeneralSubtree, ParsedExtension};
use x509_parser::objects::{oid_registry, oid2sn};
use x509_parser::prelude::{GeneralName, X509Certificate, X509Version};

use super::{authority, key};
use crate::telemetry::rfc3339;
use crate::x509;

/// What a certificate says.
#[derive(Clone, Debug, Serialize)]
pub struct CertificateFacts {
    /// RFC 4514's text.
    pub subject: String,
    /// The issuer's.
    pub issuer: String,
    /// Signed with its own key.
    pub self_signed: bool,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// X.509 version: 1, 2 or 3.
    pub version: u32,
    /// First moment it is valid.
    pub not_before: String,
    /// Last moment.
    pub not_after: String,
    /// `valid`, `expired` or `not-yet-valid`.
    pub state: &'static str,
    /// Until its last moment; negative after it.
    pub remaining_seconds: i64,
    /// It may issue others.
    pub ca: bool,
    /// How many CAs may stand below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_length: Option<u32>,
    /// Alternative names, each with its kind: `DNS:a.example`.
    pub names: Vec<String>,
    /// What the key may do; empty: anything.
    pub key_usage: Vec<&'static str>,
    /// What it is for; empty: anything.
    pub extended_key_usage: Vec<String>,
    /// What a CA may issue for, and what not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub name_constraints: Vec<String>,
    /// Kind and size of its key.
    pub key: String,
    /// How it is signed.
    pub signature: String,
    /// The hash of its public key, in DER.
    pub public_key_sha256: String,
    /// The hash of the certificate, in DER.
    pub sha256: String,
    /// Where among what was looked at its key lies.
    pub key_in: Vec<String>,
    /// Where its issuer lies.
    pub issuer_in: Vec<String>,
    /// What should be known.
    pub notes: Vec<String>,
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// The parser's words.
    pub fn of(der: &[u8], now: SystemTime) -> Result<Self, String> {
        let parsed = x509::parse(der)?;
        let (from, until) =
            (x509::moment(parsed.validity().not_before), x509::moment(parsed.validity().not_after));
        let remaining_seconds = match until.duration_since(now) {
            Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            Err(past) => i64::try_from(past.duration().as_secs()).map_or(i64::MIN, |past| -past),
        };
        let state = match (now < from, now > until) {
            (true, _) => "not-yet-valid",
            (_, true) => "expired",
            _ => "valid",
        };
        let constraints = parsed.basic_constraints().ok().flatten().map(|extension| extension.value);
        let version = parsed.version().0.saturating_add(1);
        let signature = short_name(&parsed.signature_algorithm.algorithm);
        let key = key::describe(parsed.public_key());
        Ok(Self {
            subject: x509::distinguished_name(parsed.subject()),
            issuer: x509::distinguished_name(parsed.issuer()),
            self_signed: authority::is_self_signed(der),
            serial: x509::serial(&parsed),
            version,
            not_before: rfc3339(from),
            not_after: rfc3339(until),
            state,
            remaining_seconds,
            ca: constraints.is_some_and(|value| value.ca),
            path_length: constraints.and_then(|value| value.path_len_constraint),
            names: x509::alternative_names(&parsed).map(general_name).collect(),
            key_usage: key_usage(&parsed),
            extended_key_usage: extended_key_usage(&parsed),
            name_constraints: name_constraints(&parsed),
            notes: notes(&parsed, &signature, &key),
            key,
            signature,
            public_key_sha256: x509::hex(&Sha256::digest(parsed.public_key().raw)),
            sha256: x509::hex(&Sha256::digest(der)),
            key_in: Vec::new(),
            issuer_in: Vec::new(),
        })
    }
}

/// Whether a certificate may be presented by clients, and by servers. What says nothing may be both; a CA neither.
pub(super) fn purposes(certificate: &X509Certificate<'_>) -> (bool, bool) {
    if certificate.is_ca() {
        return (false, false);
    }
    match certificate.extended_key_usage().ok().flatten() {
        Some(usage) => {
            (usage.value.any || usage.value.client_auth, usage.value.any || usage.value.server_auth)
        }
        None => (true, true),
    }
}

/// The address in four or sixteen bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn notes(certificate: &X509Certificate<'_>, signature: &str, key: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if certificate.version() != X509Version::V3 {
        let version = certificate.version().0.saturating_add(1);
        notes.push(format!(
            "is X.509 version {version}: without extensions it says neither what it is for nor whom it names; OpenSSL, \
             nginx and hnp take it, others (rustls) do not. `hnp-agent certs renew` makes it version 3"
        ));
    }
    if certificate.is_ca() && matches!(certificate.key_usage(), Ok(None)) {
        notes.push(
            "has no keyUsage: strict verifiers (Python's ssl from 3.13 on, openssl -x509_strict) take nothing that it has \
             issued. `hnp-agent certs renew` adds it, and what it has issued stays good"
                .into(),
        );
    }
    if signature.to_ascii_lowercase().contains("sha1") {
        notes.push("is signed with SHA-1, which nobody takes any more".into());
    }
    if key == "RSA 1024 bits" || key == "RSA 512 bits" {
        notes.push("its key is too short to be taken".into());
    }
    notes
}

fn key_usage(certificate: &X509Certificate<'_>) -> Vec<&'static str> {
    let Ok(Some(extension)) = certificate.key_usage() else { return Vec::new() };
    let usage = extension.value;
    let all = [
        (usage.digital_signature(), "digitalSignature"),
        (usage.non_repudiation(), "nonRepudiation"),
        (usage.key_encipherment(), "keyEncipherment"),
        (usage.data_encipherment(), "dataEncipherment"),
        (usage.key_agreement(), "keyAgreement"),
        (usage.key_cert_sign(), "keyCertSign"),
        (usage.crl_sign(), "cRLSign"),
        (usage.encipher_only(), "encipherOnly"),
        (usage.decipher_only(), "decipherOnly"),
    ];
    all.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect()
}

fn extended_key_usage(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.extended_key_usage() else { return Vec::new() };
    let usage = extension.value;
    let all = [
        (usage.any, "anyExtendedKeyUsage"),
        (usage.client_auth, "clientAuth"),
        (usage.server_auth, "serverAuth"),
        (usage.code_signing, "codeSigning"),
        (usage.email_protection, "emailProtection"),
        (usage.time_stamping, "timeStamping"),
        (usage.ocsp_signing, "OCSPSigning"),
    ];
    let known = all.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned());
    known.chain(usage.other.iter().map(|oid| oid.to_id_string())).collect()
}

fn name_constraints(certificate: &X509Certificate<'_>) -> Vec<String> {
    let constraints =
        certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::NameConstraints(constraints) => Some(constraints),
            _ => None,
        });
    let Some(constraints) = constraints else { return Vec::new() };
    let say = |word: &'static str, trees: &Option<Vec<GeneralSubtree<'_>>>| -> Vec<String> {
        trees.iter().flatten().map(|tree| format!("{word} {}", general_name(&tree.base))).collect()
    };
    [say("permitted", &constraints.permitted_subtrees), say("excluded", &constraints.excluded_subtrees)]
        .concat()
}

/// A name with its kind; nothing in it can end a line.
fn general_name(name: &GeneralName<'_>) -> String {
    let (kind, text) = match name {
        GeneralName::DNSName(name) => ("DNS", (*name).to_owned()),
        GeneralName::URI(uri) => ("URI", (*uri).to_owned()),
        GeneralName::RFC822Name(name) => ("email", (*name).to_owned()),
        GeneralName::DirectoryName(name) => ("directory", x509::distinguished_name(name)),
        GeneralName::IPAddress(bytes) => ("IP", network(bytes)),
        GeneralName::RegisteredID(oid) => ("OID", oid.to_id_string()),
        // Not our own enum.
        other => ("other", format!("{other:?}")),
    };
    let text: String = text
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect();
    format!("{kind}:{text}")
}

/// An address, or in a constraint an address and a mask.
fn network(bytes: &[u8]) -> String {
    let halves = bytes.split_at(bytes.len() / 2);
    match (address(bytes), address(halves.0), address(halves.1)) {
        // Eight bytes and thirty-two are a network; sixteen an address of IPv6.
        (Some(address), _, _) => address.to_string(),
        (None, Some(address), Some(_)) => {
            let bits: u32 = halves.1.iter().map(|byte| byte.leading_ones()).sum();
            format!("{address}/{bits}")
        }
        _ => x509::hex(bytes),
    }
}

fn short_name(oid: &x509_parser::asn1_rs::Oid<'_>) -> String {
    oid2sn(oid, oid_registry()).map_or_else(|_| oid.to_id_string(), str::to_owned)
}
