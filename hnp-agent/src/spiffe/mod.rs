//! The SPIFFE Workload API, as its client: what identities and trusts have in common that come from it.
//!
//! `endpoint` asks and keeps asking, `wire` reads what comes, `error` says why nothing does. What is made of an answer
//! is decided where it is used: `identity::spiffe` for SVIDs, `trust::bundles` for bundles.

pub mod endpoint;
pub mod error;
#[cfg(test)]
pub(crate) mod testing;
pub mod wire;

pub use error::SpiffeError;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::config::spiffe::SpiffeId;
use crate::x509;

/// Certificates one after the other, as the Workload API has chains and bundles. Never empty.
///
/// # Errors
/// Which of them is no certificate.
pub fn certificates(der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut rest = der;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (after, _) = X509Certificate::from_der(rest).map_err(|error| {
            format!("the certificate at byte {} is not X.509: {error}", der.len() - rest.len())
        })?;
        let (one, after) = rest.split_at(rest.len() - after.len());
        found.push(CertificateDer::from(one.to_vec()));
        rest = after;
    }
    if found.is_empty() { Err("there is no certificate".into()) } else { Ok(found) }
}

/// The SPIFFE ID of a certificate that somebody is to be known by (X509-SVID sections 2 and 5.2): exactly one URI among
/// its names, no CA, and a key that signs no certificates.
///
/// # Errors
/// Why it is no X509-SVID.
pub fn id_of_leaf(der: &[u8]) -> Result<SpiffeId, String> {
    let leaf = x509::parse(der).map_err(|why| format!("it is not X.509: {why}"))?;
    // Two such extensions are a mistake, and not twice as many names.
    let names =
        leaf.subject_alternative_name().map_err(|error| format!("its names cannot be read: {error}"))?;
    let names = names.into_iter().flat_map(|extension| &extension.value.general_names);
    let uris: Vec<&str> = names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let id = match uris[..] {
        [uri] => SpiffeId::parse(uri).map_err(|why| format!("{uri:?} is no SPIFFE ID: {why}"))?,
        [] => return Err("it has no URI among its names, so no SPIFFE ID".into()),
        _ => return Err(format!("it has {} URIs among its names, and an SVID has exactly one", uris.len())),
    };
    let constraints =
        leaf.basic_constraints().map_err(|error| format!("its constraints cannot be read: {error}"))?;
    if constraints.is_some_and(|extension| extension.value.ca) {
        return Err("it is a CA's, which nobody may be known by".into());
    }
    let usage = leaf.key_usage().map_err(|error| format!("its key usage cannot be read: {error}"))?;
    if usage.is_some_and(|extension| extension.value.key_cert_sign() || extension.value.crl_sign()) {
        return Err("its key may sign certificates or revocation lists, which an SVID's must not".into());
    }
    Ok(id)
}
