//! What a guest is booted with, out of packages: kernels and their modules, an emulator, busybox.
//!
//! Everything is unpacked below `target/vm` and nothing is installed, so no privilege is needed and two
//! versions of an emulator do not meet. What is there is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::kernels::{Archive, Kernel};
use super::modules;
use crate::apt::{self, Apt, Debian};
use crate::shell::{self, note, step};

const QEMU: &str = "qemu-system-x86_64";
/// Older ones are not trusted: under 7.2, Linux 6.12 dies early in one boot of seven.
const QEMU_SINCE: u32 = 10;

/// A kernel that is ready to boot.
pub(super) struct Prepared {
    /// Which one.
    pub(super) kernel: Kernel,
    /// The kernel's image.
    pub(super) image: PathBuf,
    /// Its modules, in the order of loading.
    pub(super) modules: PathBuf,
}

/// Brings a kernel's image and modules, unless they were brought before.
///
/// # Errors
/// When the archive does not give them, or they are not what guests need.
pub(super) fn kernel(archive: &Archive, kernel: Kernel, dir: &Path) -> Result<Prepared> {
    let home = dir.join(format!("linux-{}", kernel.package_version));
    let prepared = Prepared { image: home.join("vmlinuz"), modules: home.join("modules"), kernel };
    let complete = home.join("complete");
    let mark = modules::wanted();
    if fs::read_to_string(&complete).is_ok_and(|text| text == mark) {
        return Ok(prepared);
    }
    let kernel = &prepared.kernel;
    step(&format!("fetching Linux {} ({})", kernel.version(), kernel.release));
    let unpacked = dir.join("unpacked");
    remove(&unpacked)?;
    remove(&home)?;
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let of = |part: &str| format!("linux-{part}-{}={}", kernel.release, kernel.package_version);
    archive.apt.fetch(&[&of("image")], &unpacked)?;
    if find(&unpacked, "vmlinuz")?.is_none() {
        // Since Linux 7, linux-image is empty and the parts are packages of their own.
        archive.apt.fetch(&[&of("binary"), &of("modules")], &unpacked)?;
    }
    let image = find(&unpacked, "vmlinuz")?
        .with_context(|| format!("the packages of Linux {} hold no kernel", kernel.version()))?;
    fs::copy(&image, &prepared.image).with_context(|| format!("cannot copy {}", image.display()))?;
    let absent = modules::extract(&unpacked, &prepared.modules)?;
    if !absent.is_empty() {
        note(&format!("built in, or not there: {}", absent.join(", ")));
    }
    remove(&unpacked)?;
    fs::write(&complete, mark).with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(prepared)
}

/// The programs that boot a guest.
pub(super) struct Tools {
    qemu: PathBuf,
    /// Where its libraries and firmware were unpacked; `None` for an emulator that is installed.
    unpacked: Option<PathBuf>,
    /// A static busybox, in the one place or the other: Debian 13 has moved it.
    busybox: [PathBuf; 2],
}

impl Tools {
    /// Takes the emulator that is installed, if it is new enough, and brings what is missing.
    ///
    /// # Errors
    /// When the archive has no emulator that is new enough.
    pub(super) fn ensure(debian: &Debian, dir: &Path) -> Result<Self> {
        let home = dir.join(format!("tools-{}", debian.codename));
        let unpacked = home.join("root");
        let mut tools = Self {
            qemu: QEMU.into(),
            unpacked: None,
            busybox: ["bin", "usr/bin"].map(|dir| unpacked.join(dir).join("busybox")),
        };
        let own = tools.version().is_some_and(|version| version >= QEMU_SINCE);
        if !own {
            tools.qemu = unpacked.join("usr/bin").join(QEMU);
            tools.unpacked = Some(unpacked.clone());
        }
        if tools.work() {
            return Ok(tools);
        }
        step("fetching QEMU and busybox (17 MB, unpacked below target/ and not installed)");
        remove(&unpacked)?;
        let backports = format!("{}-backports", debian.codename);
        let security = format!("{}-security", debian.codename);
        let apt = Apt::new(
            &home,
            &[(&debian.releases, &[&debian.codename, &backports]), (&debian.security, &[&security])],
        )?;
        apt.update()?;
        apt.fetch(&["busybox-static"], &unpacked)?;
        if !own {
            apt.fetch_with_dependencies(&["qemu-system-x86"], &backports, &unpacked)?;
        }
        if !tools.work() {
            bail!(
                "{} has no QEMU {QEMU_SINCE} that runs here; install one and put it on the PATH",
                debian.codename
            );
        }
        Ok(tools)
    }

    /// A command line of the emulator that only lacks what it is to boot.
    ///
    /// The emulator ends with this thread, however this ends, where util-linux is there to see to it.
    pub(super) fn emulator(&self) -> Command {
        let mut command = if shell::has("setpriv") {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]).arg(&self.qemu);
            command
        } else {
            Command::new(&self.qemu)
        };
        if let Some(root) = &self.unpacked {
            command.env("LD_LIBRARY_PATH", apt::libraries(root));
            for firmware in ["qemu", "seabios"] {
                command.arg("-L").arg(root.join("usr/share").join(firmware));
            }
        }
        command
    }

    /// A static busybox for a guest's first steps.
    ///
    /// # Errors
    /// Never, once [`Tools::ensure`] is through.
    pub(super) fn busybox(&self) -> Result<&Path> {
        let found = self.busybox.iter().find(|path| path.is_file());
        found.map(PathBuf::as_path).context("no busybox was unpacked")
    }

    fn work(&self) -> bool {
        self.busybox().is_ok() && self.version().is_some_and(|version| version >= QEMU_SINCE)
    }

    /// The major version; `None` when it does not run.
    fn version(&self) -> Option<u32> {
        let mut command = Command::new(&self.qemu);
        if let Some(root) = &self.unpacked {
            command.env("LD_LIBRARY_PATH", apt::libraries(root));
        }
        major(&String::from_utf8(command.arg("--version").output().ok()?.stdout).ok()?)
    }
}

/// `10` of `QEMU emulator version 10.0.2 (Debian ...)`.
fn major(version: &str) -> Option<u32> {
    version.split_once("version ")?.1.split('.').next()?.parse().ok()
}

/// The first file whose name begins so.
fn find(dir: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), prefix)? {
                return Ok(Some(found));
            }
        } else if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn the_emulators_version_is_read() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003-2025\n";
        assert_eq!(major(text), Some(10));
        assert_eq!(major("no emulator"), None);
    }
}
