//! One request and its answer: both bodies streamed at once, with backpressure, until both ended
//! exactly or one side failed.
//!
//! One poll function drives both directions over the same two streams, so nothing is split, locked
//! or buffered beyond one block a direction. The answer may begin before the request has ended; then
//! it is carried, and the upstream connection is not used again.

mod down;
mod up;

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hnp_common::Reason;
use tokio::time::{Instant, sleep_until};

use super::body::{Decoder, Framing};
use super::response::Asked;
use crate::proxy::buffer::Buffer;
use crate::proxy::client_io::ClientIo;
use crate::proxy::police::Cut;
use crate::upstream::Io;
use down::{Down, DownState, Page};
pub(crate) use down::{PAGE, is_about_certificate, unanswered};
use up::{Up, UpFault, UpState};

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
    /// Look at the answer's Date.
    pub dated: bool,
    /// The largest head an answer may have, in bytes.
    pub head_limit: usize,
    /// From the end of the request to the first byte of the answer.
    pub response: Duration,
    /// Without any progress in the middle of a body.
    pub idle: Duration,
    /// What ends it from outside.
    pub cut: Cut,
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
    /// Of the final answer, where that was asked for and it has one.
    pub date: Option<SystemTime>,
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
}

/// Runs one exchange. `head` is the rewritten head; `body` holds what of the client's body (and of
/// what follows it) was already read, and `answer` is an empty buffer for the upstream's bytes.
pub async fn run(
    client: &mut ClientIo,
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
        down: Down::new(answer),
        terms,
        sent_at: None,
        last: Instant::now(),
        begun: false,
    };
    let mut timer = pin!(sleep_until(exchange.expires()));
    let ended = poll_fn(|cx| {
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
    });
    let end = match terms.cut.unless(ended).await {
        Ok(end) => end,
        Err((reason, detail)) => End::Failed(exchange.failure(reason, detail)),
    };
    Ended {
        end,
        up: exchange.up.bytes,
        down: exchange.down.bytes,
        status: exchange.down.status,
        first_byte: exchange.down.first_byte,
        date: exchange.down.date,
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
    /// The upstream was listened to once before anything was sent.
    begun: bool,
}

impl Exchange<'_> {
    fn poll(&mut self, client: &mut ClientIo, upstream: &mut Io, cx: &mut Context<'_>) -> Poll<End> {
        let before = self.progress();
        if !self.begun {
            self.begun = true;
            if let Err((reason, detail)) = self.down.unasked(upstream, cx) {
                return Poll::Ready(End::Failed(self.failure(reason, detail)));
            }
        }
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
            // A whole interim answer may be followed by a final one of ours.
            answer_begun: self.down.written > 0 || self.down.bytes > self.down.interim_bytes,
            upstream_spoke: self.down.spoke,
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

#[cfg(test)]
mod tests;
