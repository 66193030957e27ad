//! One stream of a client as a connection of HTTP/1.1 with one request on it, or with what follows a CONNECT.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::request::{self, Body};
use crate::http2::{Rendered, SendError, gather, last_chunk, send};
use crate::proxy::http1::body::Decoder;
use crate::proxy::http1::head::find_end;
use crate::proxy::http1::response::{Asked, Response as Answer};

/// An answer's head is at most so large: what the exchange lets through, and what it adds.
const HEAD_LIMIT: usize = 1 << 20;

/// One request and its answer.
pub struct Stream {
    body: RecvStream,
    framing: Body,
    rendered: Rendered,
    ended: bool,
    /// What the stream broke of, not yet read.
    failed: Option<io::Error>,
    /// What a reset says to the client.
    broken: Reason,
    asked: Asked,
    respond: SendResponse<Bytes>,
    answer: Answering,
}

enum Answering {
    /// A head is being written.
    Head {
        bytes: Vec<u8>,
        scanned: usize,
    },
    /// Its body is.
    Body {
        stream: SendStream<Bytes>,
        decoder: Decoder,
        held: BytesMut,
    },
    Done,
}

impl Stream {
    /// As the library hands it over.
    pub(super) fn new(request: Request<RecvStream>, respond: SendResponse<Bytes>) -> Self {
        let (parts, body) = request.into_parts();
        let mut rendered = Rendered::default();
        let ended = body.is_end_stream();
        let framing = request::head(&parts, ended, rendered.text());
        let asked = Asked { head: parts.method == Method::HEAD, upgrade: false, http10: false };
        // RFC 9113 section 8.5.
        let connect = parts.method == Method::CONNECT;
        let broken = if connect { Reason::CONNECT_ERROR } else { Reason::INTERNAL_ERROR };
        let answer = Answering::Head { bytes: Vec::new(), scanned: 0 };
        Self { body, framing, rendered, ended, failed: None, broken, asked, respond, answer }
    }

    /// Tells the client that the rest will not come.
    pub fn reset(&mut self) {
        match &mut self.answer {
            Answering::Body { stream, .. } => stream.send_reset(self.broken),
            Answering::Head { .. } => self.respond.send_reset(self.broken),
            Answering::Done => {}
        }
        self.answer = Answering::Done;
    }

    /// Ready when a read would be.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.rendered.is_empty() && self.failed.is_none() {
            self.failed = ready!(self.poll_next(cx)).err();
        }
        Poll::Ready(())
    }

    /// Writes out what has come next; false at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        match ready!(self.body.poll_data(cx)) {
            Some(Ok(data)) => self.rendered.data(data, self.framing == Body::Chunked),
            Some(Err(error)) => return Poll::Ready(Err(broken(&error))),
            None => {
                let trailers = ready!(self.body.poll_trailers(cx)).map_err(|error| broken(&error))?;
                if self.framing == Body::Chunked {
                    last_chunk(trailers.as_ref(), self.rendered.text());
                }
                self.ended = true;
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Sends what is held of the answer as far as the client's windows go.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Answering::Body { stream, decoder, held } = &mut self.answer else { return Poll::Ready(Ok(())) };
        match ready!(send(stream, decoder, held, cx)) {
            Ok(()) if decoder.is_done() => self.answer = Answering::Done,
            Ok(()) => {}
            Err(error) => {
                self.answer = Answering::Done;
                return Poll::Ready(Err(match error {
                    SendError::H2(error) => broken(&error),
                    SendError::Unfit(unfit) => io::Error::other(unfit),
                    SendError::Ended => io::ErrorKind::BrokenPipe.into(),
                }));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes bytes up to the end of a head, and sends it when all of it is there; how many were taken.
    fn take_head(&mut self, fresh: &[u8]) -> io::Result<usize> {
        let Answering::Head { bytes, scanned } = &mut self.answer else { return Ok(0) };
        let before = bytes.len();
        bytes.extend_from_slice(fresh);
        let Some(end) = find_end(bytes, scanned, HEAD_LIMIT).map_err(invalid)? else {
            return Ok(fresh.len());
        };
        bytes.truncate(end);
        let head = std::mem::take(bytes);
        *scanned = 0;
        self.send_head(&head)?;
        Ok(end - before)
    }

    fn send_head(&mut self, head: &[u8]) -> io::Result<()> {
        let answer = Answer::parse(head, self.asked).map_err(invalid)?;
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(answer.status).map_err(invalid)?;
        for (name, value) in answer.fields_of_message(head) {
            let name = HeaderName::from_bytes(name).map_err(invalid)?;
            let value = HeaderValue::from_bytes(value).map_err(invalid)?;
            response.headers_mut().append(name, value);
        }
        if answer.is_interim() {
            // A client that is gone hears of nothing; the final answer finds out.
            let _ = self.respond.send_informational(response);
            return Ok(());
        }
        let decoder = Decoder::new(answer.framing);
        let ended = decoder.is_done();
        let stream = self.respond.send_response(response, ended).map_err(|error| broken(&error))?;
        self.answer =
            if ended { Answering::Done } else { Answering::Body { stream, decoder, held: BytesMut::new() } };
        Ok(())
    }
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

fn broken(error: &h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, format!("HTTP/2: {error}"))
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        loop {
            this.rendered.take(buf, Some((&mut this.body, this.framing == Body::Chunked)));
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = this.failed.take_if(|_| buf.filled().len() == before) {
                return Poll::Ready(Err(error));
            }
            match this.poll_next(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                _ if buf.filled().len() > before => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_held(cx))?;
        let taken = match &mut this.answer {
            // What follows a head is written next.
            Answering::Head { .. } => return Poll::Ready(this.take_head(buf)),
            Answering::Body { decoder, held, .. } => gather(decoder, held, buf).map_err(invalid)?,
            Answering::Done => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        // What the windows do not let through yet waits here; the next write or the flush waits for it.
        if let Poll::Ready(Err(error)) = this.poll_held(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_held(cx)
    }

    /// The end of an answer that ends with its connection.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        if let Answering::Body { stream, decoder, .. } = &mut self.answer
            && decoder.ends_at_close()
        {
            // A client that is gone does not mind.
            let _ = stream.send_data(Bytes::new(), true);
            self.answer = Answering::Done;
        }
        Poll::Ready(Ok(()))
    }
}
