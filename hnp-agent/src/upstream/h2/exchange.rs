//! One request and its answer on one stream, as the bytes of HTTP/1.1 that the exchange writes and reads.
//!
//! Nothing is sent before the whole head was written, and nothing is there to be read before that: what was
//! there before the request is a question that streams do not have. Dropped before both ended, the stream is
//! reset (CANCEL).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use hnp_common::Reason;
use http::Method;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::answer::{self, Body};
use super::fault::{self, Unprocessed, fault};
use super::link::Link;
use super::request;
use crate::http2::{Rendered, SendError, gather, last_chunk, send};
use crate::proxy::http1::body::Decoder;

/// One stream, or the room for one.
pub struct Exchange {
    link: Rc<Link>,
    request: Sending,
    answer: Receiving,
    rendered: Rendered,
    failed: Option<io::Error>,
    unprocessed: Cell<Option<Unprocessed>>,
}

enum Sending {
    /// Waits for the head.
    Head,
    Body {
        stream: SendStream<Bytes>,
        decoder: Decoder,
        /// Taken from the writer, and not yet from us.
        held: BytesMut,
    },
    Done,
}

enum Receiving {
    /// Nothing was asked yet.
    Nothing,
    Head {
        response: ResponseFuture,
        head_only: bool,
        /// It opens a WebSocket, and this answers the client's key.
        websocket: Option<String>,
    },
    Body {
        stream: RecvStream,
        chunked: bool,
        left: Left,
    },
    Done,
}

/// What of a body is still to come.
enum Left {
    /// So many bytes.
    Bytes(u64),
    /// Nobody has said.
    Unknown,
}

impl Exchange {
    /// Takes room on a connection that has some.
    pub(super) fn new(link: Rc<Link>) -> Self {
        link.opened();
        Self {
            link,
            request: Sending::Head,
            answer: Receiving::Nothing,
            rendered: Rendered::default(),
            failed: None,
            unprocessed: Cell::new(None),
        }
    }

    /// The number of its connection.
    pub(in crate::upstream) fn link_number(&self) -> u64 {
        self.link.number
    }

    /// Whether the upstream has said that it did nothing with the request.
    pub(in crate::upstream) fn unprocessed(&self) -> Option<Unprocessed> {
        self.unprocessed.get()
    }

    fn open(&mut self, message: &[u8]) -> io::Result<usize> {
        let opening = match request::opening(message) {
            Ok(opening) => opening,
            Err(unfit) => {
                return Err(self.unsent(fault(Reason::Internal, format!("HTTP/2 cannot carry it: {unfit}"))));
            }
        };
        let decoder = Decoder::new(opening.framing);
        let head_only = opening.request.method() == Method::HEAD;
        let (response, stream) = match self.link.sender().send_request(opening.request, decoder.is_done()) {
            Ok(opened) => opened,
            Err(error) => {
                let error = self.error(&error);
                // Nobody has seen it.
                self.unprocessed.set(Some(Unprocessed::Anew));
                return Err(self.unsent(error));
            }
        };
        self.request = if decoder.is_done() {
            Sending::Done
        } else {
            Sending::Body { stream, decoder, held: BytesMut::new() }
        };
        self.answer = Receiving::Head { response, head_only, websocket: opening.websocket };
        Ok(opening.len)
    }

    /// The reader hears why; to the writer it is a connection that takes nothing.
    fn unsent(&mut self, why: io::Error) -> io::Error {
        self.request = Sending::Done;
        self.failed = Some(why);
        io::Error::new(io::ErrorKind::BrokenPipe, "the request was not sent")
    }

    fn error(&self, error: &h2::Error) -> io::Error {
        if let Some(unprocessed) = fault::unprocessed(error) {
            self.unprocessed.set(Some(unprocessed));
        }
        fault::of_stream(error, self.link.failure())
    }

    /// Sends what is held as far as the windows go, and the end of the body with its last bytes.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Sending::Body { stream, decoder, held } = &mut self.request else { return Poll::Ready(Ok(())) };
        let sent = ready!(send(stream, decoder, held, cx));
        if sent.is_ok() && decoder.is_done() {
            self.request = Sending::Done;
        }
        Poll::Ready(sent.map_err(|error| match error {
            SendError::H2(error) => self.error(&error),
            SendError::Unfit(unfit) => fault(Reason::Internal, unfit),
            SendError::Ended => {
                io::Error::new(io::ErrorKind::BrokenPipe, "the upstream takes no more of the request")
            }
        }))
    }

    /// Ends a request's side that has no length.
    fn end(request: &mut Sending) {
        if let Sending::Body { stream, .. } = request {
            // An upstream that is gone does not mind.
            let _ = stream.send_data(Bytes::new(), true);
        }
        *request = Sending::Done;
    }

    /// Renders the next thing that has come; false at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match &mut self.answer {
            Receiving::Nothing => return Poll::Pending,
            Receiving::Done => return Poll::Ready(Ok(false)),
            Receiving::Head { response, head_only, websocket } => {
                match response.poll_informational(cx) {
                    Poll::Ready(Some(Ok(interim))) => {
                        let text = self.rendered.text();
                        answer::head(interim.status(), interim.headers(), *head_only, false, text);
                        return Poll::Ready(Ok(true));
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.error(&error))),
                    Poll::Ready(None) | Poll::Pending => {}
                }
                let (head, stream) = match ready!(Pin::new(response).poll(cx)) {
                    Ok(answer) => answer.into_parts(),
                    Err(error) => return Poll::Ready(Err(self.error(&error))),
                };
                let ended = stream.is_end_stream();
                let text = self.rendered.text();
                if let Some(accept) = websocket.take() {
                    if head.status.is_success() {
                        answer::websocket(&head.headers, &accept, text);
                        self.answer = Receiving::Body { stream, chunked: false, left: Left::Unknown };
                        return Poll::Ready(Ok(true));
                    }
                    // An answer as to any request: nothing of ours follows.
                    Self::end(&mut self.request);
                }
                self.answer = match answer::head(head.status, &head.headers, *head_only, ended, text) {
                    _ if ended => Receiving::Done,
                    Body::None => Receiving::Body { stream, chunked: false, left: Left::Bytes(0) },
                    Body::Plain(length) => Receiving::Body {
                        stream,
                        chunked: false,
                        left: length.map_or(Left::Unknown, Left::Bytes),
                    },
                    Body::Chunked => Receiving::Body { stream, chunked: true, left: Left::Unknown },
                };
            }
            Receiving::Body { stream, chunked, left } => match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    if let Left::Bytes(left) = left {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    self.rendered.data(data, *chunked);
                }
                Some(Err(error)) if !is_end(&error) => return Poll::Ready(Err(self.error(&error))),
                None | Some(Err(_)) => {
                    let trailers = match stream.poll_trailers(cx) {
                        Poll::Ready(Ok(trailers)) => trailers,
                        Poll::Ready(Err(error)) if !is_end(&error) => {
                            return Poll::Ready(Err(self.error(&error)));
                        }
                        Poll::Ready(Err(_)) => None,
                        Poll::Pending => return Poll::Pending,
                    };
                    if *chunked {
                        last_chunk(trailers.as_ref(), self.rendered.text());
                    }
                    self.answer = Receiving::Done;
                }
            },
        }
        Poll::Ready(Ok(true))
    }

    fn take(&mut self, buf: &mut ReadBuf<'_>) {
        let from = match &mut self.answer {
            Receiving::Body { stream, chunked, .. } => Some((stream, *chunked)),
            Receiving::Nothing | Receiving::Head { .. } | Receiving::Done => None,
        };
        self.rendered.take(buf, from);
    }
}

/// The upstream has answered in full and does not want the rest of the request (RFC 9113 section 8.1).
fn is_end(error: &h2::Error) -> bool {
    error.is_remote() && error.is_reset() && error.reason() == Some(h2::Reason::NO_ERROR)
}

impl AsyncRead for Exchange {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        // Head and the body's first bytes together: the exchange then writes them together.
        loop {
            this.take(buf);
            let moved = buf.filled().len() > before;
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = this.failed.take() {
                if moved {
                    this.failed = Some(error);
                    return Poll::Ready(Ok(()));
                }
                return Poll::Ready(Err(error));
            }
            match this.poll_next(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => {
                    (this.request, this.answer) = (Sending::Done, Receiving::Done);
                    this.failed = Some(error);
                }
                Poll::Pending if moved => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for Exchange {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut taken = match &this.request {
            Sending::Head => this.open(buf)?,
            Sending::Body { .. } => {
                ready!(this.poll_held(cx))?;
                0
            }
            Sending::Done => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        if let Sending::Body { decoder, held, .. } = &mut this.request {
            let bad = |error| fault(Reason::Internal, format!("a body that was checked: {error}"));
            taken += gather(decoder, held, &buf[taken..]).map_err(bad)?;
            // What the windows do not let through yet waits here; the next write or the flush waits for it.
            if let Poll::Ready(Err(error)) = this.poll_held(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_held(cx)
    }

    /// The end of the client's side of a WebSocket.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        if let Sending::Body { decoder, .. } = &self.request
            && decoder.ends_at_close()
        {
            Self::end(&mut self.request);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let given_up = match (&self.request, std::mem::replace(&mut self.answer, Receiving::Done)) {
            (_, Receiving::Nothing) | (Sending::Done, Receiving::Done) => false,
            // All is there but the frame that says so; a reset would tell the upstream of a failure.
            (Sending::Done, Receiving::Body { stream, left: Left::Bytes(0), .. })
                if self.rendered.is_empty_of_data() =>
            {
                self.link.wait_for_end(stream);
                false
            }
            _ => true,
        };
        self.link.ended(given_up);
    }
}
