//! `cargo xtask bench`: what hnp costs, on this kernel, now.
//!
//! `connect`: what capture costs a pod. Two clients at a time do the same: one with the hooks, one without, in turns, in the same network
//! namespace, so that what the machine does meanwhile happens to both. Figures are medians; a difference
//! is one of medians of one round, and its spread is that over all rounds. `peers`: what carrying costs the
//! node, beside other proxies. `neighbours`: what a hostile pod does to quiet ones. All report and judge nothing: machines
//! are noisy, tests never assert a speed.

mod client;
mod connect;
mod figures;
mod hostile;
mod interrupt;
mod load;
mod neighbours;
mod peers;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

const USAGE: &str = "usage: hnp-bench connect [--rounds N] [--perfmon] [--json]\n       \
                     hnp-bench peers [--rounds N | --quick] [--json] [--output FILE]\n       \
                     hnp-bench neighbours [--rounds N] [--only ATTACK] [--json]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.split_first() {
        Some((&"client", rest)) => client::run(rest),
        Some((&"load", rest)) => load::run(rest),
        Some((&"hostile", rest)) => hostile::run(rest),
        Some((&"connect", rest)) => Options::parse(rest).and_then(|options| bench(&options)),
        Some((&"peers", rest)) => PeersOptions::parse(rest).and_then(|options| bench_peers(&options)),
        Some((&"neighbours", rest)) => {
            NeighboursOptions::parse(rest).and_then(|options| bench_neighbours(&options))
        }
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hnp-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What to measure, how often, and how to say it.
struct Options {
    rounds: usize,
    perfmon: bool,
    json: bool,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { rounds: 15, perfmon: false, json: false };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--json" => options.json = true,
                "--perfmon" => options.perfmon = true,
                "--rounds" => options.rounds = rounds(words.next())?,
                unknown => bail!("unknown argument {unknown}\n{USAGE}"),
            }
        }
        Ok(options)
    }
}

/// The same of `peers`.
struct PeersOptions {
    rounds: usize,
    quick: bool,
    json: bool,
    output: Option<PathBuf>,
}

impl PeersOptions {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { rounds: 5, quick: false, json: false, output: None };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--json" => options.json = true,
                "--quick" => options.quick = true,
                "--rounds" => options.rounds = rounds(words.next())?,
                "--output" => options.output = Some(words.next().context("--output wants a file")?.into()),
                unknown => bail!("unknown argument {unknown}\n{USAGE}"),
            }
        }
        Ok(options)
    }
}

/// The same of `neighbours`.
struct NeighboursOptions {
    rounds: usize,
    only: Option<String>,
    json: bool,
}

impl NeighboursOptions {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self { rounds: 5, only: None, json: false };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--json" => options.json = true,
                "--only" => {
                    let attack = words.next().context("--only wants words of an attack")?;
                    options.only = Some((*attack).to_owned());
                }
                "--rounds" => options.rounds = rounds(words.next())?,
                unknown => bail!("unknown argument {unknown}\n{USAGE}"),
            }
        }
        Ok(options)
    }
}

fn rounds(number: Option<&&str>) -> Result<usize> {
    let number = number.context("--rounds wants a number")?;
    let valid = number.parse().ok().filter(|n| (1..=1000).contains(n));
    valid.with_context(|| format!("--rounds: {number:?} is not a number from 1 to 1000"))
}

/// What is made is removed, also when somebody has seen enough.
fn prepare() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces and cgroups and needs root");
    interrupt::catch()
}

fn bench_peers(options: &PeersOptions) -> Result<()> {
    prepare()?;
    let extent = if options.quick {
        peers::Extent { rounds: 3, window: Duration::from_millis(250), idle: 500 }
    } else {
        peers::Extent { rounds: options.rounds, window: Duration::from_millis(700), idle: 2000 }
    };
    let report = peers::measure(&extent)?;
    if let Some(file) = &options.output {
        peers::write(&report, file)?;
    }
    print(&report, options.json)
}

fn bench_neighbours(options: &NeighboursOptions) -> Result<()> {
    prepare()?;
    print(
        &neighbours::measure(options.rounds, Duration::from_secs(4), options.only.as_deref())?,
        options.json,
    )
}

/// As JSON, or in words.
fn print(report: &(impl Serialize + fmt::Display), json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

fn bench(options: &Options) -> Result<()> {
    prepare()?;
    print(&connect::measure(options.rounds, options.perfmon)?, options.json)
}
