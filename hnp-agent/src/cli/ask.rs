//! Whom a command asks, the configuration or the agent that runs, and what is said where there is no answer.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;

use crate::admin::client::Agent;
use crate::config::plan::Plan;
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
        Ok(Agent::in_run_dir(&plan(file)?.run_dir))
    }
}

/// What a configuration amounts to. Its warnings are left to `check` and to the agent.
///
/// # Errors
/// It cannot be used; why was said.
pub fn plan(file: &Path) -> Result<Plan, ExitCode> {
    config::load(file).map(|(plan, _)| plan).map_err(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
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
