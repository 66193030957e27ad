//! One guest: from the first instruction to the scenarios' exit status, within a deadline.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::packages::{Prepared, Tools};
use super::scenarios::PartsByVersion;
use super::{initramfs, scenarios};
use crate::shell::{self, note};

/// The guest's second script: the machine's own user land becomes a node.
const GUEST: &str = include_str!("guest.sh");

/// How long a guest may take for everything. Emulated, the scenarios take a few minutes.
const DEADLINE: Duration = Duration::from_secs(45 * 60);

/// What guards indirect branches, hardens memory and looks for mistakes in it only makes the emulator slow. So do
/// huge pages, whose entries in its cache are forgotten with any other. Not `mitigations=off`: the verifier would
/// then ask less of the programs. Not `tsc=reliable`: on a busy machine, what a guest measures the time with
/// at boot can be wrong by a factor, and nothing would notice.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 spectre_v2=off init_on_alloc=0 \
     kfence.sample_interval=0 transparent_hugepage=never";

/// All that the emulator has, but the instructions that copy and clear memory, which it does byte by byte, and
/// the fifth level of page tables.
const CPU: &str = "max,-erms,-fsrm,-la57";
/// With more than one, older kernels do not trust the processors' time and ask a device, which takes ten
/// times as long. Kernels beside each other keep the machine busy.
const CPUS: &str = "1";
const MEMORY: &str = "3072";

/// What the scenarios in a guest are run from.
pub(super) struct Job {
    /// The agent, and what the kit runs beside it.
    pub(super) programs: Vec<PathBuf>,
    /// The scenarios' executable.
    pub(super) scenarios: PathBuf,
    /// Variables that the scenarios are told more by.
    pub(super) env: Vec<(&'static str, PathBuf)>,
    /// The directory of the tests' crate.
    pub(super) tests_crate: PathBuf,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// What some kernels run more.
    pub(super) more: PartsByVersion,
    /// Whether one that is chosen runs once more, without the guard's modules.
    pub(super) without_modules: bool,
}

impl Job {
    /// As lines of shell, for a kernel.
    fn script(&self, version: &str) -> String {
        let more = self.more.get(version).into_iter().flatten();
        let arguments: Vec<String> = self.arguments.iter().chain(more).cloned().collect();
        let without_modules =
            if self.without_modules { scenarios::without_modules(&arguments) } else { None };
        let arguments: Vec<String> = arguments.iter().map(|argument| shell::quote(argument)).collect();
        // Clients that a version manager put somewhere are found as on this machine.
        let own =
            |key: &str, usual: &str| shell::quote(&std::env::var(key).unwrap_or_else(|_| usual.to_owned()));
        let env =
            self.env.iter().map(|(key, path)| format!(" {key}={}", shell::quote(&path.to_string_lossy())));
        let env: String = env.collect();
        format!(
            "export PATH={}:$PATH HOME={}{env}\nCRATE={}\nWITHOUT_MODULES={}\nrun() {{ \"$1\" {}; }}\n",
            own("PATH", "/usr/bin"),
            own("HOME", "/root"),
            shell::quote(&self.tests_crate.to_string_lossy()),
            without_modules.unwrap_or_default(),
            arguments.join(" ")
        )
    }

    /// Puts everything into the folder that the guest shares.
    fn lay_out(&self, share: &Path, version: &str) -> Result<()> {
        fs::write(share.join("guest.sh"), GUEST)?;
        fs::write(share.join("job.sh"), self.script(version))?;
        fs::create_dir(share.join("programs"))?;
        let copy = |program: &Path, name: &std::ffi::OsStr| {
            let to = share.join("programs").join(name);
            fs::copy(program, to).with_context(|| format!("cannot copy {}", program.display()))
        };
        for program in &self.programs {
            copy(program, program.file_name().context("a program has a name")?)?;
        }
        copy(&self.scenarios, "scenarios".as_ref())?;
        Ok(())
    }
}

/// How a guest ended.
pub(super) struct Ended {
    /// What its scenarios ended with: `0`, another number, or why they did not run.
    pub(super) status: Status,
    /// How long all of it took.
    pub(super) took: Duration,
    /// Where its console, log and results are.
    pub(super) dir: PathBuf,
}

/// The end of a guest's scenarios.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Status {
    /// The scenarios ran to their end, with this exit status.
    Exit(i32),
    /// The guest did not get as far as the scenarios, or not through them.
    Died,
    /// It was killed at the deadline.
    TimedOut,
}

/// Boots a kernel, runs the job in it and waits for the end.
///
/// # Errors
/// When the guest cannot be started. How it ends is no error of this function.
pub(super) fn run(tools: &Tools, prepared: &Prepared, job: &Job, dir: &Path) -> Result<Ended> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let share = dir.join("run");
    fs::create_dir_all(&share).with_context(|| format!("cannot make {}", share.display()))?;
    let initramfs = dir.join("initramfs");
    initramfs::write(tools.busybox()?, &prepared.modules, &initramfs)?;
    let version = prepared.kernel.version();
    job.lay_out(&share, &version).with_context(|| format!("cannot fill {}", share.display()))?;

    let mut command = tools.emulator();
    command
        // Emulated, also where there is a /dev/kvm: the tier does the same everywhere.
        .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU])
        .args(["-smp", CPUS, "-m", MEMORY, "-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", dir.join("console.log").display()))
        .arg("-kernel")
        .arg(&prepared.image)
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", KERNEL_ARGUMENTS])
        .args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"])
        .args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host", "-fsdev"])
        .arg(format!("local,id=run,path={},security_model=none", share.display()))
        .args(["-device", "virtio-9p-pci,fsdev=run,mount_tag=run"])
        .stdin(Stdio::null())
        .stdout(File::create(dir.join("qemu.log"))?)
        .stderr(File::options().append(true).open(dir.join("qemu.log"))?);
    fs::write(dir.join("command"), shell::paste(&command) + "\n")?;

    let started = Instant::now();
    let mut guest = Guest(command.spawn().context("cannot start the emulator")?);
    let mut told = 0;
    let in_time = loop {
        told = tell_failures(&share.join("scenarios.log"), told, &version);
        if guest.0.try_wait()?.is_some() {
            break true;
        }
        if started.elapsed() > DEADLINE {
            break false;
        }
        thread::sleep(Duration::from_millis(200));
    };
    drop(guest);
    // 100 MB that are the same for every kernel, and lie elsewhere.
    fs::remove_dir_all(share.join("programs")).context("cannot remove the guest's programs")?;
    tell_failures(&share.join("scenarios.log"), told, &version);
    let status = fs::read_to_string(share.join("status")).ok().and_then(|text| text.trim().parse().ok());
    Ok(Ended {
        status: match status {
            Some(code) => Status::Exit(code),
            None if in_time => Status::Died,
            None => Status::TimedOut,
        },
        took: started.elapsed(),
        dir: dir.to_owned(),
    })
}

/// So many failures are named while a guest runs: where nearly all fail, it is for one reason.
const MANY: usize = 20;

/// Says which scenarios failed since the last look; returns how many have failed.
fn tell_failures(log: &Path, told: usize, version: &str) -> usize {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let failed: Vec<&str> =
        text.lines().filter(|line| line.starts_with("test ") && line.ends_with("... FAILED")).collect();
    for (number, line) in failed.iter().enumerate().skip(told) {
        match number {
            0..MANY => note(&format!("Linux {version}: {line}")),
            MANY => note(&format!("Linux {version}: many more; they are in {}", log.display())),
            _ => {}
        }
    }
    failed.len().max(told)
}

/// An emulator that runs. Killed, by its process id, when dropped.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself, as it should.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
