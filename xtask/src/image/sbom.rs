//! What is in the agent, as a CycloneDX 1.6 document: each crate that is linked in, by name, version, purl, licence
//! and checksum, the kernel programs' crates, the Rust standard library, and the C library.
//!
//! From cargo itself, for the agent's own features and target; what only builds (build scripts, procedural macros) is
//! not in it. Holds neither a time nor a serial number, so that the same sources give the same image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::shell;
use crate::toolchain::{Rust, Workspace, cargo};

/// The document.
///
/// # Errors
/// When cargo or the C compiler do not answer.
pub(super) fn document(workspace: &Workspace, rust: &Rust, version: &str) -> Result<Value> {
    let mut parts = BTreeSet::new();
    let root = workspace.root.join("Cargo.toml");
    parts.extend(crates(&root, "hnp-agent", &["--target", &rust.host])?);
    // Its target is known to a compiler that builds core for it, and makes no difference to what is in there.
    parts.extend(crates(&workspace.root.join("hnp-ebpf/Cargo.toml"), "hnp-ebpf", &[])?);
    let mut components: Vec<Value> = parts.iter().map(Crate::component).collect();
    components.push(json!({
        "type": "library", "name": "rust-std", "version": rust.release,
        "purl": format!("pkg:generic/rust-std@{}", rust.release),
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
    }));
    let libc = shell::output(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    let libc = libc.trim().rsplit(' ').next().context("getconf says no version")?.to_owned();
    components.push(json!({
        "type": "library", "name": "glibc", "version": libc,
        "purl": format!("pkg:generic/glibc@{libc}"),
        "licenses": [{"expression": "LGPL-2.1-or-later"}],
    }));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {
            "type": "application", "name": "hnp-agent", "version": version,
            "purl": format!("pkg:generic/hnp-agent@{version}"),
            "licenses": [{"expression": "Apache-2.0"}],
        }},
        "components": components,
    }))
}

/// A crate that is linked in.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Crate {
    name: String,
    version: String,
    licence: String,
    /// SHA-256 of the package as the registry has it; our own have none.
    checksum: Option<String>,
}

impl Crate {
    fn component(&self) -> Value {
        let Self { name, version, licence, checksum } = self;
        let mut component = json!({"type": "library", "name": name, "version": version});
        if checksum.is_some() {
            component["purl"] = format!("pkg:cargo/{name}@{version}").into();
        }
        if !licence.is_empty() {
            // Some write a slash, as was usual before SPDX expressions.
            component["licenses"] = json!([{"expression": licence.replace('/', " OR ")}]);
        }
        if let Some(checksum) = checksum {
            component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        }
        component
    }
}

fn crates(manifest: &Path, package: &str, more: &[&str]) -> Result<Vec<Crate>> {
    let text = shell::output(
        cargo()
            .args(["tree", "--locked", "--package", package, "--edges", "normal,no-proc-macro"])
            .args(["--prefix", "none", "--format", "{p}|{l}", "--manifest-path"])
            .arg(manifest)
            .args(more),
    )?;
    let lock = manifest.with_file_name("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    listed(&text, &checksums(&lock))
}

/// Lines of `name vVERSION (path or source)|licence`, some more than once.
fn listed(text: &str, checksums: &BTreeMap<(&str, &str), &str>) -> Result<Vec<Crate>> {
    let mut crates = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let parts = line.trim_end_matches(" (*)").split_once('|').and_then(|(of, licence)| {
            let mut words = of.split(' ');
            Some((words.next()?, words.next()?.strip_prefix('v')?, licence))
        });
        let (name, version, licence) =
            parts.with_context(|| format!("not understood of `cargo tree`: {line}"))?;
        crates.push(Crate {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: licence.to_owned(),
            checksum: checksums.get(&(name, version)).map(|sum| (*sum).to_owned()),
        });
    }
    Ok(crates)
}

/// The checksums of a `Cargo.lock`, by name and version.
fn checksums(lock: &str) -> BTreeMap<(&str, &str), &str> {
    let packages = lock.split("[[package]]").skip(1);
    packages
        .filter_map(|package| {
            let field = |key: &str| {
                let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
                line.map(|value| value.trim_matches('"'))
            };
            Some(((field("name")?, field("version")?), field("checksum")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_have_versions_licences_and_the_checksums_of_the_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.2.3\"\nsource = \"registry\"\n\
                    checksum = \"c0ffee\"\ndependencies = [\n \"own\",\n]\n\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n";
        let tree =
            "own v0.1.0 (/somewhere)|Apache-2.0\na v1.2.3|MIT/Apache-2.0\na v1.2.3|MIT/Apache-2.0 (*)\n";
        let crates: BTreeSet<Crate> =
            listed(tree, &checksums(lock)).expect("well-formed").into_iter().collect();
        let components: Vec<Value> = crates.iter().map(Crate::component).collect();
        assert_eq!(components.len(), 2, "{components:#?}");
        assert_eq!(components[0]["purl"], "pkg:cargo/a@1.2.3");
        assert_eq!(components[0]["hashes"][0]["content"], "c0ffee");
        assert_eq!(components[0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert!(components[1].get("purl").is_none(), "our own crates are in no registry");
        assert!(listed("nonsense\n", &BTreeMap::new()).is_err());
    }
}
