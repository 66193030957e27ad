//! One connection to an upstream, and what is known about it.

use std::io::{self, IoSlice};
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

use super::h2;
use super::pool::PoolKey;
use crate::telemetry::record::{HttpVersion, WayRecord};

/// The bytes' way: TLS of the agent; or what the client sends, to where it was going or in a tunnel.
pub enum Io {
    /// Verified and authenticated. Boxed: a TLS session is some kilobytes.
    Tls(Box<TlsStream<Transport>>),
    /// One stream of a connection that others share.
    H2(Box<h2::Exchange>),
    /// As the client meant it.
    Plain(Transport),
}

/// What carries the bytes.
pub enum Transport {
    /// To the upstream.
    Tcp(TcpStream),
    /// Through a proxy that is spoken to in cleartext.
    Tunnel(TcpStream),
    /// Through a proxy that is itself spoken to over TLS.
    TlsTunnel(Box<TlsStream<TcpStream>>),
}

/// What the access log says about a connection.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Where it goes as configured.
    pub way: Arc<WayRecord>,
    /// The address dialled: the proxy's, where there is one.
    pub addr: SocketAddr,
    /// Resolve, connect, the proxy's part and handshake together.
    pub connect: Duration,
    /// Such as `TLSv1.3`; `None` in cleartext.
    pub tls_version: Option<&'static str>,
    /// Such as `X25519MLKEM768`.
    pub key_exchange: Option<&'static str>,
    /// What is spoken; `None` where the bytes are not ours to understand.
    pub protocol: Option<HttpVersion>,
    /// The TLS session was resumed.
    pub resumed: bool,
    /// The generation of the identity that was presented.
    pub identity_generation: Option<u64>,
    /// What it says of the workload, where that has one of its own.
    pub spiffe_id: Option<Arc<str>>,
}

/// A connection in use.
pub struct UpstreamConnection {
    /// The stream.
    pub io: Io,
    /// Facts for the log.
    pub info: Rc<ConnectionInfo>,
    /// It came from the pool.
    pub reused: bool,
    /// How long was waited because the upstream could not be dialled, before it was made or found.
    pub outage: Duration,
    pub(super) key: Option<Rc<PoolKey>>,
}

impl UpstreamConnection {
    pub(super) fn plain(transport: Transport, way: WayRecord, addr: SocketAddr, connect: Duration) -> Self {
        let info = ConnectionInfo {
            way: Arc::new(way),
            addr,
            connect,
            tls_version: None,
            key_exchange: None,
            protocol: None,
            resumed: false,
            identity_generation: None,
            spiffe_id: None,
        };
        Self {
            io: Io::Plain(transport),
            info: Rc::new(info),
            reused: false,
            outage: Duration::ZERO,
            key: None,
        }
    }

    /// A new one that carries one request at a time.
    pub(super) fn own(tls: Box<TlsStream<Transport>>, info: Rc<ConnectionInfo>, key: Rc<PoolKey>) -> Self {
        Self { io: Io::Tls(tls), info, reused: false, outage: Duration::ZERO, key: Some(key) }
    }

    pub(super) fn after(self, outage: Duration) -> Self {
        Self { outage, ..self }
    }

    /// Whether the upstream has said that it did nothing with the request, and what may be done then.
    pub fn unprocessed(&self) -> Option<h2::Unprocessed> {
        match &self.io {
            Io::H2(stream) => stream.unprocessed(),
            Io::Tls(_) | Io::Plain(_) => None,
        }
    }

    /// The number of a connection that is shared.
    pub fn shared(&self) -> Option<u64> {
        match &self.io {
            Io::H2(stream) => Some(stream.link_number()),
            Io::Tls(_) | Io::Plain(_) => None,
        }
    }

    /// Whether an idle connection can carry a request: still open, and nobody spoke out of turn.
    ///
    /// First TLS takes what has come: a ticket, which servers send after the handshake, is no word out of
    /// turn, and a connection that was made ahead of use has read none yet. Then the kernel is asked, not
    /// the runtime: what arrived since the runtime last looked counts too, whatever it is.
    pub fn is_quiet(&mut self) -> bool {
        if matches!(self.io, Io::H2(_)) {
            // A stream carries one request.
            return false;
        }
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        if Pin::new(&mut self.io).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf).is_ready() {
            return false;
        }
        let tcp = match &self.io {
            Io::Tls(tls) => tls.get_ref().0.tcp(),
            Io::Plain(transport) => transport.tcp(),
            Io::H2(_) => return false,
        };
        let peeked = SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Transport {
    /// The TCP connection below.
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) | Self::Tunnel(tcp) => tcp,
            Self::TlsTunnel(tls) => tls.get_ref().0,
        }
    }

    /// Ends our direction for whoever is below, a proxy included.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) | Self::Tunnel(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::TlsTunnel(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) | Self::Tunnel(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::TlsTunnel(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(tcp) | Self::Tunnel(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::TlsTunnel(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    // TLS hands several records over at once; without these each would be a system call.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(tcp) | Self::Tunnel(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::TlsTunnel(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(tcp) | Self::Tunnel(tcp) => tcp.is_write_vectored(),
            Self::TlsTunnel(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) | Self::Tunnel(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::TlsTunnel(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    // Below our TLS, in a tunnel: the end of a direction is TLS's own (close_notify), and proxies take half a
    // connection's end for all of it, squid among them.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tunnel(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::TlsTunnel(tls) => Pin::new(tls).poll_flush(cx),
        }
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
            Self::H2(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Plain(transport) => Pin::new(transport).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            Self::H2(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Plain(transport) => Pin::new(transport).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::H2(stream) => Pin::new(stream).poll_flush(cx),
            Self::Plain(transport) => Pin::new(transport).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::H2(stream) => Pin::new(stream).poll_shutdown(cx),
            // The client's own TLS is in it: that it has gone is all that can be told.
            Self::Plain(transport) => transport.poll_finish(cx),
        }
    }
}
