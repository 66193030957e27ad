//! Where certificates and keys come from that the agent presents.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::spiffe::SpiffeIdentity;

/// A certificate chain and its private key, and where they come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The name routes refer to.
    pub name: Arc<str>,
    /// Where they come from.
    pub source: IdentitySource,
}

/// Where an identity comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum IdentitySource {
    /// From files, which whoever renews the certificate replaces.
    Files(IdentityFiles),
    /// From the SPIFFE Workload API, which pushes it.
    Spiffe(SpiffeIdentity),
    /// Issued by the agent, for each workload its own.
    Issuer(Issuer),
}

impl IdentitySource {
    /// The files it is made of, if it is: those of the identity, or of the intermediate that issues it.
    pub fn files(&self) -> Option<&IdentityFiles> {
        match self {
            Self::Files(files) => Some(files),
            Self::Spiffe(_) => None,
            Self::Issuer(issuer) => Some(&issuer.intermediate),
        }
    }

    /// Set where each workload has an identity of its own.
    pub fn issuer(&self) -> Option<&Issuer> {
        match self {
            Self::Files(_) | Self::Spiffe(_) => None,
            Self::Issuer(issuer) => Some(issuer),
        }
    }
}

/// Identities that the agent issues for workloads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Issuer {
    /// The certificate and key of the intermediate that signs them.
    pub intermediate: IdentityFiles,
    /// What their SPIFFE IDs begin with, without the scheme.
    pub trust_domain: Arc<str>,
    /// How long each is valid.
    pub lifetime: Duration,
    /// Whether each pod has one of its own, with the pod's UID in the subject.
    pub pod_uid: bool,
    /// How many are kept at a time.
    pub max_identities: usize,
}

/// A certificate chain and its private key in files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentityFiles {
    /// Where they lie.
    pub place: IdentityPlace,
    /// The file with the key's passphrase; `None` where the key has none.
    pub passphrase_file: Option<PathBuf>,
}

/// Where the files of an identity lie.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum IdentityPlace {
    /// In files that are named.
    Pair {
        /// PEM file with the certificate chain, leaf first.
        certificate: PathBuf,
        /// PEM file with the private key (PKCS#8, PKCS#1 or SEC1).
        key: PathBuf,
    },
    /// In a directory, under names that Kubernetes, certbot or Vault Agent give them.
    Directory(PathBuf),
}
