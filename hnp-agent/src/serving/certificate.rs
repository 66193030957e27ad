//! What a pod's certificate says, for the access log and for upstreams (`X-Forwarded-Client-Cert`).
//!
//! All of it comes from whoever got a certificate signed, and goes into logs and headers: names are written as
//! RFC 4514 has them, with everything that means something to a reader as hexadecimal.

use std::fmt::Write as _;
use std::time::SystemTime;

use rustls::{CertificateError, Error, ProtocolVersion, ServerConnection};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::GeneralName;

use crate::config::plan::NamePattern;
use crate::x509::{self, alternative_names, distinguished_name, hex};

/// A pod's TLS that ended here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientTls {
    /// Such as `TLSv1.3`.
    pub version: &'static str,
    /// The session was resumed.
    pub resumed: bool,
    /// What was verified; `None` where the route asks for none.
    pub certificate: Option<ClientCertificate>,
}

/// A pod's certificate, verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientCertificate {
    /// RFC 4514 text, the most specific part first: `CN=runner,O=Example`.
    pub subject: String,
    /// The subject's common name.
    pub common_name: Option<String>,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// URIs among its names, such as a SPIFFE ID.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Last moment it is valid.
    pub not_after: SystemTime,
    /// The value of `X-Forwarded-Client-Cert`.
    pub forwarded: String,
}

impl ClientCertificate {
    /// Reads a leaf.
    ///
    /// # Errors
    /// It is no certificate.
    pub fn of(der: &[u8]) -> Result<Self, Error> {
        let certificate = x509::parse(der).map_err(|_| CertificateError::BadEncoding)?;
        let subject = distinguished_name(certificate.subject());
        let common_name = certificate.subject().iter_common_name().next();
        let common_name = common_name.and_then(|name| name.as_str().ok()).map(str::to_owned);
        let (mut uris, mut dns) = (Vec::new(), Vec::new());
        for name in alternative_names(&certificate) {
            match name {
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                _ => {}
            }
        }
        Ok(Self {
            forwarded: forwarded(der, &subject, &uris, &dns),
            subject,
            common_name,
            serial: x509::serial(&certificate),
            uris,
            dns,
            not_after: x509::moment(certificate.validity().not_after),
        })
    }

    /// The names that stand for a host: the DNS names, or the common name of a certificate that has no other.
    pub fn dns_names(&self) -> impl Iterator<Item = &str> {
        let alone = self.uris.is_empty() && self.dns.is_empty();
        self.dns.iter().chain(self.common_name.iter().filter(move |_| alone)).map(String::as_str)
    }

    /// Whether it is past its last moment.
    pub fn has_expired(&self, now: SystemTime) -> bool {
        self.not_after < now
    }

    /// The name that says most: the first URI, else the first DNS name.
    pub fn alternative_name(&self) -> Option<&str> {
        self.uris.first().or(self.dns.first()).map(String::as_str)
    }
}

/// The names that a server's certificate is for.
pub(super) fn served_names(der: &[u8]) -> Vec<NamePattern> {
    let Ok(certificate) = x509::parse(der) else { return Vec::new() };
    let names = alternative_names(&certificate).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let pattern = |name: String| match name.strip_prefix("*.") {
        Some(parent) => NamePattern::Below(parent.into()),
        None => NamePattern::Exact(name.into()),
    };
    names.map(pattern).collect()
}

/// The version of a session, in the access log's words.
pub(super) fn version(session: &ServerConnection) -> &'static str {
    match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLS",
    }
}

/// Envoy's form: pairs by semicolons; what has marks of the form in it stands in quotes.
fn forwarded(der: &[u8], subject: &str, uris: &[String], dns: &[String]) -> String {
    let mut text = format!("Hash={};Subject=\"{subject}\"", hex(&Sha256::digest(der)));
    for (key, values) in [("URI", uris), ("DNS", dns)] {
        for value in values {
            let value = printable(value);
            if value.contains([',', ';', '=', '"', ' ']) {
                let _ = write!(text, ";{key}=\"{}\"", value.replace('"', "\\\""));
            } else {
                let _ = write!(text, ";{key}={value}");
            }
        }
    }
    text
}

/// As a URI may be written: all else percent-encoded, and a backslash too, which escapes in quotes.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'\\' | 0..=0x20 | 0x7f.. => {
                let _ = write!(out, "%{byte:02X}");
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_form() {
        let uris = ["spiffe://test/ns/a/sa/b".to_owned(), "urn:x;\"y\\\r\n=,z".to_owned()];
        let text = forwarded(b"der", "CN=a", &uris, &["p.test".to_owned()]);
        let hash = hex(&Sha256::digest(b"der"));
        assert_eq!(
            text,
            format!(
                "Hash={hash};Subject=\"CN=a\";URI=spiffe://test/ns/a/sa/b;URI=\"urn:x;\\\"y%5C%0D%0A=,z\";DNS=p.test"
            )
        );
    }
}
