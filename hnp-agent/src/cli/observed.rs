//! `hnp-agent observed`: who dials destinations under `enforcement: observe`, as the agent of this node
//! has seen it.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use serde_json::Value;

use super::ask::{Where, get};
use crate::admin::client::Agent;

/// Arguments of `observed`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    at: Where,
    /// Ask the agent's admin port instead of its socket.
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Asks the running agent and prints a table.
pub fn run(args: &Args) -> ExitCode {
    let agent = args.admin.map_or_else(|| args.at.agent(), |admin| Ok(Agent::Port(admin)));
    let rows = agent.and_then(|agent| get(&agent, "/observed"));
    rows.map_or_else(|failed| failed, |rows| show(args, &rows))
}

fn show(args: &Args, rows: &Value) -> ExitCode {
    let written = if args.json {
        writeln!(io::stdout(), "{rows}")
    } else {
        table(rows.as_array().map_or(&[], Vec::as_slice))
    };
    // A closed pipe (`| head`) is the reader's choice, not a failure worth words.
    if written.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn table(rows: &[Value]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if rows.is_empty() {
        return writeln!(out, "nobody has dialled an observed destination, as far as is remembered");
    }
    writeln!(out, "{:>8}  {:<24}  {:<44}  ROUTES", "CONNECTS", "DESTINATION", "WORKLOAD")?;
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let workload = match (text("namespace"), text("pod"), text("pod_uid")) {
            ("", _, "") => text("cgroup").to_owned(),
            ("", _, uid) => format!("pod {uid}"),
            (namespace, pod, _) => format!("{namespace}/{pod}"),
        };
        let routes: Vec<_> =
            row["routes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let (connects, destination) = (row["connects"].as_u64().unwrap_or(0), text("destination"));
        writeln!(out, "{connects:>8}  {destination:<24}  {workload:<44}  {}", routes.join(", "))?;
    }
    Ok(())
}
