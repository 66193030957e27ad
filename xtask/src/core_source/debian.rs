//! Debian's package rust-src, unpacked and never installed.
//!
//! Debian packages each Rust release for its backports. apt gets a private set of sources made from
//! the machine's own mirror and keys, private state and a private cache: the system's lists, settings
//! and packages stay as they are, and no privilege is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, note};
use crate::toolchain::{Rust, Workspace};

/// Where Debian keeps new Rust releases, most likely first.
const SUITES: [&str; 3] = ["trixie-backports", "forky-backports", "sid"];

/// Downloads and unpacks the package of exactly this release below `into`; returns `library` in it.
pub(super) fn fetch(_: &Workspace, rust: &Rust, into: &Path) -> Result<PathBuf> {
    for program in ["apt-get", "apt-cache", "dpkg"] {
        if !shell::has(program) {
            bail!("no {program}: not a Debian");
        }
    }
    let mirror = own_mirror()?;
    note("asking the Debian mirror of this machine for rust-src");
    let mut tried = String::new();
    for suite in SUITES {
        match from_suite(&mirror, suite, rust, into) {
            Ok(library) => return Ok(library),
            Err(error) => tried.push_str(&format!("\n      {suite}: {error:#}")),
        }
    }
    bail!("not in any suite:{tried}")
}

fn from_suite(mirror: &Mirror, suite: &str, rust: &Rust, into: &Path) -> Result<PathBuf> {
    let apt = Apt::new(mirror, suite, &into.join(suite))?;
    shell::output(apt.command("apt-get").args(["update", "-q", "-o", "APT::Update::Error-Mode=any"]))?;
    let known = shell::output(apt.command("apt-cache").args(["madison", "rust-src"]))?;
    let version = pick(&known, &rust.release)
        .with_context(|| format!("no version {} among: {}", rust.release, versions(&known).join(", ")))?;
    note(&format!("downloading rust-src {version} (45 MB)"));
    shell::output(apt.command("apt-get").args(["download", "-q"]).arg(format!("rust-src={version}")))?;
    let package = fs::read_dir(&apt.dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .context("apt-get reports success and left no package")?;
    let unpacked = apt.dir.join("unpacked");
    shell::output(Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
    Ok(unpacked.join(format!("usr/src/rustc-{}/library", rust.release)))
}

/// The versions `apt-cache madison` lists.
fn versions(madison: &str) -> Vec<&str> {
    madison.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim).collect()
}

/// The Debian version of exactly this upstream release, such as `1.95.0+dfsg1-2~bpo13+1`.
fn pick<'a>(madison: &'a str, release: &str) -> Option<&'a str> {
    versions(madison)
        .into_iter()
        .find(|version| version.strip_prefix(release).is_some_and(|rest| rest.starts_with(['+', '-'])))
}

/// The archive this machine installs from.
#[derive(Debug, Eq, PartialEq)]
struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

/// Finds the mirror that serves this machine's own release.
fn own_mirror() -> Result<Mirror> {
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
    let mut lists = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
        lists.extend(parts.filter_map(|entry| Some(entry.ok()?.path())));
    }
    for list in lists {
        let Ok(text) = fs::read_to_string(&list) else { continue };
        let found = match list.extension().and_then(|ext| ext.to_str()) {
            Some("sources") => from_deb822(&text, codename),
            Some("list") => from_one_line(&text, codename),
            Some(_) | None => None,
        };
        if let Some(mirror) = found {
            return Ok(mirror);
        }
    }
    bail!("no entry for {codename} in /etc/apt/sources.list or /etc/apt/sources.list.d")
}

/// Reads paragraphs of `Types:`, `URIs:`, `Suites:` (sources.list(5), deb822 style).
fn from_deb822(text: &str, codename: &str) -> Option<Mirror> {
    text.split("\n\n").find_map(|paragraph| {
        let field = |key: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
        };
        let serves = field("Suites")?.split_whitespace().any(|suite| suite == codename)
            && field("Types")?.split_whitespace().any(|kind| kind == "deb");
        let uri = field("URIs")?.split_whitespace().next()?;
        serves.then(|| Mirror { uri: uri.into(), signed_by: field("Signed-By").map(Into::into) })
    })
}

/// Reads lines of `deb [options] uri suite components` (sources.list(5), one-line style).
fn from_one_line(text: &str, codename: &str) -> Option<Mirror> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        (suite == codename).then(|| Mirror { uri: uri.into(), signed_by: signed_by.map(Into::into) })
    })
}

/// An apt of our own below one folder.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(mirror: &Mirror, suite: &str, dir: &Path) -> Result<Self> {
        for sub in ["parts", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let mut source = format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n", mirror.uri);
        if let Some(keys) = &mirror.signed_by {
            source.push_str(&format!("Signed-By: {keys}\n"));
        }
        fs::write(dir.join("parts/rust.sources"), source)?;
        Ok(Self { dir: dir.to_owned() })
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
        ] {
            command.arg("-o").arg(setting);
        }
        command.current_dir(&self.dir);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_release_is_picked() {
        let madison = " rust-src | 1.96.1+dfsg1-2~bpo13+1 | mirror trixie-backports/main amd64 Packages\n \
                       rust-src | 1.95.0+dfsg1-2~bpo13+1 | mirror trixie-backports/main amd64 Packages\n";
        assert_eq!(pick(madison, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(pick(madison, "1.96.0"), None);
        assert_eq!(pick(madison, "1.9"), None);
    }

    #[test]
    fn the_mirror_of_this_release_is_found_in_both_styles() {
        let deb822 = "Types: deb\nURIs: http://other.example/debian-security\nSuites: bookworm-security\n\n\
                      Types: deb deb-src\n# comment\nURIs: http://mirror.example/debian\n\
                      Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n";
        let mirror = Mirror { uri: "http://mirror.example/debian".into(), signed_by: Some("/k.gpg".into()) };
        assert_eq!(from_deb822(deb822, "bookworm"), Some(mirror));
        assert_eq!(from_deb822(deb822, "trixie"), None);

        let lines = "# deb http://off.example/debian trixie main\n\
                     deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main contrib\n";
        let mirror = Mirror { uri: "http://mirror.example/debian".into(), signed_by: Some("/k.gpg".into()) };
        assert_eq!(from_one_line(lines, "trixie"), Some(mirror));
        assert_eq!(from_one_line(lines, "bookworm"), None);
    }
}
