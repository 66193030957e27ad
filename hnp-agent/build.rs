//! Embeds the BPF object, where there is one; in debug builds also the one that logs.
//!
//! `cargo xtask build-ebpf` puts the objects into `<target>/hnp-ebpf/`. Without them the agent still
//! builds, tests and checks configurations; it says so when it is told to run.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Name and, where it is embedded, `--cfg` of each object.
const OBJECTS: [(&str, &str); 2] =
    [("hnp.bpf.o", "hnp_bpf_object"), ("hnp-debug.bpf.o", "hnp_bpf_object_that_logs")];

fn main() {
    println!("cargo::rerun-if-env-changed=HNP_BPF_OBJECT");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let found = find(&out);
    for ((name, cfg), object) in OBJECTS.into_iter().zip(found) {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
        let Some(object) = object else { continue };
        fs::copy(&object, out.join(name))
            .unwrap_or_else(|error| panic!("cannot copy {}: {error}", object.display()));
        println!("cargo::rustc-cfg={cfg}");
    }
}

/// The object that `HNP_BPF_OBJECT` names, or those of this profile in the target directory.
fn find(out: &Path) -> [Option<PathBuf>; 2] {
    if let Some(named) = env::var_os("HNP_BPF_OBJECT") {
        println!("cargo::rerun-if-changed={}", Path::new(&named).display());
        return [Some(named.into()), None];
    }
    // <target>[/<triple>]/<profile>/build/<package>-<hash>/out
    let target = out.ancestors().skip(4).take(2).find(|dir| dir.join("CACHEDIR.TAG").is_file());
    let Some(objects) = target.map(|target| target.join("hnp-ebpf")) else { return [None, None] };
    // Cargo watches a folder for what comes and goes in it, but takes a missing path for a change at
    // every build: so the folder is made, and watched.
    if fs::create_dir_all(&objects).is_err() {
        return [None, None];
    }
    println!("cargo::rerun-if-changed={}", objects.display());
    let debug = env::var_os("PROFILE").is_some_and(|profile| profile == "debug");
    let file = |name: &str| Some(objects.join(name)).filter(|path| path.is_file());
    if env::var_os("CARGO_FEATURE_OTHER_SHAPE").is_some() {
        return [file("hnp-other-shape.bpf.o"), None];
    }
    let [plain, logs] = OBJECTS.map(|(name, _)| file(name));
    [plain, logs.filter(|_| debug)]
}
