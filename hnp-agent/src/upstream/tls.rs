//! One rustls configuration, and with it one session store, per generation of identity and trust; also where each
//! workload has an identity of its own.
//!
//! rustls decides about resumption by the pointers of resolver and verifier. A configuration whose
//! resolver is swapped in place would resume a session that the old certificate opened, so the new
//! identity would never be shown. Hence: a new generation, a new configuration, an empty store.
//!
//! Nor does either side look at a certificate again when a session is resumed. One that is over would go on for as long as
//! there are tickets, so a store ends with the first certificate of those that its sessions were opened with.

use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use rustls_pki_types::CertificateDer;

use super::{PoolKey, ProxyKey};
use crate::trust::snapshot::TrustSnapshot;
use crate::x509;

/// TLS 1.2 sessions and TLS 1.3 tickets kept per configuration: one upstream name, so a handful of
/// servers behind it at most, and a few tickets each.
const SESSIONS: usize = 32;

/// One worker's configurations.
#[derive(Default)]
pub(super) struct TlsConfigs {
    configs: Kept<Rc<PoolKey>>,
    /// For the proxies on the way.
    proxies: Kept<ProxyKey>,
}

/// Configurations, each until the first certificate ends that one of its sessions was opened with.
struct Kept<K>(HashMap<K, (Arc<ClientConfig>, Option<SystemTime>)>);

impl<K> Default for Kept<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Kept<K> {
    fn get(&self, key: &K) -> Option<Arc<ClientConfig>> {
        let (config, until) = self.0.get(key)?;
        until.is_none_or(|until| crate::clock::now() <= until).then(|| config.clone())
    }

    fn keep(&mut self, key: K, config: ClientConfig, until: Option<SystemTime>) -> Arc<ClientConfig> {
        let config = Arc::new(config);
        self.0.insert(key, (config.clone(), until));
        config
    }

    fn opened(&mut self, key: &K, session: &ClientConnection) {
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            return;
        }
        let Some((_, until)) = self.0.get_mut(key) else { return };
        let chain = session.peer_certificates().unwrap_or_default();
        let end = |der: &CertificateDer<'_>| Some(x509::moment(x509::parse(der).ok()?.validity().not_after));
        // Servers also send what nobody needed, such as a root's former signature that is over.
        let (now, ends) = (crate::clock::now(), chain.iter().filter_map(end));
        *until = ends.filter(|end| *end >= now).chain(*until).min();
    }
}

impl TlsConfigs {
    /// The configuration for a key.
    ///
    /// # Errors
    /// rustls' words, where the provider lacks what TLS 1.2 and 1.3 need; not seen in practice.
    pub(super) fn config(&mut self, key: &Rc<PoolKey>) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(config) = self.configs.get(key) {
            return Ok(config);
        }
        // Once ours is over it is shown each time: to be refused is better than to be let in until tickets run out.
        let ours = key.identity.leaf.not_after;
        let is_over = crate::clock::now() > ours;
        let mut config =
            ClientConfig::builder_with_details(crate::crypto::provider(), crate::clock::for_tls())
                .with_protocol_versions(crate::crypto::versions(key.trust.tls_min))?
                .dangerous() // rustls' word for any verifier handed over; ours always verifies (crate::trust)
                .with_custom_certificate_verifier(key.trust.verifier.clone())
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
                    key.identity.certified_key.clone(),
                )));
        config.resumption =
            if is_over { Resumption::disabled() } else { Resumption::in_memory_sessions(SESSIONS) };
        config.alpn_protocols = key.offer.protocols();
        Ok(self.configs.keep(key.clone(), config, (!is_over).then_some(ours)))
    }

    /// Takes note of a handshake that is done, with the key's configuration.
    pub(super) fn opened(&mut self, key: &Rc<PoolKey>, session: &ClientConnection) {
        self.configs.opened(key, session);
    }

    /// The same of one with a proxy.
    pub(super) fn opened_to_proxy(&mut self, key: &ProxyKey, session: &ClientConnection) {
        self.proxies.opened(key, session);
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
            return Ok(config);
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
        Ok(self.proxies.keep(key.clone(), config, None))
    }

    /// Forgets configurations of generations that are over, their sessions and keys with them.
    pub(super) fn retain(&mut self, live: impl Fn(&PoolKey) -> bool, proxies: &[ProxyKey]) {
        self.configs.0.retain(|key, _| live(key));
        self.proxies.0.retain(|key, _| proxies.contains(key));
    }
}
