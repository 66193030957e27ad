//! `cargo xtask build-ebpf`: the BPF programs, as objects that hnp-agent's build embeds.
//!
//! Three objects from one source: without logging for release builds of the agent, with aya-log for debug
//! builds, and with maps of another shape for tests of upgrades. `hnp-agent/build.rs` finds them in the target directory and takes the one that fits.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::setup::{self, Tools};
use crate::shell::{self, note, step};
use crate::toolchain::{Rust, Workspace, cargo};

/// The target triple: little-endian BPF, as all nodes of Kubernetes are.
const TARGET: &str = "bpfel-unknown-none";

/// Build the BPF programs into the target directory, where the agent's build picks them up
///
/// Runs `setup` first if something is missing. Afterwards `cargo build` embeds the object.
#[derive(Args)]
pub(crate) struct Options {}

pub(crate) fn run(_: &Options) -> Result<()> {
    build(&Workspace::find()?)?;
    Ok(())
}

/// Builds both objects and returns the folder they are in.
///
/// # Errors
/// When set-up or the compiler fails.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let rust = Rust::active()?;
    let tools = setup::ensure(workspace, &rust)?;
    step("building the BPF programs");
    let objects = workspace.ebpf_objects();
    let kinds = [("", "hnp.bpf.o"), ("log", "hnp-debug.bpf.o"), ("other-shape", "hnp-other-shape.bpf.o")];
    for (features, name) in kinds {
        let built = compile(workspace, &tools, features)?;
        let changed = publish(&built, &objects.join(name))?;
        note(&format!("{name}: {}", if changed { "new" } else { "unchanged" }));
    }
    Ok(objects)
}

fn compile(workspace: &Workspace, tools: &Tools, features: &str) -> Result<PathBuf> {
    let build = workspace.ebpf_build();
    let manifest = workspace.root.join("hnp-ebpf/Cargo.toml");
    shell::run(
        cargo_for_bpf(tools)
            .args(["build", "--release", "--quiet", "--locked", "--manifest-path"])
            .arg(&manifest)
            .args(BUILD_STD)
            .args(["--features", features])
            .arg("--target-dir")
            .arg(&build),
    )?;
    Ok(build.join(TARGET).join("release/hnp-ebpf"))
}

/// Cargo, set up to compile for BPF; the caller adds the subcommand.
///
/// `RUSTC_BOOTSTRAP` lets a stable compiler build core itself: the same compiler then serves the
/// whole workspace. BTF is what socket storage needs, and it is made from debug information.
fn cargo_for_bpf(tools: &Tools) -> std::process::Command {
    let mut command = cargo();
    let mut flags = std::ffi::OsString::from("-Clinker=");
    flags.push(&tools.bpf_linker);
    flags.push("\x1f-Clink-arg=--btf\x1f-Cdebuginfo=2");
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags).env_remove("RUSTFLAGS");
    if let Some(source) = &tools.core_source {
        command.env("__CARGO_TESTS_ONLY_SRC_ROOT", source);
    }
    command
}

/// Arguments that make cargo build core for the BPF target.
const BUILD_STD: [&str; 4] = ["-Z", "build-std=core", "--target", TARGET];

/// Lints the BPF programs with the toolchain that builds them.
///
/// # Errors
/// When set-up fails or clippy finds something.
pub(crate) fn clippy(workspace: &Workspace) -> Result<()> {
    let tools = setup::ensure(workspace, &Rust::active()?)?;
    shell::run(
        cargo_for_bpf(&tools)
            .args(["clippy", "--release", "--quiet", "--locked", "--all-features", "--manifest-path"])
            .arg(workspace.root.join("hnp-ebpf/Cargo.toml"))
            .args(BUILD_STD)
            .arg("--target-dir")
            .arg(workspace.ebpf_build())
            .args(["--", "-D", "warnings"]),
    )
}

/// Copies only what changed, so that an unchanged object does not rebuild the agent.
fn publish(built: &Path, object: &Path) -> Result<bool> {
    let new = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    let parent = object.parent().context("the object has a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    // Renamed into place: a build of the agent that runs meanwhile reads the old one or the new one.
    let scratch = object.with_extension("new");
    fs::write(&scratch, new).with_context(|| format!("cannot write {}", scratch.display()))?;
    fs::rename(&scratch, object).with_context(|| format!("cannot write {}", object.display()))?;
    Ok(true)
}
