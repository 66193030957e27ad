//! Asking a Workload API: one call of gRPC with an answer that never ends, over HTTP/2 on a UNIX socket.
//!
//! [`Subscription`] asks again whenever the stream ends, with pauses that grow while that fails; [`once`] takes one look. What is
//! needed of gRPC is a header, five bytes before each message and a status at the end: not worth a second HTTP client
//! in the agent, and here a message goes into one buffer, which is overwritten when it is dropped.

use std::fmt::Write as _;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use h2::RecvStream;
use http::{HeaderMap, Request, Version};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::error::{SpiffeError, Trouble};
use crate::backoff;

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause while there is nobody to ask: it costs one connect(2), and an agent that comes back is found within it.
const LONGEST_ALONE: Duration = Duration::from_secs(1);
/// The longest pause while somebody answers with errors.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The pause after an answer that says that asking again is no use. Somebody may have put another server there.
const FINAL_PAUSE: Duration = Duration::from_secs(300);
/// How long the first message of a stream may take. The standard wants it at once; SPIRE asks the kubelet about its caller
/// before that, for half a minute where the pod is new.
const FIRST_MESSAGE: Duration = Duration::from_secs(60);
/// The longest message that is read: gRPC's own default.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// A message's prefix: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// How long `check` and `doctor` wait for an answer.
pub const LOOK: Duration = Duration::from_secs(5);
/// The same where others wait behind it, at the start and at a reload.
pub const BRIEF_LOOK: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// X.509-SVIDs with their keys.
    X509Svids,
    /// X.509 bundles.
    X509Bundles,
}

impl Method {
    /// The service has no package in the published definition.
    const fn path(self) -> &'static str {
        match self {
            Self::X509Svids => "http://localhost/SpiffeWorkloadAPI/FetchX509SVID",
            Self::X509Bundles => "http://localhost/SpiffeWorkloadAPI/FetchX509Bundles",
        }
    }
}

/// A message as it came, with whatever secrets are in it.
pub type Message = Zeroizing<Vec<u8>>;

/// Where messages and failures go.
type Out = mpsc::Sender<Result<Message, SpiffeError>>;

/// Messages of one Workload API, for as long as this is polled.
pub struct Subscription {
    received: mpsc::Receiver<Result<Message, SpiffeError>>,
    sender: Option<Out>,
}

impl Subscription {
    /// None yet: [`Self::run`] asks.
    pub fn new() -> Self {
        // One at a time: a source that is busy has the next one wait in the socket.
        let (sender, received) = mpsc::channel(1);
        Self { received, sender: Some(sender) }
    }

    /// The half that asks; to be polled beside [`Self::next`], and dropped to end it.
    pub fn run(&mut self, socket: &Path, method: Method) -> impl Future<Output = ()> + Send + use<> {
        let (sender, socket) = (self.sender.take(), socket.to_owned());
        async move {
            let Some(sender) = sender else { return };
            let mut failures = 0;
            loop {
                let ended = stream(&socket, method, &sender).await;
                failures = if ended.gave { 1 } else { failures + 1 };
                let alone = matches!(ended.trouble, Some(Trouble::Unreachable(_)));
                let longest = if alone { LONGEST_ALONE } else { LONGEST_PAUSE };
                let mut pause = backoff::pause(FIRST_PAUSE, longest, failures);
                match ended.trouble {
                    None if sender.is_closed() => return,
                    None => {
                        tracing::debug!(socket = %socket.display(), "the Workload API's stream ended; asking again")
                    }
                    // Agents are restarted. What matters is whether it answers the next time.
                    Some(Trouble::Broken(why)) if ended.gave => {
                        tracing::debug!(socket = %socket.display(), why, "the Workload API's stream broke off; asking again");
                    }
                    Some(what) => {
                        let error = SpiffeError { socket: socket.clone(), what };
                        if error.is_final() {
                            pause = backoff::jittered(FINAL_PAUSE);
                        }
                        if sender.send(Err(error)).await.is_err() {
                            return;
                        }
                    }
                }
                sleep(pause).await;
            }
        }
    }

    /// The next message, or why none comes at the moment. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Message, SpiffeError>> {
        self.received.recv().await
    }
}

impl Default for Subscription {
    fn default() -> Self {
        Self::new()
    }
}

/// One look, on a thread of its own: wherever it is called, nobody has to wait for more than `deadline`.
///
/// # Errors
/// See [`SpiffeError`].
pub fn once(socket: &Path, method: Method, deadline: Duration) -> Result<Message, SpiffeError> {
    let failed = |what| SpiffeError { socket: socket.to_owned(), what };
    let look = || -> Result<Message, Trouble> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Trouble::Broken(error.to_string()))?;
        runtime.block_on(async {
            let (sender, mut received) = mpsc::channel(1);
            let ended = timeout(deadline, async {
                tokio::select! {
                    // What came before the end counts.
                    biased;
                    Some(first) = received.recv() => first.map_err(|error| error.what),
                    ended = stream(socket, method, &sender) => match received.try_recv() {
                        Ok(first) => first.map_err(|error| error.what),
                        Err(_) => {
                            let nothing = || Trouble::Broken("it ended without an answer".into());
                            Err(ended.trouble.unwrap_or_else(nothing))
                        }
                    }
                }
            })
            .await;
            ended.unwrap_or(Err(Trouble::Silent(deadline)))
        })
    };
    std::thread::scope(|scope| {
        let looking = scope.spawn(look);
        looking.join().unwrap_or_else(|_| Err(Trouble::Broken("looking at it failed".into())))
    })
    .map_err(failed)
}

/// How a call ended.
struct Ended {
    /// Messages had come.
    gave: bool,
    /// `None`: the server ended the stream in order, or nobody wants more of it.
    trouble: Option<Trouble>,
}

/// One call: every message to `out`, for as long as somebody takes them there.
async fn stream(socket: &Path, method: Method, out: &Out) -> Ended {
    let mut gave = false;
    let trouble = connect_and_call(socket, method, out, &mut gave).await.err();
    Ended { gave, trouble }
}

async fn connect_and_call(socket: &Path, method: Method, out: &Out, gave: &mut bool) -> Result<(), Trouble> {
    let io = UnixStream::connect(socket).await.map_err(Trouble::Unreachable)?;
    let handshake = h2::client::Builder::new().enable_push(false).handshake::<_, Bytes>(io).await;
    let (send, connection) = handshake.map_err(|error| broken(&error))?;
    let mut call = pin!(call(send, method, out, gave));
    let mut connection = pin!(connection);
    // What the connection has read last may be the reason why it ended.
    tokio::select! {
        ended = &mut call => return ended,
        _ = &mut connection => {}
    }
    call.await
}

async fn call(
    send: h2::client::SendRequest<Bytes>,
    method: Method,
    out: &Out,
    gave: &mut bool,
) -> Result<(), Trouble> {
    let request = Request::post(method.path())
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", concat!("hnp-agent/", env!("CARGO_PKG_VERSION")))
        // Keeps whoever can have somebody else's HTTP client ask from asking here (SPIFFE Workload Endpoint section 3).
        .header("workload.spiffe.io", "true")
        .body(())
        .expect("it is made of constants");
    let asked = async {
        let mut send = send.ready().await?;
        let (answer, mut body) = send.send_request(request, false)?;
        // An empty message: nothing can be asked for in particular.
        body.send_data(Bytes::from_static(&[0; PREFIX]), true)?;
        answer.await
    };
    let answer = match timeout(FIRST_MESSAGE, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(broken(&error)),
        Err(_) => return Err(Trouble::Silent(FIRST_MESSAGE)),
    };
    if !answer.status().is_success() {
        return Err(Trouble::Broken(format!("HTTP status {}", answer.status().as_u16())));
    }
    // An error alone comes without a body.
    if let Some(status) = status(answer.headers()) {
        return status;
    }
    let mut messages = Messages { body: answer.into_body(), chunk: Bytes::new() };
    let first = timeout(FIRST_MESSAGE, messages.next()).await;
    let mut next = first.unwrap_or(Err(Trouble::Silent(FIRST_MESSAGE)))?;
    while let Some(message) = next {
        *gave = true;
        if out.send(Ok(message)).await.is_err() {
            return Ok(());
        }
        next = messages.next().await?;
    }
    Ok(())
}

/// The messages of an answer.
struct Messages {
    body: RecvStream,
    /// What was received and is of no message yet.
    chunk: Bytes,
}

impl Messages {
    /// `None`: the stream ended in order.
    async fn next(&mut self) -> Result<Option<Message>, Trouble> {
        let mut prefix = [0; PREFIX];
        if !self.fill(&mut prefix, true).await? {
            let trailers = self.body.trailers().await.map_err(|error| broken(&error))?;
            return match trailers.as_ref().and_then(status) {
                Some(status) => status.map(|()| None),
                None => Err(Trouble::Broken("it ended without a status".into())),
            };
        }
        let [compressed, length @ ..] = prefix;
        let length = u32::from_be_bytes(length) as usize;
        if compressed != 0 {
            return Err(Trouble::Unreadable("it is compressed, which nobody asked for".into()));
        }
        if length > MAX_MESSAGE {
            return Err(Trouble::Unreadable(format!("it has {length} bytes, and {MAX_MESSAGE} are read")));
        }
        let mut message = Zeroizing::new(vec![0; length]);
        self.fill(&mut message, false).await?;
        Ok(Some(message))
    }

    /// Fills all of a buffer; false where the stream ended before its first byte, and `may_end` allows that.
    async fn fill(&mut self, buffer: &mut [u8], may_end: bool) -> Result<bool, Trouble> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.chunk.is_empty() {
                match self.body.data().await {
                    Some(Ok(chunk)) => {
                        // All of it is taken at once; the next may come.
                        let _ = self.body.flow_control().release_capacity(chunk.len());
                        self.chunk = chunk;
                        continue;
                    }
                    Some(Err(error)) => return Err(broken(&error)),
                    None if filled == 0 && may_end => return Ok(false),
                    None => return Err(Trouble::Unreadable("it ends in the middle of a message".into())),
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
fn status(headers: &HeaderMap) -> Option<Result<(), Trouble>> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|text| text.parse().ok());
    // Anything but a number is what gRPC calls unknown.
    let code = code.unwrap_or(2);
    if code == 0 {
        return Some(Ok(()));
    }
    let message = headers.get("grpc-message").map(|value| printable(value.as_bytes())).unwrap_or_default();
    Some(Err(Trouble::Status { code, message }))
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

fn broken(error: &h2::Error) -> Trouble {
    Trouble::Broken(error.to_string())
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
