//! What the active Rust toolchain and this checkout are: the facts that set-up and builds derive from.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell;

/// The checkout and where cargo puts what it builds.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    /// The folder with the root `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, wherever the environment or configuration put it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    ///
    /// # Errors
    /// When cargo does not answer: not run below the workspace, or a broken manifest.
    pub(crate) fn find() -> Result<Self> {
        let text =
            shell::output(cargo().args(["metadata", "--no-deps", "--format-version", "1", "--offline"]))?;
        let json: serde_json::Value = serde_json::from_str(&text).context("cargo metadata is not JSON")?;
        let path = |key: &str| {
            json[key].as_str().map(PathBuf::from).with_context(|| format!("cargo metadata lacks {key}"))
        };
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")? })
    }

    /// Where set-up puts what the build needs and cargo does not bring.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The built BPF objects; `hnp-agent/build.rs` looks for them here.
    pub(crate) fn ebpf_objects(&self) -> PathBuf {
        self.target.join("hnp-ebpf")
    }

    /// Where cargo builds the BPF programs. Not below the objects: the agent's build watches those, and
    /// would be run again for every file that changes here.
    pub(crate) fn ebpf_build(&self) -> PathBuf {
        self.target.join("hnp-ebpf-build")
    }

    /// Where cargo puts the binaries of a debug build.
    pub(crate) fn debug_bin(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }

    /// Where cargo puts the binaries of a release build.
    pub(crate) fn release_bin(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }
}

/// The active Rust toolchain.
#[derive(Clone, Debug)]
pub(crate) struct Rust {
    /// Such as `x86_64-unknown-linux-gnu`.
    pub(crate) host: String,
    /// Such as `1.95.0` or `1.97.0-nightly`.
    pub(crate) release: String,
    /// Major version of the LLVM inside.
    pub(crate) llvm: u32,
    /// The toolchain's folder.
    pub(crate) sysroot: PathBuf,
}

impl Rust {
    /// Asks the `rustc` that cargo uses here.
    ///
    /// # Errors
    /// When it does not answer, or in a form that is not known.
    pub(crate) fn active() -> Result<Self> {
        let version = shell::output(rustc().arg("-vV"))?;
        let sysroot = shell::output(rustc().args(["--print", "sysroot"]))?;
        Self::parse(&version, Path::new(sysroot.trim()))
    }

    fn parse(version: &str, sysroot: &Path) -> Result<Self> {
        let field = |key: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                .with_context(|| format!("`rustc -vV` says no {key:?}:\n{version}"))
        };
        let llvm = field("LLVM version")?;
        let major = llvm.split('.').next().unwrap_or(llvm);
        Ok(Self {
            host: field("host")?.to_owned(),
            release: field("release")?.to_owned(),
            llvm: major.parse().with_context(|| format!("not an LLVM version: {llvm}"))?,
            sysroot: sysroot.to_owned(),
        })
    }

    /// Where this toolchain keeps the source of core, if rust-src is installed.
    pub(crate) fn own_source(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// Whether rustup manages it: then rustup can add components to it.
    pub(crate) fn is_rustups(&self) -> bool {
        self.sysroot.join("lib/rustlib/multirust-channel-manifest.toml").is_file()
    }
}

/// The cargo that runs this xtask.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_rustc_says() {
        let text = "rustc 1.95.0 (abc 2026-04-14)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
                    release: 1.95.0\nLLVM version: 22.1.2\n";
        let rust = Rust::parse(text, Path::new("/r")).expect("well-formed");
        assert_eq!((rust.release.as_str(), rust.llvm), ("1.95.0", 22));
        assert_eq!(rust.host, "x86_64-unknown-linux-gnu");
        assert!(Rust::parse("release: 1.95.0\n", Path::new("/r")).is_err());
    }
}
