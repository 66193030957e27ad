//! The programs that the demo and the scenarios run: built here, with the BPF object inside the agent.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::build_ebpf;
use crate::shell::{self, step};
use crate::toolchain::{Workspace, cargo};

/// Builds the BPF programs and the agent with them inside; returns the agent's path.
///
/// # Errors
/// When a build fails.
pub(crate) fn agent(workspace: &Workspace) -> Result<PathBuf> {
    build_ebpf::build(workspace)?;
    step("building the agent and the test kit's programs");
    build(workspace, &["--bins"])?;
    Ok(workspace.debug_bin("hnp-agent"))
}

/// Builds the agent twice more, for scenarios: with maps of another shape, which upgrades go to and from, and with a clock
/// that can be set. They lie beside the first one. To be called after [`agent`], which builds the BPF programs of all.
///
/// # Errors
/// When a build fails.
pub(crate) fn other_agents(workspace: &Workspace) -> Result<()> {
    for (kind, what) in [("other-shape", "maps of another shape"), ("other-clock", "a clock that can be set")]
    {
        step(&format!("building the agent with {what}"));
        let (feature, bin) = (format!("hnp-agent/{kind}"), format!("hnp-agent-{kind}"));
        build(workspace, &["--features", &feature, "--bin", &bin])?;
    }
    Ok(())
}

/// Builds the agent as it ships and the bench beside it, both optimised: for figures that are compared with those
/// of other programs. Returns the agent's path and the bench's.
///
/// # Errors
/// When a build fails.
pub(crate) fn released_for_bench(workspace: &Workspace) -> Result<(PathBuf, PathBuf)> {
    build_ebpf::build(workspace)?;
    step("building the agent as it ships, and the bench (several minutes the first time)");
    build(workspace, &["--release", "--bin", "hnp-agent", "--bin", "hnp-bench"])?;
    Ok((workspace.release_bin("hnp-agent"), workspace.release_bin("hnp-bench")))
}

/// Agent and test kit are always named together, so that dependencies have the same features and are not
/// built anew.
fn build(workspace: &Workspace, what: &[&str]) -> Result<()> {
    let packages = ["build", "--locked", "-p", "hnp-agent", "-p", "hnp-tests"];
    shell::run(cargo().current_dir(&workspace.root).args(packages).args(what))
}

/// Builds a package's tests and returns the executables: they can then be run as root without cargo
/// writing into the target directory as root.
///
/// # Errors
/// When the build fails.
pub(crate) fn tests_of(workspace: &Workspace, package: &str) -> Result<Vec<PathBuf>> {
    let text =
        shell::output(cargo().current_dir(&workspace.root).stderr(std::process::Stdio::inherit()).args([
            "test",
            "--locked",
            "--no-run",
            "--message-format=json-render-diagnostics",
            "-p",
            package,
        ]))?;
    let mut executables = Vec::new();
    for line in text.lines() {
        let message: serde_json::Value =
            serde_json::from_str(line).context("cargo's messages are not JSON")?;
        let is_test = message["profile"]["test"] == true;
        if let (true, Some(path)) = (is_test, message["executable"].as_str()) {
            executables.push(PathBuf::from(path));
        }
    }
    Ok(executables)
}

/// Builds the scenarios and returns the executable of one of their tests: `scenarios`, `node`.
///
/// # Errors
/// When the build fails, or there is no such test.
pub(crate) fn test_named(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    tests_of(workspace, "hnp-tests")?
        .into_iter()
        .find(|path| is_test(path, name))
        .with_context(|| format!("hnp-tests has no test named {name}"))
}

/// Whether an executable is the test with this name: cargo puts a hash behind it.
pub(crate) fn is_test(executable: &Path, name: &str) -> bool {
    let file = executable.file_name().unwrap_or_default().to_string_lossy();
    file.rsplit_once('-').is_some_and(|(stem, _)| stem == name)
}
