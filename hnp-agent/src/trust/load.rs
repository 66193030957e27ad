//! From a PEM file or the system's store to a verifier.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::SectionKind;

use super::snapshot::RootDates;
use crate::config::plan::{Roots, Trust};
use crate::files::pem::{self, PemError};
use crate::files::reload::{Fingerprint, LoadError};
use crate::files::watch::Fingerprints;

/// A verifier and what it was made of.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Verifies chain, dates and name against the roots.
    pub verifier: Arc<dyn ServerCertVerifier>,
    /// The roots themselves.
    pub anchors: Arc<RootCertStore>,
    /// How many roots it holds. Never zero.
    pub roots: usize,
    /// Those that expire first.
    pub dates: Vec<RootDates>,
    /// Certificates that could not be used as roots, in words.
    pub warnings: Vec<String>,
}

/// Why there is no verifier.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The file's PEM is broken.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Which block, and what is wrong with it.
        source: PemError,
    },
    /// There is no certificate in the file.
    #[error("{}: expected at least one CERTIFICATE block, {found}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What there is.
        found: String,
    },
    /// No certificate of the file can be a root.
    #[error("{}: none of its certificates can be a root: {}", path.display(), why.join("; "))]
    NoRoot {
        /// The file.
        path: PathBuf,
        /// One line each.
        why: Vec<String>,
    },
    /// The system's store is empty or cannot be read.
    #[error("the system's store has no roots ({}); install the ca-certificates package, or name a file under `trusts`",
            if why.is_empty() { "it is empty".to_owned() } else { why.join("; ") })]
    NoSystemRoots {
        /// What went wrong with parts of it.
        why: Vec<String>,
    },
    /// rustls made no verifier of the roots.
    #[error("no verifier could be made: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

impl LoadError for TrustError {
    fn may_pass(&self) -> bool {
        false
    }
}

/// Reads the roots a trust names.
///
/// # Errors
/// When there is not one usable root; names the file and the certificates in it.
pub fn load(trust: &Trust) -> Result<Loaded, TrustError> {
    Source::read(&trust.roots).load()
}

/// The certificates of a trust, as they were at one look.
#[derive(Debug)]
pub(super) enum Source {
    File(PathBuf, std::io::Result<Vec<u8>>),
    System(Vec<CertificateDer<'static>>, Vec<String>),
}

impl Source {
    pub(super) fn read(roots: &Roots) -> Self {
        match roots {
            Roots::File(path) => Self::File(path.clone(), crate::files::read(path)),
            Roots::System => {
                let found = rustls_native_certs::load_native_certs();
                Self::System(found.certs, found.errors.iter().map(ToString::to_string).collect())
            }
        }
    }

    pub(super) fn fingerprint(&self, fingerprints: &Fingerprints) -> Fingerprint {
        match self {
            Self::File(_, Ok(bytes)) => fingerprints.of([Ok(bytes.as_slice())]),
            Self::File(_, Err(error)) => fingerprints.of([Err(error.kind())]),
            Self::System(certificates, _) => fingerprints.of(certificates.iter().map(|der| Ok(der.as_ref()))),
        }
    }

    pub(super) fn load(self) -> Result<Loaded, TrustError> {
        let mut store = RootCertStore::empty();
        let mut dates = Vec::new();
        let warnings = match self {
            Self::File(path, bytes) => from_file(&mut store, &mut dates, path, bytes)?,
            Self::System(certificates, mut why) => {
                // Systems carry a few roots that webpki does not take; nobody asked for them by name.
                dates.extend(certificates.iter().filter_map(|der| RootDates::of(der)));
                let (_, ignored) = store.add_parsable_certificates(certificates);
                tracing::debug!(ignored, "roots of the system's store that cannot be used");
                if store.is_empty() {
                    return Err(TrustError::NoSystemRoots { why });
                }
                why.truncate(3);
                why
            }
        };
        let roots = store.len();
        let provider = crate::crypto::provider();
        let anchors = Arc::new(store);
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&anchors), provider).build()?;
        Ok(Loaded { verifier, anchors, roots, dates: RootDates::first_to_end(dates), warnings })
    }
}

fn from_file(
    store: &mut RootCertStore,
    dates: &mut Vec<RootDates>,
    path: PathBuf,
    bytes: std::io::Result<Vec<u8>>,
) -> Result<Vec<String>, TrustError> {
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(source) => return Err(TrustError::Unreadable { path, source }),
    };
    let blocks = match pem::blocks(&bytes) {
        Ok(blocks) => blocks,
        Err(source) => return Err(TrustError::Pem { path, source }),
    };
    let mut why = Vec::new();
    let mut seen = false;
    for block in blocks.iter().filter(|block| block.label == "CERTIFICATE") {
        seen = true;
        let bad = |what: String| format!("{}: the certificate in line {} {what}", path.display(), block.line);
        match block.decode() {
            Ok(Some((SectionKind::Certificate, der))) => {
                let of_this = RootDates::of(&der);
                match store.add(CertificateDer::from(der)) {
                    Ok(()) => dates.extend(of_this),
                    Err(error) => why.push(bad(format!("cannot be a root: {error}"))),
                }
            }
            Ok(_) => {}
            Err(_) => why.push(bad("is not base64".into())),
        }
    }
    match (seen, store.is_empty()) {
        (false, _) => Err(TrustError::NoCertificate { found: pem::found(&blocks), path }),
        (true, true) => Err(TrustError::NoRoot { path, why }),
        (true, false) => Ok(why),
    }
}
