//! Which running agent a command asks.

use std::path::PathBuf;

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
    /// When the configuration cannot be used.
    pub fn agent(&self) -> Result<Agent, config::LoadError> {
        match &self.config {
            None => Ok(Agent::in_run_dir(&self.run_dir)),
            Some(file) => config::load(file).map(|(plan, _)| Agent::in_run_dir(&plan.run_dir)),
        }
    }
}
