//! The first file system of a guest: busybox, the kernel modules, and a script that finds the real one.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Runs as the guest's first process.
const INIT: &str = include_str!("init.sh");

/// Writes the archive that the kernel unpacks at boot.
///
/// # Errors
/// When a part cannot be read, or the archive not be written.
pub(super) fn write(busybox: &Path, modules: &Path, to: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "host", "mods", "new", "overlay", "proc", "sys"] {
        archive.add(dir, DIRECTORY, &[]);
    }
    archive.add("init", PROGRAM, INIT.as_bytes());
    archive.add("bin/busybox", PROGRAM, &read(busybox)?);
    let mut paths = Vec::new();
    for entry in fs::read_dir(modules).with_context(|| format!("cannot list {}", modules.display()))? {
        paths.push(entry?.path());
    }
    for path in paths {
        let name = path.file_name().context("a module has a name")?.to_string_lossy();
        archive.add(&format!("mods/{name}"), FILE, &read(&path)?);
    }
    fs::write(to, archive.finish()).with_context(|| format!("cannot write {}", to.display()))
}

const DIRECTORY: u32 = 0o40_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// The "newc" form of cpio: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let links = 1;
        let header = [
            self.entries,
            mode,
            0, // uid
            0, // gid
            links,
            0, // time of change
            length(content.len()),
            0, // device of the file
            0,
            0, // device that the file is
            0,
            length(name.len() + 1),
            0, // checksum: none in this form
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_say_their_length() {
        let mut archive = Archive::default();
        archive.add("bin", DIRECTORY, &[]);
        archive.add("bin/x", PROGRAM, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        // 110 bytes of header and "bin\0", padded.
        let second = &text[116..];
        assert!(second.starts_with("07070100000002000081ed"), "{second}");
        assert_eq!(&second[54..62], "00000005", "the content's length");
        assert_eq!(&second[94..102], "00000006", "the name's length, with its NUL");
        assert!(second[110..].starts_with("bin/x\x0012345\0\0\0"), "{second}");
        assert!(text.contains("TRAILER!!!"));
    }
}
