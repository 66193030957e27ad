//! The few bytes of DER that rcgen does not write: a certificate with names taken over byte for byte.
//!
//! rcgen keeps one attribute of each type in a name, in a string type of its choice. Issuers are found by comparing
//! names as bytes, so a CA called `DC=corp,DC=example` could not issue with it, and no such subject be renewed.

use x509_parser::asn1_rs::{Any, FromDer as _};

pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
pub(super) const OCTET_STRING: u8 = 0x04;
const BIT_STRING: u8 = 0x03;
/// `[0]`, around the version.
const VERSION: u8 = 0xa0;

/// A value with its tag and length.
pub(super) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short @ 0..0x80) => out.push(short),
        _ => {
            let length = content.len().to_be_bytes();
            let zeros = length.iter().take_while(|byte| **byte == 0).count();
            let length = &length[zeros..];
            out.push(0x80 | u8::try_from(length.len()).expect("a length has at most eight bytes"));
            out.extend_from_slice(length);
        }
    }
    out.extend_from_slice(content);
    out
}

/// The certificate again, with these names and a new signature; `None` when it is no certificate of version 3.
pub(super) fn with_names<E>(
    certificate: &[u8],
    issuer: &[u8],
    subject: &[u8],
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
) -> Option<Result<Vec<u8>, E>> {
    let [signed, algorithm, _] = children(content(certificate)?)?[..] else { return None };
    // version, serial, signature, issuer, validity, subject, and what follows (RFC 5280 section 4.1)
    let mut fields = children(content(signed)?)?;
    if fields.len() < 7 || fields[0].first() != Some(&VERSION) {
        return None;
    }
    (fields[3], fields[5]) = (issuer, subject);
    let signed = tlv(SEQUENCE, &fields.concat());
    let signature = match sign(&signed) {
        Ok(signature) => [&[0], &*signature].concat(),
        Err(error) => return Some(Err(error)),
    };
    Some(Ok(tlv(SEQUENCE, &[&*signed, algorithm, &tlv(BIT_STRING, &signature)].concat())))
}

/// What a tag and a length stand around.
fn content(der: &[u8]) -> Option<&[u8]> {
    Any::from_der(der).ok().map(|(_, any)| any.data)
}

/// The values in a sequence's content, each with its tag and length.
fn children(mut content: &[u8]) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    while !content.is_empty() {
        let (rest, _) = Any::from_der(content).ok()?;
        found.push(&content[..content.len() - rest.len()]);
        content = rest;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_the_shortest() {
        for (length, head) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (256, &[4, 0x82, 1, 0]),
            (65536, &[4, 0x83, 1, 0, 0]),
        ] {
            let made = tlv(OCTET_STRING, &vec![7; length]);
            assert_eq!(&made[..head.len()], head);
            assert_eq!(made.len(), head.len() + length);
            assert_eq!(content(&made).unwrap().len(), length);
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_names() {
        for bad in [&[][..], &[0x30, 0], &[0x30, 3, 1, 1, 0], &[0x30, 6, 0x30, 0, 0x30, 0, 3, 0]] {
            assert!(with_names(bad, &[], &[], |_| Ok::<_, ()>(Vec::new())).is_none());
        }
    }
}
