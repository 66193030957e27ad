//! `cargo xtask demo`: what hnp does, shown for real in about two seconds.
//!
//! A pod asks a manager that refuses everyone without a client certificate, with a plain `curl`; the
//! kernel hands the connection to the agent, and the answer comes back. Every step is checked; the
//! first that does not happen ends the demo with its name and a non-zero exit. Needs root, iproute2
//! and curl.
//!
//! The scene is played by a child of this process, so that whatever happens to it, somebody is left
//! to clean up. With `--keep` the child stays and keeps the scene.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hnp_tests::agent::{self, Agent};
use hnp_tests::cgroup::Driver;
use hnp_tests::client::{self, Job};
use hnp_tests::process::Place;
use hnp_tests::scene::Scene;
use hnp_tests::tools;
use hnp_tests::topology::{self, MANAGER_NAME, MANAGER4, Topology};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Worlds of the demo begin so.
const PREFIX: &str = "hnp-demo";

const USAGE: &str = "usage: hnp-demo [--agent PATH] [--keep]\n\n  \
    --agent PATH  the agent's binary (else HNP_AGENT_BIN, else hnp-agent beside this program)\n  \
    --keep        leave the scene up and say how to enter and how to remove it";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match Options::parse(&arguments) {
        Ok(options) if options.on_stage => play(options.keep),
        Ok(options) => supervise(&options),
        Err(error) => Err(error.context(USAGE)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nhnp-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Default)]
struct Options {
    keep: bool,
    agent: Option<PathBuf>,
    /// Whether this process is the child that plays the scene.
    on_stage: bool,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--keep" => options.keep = true,
                "--on-stage" => options.on_stage = true,
                "--agent" => {
                    let path = arguments.next().context("--agent wants a path")?;
                    options.agent = Some(std::fs::canonicalize(path).with_context(|| path.clone())?);
                }
                unknown => bail!("unknown argument {unknown}"),
            }
        }
        Ok(options)
    }
}

/// Has a child play the scene, waits for its end, and removes what it may have left.
fn supervise(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces and cgroups and needs root");
    topology::sweep(PREFIX);
    let mut signals = stop_signals();
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGUSR1);
    signals.thread_block()?;
    let mut child = Command::new(std::env::current_exe()?);
    child.arg("--on-stage").args(options.keep.then_some("--keep")).process_group(0);
    if let Some(agent) = &options.agent {
        child.env("HNP_AGENT_BIN", agent);
    }
    let mut child = child.spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let outcome = loop {
        match signals.wait()? {
            // The scene stays; the child keeps it.
            Signal::SIGUSR1 => return Ok(()),
            Signal::SIGCHLD => match child.try_wait()? {
                Some(status) if status.success() => break Ok(()),
                Some(status) => break Err(anyhow::anyhow!("a step did not happen ({status}); see above")),
                None => {}
            },
            signal => {
                let _ = kill(pid, Signal::SIGKILL);
                child.wait()?;
                break Err(anyhow::anyhow!("stopped by {signal}"));
            }
        }
    };
    topology::sweep(PREFIX);
    outcome
}

/// The scene, step by step.
fn play(keep: bool) -> Result<()> {
    // The supervisor's mask is inherited, and the agent would inherit it in turn: deaf to SIGTERM.
    SigSet::all().thread_unblock()?;
    for program in ["ip", "curl"] {
        tools::need(program);
    }
    let started = Instant::now();
    let mut story = Story::default();
    let scene = Scene::in_world(Topology::named(PREFIX, Driver::Cgroupfs)?);
    let world = scene.name().to_owned();
    let manager = scene.strict_manager();
    let pod = scene.pod();

    story.step("a node, a pod and a manager that refuses everyone without a client certificate");
    story.tell("pod", format!("{} {} in {}", pod.uid, pod.addr4, pod.cgroup().display()));
    story.tell("manager", format!("{MANAGER_NAME} is {MANAGER4}, port 80, strict"));

    story.step("without the agent the pod is refused");
    story.refused(&pod, &manager)?;

    let agent = Agent::start(&scene, &scene.config().route(scene.route()));
    story.step("the agent runs on the node, with CAP_BPF and CAP_NET_ADMIN and nothing else");
    story.tell("agent", format!("pid {}, {}", agent.pid(), agent::binary().display()));
    story.tell("ready", agent.get("/readyz")?.1.trim());

    story.step("the pod runs the same curl: no proxy setting, no certificate, no sidecar");
    let answer = story.curl(&pod)?;
    ensure!(answer.status == 200, "the pod got {}: {}", answer.status, answer.body);
    story.tell("answer", format!("{} {}", answer.status, answer.body.trim()));

    story.step("what the pod dialled, and what getpeername tells it");
    let dialled = (MANAGER4, 80).into();
    let report = client::run(&pod, &Job::Peer { addr: dialled });
    let peer = report.peer.context("no answer to getpeername")?;
    story.tell("dialled", dialled.to_string());
    story.tell("getpeername", peer.to_string());
    ensure!(peer == dialled, "getpeername says {peer}");

    story.step("what the manager saw");
    let request = manager.last_request().context("the manager saw no request")?;
    let tls = request.tls.as_ref().context("the request came in plaintext")?;
    let certificate = tls.client.as_ref().context("the request came without a client certificate")?;
    story.tell("from", format!("{} (the node; the pod is {})", request.peer, pod.addr4));
    story.tell("client certificate", format!("{}, serial {}", certificate.subject, certificate.serial));
    story.tell("TLS", format!("{}, key exchange {}", tls.version, tls.key_exchange));
    story.tell("request", format!("{} with Host: {}", request.head.start_line, request.host()));
    ensure!(certificate.serial == scene.client_serial, "another certificate than the agent's");
    ensure!(request.target == "/hello", "the path was changed");

    story.step("what the agent wrote down");
    let line = agent.access_line("the curl's", |line| line["path"] == "/hello");
    for key in ["route", "reason", "pod_uid", "container", "destination", "upstream_addr", "status", "kx"] {
        story.tell(key, shown(&line[key]));
    }
    ensure!(line["reason"] == "ok" && line["pod_uid"] == pod.uid.as_str(), "not the pod's line: {line}");

    story.step("the same request by a process that no hook sees, in the pod's network: the guard refuses it");
    story.kept_away(pod.outside_cgroup(), &manager)?;

    if keep {
        return keep_scene(story, scene, (pod, manager, agent));
    }

    story.step("the agent is stopped and cleaned up after: nothing of it is left on the node");
    let kept = agent::remains(&scene);
    ensure!(!kept.is_empty(), "there was nothing to remove, so this step proves nothing");
    story.tell("before", format!("{} pins and routes", kept.len()));
    let ended = agent.stop(Duration::from_secs(20));
    ensure!(ended.status.success(), "the agent ended with {}: {}", ended.status, ended.stderr);
    let refused = agent::remains(&scene);
    ensure!(!refused.is_empty(), "a strict destination must stay refused without an agent");
    let cleaned = Agent::clean_up(&scene);
    ensure!(cleaned.status.success(), "hnp-agent cleanup: {cleaned}");
    let left = agent::remains(&scene);
    ensure!(left.is_empty(), "left behind: {left:?}");
    story.tell("after", cleaned.text().lines().last().unwrap_or_default());

    story.step("the scene is removed: no namespace, cgroup, mount or file is left");
    drop((pod, manager, scene));
    let left = topology::leftovers(&world);
    ensure!(left.is_empty(), "left behind: {left:?}");
    println!("\nAll {} steps happened, in {:.1} s.", story.steps, started.elapsed().as_secs_f64());
    Ok(())
}

/// Says how to use the scene, lets the supervisor go, and waits to be told to remove it.
fn keep_scene<T>(story: Story, scene: Scene, rest: (topology::Pod, T, Agent)) -> Result<()> {
    let (pod, _manager, agent) = &rest;
    println!("\nAll {} steps happened. The scene stays up:", story.steps);
    println!("  a shell in the pod      {}", pod.how_to_enter());
    println!("  a shell beside the pod  {}", pod.outside_cgroup().how_to_enter());
    println!("  a shell on the node     {}", scene.node().how_to_enter());
    println!(
        "  then, in the pod        curl --resolve {MANAGER_NAME}:80:{MANAGER4} http://{MANAGER_NAME}/hello"
    );
    println!("  metrics, on the node    curl http://127.0.0.1:15090/metrics");
    println!("  files and logs          {}", scene.dir().display());
    println!("  remove everything       kill {}   (the agent is pid {})", std::process::id(), agent.pid());
    let signals = stop_signals();
    signals.thread_block()?;
    let supervisor = Pid::parent();
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    kill(supervisor, Signal::SIGUSR1)?;
    signals.wait()?;
    drop((rest, scene));
    Ok(())
}

fn stop_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Tells the steps, numbered.
#[derive(Debug, Default)]
struct Story {
    steps: u32,
}

struct Answer {
    status: u16,
    body: String,
}

impl Story {
    fn step(&mut self, what: &str) {
        self.steps += 1;
        println!("\n{}. {what}", self.steps);
    }

    fn tell(&self, what: &str, value: impl AsRef<str>) {
        println!("     {what:<20} {}", value.as_ref());
    }

    /// What anybody would type.
    fn curl(&self, place: &Place) -> Result<Answer> {
        let url = format!("http://{MANAGER_NAME}/hello");
        self.tell("$", format!("curl {url}"));
        let finished = place.command("curl").args(["-sS", "-m", "10", "-w", "\n%{http_code}", &url]).run();
        ensure!(finished.status.success(), "{finished}");
        let text = finished.text();
        let (body, status) = text.rsplit_once('\n').context("curl wrote no status")?;
        Ok(Answer { status: status.parse()?, body: body.to_owned() })
    }

    /// The request does not get as far as the manager.
    fn kept_away(&self, place: &Place, manager: &hnp_tests::manager::Manager) -> Result<()> {
        let before = manager.connections().len();
        let url = format!("http://{MANAGER_NAME}/hello");
        self.tell("$", format!("curl {url}"));
        let finished = place.command("curl").args(["-sS", "-m", "10", &url]).run();
        self.tell("answer", finished.stderr.trim());
        const COULD_NOT_CONNECT: i32 = 7;
        ensure!(
            finished.status.code() == Some(COULD_NOT_CONNECT),
            "it should not have connected: {finished}"
        );
        ensure!(manager.connections().len() == before, "the manager saw it");
        Ok(())
    }

    /// The control: the request reaches the manager's port and is refused there.
    fn refused(&self, place: &Place, manager: &hnp_tests::manager::Manager) -> Result<()> {
        let before = manager.request_count();
        let answer = self.curl(place)?;
        self.tell("answer", format!("{} {}", answer.status, answer.body.trim()));
        ensure!(
            answer.status == 400 && answer.body.contains("client certificate required"),
            "the manager should have refused it"
        );
        let last = manager.last_request().filter(|_| manager.request_count() == before + 1);
        ensure!(last.is_some_and(|last| last.tls.is_none()), "the manager should have seen it, in plaintext");
        Ok(())
    }
}
