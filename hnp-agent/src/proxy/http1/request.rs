//! A request's head: parsed strictly, and rewritten for the upstream.

use super::body::Framing;
use super::head::{Field, HeadError, Lines, content_length};
use super::syntax::{
    is_client_cert_field, is_hop_by_hop, is_token_byte, list_members, must_not_be_nominated, one_of,
};
use std::ops::Range;

/// A request's head, checked. Ranges are into the head's bytes.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method as sent.
    pub method: Range<usize>,
    /// Path and query in origin-form (or `*`), byte for byte.
    pub path: Range<usize>,
    /// The host the client asks for: lower case, no port, no trailing dot. `None` only on HTTP/1.0.
    pub host: Option<String>,
    /// The client speaks HTTP/1.0.
    pub http10: bool,
    /// How the body ends.
    pub framing: Framing,
    /// The client wants the connection kept.
    pub keep_alive: bool,
    /// The client asks to switch protocols (never to h2c, which hnp does not speak here).
    pub upgrade: bool,
    /// The client asks to switch to anything at all: what a server that gets the head untouched sees.
    pub upgrade_untouched: bool,
    /// The request is a HEAD: its answer has no body.
    pub is_head: bool,
    /// Sending it twice does what sending it once does (RFC 9110 section 9.2.2).
    pub idempotent: bool,
    /// The client authenticates the connection, and not the request (NTLM, Negotiate: RFC 4559 section 6).
    pub binds_connection: bool,
    /// The client takes trailers, and has said so as the next hop must hear it (RFC 9110 section 10.1.4).
    pub wants_trailers: bool,
    fields: Vec<Field>,
    nominated: Vec<Range<usize>>,
}

/// What an absolute target begins with.
const SCHEME: &[u8] = b"http://";

impl Request {
    /// Parses a whole head, as [`super::head::find_end`] found it.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(head: &[u8]) -> Result<Self, HeadError> {
        let lines = Lines::cut(head)?;
        let (method, target, http10) = first_line(head, lines.first.clone())?;
        let name = &head[method.clone()];
        let mut request = Self {
            is_head: name == b"HEAD",
            idempotent: matches!(name, b"GET" | b"HEAD" | b"PUT" | b"DELETE" | b"OPTIONS" | b"TRACE"),
            keep_alive: !http10,
            path: target.clone(),
            host: None,
            http10,
            framing: Framing::None,
            upgrade: false,
            upgrade_untouched: false,
            wants_trailers: false,
            binds_connection: false,
            nominated: Vec::new(),
            fields: lines.fields,
            method,
        };
        if name == b"CONNECT" || name == b"PRI" {
            return Err(HeadError::Method);
        }
        request.read_fields(head)?;
        request.read_target(head, target)?;
        Ok(request)
    }

    /// The method as sent.
    pub fn method_of<'h>(&self, head: &'h [u8]) -> &'h [u8] {
        &head[self.method.clone()]
    }

    /// The target names an authority itself (RFC 9112 section 3.2.2).
    pub fn is_absolute(&self) -> bool {
        self.path.start > self.method.end + 1
    }

    /// Host and port as the client wrote them, in an absolute target before all; HTTP/1.0 may have none.
    pub fn authority<'h>(&self, head: &'h [u8]) -> Option<&'h [u8]> {
        let target = self.method.end + 1;
        if self.is_absolute() {
            return Some(&head[target + SCHEME.len()..self.path.start]);
        }
        let is_host = |field: &&Field| head[field.name.clone()].eq_ignore_ascii_case(b"host");
        self.fields.iter().find(is_host).map(|field| &head[field.value.clone()])
    }

    /// Writes the head for the upstream: this authority as `Host`, its base path before the path,
    /// everything else byte for byte, without what belongs to the client's hop. `forwarded` is what the client's
    /// certificate says, if it was verified: nobody else says so.
    pub fn write_for_upstream(
        &self,
        head: &[u8],
        authority: &[u8],
        base_path: &str,
        forwarded: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        out.extend_from_slice(&head[self.method.clone()]);
        out.push(b' ');
        let path = &head[self.path.clone()];
        if path != b"*" {
            out.extend_from_slice(base_path.as_bytes());
        }
        if path.starts_with(b"?") || path.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(path);
        out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        out.extend_from_slice(authority);
        out.extend_from_slice(b"\r\n");
        for field in &self.fields {
            let name = &head[field.name.clone()];
            if !name.eq_ignore_ascii_case(b"host") && !self.is_dropped(head, name) {
                out.extend_from_slice(&head[field.line.clone()]);
            }
        }
        if let Some(forwarded) = forwarded {
            out.extend_from_slice(b"X-Forwarded-Client-Cert: ");
            out.extend_from_slice(forwarded.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        if self.framing == Framing::Chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if self.wants_trailers && !self.upgrade {
            out.extend_from_slice(b"TE: trailers\r\nConnection: TE\r\n");
        }
        if self.upgrade {
            for field in self.fields.iter().filter(|f| head[f.name.clone()].eq_ignore_ascii_case(b"upgrade"))
            {
                out.extend_from_slice(&head[field.line.clone()]);
            }
            out.extend_from_slice(b"Connection: Upgrade\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// It opens a WebSocket, and nothing else would do (RFC 6455 section 4.1).
    pub fn opens_websocket(&self, head: &[u8]) -> bool {
        let only = |name: &[u8]| {
            let mut fields =
                self.fields.iter().filter(|field| head[field.name.clone()].eq_ignore_ascii_case(name));
            let value = fields.next().map(|field| &head[field.value.clone()]);
            value.filter(|_| fields.next().is_none())
        };
        self.upgrade
            && self.framing == Framing::None
            && &head[self.method.clone()] == b"GET"
            && only(b"upgrade").is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
            && only(b"sec-websocket-version") == Some(b"13")
            && only(b"sec-websocket-key").is_some()
    }

    /// The path without its query, for logs.
    pub fn path_for_log(&self, head: &[u8]) -> String {
        let path = &head[self.path.clone()];
        let end = path.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(path.len());
        String::from_utf8_lossy(&path[..end]).into_owned()
    }

    fn is_dropped(&self, head: &[u8], name: &[u8]) -> bool {
        is_hop_by_hop(name)
            || is_client_cert_field(name)
            || self.nominated.iter().any(|n| head[n.clone()].eq_ignore_ascii_case(name))
    }

    fn read_fields(&mut self, head: &[u8]) -> Result<(), HeadError> {
        let (mut length, mut chunked, mut hosts) = (None, false, 0);
        let (mut wants_upgrade, mut upgrades, mut protocols) = (false, 0, 0);
        let mut takes_trailers = false;
        for field in &self.fields {
            let (name, value) = (&head[field.name.clone()], &head[field.value.clone()]);
            if name.eq_ignore_ascii_case(b"host") {
                hosts += 1;
                self.host = Some(host_of(value)?);
            } else if name.eq_ignore_ascii_case(b"content-length") {
                if length.replace(content_length(value)?).is_some() {
                    return Err(HeadError::ContentLength);
                }
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                if chunked || self.http10 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadError::TransferEncoding);
                }
                chunked = true;
            } else if one_of(name, &["connection", "proxy-connection"]) {
                for member in list_members(value) {
                    match () {
                        () if member.eq_ignore_ascii_case(b"close") => self.keep_alive = false,
                        () if member.eq_ignore_ascii_case(b"upgrade") => wants_upgrade = true,
                        () if must_not_be_nominated(member) => return Err(HeadError::ConnectionNames),
                        () if !member.iter().all(|b| is_token_byte(*b)) => {
                            return Err(HeadError::ConnectionNames);
                        }
                        () => {
                            let start = member.as_ptr().addr() - head.as_ptr().addr();
                            self.nominated.push(start..start + member.len());
                        }
                    }
                }
            } else if name.eq_ignore_ascii_case(b"authorization") {
                let scheme = value.split(|byte| *byte == b' ').next().unwrap_or_default();
                self.binds_connection |= one_of(scheme, &["ntlm", "negotiate"]);
            } else if name.eq_ignore_ascii_case(b"te") {
                takes_trailers |= list_members(value).any(|member| member.eq_ignore_ascii_case(b"trailers"));
            } else if name.eq_ignore_ascii_case(b"upgrade") {
                for protocol in list_members(value) {
                    upgrades += 1;
                    protocols += usize::from(!protocol.eq_ignore_ascii_case(b"h2c"));
                }
            } else if name.eq_ignore_ascii_case(b"expect") && !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(HeadError::Expect);
            }
        }
        match (length, chunked) {
            (Some(_), true) => return Err(HeadError::TwoLengths),
            (Some(n), false) => self.framing = Framing::Length(n),
            (None, true) => self.framing = Framing::Chunked,
            (None, false) => {}
        }
        if hosts > 1 || (hosts == 0 && !self.http10) {
            return Err(HeadError::Host);
        }
        let names_te = |range: &Range<usize>| head[range.clone()].eq_ignore_ascii_case(b"te");
        self.wants_trailers = takes_trailers && self.nominated.iter().any(names_te);
        self.upgrade_untouched = wants_upgrade && upgrades > 0;
        self.upgrade = wants_upgrade && upgrades > 0 && upgrades == protocols && !self.http10;
        Ok(())
    }

    /// Origin-form, asterisk-form, or absolute-form for the very host that `Host` names
    /// (RFC 9112 section 3.2).
    fn read_target(&mut self, head: &[u8], target: Range<usize>) -> Result<(), HeadError> {
        let bytes = &head[target.clone()];
        if bytes.starts_with(b"/") || (bytes == b"*" && &head[self.method.clone()] == b"OPTIONS") {
            return Ok(());
        }
        if bytes.len() <= SCHEME.len() || !bytes[..SCHEME.len()].eq_ignore_ascii_case(SCHEME) {
            return Err(HeadError::Target);
        }
        let rest = &bytes[SCHEME.len()..];
        let len = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        let authority = host_of(&rest[..len]).map_err(|_| HeadError::Target)?;
        match &self.host {
            Some(host) if *host != authority => return Err(HeadError::TargetHost),
            _ => self.host = Some(authority),
        }
        self.path = target.start + SCHEME.len() + len..target.end;
        Ok(())
    }
}

/// Method, target and "is HTTP/1.0" of a request line.
fn first_line(head: &[u8], line: Range<usize>) -> Result<(Range<usize>, Range<usize>, bool), HeadError> {
    let bytes = &head[line.clone()];
    let mut spaces = bytes.iter().enumerate().filter(|(_, b)| **b == b' ').map(|(i, _)| i);
    let (Some(a), Some(b), None) = (spaces.next(), spaces.next(), spaces.next()) else {
        return Err(HeadError::FirstLine);
    };
    let (method, target, version) = (&bytes[..a], &bytes[a + 1..b], &bytes[b + 1..]);
    if method.is_empty()
        || target.is_empty()
        || !method.iter().all(|b| is_token_byte(*b))
        || target.contains(&b'\t')
    {
        return Err(HeadError::FirstLine);
    }
    let http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        b"HTTP/2.0" if method == b"PRI" => return Err(HeadError::Method),
        v if v.starts_with(b"HTTP/") => return Err(HeadError::Version),
        _ => return Err(HeadError::FirstLine),
    };
    Ok((line.start..line.start + a, line.start + a + 1..line.start + b, http10))
}

/// The host of an authority, lower case, without port and trailing dot. Strict, because it chooses
/// the route: a reg-name of letters, digits, `-`, `.` and `_`, or an address literal.
fn host_of(authority: &[u8]) -> Result<String, HeadError> {
    let text = std::str::from_utf8(authority).map_err(|_| HeadError::Host)?;
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (literal, port) = rest.split_once(']').ok_or(HeadError::Host)?;
        let addr: std::net::Ipv6Addr = literal.parse().map_err(|_| HeadError::Host)?;
        (addr.to_string(), port)
    } else {
        let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty()
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        {
            return Err(HeadError::Host);
        }
        (name.to_ascii_lowercase(), port)
    };
    let port_ok = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()),
    };
    if port_ok { Ok(host) } else { Err(HeadError::Host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str) -> Result<Request, HeadError> {
        Request::parse(head.as_bytes())
    }

    fn rewritten(head: &str) -> String {
        let mut out = Vec::new();
        parse(head).unwrap().write_for_upstream(head.as_bytes(), b"up.test:8443", "/base", None, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn path_and_query_survive_byte_for_byte() {
        let odd = "/a%2Fb//../c;p=1?q=%00&x=\"<>{}|^`é'";
        assert_eq!(
            rewritten(&format!("PoSt {odd} HTTP/1.1\r\nhOsT: Manager.Test:80\r\nX-a:  b \r\n\r\n")),
            format!("PoSt /base{odd} HTTP/1.1\r\nHost: up.test:8443\r\nX-a:  b \r\n\r\n")
        );
    }

    #[test]
    fn a_websocket_is_told_from_other_switches() {
        let opens = |more: &str| {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n{more}\r\n");
            parse(&head).unwrap().opens_websocket(head.as_bytes())
        };
        let own = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
        assert!(opens(&format!("Upgrade: WebSocket\r\n{own}")));
        for more in [
            format!("Upgrade: other\r\n{own}"),
            format!("Upgrade: websocket, other\r\n{own}"),
            format!("Upgrade: websocket\r\nUpgrade: websocket\r\n{own}"),
            format!("Upgrade: websocket\r\nContent-Length: 1\r\n{own}"),
            format!("Upgrade: websocket\r\n{}", own.replace("13", "12")),
            format!("Upgrade: websocket\r\n{own}Sec-WebSocket-Key: x\r\n"),
            own.to_owned(),
        ] {
            assert!(!opens(&more), "{more}");
        }
    }

    #[test]
    fn the_clients_own_authority_is_the_targets_where_it_is_there() {
        for (head, authority) in [
            ("GET / HTTP/1.1\r\nHost:  Manager.Test:80 \r\n\r\n", Some("Manager.Test:80")),
            ("GET http://a.test:81/x HTTP/1.1\r\nHost: a.test\r\n\r\n", Some("a.test:81")),
            ("GET / HTTP/1.0\r\n\r\n", None),
        ] {
            let found = parse(head).unwrap().authority(head.as_bytes()).map(<[u8]>::to_vec);
            assert_eq!(found, authority.map(|text| text.as_bytes().to_vec()), "{head}");
        }
    }

    #[test]
    fn one_hop_fields_stay_on_their_hop() {
        let out = rewritten(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n\
             Proxy-Authorization: Basic x\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX-Forwarded-Client-Cert: Hash=1\r\n\
             x_forwarded_client_cert: Hash=2\r\nX-Access-Key: k\r\nCookie: c\r\n\r\n",
        );
        assert_eq!(out, "GET /base/ HTTP/1.1\r\nHost: up.test:8443\r\nX-Access-Key: k\r\nCookie: c\r\n\r\n");
    }

    #[test]
    fn an_upgrade_is_forwarded_and_h2c_is_not() {
        let head = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert!(parse(head).unwrap().upgrade);
        assert!(rewritten(head).ends_with("Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"));
        assert!(
            !parse("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
                .unwrap()
                .upgrade
        );
        assert!(!parse("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n").unwrap().upgrade);
    }

    #[test]
    fn framing() {
        let framing =
            |fields: &str| parse(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).map(|r| r.framing);
        assert_eq!(framing(""), Ok(Framing::None));
        assert_eq!(framing("Content-Length: 12\r\n"), Ok(Framing::Length(12)));
        assert_eq!(framing("Transfer-Encoding: Chunked\r\n"), Ok(Framing::Chunked));
        for (fields, error) in [
            ("Content-Length: 1\r\nContent-Length: 2\r\n", HeadError::ContentLength),
            ("Content-Length: 1\r\nContent-Length: 1\r\n", HeadError::ContentLength),
            ("Content-Length: 1, 1\r\n", HeadError::ContentLength),
            ("Content-Length: +1\r\n", HeadError::ContentLength),
            ("Content-Length: 0x1\r\n", HeadError::ContentLength),
            ("Content-Length:\r\n", HeadError::ContentLength),
            ("Content-Length: 9999999999999999999\r\n", HeadError::ContentLength),
            ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", HeadError::TwoLengths),
            ("Transfer-Encoding: gzip, chunked\r\n", HeadError::TransferEncoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", HeadError::TransferEncoding),
            ("Transfer-Encoding: xchunked\r\n", HeadError::TransferEncoding),
            ("Transfer-Encoding: \x0bchunked\r\n", HeadError::TransferEncoding),
            ("Transfer-Encoding: identity\r\n", HeadError::TransferEncoding),
        ] {
            assert_eq!(framing(fields), Err(error), "{fields}");
        }
        assert_eq!(
            parse("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").map(|_| ()),
            Err(HeadError::TransferEncoding)
        );
    }

    #[test]
    fn hosts() {
        let host = |value: &str| parse(&format!("GET / HTTP/1.1\r\nHost: {value}\r\n\r\n")).map(|r| r.host);
        assert_eq!(host("Manager.HNP.test.:80"), Ok(Some("manager.hnp.test".into())));
        assert_eq!(host("[FD00::9]:80"), Ok(Some("fd00::9".into())));
        for value in ["", "a b", "a/b", "a@b", "a:80:80", "a:x", "[::1", "a\"b", "a,b", "é", ".", "a:123456"]
        {
            assert_eq!(host(value), Err(HeadError::Host), "{value:?}");
        }
        assert_eq!(parse("GET / HTTP/1.1\r\n\r\n").map(|_| ()), Err(HeadError::Host));
        assert_eq!(parse("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n").map(|_| ()), Err(HeadError::Host));
        assert_eq!(parse("GET / HTTP/1.0\r\n\r\n").unwrap().host, None);
    }

    #[test]
    fn targets() {
        let target = |method: &str, t: &str| {
            let head = format!("{method} {t} HTTP/1.1\r\nHost: a.test\r\n\r\n");
            Request::parse(head.as_bytes()).map(|r| head[r.path].to_owned())
        };
        assert_eq!(target("GET", "/x?y"), Ok("/x?y".into()));
        assert_eq!(target("GET", "http://A.test:80/x?y"), Ok("/x?y".into()));
        assert_eq!(target("GET", "http://a.test?y"), Ok("?y".into()));
        assert_eq!(target("OPTIONS", "*"), Ok("*".into()));
        assert_eq!(target("GET", "*"), Err(HeadError::Target));
        assert_eq!(target("GET", "http://b.test/"), Err(HeadError::TargetHost));
        assert_eq!(target("GET", "http://user@a.test/"), Err(HeadError::Target));
        assert_eq!(target("GET", "https://a.test/"), Err(HeadError::Target));
        assert_eq!(target("CONNECT", "a.test:80"), Err(HeadError::Method));
        assert_eq!(
            rewritten("GET http://a.test?y HTTP/1.1\r\nHost: a.test\r\n\r\n").lines().next(),
            Some("GET /base/?y HTTP/1.1")
        );
    }

    #[test]
    fn connection_cannot_name_what_must_arrive() {
        for name in
            ["Host", "content-length", "Authorization", "X-Access-Key", "x-forwarded-client-cert", "a b"]
        {
            assert_eq!(
                parse(&format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close, {name}\r\n\r\n")).map(|_| ()),
                Err(HeadError::ConnectionNames),
                "{name}"
            );
        }
    }

    #[test]
    fn first_lines() {
        for line in [
            "GET /",
            "GET  / HTTP/1.1",
            "GET / x HTTP/1.1",
            "G(T / HTTP/1.1",
            "GET / http/1.1",
            " GET / HTTP/1.1",
        ] {
            assert_eq!(
                parse(&format!("{line}\r\nHost: a\r\n\r\n")).map(|_| ()),
                Err(HeadError::FirstLine),
                "{line:?}"
            );
        }
        assert_eq!(parse("GET / HTTP/1.2\r\nHost: a\r\n\r\n").map(|_| ()), Err(HeadError::Version));
        assert_eq!(parse("PRI * HTTP/2.0\r\n\r\n").map(|_| ()), Err(HeadError::Method));
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::super::head::find_end;
    use super::*;

    /// Bytes that heads are made of, and those that break them.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => Just(b"\r\n".to_vec()),
            1 => Just(b"\n".to_vec()),
            1 => Just(b"\r".to_vec()),
            2 => Just(b"Host: a.test".to_vec()),
            2 => Just(b"Content-Length: 3".to_vec()),
            2 => Just(b"Transfer-Encoding: chunked".to_vec()),
            2 => Just(b"Connection: x-a, close".to_vec()),
            2 => Just(b"X-A: b".to_vec()),
            1 => Just(b" ".to_vec()),
            1 => Just(b"\t".to_vec()),
            1 => Just(b":".to_vec()),
            2 => proptest::collection::vec(any::<u8>(), 0..8),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is accepted here, httparse accepts and reads the same fields out of; and the
        /// rewritten head is itself a head that both accept, with our Host and nothing smuggled.
        #[test]
        fn what_is_accepted_means_the_same_to_httparse(pieces in proptest::collection::vec(piece(), 0..14)) {
            let mut bytes = b"POST /a?b HTTP/1.1\r\n".to_vec();
            bytes.extend(pieces.concat());
            bytes.extend(b"\r\n\r\n");
            let Ok(Some(end)) = find_end(&bytes, &mut 0, 65536) else { return Ok(()) };
            let head = &bytes[..end];
            let Ok(request) = Request::parse(head) else { return Ok(()) };
            let mut fields = [httparse::EMPTY_HEADER; 64];
            let mut theirs = httparse::Request::new(&mut fields);
            prop_assert_eq!(theirs.parse(head), Ok(httparse::Status::Complete(end)));
            prop_assert_eq!(theirs.headers.len(), request.fields.len());
            for (ours, theirs) in request.fields.iter().zip(theirs.headers.iter()) {
                prop_assert_eq!(&head[ours.name.clone()], theirs.name.as_bytes());
                prop_assert_eq!(&head[ours.value.clone()], theirs.value);
            }
            let mut out = Vec::new();
            request.write_for_upstream(head, b"up.test", "", None, &mut out);
            prop_assert_eq!(find_end(&out, &mut 0, 65536), Ok(Some(out.len())));
            let again = Request::parse(&out);
            prop_assert!(again.is_ok());
            let again = again.expect("checked just above");
            prop_assert_eq!(again.framing, request.framing);
            prop_assert_eq!(again.host.as_deref(), Some("up.test"));
        }
    }
}
