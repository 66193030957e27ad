//! What makes a node of a process, and what stands between containerd and runc where the machine lacks cgroup
//! controllers: two programs in one file, told apart by the name they are started under.
//!
//! A program of its own, because the namespaces of a node cannot be made from a test's threads.

mod init;
mod runtime;

use std::path::Path;
use std::process::ExitCode;

/// The name under which containerd starts this as its runtime.
const RUNTIME: &str = "hnp-test-runc";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let own = arguments.next().unwrap_or_default();
    let rest: Vec<_> = arguments.collect();
    let outcome = if Path::new(&own).file_name().is_some_and(|name| name == RUNTIME) {
        runtime::run(&rest)
    } else {
        init::run(&rest)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
