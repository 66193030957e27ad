//! Kinds of keys: how they are called, made and written.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize,
};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::CertsError;

/// A kind of key that can be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum KeyType {
    /// ECDSA on P-256: fast, and known everywhere.
    #[value(name = "p256")]
    P256,
    /// ECDSA on P-384.
    #[value(name = "p384")]
    P384,
    /// Ed25519: not every server's TLS takes it.
    #[value(name = "ed25519")]
    Ed25519,
    /// RSA of 2048 bits, as the vendor's recipe has it.
    #[value(name = "rsa2048")]
    Rsa2048,
    /// RSA of 3072 bits.
    #[value(name = "rsa3072")]
    Rsa3072,
    /// RSA of 4096 bits.
    #[value(name = "rsa4096")]
    Rsa4096,
}

impl KeyType {
    /// A new key.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate(self) -> Result<KeyPair, CertsError> {
        let rsa = |size| KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size);
        let key = match self {
            Self::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Self::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
            Self::Ed25519 => KeyPair::generate_for(&PKCS_ED25519),
            Self::Rsa2048 => rsa(RsaKeySize::_2048),
            Self::Rsa3072 => rsa(RsaKeySize::_3072),
            Self::Rsa4096 => rsa(RsaKeySize::_4096),
        };
        Ok(key?)
    }

    /// Whether a person would wonder what the command is doing.
    pub fn takes_a_moment(self) -> bool {
        match self {
            Self::P256 | Self::P384 | Self::Ed25519 | Self::Rsa2048 => false,
            Self::Rsa3072 | Self::Rsa4096 => true,
        }
    }

    /// The kind of a certificate's key; `None` where such keys are not made.
    pub(super) fn of(public: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        match &*describe(public) {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "Ed25519" => Some(Self::Ed25519),
            "RSA 2048 bits" => Some(Self::Rsa2048),
            "RSA 3072 bits" => Some(Self::Rsa3072),
            "RSA 4096 bits" => Some(Self::Rsa4096),
            _ => None,
        }
    }

    /// Whether such a key may also carry the secret of a TLS 1.2 session (RSA key transport).
    pub(super) fn enciphers(self) -> bool {
        match self {
            Self::P256 | Self::P384 | Self::Ed25519 => false,
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => true,
        }
    }
}

/// A key in words: `P-256`, `RSA 2048 bits`.
pub(super) fn describe(public: &SubjectPublicKeyInfo<'_>) -> String {
    let oid = public.algorithm.algorithm.to_id_string();
    let curve = || {
        public.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok()).map(|oid| oid.to_id_string())
    };
    match (&*oid, public.parsed()) {
        ("1.3.101.112", _) => "Ed25519".into(),
        ("1.3.101.113", _) => "Ed448".into(),
        (_, Ok(PublicKey::RSA(rsa))) => format!("RSA {} bits", rsa.key_size()),
        ("1.2.840.10045.2.1", _) => match curve().as_deref() {
            Some("1.2.840.10045.3.1.7") => "P-256".into(),
            Some("1.3.132.0.34") => "P-384".into(),
            Some("1.3.132.0.35") => "P-521".into(),
            other => format!("EC on curve {}", other.unwrap_or("of its own")),
        },
        _ => format!("algorithm {oid}"),
    }
}

/// PKCS#8 in PEM.
pub(super) fn to_pem(key: &KeyPair) -> String {
    let mut der = key.serialized_der();
    // RFC 8410 with the public key behind the seed is version 2, which OpenSSL 3.0 does not read: the
    // seed alone is version 1.
    let seed_alone;
    if let [0x30, _, 2, 1, 1, before @ ..] = der
        && let Some((algorithm_and_seed, _)) = before.split_at_checked(7 + 36)
        && algorithm_and_seed.starts_with(&[0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20])
    {
        seed_alone = super::der::tlv(super::der::SEQUENCE, &[&[2, 1, 0], algorithm_and_seed].concat());
        der = &seed_alone;
    }
    pem("PRIVATE KEY", der)
}

/// A block of PEM (RFC 7468).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
