//! `cargo xtask fuzz`: libFuzzer on the agent's readers of what others write.
//!
//! With the stable compiler: the coverage that libFuzzer follows is a pass of LLVM's that `-C passes` asks for. What a
//! run finds worth keeping lies below the target directory; what is committed lies in `tests/fuzz/corpus` and is tried
//! by `cargo test`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::shell;
use crate::toolchain::{Rust, Workspace, cargo};

/// What cargo-fuzz asks of LLVM: edges, comparisons, and where they are.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // Counters that a linker drops would be read all the same.
    "-Clink-dead-code",
];
/// Above what a head or a certificate needs: chains of several certificates fit.
const LONGEST_INPUT: usize = 16 * 1024;
/// Seconds for one input; nothing here takes a millisecond.
const PATIENCE: u32 = 10;

/// Look for input that the agent's readers take badly
///
/// A target is one reader: of certificates, keys, revocation lists, heads, bodies, hellos, configurations, SVIDs, bundles.
/// A finding lies in
/// target/fuzz/findings, and the run ends with 1; put it into tests/fuzz/corpus/TARGET when it is mended. Needs a C++
/// compiler (Debian: g++).
#[derive(Args)]
pub(crate) struct Options {
    /// Which readers; all of them if left out.
    targets: Vec<String>,
    /// How many inputs each reader is given.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let workspace = Workspace::find()?;
    let home = workspace.root.join("tests/fuzz");
    let corpus = home.join("corpus");
    let known = names(&corpus)?;
    if let Some(unknown) = options.targets.iter().find(|name| !known.contains(name)) {
        bail!("there is no target {unknown:?}; allowed: {}", known.join(", "));
    }
    let program = build(&workspace, &home)?;
    let kept = workspace.target.join("fuzz");
    let findings = kept.join("findings");
    fs::create_dir_all(&findings).with_context(|| format!("cannot make {}", findings.display()))?;
    for name in known.iter().filter(|name| options.targets.is_empty() || options.targets.contains(name)) {
        shell::step(&format!("fuzzing {name}: {} runs", options.runs));
        let own = kept.join("corpus").join(name);
        fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
        let mut fuzzer = Command::new(&program);
        fuzzer
            .env("HNP_FUZZ_TARGET", name)
            .arg(format!("-runs={}", options.runs))
            .arg(format!("-max_len={LONGEST_INPUT}"))
            .arg(format!("-timeout={PATIENCE}"))
            .arg(format!("-artifact_prefix={}/{name}-", findings.display()))
            .args(["-print_final_stats=1", "-verbosity=0"])
            // What is new goes into the first.
            .args([own, corpus.join(name)]);
        shell::run(&mut fuzzer)
            .with_context(|| format!("{name}: the input lies in {}", findings.display()))?;
    }
    shell::step("nothing found");
    Ok(())
}

/// The targets that have a corpus: all of them, which a unit test of the agent sees to.
fn names(corpus: &Path) -> Result<Vec<String>> {
    let folders = fs::read_dir(corpus).with_context(|| format!("cannot read {}", corpus.display()))?;
    let mut names = Vec::new();
    for folder in folders {
        names.push(folder?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn build(workspace: &Workspace, home: &Path) -> Result<PathBuf> {
    if !["c++", "g++", "clang++"].iter().any(|compiler| shell::has(compiler)) {
        bail!("a C++ compiler is missing; on Debian: apt-get install --no-install-recommends g++");
    }
    shell::step("building the fuzzer");
    let host = Rust::active()?.host;
    let target = workspace.target.join("fuzz-build");
    let mut command = cargo();
    // For a named target build scripts and macros are built without the flags.
    command
        .args(["build", "--release", "--locked", "--target", &host])
        .arg("--manifest-path")
        .arg(home.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\u{1f}"));
    shell::run(&mut command)?;
    Ok(target.join(host).join("release/hnp-fuzz"))
}
