//! The scenarios on other kernels: each is booted under QEMU, without KVM, with this machine's own user
//! land, and the same scenarios run against the same agent in it.
//!
//! Emulated, because a CI machine is a guest itself, most often. The guest's root is this machine's,
//! read-only, with a file system in memory over it: nothing is installed into an image, and nothing the
//! guest does reaches this machine but the results.

mod boot;
mod initramfs;
mod kernels;
mod modules;
mod packages;
mod report;
mod scenarios;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use self::boot::Job;
use self::kernels::Archive;
use self::packages::{Prepared, Tools};
use self::report::Report;
use self::scenarios::PartsByVersion;
use crate::apt::Debian;
use crate::shell::{note, step};
use crate::toolchain::Workspace;
use crate::{binaries, node};

/// How many guests run at a time, by what was quicker on two processors.
const AT_A_TIME: usize = 2;

/// Scenarios that one kernel runs beside those that all run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct More {
    /// One of the words that name kernels.
    kernel: String,
    /// Parts of their names.
    parts: Vec<String>,
}

impl More {
    /// Reads `6.1=restart::,enforcement::`.
    ///
    /// # Errors
    /// It is not of this form.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let Some((kernel, parts)) = text.split_once('=') else {
            bail!("no `=` between the kernel and the names")
        };
        let parts: Vec<String> = parts.split(',').map(str::to_owned).collect();
        // An empty part would be in every name, and an option is for all kernels.
        if kernel.is_empty() || parts.iter().any(|part| part.is_empty() || part.starts_with('-')) {
            bail!("a kernel, `=`, and parts of names separated by commas, none of them empty or an option");
        }
        Ok(Self { kernel: kernel.to_owned(), parts })
    }
}

/// Whether libtest's arguments choose scenarios by their names.
pub(crate) fn names_scenarios(arguments: &[String]) -> bool {
    scenarios::names(arguments).next().is_some()
}

/// Runs the scenarios on the kernels that `words` name, all that the archive has without one.
///
/// # Errors
/// When something is missing (the message says what), or a scenario does not hold on a kernel.
pub(crate) fn run(
    workspace: &Workspace,
    words: &[String],
    more: &[More],
    arguments: &[String],
) -> Result<()> {
    let (guests, more) = Guests::prepare(workspace, words, more)?;
    let agent = binaries::agent(workspace)?;
    binaries::other_agents(workspace)?;
    let executable = binaries::test_named(workspace, "scenarios")?;
    let job = Job {
        programs: programs_beside(&agent)?,
        arguments: scenarios::arguments(&executable, arguments, &more)?,
        more,
        without_modules: true,
        env: Vec::new(),
        scenarios: executable,
        tests_crate: workspace.root.join("tests"),
    };
    guests.run(&job, "run")
}

/// Runs the node tier on the kernels that `words` name: real pods, with all controllers of cgroup2.
///
/// # Errors
/// As for [`run`].
pub(crate) fn run_node(
    workspace: &Workspace,
    words: &[String],
    build: node::Build,
    arguments: &[String],
) -> Result<()> {
    let (guests, more) = Guests::prepare(workspace, words, &[])?;
    let ready = node::prepare(workspace, build, arguments)?;
    // Not more: a guest has one processor, and each scenario a runtime and pods. Not one: libtest would then write a
    // scenario's name before what the scenario says, and the line that the report looks for would be torn.
    let arguments = ready.arguments.into_iter().chain(["--test-threads=2".to_owned()]).collect();
    let job = Job {
        programs: vec![workspace.debug_bin("hnp-test-node")],
        arguments,
        more,
        without_modules: false,
        env: ready.env,
        scenarios: ready.executable,
        tests_crate: workspace.root.join("tests"),
    };
    guests.run(&job, "node")
}

/// What guests are booted with.
struct Guests {
    tools: Tools,
    prepared: Vec<Prepared>,
    dir: PathBuf,
}

impl Guests {
    /// Brings the kernels that `words` name, and the emulator; and what one of them runs more, by its version.
    fn prepare(workspace: &Workspace, words: &[String], more: &[More]) -> Result<(Self, PartsByVersion)> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("guests are x86-64 machines: they use this machine's user land");
        }
        let dir = workspace.target.join("vm");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let debian = Debian::of_this_machine()
            .context("guests take their kernels from Debian's archive, with the machine's own apt")?;
        // What is cheap first: nobody waits for a build to learn that a kernel's name is wrong.
        let archive = Archive::ask(&debian, &dir.join("apt"))?;
        let chosen = archive.resolve(words)?;
        let mut parts = PartsByVersion::new();
        for More { kernel: word, parts: own } in more {
            let kernel = archive.find(word)?;
            let version = kernel.version();
            ensure!(
                chosen.contains(kernel),
                "--more {word} is Linux {version}, which is not among those to run: name it in --kernel, too"
            );
            parts.entry(version).or_default().extend_from_slice(own);
        }
        let tools = Tools::ensure(&debian, &dir)?;
        let prepared = chosen
            .into_iter()
            .map(|kernel| packages::kernel(&archive, kernel, &dir))
            .collect::<Result<Vec<_>>>()?;
        Ok((Self { tools, prepared, dir }, parts))
    }

    /// Boots all of them with a job; what a guest leaves is in `target/vm/<kind>-<version>`.
    fn run(&self, job: &Job, kind: &str) -> Result<()> {
        let reports = boot_all(&self.tools, &self.prepared, job, &|version| {
            self.dir.join(format!("{kind}-{version}"))
        })?;
        for report in &reports {
            println!("{}", report.line());
            print!("{}", report.table());
        }
        let bad: Vec<&Report> = reports.iter().filter(|report| !report.is_good()).collect();
        for report in &bad {
            eprintln!("{}", report.failures());
        }
        if bad.is_empty() {
            Ok(())
        } else {
            bail!("the scenarios do not hold on {} of the kernels", bad.len())
        }
    }
}

/// All builds of the agent and the test kit's programs: cargo puts them in one place.
fn programs_beside(agent: &Path) -> Result<Vec<PathBuf>> {
    let dir = agent.parent().context("the agent lies in a folder")?;
    let mut programs = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("hnp-") && path.extension().is_none() && path.is_file() {
            programs.push(path);
        }
    }
    Ok(programs)
}

/// Boots the kernels, some at a time; the reports come in the kernels' order.
fn boot_all(
    tools: &Tools,
    kernels: &[Prepared],
    job: &Job,
    dir: &(dyn Fn(&str) -> PathBuf + Sync),
) -> Result<Vec<Report>> {
    let names: Vec<String> = kernels.iter().map(|prepared| prepared.kernel.version()).collect();
    step(&format!("scenarios on Linux {}, emulated", names.join(", ")));
    let waiting = Mutex::new(kernels.iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(kernels.len()) {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().ok().and_then(|mut waiting| waiting.next());
                    let Some((index, prepared)) = next else { return };
                    let version = prepared.kernel.version();
                    let ended = boot::run(tools, prepared, job, &dir(&version));
                    let report = ended.map(|ended| Report::read(&version, &ended));
                    if let Ok(report) = &report {
                        note(&report.line());
                    }
                    if let Ok(mut done) = done.lock() {
                        done.push((index, report));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().map_err(|_| anyhow!("a guest's thread panicked"))?;
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, report)| report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_for_a_kernel_and_names_something() {
        let more = More::parse("6.1=restart::,guard::it_holds").unwrap();
        assert_eq!((more.kernel.as_str(), more.parts.len()), ("6.1", 2));
        for wrong in ["6.1", "=restart::", "6.1=", "6.1=restart::,", "6.1=,guard::", "6.1=--exact"] {
            assert!(More::parse(wrong).is_err(), "{wrong}");
        }
    }
}
