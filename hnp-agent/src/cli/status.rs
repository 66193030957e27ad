//! `hnp-agent status`: what the running agent has, captures and is waiting for.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::ask::{Where, get};
use super::table::{self, list, rows, table, text};
use crate::x509::span;

/// The agent answers and is not ready.
const NOT_READY: u8 = 2;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Asks the agent over admin.sock in its run directory, which root and the agent's group may open.\n\n\
    Exit code 0: the agent is ready. 1: it does not answer, or cannot be asked. 2: it answers and is not ready, and the \
    list says for what it waits (or the command line is wrong).\n\n\
    Examples:\n  \
    hnp-agent status\n  \
    hnp-agent status --config hnp.yaml --json | jq '.identities[] | {name, state, dates}'"
)]
pub struct Args {
    #[command(flatten)]
    at: Where,
    /// Print JSON; docs/operations.md has its fields.
    #[arg(long)]
    json: bool,
    /// For probes: print one line, and let the exit code say whether the agent is ready, or only whether it answers.
    #[arg(long, value_name = "WHAT", conflicts_with = "json")]
    probe: Option<Probe>,
}

/// What a probe wants to know.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Probe {
    /// Whether it is ready, for readiness: exit code 2 while something is pending.
    Ready,
    /// Whether its control plane answers, for liveness: 0 also while something is pending.
    Alive,
}

/// Asks and prints.
pub fn run(args: &Args) -> ExitCode {
    let status = args.at.agent().and_then(|agent| get(&agent, "/status"));
    status.map_or_else(|failed| failed, |status| show(args, &status))
}

fn show(args: &Args, status: &Value) -> ExitCode {
    let ready = status["ready"] == true;
    if let Some(probe) = args.probe {
        let pending = rows(status, "pending").map(|row| text(row, "name")).collect::<Vec<_>>();
        let words = if ready { "ready".into() } else { format!("waits for {}", pending.join(", ")) };
        let _ = writeln!(std::io::stdout(), "{}", crate::telemetry::line::printable(&words));
        return match probe {
            Probe::Ready if !ready => ExitCode::from(NOT_READY),
            Probe::Ready | Probe::Alive => ExitCode::SUCCESS,
        };
    }
    let out = if args.json { table::json(status) + "\n" } else { page(status) };
    // A closed pipe (`| head`) is the reader's choice; the exit code is the agent's state all the same.
    let _ = std::io::stdout().lock().write_all(out.as_bytes());
    if ready { ExitCode::SUCCESS } else { ExitCode::from(NOT_READY) }
}

fn page(status: &Value) -> String {
    let mut page = String::new();
    let mut line = |words: String| {
        let _ = writeln!(page, "{}", crate::telemetry::line::printable(&words));
    };
    let uptime = Duration::from_secs(status["uptime_s"].as_u64().unwrap_or(0));
    let ready = if status["ready"] == true { "ready" } else { "NOT READY" };
    line(format!(
        "hnp-agent {}, process {}, {ready}; since {} ({}), configuration generation {}",
        text(status, "version"),
        status["pid"],
        text(status, "since"),
        span(uptime),
        status["configuration"]["generation"],
    ));
    for pending in rows(status, "pending") {
        line(format!("  waits for {}: {}", text(pending, "name"), text(pending, "why")));
    }
    let configuration = &status["configuration"];
    if let Some(error) = configuration["error"].as_str() {
        line(format!("  the file cannot be used, the configuration before it is in force: {error}"));
    }
    if configuration["keys_waiting_for_restart"].as_u64() > Some(0) {
        line(format!("  keys that wait for a restart: {}", configuration["keys_waiting_for_restart"]));
    }
    line(capture(status));
    line(format!(
        "connections  {} open, {} allowed, {} workers",
        status["connections_open"], status["connections_limit"], status["workers"]
    ));
    let reasons: Vec<String> =
        rows(status, "reasons").map(|row| format!("{} {}", text(row, "reason"), row["count"])).collect();
    if !reasons.is_empty() {
        line(format!("ended        {}", reasons.join(", ")));
    }
    for part in [routes(status), destinations(status), names(status), identities(status), trusts(status)] {
        if !part.is_empty() {
            page.push('\n');
            page.push_str(&part);
        }
    }
    page
}

fn capture(status: &Value) -> String {
    let capture = &status["capture"];
    if capture.is_null() {
        return format!("capture      {}", text(status, "capture_mode"));
    }
    let hooks = || rows(capture, "hooks");
    let off: Vec<String> =
        hooks().filter(|hook| hook["attached"] != true).map(|hook| text(hook, "program")).collect();
    let attached = match &off[..] {
        [] => format!("all {} programs attached", hooks().count()),
        off => format!("NOT ATTACHED: {}", off.join(", ")),
    };
    let beat = match capture["heartbeat_age_ms"].as_u64() {
        Some(age) => format!("heartbeat {age} ms old ({} ms allowed)", capture["heartbeat_limit_ms"]),
        None => "no heartbeat yet".to_owned(),
    };
    let guard = match &capture["guard"] {
        Value::Null => "guard off".to_owned(),
        guard => format!("guard on {} veths, {} failing", guard["interfaces"], guard["failing"]),
    };
    format!("capture      {}: {attached}, {beat}, {guard}", text(capture, "cgroup"))
}

fn routes(status: &Value) -> String {
    let cells = |route: &Value| {
        let health = &route["health"];
        let failure = match health["last_failure_reason"].as_str() {
            Some(reason) => format!("{reason} at {}", text(health, "last_failure")),
            None => String::new(),
        };
        vec![
            text(route, "name"),
            text(route, "mode"),
            text(route, "enforcement"),
            text(route, "upstream"),
            text(health, "state"),
            text(health, "last_success"),
            format!("{}/{}", health["idle"], health["shared"]),
            failure,
        ]
    };
    let all: Vec<_> = rows(status, "routes").map(cells).collect();
    let headings =
        ["ROUTE", "MODE", "ENFORCEMENT", "UPSTREAM", "HEALTH", "LAST SUCCESS", "IDLE/SHARED", "LAST FAILURE"];
    let mut page = table(&headings, &all);
    for route in rows(status, "routes").filter(|route| route["health"]["state"] == "failing") {
        let why = text(&route["health"], "last_failure_detail");
        if !why.is_empty() {
            let words = format!("  {}: {why}", text(route, "name"));
            let _ = writeln!(page, "{}", crate::telemetry::line::printable(&words));
        }
    }
    page
}

fn destinations(status: &Value) -> String {
    let cells = |one: &Value| {
        let enforcement = match (text(one, "enforcement"), text(one, "weakest")) {
            (strictest, weakest) if strictest == weakest => strictest,
            (strictest, weakest) => format!("{weakest} to {strictest}, by pod"),
        };
        vec![text(one, "at"), text(one, "vip"), enforcement, list(one, "routes")]
    };
    let all: Vec<_> = rows(&status["capture"], "destinations").map(cells).collect();
    table(&["DESTINATION", "VIP", "ENFORCEMENT", "ROUTES"], &all)
}

fn names(status: &Value) -> String {
    let cells = |name: &Value| {
        let state = match (name["addresses"].as_array().is_none_or(Vec::is_empty), name["failures"].as_u64())
        {
            (true, _) => "unresolved".to_owned(),
            (false, Some(0) | None) => "ok".to_owned(),
            (false, Some(failures)) => format!("failing ({failures})"),
        };
        let leaving = list(name, "leaving");
        let leaving = if leaving.is_empty() { leaving } else { format!(" (leaving {leaving})") };
        vec![text(name, "name"), state, list(name, "addresses") + &leaving, text(name, "error")]
    };
    let all: Vec<_> = rows(status, "names").map(cells).collect();
    table(&["NAME", "STATE", "ADDRESSES", "ERROR"], &all)
}

fn identities(status: &Value) -> String {
    let cells = |one: &Value| {
        vec![
            text(one, "name"),
            text(one, "state"),
            text(one, "generation"),
            ends(one),
            text(one, "subject"),
            text(one, "source"),
            text(one, "error"),
        ]
    };
    let all: Vec<_> = rows(status, "identities").map(cells).collect();
    table(&["IDENTITY", "STATE", "GENERATION", "ENDS", "SUBJECT", "SOURCE", "ERROR"], &all)
}

fn trusts(status: &Value) -> String {
    let cells = |one: &Value| {
        let fields = ["name", "state", "generation", "roots"].map(|key| text(one, key));
        let rest = [ends(one), text(one, "source"), text(one, "error")];
        fields.into_iter().chain(rest).collect()
    };
    let all: Vec<_> = rows(status, "trusts").map(cells).collect();
    table(&["TRUST", "STATE", "GENERATION", "ROOTS", "FIRST ENDS", "SOURCE", "ERROR"], &all)
}

/// `2026-12-01T00:00:00.000Z (47 % over)`
fn ends(one: &Value) -> String {
    let dates = &one["dates"];
    match dates["lifetime_over"].as_f64() {
        Some(over) => format!("{} ({:.0} % over)", text(dates, "not_after"), over * 100.0),
        None => String::new(),
    }
}
