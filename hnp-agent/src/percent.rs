//! Percent-encoding (RFC 3986 section 2.1), as URLs of proxies and queries to the agent have it.

/// The bytes that a text stands for; `None` where a `%` is not followed by two hexadecimal digits.
pub fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (&[high, low], after) = rest.split_first_chunk()?;
        bytes.push(digit(high)? * 16 + digit(low)?);
        rest = after;
    }
    Some(bytes)
}

/// A text with all but the unreserved characters (RFC 3986 section 2.3) encoded.
pub fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_digits_stand_for_a_byte() {
        assert_eq!(percent_decoded("a%2Fb%00%fF").as_deref(), Some(&b"a/b\0\xff"[..]));
        for bad in ["%", "%4", "%4g", "%+f", "%%41"] {
            assert_eq!(percent_decoded(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_encoded_is_read_as_it_was() {
        let text = "team-a/web&x=1 %é~";
        assert_eq!(percent_encoded(text), "team-a%2Fweb%26x%3D1%20%25%C3%A9~");
        assert_eq!(percent_decoded(&percent_encoded(text)).as_deref(), Some(text.as_bytes()));
    }
}
