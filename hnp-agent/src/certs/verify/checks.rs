//! Each thing that can be wrong with a certificate, looked at by itself.

use std::sync::Arc;
use std::time::SystemTime;

use hnp_common::Reason;
use rustls::{AlertDescription, CertificateError, Error, RootCertStore};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{GeneralName, X509Certificate, X509Version};

use super::{Check, NOBODY, Question, State};
use crate::certs::authority::signs;
use crate::certs::facts::{CertificateFacts, address, purposes};
use crate::certs::judge::{Role, Wanted, judge};
use crate::certs::names::Name;
use crate::config::plan::Roots;
use crate::identity::files::load::{IdentityError, Opening, certificates, private_keys};
use crate::telemetry::rfc3339;
use crate::{serving, trust, x509};

impl Question {
    pub(super) fn key(&self, leaf: &CertificateDer<'_>) -> Check {
        const CHECK: &str = "key";
        let Some(path) = &self.key else {
            return Check::not_checked(
                CHECK,
                "no key was named; --key FILE compares it with the certificate",
            );
        };
        let read = || {
            let bytes = crate::files::read_secret(path)
                .map_err(|source| IdentityError::Unreadable { path: path.clone(), source })?;
            let opening = self.passphrase_file.as_deref().map(Opening::read).transpose()?;
            private_keys(path, &bytes, opening.as_ref())
        };
        let keys = match read() {
            Ok(keys) => keys,
            Err(error) => {
                let fix = match &error {
                    IdentityError::Encrypted { .. } => {
                        let (certificate, key) = (self.certificate.display(), path.display());
                        format!("hnp-agent certs verify {certificate} --key {key} --passphrase-file FILE")
                    }
                    IdentityError::TraditionallyEncrypted { .. } => {
                        let key = path.display();
                        format!(
                            "openssl pkcs8 -topk8 -in {key} -out {key}.new, which asks for the passphrase"
                        )
                    }
                    IdentityError::WrongPassphrase { .. } | IdentityError::NoPassphrase { .. } => {
                        "name the file with this key's passphrase, on one line".into()
                    }
                    _ => "name the file that holds the private key, in PEM".into(),
                };
                let code = Reason::IdentityUnavailable.code();
                return Check::failed(CHECK, error.to_string(), fix).with(code);
            }
        };
        if !keys.iter().any(|key| key.is_of(leaf)) {
            let (key, certificate) = (path.display(), self.certificate.display());
            let what = format!("{key} is not the key of the first certificate in {certificate}");
            let fix = format!("hnp-agent certs inspect {certificate} {key}, with any other keys there are");
            return Check::failed(CHECK, what, fix).with(Reason::IdentityUnavailable.code());
        }
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode() & 0o7777);
        if mode & 0o007 != 0 {
            let what = format!(
                "belongs to the certificate, but mode {mode:04o} lets every user here read or change it"
            );
            return Check::warning(CHECK, what, format!("chmod 0600 {}", path.display()));
        }
        Check::ok(CHECK, "belongs to the certificate".into())
    }

    /// The dates of all: verifiers like webpki do not look at a root's, others like OpenSSL do.
    pub(super) fn dates(&self, chain: &[CertificateDer<'_>], role: Role) -> Check {
        const CHECK: &str = "dates";
        let file = self.certificate.display();
        let of_roots = self.trusted();
        let is_root = |der: &&CertificateDer<'_>| chain.iter().any(|one| signs(der, one));
        let all = chain.iter().chain(of_roots.iter().filter(is_root));
        let mut end: Option<SystemTime> = None;
        for (index, der) in all.enumerate() {
            let Ok(parsed) = x509::parse(der) else { continue };
            let whose = match index {
                0 => "it".to_owned(),
                _ => format!("its issuer {}", x509::distinguished_name(parsed.subject())),
            };
            let (from, until) =
                (x509::moment(parsed.validity().not_before), x509::moment(parsed.validity().not_after));
            let renew = if index == 0 {
                format!("hnp-agent certs renew {file}")
            } else {
                "renew the issuer first".into()
            };
            if let Ok(since) = self.at.duration_since(until)
                && !since.is_zero()
            {
                let what = format!("{whose} has expired {} before, at {}", x509::span(since), rfc3339(until));
                return Check::failed(CHECK, what, renew).with(code(role, &CertificateError::Expired.into()));
            }
            if let Ok(missing) = from.duration_since(self.at)
                && !missing.is_zero()
            {
                let what =
                    format!("{whose} becomes valid only {} later, at {}", x509::span(missing), rfc3339(from));
                let fix = "is this machine's clock right? `date -u` says what it is here".to_owned();
                return Check::failed(CHECK, what, fix)
                    .with(code(role, &CertificateError::NotValidYet.into()));
            }
            end = Some(end.map_or(until, |end| end.min(until)));
        }
        let left = end.and_then(|end| end.duration_since(self.at).ok()).unwrap_or_default();
        Check::ok(CHECK, format!("valid for another {}", x509::span(left)))
    }

    /// The roots as certificates.
    pub(super) fn trusted(&self) -> Vec<CertificateDer<'static>> {
        match &self.roots {
            // What is wrong with the file was said when the verifier was made of it.
            Roots::File(path) => {
                let bytes = crate::files::read(path).unwrap_or_default();
                certificates(path, &bytes).unwrap_or_default()
            }
            Roots::System => rustls_native_certs::load_native_certs().certs,
            // It cannot be asked for: whose bundle it is decides a certificate's own ID.
            Roots::Spiffe(_) => Vec::new(),
        }
    }

    /// Whether it leads to a root, at a moment when it is valid, as what it is for and for a name it has.
    pub(super) fn path(
        &self,
        chain: &[CertificateDer<'_>],
        leaf: &X509Certificate<'_>,
        wanted: &Wanted,
        anchors: &Arc<RootCertStore>,
    ) -> Check {
        const CHECK: &str = "chain";
        let (from, until) =
            (x509::moment(leaf.validity().not_before), x509::moment(leaf.validity().not_after));
        let at = self.at.clamp(from.min(until), until);
        let fitting = match purposes(leaf) {
            (true, _) => Wanted::Client(Vec::new()),
            (false, true) => Wanted::Server(own_name(leaf).unwrap_or_else(|| NOBODY.into())),
            (false, false) => wanted.clone(),
        };
        let error = match judge(anchors, chain, &fitting, at) {
            // The verifier comes to the name when it has found the chain good.
            Ok(())
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {
                let above = chain.len() - 1;
                return Check::ok(
                    CHECK,
                    format!("leads to a trusted CA, through {above} certificate(s) in its file"),
                );
            }
            Err(error) => error,
        };
        let issuer = x509::distinguished_name(leaf.issuer());
        let file = self.certificate.display();
        let roots = match &self.roots {
            Roots::File(path) => path.display().to_string(),
            other @ (Roots::System | Roots::Spiffe(_)) => other.to_string(),
        };
        let (what, fix) = match &error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => (
                format!("no CA in {roots} leads to its issuer \"{issuer}\""),
                format!(
                    "hnp-agent certs inspect {file} {roots}: compare issuer and subjects; a missing intermediate goes behind \
                         the certificate in {file}"
                ),
            ),
            Error::InvalidCertificate(CertificateError::BadSignature) => (
                format!(
                    "a CA called as its issuer \"{issuer}\" is in {roots}, with another key: the CA was made anew"
                ),
                format!("have it issued again: hnp-agent certs issue {} --force", issue_word(wanted.role())),
            ),
            other => (format!("{other}"), format!("hnp-agent certs inspect {file} {roots}")),
        };
        Check::failed(CHECK, what, fix).with(code(wanted.role(), &error))
    }

    /// The same for a CA, which verifiers take from no peer: each one's signature, up to a root.
    pub(super) fn path_of_ca(&self, chain: &[CertificateDer<'_>]) -> Check {
        const CHECK: &str = "chain";
        let roots = self.trusted();
        let linked = chain.windows(2).all(|pair| signs(&pair[1], &pair[0]));
        let top = &chain[chain.len() - 1];
        let anchored = roots.iter().any(|root| signs(root, top));
        if linked && anchored {
            return Check::ok(CHECK, "its issuers lead to a trusted CA".into());
        }
        let issuer = x509::parse(top).map(|top| x509::distinguished_name(top.issuer())).unwrap_or_default();
        let file = self.certificate.display();
        let what = if linked {
            format!("no trusted CA has signed it as \"{issuer}\"")
        } else {
            format!(
                "the certificates in {file} do not stand in the order in which they have issued each other"
            )
        };
        let fix =
            format!("hnp-agent certs inspect {file}, with the CA's file: it says what was issued by what");
        Check::failed(CHECK, what, fix)
    }

    pub(super) fn name(&self, leaf: &X509Certificate<'_>, wanted: &Wanted) -> Check {
        const CHECK: &str = "name";
        let Some(name) = &self.name else {
            return Check::not_checked(
                CHECK,
                "nobody was named; --name or --spiffe-id says whom the other side expects",
            );
        };
        let all: Vec<&GeneralName<'_>> = x509::alternative_names(leaf).collect();
        let uris: Vec<&str> = all
            .iter()
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
            .collect();
        let found = match name {
            // X.509-SVID section 2: exactly one URI.
            Name::Uri(uri) => uris == [uri.as_str()],
            Name::Dns(_) | Name::Ip(_) => self.has_name(leaf, wanted),
        };
        if found {
            return Check::ok(CHECK, format!("is for {}", name.text()));
        }
        let names = CertificateFacts::of(leaf.as_raw(), self.at).map(|facts| facts.names).unwrap_or_default();
        let what = match names.as_slice() {
            [] => format!("names nobody in its subjectAltName, and {} is expected", name.text()),
            names => format!("is for {}, and {} is expected", names.join(", "), name.text()),
        };
        let option = match name {
            Name::Dns(_) => "--name",
            Name::Ip(_) => "--ip",
            Name::Uri(uri) if uri.starts_with("spiffe:") => "--spiffe-id",
            Name::Uri(_) => "--uri",
        };
        let fix = format!(
            "hnp-agent certs issue {} {option} {} --force, or ask for a name it has",
            issue_word(wanted.role()),
            name.text()
        );
        Check::failed(CHECK, what, fix).with(code(wanted.role(), &CertificateError::NotValidForName.into()))
    }

    /// As the other side compares names.
    pub(super) fn has_name(&self, leaf: &X509Certificate<'_>, wanted: &Wanted) -> bool {
        match wanted {
            Wanted::Client(names) => {
                serving::certificate::ClientCertificate::of(leaf.as_raw()).is_ok_and(|certificate| {
                    let mut own = certificate.dns_names().map(str::to_ascii_lowercase);
                    own.any(|own| names.iter().any(|name| name.matches_dns(&own)))
                })
            }
            Wanted::Server(name) => {
                let der = CertificateDer::from(leaf.as_raw());
                let parsed = rustls::server::ParsedCertificate::try_from(&der);
                let name = rustls_pki_types::ServerName::try_from(name.as_str());
                matches!((parsed, name), (Ok(parsed), Ok(name)) if rustls::client::verify_server_name(&parsed, &name).is_ok())
            }
        }
    }

    /// The verdict of the verifier that the agent would use, were it the other side.
    pub(super) fn other_side(
        &self,
        chain: &[CertificateDer<'_>],
        wanted: &Wanted,
        anchors: &Arc<RootCertStore>,
    ) -> Check {
        let (check, judge_is) = match wanted.role() {
            Role::Client => ("what a server says", "a server"),
            Role::Server => ("what a client says", "a client"),
        };
        let error = match judge(anchors, chain, wanted, self.at) {
            Ok(()) => {
                let what = match wanted {
                    Wanted::Client(_) => "accepts it".to_owned(),
                    Wanted::Server(name) => format!("accepts it for {name}"),
                };
                return Check::ok(check, what);
            }
            Err(error) => error,
        };
        if let (
            Wanted::Server(name),
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ),
        ) = (wanted, &error)
            && name == NOBODY
            && matches!(self.name, Some(Name::Uri(_)))
        {
            return Check::not_checked(
                check,
                "it names no host; who asks for a SPIFFE ID goes by the checks above",
            );
        }
        let alert = match &error {
            Error::InvalidCertificate(error) => {
                let alert = AlertDescription::from(error.clone());
                format!("the alert {alert:?} ({})", u8::from(alert))
            }
            _ => "an alert".to_owned(),
        };
        let seen = match wanted.role() {
            Role::Client => {
                format!("; the agent that presents it reports {}", Reason::ClientCertificateRefused.code())
            }
            Role::Server => String::new(),
        };
        let code = code(wanted.role(), &error);
        Check {
            check,
            state: State::Failed,
            what: format!("{judge_is} refuses it with {alert}: {error}{seen}"),
            fix: Some(format!("hnp-agent explain {code}")),
            reason: Some(code),
        }
    }
}

/// Whether it may be presented as what it is for.
pub(super) fn usage(leaf: &X509Certificate<'_>, roles: &[Role]) -> Check {
    const CHECK: &str = "usage";
    let (client, server) = purposes(leaf);
    let refused = Error::from(CertificateError::InvalidPurpose);
    for role in roles {
        let (may, word) = match role {
            Role::Client => (client, "clientAuth"),
            Role::Server => (server, "serverAuth"),
        };
        let what = match (leaf.is_ca(), may, leaf.key_usage()) {
            (true, ..) => "it is a CA's certificate, which nobody takes from a peer".to_owned(),
            (_, false, _) => format!("its extendedKeyUsage does not have {word}"),
            (_, true, Ok(Some(usage))) if !usage.value.digital_signature() => {
                "its keyUsage does not let it sign (digitalSignature), as TLS has it do".to_owned()
            }
            (_, true, _) => continue,
        };
        let fix = format!("have another one issued: hnp-agent certs issue {} --force", issue_word(*role));
        return Check::failed(CHECK, what, fix).with(code(*role, &refused));
    }
    let words: Vec<_> = roles.iter().map(|role| issue_word(*role)).collect();
    Check::ok(CHECK, format!("may be presented by a {}", words.join(" and a ")))
}

pub(super) fn version(certificate: &X509Certificate<'_>) -> Check {
    match certificate.version() {
        X509Version::V3 => Check::ok("version", "X.509 version 3".into()),
        old => Check::warning(
            "version",
            format!(
                "X.509 version {}, as the vendor's recipe makes it with OpenSSL 3.0: OpenSSL, nginx and hnp take it, \
                 others (rustls) do not",
                old.0.saturating_add(1)
            ),
            "hnp-agent certs renew makes it version 3, with the same name and key".into(),
        ),
    }
}

/// The name under which hnp would count it.
fn code(role: Role, error: &Error) -> &'static str {
    match role {
        Role::Client => serving::reason::of(error).0.code(),
        Role::Server => trust::reason_of(error).code(),
    }
}

const fn issue_word(role: Role) -> &'static str {
    match role {
        Role::Client => "client",
        Role::Server => "server",
    }
}

/// The first name or address a client could ask it for.
pub(super) fn own_name(certificate: &X509Certificate<'_>) -> Option<String> {
    x509::alternative_names(certificate).find_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.replace('*', "any")),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    })
}
