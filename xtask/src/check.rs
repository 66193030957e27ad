//! `cargo xtask check`: everything about the code that is not a test.

use anyhow::Result;
use clap::Args;

use crate::shell::{self, step};
use crate::toolchain::{Workspace, cargo};
use crate::{build_ebpf, dependencies};

/// Formatting, lints, documentation and dependencies, of the workspace and the BPF programs
#[derive(Args)]
pub(crate) struct Options {}

pub(crate) fn run(_: &Options) -> Result<()> {
    let workspace = Workspace::find()?;
    let ebpf = workspace.root.join("hnp-ebpf/Cargo.toml");
    step("formatting");
    shell::run(cargo().current_dir(&workspace.root).args(["fmt", "--all", "--check"]))?;
    shell::run(cargo().args(["fmt", "--check", "--manifest-path"]).arg(&ebpf))?;
    // Cheap, and what it finds is easier to mend before a long build than after.
    step("dependencies");
    dependencies::check(&workspace)?;
    step("lints");
    shell::run(cargo().current_dir(&workspace.root).args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("lints of the BPF programs");
    build_ebpf::clippy(&workspace)?;
    step("documentation");
    shell::run(
        cargo()
            .current_dir(&workspace.root)
            .args(["doc", "--locked", "--workspace", "--no-deps", "--document-private-items", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    step("all checks passed");
    Ok(())
}
