//! A message head's lines: where it ends, and what no lenient reader may see in it.
//!
//! Written here and not taken from a library, because a relay must refuse what parsers are built to
//! forgive: a bare LF as a line's end (RFC 9112 section 2.2 allows it, and smugglers live on it),
//! folds, control characters. The tests hold it against httparse: whatever is accepted here,
//! httparse accepts too, and reads the same fields out of it.

use std::ops::Range;

use super::syntax::is_token_byte;

/// Most fields a head may have. Browsers and gateways stay below 50.
pub const MAX_FIELDS: usize = 128;

/// The rule a head broke. The text is the message the client reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HeadError {
    /// A line ends in LF without CR.
    #[error("a line of the head ends in LF without CR")]
    BareLf,
    /// A CR is not followed by LF.
    #[error("a CR in the head is not followed by LF")]
    BareCr,
    /// A control character stands in the head.
    #[error("the head has a control character")]
    ControlCharacter,
    /// A field line begins with space or tab: obs-fold (RFC 9112 section 5.2).
    #[error("a field line is folded")]
    ObsFold,
    /// A field name is empty, has a character no name has, or space before its colon.
    #[error("a field name is malformed")]
    FieldName,
    /// More than [`MAX_FIELDS`] fields.
    #[error("the head has too many fields")]
    TooManyFields,
    /// The first line is not one of HTTP/1.0 or HTTP/1.1.
    #[error("the first line is malformed")]
    FirstLine,
    /// The head is longer than the limit.
    #[error("the head is too large")]
    TooLarge,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("the HTTP version is not 1.0 or 1.1")]
    Version,
    /// `Host` is missing, repeated, or not a host.
    #[error("the Host field is missing, repeated or malformed")]
    Host,
    /// The target is in no form this listener serves.
    #[error("the request target is malformed")]
    Target,
    /// The target names another authority than `Host`.
    #[error("the request target and the Host field name different hosts")]
    TargetHost,
    /// `Content-Length` is repeated or not a number.
    #[error("Content-Length is repeated or not a number")]
    ContentLength,
    /// Both `Content-Length` and `Transfer-Encoding` are present.
    #[error("both Content-Length and Transfer-Encoding are present")]
    TwoLengths,
    /// `Transfer-Encoding` is anything but one plain `chunked`, or came with HTTP/1.0.
    #[error("Transfer-Encoding is not a single `chunked`")]
    TransferEncoding,
    /// `Connection` names a field that must reach the other end.
    #[error("Connection names a field that must not be removed")]
    ConnectionNames,
    /// `Expect` asks for something other than `100-continue`.
    #[error("Expect is not 100-continue")]
    Expect,
    /// A method this relay does not carry.
    #[error("the method is not served here")]
    Method,
}

/// One field, as ranges of the head's bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Field {
    /// The name as written.
    pub name: Range<usize>,
    /// The value without surrounding white space.
    pub value: Range<usize>,
    /// The whole line with its CRLF.
    pub line: Range<usize>,
}

/// A head cut into lines; all ranges count from the buffer's start.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Lines {
    /// The first line without its CRLF.
    pub first: Range<usize>,
    /// The fields in order.
    pub fields: Vec<Field>,
    /// One past the empty line's CRLF.
    pub end: usize,
}

/// Looks for a whole head at the front of `bytes`.
///
/// `scanned` is where the last look stopped; keep it between calls, so that a head that trickles in
/// is read once. `Ok(None)`: more bytes are needed.
///
/// # Errors
/// As soon as the bytes at hand cannot become a head hnp would forward.
pub fn find_end(bytes: &[u8], scanned: &mut usize, limit: usize) -> Result<Option<usize>, HeadError> {
    let window = &bytes[..bytes.len().min(limit)];
    while let Some(found) =
        window.get(*scanned..).and_then(|rest| rest.iter().position(|b| *b < 0x20 || *b == 0x7f))
    {
        let at = *scanned + found;
        match window[at] {
            b'\t' => *scanned = at + 1,
            b'\n' => return Err(HeadError::BareLf),
            b'\r' => match window.get(at + 1) {
                None => {
                    *scanned = at;
                    return if window.len() >= limit { Err(HeadError::TooLarge) } else { Ok(None) };
                }
                Some(b'\n') => {
                    *scanned = at + 2;
                    if at >= 2 && &window[at - 2..at] == b"\r\n" {
                        return Ok(Some(at + 2));
                    }
                }
                Some(_) => return Err(HeadError::BareCr),
            },
            _ => return Err(HeadError::ControlCharacter),
        }
    }
    *scanned = window.len();
    if window.len() >= limit { Err(HeadError::TooLarge) } else { Ok(None) }
}

impl Lines {
    /// Cuts `head`, which [`find_end`] found whole, into lines.
    ///
    /// # Errors
    /// The first rule a line breaks.
    pub fn cut(head: &[u8]) -> Result<Self, HeadError> {
        let mut lines = Self { end: head.len(), ..Self::default() };
        let mut at = 0;
        while let Some(len) = find_crlf(&head[at..]) {
            let (start, end) = (at, at + len);
            at = end + 2;
            if lines.first.is_empty() {
                lines.first = start..end;
            } else if start == end {
                break;
            } else {
                if lines.fields.len() == MAX_FIELDS {
                    return Err(HeadError::TooManyFields);
                }
                lines.fields.push(field(head, start, end)?);
            }
        }
        if lines.first.is_empty() { Err(HeadError::FirstLine) } else { Ok(lines) }
    }
}

fn field(head: &[u8], start: usize, end: usize) -> Result<Field, HeadError> {
    let line = &head[start..end];
    if matches!(line[0], b' ' | b'\t') {
        return Err(HeadError::ObsFold);
    }
    let colon = line.iter().position(|b| *b == b':').ok_or(HeadError::FieldName)?;
    if colon == 0 || !line[..colon].iter().all(|b| is_token_byte(*b)) {
        return Err(HeadError::FieldName);
    }
    let value = &line[colon + 1..];
    let lead = value.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    let tail = value[lead..].iter().rev().take_while(|b| matches!(b, b' ' | b'\t')).count();
    Ok(Field {
        name: start..start + colon,
        value: start + colon + 1 + lead..end - tail,
        line: start..end + 2,
    })
}

/// Where the first CRLF begins. In a head that passed [`find_end`] every CR begins one.
fn find_crlf(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|b| *b == b'\r')
}

/// A `Content-Length` value: digits only, and small enough that sums cannot overflow.
pub fn content_length(value: &[u8]) -> Result<u64, HeadError> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::ContentLength);
    }
    Ok(value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Result<Option<usize>, HeadError> {
        find_end(bytes, &mut 0, 1024)
    }

    #[test]
    fn a_head_that_trickles_in_is_found_at_the_same_place() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\tb\r\n\r\nbody\n";
        let end = bytes.len() - b"body\n".len();
        assert_eq!(whole(bytes), Ok(Some(end)));
        for cut in 1..end {
            let mut scanned = 0;
            assert_eq!(find_end(&bytes[..cut], &mut scanned, 1024), Ok(None), "{cut}");
            assert_eq!(find_end(bytes, &mut scanned, 1024), Ok(Some(end)), "{cut}");
        }
    }

    #[test]
    fn line_ends_and_control_characters() {
        assert_eq!(whole(b"GET / HTTP/1.1\nHost: a\n\n"), Err(HeadError::BareLf));
        assert_eq!(whole(b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n"), Err(HeadError::BareCr));
        assert_eq!(whole(b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n"), Err(HeadError::ControlCharacter));
        assert_eq!(whole(b"GET / HTTP/1.1\r\nA: b\x7fc\r\n\r\n"), Err(HeadError::ControlCharacter));
    }

    #[test]
    fn the_limit_counts_the_head_alone() {
        let head = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'a'; 50], b"\r\n\r\n"].concat();
        assert_eq!(find_end(&head, &mut 0, head.len()), Ok(Some(head.len())));
        assert_eq!(find_end(&head, &mut 0, head.len() - 1), Err(HeadError::TooLarge));
        let with_body = [head.as_slice(), &[b'x'; 4096]].concat();
        assert_eq!(find_end(&with_body, &mut 0, head.len()), Ok(Some(head.len())));
    }

    #[test]
    fn lines_are_cut_with_their_ranges() {
        let head = b"GET / HTTP/1.1\r\nHost: \t a b \t\r\nEmpty:\r\n\r\n";
        let lines = Lines::cut(head).unwrap();
        assert_eq!(&head[lines.first.clone()], b"GET / HTTP/1.1");
        assert_eq!(&head[lines.fields[0].name.clone()], b"Host");
        assert_eq!(&head[lines.fields[0].value.clone()], b"a b");
        assert_eq!(&head[lines.fields[0].line.clone()], b"Host: \t a b \t\r\n");
        assert!(lines.fields[1].value.is_empty());
    }

    #[test]
    fn folds_and_bad_names_are_refused() {
        for (head, error) in [
            (&b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n"[..], HeadError::ObsFold),
            (b"GET / HTTP/1.1\r\n\tA: b\r\n\r\n", HeadError::ObsFold),
            (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", HeadError::FieldName),
            (b"GET / HTTP/1.1\r\nA\r\n\r\n", HeadError::FieldName),
            (b"GET / HTTP/1.1\r\n: b\r\n\r\n", HeadError::FieldName),
            (b"GET / HTTP/1.1\r\nA\x80: b\r\n\r\n", HeadError::FieldName),
        ] {
            assert_eq!(Lines::cut(head).map(|_| ()), Err(error), "{head:?}");
        }
    }
}
