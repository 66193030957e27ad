//! `hnp-agent cleanup`: ends the enforcement that outlived an agent, and proves that nothing is left.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::ask;
use crate::capture::clean_up;
use crate::config::defaults;

/// Arguments of `cleanup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration the agent ran with: `capture.bpffs` is taken from it.
    #[arg(long, value_name = "FILE", conflicts_with = "bpffs")]
    config: Option<PathBuf>,
    /// Where the agent pinned its programs.
    #[arg(long, value_name = "DIR", default_value = defaults::BPFFS)]
    bpffs: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Removes programs, pins and routes of an agent that is gone. Pods that strict routes refused reach the
/// destinations directly afterwards.
pub fn run(args: &Args) -> ExitCode {
    let bpffs = match &args.config {
        Some(file) => match ask::plan(file) {
            Ok(plan) => plan.capture.bpffs,
            Err(code) => return code,
        },
        None => args.bpffs.clone(),
    };
    let cleaned = match clean_up(&bpffs) {
        Ok(cleaned) => cleaned,
        Err(error) => {
            eprintln!("hnp-agent: {:#}", anyhow::Error::from(error));
            return ExitCode::FAILURE;
        }
    };
    if args.json {
        println!("{}", json!({"removed": cleaned.removed, "left": cleaned.left}));
    } else {
        cleaned.removed.iter().for_each(|what| println!("removed {what}"));
        cleaned.left.iter().for_each(|what| eprintln!("still there: {what}"));
        if cleaned.left.is_empty() {
            println!("nothing of hnp is left on this node");
        }
    }
    if cleaned.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
