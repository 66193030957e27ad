//! `hnp-agent flows`: who is connected now, and what has ended lately.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::ask::{Where, get};
use super::table::{self, rows, table, text};
use crate::admin::client::{Agent, AskError};
use crate::percent::percent_encoded;

/// How often the page is drawn anew.
const REFRESH: Duration = Duration::from_secs(1);
/// Of a terminal that does not say how large it is.
const USUAL: (usize, usize) = (80, 24);

/// Arguments of `flows`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Asks the agent over admin.sock in its run directory, which root and the agent's group may open. Rows have \
    the fields of access lines (docs/logs-and-metrics.md); query strings and headers are in none. Of what has ended the \
    last 1024 or so are kept.\n\n\
    Exit code 0: done. 1: the agent does not answer, or cannot be asked. 2: the command line is wrong.\n\n\
    Examples:\n  \
    hnp-agent flows --live --watch\n  \
    hnp-agent flows --recent --reason upstream_refused --limit 20\n  \
    hnp-agent flows --pod 3ff17592 --json | jq '.recent[]'"
)]
pub struct Args {
    #[command(flatten)]
    at: Where,
    /// Of this pod: its UID, its container's id, its name or NAMESPACE/NAME, or how one of these begins.
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Of this route.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Of this client: its address, with or without the port.
    #[arg(long, value_name = "ADDR")]
    client: Option<String>,
    /// That ended for this reason (`hnp-agent explain` lists them).
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Only what is open: the oldest first.
    #[arg(long, conflicts_with_all = ["recent", "reason"])]
    live: bool,
    /// Only what has ended: the latest first.
    #[arg(long)]
    recent: bool,
    /// So many of each, at most (1 to 1024).
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1024))]
    limit: u16,
    /// Draw anew each second, until interrupted. With --json: one line each second.
    #[arg(long)]
    watch: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Asks and prints, once or until interrupted.
pub fn run(args: &Args) -> ExitCode {
    let shown = args.at.agent().and_then(|agent| {
        let query = args.query();
        if args.watch {
            Ok(watched(&agent, &query, args.json))
        } else {
            get(&agent, &query).map(|found| show(args, &found))
        }
    });
    shown.unwrap_or_else(|failed| failed)
}

fn show(args: &Args, found: &Value) -> ExitCode {
    let out = if args.json { table::json(found) + "\n" } else { page(found) };
    // A closed pipe (`| head`) is the reader's choice, not a failure worth words.
    let written = io::stdout().lock().write_all(out.as_bytes());
    if written.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn watched(agent: &Agent, query: &str, json: bool) -> ExitCode {
    if !json && !io::stdout().is_terminal() {
        eprintln!(
            "hnp-agent: --watch draws on a terminal, and this is none; add --json for one line each second"
        );
        return ExitCode::from(2);
    }
    match watch(agent, query, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hnp-agent: cannot watch: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    fn query(&self) -> String {
        let mut query = format!("/flows?limit={}", self.limit);
        for (key, value) in
            [("pod", &self.pod), ("route", &self.route), ("client", &self.client), ("reason", &self.reason)]
        {
            if let Some(value) = value {
                query.push_str(&format!("&{key}={}", percent_encoded(value)));
            }
        }
        if self.live || self.recent {
            query.push_str(if self.live { "&show=live" } else { "&show=recent" });
        }
        query
    }
}

/// Until SIGINT or SIGTERM, or until nobody reads any more. An agent that is gone may come back, or its successor.
fn watch(agent: &Agent, query: &str, json: bool) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut screen = Screen::default();
        loop {
            let found = agent.get(query);
            let written = if json { one_line(&found) } else { screen.draw(&frame(&found)) };
            if written.is_err() {
                return Ok(());
            }
            // All are cancel-safe.
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => return interrupted,
                _ = ended.recv() => return Ok(()),
                () = tokio::time::sleep(REFRESH) => {}
            }
        }
    })
}

fn one_line(found: &Result<Value, AskError>) -> io::Result<()> {
    match found {
        Ok(found) => {
            let mut out = io::stdout().lock();
            writeln!(out, "{}", table::json(found))?;
            out.flush()
        }
        Err(error) => {
            eprintln!("hnp-agent: {error}");
            Ok(())
        }
    }
}

fn frame(found: &Result<Value, AskError>) -> String {
    match found {
        Ok(found) => format!("{}  (^C ends)\n{}", text(found, "now"), page(found)),
        Err(error) => crate::telemetry::line::printable(&error.to_string()),
    }
}

/// What is on the terminal, to be drawn over. Dropping it shows the cursor again.
#[derive(Default)]
struct Screen {
    lines: usize,
    begun: bool,
}

impl Screen {
    fn draw(&mut self, frame: &str) -> io::Result<()> {
        let (columns, rows) = size().unwrap_or(USUAL);
        let mut out = String::new();
        if !std::mem::replace(&mut self.begun, true) {
            out.push_str("\x1b[?25l");
        }
        if self.lines > 0 {
            out.push_str(&format!("\x1b[{}A", self.lines));
        }
        // A line that wrapped, or a page that scrolled, could not be drawn over.
        self.lines = 0;
        for line in frame.lines().take(rows.saturating_sub(1)) {
            out.push('\r');
            out.extend(line.chars().take(columns));
            out.push_str("\x1b[K\n");
            self.lines += 1;
        }
        out.push_str("\x1b[J");
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.begun {
            // Whoever closed the terminal needs no cursor.
            let _ = io::stdout().write_all(b"\x1b[?25h");
            let _ = io::stdout().flush();
        }
    }
}

/// The terminal's columns and rows.
fn size() -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which is ours and lives beyond the call.
    let asked = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (asked == 0 && size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}

fn page(found: &Value) -> String {
    let count = |shown: &str, matching: &str| {
        let shown = rows(found, shown).count();
        match found[matching].as_u64() {
            Some(all) if all > shown as u64 => format!("{shown} of {all}"),
            Some(_) | None => shown.to_string(),
        }
    };
    let (live, recent) = (count("live", "live_matching"), count("recent", "recent_matching"));
    let headings = ["SINCE", "STATE", "FOR", "POD", "ROUTE", "CLIENT", "DESTINATION", "REQUEST", "UPSTREAM"];
    let cells: Vec<_> = rows(found, "live").map(|row| cells(row, "since", "state", "age_ms")).collect();
    let mut page = format!("{live} live\n{}", table(&headings, &cells));
    let headings =
        ["ENDED", "REASON", "TOOK", "POD", "ROUTE", "CLIENT", "DESTINATION", "REQUEST", "UPSTREAM"];
    let cells: Vec<_> =
        rows(found, "recent").map(|row| self::cells(row, "ts", "reason", "duration_ms")).collect();
    page.push_str(&format!("{recent} recent\n{}", table(&headings, &cells)));
    page
}

fn cells(row: &Value, at: &str, state: &str, took: &str) -> Vec<String> {
    // The day is known, and columns are dear: `03:04:05.678`.
    let moment = text(row, at);
    let moment = moment.split_once('T').map_or("", |(_, time)| time.trim_end_matches('Z')).to_owned();
    let took = row[took].as_f64().map_or_else(String::new, |ms| {
        if ms < 10_000.0 { format!("{ms:.0} ms") } else { format!("{:.0} s", ms / 1000.0) }
    });
    let upstream = match text(row, "upstream_addr") {
        none if none.is_empty() => text(row, "upstream"),
        addr => addr,
    };
    vec![
        moment,
        text(row, state),
        took,
        pod(row),
        text(row, "route"),
        text(row, "client"),
        match text(row, "destination") {
            none if none.is_empty() => text(row, "asked"),
            destination => destination,
        },
        [text(row, "method"), text(row, "path"), text(row, "status")].join(" ").trim().to_owned(),
        upstream,
    ]
}

/// The best that is known of who it is.
fn pod(row: &Value) -> String {
    match (text(row, "namespace"), text(row, "pod"), text(row, "pod_uid")) {
        (namespace, pod, _) if !pod.is_empty() => format!("{namespace}/{pod}"),
        (_, _, uid) if !uid.is_empty() => uid,
        _ => text(row, "cgroup"),
    }
}
