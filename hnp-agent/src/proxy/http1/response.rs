//! An answer's head: parsed strictly, and rewritten for the client.

use std::ops::Range;

use super::body::Framing;
use super::head::{Field, HeadError, Lines, content_length};
use super::syntax::{is_hop_by_hop, list_members, one_of};

/// What of the request decides how its answer is read (RFC 9112 section 6.3) and written.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The request was HEAD.
    pub head: bool,
    /// The request asked to switch protocols.
    pub upgrade: bool,
    /// The client speaks HTTP/1.0: no chunks, no interim answers.
    pub http10: bool,
}

/// An answer's head, checked. Ranges are into the head's bytes.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code, 100 to 999.
    pub status: u16,
    /// How the body ends.
    pub framing: Framing,
    /// The upstream keeps the connection.
    pub keep_alive: bool,
    first: Range<usize>,
    fields: Vec<Field>,
    nominated: Vec<Range<usize>>,
}

impl Response {
    /// Parses a whole head, as [`super::head::find_end`] found it.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(head: &[u8], asked: Asked) -> Result<Self, HeadError> {
        let lines = Lines::cut(head)?;
        let (status, http10) = status_line(&head[lines.first.clone()])?;
        let mut response = Self {
            status,
            framing: Framing::UntilClose,
            keep_alive: !http10,
            first: lines.first,
            fields: lines.fields,
            nominated: Vec::new(),
        };
        let (mut length, mut chunked) = (None, false);
        for field in &response.fields {
            let (name, value) = (&head[field.name.clone()], &head[field.value.clone()]);
            if name.eq_ignore_ascii_case(b"content-length") {
                if length.replace(content_length(value)?).is_some() {
                    return Err(HeadError::ContentLength);
                }
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                if chunked || http10 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadError::TransferEncoding);
                }
                chunked = true;
            } else if name.eq_ignore_ascii_case(b"connection") {
                for member in list_members(value) {
                    if member.eq_ignore_ascii_case(b"close") {
                        response.keep_alive = false;
                    } else {
                        let start = member.as_ptr().addr() - head.as_ptr().addr();
                        response.nominated.push(start..start + member.len());
                    }
                }
            }
        }
        response.framing = match (length, chunked) {
            (Some(_), true) => return Err(HeadError::TwoLengths),
            _ if asked.head || matches!(status, 100..=199 | 204 | 304) => Framing::None,
            (Some(n), false) => Framing::Length(n),
            (None, true) => Framing::Chunked,
            (None, false) => Framing::UntilClose,
        };
        Ok(response)
    }

    /// An interim answer: another head follows. 101 is final: what follows is another protocol.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// Writes the head for the client, without what belongs to the upstream's hop. `close` tells the
    /// client that the connection ends with this answer.
    pub fn write_for_client(&self, head: &[u8], asked: Asked, close: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1");
        out.extend_from_slice(&head[self.first.start + 8..self.first.end]);
        out.extend_from_slice(b"\r\n");
        let switching = self.status == 101;
        let offers_upgrade = switching || self.status == 426;
        for field in &self.fields {
            let name = &head[field.name.clone()];
            let keep = if name.eq_ignore_ascii_case(b"upgrade") {
                offers_upgrade
            } else if one_of(name, &["proxy-authenticate"]) {
                true
            } else {
                !is_hop_by_hop(name) && !self.is_nominated(head, name)
            };
            if keep {
                out.extend_from_slice(&head[field.line.clone()]);
            }
        }
        // RFC 9112 section 6.1: never on 1xx and 204, whatever the upstream says.
        let may_be_chunked = !matches!(self.status, 100..=199 | 204);
        if may_be_chunked && self.declares_chunked(head) && !asked.http10 {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if offers_upgrade {
            out.extend_from_slice(b"Connection: Upgrade\r\n");
        } else if close && !self.is_interim() {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Names and values of what is the message's own and not its hop's.
    pub fn fields_of_message<'h>(&self, head: &'h [u8]) -> impl Iterator<Item = (&'h [u8], &'h [u8])> {
        self.fields.iter().filter_map(move |field| {
            let name = &head[field.name.clone()];
            let stays = is_hop_by_hop(name) || self.is_nominated(head, name);
            (!stays).then(|| (name, &head[field.value.clone()]))
        })
    }

    fn is_nominated(&self, head: &[u8], name: &[u8]) -> bool {
        // What frames or places the answer is never dropped because `Connection` names it.
        !one_of(name, &["content-length", "content-type", "content-encoding", "set-cookie", "location"])
            && self.nominated.iter().any(|n| head[n.clone()].eq_ignore_ascii_case(name))
    }

    /// Also true for an answer to HEAD, which says how the body would have been framed.
    fn declares_chunked(&self, head: &[u8]) -> bool {
        self.fields.iter().any(|f| head[f.name.clone()].eq_ignore_ascii_case(b"transfer-encoding"))
    }
}

/// Status and "is HTTP/1.0" of a status line.
fn status_line(line: &[u8]) -> Result<(u16, bool), HeadError> {
    let http10 = match line.get(..9) {
        Some(b"HTTP/1.1 ") => false,
        Some(b"HTTP/1.0 ") => true,
        _ => return Err(HeadError::FirstLine),
    };
    match &line[9..] {
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']
        | [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ', ..] => {
            let digit = |d: &u8| u16::from(d - b'0');
            Ok((digit(a) * 100 + digit(b) * 10 + digit(c), http10))
        }
        _ => Err(HeadError::FirstLine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Asked = Asked { head: false, upgrade: false, http10: false };

    fn parse(head: &str, asked: Asked) -> Result<Response, HeadError> {
        Response::parse(head.as_bytes(), asked)
    }

    #[test]
    fn framing() {
        let framing = |status: u16, fields: &str, asked: Asked| {
            parse(&format!("HTTP/1.1 {status} X\r\n{fields}\r\n"), asked).map(|r| r.framing)
        };
        let head = Asked { head: true, ..GET };
        assert_eq!(framing(200, "Content-Length: 3\r\n", GET), Ok(Framing::Length(3)));
        assert_eq!(framing(200, "Content-Length: 3\r\n", head), Ok(Framing::None));
        assert_eq!(framing(204, "", GET), Ok(Framing::None));
        assert_eq!(framing(304, "Content-Length: 3\r\n", GET), Ok(Framing::None));
        assert_eq!(framing(200, "Transfer-Encoding: chunked\r\n", GET), Ok(Framing::Chunked));
        assert_eq!(framing(200, "", GET), Ok(Framing::UntilClose));
        assert_eq!(
            framing(200, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", GET),
            Err(HeadError::TwoLengths)
        );
        assert_eq!(
            framing(200, "Content-Length: 3\r\nContent-Length: 4\r\n", GET),
            Err(HeadError::ContentLength)
        );
        assert_eq!(framing(200, "Transfer-Encoding: gzip\r\n", GET), Err(HeadError::TransferEncoding));
    }

    #[test]
    fn the_client_gets_end_to_end_fields_and_its_own_hop() {
        let head = "HTTP/1.1 200 All right\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nSet-Cookie: a\r\n\
                    Transfer-Encoding: chunked\r\nset-cookie: b\r\n\r\n";
        let response = parse(head, GET).unwrap();
        let mut out = Vec::new();
        response.write_for_client(head.as_bytes(), GET, true, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 200 All right\r\nSet-Cookie: a\r\nset-cookie: b\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn a_switch_keeps_its_fields() {
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        let asked = Asked { upgrade: true, ..GET };
        let response = parse(head, asked).unwrap();
        assert!(!response.is_interim());
        let mut out = Vec::new();
        response.write_for_client(head.as_bytes(), asked, false, &mut out);
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.contains("\r\nUpgrade: websocket\r\n") && out.contains("\r\nConnection: Upgrade\r\n"),
            "{out}"
        );
    }

    #[test]
    fn status_lines() {
        for line in [
            "HTTP/1.1 20 X",
            "HTTP/1.1 2000 X",
            "HTTP/2 200 X",
            "HTTP/1.1  200 X",
            "HTTP/1.1 099 X",
            "ICY 200 OK",
        ] {
            assert_eq!(
                parse(&format!("{line}\r\n\r\n"), GET).map(|_| ()),
                Err(HeadError::FirstLine),
                "{line}"
            );
        }
        assert_eq!(parse("HTTP/1.1 200\r\n\r\n", GET).unwrap().status, 200);
        assert!(!parse("HTTP/1.0 200 OK\r\n\r\n", GET).unwrap().keep_alive);
    }
}
