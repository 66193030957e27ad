//! The command line: one file per subcommand, exit codes in one place.
//!
//! 0: done. 1: it did not work, and stderr says why and what to do. 2: the command line is wrong; of `status`
//! also: the agent is not ready; of `migration`: strict would cut somebody off, or too little was seen.

pub mod ask;
pub mod certs;
pub mod check;
pub mod cleanup;
pub mod doctor;
pub mod enforce;
pub mod explain;
pub mod flows;
pub mod migration;
pub mod observed;
pub mod run;
pub mod self_test;
pub mod status;
pub mod table;

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
    /// Say what the running agent has, captures and is waiting for.
    Status(status::Args),
    /// Show who is connected now and what has ended lately.
    Flows(flows::Args),
    /// Say who still goes direct and why, and whom `enforcement: strict` would cut off.
    Migration(migration::Args),
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
    /// Connect from a cgroup, for doctor.
    #[command(hide = true)]
    SelfTestDial(self_test::Args),
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
        Command::Status(args) => status::run(&args),
        Command::Flows(args) => flows::run(&args),
        Command::Migration(args) => migration::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Enforce(args) => enforce::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Observed(args) => observed::run(&args),
        Command::Certs(args) => certs::run(&args),
        Command::SelfTestDial(args) => self_test::run(&args),
        Command::Explain(args) => explain::run(&args),
    }
}
