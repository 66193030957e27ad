//! `cargo xtask test --tier node`: real pods on this machine's kernel. What a node is made of comes from Debian's
//! archive, is unpacked below the target directory and not installed; the agent comes from its own image.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::shell::{self, step};
use crate::toolchain::Workspace;
use crate::unpacked::{self, Sources};
use crate::{binaries, image, privileged};

/// Each package with the file that is wanted of it.
const WANTED: [(&str, &str); 4] = [
    ("containerd", "usr/bin/containerd"),
    ("containerd", "usr/bin/containerd-shim-runc-v2"),
    ("runc", "usr/sbin/runc"),
    ("containernetworking-plugins", "usr/lib/cni/bridge"),
];

/// Tells the tests where packages were unpacked.
pub(crate) const PACKAGES: &str = "HNP_NODE_PACKAGES";
/// Tells the tests where the images lie.
pub(crate) const IMAGES: &str = "HNP_NODE_IMAGES";

/// What the test's own pods run, out of `tests/clients`.
const PROGRAMS: [&str; 2] = ["pause", "static_client"];

/// What the node tier is run with.
pub(crate) struct Ready {
    /// The tests' executable.
    pub(crate) executable: PathBuf,
    /// Where packages were unpacked.
    pub(crate) packages: PathBuf,
    /// Where the images lie.
    pub(crate) images: PathBuf,
}

/// Runs the node tier here.
///
/// # Errors
/// When something is missing (the message says what), or a scenario does not hold.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let ready = prepare(workspace)?;
    step("real pods on this machine's kernel");
    let env = [(PACKAGES, ready.packages.as_path()), (IMAGES, &ready.images)];
    let mut command = privileged::command(&ready.executable, &env, "the node tier")?;
    shell::run(command.current_dir(workspace.root.join("tests")).args(arguments))
}

/// Brings and builds all that it needs.
///
/// # Errors
/// When something cannot be had or built.
pub(crate) fn prepare(workspace: &Workspace) -> Result<Ready> {
    let packages = unpacked::ensure(workspace, "node", &WANTED, Sources::WithSecurity)?;
    let (archive, _) = image::ensure_built(workspace)?;
    let images = workspace.target.join("image");
    ensure!(archive.starts_with(&images), "images lie in one folder");
    for program in PROGRAMS {
        image::of_program(&compile(workspace, program)?, program, &images)?;
    }
    step("building the scenarios and the test kit's programs");
    let executable = binaries::test_named(workspace, "node")?;
    Ok(Ready { executable, packages, images })
}

/// Compiles one of `tests/clients/*.c` into a static program.
fn compile(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let dir = workspace.target.join("image");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let program = dir.join(name);
    let source = workspace.root.join(format!("tests/clients/{name}.c"));
    shell::run(
        Command::new("cc").args(["-static", "-O1", "-s", "-Wall", "-Werror", "-o"]).args([&program, &source]),
    )?;
    Ok(program)
}
