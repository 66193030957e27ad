//! `cargo xtask test`: the tiers. What runs is named, what does not run fails or says why.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::shell::{self, step};
use crate::toolchain::{Workspace, cargo};
use crate::{host, node, vm};

/// Run the tests: unit and host tiers unless told otherwise
///
/// unit needs nothing but Rust. host runs the scenarios on this machine's kernel and needs root (asked
/// through sudo), iproute2, and the clients and servers that the scenarios use as peers; a missing one
/// fails its scenario and is named. What fails beside others runs once more, alone, and is named if it holds
/// then. vm runs the same scenarios on other kernels, each booted under QEMU
/// without KVM; it takes the kernels and QEMU from Debian's archive, into the target directory, and needs
/// no root. node makes real pods, with containerd, runc and CNI from Debian's archive, likewise, and the agent
/// from its own image; it needs root, or a kernel to boot.
#[derive(Args)]
pub(crate) struct Options {
    /// A tier to run; may be repeated.
    #[arg(long, value_enum, default_values_t = [Tier::Unit, Tier::Host])]
    tier: Vec<Tier>,
    /// Kernels for the vm tier, separated by commas: oldest, lts, newest, or the beginning of a version
    /// (6.1); all that the package archive has unless told otherwise. With one, the node tier runs in guests, too.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    kernel: Vec<String>,
    /// For the vm tier: parts of names of scenarios that one of its kernels runs beside those that all run,
    /// such as 6.1=restart::,enforcement::; may be repeated.
    #[arg(long, value_name = "KERNEL=PARTS", value_parser = vm::More::parse)]
    more: Vec<vm::More>,
    /// For the node tier: the agent of the host tier in its image, a debug build, instead of the one that ships. Minutes sooner;
    /// what only the released one can show is left out, and named.
    #[arg(long)]
    debug_image: bool,
    /// Arguments for the scenarios, such as a part of a name, or --nocapture.
    #[arg(last = true)]
    scenario_args: Vec<String>,
}

/// Where tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// No privileges, any machine.
    Unit,
    /// Scenarios in network namespaces on this machine's kernel.
    Host,
    /// The same scenarios on other kernels, in VMs.
    Vm,
    /// Real pods: containerd, runc and CNI, and the agent from its own image.
    Node,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::find()?;
    if !options.kernel.is_empty() && !options.tier.iter().any(|tier| matches!(tier, Tier::Vm | Tier::Node)) {
        bail!("--kernel is for --tier vm and node; the host tier runs on this machine's kernel");
    }
    if !options.more.is_empty() && !options.tier.contains(&Tier::Vm) {
        bail!("--more is for --tier vm; no other tier chooses by kernel");
    }
    if !options.more.is_empty() && !vm::names_scenarios(&options.scenario_args) {
        bail!("--more adds to the names behind --; without any, all scenarios run on all kernels");
    }
    if options.debug_image && !options.tier.contains(&Tier::Node) {
        bail!("--debug-image is for --tier node; no other tier makes an image");
    }
    let build = if options.debug_image { node::Build::Debug } else { node::Build::Released };
    for tier in &options.tier {
        match tier {
            Tier::Unit => unit(&workspace)?,
            Tier::Host => host::run(&workspace, &options.scenario_args)?,
            Tier::Vm => vm::run(&workspace, &options.kernel, &options.more, &options.scenario_args)?,
            Tier::Node if options.kernel.is_empty() => node::run(&workspace, build, &options.scenario_args)?,
            Tier::Node => vm::run_node(&workspace, &options.kernel, build, &options.scenario_args)?,
        }
    }
    Ok(())
}

fn unit(workspace: &Workspace) -> Result<()> {
    step("unit tests");
    shell::run(cargo().current_dir(&workspace.root).args([
        "test",
        "--locked",
        "--workspace",
        "--exclude",
        "hnp-tests",
    ]))
}
