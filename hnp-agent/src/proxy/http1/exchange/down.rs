//! The answer's way: from the upstream, head by head and then as a body, to the client.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use hnp_common::Reason;
use tokio::io::AsyncWrite as _;
use tokio::time::Instant;

use super::Terms;
use crate::proxy::buffer::Buffer;
use crate::proxy::client_io::ClientIo;
use crate::proxy::http1::body::{Decoder, Framing};
use crate::proxy::http1::head::find_end;
use crate::proxy::http1::response::Response;
use crate::skew;
use crate::trust::tls_reason;
use crate::upstream::{Io, fault_reason};

/// Interim answers (1xx) before the final one; more is a server gone wrong.
const MAX_INTERIM: usize = 16;
/// How much of an error page is looked at for nginx' words about certificates.
pub(crate) const PAGE: usize = 1024;

/// The answer's way.
pub(super) struct Down<'a> {
    pub(super) answer: &'a mut Buffer,
    /// A head, rewritten, on its way to the client.
    pub(super) out: Vec<u8>,
    pub(super) written: usize,
    /// Bytes at the front of `answer` to be written to the client.
    pub(super) ready: usize,
    pub(super) scanned: usize,
    pub(super) interim: usize,
    /// Bytes of interim answers, of those in `bytes` or about to be.
    pub(super) interim_bytes: u64,
    pub(super) bytes: u64,
    /// What `poll_write` took may still sit in the client's TLS session.
    pub(super) unflushed: bool,
    pub(super) status: u16,
    pub(super) spoke: bool,
    pub(super) first_byte: Option<Duration>,
    pub(super) date: Option<SystemTime>,
    pub(super) page: Page,
    /// The front of a 400's page, while it may still turn out to be about certificates.
    pub(super) seen: Vec<u8>,
    /// The final answer began before the request had ended.
    pub(super) early: bool,
    pub(super) keep_alive: bool,
    pub(super) state: DownState,
}

pub(super) enum DownState {
    Head,
    Body { decoder: Decoder, framing: Framing },
    Done { exact: bool, framing: Framing },
    Switched,
}

/// Whether the answer is the upstream's word that our certificate was not accepted.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Page {
    No,
    /// A 400 whose page may say so.
    Look,
    Yes,
}

impl Page {
    /// What a status says by itself.
    pub(super) fn of(status: u16) -> Self {
        match status {
            495 | 496 => Self::Yes,
            400 => Self::Look,
            _ => Self::No,
        }
    }
}

pub(super) type DownFault = (Reason, String);

impl<'a> Down<'a> {
    /// Before anything has come; `answer` is empty.
    pub(super) fn new(answer: &'a mut Buffer) -> Self {
        Self {
            answer,
            out: Vec::new(),
            written: 0,
            ready: 0,
            scanned: 0,
            interim: 0,
            interim_bytes: 0,
            bytes: 0,
            unflushed: false,
            status: 0,
            spoke: false,
            first_byte: None,
            date: None,
            page: Page::No,
            seen: Vec::new(),
            early: false,
            keep_alive: false,
            state: DownState::Head,
        }
    }

    /// Moves the answer on; ready once it has ended, or the protocol was switched, and all of it was
    /// written to the client.
    pub(super) fn poll(
        &mut self,
        client: &mut ClientIo,
        upstream: &mut Io,
        terms: &Terms,
        sent: bool,
        sent_at: Option<Instant>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), DownFault>> {
        loop {
            ready!(self.poll_write(client, cx))?;
            if matches!(self.state, DownState::Done { .. } | DownState::Switched) {
                ready!(self.poll_flush(client, cx))?;
                return Poll::Ready(Ok(()));
            }
            if self.take_buffered(terms, sent, sent_at)? {
                continue;
            }
            let read = self.answer.poll_fill(upstream, cx, terms.head_limit);
            if read.is_pending() {
                ready!(self.poll_flush(client, cx))?;
            }
            let read = ready!(read);
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

    /// Listens before anything is sent: what is there already answers nobody's request, and its sender
    /// would answer the next request with this one's answer.
    pub(super) fn unasked(&mut self, upstream: &mut Io, cx: &mut Context<'_>) -> Result<(), DownFault> {
        match self.answer.poll_fill(upstream, cx, 0) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(0)) => self.end_of_stream(),
            Poll::Ready(Ok(_)) => {
                self.spoke = true;
                Err((Reason::UpstreamBadResponse, "the upstream spoke before it was asked".into()))
            }
            Poll::Ready(Err(error)) => Err(self.read_fault(&error)),
        }
    }

    fn poll_write(&mut self, client: &mut ClientIo, cx: &mut Context<'_>) -> Poll<Result<(), DownFault>> {
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
            self.unflushed = true;
        }
        self.out.clear();
        self.written = 0;
        while self.ready > 0 {
            let part = &self.answer.filled()[..self.ready];
            let n = ready!(Pin::new(&mut *client).poll_write(cx, part)).map_err(gone)?;
            self.answer.consume(n);
            self.ready -= n;
            self.bytes += n as u64;
            self.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, client: &mut ClientIo, cx: &mut Context<'_>) -> Poll<Result<(), DownFault>> {
        if self.unflushed {
            ready!(Pin::new(client).poll_flush(cx))
                .map_err(|error| (Reason::ClientGone, error.to_string()))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Makes the next thing to write out of what was read; false when more must be read first.
    pub(super) fn take_buffered(
        &mut self,
        terms: &Terms,
        sent: bool,
        sent_at: Option<Instant>,
    ) -> Result<bool, DownFault> {
        let headed = matches!(self.state, DownState::Head);
        if headed && !self.take_head(terms, sent, sent_at)? {
            return Ok(false);
        }
        // What came of the body with the head goes out with it.
        match &mut self.state {
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
                if self.page == Page::Look && self.seen.len() < PAGE {
                    let more = self.ready.min(PAGE - self.seen.len());
                    self.seen.extend_from_slice(&self.answer.filled()[..more]);
                    self.page = look(&self.seen);
                }
                if done {
                    self.state = DownState::Done { exact: true, framing };
                }
                Ok(headed || done || self.ready > 0)
            }
            DownState::Head | DownState::Done { .. } | DownState::Switched => Ok(true),
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
        if terms.dated && !response.is_interim() {
            self.date = skew::date(head);
        }
        self.answer.consume(len);
        if response.is_interim() {
            self.interim_bytes += self.out.len() as u64;
            return Ok(true);
        }
        self.status = response.status;
        self.first_byte = sent_at.map(|at| at.elapsed());
        self.early = !sent;
        self.keep_alive = response.keep_alive;
        self.page = Page::of(response.status);
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
        let begun = self.spoke || !matches!(self.state, DownState::Head);
        let reason = if begun && told(error).is_none() && is_cut(error) {
            Reason::UpstreamTruncated
        } else {
            unanswered(error)
        };
        (reason, detail)
    }
}

/// Why nothing of an answer came, by what reading it failed of.
pub(crate) fn unanswered(error: &io::Error) -> Reason {
    let otherwise = if is_cut(error) { Reason::UpstreamClosed } else { Reason::UpstreamReset };
    told(error).unwrap_or(otherwise)
}

/// What TLS or HTTP/2 say of it.
fn told(error: &io::Error) -> Option<Reason> {
    tls_reason(error).or_else(|| fault_reason(error))
}

/// TLS without close_notify: nobody vouches for the end.
fn is_cut(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

/// Whether an answer says that a client certificate was not accepted, or is missing; `page` is the front of its body.
pub(crate) fn is_about_certificate(status: u16, page: &[u8]) -> bool {
    match Page::of(status) {
        Page::Yes => true,
        Page::Look => look(&page[..page.len().min(PAGE)]) == Page::Yes,
        Page::No => false,
    }
}

/// nginx answers 400 with one of these pages when it wants a client certificate or refuses ours.
fn look(page: &[u8]) -> Page {
    let says = |words: &[u8]| page.windows(words.len()).any(|window| window == words);
    if says(b"No required SSL certificate was sent") || says(b"The SSL certificate error") {
        Page::Yes
    } else {
        Page::Look
    }
}
