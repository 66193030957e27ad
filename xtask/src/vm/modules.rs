//! The kernel modules that the guests need, out of a kernel's packages, in the order of loading.
//!
//! Read from the files themselves: an unpacked package has no `modules.dep`, and depmod is then one
//! program less to need.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};

/// What a guest's root file system comes through, what the worlds are made of, and what the scenarios
/// use. A kernel whose packages lack one has it built in, or is tested without; which of both, no package
/// says since Linux 7.
const WANTED: [&str; 19] = [
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "veth",
    "bridge",
    "af_packet",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sch_netem",
    "inet_diag",
    "tcp_diag",
    "mptcp_diag",
    "vsock",
    "vsock_loopback",
    "tls",
    "gcm",
    "ctr",
];

/// A line that changes when the list does: what was prepared with another one is prepared anew.
pub(super) fn wanted() -> String {
    WANTED.join(" ")
}

/// Puts the modules of the unpacked kernel below `from` into `into`, decompressed and numbered in the
/// order of loading. Returns those that are no modules there.
///
/// # Errors
/// When one is unreadable, or what it depends on is missing.
pub(super) fn extract(from: &Path, into: &Path) -> Result<Vec<String>> {
    let mut tree = Tree { files: HashMap::new(), loaded: Vec::new() };
    tree.scan(from)?;
    let mut absent = Vec::new();
    for name in WANTED {
        if !tree.load(name)? {
            absent.push(name.to_owned());
        }
    }
    fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    for (number, (name, content)) in tree.loaded.iter().enumerate() {
        let path = into.join(format!("{number:02}-{name}.ko"));
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(absent)
}

struct Tree {
    /// By name, with `_` for `-` as the kernel has it.
    files: HashMap<String, PathBuf>,
    /// Name and content, in the order of loading.
    loaded: Vec<(String, Vec<u8>)>,
}

impl Tree {
    fn scan(&mut self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.scan(&path)?;
            } else if let Some(name) = module_name(&path) {
                self.files.insert(name, path);
            }
        }
        Ok(())
    }

    /// Loads a module behind those it depends on; `false`: there is no such file.
    fn load(&mut self, name: &str) -> Result<bool> {
        let name = name.replace('-', "_");
        if self.loaded.iter().any(|(loaded, _)| *loaded == name) {
            return Ok(true);
        }
        let Some(path) = self.files.get(&name) else { return Ok(false) };
        let content = read(path)?;
        for dependency in dependencies(&content) {
            if !self.load(&dependency)? {
                bail!("the module {name} needs {dependency}, which the packages do not have");
            }
        }
        self.loaded.push((name, content));
        Ok(true)
    }
}

/// `9pnet_virtio` of `.../9pnet_virtio.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let name = [".ko", ".ko.xz", ".ko.zst"].iter().find_map(|end| file.strip_suffix(end))?;
    Some(name.replace('-', "_"))
}

/// The field `depends=` of a module's `.modinfo`, which is NUL-terminated text.
fn dependencies(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) else { return Vec::new() };
    let rest = &module[at + FIELD.len()..];
    let value = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(content),
    };
    // The guest's insmod does not know these forms.
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}, which unpacks kernel modules; install it"))?;
    let mut stdin = child.stdin.take().context("stdin was piped")?;
    let writer = thread::spawn(move || stdin.write_all(&content));
    let output = child.wait_with_output()?;
    let written = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
    if !output.status.success() || written.is_err() {
        bail!("{program} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_behind_what_they_depend_on() {
        let dir = std::env::temp_dir().join(format!("hnp-xtask-modules-{}", std::process::id()));
        fs::create_dir_all(dir.join("net")).expect("temp dir");
        let write = |name: &str, depends: &str| {
            let text = format!("\u{7f}ELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(dir.join("net").join(name), text).expect("write");
        };
        write("virtio_pci.ko", "virtio-ring");
        write("virtio-ring.ko", "");
        write("9pnet_virtio.ko", "9pnet,virtio-ring");
        write("9pnet.ko", "");
        write("9p.ko", "9pnet");
        let absent = extract(&dir, &dir.join("out"));
        let mut names: Vec<_> = fs::read_dir(dir.join("out"))
            .expect("made")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("ascii"))
            .collect();
        names.sort();
        fs::remove_dir_all(&dir).expect("clean");
        assert_eq!(absent.expect("read").len(), WANTED.len() - 3);
        assert_eq!(
            names,
            ["00-virtio_ring.ko", "01-virtio_pci.ko", "02-9pnet.ko", "03-9pnet_virtio.ko", "04-9p.ko"]
        );
    }
}
