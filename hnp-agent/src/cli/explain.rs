//! `hnp-agent explain [CODE]`: the table of reasons, for people and machines.

use std::io::Write;
use std::process::ExitCode;

use hnp_common::Reason;
use serde_json::json;

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A code as it stands in a log, a metric or an error body; all of them if left out.
    code: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Prints what was asked for.
pub fn run(args: &Args) -> ExitCode {
    let found: Vec<Reason> = Reason::ALL
        .iter()
        .copied()
        .filter(|r| args.code.as_deref().is_none_or(|code| r.code() == code))
        .collect();
    if found.is_empty() {
        eprintln!(
            "hnp-agent: no reason is called {:?}; `hnp-agent explain` lists them all",
            args.code.as_deref().unwrap_or_default()
        );
        return ExitCode::FAILURE;
    }
    let mut out = std::io::stdout().lock();
    let written = if args.json { write_json(&mut out, &found) } else { write_text(&mut out, &found) };
    // A closed pipe (`| head`) is the reader's choice, not a failure.
    if written.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn write_json(out: &mut impl Write, reasons: &[Reason]) -> std::io::Result<()> {
    let rows: Vec<_> = reasons
        .iter()
        .map(|r| {
            json!({
                "code": r.code(), "number": r.number(), "side": r.side().as_str(), "status": r.status(),
                "what": r.what(), "fix": r.fix(),
            })
        })
        .collect();
    serde_json::to_writer_pretty(&mut *out, &rows)?;
    writeln!(out)
}

fn write_text(out: &mut impl Write, reasons: &[Reason]) -> std::io::Result<()> {
    for reason in reasons {
        let status = match reason.status() {
            0 => String::new(),
            status => format!(", HTTP {status}"),
        };
        writeln!(out, "{} ({} side{status})", reason.code(), reason.side().as_str())?;
        writeln!(out, "  what: {}", reason.what())?;
        writeln!(out, "  do:   {}", reason.fix())?;
    }
    Ok(())
}
