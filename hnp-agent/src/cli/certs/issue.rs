//! `hnp-agent certs issue`: a key and a certificate for it, in one step.

use std::net::IpAddr;
use std::process::ExitCode;

use clap::Subcommand;

use super::{CaFiles, Making, Written, shown};
use crate::certs::names::{self, Name, Permitted};
use crate::certs::when::{self, Lifetime, Until};
use crate::certs::{Authority, CertsError, Purpose, Request};

/// Arguments of `issue`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    whom: Whom,
}

#[derive(Debug, Subcommand)]
enum Whom {
    /// For the side that connects: client.crt and client.key, for 90 days.
    #[command(after_help = "Examples:\n  \
        hnp-agent certs issue client\n  \
        hnp-agent certs issue client --subject \"/O=Example ORG/CN=Client\" --key-type rsa2048\n  \
        hnp-agent certs issue client --spiffe-id spiffe://example.org/ns/ci/sa/runner --lifetime 24h")]
    Client(Leaf),
    /// For the side that is connected to: server.crt and server.key, for a year.
    #[command(after_help = "Examples:\n  \
        hnp-agent certs issue server --name manager.example\n  \
        hnp-agent certs issue server --name '*.pods.example' --ip 10.0.0.7 --key-type rsa2048")]
    Server(Leaf),
    /// A CA below this one, to issue from elsewhere: intermediate.crt and intermediate.key, for a year.
    #[command(
        after_help = "Whoever holds its key can issue for anybody within its constraints. Examples:\n  \
        hnp-agent certs issue intermediate --permit-dns pods.example\n  \
        hnp-agent certs issue client --ca intermediate.crt --ca-key intermediate.key"
    )]
    Intermediate(Intermediate),
}

#[derive(Debug, clap::Args)]
struct Leaf {
    /// A DNS name it vouches for; may be given several times.
    #[arg(long, value_name = "DNS", value_parser = names::dns)]
    name: Vec<Name>,
    /// An address it vouches for; may be given several times.
    #[arg(long, value_name = "ADDRESS", value_parser = names::ip)]
    ip: Vec<Name>,
    /// A URI it vouches for; may be given several times.
    #[arg(long, value_name = "URI", value_parser = names::uri)]
    uri: Vec<Name>,
    /// The SPIFFE ID it vouches for: the one URI in it.
    #[arg(long, value_name = "ID", value_parser = names::spiffe_id, conflicts_with = "uri")]
    spiffe_id: Option<Name>,
    /// It may be presented by clients and by servers.
    #[arg(long)]
    both: bool,
    #[command(flatten)]
    ca: CaFiles,
    #[command(flatten)]
    making: Making,
    /// What the files are called: NAME.crt and NAME.key.
    #[arg(long, value_name = "NAME")]
    out_name: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Intermediate {
    /// A DNS name for which, and for all below, it may issue; other DNS names are refused then. May be given
    /// several times.
    #[arg(long, value_name = "DNS", value_parser = names::permit_dns)]
    permit_dns: Vec<Permitted>,
    /// A network for whose addresses it may issue; other addresses are refused then. May be given several times.
    #[arg(long, value_name = "NETWORK", value_parser = names::permit_ip)]
    permit_ip: Vec<Permitted>,
    #[command(flatten)]
    ca: CaFiles,
    #[command(flatten)]
    making: Making,
    /// What the files are called: NAME.crt and NAME.key.
    #[arg(long, value_name = "NAME", default_value = "intermediate")]
    out_name: String,
}

pub(super) fn run(args: &Args) -> ExitCode {
    match &args.whom {
        Whom::Client(leaf) => leaf.making.outcome(leaf.issue("client", leaf.both, when::CLIENT)),
        Whom::Server(leaf) => leaf.making.outcome(leaf.issue("server", true, when::SERVER)),
        Whom::Intermediate(intermediate) => intermediate.making.outcome(intermediate.issue()),
    }
}

impl Leaf {
    fn issue(&self, word: &str, server: bool, lifetime: Lifetime) -> Result<Written, CertsError> {
        let names: Vec<Name> =
            self.name.iter().chain(&self.ip).chain(&self.uri).chain(&self.spiffe_id).cloned().collect();
        let host = names.iter().find(|name| !matches!(name, Name::Uri(_))).filter(|_| server).cloned();
        let purpose = Purpose::Leaf { client: word == "client" || self.both, server, names };
        make(
            &self.making,
            &self.ca,
            purpose,
            lifetime,
            self.out_name.as_deref().unwrap_or(word),
            |certificate, key, ca| {
                let name = host.map(|name| format!(" --name {}", example(&name))).unwrap_or_default();
                format!("hnp-agent certs verify {certificate} --key {key} --ca {ca}{name}")
            },
        )
    }
}

impl Intermediate {
    fn issue(&self) -> Result<Written, CertsError> {
        let permitted = self.permit_dns.iter().chain(&self.permit_ip).cloned().collect();
        let purpose = Purpose::Intermediate { permitted };
        make(&self.making, &self.ca, purpose, when::INTERMEDIATE, &self.out_name, |certificate, key, _| {
            format!("hnp-agent certs issue client --ca {certificate} --ca-key {key}")
        })
    }
}

fn make(
    making: &Making,
    ca: &CaFiles,
    purpose: Purpose,
    lifetime: Lifetime,
    name: &str,
    next: impl FnOnce(&str, &str, &str) -> String,
) -> Result<Written, CertsError> {
    let request = Request {
        subject: making.subject.clone(),
        purpose,
        key: making.key_type,
        until: making.end.until().unwrap_or(Until::For(lifetime)),
    };
    let issue = || {
        let now = crate::clock::now();
        Authority::load(&ca.ca, &ca.ca_key, ca.passphrase_file.as_deref(), now)?.issue(&request, now)
    };
    making.write(name, issue, |certificate, key| next(&shown(certificate), &shown(key), &shown(&ca.ca)))
}

/// A name that a wildcard stands for.
fn example(name: &Name) -> String {
    match name {
        Name::Dns(name) => name.replace('*', "any"),
        Name::Ip(IpAddr::V4(address)) => address.to_string(),
        Name::Ip(IpAddr::V6(address)) => address.to_string(),
        Name::Uri(uri) => uri.clone(),
    }
}
