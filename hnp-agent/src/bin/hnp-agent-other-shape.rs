//! hnp-agent as a later version might be, with maps of another shape: what tests of upgrades and rollbacks
//! go between. Built with the feature `other-shape` only.

use std::process::ExitCode;

fn main() -> ExitCode {
    hnp_agent::cli::main()
}
