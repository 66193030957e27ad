//! Byte classes and field lists of HTTP/1.1 that several files here agree on.

/// Whether a byte may stand in a token: method and field names (RFC 9110 section 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'#'
            | b'$'
            | b'%'
            | b'&'
            | b'\''
            | b'*'
            | b'+'
            | b'-'
            | b'.'
            | b'^'
            | b'_'
            | b'`'
            | b'|'
            | b'~'
    ) || byte.is_ascii_alphanumeric()
}

/// Whether a byte may stand in a field value (RFC 9110 section 5.5): visible, space, tab, obs-text.
pub fn is_field_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

/// Fields that belong to one hop (RFC 9110 section 7.6.1, plus the old `Keep-Alive` and
/// `Proxy-Connection`) and are never forwarded as they came.
pub fn is_hop_by_hop(name: &[u8]) -> bool {
    one_of(
        name,
        &[
            "connection",
            "keep-alive",
            "proxy-connection",
            "proxy-authenticate",
            "proxy-authorization",
            "te",
            "transfer-encoding",
            "upgrade",
            "http2-settings",
        ],
    )
}

/// Fields a client must not remove by naming them in `Connection`: routing, framing, credentials
/// and what the manager reads to know who is calling.
pub fn must_not_be_nominated(name: &[u8]) -> bool {
    one_of(
        name,
        &[
            "host",
            "content-length",
            "content-type",
            "content-encoding",
            "transfer-encoding",
            "authorization",
            "cookie",
            "expect",
            "x-access-key",
            "x-harness-token",
            "x-forwarded-client-cert",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "forwarded",
            "via",
        ],
    )
}

/// The field in which a proxy reports a verified client certificate. Nothing a pod says under this
/// name is ever forwarded; `_` counts as `-`, because many servers read it so.
pub fn is_client_cert_field(name: &[u8]) -> bool {
    const NAME: &[u8] = b"x-forwarded-client-cert";
    name.len() == NAME.len()
        && name.iter().zip(NAME).all(|(a, b)| if *a == b'_' { *b == b'-' } else { a.eq_ignore_ascii_case(b) })
}

/// Fields that must not come after the body (RFC 9110 section 6.5.1).
pub fn forbidden_in_trailer(name: &[u8]) -> bool {
    is_hop_by_hop(name)
        || must_not_be_nominated(name)
        || is_client_cert_field(name)
        || one_of(name, &["trailer", "set-cookie"])
}

/// Case-insensitive membership.
pub fn one_of(name: &[u8], list: &[&str]) -> bool {
    list.iter().any(|item| name.eq_ignore_ascii_case(item.as_bytes()))
}

/// The members of a comma-separated list, trimmed; empty members are skipped (RFC 9110 section 5.6.1).
pub fn list_members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}
