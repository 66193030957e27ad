//! `cargo xtask image`: the agent as an image, as an OCI archive, from nothing but the Rust toolchain and a C compiler.
//!
//! The program is static: linked with the C library of the machine it is built on (`+crt-static` of the gnu target,
//! which every toolchain has; musl's would have to be installed, and its allocator is slow with many threads). Its
//! build has a target directory of its own, because flags that other builds lack would have those built anew.

mod containerfile;
mod linked;
mod oci;
mod sbom;
mod tar;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use flate2::Compression;
use serde_json::json;

use self::containerfile::Containerfile;
use self::oci::{Image, Written};
use self::tar::Tar;
use crate::build_ebpf;
use crate::shell::{self, note, step};
use crate::toolchain::{Rust, Workspace, cargo};

/// What an image may weigh as it is pulled: a node that comes up waits for it before it can take pods.
const LIMIT: usize = 12 << 20;

/// Build the agent's image, as an OCI archive in the target directory
///
/// No container tool is needed. The archive can be given to docker load, podman load, skopeo copy oci-archive:...,
/// or ctr -n k8s.io images import. The list of what is in it lies beside it and in it (/sbom.json, CycloneDX). The
/// same sources with the same toolchain give the same digest. Fails if the image weighs more than 12 MiB.
#[derive(Args)]
pub(crate) struct Options {
    /// Print sizes and digest as JSON.
    #[arg(long)]
    json: bool,
    /// The processor, as Kubernetes calls it (kubernetes.io/arch): this machine's, and no other.
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::find()?;
    let rust = Rust::active()?;
    let arch = arch_of(&rust.host, options.arch.as_deref())?;
    let (path, name, written) = build(&workspace, &rust, arch)?;
    if options.json {
        let facts = json!({
            "archive": path, "name": name, "arch": arch, "digest": written.digest,
            "archive_bytes": written.archive.len(), "layer_bytes": written.compressed,
            "unpacked_bytes": written.unpacked, "limit_bytes": LIMIT,
        });
        println!("{facts}");
    } else {
        println!("{}", path.display());
        println!("{name} (linux/{arch})");
        println!("{}", written.digest);
        println!(
            "{} as it is pulled, {} on a node",
            megabytes(written.archive.len()),
            megabytes(written.unpacked)
        );
    }
    Ok(())
}

/// Builds the image of this machine's processor; returns the folder that holds it, as `hnp-agent.tar`.
///
/// # Errors
/// When the build fails, or the image weighs too much.
pub(crate) fn ensure_built(workspace: &Workspace) -> Result<PathBuf> {
    let rust = Rust::active()?;
    let arch = arch_of(&rust.host, None)?;
    let (path, ..) = build(workspace, &rust, arch)?;
    path.parent().map(Path::to_owned).context("an archive lies in a folder")
}

/// The same image with the agent that scenarios run, which is there when they are: a debug build, with the libraries that it
/// names beside it. Another folder's; it may weigh what it wants.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn of_debug_agent(workspace: &Workspace, agent: &Path) -> Result<PathBuf> {
    let rust = Rust::active()?;
    let dir = workspace.target.join("image-debug");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    shell::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(dir.join("hnp-agent")).arg(agent))?;
    let mut layer = Tar::default();
    linked::add_libraries(&mut layer, &dir.join("hnp-agent"))?;
    let written = pack(workspace, &rust, arch_of(&rust.host, None)?, &dir, layer, Compression::fast())?;
    write(&dir.join("hnp-agent.tar"), &written.archive)?;
    Ok(dir)
}

/// An image of one program and the libraries that it names, named `localhost/NAME:1`: what a test's pods run.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn of_program(program: &Path, name: &str, into: &Path) -> Result<()> {
    let mut layer = Tar::default();
    linked::add_libraries(&mut layer, program)?;
    layer.file(name, 0o755, &read(program)?)?;
    let (entrypoint, tagged) = (format!("/{name}"), format!("localhost/{name}:1"));
    let image = Image {
        name: &tagged,
        arch: arch_of(&Rust::active()?.host, None)?,
        layer: layer.finish(),
        compression: Compression::fast(),
        entrypoint: &[&entrypoint],
        user: "0:0",
        labels: BTreeMap::new(),
    };
    write(&into.join(format!("{name}.tar")), &image.write()?.archive)
}

fn build(workspace: &Workspace, rust: &Rust, arch: &str) -> Result<(PathBuf, String, Written)> {
    let dir = workspace.target.join("image");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let program = compile(workspace, &rust.host)?;
    fs::copy(&program, dir.join("hnp-agent")).context("cannot copy the agent")?;
    let written = pack(workspace, rust, arch, &dir, Tar::default(), Compression::best())?;
    ensure!(
        written.archive.len() <= LIMIT,
        "the image weighs {}, and {} are allowed: see what grew with `cargo bloat --release -p hnp-agent --crates`",
        megabytes(written.archive.len()),
        megabytes(LIMIT)
    );
    let path = dir.join("hnp-agent.tar");
    write(&path, &written.archive)?;
    note(&format!("{}: {}", path.display(), megabytes(written.archive.len())));
    Ok((path, image_name(), written))
}

fn image_name() -> String {
    format!("localhost/hnp-agent:{}", env!("CARGO_PKG_VERSION"))
}

/// What the Containerfile says, of the `hnp-agent` in a folder, and what is in the layer already.
fn pack(
    workspace: &Workspace,
    rust: &Rust,
    arch: &str,
    dir: &Path,
    mut layer: Tar,
    compression: Compression,
) -> Result<Written> {
    let version = env!("CARGO_PKG_VERSION");
    let sbom = sbom::document(workspace, rust, version)?;
    // For whoever builds by the Containerfile, and for who only wants to read the list.
    write(&dir.join("sbom.json"), &serde_json::to_vec_pretty(&sbom)?)?;
    let text = fs::read_to_string(workspace.root.join("deploy/Containerfile"))
        .context("cannot read deploy/Containerfile")?;
    let file = Containerfile::parse(&text).context("deploy/Containerfile")?;
    for (from, to) in &file.copies {
        let mode = if *from == "hnp-agent" { 0o755 } else { 0o644 };
        layer.file(to, mode, &read(&dir.join(from))?)?;
    }
    let name = image_name();
    let mut labels: BTreeMap<&str, String> =
        file.labels.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    labels.insert("org.opencontainers.image.version", version.to_owned());
    let entrypoint: Vec<&str> = file.entrypoint.iter().map(String::as_str).collect();
    let layer = layer.finish();
    Image { name: &name, arch, layer, compression, entrypoint: &entrypoint, user: file.user, labels }.write()
}

fn compile(workspace: &Workspace, triple: &str) -> Result<PathBuf> {
    let object = build_ebpf::build(workspace)?.join("hnp.bpf.o");
    step("building the agent for its image (several minutes the first time)");
    let dir = workspace.target.join("image-build");
    shell::run(
        cargo()
            .current_dir(&workspace.root)
            // With a target that is named, flags are for that alone: build scripts and macros stay dynamic.
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
            .env_remove("RUSTFLAGS")
            // No table of symbols: nobody debugs in an image, and it is an eighth of the program.
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            .env("HNP_BPF_OBJECT", object)
            .args(["build", "--release", "--locked", "-p", "hnp-agent", "--bin", "hnp-agent"])
            .args(["--target", triple, "--target-dir"])
            .arg(&dir),
    )?;
    Ok(dir.join(triple).join("release/hnp-agent"))
}

/// The image's processor, as Go and Kubernetes call it.
fn arch_of(host: &str, wanted: Option<&str>) -> Result<&'static str> {
    ensure!(host.ends_with("-linux-gnu"), "images are built on Linux with the GNU C library; this is {host}");
    let own = match host.split('-').next() {
        Some("x86_64") => "amd64",
        Some("aarch64") => "arm64",
        _ => bail!("nodes are amd64 or arm64; this is {host}"),
    };
    match wanted {
        Some(other) if other != own => bail!(
            "an image for {other} cannot be built here: this machine is {own}, and has neither a C library nor a C \
             compiler for another. Run cargo xtask image on a machine that is {other}. (Nobody has yet run hnp on \
             arm64: it is not supported.)"
        ),
        _ => Ok(own),
    }
}

fn megabytes(bytes: usize) -> String {
    // Exact to two digits, which is what people compare.
    format!("{}.{:02} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 100) >> 20)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_processor_is_refused_with_words() {
        assert_eq!(arch_of("x86_64-unknown-linux-gnu", Some("amd64")).expect("its own"), "amd64");
        assert_eq!(arch_of("aarch64-unknown-linux-gnu", None).expect("its own"), "arm64");
        let refused = arch_of("x86_64-unknown-linux-gnu", Some("arm64")).expect_err("not its own");
        assert!(refused.to_string().contains("on a machine that is arm64"), "{refused}");
        assert!(arch_of("x86_64-apple-darwin", None).is_err());
    }

    #[test]
    fn sizes_are_said_to_two_digits() {
        assert_eq!(megabytes(LIMIT), "12.00 MiB");
        assert_eq!(megabytes((1 << 20) + (1 << 19)), "1.50 MiB");
    }
}
