//! `cargo xtask setup`: all that the build needs and cargo does not bring, into the target directory.
//!
//! Idempotent: what is there and fits the active toolchain stays. Nothing is written outside the
//! target directory, except that rustup may be asked to add the component rust-src to its toolchain.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::shell::{note, step};
use crate::toolchain::{Rust, Workspace};
use crate::{bpf_linker, core_source};

/// Fetch what the BPF build needs (bpf-linker, core's source) into the target directory
///
/// Idempotent, and run by the other commands when they need it. The active Rust toolchain serves
/// everything, stable or not; no system LLVM is needed.
#[derive(Args)]
pub(crate) struct Options {}

/// What set-up provides.
#[derive(Debug)]
pub(crate) struct Tools {
    /// The linker for the BPF target.
    pub(crate) bpf_linker: PathBuf,
    /// The folder `library` with core's source; `None` where the toolchain has its own.
    pub(crate) core_source: Option<PathBuf>,
}

pub(crate) fn run(_: &Options) -> Result<()> {
    let tools = ensure(&Workspace::find()?, &Rust::active()?)?;
    note(&format!("bpf-linker: {}", tools.bpf_linker.display()));
    match &tools.core_source {
        Some(path) => note(&format!("core's source: {}", path.display())),
        None => note("core's source: the toolchain's own"),
    }
    Ok(())
}

/// Brings everything that is missing.
///
/// # Errors
/// When something cannot be had; the message says what to type.
pub(crate) fn ensure(workspace: &Workspace, rust: &Rust) -> Result<Tools> {
    step(&format!("set-up for rustc {} (LLVM {})", rust.release, rust.llvm));
    // The quick one first: where it fails, nobody has waited for a linker.
    let core_source = core_source::ensure(workspace, rust)?;
    let bpf_linker = bpf_linker::ensure(workspace, rust)?;
    Ok(Tools { bpf_linker, core_source })
}
