//! runc, without limits whose cgroup controllers are not there. A kubelet's runtime always sets `cpu.weight`, and
//! runc takes its absence for an error; on a machine with cgroup v1 beside cgroup2 nearly all are absent.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Keys of `linux.resources` in the OCI runtime specification, and the controllers they need.
const NEEDS: [(&str, &str); 4] = [("cpu", "cpu"), ("memory", "memory"), ("pids", "pids"), ("blockIO", "io")];

pub(super) fn run(arguments: &[OsString]) -> Result<()> {
    let makes = arguments.iter().any(|word| word == "create" || word == "run");
    let bundle = arguments.iter().position(|word| word == "--bundle").and_then(|at| arguments.get(at + 1));
    if let Some(bundle) = bundle.filter(|_| makes) {
        take_out(&Path::new(bundle).join("config.json"))?;
    }
    // Never under this program's own name, which is not on the PATH.
    Err(Command::new("runc").args(arguments).exec()).context("cannot start runc")
}

fn take_out(path: &Path) -> Result<()> {
    let there = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").context("cgroup.controllers")?;
    let there: Vec<&str> = there.split_whitespace().collect();
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    let mut config: Value = serde_json::from_slice(&text).context("config.json")?;
    if let Some(resources) = config["linux"]["resources"].as_object_mut() {
        for (key, _) in NEEDS.iter().filter(|(_, controller)| !there.contains(controller)) {
            resources.remove(*key);
        }
    }
    fs::write(path, serde_json::to_vec(&config)?).with_context(|| path.display().to_string())
}
