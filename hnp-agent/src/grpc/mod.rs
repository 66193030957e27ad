//! gRPC over HTTP/2 on a UNIX socket, as its client: what the SPIFFE Workload API and the container runtime are asked by.
//!
//! What is needed of gRPC is a header, five bytes before each message and a status at the end: not worth a second HTTP
//! client in the agent, and here a message goes into one buffer, which is overwritten when it is dropped.

pub mod wire;

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Version};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

/// A message's prefix: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A message as it came, with whatever secrets are in it.
pub type Message = Zeroizing<Vec<u8>>;

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The socket cannot be opened.
    #[error("the socket cannot be opened: {0}")]
    Unreachable(io::Error),
    /// Nothing came in time.
    #[error("no answer within {}", crate::config::humane(*.0))]
    Silent(Duration),
    /// The conversation broke off, or is none.
    #[error("the conversation broke off: {0}")]
    Broken(String),
    /// It was answered with an error.
    #[error("refused with gRPC status {code}: {message}")]
    Status {
        /// Its number.
        code: u32,
        /// Its words.
        message: String,
    },
    /// What came is no answer.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
}

/// What is called.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The URI: `http://localhost/SERVICE/METHOD`.
    pub method: &'static str,
    /// A header that the service wants besides.
    pub header: Option<(&'static str, &'static str)>,
    /// The question.
    pub message: &'a [u8],
    /// The longest message that is read, in bytes.
    pub longest: usize,
}

/// A connection to call on, as often as one likes. Clones are the same.
#[derive(Clone)]
pub struct Calls(SendRequest<Bytes>);

/// Connects; calls make progress while the second half is polled, and fail when it has ended.
///
/// # Errors
/// See [`Failure`].
pub async fn open(socket: &Path) -> Result<(Calls, impl Future<Output = ()> + Send + use<>), Failure> {
    let io = UnixStream::connect(socket).await.map_err(Failure::Unreachable)?;
    let handshake = h2::client::Builder::new().enable_push(false).handshake::<_, Bytes>(io).await;
    let (send, connection) = handshake.map_err(|error| broken(&error))?;
    // Why it ended is said to the calls.
    let driven = async move { drop(connection.await) };
    Ok((Calls(send), driven))
}

impl Calls {
    /// Sends a question; what comes of it has to be waited for.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn call(&self, call: &Call<'_>) -> Result<Messages, Failure> {
        let mut request = Request::post(call.method)
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", concat!("hnp-agent/", env!("CARGO_PKG_VERSION")));
        if let Some((name, value)) = call.header {
            request = request.header(name, value);
        }
        let request = request.body(()).expect("it is made of constants");
        let length = u32::try_from(call.message.len()).expect("questions are short").to_be_bytes();
        let framed = Bytes::from([&[0][..], &length, call.message].concat());
        let asked = async {
            let mut send = self.0.clone().ready().await?;
            let (answer, mut body) = send.send_request(request, false)?;
            body.send_data(framed, true)?;
            answer.await
        };
        let answer = asked.await.map_err(|error| broken(&error))?;
        if !answer.status().is_success() {
            return Err(Failure::Broken(format!("HTTP status {}", answer.status().as_u16())));
        }
        // An error alone comes without a body.
        let body = match status(answer.headers()) {
            Some(status) => {
                status?;
                None
            }
            None => Some(answer.into_body()),
        };
        Ok(Messages { body, chunk: Bytes::new(), longest: call.longest })
    }

    /// Asks for one answer.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn ask(&self, call: &Call<'_>) -> Result<Message, Failure> {
        let mut messages = self.call(call).await?;
        let answer = messages.next().await?;
        let answer = answer.ok_or_else(|| Failure::Broken("it ended without an answer".into()))?;
        // Its status may say that it was none.
        while messages.next().await?.is_some() {}
        Ok(answer)
    }
}

/// The messages of an answer.
pub struct Messages {
    body: Option<RecvStream>,
    /// What was received and is of no message yet.
    chunk: Bytes,
    longest: usize,
}

impl Messages {
    /// `None`: the stream ended in order.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn next(&mut self) -> Result<Option<Message>, Failure> {
        let mut prefix = [0; PREFIX];
        if !self.fill(&mut prefix, true).await? {
            let Some(body) = &mut self.body else { return Ok(None) };
            let trailers = body.trailers().await.map_err(|error| broken(&error))?;
            return match trailers.as_ref().and_then(status) {
                Some(status) => status.map(|()| None),
                None => Err(Failure::Broken("it ended without a status".into())),
            };
        }
        let [compressed, length @ ..] = prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(Failure::Unreadable("it is compressed, which nobody asked for".into()));
        }
        if length > self.longest {
            return Err(Failure::Unreadable(format!("it has {length} bytes, and {} are read", self.longest)));
        }
        let mut message = Zeroizing::new(vec![0; length]);
        self.fill(&mut message, false).await?;
        Ok(Some(message))
    }

    /// Fills all of a buffer; false where the stream ended before its first byte, and `may_end` allows that.
    async fn fill(&mut self, buffer: &mut [u8], may_end: bool) -> Result<bool, Failure> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.chunk.is_empty() {
                let Some(body) = &mut self.body else { return Ok(false) };
                match body.data().await {
                    Some(Ok(chunk)) => {
                        // All of it is taken at once; the next may come.
                        let _ = body.flow_control().release_capacity(chunk.len());
                        self.chunk = chunk;
                        continue;
                    }
                    Some(Err(error)) => return Err(broken(&error)),
                    None if filled == 0 && may_end => return Ok(false),
                    None => return Err(Failure::Unreadable("it ends in the middle of a message".into())),
                }
            }
            let length = self.chunk.len().min(buffer.len() - filled);
            self.chunk.copy_to_slice(&mut buffer[filled..filled + length]);
            filled += length;
        }
        Ok(true)
    }
}

/// The status of gRPC among headers or trailers, if there is one.
fn status(headers: &HeaderMap) -> Option<Result<(), Failure>> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|text| text.parse().ok());
    // Anything but a number is what gRPC calls unknown.
    let code = code.unwrap_or(2);
    if code == 0 {
        return Some(Ok(()));
    }
    let message = headers.get("grpc-message").map(|value| printable(value.as_bytes())).unwrap_or_default();
    Some(Err(Failure::Status { code, message }))
}

/// A server's words on one line, not without end. They come percent-encoded; what nobody can read stays so.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes.iter().take(512);
    while let Some(byte) = rest.next() {
        let mut ahead = rest.clone();
        let digits = [ahead.next(), ahead.next()].map(|digit| char::from(*digit?).to_digit(16));
        let byte = match (byte, digits) {
            (b'%', [Some(high), Some(low)]) => {
                rest = ahead;
                u8::try_from(high << 4 | low).expect("two digits")
            }
            _ => *byte,
        };
        match byte {
            0x20..0x7f => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

fn broken(error: &h2::Error) -> Failure {
    Failure::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn a_servers_words_are_decoded_and_stay_on_their_line() {
        assert_eq!(printable(b"no%20identity%20issued"), "no identity issued");
        assert_eq!(printable(b"100% of%zz%4"), "100% of%zz%4");
        assert_eq!(printable(b"a%0ab%C3%A4%1b[0m\r"), "a%0Ab%C3%A4%1B[0m%0D");
        assert_eq!(printable(&[b'a'; 4096]).len(), 512);
    }
}
