//! What certificates say, read in one place: dates, serials and names as logs, headers and people get them.
//!
//! Any version is read, 1 included: what is accepted is decided elsewhere. Names come from whoever got a
//! certificate signed and go into logs, headers and terminals, so whatever means something to a reader is
//! written as hexadecimal.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::extensions::GeneralSubtree;
use x509_parser::prelude::{ASN1Time, FromDer as _, GeneralName, ParsedExtension, X509Certificate, X509Name};

/// A certificate and nothing after it.
///
/// # Errors
/// The parser's words.
pub fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(format!("{} bytes follow it", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// The serial in lower-case hexadecimal, without leading zeros beyond whole bytes.
pub fn serial(certificate: &X509Certificate<'_>) -> String {
    let serial = certificate.raw_serial();
    let zeros = serial.iter().take_while(|byte| **byte == 0).count().min(serial.len().saturating_sub(1));
    hex(&serial[zeros..])
}

/// A date of a certificate, which may lie before 1970.
pub fn moment(date: ASN1Time) -> SystemTime {
    let seconds = date.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moment =
        if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    moment.unwrap_or(UNIX_EPOCH)
}

/// A span in the unit a person would use.
pub fn span(length: Duration) -> String {
    match length.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// The subject's alternative names.
pub fn alternative_names<'a>(
    certificate: &'a X509Certificate<'_>,
) -> impl Iterator<Item = &'a GeneralName<'a>> {
    // A second such extension is a mistake that webpki refuses as well.
    let names = certificate.subject_alternative_name().ok().flatten();
    names.into_iter().flat_map(|extension| &extension.value.general_names)
}

/// What a CA's name constraints say of URIs (RFC 5280 section 4.2.1.10).
pub struct UriConstraints {
    permitted: Vec<String>,
    excluded: Vec<String>,
}

/// A CA's name constraints, where they say anything of URIs.
pub fn uri_constraints(ca: &X509Certificate<'_>) -> Option<UriConstraints> {
    let constraints = ca.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::NameConstraints(constraints) => Some(constraints),
        _ => None,
    })?;
    let uris = |trees: &Option<Vec<GeneralSubtree<'_>>>| -> Vec<String> {
        let all = trees.iter().flatten();
        all.filter_map(|tree| match tree.base {
            GeneralName::URI(host) => Some(host.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
    };
    let (permitted, excluded) = (uris(&constraints.permitted_subtrees), uris(&constraints.excluded_subtrees));
    (!permitted.is_empty() || !excluded.is_empty()).then_some(UriConstraints { permitted, excluded })
}

impl UriConstraints {
    /// Whether URIs of a host are allowed.
    pub fn allow(&self, host: &str) -> bool {
        // A leading dot stands for everything below, and not for the name itself.
        let is = |constraint: &String| match constraint.starts_with('.') {
            true => host.len() > constraint.len() && host.ends_with(&**constraint),
            false => host == constraint,
        };
        (self.permitted.is_empty() || self.permitted.iter().any(is)) && !self.excluded.iter().any(is)
    }
}

/// RFC 4514: the last part first, attributes by their short names.
pub fn distinguished_name(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter_rdn().collect();
    let mut text = String::new();
    for part in parts.into_iter().rev() {
        for (index, attribute) in part.iter().enumerate() {
            if !text.is_empty() {
                text.push(if index == 0 { ',' } else { '+' });
            }
            let oid = attribute.attr_type().to_id_string();
            let short = SHORT.iter().find(|(known, _)| *known == oid).map_or(&*oid, |(_, short)| *short);
            text.push_str(short);
            text.push('=');
            match attribute.as_str() {
                Ok(value) => escape(value, &mut text),
                // Not a string that can be read: its bytes, as section 2.4 has them.
                Err(_) => {
                    text.push('#');
                    text.push_str(&hex(attribute.as_slice()));
                }
            }
        }
    }
    text
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whatever could end a value, a header or a line, as hexadecimal pairs (RFC 4514 section 2.4).
fn escape(value: &str, out: &mut String) {
    for (at, byte) in value.bytes().enumerate() {
        let at_an_end = at == 0 || at + 1 == value.len();
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' | b'=' | 0..=0x1f | 0x7f.. => {
                let _ = write!(out, "\\{byte:02X}");
            }
            b' ' | b'#' if at_an_end => {
                let _ = write!(out, "\\{byte:02X}");
            }
            _ => out.push(char::from(byte)),
        }
    }
}

/// The table of RFC 4514 section 3.
pub(crate) const SHORT: [(&str, &str); 9] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_can_end_it() {
        let mut out = String::new();
        escape(" a,b+c\"d\\e;f=g\r\nX: y# ", &mut out);
        assert_eq!(out, "\\20a\\2Cb\\2Bc\\22d\\5Ce\\3Bf\\3Dg\\0D\\0AX: y#\\20");
        assert!(out.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
    }

    #[test]
    fn spans_are_in_the_unit_of_people() {
        let said = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(|s| span(Duration::from_secs(s)));
        assert_eq!(said, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days"]);
    }
}
