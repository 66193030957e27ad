//! `cargo xtask bench connect`: what capture costs a pod, on this kernel, now.
//!
//! Two clients at a time do the same: one with the hooks, one without, in turns, in the same network
//! namespace, so that what the machine does meanwhile happens to both. Figures are medians; a difference
//! is one of medians of one round, and its spread is that over all rounds. It reports and judges nothing:
//! machines are noisy, tests never assert a speed.

mod client;
mod connect;
mod figures;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

const USAGE: &str = "usage: hnp-bench connect [--rounds N] [--perfmon] [--json]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.split_first() {
        Some((&"client", rest)) => client::run(rest),
        Some((&"connect", rest)) => Options::parse(rest).and_then(|options| bench(&options)),
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
                "--rounds" => {
                    let number = words.next().context("--rounds wants a number")?;
                    options.rounds =
                        number.parse().ok().filter(|n| (1..=1000).contains(n)).with_context(|| {
                            format!("--rounds: {number:?} is not a number from 1 to 1000")
                        })?;
                }
                unknown => bail!("unknown argument {unknown}\n{USAGE}"),
            }
        }
        Ok(options)
    }
}

fn bench(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces and cgroups and needs root");
    let report = connect::measure(options.rounds, options.perfmon)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
