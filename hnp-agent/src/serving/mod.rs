//! What pods are shown, and what is asked of them, where a route ends their TLS.
//!
//! The other direction of `upstream`: there the agent is a client, here it is a server. One rustls
//! configuration per route and generation of all certificates and roots in it. Its sessions live and die
//! with it, so a change of either lets nobody back in by resumption; within one, [`Terms::readmits`] looks
//! again, because rustls asks no verifier about a session that is resumed.

pub mod certificate;
mod issued;
pub mod reason;
mod verifier;
mod version1;

use std::sync::{Arc, Mutex, PoisonError};

use hnp_common::Reason;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::config::end_to_end::{ClientAuth, ClientName, PodTls};
use crate::config::plan::{NamePattern, Plan, Protocol, RouteIndex};
use crate::identity::snapshot::{IdentitySnapshot, SharedIdentity};
use crate::trust::snapshot::{SharedTrust, TrustSnapshot};
use certificate::{ClientCertificate, ClientTls};
use issued::Issued;
pub use issued::Names;
use verifier::PodVerifier;

/// The terms of every route of a generation, and of its gateway; shared by its workers, so that a session that one of them began
/// can be resumed at another.
#[derive(Debug)]
pub struct Serving {
    /// By route: the terms that are current.
    routes: Vec<Slot>,
    gateway: Slot,
}

type Slot = Mutex<Option<Arc<Terms>>>;

/// Where TLS ends.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// On a route; what is decrypted is HTTP, or anything.
    Route(RouteIndex, Protocol),
    /// On the gateway's own port.
    Gateway,
}

/// On what terms a route ends a pod's TLS now.
#[derive(Debug)]
pub struct Terms {
    /// What the route shows and how it is negotiated.
    pub config: Arc<ServerConfig>,
    verifier: Option<Arc<PodVerifier>>,
    identities: Vec<Arc<IdentitySnapshot>>,
    trust: Option<Arc<TrustSnapshot>>,
}

/// Why a route cannot end TLS.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// None of its certificates, or not its trust, could be loaded.
    #[error("{0} could not be loaded; see the log for the file and the mistake in it")]
    NotLoaded(String),
    /// None of its certificates may be shown any more.
    #[error("identity `{0}` has expired and its source gives no other; see the log for what it says")]
    Expired(String),
    /// rustls refuses what was made of them; not seen in practice.
    #[error("no TLS configuration could be made: {0}")]
    Refused(String),
}

impl Unavailable {
    /// The operator's code.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotLoaded(_) | Self::Refused(_) => Reason::IdentityUnavailable,
            Self::Expired(_) => Reason::IdentityExpired,
        }
    }
}

impl Serving {
    /// For a Plan with so many routes.
    pub fn new(routes: usize) -> Self {
        Self { routes: (0..routes).map(|_| Mutex::default()).collect(), gateway: Mutex::default() }
    }

    /// The terms of a place; made anew where a certificate or root has changed.
    ///
    /// # Errors
    /// See [`Unavailable`].
    pub fn terms(
        &self,
        plan: &Plan,
        place: Place,
        mode: &PodTls,
        identities: &[SharedIdentity],
        trusts: &[SharedTrust],
    ) -> Result<Arc<Terms>, Unavailable> {
        let (slot, protocol) = match place {
            Place::Route(route, protocol) => (&self.routes[route], protocol),
            Place::Gateway => (&self.gateway, Protocol::Http),
        };
        let mut known = slot.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked at every handshake and request: nothing is collected where nothing has changed.
        if let Some(terms) = &*known
            && terms.is_current(mode, identities, trusts)
        {
            return Ok(Arc::clone(terms));
        }
        // Those that are there: a broken one beside them is in the log and in the metrics.
        let loaded: Vec<_> = mode
            .serving
            .iter()
            .filter_map(|index| presentable(&identities[*index].load()).cloned())
            .collect();
        if loaded.is_empty() {
            let name = &plan.identities[mode.serving[0]].name;
            if identities[mode.serving[0]].load().is_some() {
                return Err(Unavailable::Expired(name.to_string()));
            }
            return Err(Unavailable::NotLoaded(format!("identity `{name}`")));
        }
        let trust =
            match &mode.client_auth {
                ClientAuth::None => None,
                ClientAuth::Required { trust, .. } => Some(trusts[*trust].load_full().ok_or_else(|| {
                    Unavailable::NotLoaded(format!("trust `{}`", plan.trusts[*trust].name))
                })?),
            };
        let names = match place {
            Place::Route(route, _) => Names::of(&plan.routes[route]),
            Place::Gateway => Names::default(),
        };
        let terms = Terms::new(mode, protocol, loaded, trust, names).map_err(Unavailable::Refused)?;
        let terms = Arc::new(terms);
        *known = Some(Arc::clone(&terms));
        Ok(terms)
    }
}

/// An identity that is there and may be shown.
fn presentable(loaded: &Option<Arc<IdentitySnapshot>>) -> Option<&Arc<IdentitySnapshot>> {
    loaded.as_ref().filter(|loaded| loaded.is_presentable())
}

/// The verifier of clients' certificates that routes use, for whoever wants to know what it would say.
///
/// # Errors
/// There is no root.
pub fn client_verifier(
    anchors: Arc<RootCertStore>,
    names: Vec<ClientName>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    Ok(Arc::new(PodVerifier::of(anchors, Arc::default(), names)?))
}

/// The same by all that a trust says.
#[cfg(test)]
pub(crate) fn verifier_by(
    trust: &TrustSnapshot,
    names: Vec<ClientName>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    Ok(Arc::new(PodVerifier::by(trust, names)?))
}

impl Terms {
    fn new(
        mode: &PodTls,
        protocol: Protocol,
        identities: Vec<Arc<IdentitySnapshot>>,
        trust: Option<Arc<TrustSnapshot>>,
        names: Names,
    ) -> Result<Self, String> {
        let words = |error: rustls::Error| error.to_string();
        let least = trust.as_ref().map(|trust| trust.tls_min).unwrap_or_default();
        let provider = crate::crypto::provider();
        let verifier = match (&trust, &mode.client_auth) {
            (Some(trust), ClientAuth::Required { names, .. }) => {
                Some(Arc::new(PodVerifier::by(trust, names.clone())?))
            }
            _ => None,
        };
        let builder = ServerConfig::builder_with_details(provider, crate::clock::for_tls())
            .with_protocol_versions(crate::crypto::versions(least))
            .map_err(words)?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(BySni::new(&identities, &names)));
        config.alpn_protocols = match protocol {
            Protocol::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Protocol::Opaque => Vec::new(),
        };
        Ok(Self { config: Arc::new(config), verifier, identities, trust })
    }

    /// Whether they are of the certificates and roots that are loaded now.
    fn is_current(&self, mode: &PodTls, identities: &[SharedIdentity], trusts: &[SharedTrust]) -> bool {
        let mut mine = self.identities.iter();
        let served = mode.serving.iter().all(|index| match presentable(&identities[*index].load()) {
            Some(loaded) => mine.next().is_some_and(|one| Arc::ptr_eq(one, loaded)),
            None => true,
        });
        let trusted = match (&mode.client_auth, &self.trust) {
            (ClientAuth::None, _) => true,
            (ClientAuth::Required { trust, .. }, Some(mine)) => {
                trusts[*trust].load().as_ref().is_some_and(|loaded| Arc::ptr_eq(mine, loaded))
            }
            (ClientAuth::Required { .. }, None) => false,
        };
        served && mine.next().is_none() && trusted
    }

    /// Whether a client that these terms let in may stay under others: nothing but what it was shown differs.
    pub fn admits_as(&self, others: &Self) -> bool {
        self.trust.as_ref().map(Arc::as_ptr) == others.trust.as_ref().map(Arc::as_ptr)
            && self.verifier.as_ref().map(|one| one.names())
                == others.verifier.as_ref().map(|one| one.names())
    }

    /// What a finished handshake says of the pod.
    ///
    /// # Errors
    /// A resumed session's certificate is not good any more, or one was verified that cannot be described.
    pub fn readmits(&self, session: &ServerConnection) -> Result<ClientTls, rustls::Error> {
        self.readmits_at(session, crate::clock::unix_now())
    }

    fn readmits_at(&self, session: &ServerConnection, now: UnixTime) -> Result<ClientTls, rustls::Error> {
        let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        let chain = session.peer_certificates().unwrap_or_default();
        if let Some(verifier) = &self.verifier {
            let (leaf, above) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
            if resumed {
                verifier.verify_client_cert(leaf, above, now)?;
            }
        }
        let certificate = chain.first().map(|leaf| ClientCertificate::of(leaf)).transpose()?;
        Ok(ClientTls { version: certificate::version(session), resumed, certificate })
    }
}

/// Shows the first certificate that is for the name that was asked for; the first that is loaded where none is.
#[derive(Debug)]
struct BySni(Vec<Shown>);

#[derive(Debug)]
enum Shown {
    /// A certificate, and the names it is for.
    Loaded(Vec<NamePattern>, Arc<CertifiedKey>),
    /// One for each name that is asked for.
    Issued(Issued),
}

impl BySni {
    fn new(identities: &[Arc<IdentitySnapshot>], names: &Names) -> Self {
        let shown = identities.iter().map(|identity| match identity.issuer() {
            Some(issuer) => Shown::Issued(Issued::new(Arc::clone(issuer), names.clone())),
            None => {
                let key = &identity.certified_key;
                let names = key.cert.first().map(|leaf| certificate::served_names(leaf)).unwrap_or_default();
                Shown::Loaded(names, Arc::clone(key))
            }
        });
        Self(shown.collect())
    }

    fn choose(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let name = name.map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        let name = name.as_deref();
        self.0
            .iter()
            .find_map(|shown| shown.fitting(name))
            .or_else(|| self.0.iter().find_map(Shown::otherwise))
    }
}

impl Shown {
    /// What is for this name.
    fn fitting(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        match self {
            Self::Loaded(patterns, key) => {
                let name = name?;
                patterns.iter().any(|pattern| covers(pattern, name)).then(|| Arc::clone(key))
            }
            Self::Issued(issued) => issued.certificate(name),
        }
    }

    /// What is shown to whoever asks for something else.
    fn otherwise(&self) -> Option<Arc<CertifiedKey>> {
        match self {
            Self::Loaded(_, key) => Some(Arc::clone(key)),
            Self::Issued(_) => None,
        }
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}

/// Whether clients that ask for a name, in lower case, take this certificate for its.
pub fn is_for(leaf: &CertificateDer<'_>, name: &str) -> bool {
    certificate::served_names(leaf).iter().any(|pattern| covers(pattern, name))
}

/// As clients read a certificate: a wildcard stands for one label (RFC 6125 section 6.4.3).
fn covers(pattern: &NamePattern, name: &str) -> bool {
    match pattern {
        NamePattern::Exact(_) => pattern.matches(name),
        NamePattern::Below(parent) => name.split_once('.').is_some_and(|(_, rest)| *rest == **parent),
    }
}

#[cfg(test)]
mod tests;
