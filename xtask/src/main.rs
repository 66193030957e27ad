//! Everything you type to work on hnp: `cargo xtask <command>`.
//!
//! One file per command; a step that fails prints the line to paste. `cargo build` and `cargo test`
//! need none of this as long as the BPF programs are not touched.

mod apt;
mod bench;
mod binaries;
mod bpf_linker;
mod build_ebpf;
mod chart;
mod check;
mod core_source;
mod demo;
mod dependencies;
mod fuzz;
mod host;
mod image;
mod libtest;
mod node;
mod peers;
mod privileged;
mod setup;
mod shell;
mod test;
mod toolchain;
mod unpacked;
mod vm;

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
    Demo(demo::Options),
    Test(test::Options),
    Check(check::Options),
    Chart(chart::Options),
    Bench(bench::Options),
    Image(image::Options),
    Fuzz(fuzz::Options),
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
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Chart(options) => chart::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Image(options) => image::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
    }
}
