//! The command line: one file per subcommand, exit codes in one place.
//!
//! 0: done. 1: it did not work, and stderr says why and what to do. 2: the command line is wrong.

pub mod certs;
pub mod check;
pub mod cleanup;
pub mod doctor;
pub mod enforce;
pub mod explain;
pub mod observed;
pub mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Takes what pods send to a destination and carries it to the upstream over mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "hnp-agent", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Capture, relay and report, until SIGTERM or SIGINT.
    Run(run::Args),
    /// Read a configuration, the certificates and roots it names, and say what it amounts to.
    Check(check::CheckArgs),
    /// Look at this node, and with --route at everything between it and a route's upstream.
    Doctor(doctor::Args),
    /// Refuse what strict routes name until an agent runs: for the time after a boot.
    Enforce(enforce::Args),
    /// End the enforcement that outlived an agent: remove programs, pins and routes, and prove it.
    Cleanup(cleanup::Args),
    /// List the workloads that dial destinations under `enforcement: observe`.
    Observed(observed::Args),
    /// Make, renew, examine and judge certificates.
    Certs(Box<certs::Args>),
    /// Say what a reason code means, whose side it is on, and what to do about it.
    Explain(explain::Args),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    // Most of them read a private key, and none is worth a core.
    if let Err(error) = crate::confidential::keep_memory() {
        eprintln!(
            "hnp-agent: cannot keep its memory to itself: {error}; allow prctl and prlimit64 in the seccomp profile"
        );
        return ExitCode::FAILURE;
    }
    match command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Enforce(args) => enforce::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Observed(args) => observed::run(&args),
        Command::Certs(args) => certs::run(&args),
        Command::Explain(args) => explain::run(&args),
    }
}
