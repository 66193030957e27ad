//! Whether a certificate would do its work: each thing that can be wrong by itself, and what the other side would say.
//!
//! A verifier stops at the first mistake; people want all of them. So each is looked at alone, the chain at a
//! moment when the certificate is valid and for a name that it has, and at last the agent's own verifiers are asked
//! for the verdict on everything at once.

mod checks;

use std::path::PathBuf;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::{X509Certificate, X509Version};

pub(crate) use super::authority::signs;
use super::facts::{CertificateFacts, purposes};
pub use super::judge::Role;
use super::judge::Wanted;
use super::names::Name;
use crate::config::end_to_end::ClientName;
use crate::config::plan::{NamePattern, Roots, Trust};
use crate::identity::files::load::{IdentityError, certificates};
use crate::{trust, x509};
use checks::{own_name, usage, version};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The certificate's file, PEM or DER.
    pub certificate: PathBuf,
    /// Its key's.
    pub key: Option<PathBuf>,
    /// What opens the key, if it is encrypted.
    pub passphrase_file: Option<PathBuf>,
    /// What the other side trusts.
    pub roots: Roots,
    /// Whom the other side expects.
    pub name: Option<Name>,
    /// For what it is presented; what it says itself, where nothing is said.
    pub usage: Option<Role>,
    /// When.
    pub at: SystemTime,
}

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Nothing failed.
    pub ok: bool,
    /// What it says; missing where it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateFacts>,
    /// What was looked at.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Which.
    pub check: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub what: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The code under which hnp, were it the other side, would log and count it; see `hnp-agent explain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works with some.
    Warning,
    /// It does not work.
    Failed,
    /// Nothing was said to look at.
    NotChecked,
}

impl State {
    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::NotChecked => "not checked",
        }
    }
}

impl Question {
    /// Looks at everything.
    pub fn answer(&self) -> Answer {
        let file = self.certificate.display();
        let chain = match self.chain() {
            Ok(chain) => chain,
            Err(error) => return Answer::unreadable(&error),
        };
        let (parsed, facts) = match (x509::parse(&chain[0]), CertificateFacts::of(&chain[0], self.at)) {
            (Ok(parsed), Ok(facts)) => (parsed, facts),
            (Err(why), _) | (_, Err(why)) => return Answer::unreadable(&format!("{file}: {why}")),
        };
        let roles = self.roles(&parsed);
        let wanted: Vec<Wanted> = roles.iter().map(|role| self.wanted(*role, &parsed)).collect();
        let mut checks = vec![version(&parsed), self.key(&chain[0])];
        match trust::load::load(&Trust::of_roots("ca".into(), self.roots.clone())) {
            Ok(_) if parsed.is_ca() && self.usage.is_none() => {
                checks.push(self.dates(&chain, roles[0]));
                checks.push(self.path_of_ca(&chain));
                let what =
                    "is a CA's certificate, which issues and is not presented; verify what it has issued";
                checks.push(Check::not_checked("usage", what));
            }
            Ok(loaded) => {
                checks.push(self.dates(&chain, roles[0]));
                checks.push(self.path(&chain, &parsed, &wanted[0], &loaded.anchors));
                checks.extend([usage(&parsed, &roles), self.name(&parsed, &wanted[0])]);
                checks.extend(wanted.iter().map(|wanted| self.other_side(&chain, wanted, &loaded.anchors)));
            }
            Err(error) => {
                let fix = "name the other side's CA with --ca FILE, or --ca system for the system's roots";
                checks.push(Check::failed("chain", error.to_string(), fix.into()));
                checks.extend([usage(&parsed, &roles), self.name(&parsed, &wanted[0])]);
            }
        }
        let ok = checks.iter().all(|check| check.state != State::Failed);
        Answer { ok, certificate: Some(facts), checks }
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let path = &self.certificate;
        let bytes = crate::files::read(path)
            .map_err(|source| IdentityError::Unreadable { path: path.clone(), source })?;
        if bytes.first() == Some(&super::der::SEQUENCE) && x509::parse(&bytes).is_ok() {
            return Ok(vec![CertificateDer::from(bytes)]);
        }
        certificates(path, &bytes)
    }

    /// As what it is presented; never empty.
    fn roles(&self, certificate: &X509Certificate<'_>) -> Vec<Role> {
        match (self.usage, purposes(certificate)) {
            (Some(role), _) => vec![role],
            (None, (false, true)) => vec![Role::Server],
            (None, (true, true))
                if own_name(certificate).is_some() && certificate.version() == X509Version::V3 =>
            {
                vec![Role::Client, Role::Server]
            }
            (None, (true, _) | (false, false)) => vec![Role::Client],
        }
    }

    fn wanted(&self, role: Role, certificate: &X509Certificate<'_>) -> Wanted {
        let host = |name: &Name| match name {
            Name::Dns(name) => Some(name.clone()),
            Name::Ip(address) => Some(address.to_string()),
            Name::Uri(_) => None,
        };
        match (role, &self.name) {
            (Role::Client, None) => Wanted::Client(Vec::new()),
            (Role::Client, Some(Name::Dns(name))) => {
                Wanted::Client(vec![ClientName::Dns(NamePattern::Exact(name.as_str().into()))])
            }
            (Role::Client, Some(Name::Uri(uri))) => {
                Wanted::Client(vec![ClientName::Uri(uri.as_str().into())])
            }
            // Servers know clients by no address.
            (Role::Client, Some(Name::Ip(address))) => {
                Wanted::Client(vec![ClientName::Dns(NamePattern::Exact(address.to_string().into()))])
            }
            (Role::Server, name) => {
                let asked = name.as_ref().and_then(host).or_else(|| own_name(certificate));
                Wanted::Server(asked.unwrap_or_else(|| NOBODY.into()))
            }
        }
    }
}

/// What a certificate says by itself, whoever judges it: its version, and whether it may be presented as `role`.
///
/// # Errors
/// The parser's words.
pub fn by_itself(der: &[u8], role: Role) -> Result<[Check; 2], String> {
    let parsed = x509::parse(der)?;
    Ok([version(&parsed), usage(&parsed, &[role])])
}

/// A name that no certificate has (RFC 6761 section 6.4).
const NOBODY: &str = "nobody.invalid";

impl Answer {
    fn unreadable(error: &dyn std::fmt::Display) -> Self {
        let fix = "name a file with a certificate, in PEM or DER; `hnp-agent certs inspect` shows what is in a file";
        Self {
            ok: false,
            certificate: None,
            checks: vec![Check::failed("file", error.to_string(), fix.into())],
        }
    }
}

impl Check {
    fn ok(check: &'static str, what: String) -> Self {
        Self { check, state: State::Ok, what, fix: None, reason: None }
    }

    fn warning(check: &'static str, what: String, fix: String) -> Self {
        Self { check, state: State::Warning, what, fix: Some(fix), reason: None }
    }

    fn failed(check: &'static str, what: String, fix: String) -> Self {
        Self { check, state: State::Failed, what, fix: Some(fix), reason: None }
    }

    fn not_checked(check: &'static str, what: &str) -> Self {
        Self { check, state: State::NotChecked, what: what.into(), fix: None, reason: None }
    }

    fn with(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }
}
