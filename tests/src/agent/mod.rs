//! The agent that ships, as a child process on a world's node: its configuration, its access log, its
//! metrics, its end.
//!
//! It runs with CAP_BPF and CAP_NET_ADMIN and nothing else, because that is what it promises to need.

mod config;
mod metrics;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

pub use self::config::{Config, Route};
pub use self::metrics::Metrics;

use crate::poll::{eventually, patience, pause, until};
use crate::process::{Cmd, Finished, Place, Running, tail};
use crate::tools;
use crate::topology::{Topology, World};

/// CAP_NET_ADMIN of linux/capability.h.
pub const CAP_NET_ADMIN: u8 = 12;
/// CAP_SYS_PTRACE of linux/capability.h.
pub const CAP_SYS_PTRACE: u8 = 19;
/// CAP_SYS_ADMIN of linux/capability.h.
pub const CAP_SYS_ADMIN: u8 = 21;
/// CAP_PERFMON of linux/capability.h.
pub const CAP_PERFMON: u8 = 38;
/// CAP_BPF of linux/capability.h.
pub const CAP_BPF: u8 = 39;
/// All that the agent may have.
pub const CAPABILITIES: &[u8] = &[CAP_NET_ADMIN, CAP_BPF];

/// A start takes a second or so; a machine under load may take longer.
const START: Duration = Duration::from_secs(20);

/// A running agent. Killed, by its process id, when dropped.
#[derive(Debug)]
pub struct Agent {
    running: Running,
    place: Place,
    admin: SocketAddr,
    config: PathBuf,
}

impl Agent {
    /// Starts the agent and waits until it is ready.
    ///
    /// # Panics
    /// When it ends or is not ready in time; its log is shown.
    #[track_caller]
    pub fn start(topology: &Topology, config: &Config) -> Self {
        let mut agent = Self::spawn(topology.agent_place(), config, CAPABILITIES);
        agent.wait_until_ready();
        agent
    }

    /// Starts the agent somewhere, with a bounding set of capabilities, and does not wait.
    ///
    /// # Panics
    /// When the binary is missing.
    #[track_caller]
    pub fn spawn(place: Place, config: &Config, capabilities: &[u8]) -> Self {
        let path = write_config(&place.world, config);
        Self::spawn_on(place, &path, config, capabilities)
    }

    /// The same on a file that the scenario wrote.
    ///
    /// # Panics
    /// When the binary is missing.
    #[track_caller]
    pub fn spawn_on(place: Place, path: &Path, config: &Config, capabilities: &[u8]) -> Self {
        let mut command = command(&place, "run", path).capabilities(capabilities);
        for (key, value) in &config.env {
            command = command.env(key, value);
        }
        let running = command.spawn();
        Self { running, place, admin: config.admin, config: path.to_owned() }
    }

    /// Starts the agent without a file and without a capability, on these variables alone, and waits until
    /// it is ready.
    ///
    /// # Panics
    /// When it ends or is not ready in time; its log is shown.
    #[track_caller]
    pub fn on_variables(place: Place, variables: &[(&str, &str)]) -> Self {
        let admin = SocketAddr::from(([127, 0, 0, 1], 15090));
        let running = Self::with_variables(&place, "run", variables).capabilities(&[]).spawn();
        let mut agent = Self { running, place, admin, config: PathBuf::new() };
        agent.wait_until_ready();
        agent
    }

    /// One of the agent's commands without a file, with these variables.
    ///
    /// # Panics
    /// When the binary is missing.
    pub fn with_variables(place: &Place, verb: &str, variables: &[(&str, &str)]) -> Cmd {
        let command = place.command(binary()).arg(verb);
        variables.iter().fold(command, |command, (key, value)| command.env(key, value))
    }

    /// The configuration's file.
    pub fn config_file(&self) -> &Path {
        &self.config
    }

    /// Puts another text in the place of the configuration, as an editor would: by a rename.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[track_caller]
    pub fn replace_config(&self, text: &str) {
        let staged = self.config.with_extension("staged");
        fs::write(&staged, text).expect("the world's directory is ours");
        fs::rename(&staged, &self.config).expect("the world's directory is ours");
    }

    /// Replaces the configuration and waits until it is in force.
    ///
    /// # Panics
    /// When the agent does not take it within twenty seconds.
    #[track_caller]
    pub fn reload(&self, config: &Config) {
        let generation = || self.metrics().sum("hnp_config_generation", &[]);
        let before = generation();
        self.replace_config(&config.to_yaml());
        eventually(START, "the new configuration is in force", || generation() > before);
    }

    /// Replaces the configuration and waits until a key of it is said to wait for a restart.
    ///
    /// # Panics
    /// When that is not said within five seconds.
    #[track_caller]
    pub fn reload_waiting(&self, config: &Config, key: &str) {
        self.replace_config(&config.to_yaml());
        let line = self.log_line("wait for a restart");
        assert!(line.contains(key), "{key} in {line}");
    }

    /// Sends SIGHUP and does not wait.
    pub fn hang_up(&self) {
        self.running.signal(Signal::SIGHUP);
    }

    /// Starts a successor of the agent that runs, with `--take-over`, and does not wait.
    ///
    /// # Panics
    /// When the binary is missing.
    #[track_caller]
    pub fn take_over(place: Place, config: &Config) -> Self {
        Self::spawn_with(place, config, &["--take-over"])
    }

    /// Starts the agent as a DaemonSet does, with `--take-over` and `--stay`, and does not wait.
    ///
    /// # Panics
    /// When the binary is missing.
    #[track_caller]
    pub fn take_over_and_stay(place: Place, config: &Config) -> Self {
        Self::spawn_with(place, config, &["--take-over", "--stay"])
    }

    /// Starts one of the builds, with or without `--take-over`, and does not wait.
    ///
    /// # Panics
    /// When the binary is missing.
    #[track_caller]
    pub fn spawn_build(build: Build, place: Place, config: &Config, take_over: bool) -> Self {
        let flags: &[&str] = if take_over { &["--take-over"] } else { &[] };
        Self::spawn_from(build.binary(), place, config, flags)
    }

    #[track_caller]
    fn spawn_with(place: Place, config: &Config, flags: &[&str]) -> Self {
        Self::spawn_from(binary(), place, config, flags)
    }

    #[track_caller]
    fn spawn_from(binary: PathBuf, place: Place, config: &Config, flags: &[&str]) -> Self {
        let path = write_config(&place.world, config);
        let command = place.command(binary).args(["run", "--config"]).arg(&path).args(flags);
        let mut command = command.capabilities(CAPABILITIES);
        for (key, value) in &config.env {
            command = command.env(key, value);
        }
        let running = command.spawn();
        Self { running, place, admin: config.admin, config: path }
    }

    /// Starts the agent through another program, which becomes it, and waits until it is ready.
    ///
    /// # Panics
    /// When it ends or is not ready in time; its log is shown.
    #[track_caller]
    pub fn start_through(topology: &Topology, config: &Config, front: &[&str]) -> Self {
        let (program, arguments) = front.split_first().expect("a program");
        let place = topology.agent_place();
        let path = write_config(topology, config);
        let command = place.command(program).args(arguments).arg(binary()).args(["run", "--config"]);
        let running = command.arg(&path).capabilities(CAPABILITIES).spawn();
        let mut agent = Self { running, place, admin: config.admin, config: path };
        agent.wait_until_ready();
        agent
    }

    /// Runs `hnp-agent check` on a configuration.
    ///
    /// # Panics
    /// When the binary is missing.
    #[track_caller]
    pub fn check(place: &Place, config: &Config) -> Finished {
        command(place, "check", &write_config(&place.world, config)).run()
    }

    /// Runs `hnp-agent doctor` on a configuration, where the agent runs.
    ///
    /// # Panics
    /// When the binary is missing.
    #[track_caller]
    pub fn doctor(topology: &Topology, config: &Config) -> Finished {
        command(&topology.agent_place(), "doctor", &write_config(topology, config)).run()
    }

    /// Runs `hnp-agent enforce` on a configuration.
    ///
    /// # Panics
    /// When the binary is missing.
    #[track_caller]
    pub fn enforce(place: &Place, config: &Config) -> Finished {
        command(place, "enforce", &write_config(&place.world, config)).run()
    }

    /// Runs one of the agent's other commands where the agent runs, with all its privileges.
    ///
    /// # Panics
    /// When the binary is missing.
    #[track_caller]
    pub fn tool(topology: &Topology, arguments: &[&str]) -> Finished {
        topology.agent_place().command(binary()).args(arguments).run()
    }

    /// Runs `hnp-agent cleanup` on a node, as an operator would after the agent has ended.
    ///
    /// # Panics
    /// When the binary is missing.
    #[track_caller]
    pub fn clean_up(topology: &Topology) -> Finished {
        let bpffs = topology.bpffs();
        Self::tool(topology, &["cleanup", "--bpffs", &bpffs.to_string_lossy()])
    }

    /// Waits for `/readyz` to say yes.
    ///
    /// # Panics
    /// When the agent ends or is not ready in time.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let mut last = String::new();
        let until = Instant::now() + patience(START);
        while Instant::now() < until {
            assert!(self.running.is_alive(), "the agent ended:\n{}", tail(&self.log()));
            match self.get("/readyz") {
                Ok((200, _)) => return,
                Ok((_, body)) => last = body,
                Err(error) => last = error.to_string(),
            }
            pause();
        }
        panic!("the agent is not ready within {:?}: {last}\n{}", patience(START), tail(&self.log()));
    }

    /// Asks the admin port, from the node: status and body.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        self.get_as("admin", path)
    }

    /// The same under another name of the server.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn get_as(&self, host: &str, path: &str) -> std::io::Result<(u16, String)> {
        let admin = self.admin;
        let answer = self.place.netns().run(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect(admin)?;
            stream.set_read_timeout(Some(patience(Duration::from_secs(5))))?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((status, body.to_owned()))
    }

    /// The metrics of this moment.
    ///
    /// # Panics
    /// When the agent does not answer.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        match self.get("/metrics") {
            Ok((200, text)) => Metrics::parse(&text),
            other => panic!("/metrics: {other:?}"),
        }
    }

    /// All access lines so far.
    pub fn access_lines(&self) -> Vec<Value> {
        self.running.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for an access line for which `wanted` holds.
    ///
    /// # Panics
    /// When none comes within five seconds; those that came are shown.
    #[track_caller]
    pub fn access_line(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut seen = Vec::new();
        let until = Instant::now() + patience(Duration::from_secs(5));
        while Instant::now() < until {
            seen = self.access_lines();
            if let Some(line) = seen.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            pause();
        }
        let last: Vec<String> = seen.iter().rev().take(10).map(Value::to_string).collect();
        panic!("no access line: {what}; the last ones:\n{}", last.join("\n"));
    }

    /// Waits for an access line with a reason.
    ///
    /// # Panics
    /// When none comes within five seconds.
    #[track_caller]
    pub fn access_line_with(&self, reason: &str) -> Value {
        self.access_line(&format!("reason {reason}"), |line| line["reason"] == reason)
    }

    /// Waits until a counter has grown by `by` since `before`.
    ///
    /// # Panics
    /// When it has not within five seconds.
    #[track_caller]
    pub fn wait_for_count(&self, name: &str, labels: &[(&str, &str)], before: f64, by: f64) {
        eventually(Duration::from_secs(5), &format!("{name}{labels:?} grows by {by} from {before}"), || {
            self.metrics().sum(name, labels) >= before + by
        });
    }

    /// Diagnostics so far (standard error).
    pub fn log(&self) -> String {
        self.running.stderr()
    }

    /// Standard output so far: the access log.
    pub fn access_log(&self) -> String {
        self.running.stdout()
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.running.is_alive()
    }

    /// Resident memory in bytes.
    ///
    /// # Panics
    /// When the agent has ended.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the agent runs");
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a running process has one");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number of kB") * 1024
    }

    /// How many descriptors it has open.
    ///
    /// # Panics
    /// When the agent has ended.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the agent runs").count()
    }

    /// Sends SIGTERM and does not wait.
    pub fn ask_to_stop(&self) {
        self.running.signal(Signal::SIGTERM);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Panics
    /// When it does not end within `deadline`.
    #[track_caller]
    pub fn stop(mut self, deadline: Duration) -> Finished {
        self.ask_to_stop();
        self.wait(deadline)
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When it does not end within `deadline`.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> Finished {
        let deadline = patience(deadline);
        match self.running.wait_up_to(deadline) {
            Some(finished) => finished,
            None => panic!("the agent did not end within {deadline:?}:\n{}", tail(&self.log())),
        }
    }

    /// Kills it without a word, and waits for the end.
    ///
    /// # Panics
    /// When SIGKILL does not end it.
    pub fn kill(mut self) -> Finished {
        self.running.signal(Signal::SIGKILL);
        self.wait(Duration::from_secs(5))
    }

    /// Waits for a line in the diagnostics, and returns it.
    ///
    /// # Panics
    /// When none comes within five seconds.
    #[track_caller]
    pub fn log_line(&self, containing: &str) -> String {
        let find = || self.log().lines().find(|line| line.contains(containing)).map(str::to_owned);
        until(
            Duration::from_secs(5),
            &format!("a log line with {containing:?}:\n{}", tail(&self.log())),
            find,
        )
        .0
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- agent, diagnostics\n{}", tail(&self.log()));
            eprintln!("---- agent, access log\n{}", tail(&self.running.stdout()));
            if let Ok((_, metrics)) = self.get("/metrics") {
                let counted = metrics.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
                eprintln!("---- agent, counters\n{}", counted.collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

/// What the agent leaves behind on a node: pins, its socket, and routes of the VIP ranges.
pub fn remains(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    files_below("pin", &world.bpffs(), &mut found);
    files_below("socket", &world.run_dir(), &mut found);
    for family in ["-4", "-6"] {
        let output = world.node_netns().run(|| {
            std::process::Command::new("ip").args([family, "route", "show", "table", "all"]).output()
        });
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let routes = text.lines().filter(|line| line.contains("169.254.77.") || line.contains("fd00:77:"));
        found.extend(routes.map(|route| format!("route {}", route.trim())));
    }
    found
}

fn files_below(kind: &str, dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files_below(kind, &path, found);
        } else {
            found.push(format!("{kind} {}", path.display()));
        }
    }
}

/// Which agent: what ships, and builds for scenarios alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Build {
    /// What ships.
    Ordinary,
    /// The same source with maps of another shape: what upgrades and rollbacks go between.
    OtherShape,
    /// The same source by a clock that the environment names: see [`crate::clock`].
    OtherClock,
}

impl Build {
    /// Where its binary lies: all lie in one place.
    ///
    /// # Panics
    /// When it is not there.
    pub fn binary(self) -> PathBuf {
        let kind = match self {
            Self::Ordinary => return binary(),
            Self::OtherShape => "other-shape",
            Self::OtherClock => "other-clock",
        };
        let path = binary().with_file_name(format!("hnp-agent-{kind}"));
        let build = format!(
            "cargo build -p hnp-agent -p hnp-tests --features hnp-agent/{kind} --bin hnp-agent-{kind}"
        );
        assert!(path.is_file(), "{} is missing; run: {build}", path.display());
        path
    }
}

/// Where the agent's binary lies: `HNP_AGENT_BIN`, or next to the running one.
///
/// # Panics
/// When it is not there.
pub fn binary() -> PathBuf {
    std::env::var_os("HNP_AGENT_BIN").map_or_else(|| tools::sibling("hnp-agent"), PathBuf::from)
}

fn command(place: &Place, verb: &str, config: &Path) -> Cmd {
    place.command(binary()).args([verb, "--config"]).arg(config)
}

fn write_config(world: &Arc<World>, config: &Config) -> PathBuf {
    static SEQUENCE: AtomicU32 = AtomicU32::new(0);
    let path = world.path(&format!("agent-{}.yaml", SEQUENCE.fetch_add(1, Ordering::Relaxed)));
    fs::write(&path, config.to_yaml()).expect("the world's directory is ours");
    path
}
