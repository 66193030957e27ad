//! Embeds the BPF object, where there is one.
//!
//! `cargo xtask build-ebpf` puts the objects into `<target>/hnp-ebpf/`. Without them the agent still
//! builds, tests and checks configurations; it says so when it is told to run.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(hnp_bpf_object)");
    println!("cargo::rerun-if-env-changed=HNP_BPF_OBJECT");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let Some(object) = find(&out) else { return };
    fs::copy(&object, out.join("hnp.bpf.o"))
        .unwrap_or_else(|error| panic!("cannot copy {}: {error}", object.display()));
    println!("cargo::rustc-cfg=hnp_bpf_object");
}

/// The object that `HNP_BPF_OBJECT` names, or the one of this profile in the target directory.
fn find(out: &Path) -> Option<PathBuf> {
    if let Some(named) = env::var_os("HNP_BPF_OBJECT") {
        println!("cargo::rerun-if-changed={}", Path::new(&named).display());
        return Some(named.into());
    }
    // <target>[/<triple>]/<profile>/build/<package>-<hash>/out
    let target = out.ancestors().skip(4).take(2).find(|dir| dir.join("CACHEDIR.TAG").is_file())?;
    let objects = target.join("hnp-ebpf");
    // Cargo watches a folder for what comes and goes in it, but takes a missing path for a change at
    // every build: so the folder is made, and watched.
    fs::create_dir_all(&objects).ok()?;
    println!("cargo::rerun-if-changed={}", objects.display());
    let debug = env::var_os("PROFILE").is_some_and(|profile| profile == "debug");
    let other = env::var_os("CARGO_FEATURE_OTHER_SHAPE").is_some();
    let names: &[&str] = if other {
        &["hnp-other-shape.bpf.o"]
    } else if debug {
        &["hnp-debug.bpf.o", "hnp.bpf.o"]
    } else {
        &["hnp.bpf.o"]
    };
    names.iter().map(|name| objects.join(name)).find(|path| path.is_file())
}
