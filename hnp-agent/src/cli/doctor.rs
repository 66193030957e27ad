//! `hnp-agent doctor`: what this node has, lacks and enforces, for the person on call.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::capture::{Finding, State, examine};
use crate::config;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Looks and prints; fails when something does not work.
pub fn run(args: &Args) -> ExitCode {
    let plan = match config::load(&args.config) {
        Ok((plan, _)) => plan,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let findings = examine(&plan);
    let bad = findings.iter().any(|finding| finding.state == State::Bad);
    let mut out = std::io::stdout().lock();
    let written = if args.json {
        let list: Vec<_> = findings.iter().map(as_json).collect();
        writeln!(out, "{}", json!({"healthy": !bad, "findings": list}))
    } else {
        findings.iter().try_for_each(|Finding { area, what, state, detail }| {
            writeln!(out, "{:<9} {area:<12} {what}: {detail}", word(*state))
        })
    };
    // A closed pipe (`| head`) is the reader's choice, not a failure.
    if bad || written.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn as_json(finding: &Finding) -> serde_json::Value {
    let Finding { area, what, state, detail } = finding;
    json!({"area": area, "what": what, "state": word(*state), "detail": detail})
}

fn word(state: State) -> &'static str {
    match state {
        State::Good => "ok",
        State::Degraded => "degraded",
        State::Bad => "bad",
    }
}
