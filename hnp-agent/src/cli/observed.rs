//! `hnp-agent observed`: who dials destinations under `enforcement: observe`, as the agent of this node
//! has seen it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::config::{self, defaults};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Arguments of `observed`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's configuration: `admin.listen` is taken from it.
    #[arg(long, value_name = "FILE", conflicts_with = "admin")]
    config: Option<PathBuf>,
    /// Where the agent's admin port is.
    #[arg(long, value_name = "ADDR", default_value_t = defaults::ADMIN_LISTEN)]
    admin: SocketAddr,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Asks the running agent and prints a table.
pub fn run(args: &Args) -> ExitCode {
    let admin = match &args.config {
        None => args.admin,
        Some(file) => match config::load(file).map(|(plan, _)| plan.admin.listen) {
            Ok(Some(addr)) => addr,
            Ok(None) => {
                eprintln!("hnp-agent: the configuration switches the admin port off (`admin: off`)");
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        },
    };
    let rows: Vec<Value> = match ask(admin) {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("hnp-agent: the agent does not answer on {admin}: {error}; is it running?");
            return ExitCode::FAILURE;
        }
    };
    let written = if args.json { writeln!(io::stdout(), "{}", Value::Array(rows)) } else { table(&rows) };
    // A closed pipe (`| head`) is the reader's choice, not a failure worth words.
    if written.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn ask(admin: SocketAddr) -> io::Result<Vec<Value>> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /observed HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("it speaks no HTTP"))?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(io::Error::other(head.lines().next().unwrap_or_default().to_owned()));
    }
    serde_json::from_str(body).map_err(io::Error::other)
}

fn table(rows: &[Value]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if rows.is_empty() {
        return writeln!(out, "nobody has dialled an observed destination since the agent started");
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
