//! What both directions of HTTP/2 have in common: bodies and trailers as the bytes of HTTP/1.1, and back.
//!
//! `upstream` writes a request's body into a stream and reads an answer's out of one; `proxy` does the
//! opposite for clients.

use std::io::Write as _;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::ReadBuf;

use crate::proxy::http1::body::{BodyError, Decoder};
use crate::proxy::http1::syntax::forbidden_in_trailer;

/// Small pieces of a body are put together up to here before they are sent.
const GATHERED: usize = 16 * 1024;

/// What has come on a stream, written out as HTTP/1.1 and not yet read.
#[derive(Default)]
pub struct Rendered {
    text: Vec<u8>,
    read: usize,
    /// Follows the text. What was read of it is given back to both windows.
    data: Bytes,
}

impl Rendered {
    /// All that has come was read.
    pub fn is_empty(&self) -> bool {
        self.read == self.text.len() && self.data.is_empty()
    }

    /// All data that has come was read.
    pub fn is_empty_of_data(&self) -> bool {
        self.data.is_empty()
    }

    /// The text, emptied for the next thing to be written out.
    pub fn text(&mut self) -> &mut Vec<u8> {
        self.text.clear();
        self.read = 0;
        &mut self.text
    }

    /// Data to follow the text; with its size before it where the body is in chunks.
    pub fn data(&mut self, data: Bytes, chunked: bool) {
        let text = self.text();
        if chunked && !data.is_empty() {
            chunk(data.len(), text);
        }
        self.data = data;
    }

    /// Moves what there is into `buf`. `from`: the stream that the data came on, and whether its body is in chunks.
    pub fn take(&mut self, buf: &mut ReadBuf<'_>, from: Option<(&mut RecvStream, bool)>) {
        self.take_text(buf);
        if self.read < self.text.len() || self.data.is_empty() {
            return;
        }
        let n = buf.remaining().min(self.data.len());
        buf.put_slice(&self.data[..n]);
        self.data.advance(n);
        let Some((stream, chunked)) = from else { return };
        // A failure means that the stream is over, and its windows with it.
        let _ = stream.flow_control().release_capacity(n);
        if chunked && self.data.is_empty() {
            self.text().extend_from_slice(b"\r\n");
            self.take_text(buf);
        }
    }

    fn take_text(&mut self, buf: &mut ReadBuf<'_>) {
        let n = buf.remaining().min(self.text.len() - self.read);
        buf.put_slice(&self.text[self.read..self.read + n]);
        self.read += n;
    }
}

/// Takes the payload of a body's bytes to be sent, up to 16 KiB; how many bytes were taken.
///
/// # Errors
/// They are no such body.
pub fn gather(decoder: &mut Decoder, held: &mut BytesMut, bytes: &[u8]) -> Result<usize, BodyError> {
    let mut taken = 0;
    while taken < bytes.len() && held.len() < GATHERED {
        let step = decoder.step(&bytes[taken..])?;
        if step.wire == 0 {
            break;
        }
        taken += step.wire;
        held.extend_from_slice(&bytes[taken - step.payload..taken]);
    }
    Ok(taken)
}

/// Why a body was not sent.
pub enum SendError {
    /// The library's own.
    H2(h2::Error),
    /// HTTP/2 has no way for its trailers; in words.
    Unfit(String),
    /// The stream takes no more; why, the answer's side says.
    Ended,
}

/// Sends what is held as far as the windows go, and the end of the body with its last bytes.
pub fn send(
    stream: &mut SendStream<Bytes>,
    decoder: &Decoder,
    held: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<Result<(), SendError>> {
    let trailers = match decoder.trailers() {
        [] => None,
        lines => Some(trailers_of(lines).map_err(SendError::Unfit)?),
    };
    while !held.is_empty() {
        stream.reserve_capacity(held.len());
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(SendError::H2(error))),
                None => return Poll::Ready(Err(SendError::Ended)),
            }
        }
        let part = held.split_to(held.len().min(stream.capacity())).freeze();
        let last = held.is_empty() && decoder.is_done() && trailers.is_none();
        stream.send_data(part, last).map_err(SendError::H2)?;
        if last {
            return Poll::Ready(Ok(()));
        }
    }
    if decoder.is_done() {
        let end: Option<HeaderMap> = trailers;
        match end {
            Some(trailers) => stream.send_trailers(trailers),
            None => stream.send_data(Bytes::new(), true),
        }
        .map_err(SendError::H2)?;
    }
    Poll::Ready(Ok(()))
}

/// Writes what stands before a chunk's data; CRLF follows them.
pub fn chunk(len: usize, out: &mut Vec<u8>) {
    write!(out, "{len:x}\r\n").expect("a Vec takes every write");
}

/// Writes the end of a chunked body. What may only stand in a head is left out: over HTTP/2 it can do no harm,
/// and it must not cost the answer that came with it.
pub fn last_chunk(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        fields(trailers, |name| !forbidden_in_trailer(name), out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a head's fields.
pub fn fields(headers: &HeaderMap, keep: impl Fn(&[u8]) -> bool, out: &mut Vec<u8>) {
    for (name, value) in headers {
        let name = name.as_str().as_bytes();
        if keep(name) {
            out.extend_from_slice(name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Trailers as they stand behind a chunked body, checked by its decoder.
///
/// # Errors
/// They are none: a mistake of hnp's.
fn trailers_of(lines: &[u8]) -> Result<HeaderMap, String> {
    let mut trailers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|error| error.to_string())?;
        let value =
            HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|error| error.to_string())?;
        trailers.append(name, value);
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_are_fields() {
        let trailers = trailers_of(b"X-Sum: 1\r\nx-sum:2\r\n").unwrap();
        assert_eq!(trailers.get_all("x-sum").iter().collect::<Vec<_>>(), ["1", "2"]);
    }
}
