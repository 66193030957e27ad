//! Why files, or what the Workload API gives out, are no identity, and what is allowed and should be known of those that are.
//!
//! Each names file, block and what to do; none holds a byte of a key or a passphrase.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::files::pem::PemError;
use crate::files::reload::LoadError;
use crate::spiffe::SpiffeError;
use crate::x509::span;

/// What is allowed and should be known.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdentityWarning {
    /// The leaf is of an old form.
    #[error("{}: is an X.509 version {version} certificate; it is presented, though some servers refuse it. \
             Sign it with an extension (OpenSSL: a non-empty -extensions section) to get version 3", path.display())]
    OldVersion {
        /// The certificate's file.
        path: PathBuf,
        /// 1 or 2.
        version: u8,
    },
    /// The leaf has expired.
    #[error("{}: has expired {} ago", path.display(), span(*.since))]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// How long ago.
        since: Duration,
    },
    /// The leaf is not valid yet.
    #[error("{}: becomes valid only in {}: is this node's clock right?", path.display(), span(*.until))]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// How long until it is.
        until: Duration,
    },
    /// Everybody on the node may use the key's file, or its passphrase's. A group may: it is how Kubernetes lets a user
    /// other than root read a secret (`fsGroup`).
    #[error("{}: its mode {mode:04o} lets every user on this node read or change the {what}; chmod o= would do", path.display())]
    KeyForAll {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What it holds.
        what: &'static str,
    },
    /// A root is on a node.
    #[error("{}: is a root, so whoever takes this node can issue for everybody who trusts it, and only a new root ends that; \
             `hnp-agent certs issue intermediate` makes an intermediate for each node", path.display())]
    RootIssues {
        /// The certificate's file.
        path: PathBuf,
    },
    /// An intermediate may have others below it.
    #[error("{}: its path length is {}, so whoever takes this node can make further CAs; one for a node has path length 0 \
             (`hnp-agent certs issue intermediate` makes such)", path.display(),
            length.map_or_else(|| "not limited".into(), |length| length.to_string()))]
    PathLength {
        /// The certificate's file.
        path: PathBuf,
        /// `None`: not limited.
        length: Option<u32>,
    },
    /// A passphrase that is not needed.
    #[error("{}: is not needed: the key in {} is not encrypted", path.display(), key.display())]
    NeedlessPassphrase {
        /// The passphrase's file.
        path: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file's PEM is broken.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Which block, and what is wrong with it.
        source: PemError,
    },
    /// There is no certificate in the certificate's file.
    #[error("{}: expected a CERTIFICATE block, {found}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What there is.
        found: String,
    },
    /// There is no private key in the key's file.
    #[error("{}: expected a PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY block, {found}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What there is.
        found: String,
    },
    /// The key has a passphrase, and none is known.
    #[error("{}: the key in line {line} is encrypted; name a file with its passphrase (`passphrase_file` beside it in the \
             agent's configuration, --passphrase-file for `certs`), or have a key without one (openssl pkey -in FILE \
             -out FILE.plain)", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
        /// The block's first line.
        line: usize,
    },
    /// The key has a passphrase in the way of OpenSSL's former versions.
    #[error("{}: the key in line {line} is encrypted in the traditional way (Proc-Type: 4,ENCRYPTED), which is weak and not \
             read; openssl pkcs8 -topk8 -in FILE -out FILE.new makes one that is, with the same passphrase", path.display())]
    TraditionallyEncrypted {
        /// The file.
        path: PathBuf,
        /// The block's first line.
        line: usize,
    },
    /// The key has a passphrase, protected in a way that is not read.
    #[error("{}: the key in line {line} is encrypted in a way that is not read: {why}; expected PBES2 with PBKDF2 or scrypt \
             and AES-CBC (openssl pkcs8 -topk8 -v2 aes-256-cbc -in FILE -out FILE.new)", path.display())]
    UnsupportedEncryption {
        /// The file.
        path: PathBuf,
        /// The block's first line.
        line: usize,
        /// What it is encrypted with.
        why: String,
    },
    /// The passphrase is not the key's.
    #[error("{}: the passphrase in {} does not open the key in line {line}; one line end after it is ignored, blanks are not \
             (openssl pkey -in KEY -passin file:PASSPHRASE -noout tells whether it would)", path.display(),
            passphrase_file.display())]
    WrongPassphrase {
        /// The file.
        path: PathBuf,
        /// The block's first line.
        line: usize,
        /// Where the passphrase is.
        passphrase_file: PathBuf,
    },
    /// The passphrase file is empty.
    #[error("{}: is empty; expected the key's passphrase on one line", path.display())]
    NoPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// A directory holds no identity.
    #[error("{}: holds no identity: looked for {wanted}; name the files by certificate and key if they are called otherwise",
            directory.display())]
    NoLayout {
        /// The directory.
        directory: PathBuf,
        /// What was looked for.
        wanted: String,
    },
    /// A directory holds more than one identity.
    #[error("{}: holds {} and {}, and either might be meant; name the files by certificate and key, or leave one pair in it",
            directory.display(), keys[0], keys[1])]
    TwoLayouts {
        /// The directory.
        directory: PathBuf,
        /// The names of both keys.
        keys: [&'static str; 2],
    },
    /// A certificate is not one.
    #[error("{}: the certificate in line {line} is not X.509: {why}", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// The block's first line.
        line: usize,
        /// The parser's words.
        why: String,
    },
    /// The key is of a kind that cannot be used.
    #[error("{}: the {label} in line {line} cannot be used; expected RSA (2048 to 8192 bits), \
             EC (P-256, P-384, P-521) or Ed25519", path.display())]
    UnsupportedKey {
        /// The file.
        path: PathBuf,
        /// The block's label.
        label: String,
        /// The block's first line.
        line: usize,
    },
    /// Key and certificate do not belong together.
    #[error("{}: the key is not the one of the first certificate in {}{hint}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What may have happened.
        hint: &'static str,
    },
    /// The certificate and its key are there, and cannot issue for workloads.
    #[error("{0}")]
    CannotIssue(String),
    /// The Workload API gives none.
    #[error(transparent)]
    Spiffe(#[from] SpiffeError),
    /// The new certificate cannot be used today, and the one that is presented can.
    #[error("{0}; the certificate that is presented is still valid and stays")]
    NotNow(IdentityWarning),
}

impl LoadError for IdentityError {
    fn may_pass(&self) -> bool {
        // Of an intermediate too: it may become valid later.
        matches!(self, Self::NotNow(_) | Self::CannotIssue(_))
    }
}
