//! HTTP/1.1 as both the manager and the load client speak it: heads kept exactly as they came,
//! bodies handed on piece by piece. Deliberately apart from the agent's own code, so that one
//! misreading cannot hide in both.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// The TCP connection below.
    fn tcp(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Stream for tokio_rustls::server::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Heads longer than this are an error.
const HEAD_MAX: usize = 1 << 20;

/// A connection with what was read from it and not used yet.
pub struct Wire {
    io: Box<dyn Stream>,
    pending: Vec<u8>,
    received: Arc<AtomicU64>,
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// This many bytes.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// Until the connection is closed.
    UntilClose,
}

/// A parsed head.
#[derive(Clone, Debug)]
pub struct Head {
    /// As received, with the empty line at its end.
    pub raw: Vec<u8>,
    /// The request line or status line, without its line end.
    pub start_line: String,
    /// Names as received, values without surrounding white space.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Parses a complete head.
    ///
    /// # Errors
    /// When a line is not a header.
    pub fn parse(raw: Vec<u8>) -> io::Result<Self> {
        let mut storage = vec![httparse::EMPTY_HEADER; 256];
        let first_line = raw.iter().position(|&byte| byte == b'\n').ok_or_else(|| bad("no line end"))?;
        let (_, parsed) = match httparse::parse_headers(&raw[first_line + 1..], &mut storage) {
            Ok(httparse::Status::Complete(done)) => done,
            Ok(httparse::Status::Partial) => return Err(bad("the head is not complete")),
            Err(error) => return Err(bad(&format!("{error} in {:?}", String::from_utf8_lossy(&raw)))),
        };
        let headers = parsed
            .iter()
            .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()))
            .collect();
        let start_line = String::from_utf8_lossy(&raw[..first_line]).trim_end().to_owned();
        Ok(Self { start_line, headers, raw })
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The status, of an answer's head.
    ///
    /// # Errors
    /// When the status line has none.
    pub fn status(&self) -> io::Result<u16> {
        let code = self.start_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        code.ok_or_else(|| bad(&format!("no status in {:?}", self.start_line)))
    }

    /// Whether the connection ends with this message.
    pub fn closes(&self) -> bool {
        let connection = self.header("connection").unwrap_or_default().to_ascii_lowercase();
        let old = self.start_line.contains("HTTP/1.0");
        connection.contains("close") || (old && !connection.contains("keep-alive"))
    }

    /// The framing that the headers announce; `otherwise` where they announce none.
    ///
    /// # Errors
    /// When a length is no number.
    pub fn framing(&self, otherwise: Framing) -> io::Result<Framing> {
        if self.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return Ok(Framing::Chunked);
        }
        match self.header("content-length") {
            Some(length) => length.parse().map(Framing::Length).map_err(|_| bad("content-length")),
            None => Ok(otherwise),
        }
    }
}

impl Wire {
    /// Takes a connection over.
    pub fn new(io: Box<dyn Stream>, received: Arc<AtomicU64>) -> Self {
        Self { io, pending: Vec::new(), received }
    }

    /// Reads some more; `false` at the end of the stream.
    async fn fill(&mut self) -> io::Result<bool> {
        let before = self.pending.len();
        self.pending.reserve(64 * 1024);
        let count = self.io.read_buf(&mut self.pending).await?;
        debug_assert_eq!(self.pending.len(), before + count);
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count > 0)
    }

    /// Reads a head; `None` when the stream ends before its first byte.
    ///
    /// # Errors
    /// When it ends within the head, or the head is none.
    pub async fn read_head(&mut self) -> io::Result<Option<Head>> {
        let mut searched = 0;
        loop {
            if let Some(end) = find(&self.pending[searched..], b"\r\n\r\n").map(|at| searched + at + 4) {
                let rest = self.pending.split_off(end);
                return Head::parse(std::mem::replace(&mut self.pending, rest)).map(Some);
            }
            searched = self.pending.len().saturating_sub(3);
            if searched > HEAD_MAX {
                return Err(bad("the head does not end"));
            }
            if !self.fill().await? {
                return if self.pending.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Reads a body and hands its payload to `sink` as it arrives; returns its length.
    ///
    /// # Errors
    /// When the stream ends early or a chunk is malformed.
    pub async fn read_body(
        &mut self,
        framing: Framing,
        sink: &mut (dyn FnMut(&[u8]) + Send),
    ) -> io::Result<u64> {
        match framing {
            Framing::Length(length) => self.read_exactly(length, sink).await.map(|()| length),
            Framing::UntilClose => {
                let mut total = 0;
                loop {
                    sink(&self.pending);
                    total += self.pending.len() as u64;
                    self.pending.clear();
                    if !self.fill().await? {
                        return Ok(total);
                    }
                }
            }
            Framing::Chunked => {
                let mut total = 0;
                loop {
                    let line = self.read_line().await?;
                    let digits = line.split(';').next().unwrap_or_default().trim();
                    let size =
                        u64::from_str_radix(digits, 16).map_err(|_| bad(&format!("chunk size {line:?}")))?;
                    if size == 0 {
                        while !self.read_line().await?.is_empty() {}
                        return Ok(total);
                    }
                    self.read_exactly(size, sink).await?;
                    if !self.read_line().await?.is_empty() {
                        return Err(bad("no line end after a chunk"));
                    }
                    total += size;
                }
            }
        }
    }

    async fn read_exactly(&mut self, length: u64, sink: &mut (dyn FnMut(&[u8]) + Send)) -> io::Result<()> {
        let mut left = length;
        loop {
            let usable = usize::try_from(left).unwrap_or(usize::MAX).min(self.pending.len());
            sink(&self.pending[..usable]);
            self.pending.drain(..usable);
            left -= usable as u64;
            if left == 0 {
                return Ok(());
            }
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn read_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.pending, b"\r\n") {
                let line = String::from_utf8_lossy(&self.pending[..end]).into_owned();
                self.pending.drain(..end + 2);
                return Ok(line);
            }
            if self.pending.len() > HEAD_MAX || !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads whatever comes next; empty at the end of the stream.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn read_some(&mut self) -> io::Result<Vec<u8>> {
        if self.pending.is_empty() {
            self.fill().await?;
        }
        Ok(std::mem::take(&mut self.pending))
    }

    /// Writes all of it, and flushes.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// Makes the end of this connection a reset.
    pub fn reset_on_close(&self) {
        // A connection that is gone already needs no reset.
        let _ = socket2::SockRef::from(self.io.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Ends our direction; the other one stays open.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.io.shutdown().await
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

/// Where `needle` begins in `haystack`.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
