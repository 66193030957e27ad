//! The client's side of a connection: TCP, a stream of HTTP/2, or TLS on either that ends here.
//!
//! While a connection waits it holds no buffer of ours, so waiting and reading are two steps; what TLS has
//! decrypted already counts as readable.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::answer::LAST_WORDS;
use super::http2::Stream;
use super::paced::Paced;
use crate::policy::Seat;

/// The bytes' way to and from the client.
pub enum ClientIo {
    /// As the client sends them, before it is known whose they are.
    Tcp(TcpStream),
    /// The same, at its workload's pace.
    Paced(Paced),
    /// Decrypted. Below is TCP, or at the gateway, behind a CONNECT, what carried that; never more than that.
    /// Boxed: a TLS session is some kilobytes.
    Tls(Box<TlsStream<ClientIo>>),
    /// One request of HTTP/2, as the bytes of HTTP/1.1; behind a CONNECT, the bytes as they come.
    Http2(Box<Stream>),
    /// Somebody else's: of HTTP/2, which its streams are served on.
    Lent,
}

impl ClientIo {
    /// Waits until there may be something to read. Takes no byte, so it can be dropped at any time.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn readable(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_readable(cx)).await
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_read_ready(cx),
            Self::Paced(paced) => paced.poll_readable(cx),
            Self::Tls(tls) => {
                let (below, session) = tls.get_mut();
                let state = session.process_new_packets().map_err(io::Error::other)?;
                if state.plaintext_bytes_to_read() > 0 {
                    return Poll::Ready(Ok(()));
                }
                below.poll_readable(cx)
            }
            Self::Http2(stream) => {
                ready!(stream.poll_readable(cx));
                Poll::Ready(Ok(()))
            }
            Self::Lent => Poll::Ready(Ok(())),
        }
    }

    /// Whether the client has closed its direction, or all of it, as far as a socket tells: a stream of HTTP/2 has
    /// none. It may still read; but nothing was begun for it yet, and nobody can tell.
    pub fn has_left(&self) -> bool {
        let tcp = match self {
            Self::Tcp(tcp) => tcp,
            Self::Paced(paced) => paced.tcp(),
            Self::Tls(tls) => return tls.get_ref().0.has_left(),
            Self::Http2(_) | Self::Lent => return false,
        };
        let ready = pin!(tcp.ready(Interest::READABLE)).poll(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Reads what is there without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there after all.
    pub fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.try_read(buf),
            Self::Paced(paced) => paced.try_read(buf),
            Self::Tls(_) | Self::Http2(_) | Self::Lent => {
                let mut buf = ReadBuf::new(buf);
                // Whoever waits next asks `readable`, which sees what this leaves behind.
                match Pin::new(self).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf) {
                    Poll::Ready(result) => result.map(|()| buf.filled().len()),
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }

    /// The same, at its workload's pace. What is no socket goes as fast as the one that it is on.
    #[must_use]
    pub(super) fn paced(self, seat: &Rc<Seat>) -> Self {
        match self {
            Self::Tcp(tcp) => Self::Paced(Paced::new(tcp, Rc::clone(seat))),
            Self::Tls(mut tls) => {
                let below = tls.get_mut().0;
                *below = std::mem::replace(below, Self::Lent).paced(seat);
                Self::Tls(tls)
            }
            other @ (Self::Paced(_) | Self::Http2(_) | Self::Lent) => other,
        }
    }

    /// Makes the close a reset, so that the client cannot take a cut stream for a whole one.
    pub fn reset_on_close(&mut self) {
        match self {
            Self::Http2(stream) => stream.reset(),
            Self::Tls(tls) => tls.get_mut().0.reset_on_close(),
            Self::Tcp(tcp) => reset(tcp),
            Self::Paced(paced) => reset(paced.tcp()),
            Self::Lent => {}
        }
    }
}

fn reset(tcp: &TcpStream) {
    // A failure means that the socket is already gone, which is what the caller wants.
    let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Paced(paced) => Pin::new(paced).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Self::Http2(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Lent => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Paced(paced) => Pin::new(paced).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            Self::Http2(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Lent => gone(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Paced(paced) => Pin::new(paced).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            Self::Http2(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Lent => gone(),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Paced(paced) => Pin::new(paced).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Http2(stream) => Pin::new(stream).poll_flush(cx),
            Self::Lent => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Paced(paced) => Pin::new(paced).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Http2(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Lent => Poll::Ready(Ok(())),
        }
    }
}

fn gone() -> Poll<io::Result<usize>> {
    Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
}

/// Ends a client's TLS here. `hello` is what was read of it already.
///
/// # Errors
/// TLS's own, as a [`rustls::Error`] inside, or what is below; with that, if it is still there, on which an alert
/// has gone out.
pub(super) async fn end_tls(
    below: ClientIo,
    config: &Arc<ServerConfig>,
    hello: &[u8],
) -> Result<TlsStream<ClientIo>, (io::Error, Option<ClientIo>)> {
    let mut fed = Ok(());
    let acceptor = TlsAcceptor::from(Arc::clone(config));
    let handshake = acceptor.accept_with(below, |session| fed = feed(session, hello)).into_fallible();
    let Err(error) = fed else { return handshake.await.map_err(|(error, below)| (error, Some(below))) };
    // The session is over; what is left of the handshake is its alert, and the client's reaction to it.
    match timeout(LAST_WORDS, handshake).await {
        Ok(Err((_, below))) => Err((error, Some(below))),
        Ok(Ok(tls)) => Err((error, Some(tls.into_inner().0))),
        Err(_) => Err((error, None)),
    }
}

fn feed(session: &mut ServerConnection, mut hello: &[u8]) -> io::Result<()> {
    while !hello.is_empty() {
        session.read_tls(&mut hello)?;
        session.process_new_packets().map_err(io::Error::other)?;
    }
    Ok(())
}
