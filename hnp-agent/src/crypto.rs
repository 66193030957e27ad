//! The one cryptography provider: aws-lc-rs, with hybrid post-quantum key exchange preferred.
//!
//! Every TLS configuration and every key of the agent is made with it, so that no second provider
//! can slip in through a default.

use std::sync::{Arc, LazyLock};

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::sign::SigningKey;
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::PrivateKeyDer;

use crate::config::plan::TlsVersion;

/// The provider, shared.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// The versions of TLS that are spoken where none is to be older than `least`.
pub fn versions(least: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match least {
        TlsVersion::V1_2 => &BOTH,
        TlsVersion::V1_3 => &BOTH[..1],
    }
}

/// A private key, ready to sign. The provider's own way takes the bytes and drops them as they are; this one leaves
/// them to the caller, who overwrites them.
///
/// # Errors
/// When it is of no kind that is known.
pub fn signing_key(der: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    rustls::crypto::aws_lc_rs::sign::any_supported_type(der)
}
