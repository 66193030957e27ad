//! One rustls configuration, and with it one session store, per generation of identity and trust.
//!
//! rustls decides about resumption by the pointers of resolver and verifier. A configuration whose
//! resolver is swapped in place would resume a session that the old certificate opened, so the new
//! identity would never be shown. Hence: a new generation, a new configuration, an empty store.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;

use super::{PoolKey, ProxyKey};
use crate::trust::snapshot::TrustSnapshot;

/// TLS 1.2 sessions and TLS 1.3 tickets kept per configuration: one upstream name, so a handful of
/// servers behind it at most, and a few tickets each.
const SESSIONS: usize = 32;

/// One worker's configurations.
#[derive(Default)]
pub(super) struct TlsConfigs {
    configs: HashMap<Rc<PoolKey>, Arc<ClientConfig>>,
    /// For the proxies on the way.
    proxies: HashMap<ProxyKey, Arc<ClientConfig>>,
}

impl TlsConfigs {
    /// The configuration for a key.
    ///
    /// # Errors
    /// rustls' words, where the provider lacks what TLS 1.2 and 1.3 need; not seen in practice.
    pub(super) fn config(&mut self, key: &Rc<PoolKey>) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(config) = self.configs.get(key) {
            return Ok(config.clone());
        }
        let mut config =
            ClientConfig::builder_with_details(crate::crypto::provider(), crate::clock::for_tls())
                .with_protocol_versions(crate::crypto::versions(key.trust.tls_min))?
                .dangerous() // rustls' word for any verifier handed over; ours always verifies (crate::trust)
                .with_custom_certificate_verifier(key.trust.verifier.clone())
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
                    key.identity.certified_key.clone(),
                )));
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        config.alpn_protocols = key.offer.protocols();
        let config = Arc::new(config);
        self.configs.insert(key.clone(), config.clone());
        Ok(config)
    }

    /// The configuration for a proxy that is verified by `trust`, its key's. It never sees our identity: that is
    /// for the upstream alone.
    ///
    /// # Errors
    /// As [`Self::config`].
    pub(super) fn proxy_config(
        &mut self,
        key: &ProxyKey,
        trust: &TrustSnapshot,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(config) = self.proxies.get(key) {
            return Ok(config.clone());
        }
        let mut config =
            ClientConfig::builder_with_details(crate::crypto::provider(), crate::clock::for_tls())
                .with_protocol_versions(crate::crypto::versions(trust.tls_min))?
                .dangerous() // as above: it always verifies
                .with_custom_certificate_verifier(trust.verifier.clone())
                .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        // CONNECT over HTTP/2 is another protocol (RFC 9113 section 8.5).
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        self.proxies.insert(key.clone(), config.clone());
        Ok(config)
    }

    /// Forgets configurations of generations that are over, their sessions and keys with them.
    pub(super) fn retain(&mut self, live: &[Rc<PoolKey>], proxies: &[ProxyKey]) {
        self.configs.retain(|key, _| live.contains(key));
        self.proxies.retain(|key, _| proxies.contains(key));
    }
}
