//! hnp-agent: see `hnp_agent`, and DESIGN.md for the whole house.

use std::process::ExitCode;

fn main() -> ExitCode {
    hnp_agent::cli::main()
}
