//! HTTP/2 from clients: with prior knowledge in the clear, or by ALPN where their TLS ends here.
//!
//! A stream is served as a connection of its own with one request: what comes on it is written out as the bytes
//! of HTTP/1.1, which the strict reader judges like any other's, and the answer's bytes become frames again
//! ([`stream`]). So there is one set of rules for requests, one exchange, and one record of how it ended.

mod request;
mod stream;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use h2::server::Builder;
use hnp_common::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout};

use super::buffer::Buffer;
use super::client_io::ClientIo;
use super::connection::Client;
use super::record::Recording;
use super::worker::{Lanes, Worker};
pub(super) use stream::Stream;

/// What a client says first (RFC 9113 section 3.4), up to where HTTP/1.1 would take it for a head.
pub(super) const PREFACE_HEAD: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// Requests of one client at a time: as many as servers of gRPC allow.
const STREAMS: u32 = 100;
/// What a client may send on one stream before the upstream has taken it. Each stream whose upstream stalls holds so
/// much of the agent's memory, so it is the protocol's own default.
const STREAM_WINDOW: u32 = 65_535;
/// Room for every stream's own window: what is held for one stream counts here too, and one upstream that stalls
/// must not stop the client's other requests.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS;
/// What one stream may have waiting for its client: one large block of the relay.
const SEND_BUFFER: usize = 64 * 1024;

/// How long a client may take.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// Until its side of the connection is set up.
    pub(super) head: Duration,
    /// Without a request.
    pub(super) idle: Duration,
}

/// Serves a client that has begun with [`PREFACE_HEAD`], which is still in `bytes`: each of its requests by `one`.
pub(super) async fn serve<F: Future<Output = ()>>(
    lanes: &Lanes,
    worker: &Worker,
    mut client: Box<Client>,
    bytes: Buffer,
    patience: Patience,
    one: impl Fn(Box<Client>) -> F,
) {
    // A client of the gateway has none before it has asked.
    let route = client.routes.first().copied();
    let io = Begun { bytes, io: std::mem::replace(&mut client.stream, ClientIo::Lent) };
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(worker.plan.limits.head_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER);
    let mut connection = match timeout(patience.head, builder.handshake(io)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return broken(worker, &client, &error),
        Err(_) => return worker.stats.connection_ended(route, Reason::HeadTimeout),
    };
    let mut requests = FuturesUnordered::new();
    let mut idle = Box::pin(sleep_until(Instant::now() + patience.idle));
    let mut leaving = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, mut respond))) => {
                    let Some(place) = lanes.streams.take() else {
                        // Nothing was done with it: the client may send it again (RFC 9113 section 8.7).
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                        worker.stats.connection_ended(route, Reason::TooManyConnections);
                        continue;
                    };
                    let served = one(Box::new(client.with_stream(Stream::new(request, respond), &lanes.police)));
                    requests.push(Box::pin(async move {
                        served.await;
                        drop(place);
                    }));
                }
                // Those that run are dropped, and their records say that the client has gone.
                Some(Err(error)) => return broken(worker, &client, &error),
                None => break,
            },
            Some(()) = requests.next(), if !requests.is_empty() => {
                idle.as_mut().reset(Instant::now() + patience.idle);
            }
            () = worker.stop.cancelled(), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = &mut idle, if requests.is_empty() && !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            () = worker.kill.cancelled() => {
                return worker.stats.connection_ended(route, Reason::Drained);
            }
        }
    }
    worker.stats.connection_ended(route, Reason::Ok);
}

/// A client that breaks the protocol is told so by GOAWAY; here it is written down. One that goes is not.
fn broken(worker: &Worker, client: &Client, error: &h2::Error) {
    let route = client.routes.first().copied();
    if error.is_io() || error.is_remote() {
        return worker.stats.connection_ended(route, Reason::ClientGone);
    }
    let mut recording = Recording::begin(worker, client.base.clone());
    recording.record.route = route.map(|route| worker.plan.routes[route].name.clone());
    recording.finish(Reason::BadRequest, Some(format!("HTTP/2: {error}")));
}

/// The client's bytes, those first that were read already.
struct Begun {
    bytes: Buffer,
    io: ClientIo,
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.bytes.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let n = buf.remaining().min(this.bytes.filled().len());
        buf.put_slice(&this.bytes.filled()[..n]);
        this.bytes.consume(n);
        this.bytes.release();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
