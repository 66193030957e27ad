//! Certificate revocation lists (CRLs, RFC 5280 section 5): read from files, and given to whoever verifies.
//!
//! webpki checks each certificate of a chain below the root, with the first list that fits; so the newest of an issuer
//! comes first. It takes certificates of version 3 only: for the others, `Lists::check` looks at the list itself.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::{ServerCertVerifierBuilder, WebPkiServerVerifier};
use rustls::server::ClientCertVerifierBuilder;
use rustls::{CertificateError, Error, RootCertStore};
use rustls_pki_types::pem::SectionKind;
use rustls_pki_types::{CertificateRevocationListDer, UnixTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use super::load::TrustError;
use crate::config::plan::{OnDoubt, Revocation};
use crate::files::{ReadFile, pem};
use crate::x509::{self, span};

/// The issuing distribution point, and the mark of a list of changes: such lists do not speak of all certificates.
const PARTIAL: [&str; 2] = ["2.5.29.28", "2.5.29.27"];

/// A trust's lists, and what holds where they say nothing. None: revocation is not looked at.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    lists: Vec<List>,
    unknown: OnDoubt,
    expired: OnDoubt,
}

/// One list.
#[derive(Clone, Debug)]
struct List {
    der: CertificateRevocationListDer<'static>,
    this_update: SystemTime,
    next_update: Option<SystemTime>,
}

impl Lists {
    /// What files hold. The lists' signatures are verified when they are used: only then is their issuer's key known.
    ///
    /// # Errors
    /// A file cannot be read or holds something else, or there is no list at all: what was asked for is not there.
    pub(crate) fn of(
        revocation: &Revocation,
        files: Option<std::io::Result<Vec<ReadFile>>>,
        anchors: &Arc<RootCertStore>,
    ) -> Result<(Self, Vec<String>), TrustError> {
        let (Some(path), Some(files)) = (&revocation.crls, files) else {
            return Ok((Self::default(), Vec::new()));
        };
        let files = files.map_err(|source| TrustError::Unreadable { path: path.clone(), source })?;
        let mut lists = Vec::new();
        let mut warnings = Vec::new();
        for (path, bytes) in files {
            let bytes = bytes.map_err(|source| TrustError::Unreadable { path: path.clone(), source })?;
            for (line, der) in ders(&path, bytes)? {
                let (list, warning) = List::of(&path, line, der, anchors)?;
                lists.push(list);
                warnings.extend(warning);
            }
        }
        if lists.is_empty() {
            return Err(TrustError::NoList { path: path.clone() });
        }
        lists.sort_by_key(|list| Reverse(list.this_update));
        Ok((Self { lists, unknown: revocation.unknown, expired: revocation.expired }, warnings))
    }

    /// Those that a Workload API gives out. They are of whichever domain has some, so a certificate without a list is
    /// nothing unusual; a late one is.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub(super) fn of_api(ders: &[&[u8]], anchors: &Arc<RootCertStore>) -> Result<Self, TrustError> {
        let mut lists = Vec::new();
        for (at, der) in ders.iter().enumerate() {
            let (list, _) =
                List::of(&PathBuf::from(format!("list {}", at + 1)), None, der.to_vec(), anchors)?;
            lists.push(list);
        }
        lists.sort_by_key(|list| Reverse(list.this_update));
        Ok(Self { lists, unknown: OnDoubt::Allow, expired: OnDoubt::Refuse })
    }

    /// How many there are; none where revocation is not looked at.
    pub fn count(&self) -> usize {
        self.lists.len()
    }

    /// When the first of them should be renewed.
    pub fn next_update(&self) -> Option<SystemTime> {
        self.lists.iter().filter_map(|list| list.next_update).min()
    }

    fn ders(&self) -> impl Iterator<Item = CertificateRevocationListDer<'static>> {
        self.lists.iter().map(|list| list.der.clone())
    }

    /// For a verifier of servers.
    pub(super) fn for_servers(&self, builder: ServerCertVerifierBuilder) -> ServerCertVerifierBuilder {
        let mut builder = builder.with_crls(self.ders());
        if self.unknown == OnDoubt::Allow {
            builder = builder.allow_unknown_revocation_status();
        }
        if self.expired == OnDoubt::Refuse {
            builder = builder.enforce_revocation_expiration();
        }
        builder
    }

    /// For a verifier of clients.
    pub(crate) fn for_clients(&self, builder: ClientCertVerifierBuilder) -> ClientCertVerifierBuilder {
        let mut builder = builder.with_crls(self.ders());
        if self.unknown == OnDoubt::Allow {
            builder = builder.allow_unknown_revocation_status();
        }
        if self.expired == OnDoubt::Refuse {
            builder = builder.enforce_revocation_expiration();
        }
        builder
    }

    /// Whether a certificate that a root has signed was revoked. `issuer`: its issuer's name in DER; `signed_by_root`
    /// says whether a list is signed with that root's key.
    ///
    /// # Errors
    /// It was, or that cannot be told and is refused then.
    pub(crate) fn check(
        &self,
        issuer: &[u8],
        serial: &[u8],
        now: UnixTime,
        signed_by_root: impl Fn(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let parsed = self.lists.iter().filter_map(|list| {
            let (_, parsed) = CertificateRevocationList::from_der(&list.der).ok()?;
            let whole = !parsed.extensions().iter().any(|one| PARTIAL.contains(&&*one.oid.to_id_string()));
            (whole && parsed.issuer().as_raw() == issuer).then_some((list, parsed))
        });
        let Some((list, parsed)) = parsed.into_iter().next() else {
            return match self.unknown {
                OnDoubt::Allow => Ok(()),
                OnDoubt::Refuse => Err(CertificateError::UnknownRevocationStatus.into()),
            };
        };
        signed_by_root(&list.der)?;
        let now = UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        if self.expired == OnDoubt::Refuse && list.next_update.is_none_or(|next| next < now) {
            return Err(CertificateError::ExpiredRevocationList.into());
        }
        if parsed.iter_revoked_certificates().any(|one| one.raw_serial() == serial) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(())
    }
}

impl List {
    fn of(
        path: &Path,
        line: Option<usize>,
        der: Vec<u8>,
        anchors: &Arc<RootCertStore>,
    ) -> Result<(Self, Option<String>), TrustError> {
        let place = match line {
            Some(line) => format!("{}:{line}", path.display()),
            None => path.display().to_string(),
        };
        let bad = |why: String| TrustError::BadList { place: place.clone(), why };
        let der = CertificateRevocationListDer::from(der);
        let (this_update, next_update, issuer) = match CertificateRevocationList::from_der(&der) {
            Ok(([], list)) => (
                x509::moment(list.last_update()),
                list.next_update().map(x509::moment),
                x509::distinguished_name(list.issuer()),
            ),
            Ok((rest, _)) => return Err(bad(format!("{} bytes follow it", rest.len()))),
            Err(error) => return Err(bad(error.to_string())),
        };
        // What webpki cannot read must not be found out by whoever connects: rustls has no other way to ask it.
        WebPkiServerVerifier::builder_with_provider(Arc::clone(anchors), crate::crypto::provider())
            .with_crls([der.clone()])
            .build()
            .map_err(|error| bad(error.to_string()))?;
        let late = next_update.and_then(|next| crate::clock::now().duration_since(next).ok());
        let warning = late.map(|late| {
            format!("{place}: the revocation list of {issuer} should have been renewed {} ago", span(late))
        });
        Ok((Self { der, this_update, next_update }, warning))
    }
}

/// A list in DER, and its line where its file is text.
type Placed = (Option<usize>, Vec<u8>);

/// The lists of a file.
fn ders(path: &Path, bytes: Vec<u8>) -> Result<Vec<Placed>, TrustError> {
    // DER begins with a sequence, and no text does.
    if bytes.first() == Some(&0x30) {
        return Ok(vec![(None, bytes)]);
    }
    let broken = |source| TrustError::Pem { path: PathBuf::from(path), source };
    let blocks = pem::blocks(&bytes).map_err(broken)?;
    let mut ders = Vec::new();
    for block in &blocks {
        if let Some((SectionKind::Crl, der)) = block.decode().map_err(broken)? {
            ders.push((Some(block.line), der));
        }
    }
    if ders.is_empty() {
        let why = format!("expected an X509 CRL block or DER, {}", pem::found(&blocks));
        return Err(TrustError::BadList { place: path.display().to_string(), why });
    }
    Ok(ders)
}
