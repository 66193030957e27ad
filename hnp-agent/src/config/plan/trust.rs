//! What the agent accepts from the other side.

use std::path::PathBuf;
use std::sync::Arc;

use super::NamePattern;
use crate::config::spiffe::{IdPattern, WorkloadApi};

/// What the agent accepts from an upstream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trust {
    /// The name routes refer to.
    pub name: Arc<str>,
    /// Where the roots come from.
    pub roots: Roots,
    /// What is known of certificates that were revoked.
    pub revocation: Revocation,
    /// Who is taken of those that the roots vouch for.
    pub peers: Peers,
    /// The oldest TLS that is spoken with whoever is verified by it.
    pub tls_min: TlsVersion,
}

/// Who is taken of those that a trust's roots vouch for. Of each list that is not empty one entry must fit.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Peers {
    /// SPIFFE IDs. Never empty where the roots are SPIFFE bundles.
    pub ids: Vec<IdPattern>,
    /// DNS names among those of the certificate.
    pub names: Vec<NamePattern>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

impl TlsVersion {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1_2 => "1.2",
            Self::V1_3 => "1.3",
        }
    }
}

impl Trust {
    /// One that takes whoever these roots vouch for.
    pub fn of_roots(name: Arc<str>, roots: Roots) -> Self {
        let (revocation, peers, tls_min) = Default::default();
        Self { name, roots, revocation, peers, tls_min }
    }
}

/// Where a trust's revocation lists (CRLs) come from, and what holds where they say nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Revocation {
    /// A file of lists or a directory of such, PEM or DER; `None`: revocation is not looked at.
    pub crls: Option<PathBuf>,
    /// Of certificates whose issuer has no list there.
    pub unknown: OnDoubt,
    /// Of certificates whose issuer's list should have been renewed.
    pub expired: OnDoubt,
}

/// What becomes of a certificate of which it cannot be told whether it was revoked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnDoubt {
    /// It is refused.
    #[default]
    Refuse,
    /// It is taken for not revoked.
    Allow,
}

/// Where trusted roots come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Roots {
    /// One PEM file with one or more CA certificates, or a directory of such.
    File(PathBuf),
    /// The system's store.
    System,
    /// The bundles of a SPIFFE Workload API, each for its own trust domain.
    Spiffe(WorkloadApi),
}

impl std::fmt::Display for Roots {
    /// As people call it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::System => f.write_str("the system's store"),
            Self::Spiffe(api) => write!(f, "the SPIFFE bundles of {api}"),
        }
    }
}
