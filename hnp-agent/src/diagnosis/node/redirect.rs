//! Whether a process in a pod's place is redirected: one is put into a scratch cgroup below the captured one and
//! connects to a destination; the agent then says whether it met it.
//!
//! Nothing is sent on the connection, so it disturbs nobody: an agent dials no upstream before a request has come.
//! Opaque routes are left out, whose upstream is dialled at once.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::admin::client::Agent;
use crate::capture::Node;
use crate::config::plan::Plan;
use crate::finding::{Finding, State};

/// How long the agent may take to see a connection that the kernel has accepted for it, and a cgroup to be empty.
const SOON: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

/// Tests it, where there is a running agent to ask.
pub(super) fn test(plan: &Plan, agent: &Agent, status: Option<&Value>) -> Finding {
    let skipped = |why: &str| Finding::new("redirect", "self-test", State::Skipped, why);
    let Some(status) = status else { return skipped("there is no running agent to ask what it sees") };
    let Some(destination) = destination(status) else {
        return skipped(
            "no destination to try: one is needed that is an address, captured, and of no opaque route",
        );
    };
    let Ok(node) = Node::check(&plan.capture) else {
        return skipped("the node lacks what capture needs; see above");
    };
    let scratch = match Scratch::make(node.cgroup()) {
        Ok(scratch) => scratch,
        Err(error) => {
            let words = format!("cannot make a scratch cgroup below {}: {error}", node.cgroup().display());
            return skipped(&words).next("run this as root, where the cgroup file system can be written to");
        }
    };
    let (state, detail) = match Dialler::start(&scratch.0, destination) {
        Ok(dialler) => met(agent, &dialler, destination),
        Err(Failed::Start(error)) => return skipped(&format!("cannot start a process for it: {error}")),
        Err(Failed::Connect(words)) => (
            State::Bad,
            format!("a process below {} cannot connect to {destination}: {words}", node.cgroup().display()),
        ),
    };
    let finding = Finding::new("redirect", "self-test", state, detail);
    if state == State::Good {
        finding
    } else {
        finding.next("look at programs, vips and agent above; then restart the agent")
    }
}

/// What is captured for whoever nothing is known of.
fn destination(status: &Value) -> Option<SocketAddr> {
    let list = |value: &'_ Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let opaque: Vec<Value> = list(status, "routes")
        .into_iter()
        .filter(|route| route["protocol"] == "opaque")
        .map(|route| route["name"].clone())
        .collect();
    let all = list(&status["capture"], "destinations");
    let fit = all.iter().filter(|one| {
        let routes = list(one, "routes");
        one["enforcement"] != "observe"
            && !routes.is_empty()
            && !routes.iter().any(|route| opaque.contains(route))
    });
    // A range is not an address.
    fit.filter_map(|one| one["at"].as_str()?.parse().ok()).next()
}

fn met(agent: &Agent, dialler: &Dialler, destination: SocketAddr) -> (State, String) {
    let query = format!("/flows?show=live&client={}", dialler.local);
    let until = Instant::now() + SOON;
    loop {
        let seen = agent.get(&query).ok().and_then(|found| found["live"].as_array()?.first().cloned());
        if let Some(row) = seen {
            let from = row["cgroup"].as_str().unwrap_or("an unknown cgroup");
            let detail = format!("{destination} dialled from {from} meets the agent; nothing was sent");
            return (State::Good, detail);
        }
        if Instant::now() >= until {
            let detail = format!(
                "a connection to {destination} was made and the agent did not see it: pods reach it directly, in the clear"
            );
            return (State::Bad, detail);
        }
        sleep(POLL);
    }
}

/// A cgroup for one process, as a pod's would be. Dropping it removes it.
struct Scratch(PathBuf);

impl Scratch {
    fn make(below: &Path) -> std::io::Result<Self> {
        let path = below.join(format!("hnp-doctor-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let until = Instant::now() + SOON;
        // A process leaves its cgroup a moment after it was waited for.
        while let Err(error) = fs::remove_dir(&self.0) {
            if Instant::now() >= until {
                eprintln!("hnp-agent: {} stays: {error}", self.0.display());
                return;
            }
            sleep(POLL);
        }
    }
}

enum Failed {
    /// There is no process in the cgroup.
    Start(std::io::Error),
    /// It could not connect.
    Connect(String),
}

/// This program again, in the cgroup, with a connection. Dropping it ends both.
struct Dialler {
    child: Child,
    local: SocketAddr,
}

impl Dialler {
    fn start(cgroup: &Path, addr: SocketAddr) -> Result<Self, Failed> {
        let mut child = Command::new("/proc/self/exe")
            .arg("self-test-dial")
            .arg(cgroup)
            .arg(addr.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Failed::Start)?;
        let mut line = String::new();
        // It says one line, or ends: it waits for nothing for long.
        let read = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
        match line.trim().parse() {
            Ok(local) => Ok(Self { child, local }),
            Err(_) => {
                let mut words = String::new();
                if let Some(mut errors) = child.stderr.take() {
                    // Half of its words are better than none.
                    let _ = errors.read_to_string(&mut words);
                }
                let _ = child.wait();
                match read {
                    Some(Ok(_)) if words.contains("cgroup") => {
                        Err(Failed::Start(std::io::Error::other(words.trim().to_owned())))
                    }
                    Some(Ok(_)) => Err(Failed::Connect(words.trim().to_owned())),
                    Some(Err(error)) => Err(Failed::Start(error)),
                    None => Err(Failed::Connect(words.trim().to_owned())),
                }
            }
        }
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends by itself then; a zombie would keep the cgroup.
        if let Err(error) = self.child.wait() {
            eprintln!("hnp-agent: the self-test's process cannot be waited for: {error}");
        }
    }
}
