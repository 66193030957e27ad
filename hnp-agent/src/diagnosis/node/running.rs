//! What the running agent says of itself over its socket, as findings.

use std::io::ErrorKind;

use hnp_common::Reason;
use serde_json::Value;

use crate::admin::client::{Agent, AskError};
use crate::finding::{Finding, State};

/// From here on whatever renews a certificate has not done so.
const LATE: f64 = 0.75;

/// Asks for the agent's status; that too, where there is one.
pub(super) fn look(agent: &Agent, config: &str) -> (Vec<Finding>, Option<Value>) {
    let status = match agent.get("/status") {
        Ok(status) => status,
        Err(error) => return (vec![unanswered(&error)], None),
    };
    let mut findings = vec![readiness(&status), version(&status)];
    if let Some(error) = status["configuration"]["error"].as_str() {
        let detail = format!("the file cannot be used, an older configuration is in force: {error}");
        let finding = Finding::new("agent", "configuration", State::Bad, detail);
        findings.push(finding.next(format!("hnp-agent check --config {config}")));
    }
    findings.extend(all(&status, "identities").filter_map(|one| source("identity", one)));
    findings.extend(all(&status, "trusts").filter_map(|one| source("trust", one)));
    findings.extend(all(&status, "routes").filter_map(|route| upstream(route, config)));
    (findings, Some(status))
}

fn unanswered(error: &AskError) -> Finding {
    let next = "start the agent (systemctl start hnp-agent, or look at its pod: kubectl describe)";
    let (state, next) = match error {
        AskError::Unreachable { source, .. } => match source.kind() {
            ErrorKind::PermissionDenied => (State::Skipped, "run this as root, or in the agent's group"),
            // The finding about the lock says whether one should be there.
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => (State::Degraded, next),
            _ => (State::Bad, "the agent hangs: look at its log, then restart it"),
        },
        AskError::Refused { .. } => (State::Bad, "is it an agent of this version? hnp-agent --version"),
    };
    Finding::new("agent", "status", state, error.to_string()).next(next)
}

fn readiness(status: &Value) -> Finding {
    if status["ready"] == true {
        let detail = format!("process {}, since {}", status["pid"], text(status, "since"));
        return Finding::new("agent", "ready", State::Good, detail);
    }
    let waits: Vec<String> = all(status, "pending")
        .map(|one| format!("waits for {}: {}", text(one, "name"), text(one, "why")))
        .collect();
    let detail = format!("process {} is not ready: {} pending", status["pid"], waits.len());
    let finding = Finding::new("agent", "ready", State::Bad, detail);
    finding.seen(waits, status["pending"].clone()).next("do what the pending conditions say")
}

fn version(status: &Value) -> Finding {
    let (theirs, ours) = (text(status, "version"), env!("CARGO_PKG_VERSION"));
    if theirs == ours {
        return Finding::new("agent", "version", State::Good, theirs);
    }
    let detail = format!("the running agent is {theirs}, this command {ours}");
    Finding::new("agent", "version", State::Degraded, detail).next("use the running agent's own binary")
}

/// An identity or a trust, where something about it is not as it should be.
fn source(area: &'static str, one: &Value) -> Option<Finding> {
    let (name, error) = (text(one, "name"), text(one, "error"));
    let place = text(one, "source");
    let over = one["dates"]["lifetime_over"].as_f64().unwrap_or(0.0);
    let (state, reason, detail) = match one["state"].as_str() {
        Some("missing") => {
            (State::Bad, Some(Reason::IdentityUnavailable), format!("never loaded from {place}: {error}"))
        }
        Some("expired") => {
            (State::Bad, None, format!("expired at {}: {place}", text(&one["dates"], "not_after")))
        }
        Some("failing") => (
            State::Degraded,
            None,
            format!("{place} holds something broken, the one before is in use: {error}"),
        ),
        _ if over >= LATE => {
            (State::Degraded, None, format!("{:.0} % of its lifetime are over: {place}", over * 100.0))
        }
        _ => return None,
    };
    let next = match (area, text(one, "kind")) {
        ("identity", kind) if kind == "spiffe" => "look at the SPIRE agent's log".to_owned(),
        _ => format!("hnp-agent certs inspect {place}"),
    };
    let finding = Finding::new(area, name, state, detail).next(next);
    Some(Finding { reason, ..finding })
}

/// A route whose upstream failed when it was last needed.
fn upstream(route: &Value, config: &str) -> Option<Finding> {
    let health = &route["health"];
    if health["state"] != "failing" {
        return None;
    }
    let (name, code) = (text(route, "name"), text(health, "last_failure_reason"));
    let detail = format!(
        "{} failed when it was last needed, at {}: {}",
        text(route, "upstream"),
        text(health, "last_failure"),
        text(health, "last_failure_detail")
    );
    let reason = Reason::ALL.iter().find(|reason| reason.code() == code).copied();
    let next = format!("hnp-agent doctor --config {config} --route {name}");
    let finding = Finding::new("upstream", name, State::Degraded, detail).next(next);
    Some(Finding { reason, ..finding })
}

fn all<'a>(status: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    status[key].as_array().into_iter().flatten()
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}
