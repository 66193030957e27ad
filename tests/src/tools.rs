//! The real programs that scenarios need, and what to type when one is missing. A missing program
//! fails the scenario; it is never skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A binary of this workspace, next to the running one in the target directory.
///
/// # Panics
/// When it has not been built.
pub fn sibling(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("a program knows its own path");
    let dir = me.parent().expect("a program lies in a directory");
    // Test executables lie in target/<profile>/deps, binaries one above.
    let candidates = [dir.join(name), dir.parent().unwrap_or(dir).join(name)];
    candidates.iter().find(|path| path.is_file()).cloned().unwrap_or_else(|| {
        panic!(
            "{name} is not built (looked for {}); run: cargo xtask test --tier host",
            candidates[1].display()
        )
    })
}

/// The path of a program of the system.
///
/// # Panics
/// When it is missing; the message says which package has it.
pub fn need(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    std::env::split_paths(&path)
        .chain(extra)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{program} is missing; {}", how_to_get(program)))
}

/// A Python with the `requests` package.
///
/// # Panics
/// When there is none; the message says how to get one.
pub fn python_with_requests() -> PathBuf {
    python_with("requests")
}

/// A Python with a package, which Debian has as `python3-PACKAGE`.
///
/// # Panics
/// When there is none; the message says how to get one.
pub fn python_with(package: &str) -> PathBuf {
    let venv = target_dir().join("hnp-test-venv");
    let script = format!("import {package}, sys; print(sys.executable)");
    // The second one is the system's, where a version manager stands before it on the PATH.
    [need("python3"), PathBuf::from("/usr/bin/python3"), venv.join("bin/python")]
        .iter()
        .find_map(|python| python_prefix(python, &script))
        .unwrap_or_else(|| {
            let venv = venv.display();
            panic!(
                "Python has no `{package}`; type: apt-get install python3-{package}\n\
                 or: python3 -m venv {venv} && {venv}/bin/pip install {package}"
            )
        })
}

/// Python itself, not a shim that looks for it.
///
/// # Panics
/// When it is missing.
pub fn python() -> PathBuf {
    // Shims take longer than most scripts.
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    let find = || python_prefix(&need("python3"), "import sys; print(sys.executable)").expect("python3 runs");
    PYTHON.get_or_init(find).clone()
}

/// Compiles one of `tests/clients/*.c` into a static program in `dir`.
///
/// # Panics
/// When the compiler refuses.
pub fn compile_static(source: &str, dir: &Path) -> PathBuf {
    let program = dir.join(Path::new(source).file_stem().expect("sources have names"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(source);
    let output = Command::new(need("cc"))
        .args(["-static", "-O1", "-Wall", "-Werror", "-o"])
        .args([&program, &source])
        .output()
        .expect("cc starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// Builds one of `tests/clients/*.go`, once in a run of the tests.
///
/// # Panics
/// When Go is missing or refuses.
pub fn go_program(source: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = built.get(source) {
        return program.clone();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(source);
    let stem = Path::new(source).file_stem().expect("sources have names").to_string_lossy().into_owned();
    // Its own name in each process: cargo may run several.
    let dir = target_dir().join("hnp-test-go");
    let program = dir.join(format!("{stem}-{}", std::process::id()));
    let output = Command::new(need("go"))
        .args(["build", "-o"])
        .args([&program, &path])
        .env("GOCACHE", dir.join("cache"))
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", "0")
        .output()
        .expect("go starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Over the one of the run before: nothing piles up.
    let last = dir.join(stem);
    std::fs::rename(&program, &last).expect("the target directory is ours");
    built.insert(source.to_owned(), last.clone());
    last
}

/// Runs a program of the system on the host, in a directory, and returns its standard output.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn run(dir: &Path, program: &str, args: &[&str]) -> String {
    let output = Command::new(need(program)).args(args).current_dir(dir).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn python_prefix(python: &Path, script: &str) -> Option<PathBuf> {
    let output = Command::new(python).args(["-c", script]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

/// Where cargo builds; files may lie there that outlive a run.
pub(crate) fn target_dir() -> PathBuf {
    let me = std::env::current_exe().expect("a program knows its own path");
    me.ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists())
        .map_or_else(std::env::temp_dir, Path::to_path_buf)
}

fn how_to_get(program: &str) -> String {
    let package = match program {
        "nginx" => "nginx-light libnginx-mod-stream",
        "squid" => "squid-openssl",
        "node" => "nodejs",
        "go" => "golang-go",
        "cc" => "gcc libc6-dev",
        "ip" | "tc" => "iproute2",
        "promtool" => "prometheus",
        other => other,
    };
    format!("on Debian: apt-get install --no-install-recommends {package}")
}
