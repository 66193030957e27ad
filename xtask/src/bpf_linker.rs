//! bpf-linker, built against the LLVM inside the active Rust toolchain.
//!
//! bpf-linker reads the bitcode rustc wrote, so both must speak the same LLVM. rustc carries its own
//! as a shared library: linking to that one always fits, and no system LLVM is needed.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, note};
use crate::toolchain::{Rust, Workspace, cargo};

/// The version that is known to build what this workspace needs.
const VERSION: &str = "0.13.0";
/// The LLVM versions it has features for.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Finds the linker that fits `rust`, or builds it.
///
/// # Errors
/// When the toolchain's LLVM is not one bpf-linker knows, is not a shared library, or the build fails.
pub(crate) fn ensure(workspace: &Workspace, rust: &Rust) -> Result<PathBuf> {
    // One folder per linker and toolchain: switching toolchains never runs a stale linker.
    let root = workspace.tools().join(format!("bpf-linker-{VERSION}-rustc-{}", rust.release));
    let linker = root.join("bin/bpf-linker");
    if works(&linker) {
        note(&format!("bpf-linker {VERSION} is there"));
        return Ok(linker);
    }
    if !LLVM.contains(&rust.llvm) {
        bail!(
            "bpf-linker {VERSION} knows LLVM {} to {}, and rustc {} carries LLVM {}; \
             use another toolchain: rustup toolchain install 1.95.0 && cargo +1.95.0 xtask setup",
            LLVM.start(),
            LLVM.end(),
            rust.release,
            rust.llvm
        );
    }
    let libraries = rust.sysroot.join("lib");
    let prefix = llvm_prefix(&root, &find_llvm(&libraries)?)?;

    note(&format!("building bpf-linker {VERSION} against rustc's own LLVM {} (1-2 minutes)", rust.llvm));
    let mut rpath = OsString::from("-Clink-arg=-Wl,-rpath,");
    rpath.push(&libraries);
    let build = workspace.tools().join("build");
    shell::run(
        cargo()
            .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--quiet", "--force"])
            .args(["--no-default-features", "--features", &format!("llvm-{}", rust.llvm)])
            .arg("--root")
            .arg(&root)
            // Its own build folder: the outer cargo may hold the lock of the workspace's.
            .env("CARGO_TARGET_DIR", build)
            .env("LLVM_PREFIX", &prefix)
            .env("CARGO_ENCODED_RUSTFLAGS", rpath)
            // Not below the workspace, whose cargo configuration is none of bpf-linker's business.
            .current_dir("/"),
    )?;
    if !works(&linker) {
        bail!("bpf-linker was built and does not run; look at: ldd {}", linker.display());
    }
    Ok(linker)
}

fn works(linker: &Path) -> bool {
    linker.is_file() && Command::new(linker).arg("--version").output().is_ok_and(|out| out.status.success())
}

/// The shared LLVM of the toolchain, such as `libLLVM.so.22.1-rust-1.95.0-stable`. A linker script of
/// a few bytes stands beside it under an older name, so the largest one is the library.
fn find_llvm(libraries: &Path) -> Result<PathBuf> {
    let mut best: Option<(u64, PathBuf)> = None;
    let entries = fs::read_dir(libraries).with_context(|| format!("cannot list {}", libraries.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("libLLVM") && name.contains(".so") {
            best = best.max(Some((fs::metadata(&path)?.len(), path)));
        }
    }
    best.map(|(_, path)| path).with_context(|| {
        format!(
            "no shared libLLVM in {}: this toolchain links LLVM statically or comes from a distribution. \
             Use one of rustup's: rustup toolchain install stable",
            libraries.display()
        )
    })
}

/// A folder shaped as bpf-linker's build expects an LLVM installation, with nothing but a link in it.
fn llvm_prefix(root: &Path, library: &Path) -> Result<PathBuf> {
    let prefix = root.join("llvm");
    let lib = prefix.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
    let link = lib.join("libLLVM.so");
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    symlink(library, &link).with_context(|| format!("cannot link {}", link.display()))?;
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_library_is_taken_and_not_the_linker_script() {
        let dir = std::env::temp_dir().join(format!("hnp-xtask-llvm-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temp dir");
        fs::write(dir.join("libLLVM-22-rust-1.95.0-stable.so"), "INPUT(x)").expect("write");
        fs::write(dir.join("libLLVM.so.22.1-rust-1.95.0-stable"), vec![0; 4096]).expect("write");
        fs::write(dir.join("librustc_driver-abc.so"), vec![0; 8192]).expect("write");
        let found = find_llvm(&dir).expect("found");
        fs::remove_dir_all(&dir).expect("clean");
        assert!(found.ends_with("libLLVM.so.22.1-rust-1.95.0-stable"), "{found:?}");
    }
}
