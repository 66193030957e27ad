//! An apt of our own: the machine's archive and keys, private sources, state and cache.
//!
//! For packages that are unpacked below the target directory and never installed. The system's lists,
//! settings and packages stay as they are, and no privilege is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// The archive this machine installs from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

/// The Debian that this machine runs, and where it installs from.
#[derive(Clone, Debug)]
pub(crate) struct Debian {
    /// Such as `bookworm`.
    pub(crate) codename: String,
    /// The archive of releases.
    pub(crate) releases: Mirror,
    /// The archive of security updates.
    pub(crate) security: Mirror,
}

impl Debian {
    /// Reads the machine's own settings.
    ///
    /// # Errors
    /// When this is no Debian, or its sources do not say where its release comes from.
    pub(crate) fn of_this_machine() -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            if !shell::has(program) {
                bail!("no {program}: not a Debian");
            }
        }
        let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        let field = |key: &str| {
            release
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map(|v| v.trim_matches('"'))
        };
        if field("ID") != Some("debian") {
            bail!("this is {}, not Debian", field("ID").unwrap_or("an unknown system"));
        }
        let codename = field("VERSION_CODENAME").context("/etc/os-release names no VERSION_CODENAME")?;
        let releases = mirror_of(codename)?;
        // Where security updates are not among the sources, they are beside the releases.
        let security = mirror_of(&format!("{codename}-security")).unwrap_or_else(|_| Mirror {
            uri: format!("{}-security", releases.uri.trim_end_matches('/')),
            signed_by: releases.signed_by.clone(),
        });
        Ok(Self { codename: codename.to_owned(), releases, security })
    }
}

/// Finds the mirror that serves a suite to this machine.
fn mirror_of(suite: &str) -> Result<Mirror> {
    let mut lists = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
        lists.extend(parts.filter_map(|entry| Some(entry.ok()?.path())));
    }
    for list in lists {
        let Ok(text) = fs::read_to_string(&list) else { continue };
        let found = match list.extension().and_then(|ext| ext.to_str()) {
            Some("sources") => from_deb822(&text, suite),
            Some("list") => from_one_line(&text, suite),
            Some(_) | None => None,
        };
        if let Some(mirror) = found {
            return Ok(mirror);
        }
    }
    bail!("no entry for {suite} in /etc/apt/sources.list or /etc/apt/sources.list.d")
}

/// Reads paragraphs of `Types:`, `URIs:`, `Suites:` (sources.list(5), deb822 style).
fn from_deb822(text: &str, suite: &str) -> Option<Mirror> {
    text.split("\n\n").find_map(|paragraph| {
        let field = |key: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
        };
        let serves = field("Suites")?.split_whitespace().any(|served| served == suite)
            && field("Types")?.split_whitespace().any(|kind| kind == "deb");
        let uri = field("URIs")?.split_whitespace().next()?;
        serves.then(|| Mirror { uri: uri.into(), signed_by: field("Signed-By").map(Into::into) })
    })
}

/// Reads lines of `deb [options] uri suite components` (sources.list(5), one-line style).
fn from_one_line(text: &str, suite: &str) -> Option<Mirror> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, served) = (words.next()?, words.next()?);
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        (served == suite).then(|| Mirror { uri: uri.into(), signed_by: signed_by.map(Into::into) })
    })
}

/// An apt of our own below one folder.
pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Sets it up below `dir`, with some suites of each mirror.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(crate) fn new(dir: &Path, sources: &[(&Mirror, &[&str])]) -> Result<Self> {
        for sub in ["parts", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let mut text = String::new();
        for (mirror, suites) in sources {
            text.push_str(&format!(
                "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n",
                mirror.uri,
                suites.join(" ")
            ));
            if let Some(keys) = &mirror.signed_by {
                text.push_str(&format!("Signed-By: {keys}\n"));
            }
            text.push('\n');
        }
        let list = dir.join("parts/own.sources");
        if fs::read_to_string(&list).ok().as_deref() != Some(&text) {
            fs::write(&list, text).with_context(|| format!("cannot write {}", list.display()))?;
            // Lists of other sources say nothing about these.
            let _ = fs::remove_file(dir.join("updated"));
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Asks the archive what it has.
    ///
    /// # Errors
    /// When it does not answer for one of the suites.
    pub(crate) fn update(&self) -> Result<()> {
        let mut update = self.command("apt-get");
        update.args(["update", "-q", "-o", "APT::Update::Error-Mode=any"]);
        shell::output(&mut update)?;
        fs::write(self.dir.join("updated"), "").context("cannot note the update")
    }

    /// Whether the last update is no older than `age`.
    pub(crate) fn updated_within(&self, age: Duration) -> bool {
        let updated = fs::metadata(self.dir.join("updated")).and_then(|meta| meta.modified());
        updated.is_ok_and(|at| at.elapsed().is_ok_and(|passed| passed < age))
    }

    /// Whether there are lists of an update, however old.
    pub(crate) fn was_updated(&self) -> bool {
        self.dir.join("updated").exists()
    }

    /// Packages whose name begins so.
    ///
    /// # Errors
    /// When apt-cache fails.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = shell::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Names and versions, a package may be there in several: what `apt-cache madison` lists.
    ///
    /// # Errors
    /// When apt-cache fails.
    pub(crate) fn versions(&self, packages: &[&str]) -> Result<Vec<(String, String)>> {
        let text = shell::output(self.command("apt-cache").arg("madison").args(packages))?;
        Ok(madison(&text))
    }

    /// Downloads packages (`name` or `name=version`) and unpacks them into `into`.
    ///
    /// # Errors
    /// When one cannot be had.
    pub(crate) fn fetch(&self, packages: &[&str], into: &Path) -> Result<()> {
        let scratch = Scratch::new(self.dir.join("download"))?;
        let mut download = self.command("apt-get");
        shell::output(download.current_dir(&scratch.0).args(["download", "-q"]).args(packages))?;
        unpack_all(&scratch.0, into)
    }

    /// Downloads packages with all they depend on and this machine has not installed, of the suite
    /// first that is named, and unpacks them into `into`.
    ///
    /// # Errors
    /// When something cannot be had.
    pub(crate) fn fetch_with_dependencies(&self, packages: &[&str], suite: &str, into: &Path) -> Result<()> {
        let scratch = Scratch::new(self.dir.join("download"))?;
        fs::create_dir(scratch.0.join("partial")).context("cannot make a download folder")?;
        let mut install = self.command("apt-get");
        install
            .args(["install", "-q", "-y", "--download-only", "--no-install-recommends", "-t", suite])
            // Nothing is installed, so nobody's lock is needed.
            .args(["-o", "Debug::NoLocking=1", "-o"])
            .arg(format!("Dir::Cache::archives={}", scratch.0.display()))
            .args(packages);
        shell::output(&mut install)?;
        unpack_all(&scratch.0, into)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |key: &str, value: &Path| format!("{key}={}", value.display());
        for setting in [
            option("Dir::Etc::SourceList", Path::new("/dev/null")),
            option("Dir::Etc::SourceParts", &self.dir.join("parts")),
            option("Dir::State", &self.dir.join("state")),
            option("Dir::State::status", Path::new("/var/lib/dpkg/status")),
            option("Dir::Cache", &self.dir.join("cache")),
            // As root, apt would otherwise hand downloads to a user who may not enter this folder.
            "APT::Sandbox::User=root".to_owned(),
            // Descriptions and pictures for package managers with windows are half of the lists.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ] {
            command.arg("-o").arg(setting);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive").current_dir(&self.dir);
        command
    }
}

/// Where the libraries of unpacked packages lie, as LD_LIBRARY_PATH takes it.
pub(crate) fn libraries(root: &Path) -> String {
    ["usr/lib", "lib"].map(|dir| root.join(dir).join("x86_64-linux-gnu").display().to_string()).join(":")
}

/// A folder that is there for one download.
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: PathBuf) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What remains is removed by the next download.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn unpack_all(packages: &Path, into: &Path) -> Result<()> {
    let mut any = false;
    for entry in fs::read_dir(packages).with_context(|| format!("cannot list {}", packages.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "deb") {
            shell::output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(into))?;
            any = true;
        }
    }
    if any { Ok(()) } else { bail!("apt-get reports success and left no package") }
}

/// The first two columns of `name | version | where`.
fn madison(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let mut columns = line.split('|').map(str::trim);
            Some((columns.next()?.to_owned(), columns.next()?.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_of_a_suite_is_found_in_both_styles() {
        let deb822 = "Types: deb\nURIs: http://other.example/debian-security\nSuites: bookworm-security\n\n\
                      Types: deb deb-src\n# comment\nURIs: http://mirror.example/debian\n\
                      Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n";
        let mirror = Mirror { uri: "http://mirror.example/debian".into(), signed_by: Some("/k.gpg".into()) };
        assert_eq!(from_deb822(deb822, "bookworm"), Some(mirror));
        let security = Mirror { uri: "http://other.example/debian-security".into(), signed_by: None };
        assert_eq!(from_deb822(deb822, "bookworm-security"), Some(security));
        assert_eq!(from_deb822(deb822, "trixie"), None);

        let lines = "# deb http://off.example/debian trixie main\n\
                     deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main contrib\n";
        let mirror = Mirror { uri: "http://mirror.example/debian".into(), signed_by: Some("/k.gpg".into()) };
        assert_eq!(from_one_line(lines, "trixie"), Some(mirror));
        assert_eq!(from_one_line(lines, "bookworm"), None);
    }

    #[test]
    fn names_and_versions_are_read() {
        let text = " rust-src | 1.96.1+dfsg1-2~bpo13+1 | mirror trixie-backports/main amd64 Packages\n \
                       rust-src | 1.95.0+dfsg1-2~bpo13+1 | mirror trixie-backports/main amd64 Packages\n";
        let read = madison(text);
        assert_eq!(read.len(), 2);
        assert_eq!(read[1], ("rust-src".into(), "1.95.0+dfsg1-2~bpo13+1".into()));
    }
}
