//! `hnp-agent run`: the agent itself.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::reload::ConfigFile;
use crate::{app, config, telemetry};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration (YAML; docs/configuration.md has every key).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Take over from the agent that runs on this node, without a moment in which connections fail;
    /// where none runs, start as usual (docs/upgrade.md).
    #[arg(long)]
    take_over: bool,
    /// After a successor took over, do not end before being told to: for supervisors that restart
    /// whatever ends, such as a DaemonSet's kubelet.
    #[arg(long)]
    stay: bool,
}

/// Runs until SIGTERM or SIGINT, or until a successor took over, then drains.
pub fn run(args: &Args) -> ExitCode {
    let loaded = ConfigFile::read(&args.config)
        .and_then(|file| Ok((config::parse_with_warnings(&file.text, &args.config)?, file)));
    let ((plan, warnings), file) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let diagnostics = match telemetry::log::init(&plan.log) {
        Ok(diagnostics) => diagnostics,
        Err(error) => {
            eprintln!("hnp-agent: {error}");
            return ExitCode::FAILURE;
        }
    };
    for warning in warnings {
        tracing::warn!(file = %args.config.display(), "{warning}");
    }
    let succession = app::Succession { take_over: args.take_over, stay: args.stay };
    match app::run(plan, &file, diagnostics, succession) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Once for the log's readers, once for the person at the terminal: a start that failed is
            // read by people.
            eprintln!("hnp-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
