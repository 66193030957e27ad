//! hnp-agent by a clock that the environment names: what a scenario sees a day of certificates with, in a minute. Built
//! with the feature `other-clock` only.

use std::process::ExitCode;

fn main() -> ExitCode {
    hnp_agent::cli::main()
}
