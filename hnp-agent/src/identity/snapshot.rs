//! What an identity source publishes: a certificate chain and key that belong together.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use rustls::sign::CertifiedKey;

use super::issuer::Issuer;
use crate::config::spiffe::SpiffeId;
use crate::expiry::Lifetime;

/// One validated generation of an identity. Never half-loaded.
#[derive(Debug)]
pub struct IdentitySnapshot {
    /// The identity's name in the Plan.
    pub name: Arc<str>,
    /// Grows by one with every published change of this identity, starting at 1.
    pub generation: u64,
    /// Chain and key, ready to be presented. May be X.509 v1, which rustls' own builder refuses.
    pub certified_key: Arc<CertifiedKey>,
    /// What the leaf says.
    pub leaf: LeafInfo,
    /// Whose it is.
    pub holder: Holder,
    /// The last moment at which it may be presented; `None`: for as long as there is no better one.
    pub until: Option<SystemTime>,
}

/// Whose an identity is.
#[derive(Debug)]
pub enum Holder {
    /// The agent's own, presented for every workload.
    Agent,
    /// Nobody's: it is an intermediate, which is never presented. What it issues is.
    Issuer(Arc<Issuer>),
    /// One workload's, issued here.
    Workload(OfWorkload),
}

/// What is known of an identity that was issued for a workload.
#[derive(Debug)]
pub struct OfWorkload {
    /// Its URI.
    pub spiffe_id: Arc<str>,
    pub(super) issuer: Weak<Issuer>,
    /// It is presented no more: another has taken its place, or its pods have gone.
    pub(super) retired: AtomicBool,
}

impl IdentitySnapshot {
    /// Whether it may be presented at this moment.
    pub fn is_presentable(&self) -> bool {
        // The clock is asked where it matters only: this is on the way of every request.
        self.until.is_none_or(|until| crate::clock::now() <= until)
    }

    /// The issuer, where this is its intermediate.
    pub fn issuer(&self) -> Option<&Arc<Issuer>> {
        match &self.holder {
            Holder::Issuer(issuer) => Some(issuer),
            Holder::Agent | Holder::Workload(_) => None,
        }
    }

    /// Set where it was issued for a workload.
    pub fn of_workload(&self) -> Option<&OfWorkload> {
        match &self.holder {
            Holder::Workload(workload) => Some(workload),
            Holder::Agent | Holder::Issuer(_) => None,
        }
    }
}

impl OfWorkload {
    /// Whether `issuer` issued it and has it presented still.
    pub fn is_presented_by(&self, issuer: &Arc<Issuer>) -> bool {
        !self.retired.load(Relaxed) && std::ptr::eq(self.issuer.as_ptr(), Arc::as_ptr(issuer))
    }
}

/// Where a chain and key are from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The file that the leaf is in.
    File(PathBuf),
    /// A Workload API.
    WorkloadApi {
        /// Its socket.
        socket: PathBuf,
        /// What the leaf is for.
        id: SpiffeId,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::WorkloadApi { socket, id } => write!(f, "{}: the SVID {id}", socket.display()),
        }
    }
}

/// The facts of a leaf certificate that logs, metrics and people need.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeafInfo {
    /// RFC 4514-like text, such as `O=Example ORG, CN=Client`.
    pub subject: String,
    /// The issuer's name, in the same form.
    pub issuer: String,
    /// Lower-case hexadecimal, no separators, no leading zeros beyond whole bytes.
    pub serial: String,
    /// First moment it is valid.
    pub not_before: SystemTime,
    /// Last moment it is valid.
    pub not_after: SystemTime,
    /// X.509 version: 1, 2 or 3.
    pub version: u8,
}

impl LeafInfo {
    /// Its dates.
    pub fn lifetime(&self) -> Lifetime {
        Lifetime { not_before: self.not_before, not_after: self.not_after }
    }
}

/// The current generation; `None` until the first one was loaded.
pub type SharedIdentity = Arc<arc_swap::ArcSwapOption<IdentitySnapshot>>;
