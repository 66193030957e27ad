//! The host tier: the scenarios on this machine's kernel.
//!
//! They run beside each other, and a deadline that one keeps alone it may miss while another takes both processors. So
//! what failed runs once more, alone. What fails again has failed. What holds then has not, but it is named at the
//! very end, with its account: either its deadline is too short, or two scenarios are in each other's way.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::libtest::{Outcome, details, outcomes};
use crate::shell::{self, note, step};
use crate::toolchain::Workspace;
use crate::{binaries, privileged};

/// One in a hundred. More, and it is not the machine that was busy.
const AT_MOST: usize = 5;

/// Runs the scenarios, with `arguments` for their executable.
///
/// # Errors
/// When something cannot be built, or a scenario fails.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let agent = binaries::agent(workspace)?;
    binaries::other_agents(workspace)?;
    step("scenarios on this machine's kernel");
    // All but the node tier's, which needs more than this.
    let is_node = |path: &PathBuf| binaries::is_test(path, "node");
    for executable in binaries::tests_of(workspace, "hnp-tests")?.into_iter().filter(|path| !is_node(path)) {
        let scenarios = || command(workspace, &agent, &executable);
        let mut all = scenarios()?;
        all.args(arguments);
        let (log, status) = shell::run_and_keep(&mut all)?;
        let failed = failed(&log);
        if status.success() || failed.is_empty() || failed.len() > AT_MOST {
            shell::succeed(&all, status)?;
            continue;
        }
        step(&format!("once more, alone: {}", failed.join(", ")));
        let mut alone = scenarios()?;
        alone.args(&failed).args(["--exact", "--test-threads=1"]);
        shell::run(&mut alone)?;
        shaky(&failed, details(&log));
    }
    Ok(())
}

fn command(workspace: &Workspace, agent: &Path, executable: &Path) -> Result<Command> {
    let mut command = privileged::command(executable, &[("HNP_AGENT_BIN", agent)], "the host tier")?;
    command.current_dir(workspace.root.join("tests"));
    Ok(command)
}

fn failed(log: &str) -> Vec<String> {
    let failed = outcomes(log).into_iter().filter(|(_, how)| *how == Outcome::Failed);
    failed.map(|(name, _)| name).collect()
}

/// Says it as loudly as a failure.
fn shaky(names: &[String], account: &str) {
    const ENOUGH: usize = 20_000;
    let cut = account.floor_char_boundary(ENOUGH);
    eprintln!("{}", &account[..cut]);
    step(&format!("{} FAILED BESIDE OTHERS AND HOLDS ALONE; its account is above:", names.len()));
    for name in names {
        note(name);
    }
}
