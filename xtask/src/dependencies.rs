//! What may come into the build: `.deny.toml`, enforced by cargo-deny.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::shell::{self, note};
use crate::toolchain::{Workspace, cargo};

/// Pinned, so that the same tree gives the same answer.
const VERSION: &str = "0.20.2";
/// How long the advisory database may take: where there is no way to it, nobody waits for long.
const FETCH: Duration = Duration::from_secs(60);

/// Licences, banned crates and sources; advisories where their database can be reached.
///
/// # Errors
/// What .deny.toml forbids is in the lock file, or cargo-deny cannot be had.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let deny = ensure(workspace)?;
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(&deny);
        command.current_dir(&workspace.root).args(["--locked", "--log-level", "error"]).args(arguments);
        command
    };
    shell::run(&mut deny(&["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    match shell::quietly_within(&mut deny(&["fetch", "db"]), FETCH) {
        Ok(()) => shell::run(&mut deny(&["check", "--disable-fetch", "advisories"])),
        Err(_) => {
            note("ADVISORIES WERE NOT CHECKED: their database cannot be fetched from here. Where it can:");
            note("  cargo deny check advisories");
            Ok(())
        }
    }
}

fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let root = workspace.tools().join(format!("cargo-deny-{VERSION}"));
    let binary = root.join("bin/cargo-deny");
    if !binary.is_file() {
        note(&format!("installing cargo-deny {VERSION} into the target directory (some minutes, once)"));
        shell::run(
            cargo()
                .args(["install", "cargo-deny", "--locked", "--quiet", "--version", VERSION, "--root"])
                .arg(&root)
                // Optimised, it would run for a second instead of four and be built for minutes more.
                .arg("--debug")
                .arg("--target-dir")
                .arg(workspace.tools().join("build")),
        )?;
    }
    Ok(binary)
}
