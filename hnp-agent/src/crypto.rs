//! The one cryptography provider: aws-lc-rs, with hybrid post-quantum key exchange preferred.
//!
//! Every TLS configuration and every key of the agent is made with it, so that no second provider
//! can slip in through a default.

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;

/// The provider, shared.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}
