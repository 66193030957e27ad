//! `hnp-agent certs`: one command for each step of a recipe.
//!
//! Exit codes as everywhere: 0 done (`verify`: nothing failed), 1 it did not work, 2 the command line is wrong.
//! With `--json` the result is one JSON object on stdout, a failure too: `{"ok": false, "error": ...}`.

mod init_ca;
mod inspect;
mod issue;
mod renew;
mod verify;

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Subcommand;
use serde_json::json;

use crate::certs::facts::CertificateFacts;
use crate::certs::key::KeyType;
use crate::certs::store::{self, Existing};
use crate::certs::when::{self, Lifetime, Until};
use crate::certs::{CertsError, Issued, Subject};

/// Arguments of `certs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "The vendor's recipe in two commands:\n  \
    hnp-agent certs init-ca        # ca.crt, ca.key\n  \
    hnp-agent certs issue client   # client.crt, client.key, issued by them\n\n\
    docs/certificates.md has the rest.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a CA: ca.crt to give away, ca.key to keep.
    InitCa(init_ca::Args),
    /// Have the CA issue a certificate with a new key.
    Issue(issue::Args),
    /// Make a certificate anew with a later end, in its place.
    Renew(renew::Args),
    /// Show what files of certificates and keys hold, and what belongs together.
    Inspect(inspect::Args),
    /// Judge a certificate as its peers would: chain, dates, names, usage and key.
    Verify(verify::Args),
}

/// Does what is asked.
pub fn run(args: &Args) -> ExitCode {
    match &args.command {
        Command::InitCa(args) => args.making.outcome(init_ca::run(args)),
        Command::Issue(args) => issue::run(args),
        Command::Renew(args) => report(args.json(), renew::run(args)),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
    }
}

/// What all commands that make a certificate have in common.
#[derive(Debug, clap::Args)]
struct Making {
    /// Whom it is for: a plain name, "CN=runner,O=Example ORG" or "/O=Example ORG/CN=runner".
    #[arg(long, value_name = "NAME")]
    subject: Option<Subject>,
    /// The kind of key.
    #[arg(long, value_name = "TYPE", default_value = "p256", value_enum)]
    key_type: KeyType,
    #[command(flatten)]
    end: End,
    /// The folder to write to.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out_dir: PathBuf,
    /// Overwrite files that are there.
    #[arg(long)]
    force: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// When a certificate ends.
#[derive(Debug, clap::Args)]
struct End {
    /// How long it is valid: 30m, 12h, 90d or 2y.
    #[arg(long, value_name = "TIME", conflicts_with = "not_after")]
    lifetime: Option<Lifetime>,
    /// Its last moment: 2027-01-31 or 2027-01-31T12:00:00Z.
    #[arg(long, value_name = "MOMENT", value_parser = when::moment)]
    not_after: Option<SystemTime>,
}

impl End {
    fn until(&self) -> Option<Until> {
        self.lifetime.map(Until::For).or(self.not_after.map(Until::Moment))
    }
}

/// Where the CA lies.
#[derive(Debug, clap::Args)]
struct CaFiles {
    /// The CA's certificate, with its own issuers behind it if it is an intermediate.
    #[arg(long, value_name = "FILE", default_value = "ca.crt")]
    ca: PathBuf,
    /// The CA's key.
    #[arg(long, value_name = "FILE", default_value = "ca.key")]
    ca_key: PathBuf,
    /// A file with the passphrase of the CA's key, if that is encrypted: on one line.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Files that were written, for the report.
#[derive(Debug)]
struct Written {
    issued: Issued,
    files: Vec<store::NewFile>,
    verb: &'static str,
    next: String,
}

impl Making {
    /// Looks whether the names are free, has it made, and writes certificate and key.
    fn write(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Issued, CertsError>,
        next: impl FnOnce(&Path, &Path) -> String,
    ) -> Result<Written, CertsError> {
        let [certificate, key] =
            ["crt", "key"].map(|suffix| tidy(&self.out_dir.join(format!("{name}.{suffix}"))));
        let existing = if self.force { Existing::Replace } else { Existing::Keep };
        if !self.force {
            // An RSA key takes seconds; writing looks again.
            store::refuse_existing(&key)?;
            store::refuse_existing(&certificate)?;
        }
        if self.key_type.takes_a_moment() && std::io::stderr().is_terminal() {
            eprintln!("looking for the primes of an RSA key, which takes a moment ...");
        }
        let issued = make()?;
        let files = issued.files(&certificate, &key);
        store::write(&files, existing)?;
        Ok(Written { next: next(&certificate, &key), issued, files, verb: "wrote" })
    }

    fn outcome(&self, result: Result<Written, CertsError>) -> ExitCode {
        report(self.json, result)
    }
}

/// `./x` is what a person calls `x`.
fn tidy(path: &Path) -> PathBuf {
    path.strip_prefix(".").unwrap_or(path).to_owned()
}

/// A path as it is typed into a shell.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@%:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// Prints what was made, or why not.
fn report(as_json: bool, result: Result<Written, CertsError>) -> ExitCode {
    let written = match result {
        Ok(written) => written,
        Err(error) => return failed(as_json, &error),
    };
    let Written { issued, files, verb, next } = &written;
    let facts = issued.chain.first().and_then(|leaf| CertificateFacts::of(leaf, crate::clock::now()).ok());
    let mut out = std::io::stdout().lock();
    let printed = if as_json {
        let files: Vec<_> = files
            .iter()
            .map(|file| json!({"path": file.path, "kind": file.kind.as_str(), "mode": mode(&file.path)}))
            .collect();
        let notes = &issued.notes;
        let chain_length = issued.chain.len();
        let result = json!({"ok": true, "files": files, "certificate": facts, "chain_length": chain_length,
                            "notes": notes, "next": next});
        writeln!(out, "{result:#}")
    } else {
        let mut text = String::new();
        for file in files {
            let (path, kind, mode) = (shown(&file.path), file.kind.as_str(), mode(&file.path));
            let _ = writeln!(text, "{verb} {path} ({kind}, mode {mode})");
        }
        if let Some(facts) = facts {
            describe(&facts, "  ", &mut text);
        }
        if let above @ 1.. = issued.chain.len().saturating_sub(1) {
            let _ =
                writeln!(text, "  chain       {above} certificate(s) of issuers behind it, without the root");
        }
        issued.notes.iter().for_each(|note| {
            let _ = writeln!(text, "note: {note}");
        });
        let _ = writeln!(text, "next: {next}");
        out.write_all(text.as_bytes())
    };
    // A closed pipe is the reader's choice; the files are there.
    let _ = printed;
    ExitCode::SUCCESS
}

fn failed(as_json: bool, error: &CertsError) -> ExitCode {
    if as_json {
        // To stdout, where whoever asked for JSON reads.
        let _ = writeln!(std::io::stdout(), "{:#}", json!({"ok": false, "error": error.to_string()}));
    }
    eprintln!("hnp-agent: {error}");
    ExitCode::FAILURE
}

/// The permission bits that a file has now.
fn mode(path: &Path) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path)
        .map_or_else(|_| "?".into(), |meta| format!("{:04o}", meta.permissions().mode() & 0o7777))
}

/// A certificate, one fact on each line.
fn describe(facts: &CertificateFacts, indent: &str, out: &mut String) {
    let mut line = |what: &str, value: &str| {
        let _ = writeln!(out, "{indent}{what:<11} {value}");
    };
    line("subject", &facts.subject);
    line("issuer", if facts.self_signed { "itself" } else { &facts.issuer });
    line("serial", &facts.serial);
    line("valid", &format!("{} to {} ({})", facts.not_before, facts.not_after, remaining(facts)));
    if !facts.names.is_empty() {
        line("names", &facts.names.join(", "));
    }
    match (facts.ca, facts.path_length) {
        (true, None) => line("CA", "yes"),
        (true, Some(0)) => line("CA", "yes, for leaves only (path length 0)"),
        (true, Some(length)) => line("CA", &format!("yes, path length {length}")),
        (false, _) => {}
    }
    if !facts.name_constraints.is_empty() {
        line("constraints", &facts.name_constraints.join(", "));
    }
    let usage: Vec<&str> =
        facts.key_usage.iter().copied().chain(facts.extended_key_usage.iter().map(String::as_str)).collect();
    line("usage", &if usage.is_empty() { "not said".to_owned() } else { usage.join(", ") });
    line("key", &facts.key);
    line("signature", &facts.signature);
    line("sha256", &facts.sha256);
    if facts.version != 3 {
        line("version", &facts.version.to_string());
    }
}

fn remaining(facts: &CertificateFacts) -> String {
    let length = crate::x509::span(std::time::Duration::from_secs(facts.remaining_seconds.unsigned_abs()));
    match facts.state {
        "expired" => format!("expired {length} ago"),
        "not-yet-valid" => "not valid yet".into(),
        _ => format!("{length} left"),
    }
}
