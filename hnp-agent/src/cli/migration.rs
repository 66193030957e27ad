//! `hnp-agent migration`: who still goes direct and why, and whom `enforcement: strict` would cut off.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::ask::{Where, get};
use super::table::{self, list, rows, table, text};
use crate::config;
use crate::percent::percent_encoded;
use crate::telemetry::line::printable;

/// Somebody would be cut off, or nobody knows.
const NOT_CLEAR: u8 = 2;

/// Arguments of `migration`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Asks the agent over admin.sock in its run directory, which root and the agent's group may open. Each agent knows \
    its own node, and what it has seen since its start or the kernel has kept from before: ask all of them, and give rare jobs time to run.\n\n\
    Exit code 0: strict would cut off nobody whom this agent has seen. 1: the agent does not answer, or cannot be asked. 2: \
    strict cuts somebody off or would, or too little was seen, and the last line says which (or the command line is wrong).\n\n\
    Examples:\n  \
    hnp-agent migration\n  \
    hnp-agent migration --namespace staging --since 24h\n  \
    hnp-agent migration --json | jq -r '.workloads[] | [.why, .namespace, .pod, .reason] | @tsv'"
)]
pub struct Args {
    #[command(flatten)]
    at: Where,
    /// Of this route.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Of pods of this namespace.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Leave out who was last seen longer ago (such as 90s, 30m or 24h): those that were mended since.
    #[arg(long, value_name = "DURATION", value_parser = config::duration)]
    since: Option<Duration>,
    /// Print JSON; docs/operations.md has its fields.
    #[arg(long)]
    json: bool,
}

/// Asks and prints.
pub fn run(args: &Args) -> ExitCode {
    let found = args.at.agent().and_then(|agent| get(&agent, &args.query()));
    found.map_or_else(|failed| failed, |found| show(args, &found))
}

fn show(args: &Args, found: &Value) -> ExitCode {
    let out = if args.json { table::json(found) + "\n" } else { page(found) };
    // A closed pipe (`| head`) is the reader's choice; the exit code is the outlook all the same.
    let _ = std::io::stdout().lock().write_all(out.as_bytes());
    if found["outlook"] == "clear" { ExitCode::SUCCESS } else { ExitCode::from(NOT_CLEAR) }
}

impl Args {
    fn query(&self) -> String {
        let since = self.since.map(|since| since.as_millis().div_ceil(1000).to_string());
        let filters = [("route", &self.route), ("namespace", &self.namespace), ("since", &since)];
        let filters = filters
            .iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", percent_encoded(value.as_deref()?))));
        format!("/migration?{}", filters.collect::<Vec<_>>().join("&"))
    }
}

fn page(found: &Value) -> String {
    let mut page = String::new();
    let mut add = |part: String| {
        if !part.is_empty() {
            page.push_str(&part);
            page.push('\n');
        }
    };
    for route in rows(found, "routes") {
        let overrides = list(route, "overrides");
        let overrides = if overrides.is_empty() { overrides } else { format!(", {overrides}") };
        let words = format!(
            "route {} ({}, {}{overrides}): {} captured connections",
            text(route, "name"),
            text(route, "mode"),
            text(route, "enforcement"),
            route["captured"],
        );
        let cells: Vec<_> = rows(route, "namespaces").map(namespace).collect();
        add(printable(&words)
            + "\n"
            + &table(&["NAMESPACE", "ENFORCEMENT", "CAPTURED", "TLS", "BEGIN WITH"], &cells));
    }
    let cells: Vec<_> = rows(found, "workloads").map(workload).collect();
    let headings = ["UNDER STRICT", "WHY", "TIMES", "WORKLOAD", "ROUTE", "DESTINATION", "LAST"];
    add(table(&headings, &cells));
    let mut notes = String::new();
    let mut note = |words: String| {
        let _ = writeln!(notes, "{}", printable(&words));
    };
    let shown = rows(found, "workloads").count();
    if found["workloads_matching"].as_u64() > Some(shown as u64) {
        note(format!("{shown} of {} workloads are listed", found["workloads_matching"]));
    }
    if let Some(count @ 1..) = found["loose_direct"].as_u64() {
        let is_listed = rows(found, "workloads").any(|row| row["why"] == "loose_direct");
        let whose = if is_listed { ": loose_direct says whose" } else { "" };
        note(format!("{count} dials of this node went direct while no agent answered{whose}"));
    }
    if let Some(why) = found["not_looked_into"].as_str() {
        note(format!("not everywhere looked for connections that passed no capture: {why}"));
    }
    add(notes);
    page + &printable(&text(found, "words")) + "\n"
}

fn namespace(row: &Value) -> Vec<String> {
    let begins = row["begins"].as_object().into_iter().flatten();
    let begins = begins.filter(|(_, count)| count.as_u64() > Some(0));
    vec![
        or(text(row, "namespace"), "(not known)"),
        text(row, "enforcement"),
        text(row, "captured"),
        row["tls_share"].as_f64().map_or_else(String::new, |share| format!("{:.1} %", share * 100.0)),
        begins.map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", "),
    ]
}

fn workload(row: &Value) -> Vec<String> {
    let reason = text(row, "reason");
    let strict = if reason.is_empty() { reason } else { format!(": {reason}") };
    let who = match (text(row, "namespace"), text(row, "pod"), text(row, "pod_uid")) {
        (namespace, pod, _) if !pod.is_empty() => format!("{namespace}/{pod}"),
        (_, _, uid) if !uid.is_empty() => uid,
        (namespace, ..) if !namespace.is_empty() => format!("{namespace}/*"),
        _ if row["why"] == "loose_direct" => or(text(row, "cgroup"), "(gone)"),
        _ => or(text(row, "cgroup"), "(not known)"),
    };
    vec![
        text(row, "under_strict") + &strict,
        text(row, "why"),
        text(row, "times"),
        who,
        text(row, "route"),
        text(row, "destination"),
        text(row, "last"),
    ]
}

fn or(text: String, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_page_has_who_why_and_what_it_comes_to() {
        let found = json!({
            "routes": [{
                "name": "m", "mode": "reverse-proxy", "enforcement": "loose", "overrides": ["strict for a"],
                "captured": 4,
                "namespaces": [{
                    "namespace": "b", "enforcement": "loose", "captured": 4, "tls_share": 0.25,
                    "begins": {"tls": 1, "http1": 3, "http2": 0},
                }],
            }],
            "workloads": [{
                "why": "own_tls", "under_strict": "refused", "reason": "tls_from_client", "route": "m",
                "namespace": "b", "pod": "web\u{1b}", "times": 1,
            }],
            "workloads_matching": 2, "loose_direct": 3, "not_looked_into": "no", "words": "the last line",
        });
        let page = page(&found);
        for part in [
            "route m (reverse-proxy, loose, strict for a): 4 captured connections\n",
            "b          loose        4         25.0 %  http1 3, tls 1\n",
            "refused: tls_from_client  own_tls  1      b/web\\u001b  m\n",
            "1 of 2 workloads are listed\n",
            "3 dials of this node went direct while no agent answered\n",
            "passed no capture: no\n",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(page.ends_with("\n\nthe last line\n"), "{page}");
        let gone = json!({
            "routes": [], "loose_direct": 3, "words": "w",
            "workloads": [
                {"why": "loose_direct", "under_strict": "unknown", "route": "m", "times": 3},
                {"why": "own_tls", "under_strict": "refused", "route": "m", "times": 1},
            ],
        });
        let page = super::page(&gone);
        let parts = [
            "unknown       loose_direct  3      (gone)",
            "(not known)  m",
            "no agent answered: loose_direct says whose\n",
        ];
        for part in parts {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        // The control: nothing is said of what there is none of.
        let page = super::page(&json!({"routes": [], "workloads": [], "loose_direct": 0, "words": "w"}));
        assert_eq!(page, "w\n");
    }
}
