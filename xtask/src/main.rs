//! Everything you type to work on hnp: `cargo xtask <command>`.
//!
//! One file per command; a step that fails prints the line to paste. `cargo build` and `cargo test`
//! need none of this as long as the BPF programs are not touched.

mod bpf_linker;
mod build_ebpf;
mod core_source;
mod setup;
mod shell;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Works on hnp: sets up the BPF toolchain, builds, tests, checks and shows it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Options),
    BuildEbpf(build_ebpf::Options),
}

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup(options) => setup::run(&options),
        Command::BuildEbpf(options) => build_ebpf::run(&options),
    }
}
