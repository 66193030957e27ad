//! `hnp-agent certs verify`: would the other side take it?

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use crate::certs::names::{self, Name};
use crate::certs::verify::{Answer, Question, Role};
use crate::certs::when;
use crate::config::plan::Roots;

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 0: nothing failed. 1: something did, and each finding has its cause and the next command. \
    Examples:\n  \
    hnp-agent certs verify client.crt --key client.key\n  \
    hnp-agent certs verify server.crt --key server.key --name manager.example\n  \
    hnp-agent certs verify client.crt --at +30d      # and in a month?\n  \
    hnp-agent certs verify manager.pem --ca system --name manager.example"
)]
pub(super) struct Args {
    /// The certificate's file: leaf first, the issuers' behind it.
    certificate: PathBuf,
    /// Its key's file.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// A file with the passphrase of that key, if it is encrypted: on one line.
    #[arg(long, value_name = "FILE", requires = "key")]
    passphrase_file: Option<PathBuf>,
    /// The roots that the other side trusts: a file, or `system`.
    #[arg(long, value_name = "FILE", default_value = "ca.crt")]
    ca: PathBuf,
    /// The DNS name or address that the other side expects.
    #[arg(long, value_name = "NAME", value_parser = host, conflicts_with = "spiffe_id")]
    name: Option<Name>,
    /// The SPIFFE ID that the other side expects.
    #[arg(long, value_name = "ID", value_parser = names::spiffe_id)]
    spiffe_id: Option<Name>,
    /// Who presents it; what its extendedKeyUsage says, if left out.
    #[arg(long, value_enum)]
    usage: Option<Usage>,
    /// When: 2027-01-31, 2027-01-31T12:00:00Z or +30d; now, if left out.
    #[arg(long, value_name = "MOMENT", value_parser = when::moment)]
    at: Option<SystemTime>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Usage {
    /// The side that connects.
    Client,
    /// The side that is connected to.
    Server,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let question = Question {
        certificate: args.certificate.clone(),
        key: args.key.clone(),
        passphrase_file: args.passphrase_file.clone(),
        roots: if args.ca.as_os_str() == "system" { Roots::System } else { Roots::File(args.ca.clone()) },
        name: args.name.clone().or_else(|| args.spiffe_id.clone()),
        usage: args.usage.map(|usage| match usage {
            Usage::Client => Role::Client,
            Usage::Server => Role::Server,
        }),
        at: args.at.unwrap_or_else(crate::clock::now),
    };
    let answer = question.answer();
    let mut out = std::io::stdout().lock();
    let written = if args.json {
        serde_json::to_writer_pretty(&mut out, &answer).map_err(Into::into).and_then(|()| writeln!(out))
    } else {
        out.write_all(text(&answer, &args.certificate).as_bytes())
    };
    if answer.ok && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn text(answer: &Answer, file: &std::path::Path) -> String {
    let mut text = String::new();
    if let Some(facts) = &answer.certificate {
        let _ = writeln!(text, "{}: {}, issued by {}", file.display(), facts.subject, facts.issuer);
    }
    for check in &answer.checks {
        let _ = writeln!(text, "{:<11} {:<18} {}", check.state.as_str(), check.check, check.what);
        let mut more = |word: &str, value: &str| {
            let _ = writeln!(text, "{:31}{word} {value}", "");
        };
        if let Some(reason) = check.reason {
            more("reason:", reason);
        }
        if let Some(fix) = &check.fix {
            more("do:    ", fix);
        }
    }
    text
}

/// A name or an address, whichever it is.
fn host(text: &str) -> Result<Name, String> {
    names::ip(text).or_else(|_| names::dns(text))
}
