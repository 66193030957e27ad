//! From PEM files, a directory of them, the system's store or SPIFFE bundles to a verifier.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::SectionKind;

use super::domains::{self, Domains};
use super::peer::Particular;
use super::revocation::Lists;
use super::snapshot::{RootDates, TrustSnapshot};
use crate::config::plan::{Peers, Roots, TlsVersion, Trust};
use crate::config::spiffe::WorkloadApi;
use crate::files::ReadFile;
use crate::files::pem::{self, PemError};
use crate::files::reload::{Fingerprint, LoadError};
use crate::files::watch::Fingerprints;
use crate::spiffe::SpiffeError;
use crate::spiffe::endpoint::{self, LOOK, Message, Method};

/// A verifier and what it was made of.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Verifies chain, dates and name against the roots.
    pub verifier: Arc<dyn ServerCertVerifier>,
    /// The roots themselves; none where each trust domain has its own.
    pub anchors: Arc<RootCertStore>,
    /// Those of trust domains, where they come from SPIFFE.
    pub domains: Option<Arc<Domains>>,
    /// How many roots it holds. Never zero.
    pub roots: usize,
    /// Those that expire first.
    pub dates: Vec<RootDates>,
    /// What is known of revoked certificates.
    pub lists: Arc<Lists>,
    /// Who is taken of those that the roots vouch for.
    pub peers: Peers,
    /// The oldest TLS that is spoken.
    pub tls_min: TlsVersion,
    /// Certificates that could not be used as roots, and lists that are late, in words.
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
    /// There is no revocation list where some were asked for.
    #[error("{}: holds no revocation list; expected files with X509 CRL blocks or DER, or take `crls` out of the trust",
            path.display())]
    NoList {
        /// The directory.
        path: PathBuf,
    },
    /// A revocation list cannot be used.
    #[error("{place}: is no revocation list that can be used: {why}")]
    BadList {
        /// The file, and the line in it.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// The system's store is empty or cannot be read.
    #[error("the system's store has no roots ({}); install the ca-certificates package, or name a file under `trusts`: \
             hnp's image holds no store, so in a pod mount a file with the roots and name that (`roots: /etc/hnp/ca.crt`)",
            if why.is_empty() { "it is empty".to_owned() } else { why.join("; ") })]
    NoSystemRoots {
        /// What went wrong with parts of it.
        why: Vec<String>,
    },
    /// The Workload API gives no bundles.
    #[error(transparent)]
    Spiffe(#[from] SpiffeError),
    /// rustls made no verifier of the roots.
    #[error("no verifier could be made: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

impl LoadError for TrustError {
    fn may_pass(&self) -> bool {
        false
    }
}

impl Loaded {
    /// As it is published.
    pub fn snapshot(self, name: Arc<str>, generation: u64) -> TrustSnapshot {
        let Self { verifier, anchors, domains, roots, dates, lists, peers, tls_min, warnings: _ } = self;
        TrustSnapshot { name, generation, verifier, anchors, domains, roots, dates, lists, peers, tls_min }
    }
}

/// Reads the roots a trust names.
///
/// # Errors
/// When there is not one usable root; names the file and the certificates in it.
pub fn load(trust: &Trust) -> Result<Loaded, TrustError> {
    Source::read(trust).load(trust)
}

/// All that a trust is made of, as it was at one look.
#[derive(Debug)]
pub(super) struct Source {
    roots: Certificates,
    /// `None` where revocation is not looked at.
    lists: Option<std::io::Result<Vec<ReadFile>>>,
}

#[derive(Debug)]
enum Certificates {
    /// Of a file, or of a directory's.
    Files(PathBuf, std::io::Result<Vec<ReadFile>>),
    System(Vec<CertificateDer<'static>>, Vec<String>),
    /// A Workload API's answer.
    Spiffe(WorkloadApi, Result<Message, SpiffeError>),
}

impl Source {
    pub(super) fn read(trust: &Trust) -> Self {
        let roots = match &trust.roots {
            Roots::File(path) => Certificates::Files(path.clone(), crate::files::read_all(path)),
            Roots::System => {
                let found = rustls_native_certs::load_native_certs();
                Certificates::System(found.certs, found.errors.iter().map(ToString::to_string).collect())
            }
            Roots::Spiffe(api) => {
                Certificates::Spiffe(api.clone(), endpoint::once(&api.socket, Method::X509Bundles, LOOK))
            }
        };
        Self { roots, lists: trust.revocation.crls.as_deref().map(crate::files::read_all) }
    }

    pub(super) fn fingerprint(&self, fingerprints: &Fingerprints) -> Fingerprint {
        let mut pieces = Vec::new();
        match &self.roots {
            Certificates::Files(_, files) => pieces_of(files, &mut pieces),
            Certificates::System(certificates, _) => {
                pieces.extend(certificates.iter().map(|der| Ok(der.as_ref())));
            }
            Certificates::Spiffe(_, message) => {
                pieces.extend(message.iter().map(|message| Ok(message.as_slice())));
            }
        }
        // What is a root must not be taken for a list.
        pieces.push(Ok(&[]));
        if let Some(files) = &self.lists {
            pieces_of(files, &mut pieces);
        }
        fingerprints.of(pieces)
    }

    pub(super) fn load(self, trust: &Trust) -> Result<Loaded, TrustError> {
        let mut store = RootCertStore::empty();
        let mut dates = Vec::new();
        let mut warnings = match self.roots {
            Certificates::Files(path, files) => from_files(&mut store, &mut dates, path, files)?,
            Certificates::System(certificates, mut why) => {
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
            Certificates::Spiffe(api, message) => {
                let socket = api.socket;
                return domains::read(&message?, trust).map_err(|what| SpiffeError { socket, what }.into());
            }
        };
        let roots = store.len();
        let anchors = Arc::new(store);
        let (lists, late) = Lists::of(&trust.revocation, self.lists, &anchors)?;
        warnings.extend(late);
        let provider = crate::crypto::provider();
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::clone(&anchors), provider);
        let mut verifier: Arc<dyn ServerCertVerifier> = lists.for_servers(builder).build()?;
        let (peers, tls_min) = (trust.peers.clone(), trust.tls_min);
        if peers != Peers::default() {
            verifier = Arc::new(Particular { inner: verifier, peers: peers.clone() });
        }
        let (lists, dates) = (Arc::new(lists), RootDates::first_to_end(dates));
        Ok(Loaded { verifier, anchors, domains: None, roots, dates, lists, peers, tls_min, warnings })
    }
}

fn pieces_of<'a>(
    files: &'a std::io::Result<Vec<ReadFile>>,
    pieces: &mut Vec<Result<&'a [u8], std::io::ErrorKind>>,
) {
    match files {
        Ok(files) => {
            pieces.extend(files.iter().map(|(_, bytes)| bytes.as_deref().map_err(std::io::Error::kind)));
        }
        Err(error) => pieces.push(Err(error.kind())),
    }
}

/// Adds the roots of one file, or of all files of a directory: there, what is no certificate is none of our business,
/// and one that is there twice (under its hash as well) counts once.
fn from_files(
    store: &mut RootCertStore,
    dates: &mut Vec<RootDates>,
    path: PathBuf,
    files: std::io::Result<Vec<ReadFile>>,
) -> Result<Vec<String>, TrustError> {
    let unreadable = |path, source| TrustError::Unreadable { path, source };
    let files = match files {
        Ok(files) => files,
        Err(source) => return Err(unreadable(path, source)),
    };
    let one = matches!(&files[..], [(file, _)] if *file == path);
    let mut seen = HashSet::new();
    let mut why = Vec::new();
    let mut found = "found no file with one".to_owned();
    for (file, bytes) in files {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(source) if one => return Err(unreadable(file, source)),
            Err(error) => {
                why.push(format!("{}: cannot be read: {error}", file.display()));
                continue;
            }
        };
        let blocks = match pem::blocks(&bytes) {
            Ok(blocks) => blocks,
            Err(source) if one => return Err(TrustError::Pem { path: file, source }),
            Err(error) => {
                why.push(format!("{}: {error}", file.display()));
                continue;
            }
        };
        if one {
            found = pem::found(&blocks);
        }
        for block in blocks.iter().filter(|block| block.label == "CERTIFICATE") {
            let bad =
                |what: String| format!("{}: the certificate in line {} {what}", file.display(), block.line);
            match block.decode() {
                Ok(Some((SectionKind::Certificate, der))) => {
                    if !seen.insert(der.clone()) {
                        continue;
                    }
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
    }
    match (seen.is_empty() && why.is_empty(), store.is_empty()) {
        (true, _) => Err(TrustError::NoCertificate { found, path }),
        (false, true) => Err(TrustError::NoRoot { path, why }),
        (false, false) => Ok(why),
    }
}
