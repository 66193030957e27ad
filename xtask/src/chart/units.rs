//! The systemd units, as systemd reads them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::apt::{self, Apt, Debian};
use crate::shell::{self, note, step};
use crate::toolchain::Workspace;

const UNITS: [&str; 2] = ["hnp-agent.service", "hnp-early.service"];
/// Where the units have the agent; on a machine that builds it is elsewhere.
const INSTALLED: &str = "/usr/local/bin/hnp-agent";

/// Has `systemd-analyze verify` read each of them, and a control that it must refuse.
///
/// # Errors
/// When it says anything at all, or nothing of the control, or is not to be had.
pub(super) fn verify(workspace: &Workspace) -> Result<()> {
    let analyze = Analyze::ensure(workspace)?;
    let scratch = workspace.target.join("chart/units");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let agent = workspace.debug_bin("hnp-agent");
    for unit in UNITS {
        let path = workspace.root.join("deploy").join(unit);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !text.contains(INSTALLED) {
            bail!("{unit} does not start {INSTALLED}");
        }
        let text = text.replace(INSTALLED, &agent.display().to_string());
        let copy = scratch.join(unit);
        fs::write(&copy, &text)?;
        let said = analyze.verify(&copy)?;
        if !said.is_empty() {
            bail!("{unit}: {said}");
        }
        // The control: a mistake in a key and one in a value.
        fs::write(
            &copy,
            text.replace("NoNewPrivileges=yes", "NoNewPrivilege=yes").replace("Type=", "Type=no"),
        )?;
        let said = analyze.verify(&copy)?;
        if !(said.contains("NoNewPrivilege") && said.contains("no")) {
            bail!("{unit} with mistakes was let pass: {said:?}");
        }
    }
    note(&format!("{} are as systemd wants them", UNITS.join(" and ")));
    Ok(())
}

/// systemd-analyze, of the machine or unpacked below the target directory.
struct Analyze {
    program: PathBuf,
    libraries: Option<String>,
}

impl Analyze {
    fn ensure(workspace: &Workspace) -> Result<Self> {
        if shell::has("systemd-analyze") {
            return Ok(Self { program: "systemd-analyze".into(), libraries: None });
        }
        let home = workspace.tools().join("systemd");
        let root = home.join("root");
        let program = ["usr/bin", "bin"].map(|dir| root.join(dir).join("systemd-analyze"));
        let unpacked = || program.iter().find(|path| path.is_file()).cloned();
        if unpacked().is_none() {
            step("fetching systemd (unpacked below target/ and not installed)");
            let debian = Debian::of_this_machine()
                .context("systemd-analyze is missing, and this is no Debian to fetch it from")?;
            let apt = Apt::new(&home, &[(&debian.releases, &[&debian.codename])])?;
            apt.update()?;
            apt.fetch_with_dependencies(&["systemd"], &debian.codename, &root)?;
        }
        let program = unpacked().context("Debian's systemd has no systemd-analyze")?;
        let own = ["usr/lib", "lib"]
            .map(|dir| root.join(dir).join("x86_64-linux-gnu/systemd").display().to_string());
        Ok(Self { program, libraries: Some(format!("{}:{}", own.join(":"), apt::libraries(&root))) })
    }

    /// What it says of a unit; nothing is good.
    fn verify(&self, unit: &Path) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(["verify", "--recursive-errors=no", "--man=no"]).arg(unit).env("SYSTEMD_LOG_COLOR", "0");
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let output = command.output().with_context(|| format!("cannot start {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !output.status.success() && said.is_empty() {
            bail!("it failed without a word ({}):\n  {}", output.status, shell::paste(&command));
        }
        Ok(said)
    }
}
