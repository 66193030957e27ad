//! Which running agent a command asks, and what is said where it does not answer.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use crate::admin::client::Agent;
use crate::config::{self, defaults};

/// Where the agent's socket is.
#[derive(Debug, clap::Args)]
pub struct Where {
    /// The agent's configuration: `run_dir` is taken from it.
    #[arg(long, value_name = "FILE", conflicts_with = "run_dir")]
    config: Option<PathBuf>,
    /// The agent's run directory.
    #[arg(long, value_name = "DIR", default_value = defaults::RUN_DIR)]
    run_dir: PathBuf,
}

impl Where {
    /// Whom to ask.
    ///
    /// # Errors
    /// The configuration cannot be used; why was said.
    pub fn agent(&self) -> Result<Agent, ExitCode> {
        let Some(file) = &self.config else { return Ok(Agent::in_run_dir(&self.run_dir)) };
        match config::load(file) {
            Ok((plan, _)) => Ok(Agent::in_run_dir(&plan.run_dir)),
            Err(error) => {
                eprintln!("{error}");
                Err(ExitCode::FAILURE)
            }
        }
    }
}

/// What the agent answers.
///
/// # Errors
/// It does not; why was said.
pub fn get(agent: &Agent, path: &str) -> Result<Value, ExitCode> {
    agent.get(path).map_err(|error| {
        eprintln!("hnp-agent: {error}");
        ExitCode::FAILURE
    })
}
