//! Finds the source of `core`, which `-Z build-std` compiles for the BPF target.
//!
//! It must be the source of exactly the active compiler: another one may still compile and be wrong.
//! The ways are tried from the cheapest to the widest, and each one that does not work says why, so
//! that a machine without network, without rustup or without Debian still gets as far as it can.

mod debian;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, note};
use crate::toolchain::{Rust, Workspace};

/// Names a folder `library` to take core's source from.
const VARIABLE: &str = "HNP_RUST_SRC";

/// How long rustup may take for 4 MB before the next way is tried.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);

/// Finds the source, fetching it if need be; `None`: the toolchain has its own.
///
/// # Errors
/// When no way led to it; the message lists what was tried and what to do.
pub(crate) fn ensure(workspace: &Workspace, rust: &Rust) -> Result<Option<PathBuf>> {
    if is_library(&rust.own_source()) {
        note("core's source comes with the toolchain");
        return Ok(None);
    }
    if let Some(given) = std::env::var_os(VARIABLE) {
        let library = PathBuf::from(given);
        verify(&library, rust).with_context(|| format!("{VARIABLE} names {}", library.display()))?;
        note(&format!("core's source is {VARIABLE}"));
        return Ok(Some(library));
    }
    let library = workspace.tools().join(format!("rust-src-{}", rust.release)).join("library");
    if verify(&library, rust).is_ok() {
        note("core's source was fetched before");
        return Ok(Some(library));
    }

    let mut tried = Vec::new();
    match rustup(rust) {
        Ok(()) => return Ok(None),
        Err(error) => tried.push(format!("rustup: {error:#}")),
    }
    type Way = fn(&Workspace, &Rust, &Path) -> Result<PathBuf>;
    let ways: [(&str, Way); 2] = [("Debian's package rust-src", debian::fetch), ("the archive", archive)];
    for (name, way) in ways {
        match fetch(way, workspace, rust, &library) {
            Ok(()) => {
                note(&format!("core's source comes from {name}"));
                return Ok(Some(library));
            }
            Err(error) => tried.push(format!("{name}: {error:#}")),
        }
    }
    bail!(
        "core's source for rustc {release} is nowhere to be had:\n  - {}\n\
         Any of these helps:\n  \
         rustup component add rust-src\n  \
         {VARIABLE}=<the folder `library` of Rust {release}'s source> cargo xtask setup",
        tried.join("\n  - "),
        release = rust.release,
    )
}

/// Fails unless `library` is the source of exactly this compiler.
///
/// The folder names no version. But every release stamps what it stabilises (`since = "1.95.0"`), so
/// the newest stamp in core is the release the source belongs to.
fn verify(library: &Path, rust: &Rust) -> Result<()> {
    if !is_library(library) {
        bail!("{} holds no core/src/lib.rs", library.display());
    }
    let Some(minor) = minor(&rust.release) else {
        bail!("rustc {} is no release; only the toolchain's own rust-src fits it", rust.release);
    };
    let mut newest = 0;
    newest_stamp(&library.join("core/src"), &mut newest)?;
    if newest != minor {
        bail!("{} is the source of Rust 1.{newest}, and rustc is {}", library.display(), rust.release);
    }
    Ok(())
}

fn is_library(library: &Path) -> bool {
    library.join("core/src/lib.rs").is_file()
}

/// The minor version of a stable release, `95` of `1.95.0`.
fn minor(release: &str) -> Option<u32> {
    let (minor, patch) = release.strip_prefix("1.")?.split_once('.')?;
    patch.parse::<u32>().ok()?;
    minor.parse().ok()
}

fn newest_stamp(dir: &Path, newest: &mut u32) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            newest_stamp(&path, newest)?;
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            *newest = stamps(&text).fold(*newest, u32::max);
        }
    }
    Ok(())
}

/// The minor versions in `stable(feature = "..", since = "1.N.0")`. Deprecations carry future ones.
fn stamps(text: &str) -> impl Iterator<Item = u32> {
    text.split("stable(feature = \"").skip(1).filter_map(|rest| {
        let (_, rest) = rest.split_once("\", since = \"1.")?;
        rest.split_once('.')?.0.parse().ok()
    })
}

/// Adds the component to the toolchain, if the toolchain is rustup's.
fn rustup(rust: &Rust) -> Result<()> {
    if !rust.is_rustups() || !shell::has("rustup") {
        bail!("the toolchain in {} is not rustup's", rust.sysroot.display());
    }
    let toolchain = rust.sysroot.file_name().context("a toolchain has a name")?;
    note("asking rustup for rust-src");
    shell::quietly_within(
        Command::new("rustup")
            .args(["component", "add", "rust-src", "--toolchain"])
            .arg(toolchain)
            .env("RUSTUP_MAX_RETRIES", "0"),
        RUSTUP_LIMIT,
    )?;
    if !is_library(&rust.own_source()) {
        bail!("rustup reports success, but {} is not there", rust.own_source().display());
    }
    Ok(())
}

/// Unpacks `library-<version>.tar.xz` from `../shared/rust-src` beside the checkout, where a machine
/// without network may have been given it.
fn archive(workspace: &Workspace, rust: &Rust, into: &Path) -> Result<PathBuf> {
    let name = format!("library-{}.tar.xz", rust.release);
    let archive = workspace.root.join("../shared/rust-src").join(&name);
    if !archive.is_file() {
        bail!("no {name} in ../shared/rust-src beside the checkout");
    }
    shell::run(Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(into))?;
    Ok(into.join("library"))
}

/// Lets `way` work in a scratch folder, verifies what it found and moves that to `library` in one
/// step, so that an interrupted set-up leaves nothing that looks finished.
fn fetch(
    way: fn(&Workspace, &Rust, &Path) -> Result<PathBuf>,
    workspace: &Workspace,
    rust: &Rust,
    library: &Path,
) -> Result<()> {
    let scratch = workspace.tools().join("rust-src-scratch");
    remove_all(&scratch)?;
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let outcome = way(workspace, rust, &scratch).and_then(|found| {
        verify(&found, rust)?;
        remove_all(library)?;
        fs::create_dir_all(library.parent().context("library has a parent")?)?;
        fs::rename(&found, library).with_context(|| format!("cannot move {}", found.display()))
    });
    remove_all(&scratch)?;
    outcome
}

fn remove_all(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust(release: &str) -> Rust {
        Rust {
            host: "x86_64-unknown-linux-gnu".into(),
            release: release.into(),
            llvm: 22,
            sysroot: PathBuf::new(),
        }
    }

    #[test]
    fn a_source_of_another_release_is_refused() {
        let library = std::env::temp_dir().join(format!("hnp-xtask-core-{}", std::process::id()));
        fs::create_dir_all(library.join("core/src/num")).expect("temp dir");
        fs::write(
            library.join("core/src/lib.rs"),
            "#[stable(feature = \"a\", since = \"1.93.0\")]\n#[deprecated(since = \"1.99.0\")]",
        )
        .expect("write");
        fs::write(
            library.join("core/src/num/mod.rs"),
            "#[rustc_const_stable(feature = \"b\", since = \"1.95.0\")]",
        )
        .expect("write");
        let fits = verify(&library, &rust("1.95.0"));
        let patch = verify(&library, &rust("1.95.1"));
        let other = verify(&library, &rust("1.96.0"));
        let nightly = verify(&library, &rust("1.97.0-nightly"));
        fs::remove_dir_all(&library).expect("clean");
        fits.expect("the same release");
        patch.expect("a patch release stabilises nothing");
        assert!(other.expect_err("another release").to_string().contains("source of Rust 1.95"));
        assert!(nightly.expect_err("no release").to_string().contains("no release"));
        assert!(verify(&library, &rust("1.95.0")).is_err(), "a missing folder is no source");
    }
}
