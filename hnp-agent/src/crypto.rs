//! The one cryptography provider: aws-lc-rs, with hybrid post-quantum key exchange preferred.
//!
//! Every TLS configuration and every key of the agent is made with it, so that no second provider
//! can slip in through a default.

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::sign::SigningKey;
use rustls_pki_types::PrivateKeyDer;

/// The provider, shared.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// A private key, ready to sign. The provider's own way takes the bytes and drops them as they are; this one leaves
/// them to the caller, who overwrites them.
///
/// # Errors
/// When it is of no kind that is known.
pub fn signing_key(der: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    rustls::crypto::aws_lc_rs::sign::any_supported_type(der)
}
