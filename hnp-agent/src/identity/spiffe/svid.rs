//! From an answer of the Workload API to a certificate chain and key that belong together.
//!
//! Which of several SVIDs is meant, and whether it is one: by the X509-SVID standard, by its dates, and by its key.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::super::files::load::{Loaded, is_key_of, leaf_info, public_key_of};
use super::super::snapshot::Origin;
use crate::config::spiffe::{SpiffeId, SpiffeIdentity, SvidChoice};
use crate::spiffe::error::Trouble;
use crate::spiffe::wire::{X509Svid, X509Svids};
use crate::spiffe::{self, SpiffeError};
use crate::telemetry::rfc3339;
use crate::x509;

/// The wanted SVID of a message.
///
/// # Errors
/// It is not there, or cannot be used at `now`.
pub(crate) fn read(message: &[u8], wanted: &SpiffeIdentity, now: SystemTime) -> Result<Loaded, SpiffeError> {
    let socket = &wanted.api.socket;
    let failed = |what| SpiffeError { socket: socket.clone(), what };
    let svids = X509Svids::read(message).map_err(|error| failed(Trouble::Unreadable(error.to_string())))?;
    let svid = choose(&svids.svids, &wanted.choice).map_err(failed)?;
    load(svid, socket, now).map_err(failed)
}

/// The SVID that is meant.
fn choose<'a, 'm>(svids: &'a [X509Svid<'m>], choice: &SvidChoice) -> Result<&'a X509Svid<'m>, Trouble> {
    let found = match choice {
        SvidChoice::First => svids.first(),
        // Of several with the same hint, the first (SPIFFE Workload API section 5.2.1).
        SvidChoice::Hint(hint) => svids.iter().find(|svid| *svid.hint == **hint),
        SvidChoice::Id(id) => svids.iter().find(|svid| SpiffeId::parse(svid.id).as_ref() == Ok(id)),
    };
    let has = |svid: &X509Svid<'_>| match svid.hint {
        "" => svid.id.escape_debug().to_string(),
        hint => format!("{} (hint {})", svid.id.escape_debug(), hint.escape_debug()),
    };
    found
        .ok_or_else(|| Trouble::NotAmong { wanted: choice.to_string(), has: svids.iter().map(has).collect() })
}

fn load(svid: &X509Svid<'_>, socket: &Path, now: SystemTime) -> Result<Loaded, Trouble> {
    let bad = |why: String| Trouble::BadSvid { id: svid.id.escape_debug().to_string(), why };
    let chain = spiffe::certificates(svid.chain).map_err(bad)?;
    let id = spiffe::id_of_leaf(&chain[0]).map_err(bad)?;
    if SpiffeId::parse(svid.id).as_ref() != Ok(&id) {
        return Err(bad(format!("its certificate is for {id}")));
    }
    presentable(&chain[0]).map_err(bad)?;
    // Borrowed: the message it lies in is overwritten.
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key));
    let signing = crate::crypto::signing_key(&key).map_err(|_| {
        bad("its key is no PKCS#8 of RSA (2048 to 8192 bits), EC (P-256, P-384, P-521) or Ed25519".into())
    })?;
    if !is_key_of(&*signing, &public_key_of(&chain[0])) {
        return Err(bad("its key is not the certificate's".into()));
    }
    let leaf = leaf_info(&chain[0]).map_err(bad)?;
    let not_now = |why: String| Trouble::NotNow { id: id.to_string(), why };
    if now > leaf.not_after {
        return Err(not_now(format!("has expired at {}", rfc3339(leaf.not_after))));
    }
    if now < leaf.not_before {
        return Err(not_now(format!("becomes valid only at {}", rfc3339(leaf.not_before))));
    }
    let origin = Origin::WorkloadApi { socket: socket.to_owned(), id };
    let certified_key = Arc::new(CertifiedKey::new(chain, signing));
    Ok(Loaded { certified_key, leaf, origin, warnings: Vec::new() })
}

/// What the standard wants of a leaf beyond what verifiers look at (sections 4.3 and 4.4): others refuse it without.
fn presentable(der: &[u8]) -> Result<(), String> {
    let leaf = x509::parse(der)?;
    let usage = leaf.key_usage().map_err(|error| error.to_string())?;
    if !usage.is_some_and(|extension| extension.value.digital_signature()) {
        return Err("its key usage lacks digitalSignature".into());
    }
    let extended = leaf.extended_key_usage().map_err(|error| error.to_string())?;
    if let Some(extended) = extended
        && !(extended.value.any || (extended.value.client_auth && extended.value.server_auth))
    {
        return Err("its extended key usage lacks serverAuth or clientAuth".into());
    }
    Ok(())
}
