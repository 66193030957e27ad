//! Health, readiness and metrics over HTTP, on the control runtime.
//!
//! Four paths, read-only, no secrets. The server is bounded (connections, head, time), so that a
//! scraper gone wild costs the control plane little; it never touches the data path.

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
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::observed;
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

/// Takes the address, so that a start can fail before anything is touched.
///
/// # Errors
/// When it cannot be had; the error says which key to change.
pub async fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}: set `admin.listen` to a free address, or to off"))
}

/// Serves until cancelled; connections that are open then are dropped.
pub async fn serve(
    listener: TcpListener,
    telemetry: Arc<Telemetry>,
    readiness: Readiness,
    observed: observed::Table,
    cancel: CancellationToken,
) {
    let ready = readiness.clone();
    telemetry.register(move |out| out.single(&names::READY, u64::from(ready.is_ready())));
    let state = Arc::new(State { telemetry, readiness, observed });
    // Dropped at the end, and its tasks with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // All branches are cancel-safe.
        tokio::select! {
            () = cancel.cancelled() => return,
            Some(_) = connections.join_next(), if connections.len() >= CONNECTIONS => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&state)));
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin server cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

#[derive(Debug)]
struct State {
    telemetry: Arc<Telemetry>,
    readiness: Readiness,
    observed: observed::Table,
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, std::convert::Infallible>(state.answer(&request)) }
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
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let known = matches!(request.uri().path(), "/metrics" | "/healthz" | "/readyz" | "/observed");
        if !known {
            let text = "not here; there are /metrics, /healthz, /readyz and /observed\n";
            return respond(StatusCode::NOT_FOUND, TEXT, text);
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/metrics" => respond(StatusCode::OK, metrics::CONTENT_TYPE, self.telemetry.metrics_text()),
            "/healthz" => respond(StatusCode::OK, TEXT, "ok\n"),
            "/observed" => respond(StatusCode::OK, JSON, format!("{}\n", json!(self.observed.rows()))),
            _ => self.readyz(wants_json(request)),
        }
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
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::telemetry::readiness::Pending;

    struct Server {
        addr: SocketAddr,
        readiness: Readiness,
        cancel: CancellationToken,
        task: JoinSet<()>,
    }

    impl Server {
        async fn start() -> Self {
            let plan = crate::config::parse(
                "identities: {c: {certificate: /c, key: /k}}\n\
                 routes: [{name: m, destinations: ['m.test:80'], upstream: 'https://m.test', identity: c}]",
                std::path::Path::new("x"),
            )
            .unwrap();
            let telemetry = Telemetry::writing_to(&plan, Box::new(std::io::sink()));
            let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let addr = listener.local_addr().unwrap();
            let (readiness, cancel) = (Readiness::new(), CancellationToken::new());
            let mut task = JoinSet::new();
            task.spawn(serve(
                listener,
                telemetry,
                readiness.clone(),
                observed::Table::default(),
                cancel.clone(),
            ));
            Self { addr, readiness, cancel, task }
        }

        /// The whole answer to a request head.
        async fn ask(&self, head: &str) -> String {
            let mut stream = TcpStream::connect(self.addr).await.unwrap();
            let request = format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    #[tokio::test]
    async fn readiness_says_what_is_pending_in_both_forms() {
        let server = Server::start().await;
        let pending: Pending = server.readiness.pending("identity c", "no such\nfile");
        let text = server.ask("GET /readyz HTTP/1.1").await;
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert!(text.ends_with("\r\n\r\nnot ready: 1 pending\nidentity c: no such file\n"), "{text}");
        for head in ["GET /readyz?format=json HTTP/1.1", "GET /readyz HTTP/1.1\r\nAccept: application/json"] {
            let text = server.ask(head).await;
            assert!(
                text.ends_with(
                    "{\"pending\":[{\"name\":\"identity c\",\"why\":\"no such\\nfile\"}],\"ready\":false}\n"
                ),
                "{text}"
            );
        }
        assert!(server.ask("GET /metrics HTTP/1.1").await.contains("\nhnp_ready 0\n"));
        drop(pending);
        let text = server.ask("GET /readyz HTTP/1.1").await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\nready\n"), "{text}");
        assert!(server.ask("GET /metrics HTTP/1.1").await.contains("\nhnp_ready 1\n"));
    }

    #[tokio::test]
    async fn metrics_and_health_answer_and_everything_else_is_refused_clearly() {
        let server = Server::start().await;
        let metrics = server.ask("GET /metrics HTTP/1.1").await;
        assert!(metrics.contains("content-type: application/openmetrics-text"), "{metrics}");
        assert!(metrics.contains("\nhnp_connections_open 0\n") && metrics.ends_with("# EOF\n"), "{metrics}");
        assert!(metrics.contains("\nprocess_resident_memory_bytes "), "{metrics}");
        assert!(server.ask("GET /healthz HTTP/1.1").await.ends_with("\r\n\r\nok\n"));
        let head = server.ask("HEAD /healthz HTTP/1.1").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
        let missing = server.ask("GET / HTTP/1.1").await;
        assert!(missing.starts_with("HTTP/1.1 404 ") && missing.contains("/readyz"), "{missing}");
        let refused = server.ask("POST /metrics HTTP/1.1\r\nContent-Length: 0").await;
        assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("allow: GET, HEAD"), "{refused}");
    }

    #[tokio::test]
    async fn too_many_connections_wait_and_cancelling_ends_it_all() {
        let mut server = Server::start().await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(server.addr).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
            idle.push(stream);
        }
        let mut waiting = Box::pin(server.ask("GET /healthz HTTP/1.1"));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
        assert!(early.is_err(), "more than {CONNECTIONS} are served at a time");
        drop(idle.pop());
        assert!(waiting.as_mut().await.ends_with("ok\n"));
        drop(waiting);
        server.cancel.cancel();
        server.task.join_next().await.unwrap().unwrap();
        let mut rest = Vec::new();
        let closed = idle[0].read_to_end(&mut rest);
        let _ = tokio::time::timeout(Duration::from_secs(10), closed)
            .await
            .expect("open connections are dropped");
    }
}
