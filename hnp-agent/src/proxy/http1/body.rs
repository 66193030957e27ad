//! Where a message's body ends: framing as a state machine over bytes, without I/O.
//!
//! Bodies are forwarded byte for byte as they came, so this decoder only *checks* and *counts*: it
//! says how many of the bytes at hand belong to the body and whether it is over. It is strict where
//! lenient readers disagree (RFC 9112 section 7.1): every line ends in CRLF, sizes are plain hex,
//! extensions are printable, and trailers cannot carry what only a head may say.

use super::syntax::{forbidden_in_trailer, is_field_value_byte, is_token_byte};

/// The longest chunk-size line, extensions included. Nobody needs more than the size itself.
const MAX_SIZE_LINE: usize = 256;
/// All trailer lines together.
const MAX_TRAILER: usize = 8 * 1024;

/// How a message says where its body ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// There is no body.
    None,
    /// `Content-Length`, in bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Until the sender closes; answers only.
    UntilClose,
}

/// The rule a body broke.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// The chunk-size line is not hex digits, an optional extension and CRLF.
    #[error("malformed chunk size line")]
    ChunkSize,
    /// A chunk's data is not followed by CRLF.
    #[error("chunk data is not followed by CRLF")]
    ChunkEnd,
    /// A trailer line is malformed.
    #[error("malformed trailer")]
    Trailer,
    /// A trailer names a field that only a head may carry.
    #[error("a trailer carries a field that belongs in the head")]
    TrailerField,
    /// The trailers are larger than 8 KiB.
    #[error("trailers are too large")]
    TrailerTooLarge,
}

/// What one call of [`Decoder::step`] found at the front of its input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// How many bytes, from the front, belong to the body as it is on the wire.
    pub wire: usize,
    /// How many of those, at their end, are payload; the rest is chunk framing.
    pub payload: usize,
}

/// Follows one body. Feed it what arrived until [`Decoder::is_done`].
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Boxed: rare, and every connection's future would hold it.
    trailers: Option<Box<TrailerLine>>,
}

#[derive(Debug)]
enum State {
    Length(u64),
    UntilClose,
    Size(SizeLine),
    Data(u64),
    DataCr,
    DataLf,
    Trailer(Box<TrailerLine>),
    Done,
}

/// A chunk-size line being read.
#[derive(Debug, Default)]
struct SizeLine {
    size: u64,
    digits: u8,
    len: usize,
    extension: bool,
    cr: bool,
}

/// The trailer section being read, a line at a time.
#[derive(Debug, Default)]
struct TrailerLine {
    line: Vec<u8>,
    whole: Vec<u8>,
    total: usize,
    cr: bool,
}

impl Decoder {
    /// A decoder at the start of a body.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::Size(SizeLine::default()),
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, trailers: None }
    }

    /// The body ended exactly.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The lines between the last chunk and the end, as they were; none before that.
    pub fn trailers(&self) -> &[u8] {
        self.trailers.as_ref().map_or(&[], |lines| &lines.whole)
    }

    /// The end of the stream is this body's end.
    pub fn ends_at_close(&self) -> bool {
        matches!(self.state, State::UntilClose)
    }

    /// Looks at the front of `input`: framing bytes up to and including one run of payload. A step
    /// of zero bytes means that the body is over or that `input` is empty.
    ///
    /// # Errors
    /// The rule that was broken; the message cannot be followed any further.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        let mut at = 0;
        while at < input.len() {
            match &mut self.state {
                State::Done => break,
                State::UntilClose => {
                    let payload = input.len() - at;
                    return Ok(Step { wire: input.len(), payload });
                }
                State::Length(left) | State::Data(left) => {
                    let payload = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len() - at);
                    *left -= payload as u64;
                    if *left == 0 {
                        self.state = match self.state {
                            State::Data(_) => State::DataCr,
                            _ => State::Done,
                        };
                    }
                    return Ok(Step { wire: at + payload, payload });
                }
                State::Size(line) => {
                    if let Some(size) = line.push(input[at])? {
                        self.state = match size {
                            0 => State::Trailer(Box::default()),
                            n => State::Data(n),
                        };
                    }
                    at += 1;
                }
                State::DataCr => {
                    if input[at] != b'\r' {
                        return Err(BodyError::ChunkEnd);
                    }
                    self.state = State::DataLf;
                    at += 1;
                }
                State::DataLf => {
                    if input[at] != b'\n' {
                        return Err(BodyError::ChunkEnd);
                    }
                    self.state = State::Size(SizeLine::default());
                    at += 1;
                }
                State::Trailer(lines) => {
                    if lines.push(input[at])? {
                        self.trailers = Some(std::mem::take(lines));
                        self.state = State::Done;
                    }
                    at += 1;
                }
            }
        }
        Ok(Step { wire: at, payload: 0 })
    }
}

impl SizeLine {
    /// Takes one byte; the chunk's size once the line is complete.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, BodyError> {
        self.len += 1;
        if self.len > MAX_SIZE_LINE {
            return Err(BodyError::ChunkSize);
        }
        if self.cr {
            return if byte == b'\n' { Ok(Some(self.size)) } else { Err(BodyError::ChunkSize) };
        }
        match byte {
            b'\r' if self.digits > 0 => self.cr = true,
            b';' if self.digits > 0 => self.extension = true,
            _ if self.extension => {
                if !(byte == b'\t' || (0x20..0x7f).contains(&byte)) {
                    return Err(BodyError::ChunkSize);
                }
            }
            _ => {
                let digit = char::from(byte).to_digit(16).ok_or(BodyError::ChunkSize)?;
                // 15 digits are 2^60 bytes: no sum of ours can overflow.
                if self.digits == 15 {
                    return Err(BodyError::ChunkSize);
                }
                self.digits += 1;
                self.size = self.size << 4 | u64::from(digit);
            }
        }
        Ok(None)
    }
}

impl TrailerLine {
    /// Takes one byte; true once the empty line that ends the section was read.
    fn push(&mut self, byte: u8) -> Result<bool, BodyError> {
        self.total += 1;
        if self.total > MAX_TRAILER {
            return Err(BodyError::TrailerTooLarge);
        }
        if self.cr {
            if byte != b'\n' {
                return Err(BodyError::Trailer);
            }
            self.cr = false;
            if self.line.is_empty() {
                return Ok(true);
            }
            check_trailer(&self.line)?;
            self.whole.append(&mut self.line);
            self.whole.extend_from_slice(b"\r\n");
        } else if byte == b'\r' {
            self.cr = true;
        } else {
            self.line.push(byte);
        }
        Ok(false)
    }
}

fn check_trailer(line: &[u8]) -> Result<(), BodyError> {
    let colon = line.iter().position(|b| *b == b':').ok_or(BodyError::Trailer)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty()
        || !name.iter().all(|b| is_token_byte(*b))
        || !value.iter().all(|b| is_field_value_byte(*b))
    {
        return Err(BodyError::Trailer);
    }
    if forbidden_in_trailer(name) {
        return Err(BodyError::TrailerField);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a whole input through, `piece` bytes at a time: bytes of the body, and its payload.
    fn run(framing: Framing, input: &[u8], piece: usize) -> Result<(usize, Vec<u8>, bool), BodyError> {
        let mut decoder = Decoder::new(framing);
        let (mut wire, mut payload) = (0, Vec::new());
        'pieces: for part in input.chunks(piece) {
            let mut at = 0;
            while at < part.len() {
                let step = decoder.step(&part[at..])?;
                if step.wire == 0 {
                    break 'pieces;
                }
                at += step.wire;
                wire += step.wire;
                payload.extend_from_slice(&part[at - step.payload..at]);
            }
        }
        Ok((wire, payload, decoder.is_done()))
    }

    #[test]
    fn chunked_bodies_end_exactly_whatever_the_pieces() {
        let input = b"4\r\nWiki\r\n6;name=\"v\"\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nX-Sum: 1\r\n\r\nGET / NEXT";
        for piece in 1..input.len() {
            let (wire, payload, done) = run(Framing::Chunked, input, piece).unwrap();
            assert!(done);
            assert_eq!(&input[wire..], b"GET / NEXT");
            assert_eq!(payload, b"Wikipedia in \r\n\r\nchunks.");
        }
    }

    #[test]
    fn trailers_are_kept_as_they_were() {
        let mut decoder = Decoder::new(Framing::Chunked);
        let input = b"1\r\na\r\n0\r\nX-Sum:  1\r\nx-b: 2\r\n\r\n";
        let mut at = 0;
        while !decoder.is_done() {
            at += decoder.step(&input[at..][..1]).unwrap().wire;
        }
        assert_eq!(decoder.trailers(), b"X-Sum:  1\r\nx-b: 2\r\n");
    }

    #[test]
    fn a_length_takes_its_bytes_and_no_more() {
        let (wire, payload, done) = run(Framing::Length(5), b"helloNEXT", 3).unwrap();
        assert_eq!((wire, payload.as_slice(), done), (5, b"hello".as_slice(), true));
        let (_, _, done) = run(Framing::Length(5), b"hell", 4).unwrap();
        assert!(!done);
    }

    #[test]
    fn what_lenient_readers_disagree_about_is_refused() {
        for (input, error) in [
            (&b"4\nWiki\r\n0\r\n\r\n"[..], BodyError::ChunkSize),
            (b"0x4\r\nWiki\r\n", BodyError::ChunkSize),
            (b"+4\r\nWiki\r\n", BodyError::ChunkSize),
            (b" 4\r\nWiki\r\n", BodyError::ChunkSize),
            (b"4 \r\nWiki\r\n", BodyError::ChunkSize),
            (b"\r\nWiki\r\n", BodyError::ChunkSize),
            (b";x\r\nWiki\r\n", BodyError::ChunkSize),
            (b"4;a\nb\r\nWiki\r\n", BodyError::ChunkSize),
            (b"4;a\rb\r\nWiki\r\n", BodyError::ChunkSize),
            (b"1000000000000000\r\n", BodyError::ChunkSize),
            (b"4\r\nWikiX\r\n", BodyError::ChunkEnd),
            (b"4\r\nWiki\n", BodyError::ChunkEnd),
            (b"0\r\nno colon\r\n\r\n", BodyError::Trailer),
            (b"0\r\n folded: x\r\n\r\n", BodyError::Trailer),
            (b"0\r\na: b\n\r\n", BodyError::Trailer),
            (b"0\r\nContent-Length: 3\r\n\r\n", BodyError::TrailerField),
            (b"0\r\nX-Forwarded-Client-Cert: Hash=1\r\n\r\n", BodyError::TrailerField),
        ] {
            for piece in [1, 2, input.len()] {
                assert_eq!(run(Framing::Chunked, input, piece).map(|_| ()), Err(error), "{input:?}");
            }
        }
    }

    #[test]
    fn lines_without_end_are_refused() {
        let endless = [b"1;".as_slice(), &[b'a'; 300]].concat();
        assert_eq!(run(Framing::Chunked, &endless, 7).map(|_| ()), Err(BodyError::ChunkSize));
        let endless = [b"0\r\na: ".as_slice(), &[b'a'; 9000]].concat();
        assert_eq!(run(Framing::Chunked, &endless, 7).map(|_| ()), Err(BodyError::TrailerTooLarge));
    }
}
