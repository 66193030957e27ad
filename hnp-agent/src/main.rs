//! hnp-agent: see `hnp_agent`, and DESIGN.md for the whole house.

use std::process::ExitCode;

/// Chosen by measurement (DESIGN.md, "Why mimalloc?").
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hnp_agent::cli::main()
}
