//! `cargo xtask bench`: what hnp costs, measured here and now.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::toolchain::Workspace;
use crate::{binaries, privileged, shell};

/// Measure what hnp costs on this machine
///
/// Each figure is compared with the same without hnp in the same run, in turns, because machines are
/// noisy. Needs root (asked through sudo) and iproute2. Reports and judges nothing.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// connect() that misses and that hits, a packet and a stream with the guard and without
    Connect {
        /// How often everything is measured.
        #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rounds: u32,
        /// Give the agent CAP_PERFMON: the verifier then leaves out barriers against speculation.
        #[arg(long)]
        perfmon: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let What::Connect { rounds, perfmon, json } = options.what;
    let workspace = Workspace::find()?;
    let agent = binaries::agent(&workspace)?;
    shell::step("what connect() and a packet cost");
    let env = [("HNP_AGENT_BIN", agent.as_path())];
    let mut bench = privileged::command(&workspace.debug_bin("hnp-bench"), &env, "the bench")?;
    bench
        .args(["connect", "--rounds", &rounds.to_string()])
        .args(perfmon.then_some("--perfmon"))
        .args(json.then_some("--json"));
    shell::run(&mut bench)
}
