//! Who a certificate is for, from what a person types: OpenSSL's form, RFC 4514's, or a plain name.

use x509_parser::asn1_rs::{FromDer as _, Oid};
use x509_parser::prelude::X509Name;

use super::der::{SEQUENCE, SET, tlv};
use crate::x509::{self, SHORT};

const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// RFC 5280 appendix A.1, `ub-common-name`; OpenSSL refuses more, too.
pub(super) const MAX_COMMON_NAME: usize = 64;

const ALLOWED: &str = "allowed: a plain name, \"CN=runner,O=Example ORG\", or \"/O=Example ORG/CN=runner\", of the \
                       attributes CN, O, OU, C, ST, L, STREET, DC and UID";

/// A distinguished name, in DER.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subject(Vec<u8>);

impl Subject {
    /// A common name and nothing else; what is too long for one is cut.
    pub fn common_name(name: &str) -> Self {
        let end = name.char_indices().map(|(at, _)| at).nth(MAX_COMMON_NAME).unwrap_or(name.len());
        Self::of(&[vec![("CN".into(), name[..end].into())]]).expect("a short common name is a subject")
    }

    pub(super) fn from_der(der: &[u8]) -> Self {
        Self(der.to_vec())
    }

    /// A `Name` in DER.
    pub fn der(&self) -> &[u8] {
        &self.0
    }

    /// RFC 4514's text.
    pub fn text(&self) -> String {
        X509Name::from_der(&self.0)
            .map_or_else(|_| x509::hex(&self.0), |(_, name)| x509::distinguished_name(&name))
    }

    fn of(parts: &[Vec<(String, String)>]) -> Result<Self, String> {
        let mut name = Vec::new();
        for part in parts {
            let attributes: Result<Vec<_>, _> =
                part.iter().map(|(key, value)| attribute(key, value)).collect();
            let mut attributes = attributes?;
            attributes.sort(); // DER wants a set's values in order
            name.extend(tlv(SET, &attributes.concat()));
        }
        Ok(Self(tlv(SEQUENCE, &name)))
    }
}

impl std::str::FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || Self::of(&parts(text)?);
        read().map_err(|why| format!("{why}; {ALLOWED}"))
    }
}

type Parts = Vec<Vec<(String, String)>>;

fn parts(text: &str) -> Result<Parts, String> {
    if let Some(parts) = text.strip_prefix('/') {
        // OpenSSL's: in the order of the certificate, one attribute in each part.
        split(parts, '/').iter().map(|part| Ok(vec![pair(part)?])).collect()
    } else if text.contains('=') {
        // RFC 4514: the last one first.
        let of_part = |part: &String| split(part, '+').iter().map(|one| pair(one)).collect();
        split(text, ',').iter().rev().map(of_part).collect()
    } else {
        Ok(vec![vec![("CN".to_owned(), text.trim().to_owned())]])
    }
}

/// Parts between separators; a backslash takes its meaning from a separator, and stays.
fn split(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut escaped) = (vec![String::new()], false);
    for c in text.chars() {
        if c == separator && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        parts.last_mut().expect("there is always one").push(c);
    }
    parts
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not ATTRIBUTE=VALUE"))?;
    Ok((key.trim().to_ascii_uppercase(), unescape(value.trim_start())?))
}

/// RFC 4514 section 2.4, backwards.
fn unescape(text: &str) -> Result<String, String> {
    let wrong = || format!("the backslash in {text:?} stands before nothing that it could escape");
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'\\', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).map_err(|_| wrong())?;
                bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
                after
            }
            (b'\\', [special, after @ ..]) => {
                bytes.push(*special);
                after
            }
            (b'\\', []) => return Err(wrong()),
            (byte, after) => {
                bytes.push(*byte);
                after
            }
        };
    }
    String::from_utf8(bytes).map_err(|_| format!("{text:?} is not UTF-8"))
}

fn attribute(key: &str, value: &str) -> Result<Vec<u8>, String> {
    let known = SHORT.iter().find(|(_, short)| *short == key);
    let (oid, _) = known.ok_or_else(|| format!("{key:?} is no attribute of a subject"))?;
    let tag = match key {
        _ if value.trim().is_empty() => return Err(format!("{key} is empty")),
        _ if value.chars().any(char::is_control) => {
            return Err(format!("{key} has control characters in it"));
        }
        "C" if value.len() != 2 || !value.bytes().all(|b| b.is_ascii_uppercase()) => {
            return Err(format!("C={value} is not a country of two capital letters"));
        }
        "CN" if value.chars().count() > MAX_COMMON_NAME => {
            return Err(format!("CN has more than {MAX_COMMON_NAME} characters"));
        }
        "C" => PRINTABLE_STRING,
        "DC" if value.is_ascii() => IA5_STRING,
        "DC" => return Err(format!("DC={value} is not ASCII")),
        _ => UTF8_STRING,
    };
    let numbers: Vec<u64> = oid.split('.').filter_map(|number| number.parse().ok()).collect();
    let oid = Oid::from(&numbers).map_err(|_| format!("{key} has no identifier"))?;
    Ok(tlv(SEQUENCE, &[tlv(OBJECT_IDENTIFIER, oid.as_bytes()), tlv(tag, value.as_bytes())].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        text.parse::<Subject>().map(|subject| subject.text())
    }

    #[test]
    fn all_three_forms_are_read() {
        for (written, said) in [
            ("runner", "CN=runner"),
            ("CN=runner,O=Example ORG", "CN=runner,O=Example ORG"),
            ("/O=Example ORG/CN=runner", "CN=runner,O=Example ORG"),
            ("cn=a+ou=b, dc=corp, dc=example", "CN=a+OU=b,DC=corp,DC=example"),
            (r"CN=a\,b\2Cc,C=DE", r"CN=a\2Cb\2Cc,C=DE"),
            (r"/CN=a\/b/OU=x/OU=y", "OU=y,OU=x,CN=a/b"),
            ("CN=Jürgen", r"CN=J\C3\BCrgen"),
        ] {
            assert_eq!(read(written).as_deref(), Ok(said), "{written}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_allowed() {
        let long = format!("CN={}", "x".repeat(65));
        for (written, said) in [
            ("", "CN is empty"),
            ("CN=", "CN is empty"),
            ("CN=a,", "\"\" is not ATTRIBUTE=VALUE"),
            ("X=a", "\"X\" is no attribute"),
            ("C=de", "not a country"),
            ("CN=a\\", "backslash"),
            ("CN=a\nb", "control characters"),
            (&long, "more than 64"),
        ] {
            let error = read(written).unwrap_err();
            assert!(error.contains(said) && error.contains("allowed: "), "{error}");
        }
        assert_eq!(Subject::common_name(&"x".repeat(70)).text().len(), 3 + 64);
    }
}
