//! One connection to an upstream, and what is known about it.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::pool::PoolKey;

/// The bytes' way: TLS of the agent; or what the client sends, to where it was going or in a tunnel.
pub enum Io {
    /// Verified and authenticated. Boxed: a TLS session is some kilobytes.
    Tls(Box<TlsStream<TcpStream>>),
    /// As the client meant it.
    Plain(TcpStream),
}

/// What the access log says about a connection.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Host and port as configured, or the address of a passthrough.
    pub authority: Arc<str>,
    /// The address dialled.
    pub addr: SocketAddr,
    /// Resolve, connect and handshake together.
    pub connect: Duration,
    /// Such as `TLSv1.3`; `None` in cleartext.
    pub tls_version: Option<&'static str>,
    /// Such as `X25519MLKEM768`.
    pub key_exchange: Option<&'static str>,
    /// The TLS session was resumed.
    pub resumed: bool,
    /// The generation of the identity that was presented.
    pub identity_generation: Option<u64>,
}

/// A connection in use.
pub struct UpstreamConnection {
    /// The stream.
    pub io: Io,
    /// Facts for the log.
    pub info: Rc<ConnectionInfo>,
    /// It came from the pool.
    pub reused: bool,
    pub(super) key: Option<Rc<PoolKey>>,
}

impl UpstreamConnection {
    pub(super) fn plain(tcp: TcpStream, authority: Arc<str>, addr: SocketAddr, connect: Duration) -> Self {
        let info = ConnectionInfo {
            authority,
            addr,
            connect,
            tls_version: None,
            key_exchange: None,
            resumed: false,
            identity_generation: None,
        };
        Self { io: Io::Plain(tcp), info: Rc::new(info), reused: false, key: None }
    }

    /// Whether an idle connection can carry a request: still open, and nobody spoke out of turn.
    ///
    /// The kernel is asked, not the runtime: what arrived since the runtime last looked counts too. A
    /// TLS record that is no data (a ticket, a key update) ends the connection as well; a new one is
    /// cheaper than telling them apart here.
    pub fn is_quiet(&mut self) -> bool {
        let tcp = match &self.io {
            Io::Tls(tls) => tls.get_ref().0,
            Io::Plain(tcp) => tcp,
        };
        let peeked = SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]);
        if !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return false;
        }
        // What TLS has decrypted already and nobody has read.
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        Pin::new(&mut self.io).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf).is_pending()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
        }
    }
}
