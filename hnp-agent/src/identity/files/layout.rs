//! Directories that hold an identity under names that others have chosen: a Kubernetes TLS secret as cert-manager fills
//! it, and what certbot and Vault Agent write.
//!
//! Looked at anew each time: the names are symbolic links, and what they lead to is replaced.

use std::path::{Path, PathBuf};

use super::error::IdentityError;

/// Certificate and key of a layout, and who writes them so.
const LAYOUTS: [(&[&str], &str, &str); 2] = [
    (&["tls.crt"], "tls.key", "a Kubernetes TLS secret, cert-manager"),
    // certbot has both certificates; the one with its chain is meant for servers and clients.
    (&["fullchain.pem", "cert.pem"], "privkey.pem", "certbot, Vault Agent"),
];

/// Every file that may belong to an identity in a directory: what is watched.
pub(super) fn all(directory: &Path) -> Vec<PathBuf> {
    let names = LAYOUTS.iter().flat_map(|(certificates, key, _)| certificates.iter().chain([key]));
    names.map(|name| directory.join(name)).collect()
}

/// Where certificate and key lie now.
///
/// # Errors
/// There is no layout that is known, or more than one.
pub(super) fn find(directory: &Path) -> Result<(PathBuf, PathBuf), IdentityError> {
    let there = |name: &str| directory.join(name).exists();
    let found: Vec<_> = LAYOUTS.iter().filter(|(_, key, _)| there(key)).collect();
    match found[..] {
        [(certificates, key, _)] => {
            let certificate = certificates.iter().find(|name| there(name)).unwrap_or(&certificates[0]);
            Ok((directory.join(certificate), directory.join(key)))
        }
        [] => Err(IdentityError::NoLayout { directory: directory.to_owned(), wanted: wanted() }),
        [(_, one, _), (_, other, _), ..] => {
            Err(IdentityError::TwoLayouts { directory: directory.to_owned(), keys: [one, other] })
        }
    }
}

fn wanted() -> String {
    let one = |(certificates, key, who): &(&[&str], &str, &str)| {
        format!("{key} with {} ({who})", certificates.join(" or "))
    };
    LAYOUTS.iter().map(one).collect::<Vec<_>>().join(", or ")
}
