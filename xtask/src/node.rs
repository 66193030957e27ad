//! `cargo xtask test --tier node`: real pods on this machine's kernel. What a node is made of comes from Debian's
//! archive, is unpacked below the target directory and not installed; the agent comes from its own image.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::shell::{self, note, step};
use crate::toolchain::Workspace;
use crate::unpacked::{self, Sources};
use crate::{binaries, chart, image, privileged};

/// Each package with the file that is wanted of it.
const WANTED: [(&str, &str); 4] = [
    ("containerd", "usr/bin/containerd"),
    ("containerd", "usr/bin/containerd-shim-runc-v2"),
    ("runc", "usr/sbin/runc"),
    ("containernetworking-plugins", "usr/lib/cni/bridge"),
];

/// Tells the tests where packages were unpacked.
const PACKAGES: &str = "HNP_NODE_PACKAGES";
/// Tells the tests where the images lie.
const IMAGES: &str = "HNP_NODE_IMAGES";
/// Tells the tests where the chart's renderings lie.
const RENDERINGS: &str = "HNP_NODE_RENDERINGS";

/// What the test's own pods run: out of `tests/clients`, and of the test kit.
const COMPILED: [&str; 2] = ["pause", "static_client"];
const OF_THE_KIT: &str = "hnp-test-load";

/// A rate in the limits of the deployment, which a debug build has no hope of.
const OF_THE_RELEASED: &str = "limits::two_hundred_requests_a_second_are_carried_in_them_and_none_is_lost";

/// Which agent is in the image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Build {
    /// What ships.
    Released,
    /// What the host tier runs.
    Debug,
}

/// What the node tier is run with.
pub(crate) struct Ready {
    /// The tests' executable.
    pub(crate) executable: PathBuf,
    /// Its arguments: the user's own, and what leaves out what this image cannot show.
    pub(crate) arguments: Vec<String>,
    /// The folders that the tests are told of.
    pub(crate) env: Vec<(&'static str, PathBuf)>,
}

/// Runs the node tier here.
///
/// # Errors
/// When something is missing (the message says what), or a scenario does not hold.
pub(crate) fn run(workspace: &Workspace, build: Build, arguments: &[String]) -> Result<()> {
    let ready = prepare(workspace, build, arguments)?;
    step("real pods on this machine's kernel");
    let env: Vec<(&str, &Path)> = ready.env.iter().map(|(key, path)| (*key, path.as_path())).collect();
    let mut command = privileged::command(&ready.executable, &env, "the node tier")?;
    shell::run(command.current_dir(workspace.root.join("tests")).args(ready.arguments))
}

/// Brings and builds all that it needs.
///
/// # Errors
/// When something cannot be had or built.
pub(crate) fn prepare(workspace: &Workspace, build: Build, arguments: &[String]) -> Result<Ready> {
    let packages = unpacked::ensure(workspace, "node", &WANTED, Sources::WithSecurity)?;
    let renderings = chart::renderings(workspace)?;
    let agent = binaries::agent(workspace)?;
    let mut arguments = arguments.to_vec();
    let images = match build {
        Build::Released => image::ensure_built(workspace)?,
        Build::Debug => {
            note(&format!("of the released image, and not run with a debug build: {OF_THE_RELEASED}"));
            arguments.extend(["--skip".to_owned(), OF_THE_RELEASED.to_owned()]);
            image::of_debug_agent(workspace, &agent)?
        }
    };
    for program in COMPILED {
        image::of_program(&compile(workspace, program, &images)?, program, &images)?;
    }
    image::of_program(&workspace.debug_bin(OF_THE_KIT), OF_THE_KIT, &images)?;
    let executable = binaries::test_named(workspace, "node")?;
    let env = vec![(PACKAGES, packages), (IMAGES, images), (RENDERINGS, renderings)];
    Ok(Ready { executable, arguments, env })
}

/// Compiles one of `tests/clients/*.c` into a static program.
fn compile(workspace: &Workspace, name: &str, into: &Path) -> Result<PathBuf> {
    let program = into.join(name);
    let source = workspace.root.join(format!("tests/clients/{name}.c"));
    shell::run(
        Command::new("cc").args(["-static", "-O1", "-s", "-Wall", "-Werror", "-o"]).args([&program, &source]),
    )?;
    Ok(program)
}
