//! A request as the exchange writes it (HTTP/1.1, checked and rewritten) -> what an HTTP/2 stream begins with.
//!
//! Nothing is judged here a second time: head and body were checked where the client's bytes were read. What
//! HTTP/2 cannot carry byte for byte goes over HTTP/1.1 instead ([`can_carry`]).

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use h2::ext::Protocol;
use http::header::{HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, Request, Version};

use crate::proxy::http1::body::Framing;
use crate::proxy::http1::head::{Lines, content_length};
use crate::proxy::http1::syntax::{is_hop_by_hop, list_members, one_of};

/// What pods keep secret. Never put into the connection's compression table, which pods share: by the size of
/// its own requests one of them could else guess at another's (RFC 7541 section 7.1).
const SECRETS: &[&str] =
    &["authorization", "cookie", "x-access-key", "x-api-key", "x-harness-token", "x-forwarded-client-cert"];

/// A request's head, and what follows it.
#[derive(Debug)]
pub(super) struct Opening {
    /// For the stream.
    pub(super) request: Request<()>,
    /// How the body is framed in the bytes that follow.
    pub(super) framing: Framing,
    /// How many bytes the head was.
    pub(super) len: usize,
    /// It opens a WebSocket: what the client takes for the proof that this was understood.
    pub(super) websocket: Option<String>,
}

/// The rule of HTTP/2 that a message does not fit, in words.
pub(super) type Unfit = String;

/// Whether a target and an authority can be carried over HTTP/2 as they are. The library that writes the frames
/// is stricter than servers are about quotes, `<`, `>`, `#` and bytes that are no UTF-8.
pub(crate) fn can_carry(target: &[u8], authority: &[u8]) -> bool {
    let plain = |byte: &u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~' | b'=' | b'&' | b'%' | b'?')
    };
    let plain_host = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let colon = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
    let (host, port) = (&authority[..colon], authority.get(colon + 1..).unwrap_or(b"1"));
    let plain_authority = !host.is_empty()
        && host.iter().all(plain_host)
        && (1..=5).contains(&port.len())
        && port.iter().all(u8::is_ascii_digit);
    // Copies; nearly every request is plain.
    let target_fits = || PathAndQuery::try_from(target).is_ok_and(|same| same.as_str().as_bytes() == target);
    let authority_fits =
        || Authority::try_from(authority).is_ok_and(|same| same.as_str().as_bytes() == authority);
    let plain_target = target.first() == Some(&b'/') && target.len() < 4096 && target.iter().all(plain);
    (plain_target || target_fits()) && (plain_authority || authority_fits())
}

/// The head at the front of `message`, which has all of it.
///
/// # Errors
/// It is no head, or not one that [`can_carry`] has let through: a mistake of hnp's.
pub(super) fn opening(message: &[u8]) -> Result<Opening, Unfit> {
    let lines = Lines::cut(message).map_err(|error| error.to_string())?;
    let len = lines.fields.last().map_or(lines.first.end + 2, |last| last.line.end) + 2;
    if message.get(len - 2..len) != Some(b"\r\n") {
        return Err("the head is not whole".into());
    }
    // One copy, of which names and values are parts.
    let head = Bytes::copy_from_slice(&message[..len]);
    let first = &head[lines.first.clone()];
    let mut words = first.split(|byte| *byte == b' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err("the request line has no target".into());
    };
    let method = Method::from_bytes(method).map_err(|error| error.to_string())?;
    let target =
        PathAndQuery::from_maybe_shared(head.slice_ref(target)).map_err(|error| error.to_string())?;

    let mut headers = HeaderMap::with_capacity(lines.fields.len());
    let (mut authority, mut framing) = (None, Framing::None);
    let mut upgrades = false;
    for field in &lines.fields {
        let name = &head[field.name.clone()];
        let value = head.slice(field.value.clone());
        if name.eq_ignore_ascii_case(b"host") {
            authority = Some(Authority::from_maybe_shared(value).map_err(|error| error.to_string())?);
            continue;
        }
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            framing = Framing::Chunked;
            continue;
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            framing = Framing::Length(content_length(&value).map_err(|error| error.to_string())?);
        }
        upgrades |= name.eq_ignore_ascii_case(b"upgrade") && value.eq_ignore_ascii_case(b"websocket");
        if stays_on_its_hop(name, &value) {
            continue;
        }
        let name = HeaderName::from_bytes(name).map_err(|error| error.to_string())?;
        let mut value = HeaderValue::from_maybe_shared(value).map_err(|error| error.to_string())?;
        value.set_sensitive(one_of(name.as_str().as_bytes(), SECRETS));
        headers.append(name, value);
    }
    // That it opens a WebSocket was judged where the client's bytes were read. What the key is for, the stream does
    // (RFC 8441 section 5).
    let key = if upgrades { headers.remove(SEC_WEBSOCKET_KEY) } else { None };
    let websocket = key.map(|key| accept(key.as_bytes()));
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTPS);
    uri.authority = authority;
    uri.path_and_query = Some(target);
    let mut request = Request::new(());
    *request.method_mut() = method;
    if websocket.is_some() {
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        framing = Framing::UntilClose;
    }
    *request.uri_mut() = Uri::from_parts(uri).map_err(|error| error.to_string())?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(Opening { request, framing, len, websocket })
}

/// What answers a key (RFC 6455 section 4.2.2). SHA-1 protects nothing here.
fn accept(key: &[u8]) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let sum = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    BASE64_STANDARD.encode(sum)
}

/// RFC 9113 section 8.2.2: no field of one hop but `te: trailers`.
fn stays_on_its_hop(name: &[u8], value: &[u8]) -> bool {
    let wants_trailers = || {
        let mut members = list_members(value);
        members.next().is_some_and(|one| one.eq_ignore_ascii_case(b"trailers")) && members.next().is_none()
    };
    is_hop_by_hop(name) && !(name.eq_ignore_ascii_case(b"te") && wants_trailers())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proxy::http1::request::Request as Http1;

    fn rewritten(head: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let parsed = Http1::parse(head.as_bytes()).unwrap();
        parsed.write_for_upstream(head.as_bytes(), b"up.test:8443", "/base", None, &mut out);
        out
    }

    #[test]
    fn host_becomes_the_authority_and_what_belongs_to_a_hop_goes() {
        let mut message = rewritten(
            "PUT /a%2Fb?q=1 HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a:  2 \r\nKeep-Alive: 5\r\nAuthorization: s\r\n\
             Connection: keep-alive\r\nContent-Length: 3\r\n\r\n",
        );
        let len = message.len();
        message.extend_from_slice(b"abc");
        let opening = opening(&message).unwrap();
        assert_eq!((opening.len, opening.framing), (len, Framing::Length(3)));
        let request = opening.request;
        assert_eq!(request.method(), "PUT");
        assert_eq!(request.uri().to_string(), "https://up.test:8443/base/a%2Fb?q=1");
        let values: Vec<_> = request.headers().get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert!(request.headers()["authorization"].is_sensitive() && !values[0].is_sensitive());
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-length", "x-a"]);
    }

    #[test]
    fn of_te_trailers_alone_is_carried() {
        for (value, carried) in
            [("trailers", true), ("Trailers ", true), ("gzip", false), ("trailers, gzip", false)]
        {
            let message = format!("GET / HTTP/1.1\r\nHost: a\r\nTE: {value}\r\n\r\n");
            let opening = opening(message.as_bytes()).unwrap();
            assert_eq!(opening.request.headers().contains_key("te"), carried, "{value}");
        }
    }

    #[test]
    fn a_websocket_is_a_connect_with_a_protocol() {
        let message = rewritten(
            "GET /chat?x=1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: o\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        );
        let opening = opening(&message).unwrap();
        // RFC 6455 section 1.3 has this pair.
        assert_eq!(opening.websocket.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(opening.framing, Framing::UntilClose);
        let request = opening.request;
        assert_eq!(request.method(), "CONNECT");
        assert_eq!(request.uri().to_string(), "https://up.test:8443/base/chat?x=1");
        assert_eq!(request.extensions().get::<Protocol>().map(Protocol::as_str), Some("websocket"));
        let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["origin", "sec-websocket-version"]);
    }

    #[test]
    fn a_chunked_body_has_no_field() {
        let opening =
            opening(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").unwrap();
        assert_eq!(opening.framing, Framing::Chunked);
        assert!(opening.request.headers().is_empty());
    }

    #[test]
    fn what_is_no_whole_head_is_a_mistake() {
        for message in ["GET / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1", "GET\r\n\r\n", ""] {
            assert!(opening(message.as_bytes()).is_err(), "{message:?}");
        }
    }

    #[test]
    fn odd_targets_go_over_http1() {
        for (target, carried) in [
            ("/a/b?c=d", true),
            ("*", true),
            ("/a//../{b};c=1?x=[1]&y={z}", true),
            ("/a?\"", false),
            ("/\u{e9}", true),
            ("/a#b", false),
            ("/a<b>", false),
            ("/a?`", true),
            ("/`", false),
        ] {
            assert_eq!(can_carry(target.as_bytes(), b"up.test:8443"), carried, "{target}");
        }
        assert!(!can_carry(b"/\xff", b"up.test") && !can_carry(b"/", b""));
        assert!(can_carry(b"/", b"[fd00::1]:8443"));
    }

    proptest! {
        /// Whatever a client may write: it is carried unchanged, or it is known that it cannot be.
        #[test]
        fn what_is_carried_arrives_as_it_was(target in "/[!-~\u{80}-\u{ff}]{0,40}", host in "[a-zA-Z0-9_.-]{1,10}(:[0-9]{0,5})?") {
            let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            if can_carry(target.as_bytes(), host.as_bytes()) {
                let opening = opening(text.as_bytes()).unwrap();
                let uri = opening.request.uri();
                prop_assert_eq!(uri.path_and_query().map(PathAndQuery::as_str), Some(&*target));
                prop_assert_eq!(uri.authority().map(Authority::as_str), Some(&*host));
            }
        }

        /// Every head that passes the relay has an opening with the same fields.
        #[test]
        fn every_field_that_passes_is_carried(name in "x-[!#$%&'*+.^_`|~0-9a-zA-Z-]{1,12}", value in "[!-~]([ -~\u{80}-\u{ff}]{0,20}[!-~])?") {
            let message = rewritten(&format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n\r\n"));
            let headers = opening(&message).unwrap().request.into_parts().0.headers;
            if !one_of(name.as_bytes(), &["x-forwarded-client-cert"]) {
                prop_assert_eq!(headers[name.to_ascii_lowercase().as_str()].as_bytes(), value.as_bytes());
            }
        }
    }
}
