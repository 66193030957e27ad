//! The configuration in each rendering, as the agent reads it: with the files that it names, where the pod would see them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::render::{Case, Rendered};
use super::rules::{list, text};
use crate::shell::{self, note};
use crate::toolchain::{Workspace, cargo};

/// Runs `hnp-agent check` on all of them.
///
/// # Errors
/// When one has mistakes, names a file that no volume brings, or stops later than kubelet kills.
pub(super) fn check(
    workspace: &Workspace,
    scratch: &Path,
    cases: &[Case],
    rendered: &[Rendered],
) -> Result<()> {
    shell::run(cargo().current_dir(&workspace.root).args([
        "build",
        "--quiet",
        "--locked",
        "-p",
        "hnp-agent",
        "--bin",
        "hnp-agent",
    ]))?;
    let agent = workspace.debug_bin("hnp-agent");
    let certs = scratch.join("certs");
    make_certificates(&agent, &certs)?;
    for (index, (case, rendered)) in cases.iter().zip(rendered).enumerate() {
        let root = scratch.join(format!("pod-{index}"));
        one(&agent, &certs, &root, rendered).with_context(|| case.name.clone())?;
    }
    // The control: a key that nobody knows, which no schema of the chart's can see.
    let file = scratch.join("pod-0/hnp.yaml");
    let mut text = fs::read_to_string(&file)?;
    text.push_str("\nruns_dir: /run\n");
    fs::write(&file, text)?;
    match shell::output(Command::new(&agent).arg("check").arg("--config").arg(&file)) {
        Err(error) if format!("{error:#}").contains("runs_dir") => {}
        other => bail!("a configuration with a mistake was let pass: {other:?}"),
    }
    note(&format!("{} configurations are good, and one with a mistake is not", cases.len()));
    Ok(())
}

fn make_certificates(agent: &Path, certs: &Path) -> Result<()> {
    if certs.exists() {
        fs::remove_dir_all(certs)?;
    }
    fs::create_dir_all(certs)?;
    for arguments in [&["certs", "init-ca"][..], &["certs", "issue", "client"]] {
        shell::output(Command::new(agent).args(arguments).current_dir(certs))?;
    }
    Ok(())
}

fn one(agent: &Path, certs: &Path, root: &Path, rendered: &Rendered) -> Result<()> {
    let of = |kind: &str| {
        rendered.documents.iter().map(|(_, object)| object).find(|object| text(object, "/kind") == kind)
    };
    let map = of("ConfigMap").context("there is no ConfigMap")?;
    let pod = of("DaemonSet")
        .and_then(|object| object.pointer("/spec/template/spec"))
        .context("there is no pod")?;
    let container = list(pod, "/containers").first().context("there is no container")?;
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    // Where secrets and config maps are mounted, in place of the container's own tree.
    let mut config = text(map, "/data/hnp.yaml").to_owned();
    for mount in list(container, "/volumeMounts") {
        let (name, path) = (text(mount, "/name"), text(mount, "/mountPath"));
        let volume = list(pod, "/volumes").iter().find(|volume| text(volume, "/name") == name);
        let here = root.join(path.trim_start_matches('/'));
        let filled: &[(&str, &str)] = match volume {
            Some(volume) if volume.get("secret").is_some() => {
                &[("client.crt", "client.crt"), ("client.key", "client.key")]
            }
            Some(volume) if volume.get("configMap").is_some() && map.pointer("/data/ca.crt").is_some() => {
                &[("ca.crt", "ca.crt")]
            }
            _ => &[],
        };
        if filled.is_empty() {
            continue;
        }
        fs::create_dir_all(&here)?;
        for (file, from) in filled {
            fs::copy(certs.join(from), here.join(file)).with_context(|| format!("cannot write {file}"))?;
        }
        config = config.replace(&format!("{path}/"), &format!("{}/", here.display()));
    }
    fs::create_dir_all(root)?;
    let file = root.join("hnp.yaml");
    fs::write(&file, &config)?;
    let mut command = Command::new(agent);
    command.arg("check").arg("--json").arg("--config").arg(&file);
    command
        .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
        .env("KUBERNETES_SERVICE_PORT", "443")
        .env("NODE_NAME", "worker-1");
    for variable in list(container, "/env") {
        if let Some(value) = variable.get("value").and_then(Value::as_str) {
            command.env(text(variable, "/name"), value);
        }
    }
    let said: Value = serde_json::from_str(&shell::output(&mut command)?).context("check's answer")?;
    // What a route's promise does not hold is the user's own choice, and is said to the user.
    let warned: Vec<&Value> = list(&said, "/warnings")
        .iter()
        .filter(|warning| !text(warning, "/key").starts_with("routes["))
        .collect();
    if !warned.is_empty() {
        bail!("the agent warns: {warned:?}");
    }
    ends_in_time(&said, pod)
}

/// SIGKILL in the midst of a drain would cut what runs, and leave an uninstall half done.
fn ends_in_time(said: &Value, pod: &Value) -> Result<()> {
    let grace =
        pod["terminationGracePeriodSeconds"].as_u64().context("terminationGracePeriodSeconds is missing")?;
    let drain =
        list(said, "/plan/agent").iter().find(|row| row.get(0).and_then(Value::as_str) == Some("drain"));
    let deadline = drain.and_then(|row| row.get(1)).and_then(Value::as_str).context("check says no drain")?;
    let split = deadline.find(|c: char| !c.is_ascii_digit()).context("a unit")?;
    let seconds = deadline[..split].parse::<u64>()?
        * match &deadline[split..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            other => bail!("a drain in {other:?}"),
        };
    if grace < seconds + 5 {
        bail!("kubelet kills after {grace} s, and a drain may take {deadline}");
    }
    Ok(())
}
