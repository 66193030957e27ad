//! `hnp-agent certs inspect`: what is in files, and what belongs together.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::{describe, failed};
use crate::certs::inspect::{Item, KeyFacts, What, inspect, place};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Of a private key nothing is shown but its kind and the hash of its public half. Exit code 1: something \
    could not be read. Examples:\n  \
    hnp-agent certs inspect client.crt client.key ca.crt\n  \
    hnp-agent certs inspect --json /etc/mtls/tls.crt | jq '.items[0].remaining_seconds'"
)]
pub(super) struct Args {
    /// PEM (any number of blocks) or DER.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// A file with the passphrase of keys that are encrypted, on one line; without it they are only named.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let items = match inspect(&args.files, args.passphrase_file.as_deref(), crate::clock::now()) {
        Ok(items) => items,
        Err(error) => return failed(args.json, &error),
    };
    let ok = !items.iter().any(|item| matches!(item.what, What::Broken { .. }));
    let mut out = std::io::stdout().lock();
    let written = if args.json {
        writeln!(out, "{:#}", json!({"ok": ok, "items": items}))
    } else {
        let mut text = String::new();
        items.iter().for_each(|item| write_item(item, &mut text));
        out.write_all(text.as_bytes())
    };
    if ok && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write_item(item: &Item, out: &mut String) {
    let place = place(item);
    let mut write = |what: &str, lines: &[(&str, String)]| {
        let _ = writeln!(out, "{place}: {what}");
        for (name, value) in lines {
            let _ = writeln!(out, "  {name:<11} {value}");
        }
    };
    let key = |facts: &KeyFacts| {
        let whose = if facts.belongs_to.is_empty() {
            "no certificate that was looked at".to_owned()
        } else {
            facts.belongs_to.join(", ")
        };
        [("key", facts.key.clone()), ("key sha256", facts.public_key_sha256.clone()), ("belongs to", whose)]
    };
    match &item.what {
        What::PrivateKey(facts) => write("private key", &key(facts)),
        What::PublicKey(facts) => write("public key", &key(facts)),
        What::CertificateRequest { subject, key: facts } => {
            let lines: Vec<_> = [("subject", subject.clone())].into_iter().chain(key(facts)).collect();
            write("certificate request", &lines);
        }
        What::EncryptedPrivateKey => {
            write("private key, encrypted; --passphrase-file FILE opens it", &[]);
        }
        What::RevocationList { issuer, this_update, next_update, revoked } => {
            let next = next_update.clone().unwrap_or_else(|| "not said".into());
            let lines = [
                ("issuer", issuer.clone()),
                ("made", this_update.clone()),
                ("next", next),
                ("revoked", revoked.to_string()),
            ];
            write("revocation list", &lines);
        }
        What::Other { label } => write(&format!("{label}, not looked at"), &[]),
        What::Broken { why } => write(why, &[]),
        What::Certificate(facts) => {
            let _ = writeln!(out, "{place}: certificate, {}", super::remaining(facts));
            describe(facts, "  ", out);
            let _ = writeln!(out, "  {:<11} {}", "key sha256", facts.public_key_sha256);
            for (name, places) in [("key in", &facts.key_in), ("issued by", &facts.issuer_in)] {
                if !places.is_empty() {
                    let _ = writeln!(out, "  {name:<11} {}", places.join(", "));
                }
            }
            facts.notes.iter().for_each(|note| {
                let _ = writeln!(out, "  note        {note}");
            });
        }
    }
}
