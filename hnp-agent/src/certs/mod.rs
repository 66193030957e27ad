//! Making, renewing, examining and judging certificates: what `hnp-agent certs` does.
//!
//! One command for each step of an OpenSSL recipe, with nothing left to get wrong: X.509 version 3, the
//! extensions RFC 5280 asks for, a random serial, keys that only their owner can read. What is made is judged by
//! the verifiers that the agent itself uses before it is written; what is there is never overwritten unasked.
//! Nothing here serves traffic: the agent loads its files through `identity` and `trust`, like anybody's; an issuer
//! (`identity::issuer`) has its certificates signed here.

mod authority;
mod der;
pub mod facts;
pub mod inspect;
mod issue;
mod judge;
pub mod key;
pub mod names;
mod renew;
pub mod store;
mod subject;
pub mod verify;
pub mod when;

use std::path::PathBuf;

pub use authority::Authority;
pub(crate) use authority::is_self_signed;
pub(crate) use issue::Leaf;
pub use issue::{Issued, Purpose, Request, init_ca};
pub use renew::{Renewal, renew};
pub use subject::Subject;

use crate::identity::files::load::IdentityError;

/// Why a certificate was not made, renewed or written.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file is not what it should be.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// There is no CA where one is expected.
    #[error("{}: there is no such file; `hnp-agent certs init-ca` makes a CA, and --ca and --ca-key name one that \
             lies elsewhere", path.display())]
    NoCa {
        /// The file.
        path: PathBuf,
    },
    /// The certificate cannot issue what is wanted.
    #[error("{}: cannot issue it: {why}", path.display())]
    CannotIssue {
        /// The CA's file.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// Key and CA do not belong together.
    #[error("{}: is not the key of any certificate in {}; `hnp-agent certs inspect` shows which keys belong to \
             which certificates", key.display(), certificate.display())]
    KeyOfAnother {
        /// The CA's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The file is there.
    #[error("{}: exists already and is kept, and nothing is written; --force overwrites it, --out-dir and --out-name \
             choose another place", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// What is asked for makes no sense.
    #[error("{0}")]
    Wrong(String),
    /// The library made no certificate.
    #[error("the certificate could not be made: {0}")]
    Making(#[from] rcgen::Error),
    /// What was made would be refused.
    #[error("nothing is written, because a {by} would refuse the certificate: {why}")]
    Refused {
        /// Who.
        by: &'static str,
        /// The verifier's words.
        why: String,
    },
}

#[cfg(test)]
mod tests;
