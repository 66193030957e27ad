//! Steps that need root: network namespaces, cgroups, BPF. Run as they are by root, through sudo by
//! everybody else, and refused with what to type where there is neither.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::shell;

/// `program`, to be run as root. `why` is told to the person who is asked for a password.
///
/// # Errors
/// When this is not root and there is no sudo.
pub(crate) fn command(program: &Path, env: &[(&str, &Path)], why: &str) -> Result<Command> {
    if is_root()? {
        let mut command = Command::new(program);
        command.envs(env.iter().copied());
        return Ok(command);
    }
    if !shell::has("sudo") {
        bail!("{why} needs root, and there is no sudo here: run the same cargo xtask command as root");
    }
    shell::note(&format!("{why} needs root: asking sudo"));
    let mut command = Command::new("sudo");
    // sudo's own arguments, because it drops most of the environment. The PATH is kept for clients that
    // a version manager put there.
    command.arg("env");
    for (key, value) in env {
        command.arg(format!("{key}={}", value.display()));
    }
    if let Some(path) = std::env::var_os("PATH") {
        command.arg(format!("PATH={}", path.to_string_lossy()));
    }
    command.arg(program);
    Ok(command)
}

/// `id -u`, because xtask has no other need for a crate of system calls.
fn is_root() -> Result<bool> {
    Ok(shell::output(Command::new("id").arg("-u"))?.trim() == "0")
}
