//! `hnp-agent enforce`: what an agent leaves behind, without an agent. For the time between a boot, which
//! empties bpffs, and the agent's start: run before the kubelet starts pods.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ask;
use crate::capture::{Capture, CaptureError, Node, Prepared, Turn};
use crate::config::plan::{CaptureMode, Enforcement, Plan, Target};
use crate::generation::Generation;
use crate::proxy::flow::SharedVipTable;
use crate::resolve::Desired;
use crate::resolve::schedule::NameTable;

/// Arguments of `enforce`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How long to wait for the pods' cgroup to appear, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
}

/// Attaches the programs with the addresses of strict routes, leaves them pinned, and ends. Pods are
/// refused there until an agent runs. Needs no network and no certificates.
pub fn run(args: &Args) -> ExitCode {
    let plan = match ask::plan(&args.config) {
        Ok(plan) => plan,
        Err(code) => return code,
    };
    if plan.capture.mode == CaptureMode::Off {
        println!("capture is off in this configuration: there is nothing to enforce");
        return ExitCode::SUCCESS;
    }
    match enforce(&plan, Duration::from_secs(args.wait)) {
        Ok(desired) => {
            for destination in &desired.destinations {
                println!("{} is refused until an agent runs", destination.at);
            }
            say_what_is_open(&plan);
            ExitCode::SUCCESS
        }
        // Whoever runs enforces more than this.
        Err(CaptureError::Locked { .. }) => {
            println!("an agent is running, and enforces");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("hnp-agent: {:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}

fn enforce(plan: &Plan, patience: Duration) -> Result<Desired, CaptureError> {
    let node = wait_for_node(plan, patience)?;
    let turn = Turn::take(&node, &plan.capture)?;
    let prepared = Prepared::load(&turn, &node, &plan.capture, &[])?;
    // Not refused where strict routes cannot be kept: without an agent, what the hooks hold is better than nothing.
    let mut capture = Capture::start(turn, prepared, &plan.capture, SharedVipTable::default())?;
    let mut destinations = NameTable::new(plan, Instant::now()).desired(Instant::now());
    destinations.retain(|destination| {
        let strictest = |route: &usize| plan.routes[*route].strictest_enforcement() == Enforcement::Strict;
        destination.routes.iter().any(strictest)
    });
    // Not complete: what a former agent left stays.
    let (identities, trusts) = (Vec::new(), Vec::new());
    let generation = Arc::new(Generation::new(1, Arc::new(plan.clone()), identities, trusts));
    let desired = Desired { generation, destinations, complete: false };
    let synced = capture.sync(&desired);
    capture.leave();
    synced.map(|()| desired)
}

/// At boot the kubelet's cgroup may be a moment away.
fn wait_for_node(plan: &Plan, patience: Duration) -> Result<Node, CaptureError> {
    const PAUSE: Duration = Duration::from_millis(200);
    let deadline = Instant::now() + patience;
    loop {
        match Node::check(&plan.capture) {
            Err(CaptureError::Preflight(missing)) if Instant::now() < deadline => {
                tracing::debug!(?missing, "waiting");
                std::thread::sleep(PAUSE);
            }
            checked => return checked,
        }
    }
}

/// Names are not looked up here: there may be no network yet.
fn say_what_is_open(plan: &Plan) {
    for route in plan.routes.iter().filter(|route| route.strictest_enforcement() == Enforcement::Strict) {
        for destination in &route.destinations {
            if matches!(destination.target, Target::Name(_)) {
                println!(
                    "{destination} is a name, and open until the agent has resolved it (route {:?})",
                    route.name
                );
            }
        }
    }
}
