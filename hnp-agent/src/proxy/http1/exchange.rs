//! One request and its answer: both bodies streamed at once, with backpressure, until both ended
//! exactly or one side failed.
//!
//! One poll function drives both directions over the same two streams, so nothing is split, locked
//! or buffered beyond one block a direction. The answer may begin before the request has ended; then
//! it is carried, and the upstream connection is not used again.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hnp_common::Reason;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::body::{Decoder, Framing};
use super::head::find_end;
use super::response::{Asked, Response};
use crate::proxy::buffer::Buffer;
use crate::upstream::{Io, tls_reason};

/// Interim answers (1xx) before the final one; more is a server gone wrong.
const MAX_INTERIM: usize = 16;
/// How much of an error page is looked at for nginx' words about certificates.
const PAGE: usize = 1024;

/// What an exchange needs to know.
pub struct Terms {
    /// How the request is framed and what it asks of the answer.
    pub framing: Framing,
    /// What of the request decides how the answer is read.
    pub asked: Asked,
    /// Tell the client that the connection ends with this answer.
    pub close: bool,
    /// Heads travel as they came (passthrough).
    pub verbatim: bool,
    /// The largest head an answer may have, in bytes.
    pub head_limit: usize,
    /// From the end of the request to the first byte of the answer.
    pub response: Duration,
    /// Without any progress in the middle of a body.
    pub idle: Duration,
}

/// How an exchange ended.
#[derive(Debug)]
pub struct Ended {
    /// What became of it.
    pub end: End,
    /// Bytes of the client's body that were sent on, framing included.
    pub up: u64,
    /// Bytes written to the client, heads included.
    pub down: u64,
    /// The final answer's status; 0 if none came.
    pub status: u16,
    /// From the end of the request to the first byte of the final answer.
    pub first_byte: Option<Duration>,
}

/// What became of an exchange.
#[derive(Debug)]
pub enum End {
    /// Both ended. What may be used again says what each side promised and kept.
    Complete {
        /// The upstream connection is exactly between two messages.
        upstream_reusable: bool,
        /// So is the client's.
        client_reusable: bool,
        /// The answer says that our client certificate was not accepted.
        certificate_refused: bool,
    },
    /// 101: what follows is another protocol.
    Switched,
    /// One side failed.
    Failed(Failure),
}

/// Which side failed, and how.
#[derive(Debug)]
pub struct Failure {
    /// The operator's code.
    pub reason: Reason,
    /// The developer's words.
    pub detail: String,
    /// The client has part of an answer: no answer of ours can follow.
    pub answer_begun: bool,
    /// The upstream sent at least one byte: it has seen the request.
    pub upstream_spoke: bool,
    /// The request's body was sent on and consumed: it cannot be sent again from here.
    pub body_consumed: bool,
}

/// Runs one exchange. `head` is the rewritten head; `body` holds what of the client's body (and of
/// what follows it) was already read, and `answer` is an empty buffer for the upstream's bytes.
pub async fn run(
    client: &mut TcpStream,
    upstream: &mut Io,
    head: &[u8],
    body: &mut Buffer,
    answer: &mut Buffer,
    terms: &Terms,
) -> Ended {
    let mut exchange = Exchange {
        up: Up {
            head,
            body,
            decoder: Decoder::new(terms.framing),
            ready: 0,
            bytes: 0,
            unflushed: true,
            state: UpState::Sending,
        },
        down: Down {
            answer,
            out: Vec::new(),
            written: 0,
            ready: 0,
            scanned: 0,
            interim: 0,
            bytes: 0,
            status: 0,
            spoke: false,
            first_byte: None,
            page: Page::No,
            early: false,
            keep_alive: false,
            state: DownState::Head,
        },
        terms,
        sent_at: None,
        last: Instant::now(),
    };
    let mut timer = pin!(sleep_until(exchange.expires()));
    let end = poll_fn(|cx| {
        if let Poll::Ready(end) = exchange.poll(client, upstream, cx) {
            return Poll::Ready(end);
        }
        // Progress only moves the moment later, and the timer is set again when it fires. Sooner it
        // gets once: when the request is out and the answer's own deadline begins.
        if exchange.expires() < timer.deadline() {
            timer.as_mut().reset(exchange.expires());
        }
        while timer.as_mut().poll(cx).is_ready() {
            let expires = exchange.expires();
            if expires <= Instant::now() {
                return Poll::Ready(End::Failed(exchange.timed_out()));
            }
            timer.as_mut().reset(expires);
        }
        Poll::Pending
    })
    .await;
    Ended {
        end,
        up: exchange.up.bytes,
        down: exchange.down.bytes,
        status: exchange.down.status,
        first_byte: exchange.down.first_byte,
    }
}

struct Exchange<'a> {
    up: Up<'a>,
    down: Down<'a>,
    terms: &'a Terms,
    /// When the whole request had been handed to the upstream.
    sent_at: Option<Instant>,
    /// When anything last moved.
    last: Instant,
}

/// The request's way.
struct Up<'a> {
    head: &'a [u8],
    body: &'a mut Buffer,
    decoder: Decoder,
    /// Bytes at the front of `body` that belong to this request and are not yet written.
    ready: usize,
    bytes: u64,
    unflushed: bool,
    state: UpState,
}

enum UpState {
    Sending,
    /// The whole request was sent and flushed.
    Sent,
    /// The upstream stopped taking it; its answer, if any, says why.
    Broken(io::Error),
}

/// The answer's way.
struct Down<'a> {
    answer: &'a mut Buffer,
    /// A head, rewritten, on its way to the client.
    out: Vec<u8>,
    written: usize,
    /// Bytes at the front of `answer` to be written to the client.
    ready: usize,
    scanned: usize,
    interim: usize,
    bytes: u64,
    status: u16,
    spoke: bool,
    first_byte: Option<Duration>,
    page: Page,
    /// The final answer began before the request had ended.
    early: bool,
    keep_alive: bool,
    state: DownState,
}

enum DownState {
    Head,
    Body { decoder: Decoder, framing: Framing },
    Done { exact: bool, framing: Framing },
    Switched,
}

/// Whether the answer is the upstream's word that our certificate was not accepted.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Page {
    No,
    /// A 400 whose page may say so.
    Look,
    Yes,
}

impl Exchange<'_> {
    fn poll(&mut self, client: &mut TcpStream, upstream: &mut Io, cx: &mut Context<'_>) -> Poll<End> {
        let before = self.progress();
        if matches!(self.up.state, UpState::Sending) {
            match self.up.poll(client, upstream, cx) {
                Poll::Ready(Ok(())) => {
                    self.up.state = UpState::Sent;
                    self.sent_at = Some(Instant::now());
                }
                Poll::Ready(Err(UpFault::Upstream(error))) => self.up.state = UpState::Broken(error),
                Poll::Ready(Err(UpFault::Client(reason, detail))) => {
                    return Poll::Ready(End::Failed(self.failure(reason, detail)));
                }
                Poll::Pending => {}
            }
        }
        let sent = matches!(self.up.state, UpState::Sent);
        let down = self.down.poll(client, upstream, self.terms, sent, self.sent_at, cx);
        if before != self.progress() {
            self.last = Instant::now();
        }
        match down {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(self.ended(sent)),
            Poll::Ready(Err((reason, mut detail))) => {
                if let UpState::Broken(error) = &self.up.state {
                    detail = format!("{detail}; sending the request: {error}");
                }
                Poll::Ready(End::Failed(self.failure(reason, detail)))
            }
        }
    }

    fn ended(&self, sent: bool) -> End {
        match self.down.state {
            DownState::Switched => End::Switched,
            DownState::Head | DownState::Body { .. } | DownState::Done { .. } => {
                let (exact, framing) = match self.down.state {
                    DownState::Done { exact, framing } => (exact, framing),
                    _ => (false, Framing::UntilClose),
                };
                let until_close = framing == Framing::UntilClose;
                let clean = exact && sent && !self.down.early && !until_close;
                // A head that travels as it came has told the client itself that the server closes.
                let told = until_close || (self.terms.verbatim && !self.down.keep_alive);
                End::Complete {
                    // Bytes after the answer's end were not asked for: nobody may read them as theirs.
                    upstream_reusable: clean && self.down.keep_alive && self.down.answer.is_empty(),
                    client_reusable: sent && !told && !self.terms.asked.http10 && !self.terms.close,
                    certificate_refused: self.down.page == Page::Yes,
                }
            }
        }
    }

    fn failure(&self, reason: Reason, detail: String) -> Failure {
        Failure {
            reason,
            detail,
            answer_begun: self.down.bytes > 0 || self.down.written > 0,
            upstream_spoke: self.down.spoke,
            body_consumed: self.up.bytes > 0,
        }
    }

    fn progress(&self) -> (usize, u64, u64, usize, usize) {
        (
            self.up.head.len(),
            self.up.bytes,
            self.down.bytes,
            self.down.answer.filled().len(),
            self.up.body.filled().len(),
        )
    }

    /// When the exchange has waited long enough, seen from now.
    fn expires(&self) -> Instant {
        match (&self.down.state, self.sent_at) {
            (DownState::Head, Some(sent)) => sent.max(self.last) + self.terms.response,
            _ => self.last + self.terms.idle,
        }
    }

    fn timed_out(&self) -> Failure {
        let (reason, detail) = match &self.down.state {
            DownState::Head if self.sent_at.is_some() => {
                (Reason::UpstreamResponseTimeout, format!("no answer within {:?}", self.terms.response))
            }
            DownState::Head if self.up.head.is_empty() && self.up.ready == 0 && !self.up.unflushed => (
                Reason::IdleTimeout,
                format!("the client sent no more of its body for {:?}", self.terms.idle),
            ),
            DownState::Body { .. } if self.down.ready > 0 || !self.down.out.is_empty() => {
                (Reason::IdleTimeout, format!("the client read nothing for {:?}", self.terms.idle))
            }
            _ => (
                Reason::UpstreamResponseTimeout,
                format!("the upstream moved nothing for {:?}", self.terms.idle),
            ),
        };
        self.failure(reason, detail)
    }
}

enum UpFault {
    Client(Reason, String),
    Upstream(io::Error),
}

impl Up<'_> {
    fn poll(
        &mut self,
        client: &mut TcpStream,
        upstream: &mut Io,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UpFault>> {
        loop {
            if !self.head.is_empty() {
                let n =
                    ready!(Pin::new(&mut *upstream).poll_write(cx, self.head)).map_err(UpFault::Upstream)?;
                self.head = &self.head[n..];
                self.unflushed = true;
                continue;
            }
            self.look_ahead()?;
            if self.ready > 0 {
                let part = &self.body.filled()[..self.ready];
                let n = ready!(Pin::new(&mut *upstream).poll_write(cx, part)).map_err(UpFault::Upstream)?;
                self.body.consume(n);
                self.ready -= n;
                self.bytes += n as u64;
                self.unflushed = true;
                continue;
            }
            if self.unflushed {
                ready!(Pin::new(&mut *upstream).poll_flush(cx)).map_err(UpFault::Upstream)?;
                self.unflushed = false;
            }
            if self.decoder.is_done() {
                return Poll::Ready(Ok(()));
            }
            let n = ready!(self.body.poll_fill(client, cx, 0))
                .map_err(|error| UpFault::Client(Reason::ClientGone, error.to_string()))?;
            if n == 0 {
                let detail = "the client closed in the middle of its request".into();
                return Poll::Ready(Err(UpFault::Client(Reason::ClientGone, detail)));
            }
            if self.body.is_full() {
                self.body.grow();
            }
        }
    }

    /// How much of what was read belongs to this request.
    fn look_ahead(&mut self) -> Result<(), UpFault> {
        while self.ready < self.body.filled().len() {
            let step = self
                .decoder
                .step(&self.body.filled()[self.ready..])
                .map_err(|error| UpFault::Client(Reason::BadRequest, error.to_string()))?;
            if step.wire == 0 {
                break;
            }
            self.ready += step.wire;
        }
        Ok(())
    }
}

type DownFault = (Reason, String);

impl Down<'_> {
    /// Moves the answer on; ready once it has ended, or the protocol was switched, and all of it was
    /// written to the client.
    fn poll(
        &mut self,
        client: &mut TcpStream,
        upstream: &mut Io,
        terms: &Terms,
        sent: bool,
        sent_at: Option<Instant>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), DownFault>> {
        loop {
            ready!(self.poll_write(client, cx))?;
            if matches!(self.state, DownState::Done { .. } | DownState::Switched) {
                return Poll::Ready(Ok(()));
            }
            if self.take_buffered(terms, sent, sent_at)? {
                continue;
            }
            let read = ready!(self.answer.poll_fill(upstream, cx, terms.head_limit));
            match read {
                Ok(0) => self.end_of_stream()?,
                Ok(_) => {
                    self.spoke = true;
                    if self.answer.is_full() {
                        self.answer.grow();
                    }
                }
                Err(error) => return Poll::Ready(Err(self.read_fault(&error))),
            }
        }
    }

    fn poll_write(&mut self, client: &mut TcpStream, cx: &mut Context<'_>) -> Poll<Result<(), DownFault>> {
        let gone = |error: io::Error| (Reason::ClientGone, error.to_string());
        while self.written < self.out.len() {
            // Head and the body's first bytes in one system call.
            let slices = [
                io::IoSlice::new(&self.out[self.written..]),
                io::IoSlice::new(&self.answer.filled()[..self.ready]),
            ];
            let n = ready!(Pin::new(&mut *client).poll_write_vectored(cx, &slices)).map_err(gone)?;
            let of_head = n.min(self.out.len() - self.written);
            self.written += of_head;
            self.answer.consume(n - of_head);
            self.ready -= n - of_head;
            self.bytes += n as u64;
        }
        self.out.clear();
        self.written = 0;
        while self.ready > 0 {
            let part = &self.answer.filled()[..self.ready];
            let n = ready!(Pin::new(&mut *client).poll_write(cx, part)).map_err(gone)?;
            self.answer.consume(n);
            self.ready -= n;
            self.bytes += n as u64;
        }
        Poll::Ready(Ok(()))
    }

    /// Makes the next thing to write out of what was read; false when more must be read first.
    fn take_buffered(
        &mut self,
        terms: &Terms,
        sent: bool,
        sent_at: Option<Instant>,
    ) -> Result<bool, DownFault> {
        match &mut self.state {
            DownState::Head => self.take_head(terms, sent, sent_at),
            DownState::Body { decoder, framing } => {
                let framing = *framing;
                let bad = |error| (Reason::UpstreamBadResponse, format!("{error}"));
                if terms.asked.http10 && !terms.verbatim {
                    // Chunks mean nothing to an HTTP/1.0 client: it gets the payload alone.
                    let step = decoder.step(self.answer.filled()).map_err(bad)?;
                    self.answer.consume(step.wire - step.payload);
                    self.ready = step.payload;
                } else {
                    while self.ready < self.answer.filled().len() {
                        let step = decoder.step(&self.answer.filled()[self.ready..]).map_err(bad)?;
                        if step.wire == 0 {
                            break;
                        }
                        self.ready += step.wire;
                    }
                }
                let done = decoder.is_done();
                if self.page == Page::Look && self.ready > 0 {
                    self.page = look(&self.answer.filled()[..self.ready.min(PAGE)]);
                }
                if done {
                    self.state = DownState::Done { exact: true, framing };
                }
                Ok(done || self.ready > 0)
            }
            DownState::Done { .. } | DownState::Switched => Ok(true),
        }
    }

    fn take_head(&mut self, terms: &Terms, sent: bool, sent_at: Option<Instant>) -> Result<bool, DownFault> {
        let bad = |error| (Reason::UpstreamBadResponse, format!("{error}"));
        let Some(len) = find_end(self.answer.filled(), &mut self.scanned, terms.head_limit).map_err(bad)?
        else {
            return Ok(false);
        };
        self.scanned = 0;
        let head = &self.answer.filled()[..len];
        let response = Response::parse(head, terms.asked).map_err(bad)?;
        if response.is_interim() {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err((Reason::UpstreamBadResponse, "too many interim answers".into()));
            }
        }
        let hide = response.is_interim() && terms.asked.http10;
        let until_close = response.framing == Framing::UntilClose;
        if terms.verbatim {
            self.out.extend_from_slice(head);
        } else if !hide {
            let close = terms.close || until_close || terms.asked.http10;
            response.write_for_client(head, terms.asked, close, &mut self.out);
        }
        self.answer.consume(len);
        if response.is_interim() {
            return Ok(true);
        }
        self.status = response.status;
        self.first_byte = sent_at.map(|at| at.elapsed());
        self.early = !sent;
        self.keep_alive = response.keep_alive;
        self.page = match response.status {
            495 | 496 => Page::Yes,
            400 => Page::Look,
            _ => Page::No,
        };
        self.state = if response.status == 101 {
            if !terms.asked.upgrade {
                return Err((Reason::UpstreamBadResponse, "101 without a request to switch".into()));
            }
            DownState::Switched
        } else {
            let decoder = Decoder::new(response.framing);
            if decoder.is_done() {
                DownState::Done { exact: true, framing: response.framing }
            } else {
                DownState::Body { decoder, framing: response.framing }
            }
        };
        Ok(true)
    }

    fn end_of_stream(&mut self) -> Result<(), DownFault> {
        match &self.state {
            DownState::Head if !self.spoke => {
                Err((Reason::UpstreamClosed, "the upstream closed before its answer".into()))
            }
            DownState::Head => {
                Err((Reason::UpstreamTruncated, "the upstream closed in the middle of a head".into()))
            }
            DownState::Body { decoder, framing } if decoder.ends_at_close() => {
                self.state = DownState::Done { exact: true, framing: *framing };
                Ok(())
            }
            DownState::Body { .. } => {
                Err((Reason::UpstreamTruncated, "the upstream closed in the middle of a body".into()))
            }
            DownState::Done { .. } | DownState::Switched => Ok(()),
        }
    }

    fn read_fault(&self, error: &io::Error) -> DownFault {
        let detail = error.to_string();
        if let Some(reason) = tls_reason(error) {
            return (reason, detail);
        }
        // TLS without close_notify: nobody vouches for the end.
        let cut = error.kind() == io::ErrorKind::UnexpectedEof;
        let reason = match (&self.state, cut) {
            (DownState::Head, true) if !self.spoke => Reason::UpstreamClosed,
            (_, true) => Reason::UpstreamTruncated,
            (_, false) => Reason::UpstreamReset,
        };
        (reason, detail)
    }
}

/// nginx answers 400 with one of these pages when it wants a client certificate or refuses ours.
fn look(page: &[u8]) -> Page {
    let says = |words: &[u8]| page.windows(words.len()).any(|window| window == words);
    if says(b"No required SSL certificate was sent") || says(b"The SSL certificate error") {
        Page::Yes
    } else {
        Page::No
    }
}

#[cfg(test)]
mod tests;
