//! `hnp-agent certs renew`: the one command that replaces files by design.

use std::path::{Path, PathBuf};

use super::{CaFiles, CertsError, End, Written, shown};
use crate::certs::store::{self, Existing};
use crate::certs::{Authority, Renewal, renew};
use crate::files::pem;
use crate::identity::files::load::{IdentityError, certificates};

/// Arguments of `renew`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Subject, names, usages and all else stay, and the lifetime unless another is given. The files keep \
    owner and mode, and change in one step each; a running agent takes the new ones by itself. Examples:\n  \
    hnp-agent certs renew client.crt\n  \
    hnp-agent certs renew client.crt --new-key\n  \
    hnp-agent certs renew ca.crt              # the CA itself, with its key: what it has issued stays good"
)]
pub(super) struct Args {
    /// The certificate's file.
    file: PathBuf,
    /// Give it a new key of the same kind, too.
    #[arg(long)]
    new_key: bool,
    /// The key's file, replaced with --new-key; beside the certificate, with the ending .key, if left out.
    #[arg(long, value_name = "FILE", requires = "new_key")]
    key: Option<PathBuf>,
    #[command(flatten)]
    ca: CaFiles,
    #[command(flatten)]
    end: End,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn json(&self) -> bool {
        self.json
    }
}

pub(super) fn run(args: &Args) -> Result<Written, CertsError> {
    let now = crate::clock::now();
    let file = &args.file;
    let key = args.key.clone().unwrap_or_else(|| file.with_extension("key"));
    let read = |path: &Path| {
        crate::files::read(path).map_err(|source| IdentityError::Unreadable { path: path.to_owned(), source })
    };
    let bytes = read(file)?;
    let old = certificates(file, &bytes)?;
    if let Some(other) = other_blocks(&bytes) {
        let what = format!(
            "{}: has a {other} block beside its certificates, which renewing would lose; put them into files of their own",
            file.display()
        );
        return Err(CertsError::Wrong(what));
    }
    if args.new_key {
        // A typing mistake must not leave a second key somewhere.
        let bytes = crate::files::read_secret(&key)
            .map_err(|source| IdentityError::Unreadable { path: key.clone(), source })?;
        refuse_encrypted(&key, &bytes)?;
    }
    let CaFiles { ca, ca_key, passphrase_file } = &args.ca;
    let passphrase_file = passphrase_file.as_deref();
    let authority = Authority::load(ca, ca_key, passphrase_file, now).or_else(|error| match error {
        // An expired root renews itself, and nothing else.
        CertsError::CannotIssue { .. } if same_file(file, ca) => {
            Authority::load_to_renew(ca, ca_key, passphrase_file)
        }
        error => Err(error),
    })?;
    let how = Renewal { new_key: args.new_key, until: args.end.until() };
    let issued = renew(file, &old, &authority, how, now)?;
    let files = issued.files(file, &key);
    store::write(&files, Existing::Renew)?;
    let with_key = if args.new_key { format!(" --key {}", shown(&key)) } else { String::new() };
    let next = if same_file(file, &args.ca.ca) {
        format!("give {} to whoever has the old one; what it has issued stays as it is", shown(file))
    } else {
        format!("hnp-agent certs verify {} --ca {}{with_key}", shown(file), shown(&args.ca.ca))
    };
    Ok(Written { issued, files, verb: "renewed", next })
}

fn same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// A key that has a passphrase is not replaced by one that has none.
fn refuse_encrypted(path: &Path, bytes: &[u8]) -> Result<(), CertsError> {
    let is_encrypted =
        |block: &pem::Block<'_>| block.label == "ENCRYPTED PRIVATE KEY" || block.has_encryption_headers();
    if !pem::blocks(bytes).is_ok_and(|blocks| blocks.iter().any(is_encrypted)) {
        return Ok(());
    }
    let path = path.display();
    Err(CertsError::Wrong(format!(
        "{path}: is encrypted, and a new key is written without a passphrase; renew with the same key, or have a new \
         pair issued elsewhere (hnp-agent certs issue ... --out-dir DIR) and encrypt its key (openssl pkcs8 -topk8 -in \
         DIR/NAME.key -out {path})"
    )))
}

/// The label of a block that is no certificate.
fn other_blocks(bytes: &[u8]) -> Option<String> {
    let blocks = pem::blocks(bytes).ok()?;
    blocks.into_iter().map(|block| block.label).find(|label| label != "CERTIFICATE")
}
