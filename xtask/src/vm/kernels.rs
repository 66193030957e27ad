//! Which kernels there are to test on, and which of them a word means.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::apt::{Apt, Debian};
use crate::shell::{note, step};

/// Where Debian keeps kernels: the releases' own, kept up to date, and the newest of all.
const SECURITY: [&str; 3] = ["bullseye-security", "bookworm-security", "trixie-security"];
const NEWEST: [&str; 1] = ["sid"];

/// The series that kernel.org maintains for years (<https://www.kernel.org/category/releases.html>).
const LONG_TERM: [(u32, u32); 6] = [(5, 10), (5, 15), (6, 1), (6, 6), (6, 12), (6, 18)];

/// How old the list of kernels may be.
const FRESH: Duration = Duration::from_secs(12 * 3600);

/// A kernel that the archive has.
#[derive(Clone, Debug, Eq, PartialEq, PartialOrd, Ord)]
pub(super) struct Kernel {
    /// Such as `[6, 1, 192]`.
    numbers: Vec<u32>,
    /// The packages' version, such as `6.1.192-2`.
    pub(super) package_version: String,
    /// What tells kernels of one version apart, such as `6.1.0-56-amd64`; `uname -r` says it.
    pub(super) release: String,
}

impl Kernel {
    /// Such as `6.1.192`.
    pub(super) fn version(&self) -> String {
        self.numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
    }

    fn series(&self) -> (u32, u32) {
        (self.numbers[0], self.numbers.get(1).copied().unwrap_or(0))
    }

    /// Reads a package `linux-image-<release>` and its version; `None` for what only depends on
    /// another one, is built for special purposes, or was rebuilt for another release of Debian.
    fn from_package(name: &str, version: &str) -> Option<Self> {
        let release = name.strip_prefix("linux-image-")?;
        let abi = release.strip_suffix("-amd64")?;
        let plain = |c: char| c.is_ascii_digit() || ".-+".contains(c);
        // `6.1.0-56` or `6.12.117+deb13`; `6.1` alone is a name for whatever is the newest 6.1.
        let digits_only = abi.replace("+deb", "+").chars().all(plain);
        if !digits_only || abi.split(['-', '+']).next()?.split('.').count() < 3 || version.contains('~') {
            return None;
        }
        let upstream = version.split(['-', '+']).next()?;
        let numbers = numbers(upstream)?;
        Some(Self { numbers, package_version: version.to_owned(), release: release.to_owned() })
    }
}

/// The kernels of the archive: the newest of each series, the oldest series first.
pub(super) struct Archive {
    /// The apt that has them.
    pub(super) apt: Apt,
    kernels: Vec<Kernel>,
}

impl Archive {
    /// Asks the archive, if it was not asked lately.
    ///
    /// # Errors
    /// On a machine that has no Debian archive, or when there is no answer and never was one.
    pub(super) fn ask(debian: &Debian, dir: &Path) -> Result<Self> {
        let apt = Apt::new(dir, &[(&debian.security, &SECURITY), (&debian.releases, &NEWEST)])?;
        if !apt.updated_within(FRESH) {
            step("asking the package archive which kernels it has");
            match apt.update() {
                Ok(()) => {}
                Err(error) if apt.was_updated() => {
                    note(&format!("it does not answer; going on with what it had last time: {error:#}"));
                }
                Err(error) => return Err(error.context("the package archive does not answer")),
            }
        }
        let names = apt.names("linux-image-")?;
        let names: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|name| Kernel::from_package(name, "1.1.1-1").is_some())
            .collect();
        if names.is_empty() {
            bail!("the package archive has no kernel");
        }
        Ok(Self { kernels: newest_of_each_series(&apt.versions(&names)?), apt })
    }

    /// The kernels that words mean, each once, in the order of the words; all of them without a word.
    ///
    /// # Errors
    /// When there is no such kernel; the message lists those there are.
    pub(super) fn resolve(&self, words: &[String]) -> Result<Vec<Kernel>> {
        if words.is_empty() {
            return Ok(self.kernels.clone());
        }
        let mut chosen: Vec<Kernel> = Vec::new();
        for word in words {
            let kernel = self.find(word)?;
            if !chosen.contains(kernel) {
                chosen.push(kernel.clone());
            }
        }
        Ok(chosen)
    }

    /// The kernel that a word means.
    ///
    /// # Errors
    /// As for [`Archive::resolve`].
    pub(super) fn find(&self, word: &str) -> Result<&Kernel> {
        find(&self.kernels, word)
    }
}

fn find<'a>(kernels: &'a [Kernel], word: &str) -> Result<&'a Kernel> {
    let found = match word {
        "oldest" => kernels.first(),
        "newest" => kernels.last(),
        "lts" => kernels.iter().rfind(|kernel| LONG_TERM.contains(&kernel.series())),
        version => numbers(version)
            .and_then(|wanted| kernels.iter().rfind(|kernel| kernel.numbers.starts_with(&wanted))),
    };
    found.with_context(|| {
        let known: Vec<String> = kernels.iter().map(Kernel::version).collect();
        format!(
            "no kernel {word:?} in the package archive, which has {}; also accepted: oldest, lts, newest",
            known.join(", ")
        )
    })
}

fn newest_of_each_series(packages: &[(String, String)]) -> Vec<Kernel> {
    let mut all: Vec<Kernel> =
        packages.iter().filter_map(|(name, version)| Kernel::from_package(name, version)).collect();
    all.sort();
    let mut kernels: Vec<Kernel> = Vec::new();
    for kernel in all {
        match kernels.last_mut() {
            Some(last) if last.series() == kernel.series() => *last = kernel,
            _ => kernels.push(kernel),
        }
    }
    kernels
}

fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<Kernel> {
        let packages = [
            ("linux-image-6.12.107+deb13-amd64", "6.12.107-1"),
            ("linux-image-6.12.117+deb12-amd64", "6.12.117-1~deb12u1"),
            ("linux-image-6.12.115+deb13.1-amd64", "6.12.115-2"),
            ("linux-image-5.10.0-46-amd64", "5.10.262-1"),
            ("linux-image-6.1.0-9-amd64", "6.1.27-1"),
            ("linux-image-6.1.0-56-amd64", "6.1.192-2"),
            ("linux-image-6.1-amd64", "6.1.192-2"),
            ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"),
            ("linux-image-6.1.0-0.deb11.50-amd64", "6.1.176-1~deb11u1"),
            ("linux-image-7.2.13+deb14-amd64", "7.2.13-1"),
            ("linux-image-rt-amd64", "7.2.13-1"),
        ];
        newest_of_each_series(&packages.map(|(name, version)| (name.to_owned(), version.to_owned())))
    }

    #[test]
    fn the_newest_of_each_series_is_there_and_nothing_special() {
        let versions: Vec<String> = archive().iter().map(Kernel::version).collect();
        assert_eq!(versions, ["5.10.262", "6.1.192", "6.12.115", "7.2.13"]);
        assert_eq!(archive()[1].release, "6.1.0-56-amd64");
    }

    #[test]
    fn words_mean_kernels() {
        let kernels = archive();
        let meant = |word: &str| find(&kernels, word).map(Kernel::version).map_err(|error| error.to_string());
        assert_eq!(meant("oldest").as_deref(), Ok("5.10.262"));
        assert_eq!(meant("lts").as_deref(), Ok("6.12.115"));
        assert_eq!(meant("newest").as_deref(), Ok("7.2.13"));
        assert_eq!(meant("6.1").as_deref(), Ok("6.1.192"), "6.12 does not begin with 6.1");
        assert_eq!(meant("6.1.192").as_deref(), Ok("6.1.192"));
        for unknown in ["5.15", "6.1.27", "stable", ""] {
            let error = meant(unknown).expect_err("not there");
            assert!(error.contains("5.10.262, 6.1.192") && error.contains("lts"), "{error}");
        }
    }
}
