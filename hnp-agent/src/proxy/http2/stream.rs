//! One stream of a client as a connection of HTTP/1.1 with one request on it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::request::{self, Body};
use crate::http2::{GATHERED, SendError, chunk, last_chunk, send};
use crate::proxy::http1::body::Decoder;
use crate::proxy::http1::head::find_end;
use crate::proxy::http1::response::{Asked, Response as Answer};

/// An answer's head is at most so large: what the exchange lets through, and what it adds.
const HEAD_LIMIT: usize = 1 << 20;

/// One request and its answer.
pub struct Stream {
    body: RecvStream,
    framing: Body,
    /// Written out, and not yet read.
    head: Vec<u8>,
    read: usize,
    data: Bytes,
    ended: bool,
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
        let mut head = Vec::with_capacity(512);
        let ended = body.is_end_stream();
        let framing = request::head(&parts, ended, &mut head);
        let asked = Asked { head: parts.method == Method::HEAD, upgrade: false, http10: false };
        let answer = Answering::Head { bytes: Vec::new(), scanned: 0 };
        Self { body, framing, head, read: 0, data: Bytes::new(), ended, asked, respond, answer }
    }

    /// Tells the client that the rest will not come.
    pub fn reset(&mut self) {
        match &mut self.answer {
            Answering::Body { stream, .. } => stream.send_reset(Reason::INTERNAL_ERROR),
            Answering::Head { .. } => self.respond.send_reset(Reason::INTERNAL_ERROR),
            Answering::Done => {}
        }
        self.answer = Answering::Done;
    }

    /// Moves what was written out into `buf`.
    fn take(&mut self, buf: &mut ReadBuf<'_>) {
        let n = buf.remaining().min(self.head.len() - self.read);
        buf.put_slice(&self.head[self.read..self.read + n]);
        self.read += n;
        if self.read < self.head.len() || self.data.is_empty() {
            return;
        }
        let n = buf.remaining().min(self.data.len());
        buf.put_slice(&self.data[..n]);
        self.data.advance(n);
        // A failure means that the stream is over, and its windows with it.
        let _ = self.body.flow_control().release_capacity(n);
        if self.data.is_empty() && self.framing == Body::Chunked {
            self.write_out(b"\r\n");
            self.take(buf);
        }
    }

    fn write_out(&mut self, bytes: &[u8]) {
        self.head.clear();
        self.head.extend_from_slice(bytes);
        self.read = 0;
    }

    /// Writes out what has come next; false at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        match ready!(self.body.poll_data(cx)) {
            Some(Ok(data)) => {
                self.write_out(b"");
                if self.framing == Body::Chunked && !data.is_empty() {
                    chunk(data.len(), &mut self.head);
                }
                self.data = data;
            }
            Some(Err(error)) => return Poll::Ready(Err(broken(&error))),
            None => {
                let trailers = ready!(self.body.poll_trailers(cx)).map_err(|error| broken(&error))?;
                self.write_out(b"");
                if self.framing == Body::Chunked {
                    last_chunk(trailers.as_ref(), &mut self.head);
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

    /// Sends the head at the front of what was written, if all of it is there. What follows it is left.
    fn send_head(&mut self) -> io::Result<Vec<u8>> {
        let Answering::Head { bytes, scanned } = &mut self.answer else { return Ok(Vec::new()) };
        let invalid =
            |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        let Some(end) = find_end(bytes, scanned, HEAD_LIMIT).map_err(|error| invalid(&error))? else {
            return Ok(Vec::new());
        };
        let rest = bytes.split_off(end);
        let head = std::mem::take(bytes);
        *scanned = 0;
        let answer = Answer::parse(&head, self.asked).map_err(|error| invalid(&error))?;
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(answer.status).map_err(|error| invalid(&error))?;
        for (name, value) in answer.fields_of_message(&head) {
            let name = HeaderName::from_bytes(name).map_err(|error| invalid(&error))?;
            let value = HeaderValue::from_bytes(value).map_err(|error| invalid(&error))?;
            response.headers_mut().append(name, value);
        }
        if answer.is_interim() {
            // A client that is gone hears of nothing; the final answer finds out.
            let _ = self.respond.send_informational(response);
            return if rest.is_empty() { Ok(rest) } else { self.follow(rest) };
        }
        let decoder = Decoder::new(answer.framing);
        let ended = decoder.is_done();
        let stream = self.respond.send_response(response, ended).map_err(|error| broken(&error))?;
        self.answer =
            if ended { Answering::Done } else { Answering::Body { stream, decoder, held: BytesMut::new() } };
        Ok(rest)
    }

    fn follow(&mut self, rest: Vec<u8>) -> io::Result<Vec<u8>> {
        self.answer = Answering::Head { bytes: rest, scanned: 0 };
        self.send_head()
    }
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
            this.take(buf);
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
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
        let mut rest = Vec::new();
        let mut taken = 0;
        if let Answering::Head { bytes, .. } = &mut this.answer {
            bytes.extend_from_slice(buf);
            taken = buf.len();
            rest = this.send_head()?;
        }
        match &mut this.answer {
            Answering::Head { .. } => return Poll::Ready(Ok(taken)),
            Answering::Body { decoder, held, .. } => {
                let fresh = if taken == 0 { buf } else { &rest };
                let mut at = 0;
                while at < fresh.len() && (taken > 0 || held.len() < GATHERED) {
                    let step = decoder
                        .step(&fresh[at..])
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                    if step.wire == 0 {
                        break;
                    }
                    at += step.wire;
                    held.extend_from_slice(&fresh[at - step.payload..at]);
                }
                if taken == 0 {
                    taken = at;
                }
            }
            Answering::Done if taken == 0 => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Answering::Done => {}
        }
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
