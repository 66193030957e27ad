//! What the other side would say: the very verifiers that the agent uses, asked without a connection.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::{CertificateError, Error, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::config::end_to_end::ClientName;
use crate::serving;

/// Whose certificate it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// A client's, judged by a server.
    Client,
    /// A server's, judged by a client.
    Server,
}

impl Role {
    /// Who judges it.
    pub const fn judged_by(self) -> &'static str {
        match self {
            Self::Client => "server",
            Self::Server => "client",
        }
    }
}

/// Judges a chain, leaf first, by roots and at a moment.
///
/// A server's certificate is judged for a name; a client's has to have one of `names`, or any where there are none.
///
/// # Errors
/// The verifier's.
pub(super) fn judge(
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'_>],
    wanted: &Wanted,
    at: SystemTime,
) -> Result<(), Error> {
    let (leaf, above) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    let now = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default());
    let none = |why: String| Error::General(why);
    match wanted {
        Wanted::Client(names) => {
            let verifier = serving::client_verifier(Arc::clone(roots), names.clone()).map_err(none)?;
            verifier.verify_client_cert(leaf, above, now)?;
        }
        Wanted::Server(name) => {
            let name = ServerName::try_from(name.as_str()).map_err(|_| CertificateError::NotValidForName)?;
            let builder =
                WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), crate::crypto::provider());
            let verifier = builder.build().map_err(|error| none(error.to_string()))?;
            verifier.verify_server_cert(leaf, above, &name, &[], now)?;
        }
    }
    Ok(())
}

/// Whom the other side expects.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// A client with one of these names; any, where there are none.
    Client(Vec<ClientName>),
    /// The server of this name or address.
    Server(String),
}

impl Wanted {
    /// Whose certificate is wanted.
    pub(super) const fn role(&self) -> Role {
        match self {
            Self::Client(_) => Role::Client,
            Self::Server(_) => Role::Server,
        }
    }
}
