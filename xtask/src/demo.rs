//! `cargo xtask demo`: what hnp does, on this machine, for real.

use anyhow::Result;
use clap::Args;

use crate::toolchain::Workspace;
use crate::{binaries, privileged, shell};

/// Show hnp at work: a pod, a strict manager, one curl; every step is checked
///
/// Builds what is needed, makes network namespaces and a cgroup tree of its own, runs the real agent
/// with the real BPF programs, and removes everything again. Needs iproute2 and curl, and root (asked
/// through sudo). Exits non-zero if any step did not happen.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave the scene up, and say how to enter and how to remove it.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::find()?;
    let agent = binaries::agent(&workspace)?;
    shell::step("the demo");
    let mut demo = privileged::command(&workspace.debug_bin("hnp-demo"), &[], "the demo")?;
    demo.arg("--agent").arg(agent);
    if options.keep {
        demo.arg("--keep");
    }
    shell::run(&mut demo)
}
