//! An answer of HTTP/2 -> the HTTP/1.1 bytes that the exchange reads, and checks as it checks every answer.
//!
//! Framing is chosen here, so that it says what the stream said: a length where the upstream gave one, chunks
//! (with trailers) where it did not, nothing where there is no body.

use http::StatusCode;
use http::header::{CONTENT_LENGTH, HeaderMap};

use crate::http2::fields;
use crate::proxy::http1::head::content_length;
use crate::proxy::http1::syntax::one_of;

/// How the body of an answer is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Body {
    /// There is none.
    None,
    /// As it comes: its length was said, which is `None` where that is no number.
    Plain(Option<u64>),
    /// In chunks.
    Chunked,
}

/// Writes a head. `head_only`: the request was HEAD; `ended`: no body follows.
pub(super) fn head(
    status: StatusCode,
    headers: &HeaderMap,
    head_only: bool,
    ended: bool,
    out: &mut Vec<u8>,
) -> Body {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    fields(headers, |_| true, out);
    let bodiless = head_only || status.is_informational() || matches!(status.as_u16(), 204 | 304);
    let body = match headers.get(CONTENT_LENGTH) {
        _ if bodiless => Body::None,
        Some(length) => Body::Plain(content_length(length.as_bytes()).ok()),
        None if ended => {
            out.extend_from_slice(b"content-length: 0\r\n");
            Body::None
        }
        None => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Body::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    body
}

/// Writes what a client of HTTP/1.1 hears where its WebSocket was opened on a stream: `accept` answers its key.
pub(super) fn websocket(headers: &HeaderMap, accept: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n",
    );
    out.extend_from_slice(b"sec-websocket-accept: ");
    out.extend_from_slice(accept.as_bytes());
    out.extend_from_slice(b"\r\n");
    // Nothing after a 101 has a length.
    let keep = |name: &[u8]| !one_of(name, &["content-length", "sec-websocket-accept"]);
    fields(headers, keep, out);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::http2::{chunk, last_chunk};
    use crate::proxy::http1::body::{Decoder, Framing};
    use crate::proxy::http1::response::{Asked, Response};

    fn written(status: u16, fields: &[(&'static str, &str)], head_only: bool, ended: bool) -> (String, Body) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let mut out = Vec::new();
        let body = head(StatusCode::from_u16(status).unwrap(), &headers, head_only, ended, &mut out);
        (String::from_utf8(out).unwrap(), body)
    }

    #[test]
    fn the_framing_says_what_the_stream_said() {
        let length = ("content-length", "3");
        for (status, fields, head_only, ended, expected) in [
            (
                200,
                &[length][..],
                false,
                false,
                ("content-length: 3\r\n\r\n", Body::Plain(Some(3)), Framing::Length(3)),
            ),
            (200, &[], false, false, ("transfer-encoding: chunked\r\n\r\n", Body::Chunked, Framing::Chunked)),
            (200, &[], false, true, ("content-length: 0\r\n\r\n", Body::None, Framing::Length(0))),
            (200, &[length], true, true, ("content-length: 3\r\n\r\n", Body::None, Framing::None)),
            (200, &[], true, true, ("OK\r\n\r\n", Body::None, Framing::None)),
            (204, &[], false, true, ("No Content\r\n\r\n", Body::None, Framing::None)),
            (304, &[length], false, true, ("content-length: 3\r\n\r\n", Body::None, Framing::None)),
            (103, &[], false, false, ("Early Hints\r\n\r\n", Body::None, Framing::None)),
            (
                299,
                &[length],
                false,
                false,
                ("HTTP/1.1 299 \r\ncontent-length: 3\r\n\r\n", Body::Plain(Some(3)), Framing::Length(3)),
            ),
        ] {
            let (text, body) = written(status, fields, head_only, ended);
            assert!(text.ends_with(expected.0), "{text}");
            assert_eq!(body, expected.1, "{text}");
            let asked = Asked { head: head_only, upgrade: false, http10: false };
            assert_eq!(Response::parse(text.as_bytes(), asked).unwrap().framing, expected.2, "{text}");
        }
    }

    #[test]
    fn fields_that_come_twice_are_written_twice() {
        let (text, _) = written(200, &[("set-cookie", "a"), ("set-cookie", "b")], false, true);
        assert!(text.contains("set-cookie: a\r\nset-cookie: b\r\n"), "{text}");
    }

    #[test]
    fn a_trailer_that_belongs_in_a_head_is_left_out() {
        let mut trailers = HeaderMap::new();
        for (name, value) in [("grpc-status", "0"), ("content-length", "5"), ("set-cookie", "a")] {
            trailers.insert(name, HeaderValue::from_static(value));
        }
        let mut out = Vec::new();
        last_chunk(Some(&trailers), &mut out);
        assert_eq!(out, b"0\r\ngrpc-status: 0\r\n\r\n");
    }

    proptest! {
        /// Whatever fields and pieces come, the strict reader of answers accepts it and finds the same body.
        #[test]
        fn what_is_written_is_read_again(
            fields in proptest::collection::vec(("x-[a-z0-9]{1,8}", "[ -~]{0,20}"), 0..8),
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &fields {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
            }
            let mut out = Vec::new();
            prop_assert_eq!(head(StatusCode::OK, &headers, false, false, &mut out), Body::Chunked);
            let asked = Asked { head: false, upgrade: false, http10: false };
            prop_assert_eq!(Response::parse(&out, asked).unwrap().framing, Framing::Chunked);
            out.clear();
            for piece in &pieces {
                chunk(piece.len(), &mut out);
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            }
            last_chunk(Some(&headers), &mut out);
            let (mut decoder, mut at, mut payload) = (Decoder::new(Framing::Chunked), 0, Vec::new());
            while at < out.len() {
                let step = decoder.step(&out[at..]).unwrap();
                prop_assert!(step.wire > 0);
                at += step.wire;
                payload.extend_from_slice(&out[at - step.payload..at]);
            }
            prop_assert!(decoder.is_done());
            prop_assert_eq!(payload, pieces.concat());
        }
    }
}
