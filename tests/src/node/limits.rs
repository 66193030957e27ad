//! What a container may use of the processor and of memory, where the machine's cgroup2 has no controllers for it: cgroup v1's
//! hold it then. What it has used, by either.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::AgentPod;

/// Hierarchies of cgroup v1, where machines have them: of processors and of memory.
pub const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/memory"];

/// A container within limits.
#[derive(Debug)]
pub struct Limits {
    processor: PathBuf,
    memory: PathBuf,
    /// The files' names are those of version 1.
    old: bool,
    /// Bytes that it had before, which stay where they are counted: the limit is on what was left then.
    before: u64,
    processes: Vec<u32>,
}

/// What a container has used.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Of processors.
    pub processor: Duration,
    /// How often it might run, and how often it had to wait before such a while was over.
    pub periods: (u64, u64),
    /// The most memory at a time, in bytes, since it is in the limits.
    pub peak: Option<u64>,
}

impl Limits {
    /// Of an agent whose manifest has these limits: as the runtime has set them, or by cgroup v1, which it is put into here.
    /// None where this machine has neither.
    ///
    /// # Panics
    /// When a cgroup does not take it.
    pub fn of(agent: &AgentPod<'_>, thousandths: u64, memory: u64) -> Option<Self> {
        let own = agent.cgroup();
        let procs = fs::read_to_string(own.join("cgroup.procs")).expect("it runs");
        let processes: Vec<u32> = procs.lines().map(|pid| pid.parse().expect("a process id")).collect();
        if ["cpu.max", "memory.max"].iter().all(|file| own.join(file).exists()) {
            let limits = Self { processor: own.clone(), memory: own, old: false, before: 0, processes };
            assert_eq!(limits.read("memory.max"), memory.to_string());
            limits.allow(thousandths);
            return Some(limits);
        }
        let world = agent.node().topology().name();
        let [processor, of_memory] = HIERARCHIES.map(|root| PathBuf::from(root).join(world));
        if !HIERARCHIES.iter().all(|root| PathBuf::from(root).join("cgroup.procs").exists()) {
            return None;
        }
        for folder in [&processor, &of_memory] {
            fs::create_dir_all(folder).expect("root may");
        }
        let before = processes.iter().map(|pid| resident(*pid)).sum();
        let limits = Self { processor, memory: of_memory, old: true, before, processes };
        limits.allow(thousandths);
        let left = memory.checked_sub(limits.before).expect("it is within its limit when it has started");
        write(limits.memory.join("memory.limit_in_bytes"), &left.to_string());
        for pid in &limits.processes {
            for folder in [&limits.processor, &limits.memory] {
                write(folder.join("cgroup.procs"), &pid.to_string());
            }
        }
        Some(limits)
    }

    /// From now on so many thousandths of a processor.
    ///
    /// # Panics
    /// When the kernel does not take it.
    pub fn allow(&self, thousandths: u64) {
        // In a period of a tenth of a second, as runtimes have it; the least share is a millisecond.
        let period = 100_000;
        let quota = period * thousandths / 1000;
        if self.old {
            // Never a share that does not fit between the two.
            write(self.processor.join("cpu.cfs_quota_us"), "-1");
            write(self.processor.join("cpu.cfs_period_us"), &period.to_string());
            write(self.processor.join("cpu.cfs_quota_us"), &quota.to_string());
        } else {
            write(self.processor.join("cpu.max"), &format!("{quota} {period}"));
        }
    }

    /// What it has used until now.
    ///
    /// # Panics
    /// When it has ended.
    pub fn usage(&self) -> Usage {
        let stat = fs::read_to_string(self.processor.join("cpu.stat")).expect("the cgroup is there");
        let number = |key: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            line.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let peak = if self.old { "memory.max_usage_in_bytes" } else { "memory.peak" };
        Usage {
            processor: self.processes.iter().map(|pid| ran(*pid)).sum(),
            periods: (number("nr_periods"), number("nr_throttled")),
            peak: fs::read_to_string(self.memory.join(peak))
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .map(|peak: u64| peak + self.before),
        }
    }

    /// How often it was refused memory until some was given back, and killed for it.
    pub fn memory_events(&self) -> String {
        self.read(if self.old { "memory.oom_control" } else { "memory.events" })
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.memory.join(file)).expect("the cgroup is there").trim().to_owned()
    }
}

/// How long the threads of a process have run: the first number of each one's schedstat, in nanoseconds.
fn ran(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let of_thread = |thread: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.filter_map(of_thread).sum())
}

/// `VmRSS` of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|text| text.parse().ok());
    kibibytes.map_or(0, |kibibytes: u64| kibibytes << 10)
}

#[track_caller]
fn write(path: PathBuf, value: &str) {
    fs::write(&path, value).unwrap_or_else(|error| panic!("{value} into {}: {error}", path.display()));
}
