//! `hnp-agent doctor`: what this node has, lacks and enforces, and what stands between it and a route's upstream,
//! for the person on call.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::ask;
use crate::config::plan::Plan;
use crate::diagnosis::{self, Wanted, node};
use crate::finding::{Finding, State};
use crate::workload::Account;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Without --route the node is looked at: kernel, programs, VIPs, guard, \
    the running agent, whether a process in a scratch cgroup is redirected, and the API server. With it, everything between \
    this node and the route's upstream: names, proxy, TCP, TLS, certificates, what the upstream demands of clients, \
    clocks, requests. Every finding says how it is, why, which reason a failing request has, and what to type next.\n\n\
    Exit code 0: nothing is bad (degraded and skipped are not). 1: something is. 2: the command line is wrong, or there \
    is no such route.\n\n\
    Examples:\n  \
    hnp-agent doctor --config hnp.yaml\n  \
    hnp-agent doctor --config hnp.yaml --route manager\n  \
    hnp-agent doctor --config hnp.yaml --route manager --path /api/version --path /health\n  \
    hnp-agent doctor --config hnp.yaml --route manager --json | jq .healthy")]
pub struct Args {
    /// The agent's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Look at the way from this node to the upstream of this route.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Ask for this path, as pods would; / if left out. May be given several times. Queries are sent and not shown.
    #[arg(long = "path", value_name = "PATH", requires = "route", value_parser = path)]
    paths: Vec<String>,
    /// Ask with HEAD instead of GET.
    #[arg(long, requires = "route")]
    head: bool,
    /// Where each workload has an identity of its own: have one issued for this service account, and ask with it. The
    /// upstream takes it for that workload's.
    #[arg(long = "as", value_name = "NAMESPACE/SERVICE-ACCOUNT", requires = "route", value_parser = account)]
    workload: Option<Account>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Looks and prints; fails when something does not work.
pub fn run(args: &Args) -> ExitCode {
    let plan = match ask::plan(&args.config) {
        Ok(plan) => plan,
        Err(code) => return code,
    };
    let findings = match &args.route {
        None => match node::examine(&plan, &args.config.display().to_string()) {
            Ok(findings) => findings,
            Err(error) => {
                eprintln!("hnp-agent: {error}");
                return ExitCode::FAILURE;
            }
        },
        Some(name) => match route(&plan, name, args) {
            Ok(findings) => findings,
            Err(code) => return code,
        },
    };
    let bad = findings.iter().any(|finding| finding.state == State::Bad);
    let mut out = std::io::stdout().lock();
    let written = if args.json {
        let list: Vec<_> = findings.iter().map(Finding::to_json).collect();
        let mut all = json!({"healthy": !bad, "findings": list});
        if let Some(name) = &args.route {
            all["route"] = name.as_str().into();
        }
        writeln!(out, "{all}")
    } else {
        out.write_all(text(&findings).as_bytes())
    };
    // A closed pipe (`| head`) is the reader's choice, not a failure.
    if bad || written.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn route(plan: &Plan, name: &str, args: &Args) -> Result<Vec<Finding>, ExitCode> {
    let Some(index) = plan.routes.iter().position(|route| *route.name == *name) else {
        let names: Vec<&str> = plan.routes.iter().map(|route| &*route.name).collect();
        eprintln!(
            "hnp-agent: no route is called {name:?} in {}; there are {}",
            args.config.display(),
            names.join(", ")
        );
        return Err(ExitCode::from(2));
    };
    if args.workload.is_some() && plan.issuer_for(&plan.routes[index]).is_none() {
        eprintln!(
            "hnp-agent: --as is for routes whose identity is issued for each workload, and {name:?} is none"
        );
        return Err(ExitCode::from(2));
    }
    let paths = if args.paths.is_empty() { vec!["/".to_owned()] } else { args.paths.clone() };
    let (workload, config) = (args.workload.clone(), args.config.display().to_string());
    let wanted = Wanted { paths, head: args.head, workload, config };
    diagnosis::examine(plan, index, &wanted).map_err(|error| {
        eprintln!("hnp-agent: {error:#}");
        ExitCode::FAILURE
    })
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding { area, what, state, detail, reason, next, lines, facts: _ } = finding;
        let _ = writeln!(text, "{:<9} {area:<12} {what}: {detail}", state.as_str());
        let mut more = |line: std::fmt::Arguments<'_>| {
            let _ = writeln!(text, "{:23}{line}", "");
        };
        lines.iter().for_each(|line| more(format_args!("{line}")));
        if let Some(reason) = reason {
            more(format_args!("reason: {}", reason.code()));
        }
        if let Some(next) = next {
            more(format_args!("do:     {next}"));
        }
    }
    text
}

/// A service account of a namespace.
fn account(text: &str) -> Result<Account, String> {
    let name = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b))
    };
    match text.split_once('/') {
        Some((namespace, account)) if name(namespace) && name(account) => {
            Ok(Account { namespace: namespace.into(), name: account.into() })
        }
        _ => Err("expected a namespace and a service account of it, such as team-a/runner".into()),
    }
}

/// A path that can stand in a request line.
fn path(text: &str) -> Result<String, String> {
    let good = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if good {
        Ok(text.to_owned())
    } else {
        Err("expected a path that begins with /, percent-encoded where it needs to be".into())
    }
}
