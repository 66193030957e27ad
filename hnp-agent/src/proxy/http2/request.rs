//! A request of HTTP/2 -> the HTTP/1.1 head that the strict reader reads.
//!
//! Nothing is judged here: what is odd is written so that the reader sees that it is odd.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderName, Method};

/// How what follows the head is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Body {
    None,
    /// As it comes; the library holds the client to the length it said.
    Plain,
    Chunked,
}

/// Writes a head. `ended`: the client has ended the stream with it.
pub(super) fn head(parts: &Parts, ended: bool, out: &mut Vec<u8>) -> Body {
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    let target = match parts.uri.path_and_query() {
        Some(target) => target.as_str().as_bytes(),
        // Only CONNECT has none (RFC 9113 section 8.5), and names its authority (RFC 9112 section 3.2.3).
        None => authority.unwrap_or(b"*"),
    };
    put(out, &[parts.method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n"]);
    if let Some(authority) = authority {
        put(out, &[b"host: ", authority, b"\r\n"]);
    }
    let (mut wants_trailers, mut has_length) = (false, false);
    for (name, value) in &parts.headers {
        let value = value.as_bytes();
        match name {
            // The same twice is once (RFC 9113 section 8.3.1); another one makes two hosts.
            name if *name == HOST && authority == Some(value) => continue,
            name if *name == TE => {
                wants_trailers |= value.eq_ignore_ascii_case(b"trailers");
                continue;
            }
            // The library refuses requests with these. They would change what follows.
            name if is_of_one_hop(name) => continue,
            name if *name == CONTENT_LENGTH => has_length = true,
            _ => {}
        }
        put(out, &[name.as_str().as_bytes(), b": ", value, b"\r\n"]);
    }
    if wants_trailers {
        out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
    let body = match (ended, has_length) {
        (true, _) => Body::None,
        // What follows is no body: bytes, to whoever is at the other end.
        (false, _) if parts.method == Method::CONNECT => Body::Plain,
        (false, true) => Body::Plain,
        (false, false) => Body::Chunked,
    };
    match body {
        Body::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        // Servers want to hear that there is none.
        Body::None if !has_length && parts.method == Method::POST => {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        Body::None | Body::Plain => {}
    }
    out.extend_from_slice(b"\r\n");
    body
}

fn is_of_one_hop(name: &HeaderName) -> bool {
    [CONNECTION, TRANSFER_ENCODING, UPGRADE].contains(name)
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;
    use crate::proxy::http1::body::Framing;
    use crate::proxy::http1::head::HeadError;
    use crate::proxy::http1::request::Request as Read;

    fn written(request: http::request::Builder, ended: bool) -> (String, Body) {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut out = Vec::new();
        let body = head(&parts, ended, &mut out);
        (String::from_utf8(out).unwrap(), body)
    }

    #[test]
    fn framing_says_what_the_stream_said() {
        let request = || Request::builder().uri("http://a.test:80/x?q=1");
        let (text, body) = written(request(), true);
        assert_eq!((text.as_str(), body), ("GET /x?q=1 HTTP/1.1\r\nhost: a.test:80\r\n\r\n", Body::None));
        let (text, body) = written(request().method("POST").header("content-length", "5"), false);
        assert_eq!((Read::parse(text.as_bytes()).unwrap().framing, body), (Framing::Length(5), Body::Plain));
        let (text, body) = written(request().method("POST"), false);
        assert_eq!((Read::parse(text.as_bytes()).unwrap().framing, body), (Framing::Chunked, Body::Chunked));
        let (text, body) = written(request().method("POST"), true);
        assert_eq!((Read::parse(text.as_bytes()).unwrap().framing, body), (Framing::Length(0), Body::None));
    }

    #[test]
    fn a_connect_names_its_authority_and_has_no_body() {
        let (text, body) = written(Request::builder().method("CONNECT").uri("a.test:443"), false);
        let head = "CONNECT a.test:443 HTTP/1.1\r\nhost: a.test:443\r\n\r\n";
        assert_eq!((text.as_str(), body), (head, Body::Plain));
        assert_eq!(Read::parse(text.as_bytes()).err(), Some(HeadError::Method), "on the captured port");
    }

    #[test]
    fn two_hosts_are_two_hosts() {
        let request = || Request::builder().uri("http://a.test/");
        let (text, _) = written(request().header("host", "b.test"), true);
        assert_eq!(Read::parse(text.as_bytes()).err(), Some(HeadError::Host));
        let (text, _) = written(request().header("host", "a.test"), true);
        assert_eq!(Read::parse(text.as_bytes()).unwrap().host.as_deref(), Some("a.test"));
        let (text, _) = written(Request::builder().uri("/").header("host", "b.test"), true);
        assert_eq!(Read::parse(text.as_bytes()).unwrap().host.as_deref(), Some("b.test"));
        let (text, _) = written(Request::builder().uri("/"), true);
        assert_eq!(Read::parse(text.as_bytes()).err(), Some(HeadError::Host));
    }

    #[test]
    fn trailers_are_asked_for_as_the_next_hop_asks() {
        let (text, _) = written(Request::builder().uri("http://a.test/").header("te", "trailers"), true);
        assert!(text.contains("te: trailers\r\nconnection: te\r\n"), "{text}");
        let mut out = Vec::new();
        let read = Read::parse(text.as_bytes()).unwrap();
        read.write_for_upstream(text.as_bytes(), b"u.test", "", None, &mut out);
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("TE: trailers\r\nConnection: TE\r\n"), "{out}");
    }

    proptest! {
        /// What the library lets through cannot become another request, or a second one.
        #[test]
        fn no_field_ends_a_line(name in "x-[a-z0-9]{1,8}", value in "[ -~\t\u{80}-\u{ff}]{0,40}", path in "/[!-~]{0,40}") {
            let Ok(value) = http::HeaderValue::from_bytes(value.as_bytes()) else { return Ok(()) };
            let Ok(uri) = format!("http://a.test{path}").parse::<http::Uri>() else { return Ok(()) };
            let (parts, ()) = Request::builder().uri(uri).header(&name, value).body(()).unwrap().into_parts();
            let mut out = Vec::new();
            head(&parts, true, &mut out);
            let lines = out.windows(2).filter(|pair| *pair == b"\r\n").count();
            prop_assert_eq!(lines, 4, "{:?}", String::from_utf8_lossy(&out));
            if let Ok(read) = Read::parse(&out) {
                prop_assert_eq!(read.host.as_deref(), Some("a.test"));
                prop_assert_eq!(read.framing, Framing::None);
            }
        }
    }
}
