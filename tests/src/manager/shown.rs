//! A server's certificate that is replaced while it serves, as one that is renewed.

use std::sync::{Arc, Mutex};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::lock;
use crate::pki::Leaf;

/// What a manager shows from now on.
#[derive(Debug)]
pub struct Shown(Mutex<Arc<CertifiedKey>>);

impl Shown {
    /// This certificate, for the time being.
    ///
    /// # Panics
    /// When certificate and key do not belong together.
    pub fn new(leaf: &Leaf) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Self::key(leaf))))
    }

    /// Another one.
    ///
    /// # Panics
    /// When certificate and key do not belong together.
    pub fn replace(&self, leaf: &Leaf) {
        *lock(&self.0) = Self::key(leaf);
    }

    fn key(leaf: &Leaf) -> Arc<CertifiedKey> {
        let builder = rustls::ServerConfig::builder();
        let key = CertifiedKey::from_der(leaf.chain(), leaf.key(), builder.crypto_provider());
        Arc::new(key.expect("certificate and key belong together"))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&lock(&self.0)))
    }
}
