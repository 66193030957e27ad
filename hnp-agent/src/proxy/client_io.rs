//! The client's side of a connection: TCP, or TLS that ends here.
//!
//! While a connection waits it holds no buffer of ours, so waiting and reading are two steps; what TLS has
//! decrypted already counts as readable.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::answer::LAST_WORDS;
use super::http2::Stream;

/// The bytes' way to and from the client.
pub enum ClientIo {
    /// As the client sends them.
    Tcp(TcpStream),
    /// Decrypted. Boxed: a TLS session is some kilobytes.
    Tls(Box<TlsStream<TcpStream>>),
    /// One request of HTTP/2, as the bytes of HTTP/1.1.
    Http2(Box<Stream>),
    /// Somebody else's: of HTTP/2, which its streams are served on.
    Lent,
}

impl ClientIo {
    /// The socket, where it is this client's alone.
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Tls(tls) => Some(tls.get_ref().0),
            Self::Http2(_) | Self::Lent => None,
        }
    }

    /// Waits until there may be something to read. Takes no byte, so it can be dropped at any time.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn readable(&mut self) -> io::Result<()> {
        if let Self::Tls(tls) = self {
            let session = tls.get_mut().1;
            let state = session.process_new_packets().map_err(io::Error::other)?;
            if state.plaintext_bytes_to_read() > 0 {
                return Ok(());
            }
        }
        match self.tcp() {
            Some(tcp) => tcp.readable().await,
            None => Ok(()),
        }
    }

    /// Reads what is there without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there after all.
    pub fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.try_read(buf),
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

    /// Makes the close a reset, so that the client cannot take a cut stream for a whole one.
    pub fn reset_on_close(&mut self) {
        if let Self::Http2(stream) = self {
            stream.reset();
        } else if let Some(tcp) = self.tcp() {
            // A failure means that the socket is already gone, which is what the caller wants.
            let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
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
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Http2(stream) => Pin::new(stream).poll_flush(cx),
            Self::Lent => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
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
/// TLS's own, as a [`rustls::Error`] inside, or the socket's; with the socket, if it is still there, on which an
/// alert has gone out.
pub(super) async fn end_tls(
    tcp: TcpStream,
    config: &Arc<ServerConfig>,
    hello: &[u8],
) -> Result<TlsStream<TcpStream>, (io::Error, Option<TcpStream>)> {
    let mut fed = Ok(());
    let acceptor = TlsAcceptor::from(Arc::clone(config));
    let handshake = acceptor.accept_with(tcp, |session| fed = feed(session, hello)).into_fallible();
    let Err(error) = fed else { return handshake.await.map_err(|(error, tcp)| (error, Some(tcp))) };
    // The session is over; what is left of the handshake is its alert, and the client's reaction to it.
    match timeout(LAST_WORDS, handshake).await {
        Ok(Err((_, tcp))) => Err((error, Some(tcp))),
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
