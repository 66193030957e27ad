//! A tunnel through a corporate proxy: CONNECT (RFC 9110 section 9.3.6), over TCP or over TLS.
//!
//! The proxy gets the upstream's name and our credentials for it, and nothing of what is said in the
//! tunnel: the upstream's certificate is verified, and ours presented, end to end. A TLS client speaks
//! first, so whatever follows the answer's head before our hello was not meant for this tunnel.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hnp_common::Reason;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::{DialError, ProxyKey, Transport, Upstreams};
use crate::config::humane;
use crate::config::plan::Upstream;
use crate::config::upstream_proxy::{BasicCredentials, ProxyCredentials, UpstreamProxy};
use crate::trust;

/// The head of an answer to CONNECT has a status and little else; a proxy's error page comes after it.
const HEAD_BYTES: usize = 16 * 1024;

impl Upstreams {
    /// Dials the proxy and has it open a tunnel to an upstream.
    pub(super) async fn tunnel(
        &self,
        upstream: &Upstream,
        through: &ProxyKey,
        end: Instant,
    ) -> Result<(Transport, SocketAddr), DialError> {
        let proxy = &*through.proxy;
        // Read before anybody is dialled: without credentials there is nothing to ask for.
        let request = request(upstream, proxy)?;
        let (tcp, addr) =
            self.reach(&proxy.host, proxy.port, end).await.map_err(|error| unreached(proxy, error))?;
        let at = At { proxy, addr };
        let transport = match &through.trust {
            None => Transport::Tunnel(tcp),
            Some(trust) => {
                let config = self.shared.configs.borrow_mut().proxy_config(through, trust);
                let config = config.map_err(|error| at.failed(Reason::Internal, error.to_string()))?;
                let tls = at.handshake(TlsConnector::from(config), tcp).await?;
                self.shared.configs.borrow_mut().opened_to_proxy(through, tls.get_ref().1);
                Transport::TlsTunnel(Box::new(tls))
            }
        };
        Ok((at.open(transport, &request).await?, addr))
    }
}

/// Reads a proxy's credentials from their file.
///
/// # Errors
/// When it cannot be read or holds something else; names the file and quotes nothing of it.
pub fn credentials(proxy: &UpstreamProxy) -> Result<Option<BasicCredentials>, CredentialsFileError> {
    let path = match &proxy.credentials {
        ProxyCredentials::None => return Ok(None),
        ProxyCredentials::Url(credentials) => return Ok(Some(credentials.clone())),
        ProxyCredentials::File(path) => path,
    };
    let bytes = crate::files::read(path)
        .map_err(|error| CredentialsFileError(format!("{}: cannot be read: {error}", path.display())))?;
    let credentials = BasicCredentials::parse_file(&bytes);
    credentials.map(Some).map_err(|error| CredentialsFileError(format!("{}: {error}", path.display())))
}

/// Why a file gave no credentials.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CredentialsFileError(String);

fn request(upstream: &Upstream, proxy: &UpstreamProxy) -> Result<Vec<u8>, DialError> {
    let unavailable = |error: CredentialsFileError| {
        let detail = format!("credentials for the proxy `{}`: {error}", proxy.name);
        DialError::new(Reason::ProxyCredentialsUnavailable, detail, None)
    };
    let (host, port) = (&upstream.host, upstream.port);
    let mut head = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some(credentials) = credentials(proxy).map_err(unavailable)? {
        head.push_str("Proxy-Authorization: Basic ");
        BASE64_STANDARD.encode_string(credentials.as_bytes(), &mut head);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    Ok(head.into_bytes())
}

/// The reason is the proxy's where the way to it failed, and stays where it is this node's.
fn unreached(proxy: &UpstreamProxy, error: DialError) -> DialError {
    let reason = match error.reason {
        Reason::UpstreamConnectTimeout => Reason::ProxyTimeout,
        Reason::TooManyConnections => Reason::TooManyConnections,
        _ => Reason::ProxyUnreachable,
    };
    DialError { reason, detail: format!("{proxy}: {}", error.detail), ..error }
}

/// A proxy that was reached.
struct At<'p> {
    proxy: &'p UpstreamProxy,
    addr: SocketAddr,
}

impl At<'_> {
    fn failed(&self, reason: Reason, what: impl std::fmt::Display) -> DialError {
        DialError::new(reason, format!("{}: {what}", self.proxy), Some(self.addr))
    }

    fn late(&self, what: &str, deadline: Duration) -> DialError {
        self.failed(Reason::ProxyTimeout, format!("{what} within {}", humane(deadline)))
    }

    async fn handshake(
        &self,
        connector: TlsConnector,
        tcp: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, DialError> {
        let deadline = self.proxy.timeouts.tls;
        let name = self.proxy.tls.as_ref().map(|tls| tls.server_name.clone());
        let name = name.ok_or_else(|| self.failed(Reason::Internal, "a trust and no TLS"))?;
        match timeout(deadline, connector.connect(name, tcp)).await {
            Ok(Ok(tls)) => Ok(tls),
            Ok(Err(error)) => {
                let broke = trust::tls_reason(&error).is_none();
                Err(self.failed(Reason::ProxyTlsFailed, error).may_pass(broke))
            }
            Err(_) => Err(self.late("no TLS handshake", deadline)),
        }
    }

    /// Sends the request and reads the answer; the stream is the tunnel from then on.
    async fn open<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut io: S,
        request: &[u8],
    ) -> Result<S, DialError> {
        let deadline = self.proxy.timeouts.answer;
        let asked = timeout(deadline, async {
            io.write_all(request).await?;
            io.flush().await?;
            read_answer(&mut io).await
        });
        match asked.await {
            Ok(Ok(())) => Ok(io),
            Ok(Err(refusal)) => Err(self.failed(refusal.reason(), &refusal).may_pass(refusal.may_pass())),
            Err(_) => Err(self.late("no answer to CONNECT", deadline)),
        }
    }
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("closed the connection instead of an answer to CONNECT")]
    Closed,
    #[error("refused CONNECT with status {0}")]
    Status(u16),
    #[error("refused CONNECT with status 407: check the credentials; it takes {offered}")]
    Authentication { offered: String },
    #[error("answered CONNECT with {0}")]
    Malformed(&'static str),
}

impl Refusal {
    fn reason(&self) -> Reason {
        match self {
            Self::Io(_) | Self::Closed => Reason::ProxyClosed,
            Self::Status(_) => Reason::ProxyRefused,
            Self::Authentication { .. } => Reason::ProxyAuthenticationRequired,
            Self::Malformed(_) => Reason::ProxyBadResponse,
        }
    }

    /// Whether it says that the proxy, or what is behind it, is not there just now.
    fn may_pass(&self) -> bool {
        match self {
            Self::Io(_) | Self::Closed => true,
            // RFC 9110 section 15.6: what a proxy says of an upstream that restarts, and of itself.
            Self::Status(status) => matches!(status, 502..=504),
            Self::Authentication { .. } | Self::Malformed(_) => false,
        }
    }
}

/// Reads up to the end of the final answer's head, and makes sure that nothing follows it yet.
async fn read_answer(io: &mut (impl AsyncRead + Unpin)) -> Result<(), Refusal> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        while let Some(end) = head_end(&bytes) {
            match judge(&bytes[..end])? {
                // RFC 9110 section 15.2: any number of these may come before the answer.
                Verdict::Interim => drop(bytes.drain(..end)),
                Verdict::Open if bytes.len() == end => return Ok(()),
                Verdict::Open => {
                    return Err(Refusal::Malformed(
                        "bytes after the head, before anything was said in the tunnel",
                    ));
                }
            }
        }
        if bytes.len() >= HEAD_BYTES {
            return Err(Refusal::Malformed("a head of more than 16 KiB"));
        }
        let mut block = (&mut *io).take((HEAD_BYTES - bytes.len()) as u64);
        if block.read_buf(&mut bytes).await? == 0 {
            return Err(if bytes.is_empty() {
                Refusal::Closed
            } else {
                Refusal::Malformed("half a head, and closed the connection")
            });
        }
        // What is no HTTP need not be waited for to its end.
        let known = bytes.len().min(HTTP.len());
        if bytes[..known] != HTTP[..known] {
            return Err(Refusal::Malformed("something else than HTTP/1.1"));
        }
    }
}

const HTTP: &[u8] = b"HTTP/1.";

#[derive(Debug)]
enum Verdict {
    Interim,
    Open,
}

/// The length of the first head, its empty line included.
fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// A complete head. A length or a transfer coding means nothing in a 2xx answer to CONNECT (RFC 9110
/// section 9.3.6).
fn judge(head: &[u8]) -> Result<Verdict, Refusal> {
    const STATUS_LINE: Refusal = Refusal::Malformed("a status line that is none");
    let lines = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    if lines.iter().any(|b| matches!(b, 0..=8 | 0x0b | 0x0c | 0x0e..=0x1f | 0x7f)) {
        return Err(Refusal::Malformed("control characters in its head"));
    }
    let mut lines = lines.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    // `HTTP/1.1 200`, then a blank and words for people, or nothing.
    let rest = lines.next().and_then(|line| line.strip_prefix(HTTP)).ok_or(STATUS_LINE)?;
    let (code, words) = match rest {
        [b'0' | b'1', b' ', code @ ..] if code.len() >= 3 => code.split_at(3),
        _ => return Err(STATUS_LINE),
    };
    if !code.iter().all(u8::is_ascii_digit) || !(words.is_empty() || words[0] == b' ') {
        return Err(STATUS_LINE);
    }
    let status = code.iter().fold(0, |status: u16, digit| status * 10 + u16::from(digit - b'0'));
    let mut offered = Vec::new();
    for line in lines {
        let colon = line.iter().position(|b| *b == b':');
        let Some((name, value)) = colon.map(|at| (&line[..at], &line[at + 1..])) else {
            return Err(Refusal::Malformed("a header line without a colon"));
        };
        if name.eq_ignore_ascii_case(b"proxy-authenticate") {
            offered.extend(scheme(value));
        }
    }
    match status {
        // A switch of protocols was not asked for.
        100 | 102..=199 => Ok(Verdict::Interim),
        200..=299 => Ok(Verdict::Open),
        407 => {
            let offered =
                if offered.is_empty() { "nothing that it names".into() } else { offered.join(", ") };
            Err(Refusal::Authentication { offered: format!("{offered}, hnp has Basic") })
        }
        _ => Err(Refusal::Status(status)),
    }
}

/// The scheme of a challenge (RFC 9110 section 11.6.1), and nothing of what follows it.
fn scheme(value: &[u8]) -> Option<String> {
    let word = value.trim_ascii().split(u8::is_ascii_whitespace).next()?;
    let good = (1..=20).contains(&word.len()) && word.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
    good.then(|| String::from_utf8_lossy(word).into_owned())
}

#[cfg(test)]
mod tests;
