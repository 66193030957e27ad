//! A client's HTTP/1.1 connection: wait, read a head, forward, again.
//!
//! While it waits for a request it holds no buffer. What cannot be forwarded is refused here, before
//! anything was sent to anybody.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use hnp_common::Reason;
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep, timeout};

use super::body::{Decoder, Framing};
use super::forward::{self, Next};
use super::head::{HeadError, find_end};
use super::request::Request;
use super::syntax::is_token_byte;
use crate::proxy::answer::{self, Answer};
use crate::proxy::buffer::Buffer;
use crate::proxy::connection::Client;
use crate::proxy::http2::Patience;
use crate::proxy::record::Recording;
use crate::proxy::worker::{Lanes, Since, Worker};
use crate::proxy::{gateway, http2, tls};
use crate::telemetry::migration::Beginning;
use crate::telemetry::record::HttpRecord;
use crate::upstream::UpstreamConnection;

/// The first byte of a TLS handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// How long a drain waits for a request that may be on its way: of a connection just accepted, or
/// sent before the client could know.
const LAST_CALL: Duration = Duration::from_millis(500);

/// A request that can be forwarded.
pub struct Incoming {
    /// Its head, parsed.
    pub request: Request,
    /// The head's length at the front of the buffer.
    pub head_len: usize,
    /// The body's length behind it, when all of it was read already.
    pub whole_body: Option<usize>,
}

/// What the client begins with.
enum Begun {
    /// A request.
    Request(Incoming),
    /// A TLS handshake.
    Tls,
    /// HTTP/2.
    Http2,
}

/// Why no request came out of what the client sent.
pub(in crate::proxy) enum Refusal {
    /// It ended, as connections do, or stopping was asked for.
    Quiet(Reason),
    /// It deserves an answer.
    Answer(Reason, String),
    /// It speaks something else, or the socket failed.
    Reset(Reason, String),
}

impl Refusal {
    fn beginning(&self) -> Beginning {
        match self {
            Self::Quiet(_) => Beginning::Nothing,
            Self::Answer(..) | Self::Reset(..) => Beginning::Other,
        }
    }
}

/// Serves requests until the connection ends, each by the configuration of its moment.
pub async fn serve(lanes: &Lanes, mut worker: Rc<Worker>, mut client: Box<Client>) {
    let mut kept: Option<UpstreamConnection> = None;
    let mut buffer = client.begun();
    loop {
        let idle = worker.plan.routes[client.routes[0]].timeouts.idle;
        // Whatever is empty is dropped here, and not held while the connection waits.
        let begun = buffer.take().filter(|bytes| !bytes.is_empty());
        let mut bytes = match begun {
            Some(bytes) => bytes,
            None => match wait(&worker, &mut client, idle).await {
                Ok(bytes) => bytes,
                Err(reason) => {
                    let first = client.routes[0];
                    client.begins_with(&worker, first, Beginning::Nothing);
                    return worker.stats.connection_ended(Some(first), reason);
                }
            },
        };
        let incoming = match read_request(&worker, &mut client, &mut bytes).await {
            Ok(Begun::Request(incoming)) => incoming,
            Ok(Begun::Tls) => {
                keep_up(lanes, &mut worker, &mut client);
                return Box::pin(tls::serve(lanes, worker, client, bytes)).await;
            }
            Ok(Begun::Http2) => {
                keep_up(lanes, &mut worker, &mut client);
                let first = client.routes[0];
                client.begins_with(&worker, first, Beginning::Http2);
                let timeouts = &worker.plan.routes[client.routes[0]].timeouts;
                let patience = Patience { head: timeouts.head, idle: timeouts.idle };
                let one = |stream| serve_one(lanes, worker.clone(), stream);
                return Box::pin(http2::serve(lanes, &worker, client, bytes, patience, one)).await;
            }
            Err(refusal) => {
                let (first, beginning) = (client.routes[0], refusal.beginning());
                client.begins_with(&worker, first, beginning);
                return Box::pin(refuse(&worker, &mut client, refusal)).await;
            }
        };
        keep_up(lanes, &mut worker, &mut client);
        // Boxed: a connection that waits must not hold the room that a request takes.
        let next = Box::pin(forward::forward(&worker, &mut client, &mut bytes, incoming, &mut kept)).await;
        match next {
            Next::Again => buffer = Some(bytes),
            Next::Close(reason) => {
                worker.stats.connection_ended(Some(client.routes[0]), reason);
                return Box::pin(answer::linger(&mut client.stream)).await;
            }
            Next::End(reason) => return worker.stats.connection_ended(Some(client.routes[0]), reason),
        }
    }
}

/// Serves the one request of a stream of HTTP/2.
async fn serve_one(lanes: &Lanes, mut worker: Rc<Worker>, mut client: Box<Client>) {
    let mut bytes = worker.stock.buffer();
    match read_request(&worker, &mut client, &mut bytes).await {
        Ok(Begun::Request(incoming)) => {
            keep_up(lanes, &mut worker, &mut client);
            let next = forward::forward(&worker, &mut client, &mut bytes, incoming, &mut None).await;
            if let Next::Again | Next::Close(_) = next {
                // A client that is gone takes no answer; the record has been written.
                let _ = client.stream.shutdown().await;
            }
        }
        // Nothing within a stream begins anew.
        Ok(Begun::Tls | Begun::Http2) => client.stream.reset_on_close(),
        Err(refusal) => refuse(&worker, &mut client, refusal).await,
    }
}

/// Moves a connection to the newest generation before its next request is judged: what became strict
/// passes nothing on any more. Where nobody serves its destination that way now, the request is the last.
fn keep_up(lanes: &Lanes, worker: &mut Rc<Worker>, client: &mut Client) {
    if client.asked.is_some() {
        return gateway::keep_up(lanes, worker, client);
    }
    match lanes.since(worker, client.flow.vip) {
        Since::Same => {}
        Since::Changed(next, entry)
            if entry.destination.contains(client.destination)
                && !next.plan.routes[entry.routes[0]].is_opaque() =>
        {
            *worker = next;
            client.routes = entry.routes;
        }
        Since::Changed(..) | Since::Gone => client.last = true,
    }
}

/// Waits, without a buffer, until the client sends something.
pub(in crate::proxy) async fn wait(
    worker: &Worker,
    client: &mut Client,
    idle: Duration,
) -> Result<Buffer, Reason> {
    let mut deadline = pin!(sleep(idle));
    let mut stopping = false;
    loop {
        // All branches are cancel-safe: none of them takes a byte. Bytes first: they were on their way.
        tokio::select! {
            biased;
            readable = client.stream.readable() => readable.map_err(|_| Reason::ClientGone)?,
            () = worker.stop.cancelled(), if !stopping => {
                stopping = true;
                deadline.as_mut().reset(Instant::now() + LAST_CALL);
                continue;
            }
            () = &mut deadline => {
                return Err(if stopping { Reason::Ok } else { Reason::IdleTimeout });
            }
        }
        // Readiness may be a false alarm; only bytes begin a request and its deadline.
        let mut bytes = worker.stock.buffer();
        match bytes.try_fill(&mut client.stream) {
            Ok(0) => return Err(Reason::Ok),
            Ok(_) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Reason::ClientGone),
        }
    }
}

async fn read_request(worker: &Worker, client: &mut Client, bytes: &mut Buffer) -> Result<Begun, Refusal> {
    let deadline = worker.plan.routes[client.routes[0]].timeouts.head;
    match timeout(deadline, read_head(worker, client, bytes)).await {
        Ok(Ok(None)) => Ok(Begun::Tls),
        Ok(Ok(Some(head_len))) if bytes.filled()[..head_len] == *http2::PREFACE_HEAD => Ok(Begun::Http2),
        Ok(Ok(Some(head_len))) => parse(bytes, head_len)
            .map(Begun::Request)
            .map_err(|error| Refusal::Answer(reason_of(error.0), error.1)),
        Ok(Err(refusal)) => Err(refusal),
        Err(_) if bytes.is_empty() => Err(Refusal::Quiet(Reason::IdleTimeout)),
        Err(_) => Err(Refusal::Answer(
            Reason::HeadTimeout,
            format!("the head was not complete within {deadline:?}"),
        )),
    }
}

/// Reads until a head is complete, and says where it ends; `None`: it is no head, TLS begins here.
pub(in crate::proxy) async fn read_head(
    worker: &Worker,
    client: &mut Client,
    bytes: &mut Buffer,
) -> Result<Option<usize>, Refusal> {
    let limit = worker.plan.limits.head_bytes;
    let mut scanned = 0;
    let mut skipped = 0;
    loop {
        // An empty line before a request is an old client's mistake, to be ignored (RFC 9112 section 2.2).
        while skipped < 2 && bytes.filled().starts_with(b"\r\n") {
            bytes.consume(2);
            skipped += 1;
            scanned = 0;
        }
        match bytes.filled().first() {
            Some(&TLS_HANDSHAKE) if client.admitted.is_none() => return Ok(None),
            Some(&first) if !is_token_byte(first) && first != b'\r' => {
                let detail = format!("the first byte, {first:#04x}, begins no HTTP request");
                return Err(Refusal::Reset(Reason::ProtocolRefused, detail));
            }
            Some(_) | None => {}
        }
        match find_end(bytes.filled(), &mut scanned, limit) {
            Ok(Some(len)) => return Ok(Some(len)),
            Ok(None) => {}
            Err(error) => return Err(Refusal::Answer(reason_of(Some(error)), error.to_string())),
        }
        match poll_fn(|cx| bytes.poll_fill(&mut client.stream, cx, limit)).await {
            Ok(0) if bytes.is_empty() => return Err(Refusal::Quiet(Reason::Ok)),
            Ok(0) => return Err(Refusal::Reset(Reason::ClientGone, "closed in the middle of a head".into())),
            Ok(_) => {}
            Err(error) if bytes.is_empty() && error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(Refusal::Quiet(Reason::ClientGone));
            }
            Err(error) => return Err(Refusal::Reset(Reason::ClientGone, error.to_string())),
        }
    }
}

/// Parses the head and looks at what is there of the body: what is malformed in the bytes at hand is
/// refused before a byte of the request was sent on.
pub(in crate::proxy) fn parse(
    bytes: &Buffer,
    head_len: usize,
) -> Result<Incoming, (Option<HeadError>, String)> {
    let filled = bytes.filled();
    let request = Request::parse(&filled[..head_len]).map_err(|error| (Some(error), error.to_string()))?;
    let mut decoder = Decoder::new(request.framing);
    let mut at = head_len;
    while at < filled.len() && !decoder.is_done() {
        at += decoder.step(&filled[at..]).map_err(|error| (None, error.to_string()))?.wire;
    }
    let whole_body = decoder.is_done().then_some(at - head_len);
    Ok(Incoming { request, head_len, whole_body })
}

/// Ends a connection on which no request came; it may have no route yet.
pub(in crate::proxy) async fn refuse(worker: &Worker, client: &mut Client, refusal: Refusal) {
    let route = client.routes.first().copied();
    let name = route.map(|route| worker.plan.routes[route].name.clone());
    let mut recording = match refusal {
        Refusal::Quiet(reason) => return worker.stats.connection_ended(route, reason),
        Refusal::Answer(..) | Refusal::Reset(..) => Recording::begin(worker, client.base.clone()),
    };
    recording.record.route = name.clone();
    match refusal {
        Refusal::Quiet(_) => {}
        Refusal::Answer(reason, detail) => {
            let flow = client.base.flow_id;
            let answer = Answer { reason: reason.code(), message: &detail, route: name.as_deref(), flow };
            let written = answer::write(&mut client.stream, reason, &answer, false).await.unwrap_or(0);
            recording.record.bytes_down = written as u64;
            recording.record.http =
                Some(HttpRecord { method: String::new(), path: String::new(), status: reason.status() });
            recording.finish(reason, Some(detail));
            worker.stats.connection_ended(route, reason);
            answer::linger(&mut client.stream).await;
        }
        Refusal::Reset(reason, detail) => {
            client.stream.reset_on_close();
            recording.finish(reason, Some(detail));
        }
    }
}

/// `None` is a body's mistake.
pub(in crate::proxy) fn reason_of(error: Option<HeadError>) -> Reason {
    match error {
        Some(HeadError::ContentLength | HeadError::TwoLengths | HeadError::TransferEncoding) => {
            Reason::AmbiguousFraming
        }
        Some(HeadError::TooLarge | HeadError::TooManyFields) => Reason::HeadTooLarge,
        Some(HeadError::Method) => Reason::NotImplemented,
        Some(
            HeadError::BareLf
            | HeadError::BareCr
            | HeadError::ControlCharacter
            | HeadError::ObsFold
            | HeadError::FieldName
            | HeadError::FirstLine
            | HeadError::Version
            | HeadError::Host
            | HeadError::Target
            | HeadError::TargetHost
            | HeadError::ConnectionNames
            | HeadError::Expect,
        )
        | None => Reason::BadRequest,
    }
}

/// What of a request's framing is left to stream once the bytes at hand were taken along with the head.
pub fn rest_of(framing: Framing, whole_body: Option<usize>) -> Framing {
    if whole_body.is_some() { Framing::None } else { framing }
}
