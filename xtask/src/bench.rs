//! `cargo xtask bench`: what hnp costs, measured here and now.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::toolchain::Workspace;
use crate::{apt, binaries, peers, privileged, shell};

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
    /// CPU, latency and memory beside HAProxy, nginx and stunnel, with the same manager and the same load
    ///
    /// The agent is the release build. Peers that are missing come from Debian's archive, are unpacked below
    /// target/ and not installed.
    Peers {
        /// How often everything is measured.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// Three short rounds: a look, not a measurement.
        #[arg(long, conflicts_with = "rounds")]
        quick: bool,
        /// Print JSON instead of the table.
        #[arg(long)]
        json: bool,
        /// Where the JSON is written; the plot lies beside it, as SVG. [default: target/bench/peers.json]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// What one hostile pod does to the latency of twenty quiet ones, beside what it does when it is hostile elsewhere
    ///
    /// The agent is the release build.
    Neighbours {
        /// How often everything is measured.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// One attack alone: a word of its name.
        #[arg(long, value_name = "ATTACK")]
        only: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::find()?;
    match &options.what {
        What::Connect { rounds, perfmon, json } => connect(&workspace, *rounds, *perfmon, *json),
        What::Peers { rounds, quick, json, output } => {
            let words = ["peers".to_owned(), "--rounds".to_owned(), rounds.to_string()];
            let words = if *quick { vec![words[0].clone(), "--quick".to_owned()] } else { words.to_vec() };
            beside_peers(&workspace, words, *json, output.as_deref())
        }
        What::Neighbours { rounds, only, json } => neighbours(&workspace, *rounds, only.as_deref(), *json),
    }
}

fn connect(workspace: &Workspace, rounds: u32, perfmon: bool, json: bool) -> Result<()> {
    let agent = binaries::agent(workspace)?;
    shell::step("what connect() and a packet cost");
    let env = [("HNP_AGENT_BIN", agent.as_path())];
    let mut bench = privileged::command(&workspace.debug_bin("hnp-bench"), &env, "the bench")?;
    bench
        .args(["connect", "--rounds", &rounds.to_string()])
        .args(perfmon.then_some("--perfmon"))
        .args(json.then_some("--json"));
    shell::run(&mut bench)
}

fn neighbours(workspace: &Workspace, rounds: u32, only: Option<&str>, json: bool) -> Result<()> {
    let (agent, bench) = binaries::released_for_bench(workspace)?;
    shell::step("quiet pods beside a hostile one");
    let mut bench = privileged::command(&bench, &[("HNP_AGENT_BIN", agent.as_path())], "the bench")?;
    bench.args(["neighbours", "--rounds", &rounds.to_string()]);
    bench.args(only.map(|only| ["--only", only]).into_iter().flatten()).args(json.then_some("--json"));
    shell::run(&mut bench)
}

fn beside_peers(workspace: &Workspace, words: Vec<String>, json: bool, output: Option<&Path>) -> Result<()> {
    let root = peers::ensure(workspace)?;
    let (agent, bench) = binaries::released_for_bench(workspace)?;
    shell::step("hnp beside HAProxy, nginx and stunnel");
    let libraries = PathBuf::from(apt::libraries(&root));
    let env = [("HNP_AGENT_BIN", agent.as_path()), ("HNP_PEERS", &root), ("HNP_PEERS_LIBRARIES", &libraries)];
    let usual = workspace.target.join("bench/peers.json");
    let output = output.unwrap_or(&usual);
    // Here and not in the bench: the folder is to belong to who typed this.
    if let Some(dir) = output.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mut bench = privileged::command(&bench, &env, "the bench")?;
    bench.args(words).args(json.then_some("--json")).arg("--output").arg(output);
    shell::run(&mut bench)
}
