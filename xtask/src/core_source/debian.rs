//! Debian's package rust-src, unpacked and never installed: Debian packages each Rust release for its
//! backports.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::apt::{Apt, Debian};
use crate::shell::note;
use crate::toolchain::{Rust, Workspace};

/// Where Debian keeps new Rust releases, most likely first.
const SUITES: [&str; 3] = ["trixie-backports", "forky-backports", "sid"];

/// Downloads and unpacks the package of exactly this release below `into`; returns `library` in it.
pub(super) fn fetch(_: &Workspace, rust: &Rust, into: &Path) -> Result<PathBuf> {
    let debian = Debian::of_this_machine()?;
    note("asking the Debian mirror of this machine for rust-src");
    let mut tried = String::new();
    for suite in SUITES {
        match from_suite(&debian, suite, rust, into) {
            Ok(library) => return Ok(library),
            Err(error) => tried.push_str(&format!("\n      {suite}: {error:#}")),
        }
    }
    bail!("not in any suite:{tried}")
}

fn from_suite(debian: &Debian, suite: &str, rust: &Rust, into: &Path) -> Result<PathBuf> {
    let dir = into.join(suite);
    let apt = Apt::new(&dir, &[(&debian.releases, &[suite])])?;
    apt.update()?;
    let known: Vec<String> = apt.versions(&["rust-src"])?.into_iter().map(|(_, version)| version).collect();
    let version = pick(&known, &rust.release)
        .with_context(|| format!("no version {} among: {}", rust.release, known.join(", ")))?;
    note(&format!("downloading rust-src {version} (45 MB)"));
    let unpacked = dir.join("unpacked");
    apt.fetch(&[&format!("rust-src={version}")], &unpacked)?;
    Ok(unpacked.join(format!("usr/src/rustc-{}/library", rust.release)))
}

/// The Debian version of exactly this upstream release, such as `1.95.0+dfsg1-2~bpo13+1`.
fn pick<'a>(versions: &'a [String], release: &str) -> Option<&'a str> {
    versions
        .iter()
        .map(String::as_str)
        .find(|version| version.strip_prefix(release).is_some_and(|rest| rest.starts_with(['+', '-'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_release_is_picked() {
        let versions = ["1.96.1+dfsg1-2~bpo13+1".to_owned(), "1.95.0+dfsg1-2~bpo13+1".to_owned()];
        assert_eq!(pick(&versions, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(pick(&versions, "1.96.0"), None);
        assert_eq!(pick(&versions, "1.9"), None);
    }
}
