//! `hnp-agent run`: the agent itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::plan::Plan;
use crate::config::{EnvironmentErrors, FromEnvironment, LoadError, Mistake};
use crate::reload::ConfigFile;
use crate::{app, config, telemetry};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration (YAML; docs/configuration.md has every key). Without it, the environment is taken:
    /// PROXY_URL, CLIENT_CERT_PATH and CLIENT_KEY_PATH make a gateway.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
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
    let loaded = match &args.config {
        Some(path) => from_file(path).map_err(|error| error.to_string()),
        None => from_environment().map_err(|error| error.to_string()),
    };
    let (plan, warnings, file) = match loaded {
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
        let file = file.path.as_deref().unwrap_or(Path::new("environment"));
        tracing::warn!(file = %file.display(), "{warning}");
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

type Loaded = (Plan, Vec<Mistake>, ConfigFile);

fn from_file(path: &Path) -> Result<Loaded, LoadError> {
    let file = ConfigFile::read(path)?;
    let (plan, warnings) = config::parse_with_warnings(&file.text, path)?;
    Ok((plan, warnings, file))
}

fn from_environment() -> Result<Loaded, EnvironmentErrors> {
    let FromEnvironment { text, plan, warnings, .. } = config::from_environment()?;
    Ok((plan, warnings, ConfigFile { path: None, text }))
}
