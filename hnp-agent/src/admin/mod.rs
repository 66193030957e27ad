//! What the agent says of itself over HTTP, on the control runtime: to scrapers and probes on a port, with a page for people
//! who forward it, and to people on a socket of their own.
//!
//! Everything is read-only, and there are no secrets. The servers are bounded (connections, head, time), so that a
//! scraper gone wild costs the control plane little; they never touch the data path. What names pods and what they ask
//! for is on the socket, which root and the agent's group may open, and on a port only with the page.

pub mod client;
mod flows;
mod migration;
mod page;
mod query;
pub mod socket;
pub mod status;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::page::File;
use self::status::Sources;
use crate::capture::Capture;
use crate::direct;
use crate::telemetry::readiness::Readiness;
use crate::telemetry::{Telemetry, metrics, names};

/// Connections at a time: a kubelet, a scraper or two, and people.
const CONNECTIONS: usize = 32;
/// A connection is closed after this, whatever happens on it; scrapers open a new one.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// A request's head must arrive within this; also the longest idle time between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// After a failed accept (out of descriptors), before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Everything that is answered.
const ANSWERS: [(&str, Answer); 10] = [
    ("/metrics", Answer::Metrics),
    ("/healthz", Answer::Healthz),
    ("/readyz", Answer::Readyz),
    ("/observed", Answer::Observed),
    ("/status", Answer::Status),
    ("/flows", Answer::Flows),
    ("/migration", Answer::Migration),
    ("/", Answer::Page(File::Page)),
    ("/page.css", Answer::Page(File::Style)),
    ("/page.js", Answer::Page(File::Script)),
];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    Metrics,
    Healthz,
    Readyz,
    Observed,
    Status,
    Flows,
    Migration,
    Page(File),
}

impl Answer {
    /// Whether it is for the page, and so not for everybody on a port.
    fn is_for_page(self) -> bool {
        match self {
            Self::Metrics | Self::Healthz | Self::Readyz | Self::Observed => false,
            Self::Status | Self::Flows | Self::Migration | Self::Page(_) => true,
        }
    }
}

/// Takes the address, so that a start can fail before anything is touched.
///
/// # Errors
/// When it cannot be had; the error says which key to change.
pub async fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}: set `admin.listen` to a free address, or to off"))
}

/// Where the agent is asked.
#[derive(Debug)]
pub enum Listener {
    /// The admin port.
    Port {
        /// Where it listens.
        listener: TcpListener,
        /// Whether the page is there, and what it shows.
        page: bool,
    },
    /// The socket in the run directory.
    Socket(UnixListener),
}

/// Who asks, as far as it matters what he hears.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Asker {
    Socket,
    Port { page: bool },
}

enum Stream {
    Port(TcpStream),
    Socket(UnixStream),
}

impl Listener {
    /// Cancel-safe.
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Port { listener, .. } => Ok(Stream::Port(listener.accept().await?.0)),
            Self::Socket(listener) => Ok(Stream::Socket(listener.accept().await?.0)),
        }
    }
}

/// What is said to a request.
enum Said {
    Now(Response<Full<Bytes>>),
    /// What is asked takes a look that may block.
    AfterALook(migration::Wanted),
}

/// What answers are made of.
pub struct State {
    telemetry: Arc<Telemetry>,
    readiness: Readiness,
    direct: direct::Table,
    sources: Sources,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
}

impl State {
    /// For all listeners of an agent.
    pub fn new(
        telemetry: Arc<Telemetry>,
        readiness: Readiness,
        direct: direct::Table,
        sources: Sources,
    ) -> Arc<Self> {
        let ready = readiness.clone();
        telemetry.register(move |out| out.single(&names::READY, u64::from(ready.is_ready())));
        Arc::new(Self { telemetry, readiness, direct, sources, looking: tokio::sync::Mutex::default() })
    }
}

/// Serves until cancelled; connections that are open then are dropped.
pub async fn serve(listener: Listener, state: Arc<State>, cancel: CancellationToken) {
    let asker = match listener {
        Listener::Port { page, .. } => Asker::Port { page },
        Listener::Socket(_) => Asker::Socket,
    };
    // Dropped at the end, and its tasks with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // All branches are cancel-safe.
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(_) = connections.join_next(), if connections.len() >= CONNECTIONS => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => {
                let state = Arc::clone(&state);
                match accepted {
                    Ok(Stream::Port(stream)) => {
                        connections.spawn(connection(stream, asker, state));
                    }
                    Ok(Stream::Socket(stream)) => {
                        connections.spawn(connection(stream, asker, state));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the admin server cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            },
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, asker: Asker, state: Arc<State>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move {
            let response = match state.answer(&request, asker) {
                Said::Now(response) => response,
                Said::AfterALook(wanted) => state.migration(wanted).await,
            };
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_LIFE, serving).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection"),
    }
}

impl State {
    fn answer<B>(&self, request: &Request<B>, asker: Asker) -> Said {
        let path = request.uri().path();
        let there = |answer: &Answer| match asker {
            Asker::Socket => true,
            Asker::Port { page } => page || !answer.is_for_page(),
        };
        let Some(answer) = ANSWERS.iter().find(|(known, _)| *known == path).map(|(_, answer)| *answer) else {
            let paths: Vec<_> =
                ANSWERS.iter().filter(|(_, answer)| there(answer)).map(|(path, _)| *path).collect();
            let text = format!("not here; there are {}\n", paths.join(", "));
            return Said::Now(respond(StatusCode::NOT_FOUND, TEXT, text));
        };
        if !there(&answer) {
            let text = format!(
                "not on this port (`admin.page`); on the node, by {} in `run_dir`: hnp-agent status, hnp-agent flows, hnp-agent migration\n",
                socket::NAME
            );
            return Said::Now(respond(StatusCode::FORBIDDEN, TEXT, text));
        }
        if answer.is_for_page() && asker != Asker::Socket && !page::is_addressed(request) {
            let text = "only as localhost or by address: a page from elsewhere may have chosen this name\n";
            return Said::Now(respond(StatusCode::MISDIRECTED_REQUEST, TEXT, text));
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Said::Now(response);
        }
        Said::Now(match answer {
            Answer::Metrics => respond(StatusCode::OK, metrics::CONTENT_TYPE, self.telemetry.metrics_text()),
            Answer::Page(file) => page::answer(file),
            Answer::Healthz => respond(StatusCode::OK, TEXT, "ok\n"),
            Answer::Readyz => self.readyz(wants_json(request)),
            Answer::Observed => respond_json(&json!(self.direct.rows(direct::Cause::Observed))),
            Answer::Status => respond_json(&status::answer(&self.sources, &self.telemetry, &self.readiness)),
            Answer::Flows => {
                match flows::answer(&self.telemetry, request.uri().query().unwrap_or_default()) {
                    Ok(found) => respond_json(&found),
                    Err(what) => respond(StatusCode::BAD_REQUEST, TEXT, format!("{what}\n")),
                }
            }
            Answer::Migration => match migration::wanted(request.uri().query().unwrap_or_default()) {
                Ok(wanted) => return Said::AfterALook(wanted),
                Err(what) => respond(StatusCode::BAD_REQUEST, TEXT, format!("{what}\n")),
            },
        })
    }

    /// What strict means for whom. The look at pods' sockets is taken on a thread of its own.
    async fn migration(&self, wanted: migration::Wanted) -> Response<Full<Bytes>> {
        let alone = self.looking.lock().await;
        let of_capture = |capture: &mut Capture| (capture.looking(), capture.loose_direct_count().ok());
        let found = self.sources.captured.as_ref().and_then(|captured| captured.with(of_capture));
        let kernel = match found {
            None => migration::Kernel::default(),
            Some((looking, loose_direct)) => {
                let look = tokio::task::spawn_blocking(move || looking.look()).await.unwrap_or_default();
                migration::Kernel { look, loose_direct }
            }
        };
        drop(alone);
        respond_json(&migration::answer(&wanted, &self.sources, &self.telemetry, &self.direct, kernel))
    }

    /// What is pending: the first line says how much, then one line each.
    fn readyz(&self, as_json: bool) -> Response<Full<Bytes>> {
        let pending = self.readiness.conditions();
        let ready = pending.is_empty();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        if as_json {
            let list: Vec<_> = pending.iter().map(|(name, why)| json!({"name": name, "why": why})).collect();
            return respond(status, JSON, format!("{}\n", json!({"ready": ready, "pending": list})));
        }
        if ready {
            return respond(status, TEXT, "ready\n");
        }
        let mut text = format!("not ready: {} pending\n", pending.len());
        for (name, why) in pending {
            // One line each, whatever words an error brought along.
            text.push_str(&format!("{name}: {why}").replace(['\n', '\r'], " "));
            text.push('\n');
        }
        respond(status, TEXT, text)
    }
}

fn respond_json(value: &Value) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, JSON, format!("{value}\n"))
}

fn wants_json<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    query.split('&').any(|pair| pair == "format=json") || accept.contains(JSON)
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests;
