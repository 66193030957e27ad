//! The manager over HTTP/2, for connections that agreed to it. With the `h2` crate's server, apart from the
//! agent's own code above it; what a request was is kept as a head of HTTP/1.1, so that scenarios read both alike.
//!
//! | path | answer |
//! |---|---|
//! | `/bytes/N?seed=S` | N bytes of a [`Pattern`]; with a length, or without one with `&chunked` |
//! | `/echo` | the request's body, and its trailers as trailers |
//! | `/slow?ms=N` | as anything else, N ms later |
//! | `/status/N` | that status; 204 and 304 without a body |
//! | `/early-hints` | 103, then as anything else |
//! | `/fault/refuse`, `/fault/required` | REFUSED_STREAM, HTTP_1_1_REQUIRED |
//! | `/fault/reset`, `/fault/reset-in-body` | INTERNAL_ERROR, before or within the answer |
//! | `/fault/huge-head`, `/fault/too-short` | a head of 1 MB; less than its `content-length` |
//! | anything else | JSON of what the manager saw |

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use super::Counter;
use super::behaviour::NOT_THE_PATTERN;
use super::record::{self, Records, query_value};
use crate::pattern::{Comparison, Pattern, hex};
use crate::wire::{Head, Stream};

/// What a manager does on HTTP/2.
#[derive(Clone, Copy, Debug)]
pub struct Http2 {
    /// Streams that a client may have open at a time.
    pub streams: u32,
    /// After so many requests on a connection it says GOAWAY, and finishes what it has begun.
    pub requests: usize,
    /// Every so-many-th request is refused.
    pub refuse_every: usize,
}

impl Default for Http2 {
    /// nginx' limits, without its refusals.
    fn default() -> Self {
        Self { streams: 128, requests: usize::MAX, refuse_every: usize::MAX }
    }
}

type Answer = Response<()>;

/// Serves a connection to its end.
pub(super) async fn serve(
    io: Box<dyn Stream>,
    connection: u64,
    manager: &str,
    settings: Http2,
    received: Counter,
    records: &Arc<Records>,
) -> io::Result<()> {
    let mut server = Builder::new()
        .max_concurrent_streams(settings.streams)
        .initial_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .handshake(io)
        .await
        .map_err(io::Error::other)?;
    let mut answering = JoinSet::new();
    let mut count = 0_usize;
    while let Some(asked) = server.accept().await {
        let (request, mut respond) = asked.map_err(io::Error::other)?;
        count += 1;
        if count.is_multiple_of(settings.refuse_every) {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        if count == settings.requests {
            server.graceful_shutdown();
        }
        let (request, body) = request.into_parts();
        let (number, seen) = records.requested(connection, &head_of(&Request::from_parts(request, ()))?);
        let exchange = Exchange {
            manager: manager.to_owned(),
            seen,
            number,
            records: Arc::clone(records),
            received: Arc::clone(&received),
        };
        answering.spawn(async move {
            // A client that gives up gets no answer.
            let _ = exchange.answer(body, respond).await;
        });
    }
    Ok(())
}

/// As HTTP/1.1 would have it, with the authority as Host.
fn head_of(request: &Request<()>) -> io::Result<Head> {
    let target = request.uri().path_and_query().map_or("*", |target| target.as_str());
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    let mut raw = format!("{} {target} HTTP/2.0\r\nhost: {authority}\r\n", request.method()).into_bytes();
    for (name, value) in request.headers() {
        raw.extend_from_slice(format!("{name}: ").as_bytes());
        raw.extend_from_slice(value.as_bytes());
        raw.extend_from_slice(b"\r\n");
    }
    raw.extend_from_slice(b"\r\n");
    Head::parse(raw)
}

/// One request under way.
struct Exchange {
    manager: String,
    seen: record::Request,
    number: usize,
    records: Arc<Records>,
    received: Counter,
}

impl Exchange {
    async fn answer(self, body: RecvStream, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
        let target = self.seen.target.clone();
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let fault = match path.strip_prefix("/fault/") {
            Some("refuse") => Some(Reason::REFUSED_STREAM),
            Some("required") => Some(Reason::HTTP_1_1_REQUIRED),
            Some("reset") => Some(Reason::INTERNAL_ERROR),
            Some(_) | None => None,
        };
        if let Some(reason) = fault {
            respond.send_reset(reason);
            return Ok(());
        }
        let Some((data, sha256, trailers)) = self.read(body).await? else {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        };
        let number = |key: &str| query_value(&target, key).and_then(|value| value.parse::<u64>().ok());
        let last = path.rsplit('/').next().and_then(|last| last.parse::<u64>().ok()).unwrap_or(0);
        match path.split('/').nth(1).unwrap_or_default() {
            "bytes" => {
                let chunked = target.contains("chunked");
                let answer = if chunked { self.head(200) } else { self.with_length(200, last) };
                let mut stream = respond.send_response(answer, false)?;
                let mut pattern = Pattern::new(number("seed").unwrap_or(0), last);
                while let Some(block) = pattern.next_block() {
                    send(&mut stream, Bytes::copy_from_slice(block)).await?;
                }
                stream.send_data(Bytes::new(), true)?;
            }
            "echo" => {
                let mut stream = respond.send_response(self.head(200), false)?;
                send(&mut stream, Bytes::from(data)).await?;
                match trailers {
                    Some(trailers) => stream.send_trailers(trailers)?,
                    None => stream.send_data(Bytes::new(), true)?,
                }
            }
            "status" => {
                let status = u16::try_from(last).unwrap_or(500);
                let bodiless = matches!(status, 204 | 304) || self.seen.method == Method::HEAD.as_str();
                let mut stream = respond.send_response(self.head(status), bodiless)?;
                if !bodiless {
                    stream.send_data(Bytes::from_static(b"a body where the status has one"), true)?;
                }
            }
            "fault" => self.fault(&path, respond).await?,
            kind => {
                match kind {
                    "slow" => tokio::time::sleep(Duration::from_millis(number("ms").unwrap_or(100))).await,
                    "early-hints" => {
                        let hints = Response::builder().status(103).header("link", "</a.css>; rel=preload");
                        respond.send_informational(hints.body(()).expect("a head"))?;
                    }
                    _ => {}
                }
                let text = self.what_was_seen(data.len(), &sha256);
                let head_only = self.seen.method == Method::HEAD.as_str();
                let mut stream =
                    respond.send_response(self.with_length(200, text.len() as u64), head_only)?;
                if !head_only {
                    send(&mut stream, Bytes::from(text)).await?;
                    stream.send_data(Bytes::new(), true)?;
                }
            }
        }
        Ok(())
    }

    async fn fault(&self, path: &str, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
        match path {
            "/fault/huge-head" => {
                let mut answer = self.head(200);
                let huge = "a".repeat(1_000_000).parse().expect("a value");
                answer.headers_mut().insert("x-huge", huge);
                respond.send_response(answer, true)?;
            }
            "/fault/too-short" => {
                let mut stream = respond.send_response(self.with_length(200, 1000), false)?;
                stream.send_data(Bytes::from_static(b"cut short"), true)?;
            }
            _ => {
                let mut stream = respond.send_response(self.with_length(200, 1000), false)?;
                send(&mut stream, Bytes::from_static(b"cut short")).await?;
                // What is reset is not sent any more; this is to be.
                tokio::time::sleep(Duration::from_millis(100)).await;
                stream.send_reset(Reason::INTERNAL_ERROR);
            }
        }
        Ok(())
    }

    /// The body (of large ones, the front), its hash and trailers; `None` where it is not its pattern.
    async fn read(
        &self,
        mut body: RecvStream,
    ) -> Result<Option<(Vec<u8>, String, Option<HeaderMap>)>, h2::Error> {
        let (mut hash, mut kept, mut total) = (Sha256::new(), Vec::new(), 0);
        let seed = query_value(&self.seen.target, "seed").and_then(|seed| seed.parse().ok());
        let mut comparison = seed.filter(|_| self.seen.method != "GET").map(Comparison::new);
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            self.received.fetch_add(data.len() as u64, std::sync::atomic::Ordering::Relaxed);
            total += data.len() as u64;
            hash.update(&data);
            if let Some(comparison) = &mut comparison {
                comparison.take(&data);
            }
            if kept.len() < 1 << 20 {
                kept.extend_from_slice(&data);
            }
        }
        if comparison.is_some_and(|comparison| !comparison.holds()) {
            self.records.failed(self.seen.connection, NOT_THE_PATTERN);
            return Ok(None);
        }
        let sha256 = hex(&hash.finalize());
        self.records.body_ended(self.number, total, &sha256);
        Ok(Some((kept, sha256, body.trailers().await?)))
    }

    fn head(&self, status: u16) -> Answer {
        let answer = Response::builder().status(status).header("x-manager", &self.manager);
        answer.header("x-token", &self.seen.token).body(()).expect("a head")
    }

    fn with_length(&self, status: u16, length: u64) -> Answer {
        let mut answer = self.head(status);
        answer.headers_mut().insert("content-length", length.into());
        answer
    }

    fn what_was_seen(&self, bytes: usize, sha256: &str) -> String {
        let record::Request { token, method, target, peer, tls, connection, .. } = &self.seen;
        let client = tls.as_ref().and_then(|tls| tls.client.as_ref());
        let seen = json!({
            "manager": self.manager,
            "token": token,
            "method": method,
            "target": target,
            "host": self.seen.host(),
            "peer": peer.to_string(),
            "connection": connection,
            "client_subject": client.map(|client| &client.subject),
            "client_serial": client.map(|client| &client.serial),
            "tls": tls.as_ref().map(|tls| &tls.version),
            "body_bytes": bytes,
            "body_sha256": sha256,
        });
        format!("{seen}\n")
    }
}

/// Sends as the client's windows go.
async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(capacity) => stream.send_data(data.split_to(capacity?.min(data.len())), false)?,
            None => return Err(Reason::CANCEL.into()),
        }
    }
    Ok(())
}
