//! The client's side of a connection: TCP, or TLS that ends here.
//!
//! While a connection waits it holds no buffer of ours, so waiting and reading are two steps; what TLS has
//! decrypted already counts as readable.

use std::io;
use std::net::SocketAddr;
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

/// The bytes' way to and from the client.
pub enum ClientIo {
    /// As the client sends them.
    Tcp(TcpStream),
    /// Decrypted. Boxed: a TLS session is some kilobytes.
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientIo {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// The local address of the connection.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().local_addr()
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
        self.tcp().readable().await
    }

    /// Reads what is there without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there after all.
    pub fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.try_read(buf),
            Self::Tls(tls) => {
                let mut buf = ReadBuf::new(buf);
                // Whoever waits next asks `readable`, which sees what this leaves behind.
                match Pin::new(tls).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf) {
                    Poll::Ready(result) => result.map(|()| buf.filled().len()),
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }

    /// Makes the close a reset, so that the client cannot take a cut stream for a whole one.
    pub fn reset_on_close(&self) {
        // A failure means that the socket is already gone, which is what the caller wants.
        let _ = socket2::SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
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
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
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
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
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
