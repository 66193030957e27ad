//! What a trust publishes: a verifier for the other side's certificate.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;

/// One validated generation of a trust.
#[derive(Debug)]
pub struct TrustSnapshot {
    /// The trust's name in the Plan.
    pub name: Arc<str>,
    /// Grows by one with every published change of this trust, starting at 1.
    pub generation: u64,
    /// Verifies chain, dates and name. There is no variant that does not.
    pub verifier: Arc<dyn ServerCertVerifier>,
    /// The roots themselves, for whoever verifies clients.
    pub anchors: Arc<rustls::RootCertStore>,
    /// How many roots it holds. Never zero.
    pub roots: usize,
}

/// The current generation; `None` until the first one was loaded.
pub type SharedTrust = Arc<arc_swap::ArcSwapOption<TrustSnapshot>>;
