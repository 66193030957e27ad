//! Requests as the agent would send them: over its own pool's way of connecting, with the route's identity.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use hnp_common::Reason;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::identity::Own;
use super::{Look, ms};
use crate::config::humane;
use crate::config::plan::{Authority, Target};
use crate::finding::{Finding, State};
use crate::proxy::http1::exchange::{PAGE, is_about_certificate, unanswered};
use crate::proxy::http1::head::find_end;
use crate::proxy::http1::response::{Asked, Response};
use crate::skew;
use crate::upstream::Need;
use crate::workload::Caller;

/// How long an opaque upstream is listened to: it may have nothing to say before it is spoken to, and a refusal comes at once.
pub(super) const LISTEN: Duration = Duration::from_secs(2);
/// Interim answers before the final one; the relay takes no more.
const MAX_INTERIM: usize = 16;

/// An answer, as far as it was looked at.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// It says that a client certificate was not accepted, or is missing.
    pub(super) about_certificate: bool,
    /// Its Date, in the server's clock.
    pub(super) date: Option<SystemTime>,
    /// When it came, in ours.
    pub(super) came: SystemTime,
    /// From the request's first byte to the answer's head.
    pub(super) took: Duration,
}

/// Why there is none.
pub(super) type Failure = (Reason, String);

/// One request, and what came of it.
#[derive(Debug)]
pub(super) struct Asking {
    /// The path without its query, which may hold a secret.
    pub(super) shown: String,
    /// `None`: the upstream speaks no HTTP, and took the connection.
    pub(super) outcome: Result<Option<Answer>, Failure>,
}

impl Look<'_> {
    /// Asks for each path, and where no HTTP is spoken, for a connection.
    pub(super) async fn requests(&self) -> Vec<Asking> {
        if self.identity.as_ref().is_none_or(|own| own.loaded.is_err() || own.withheld().is_some()) {
            return Vec::new();
        }
        if !self.speaks_http() {
            return vec![Asking { shown: "a connection".into(), outcome: self.connection().await }];
        }
        let mut all = Vec::new();
        for path in &self.wanted.paths {
            let outcome = self.request(path).await.map(Some);
            all.push(Asking { shown: self.shown(path), outcome });
        }
        all
    }

    async fn request(&self, path: &str) -> Result<Answer, Failure> {
        let connected = self.upstreams.connect(self.index, Caller::Agent, Need::Any, &|| false).await;
        let mut connection = connected.map_err(|error| (error.reason, error.detail))?;
        self.ask(&mut connection.io, path).await
    }

    async fn connection(&self) -> Result<Option<Answer>, Failure> {
        let connected = self.upstreams.connect_fresh(self.index, Caller::Agent, &|| false).await;
        let mut connection = connected.map_err(|error| (error.reason, error.detail))?;
        match listen(&mut connection.io).await {
            Ok(()) => Ok(None),
            Err(error) => Err((unanswered(&error), error.to_string())),
        }
    }

    /// One request on a connection that carries nothing else.
    pub(super) async fn ask(
        &self,
        io: &mut (impl AsyncRead + AsyncWrite + Unpin),
        path: &str,
    ) -> Result<Answer, Failure> {
        let deadline = self.route().timeouts.response;
        let late = || {
            let what = format!("no answer within {}", humane(deadline));
            (Reason::UpstreamResponseTimeout, what)
        };
        let asked = Asked { head: self.wanted.head, upgrade: false, http10: false };
        let request = self.head_of_request(path);
        let exchange = exchange(io, &request, asked, self.plan.limits.head_bytes);
        timeout(deadline, exchange).await.unwrap_or_else(|_| Err(late()))
    }

    fn head_of_request(&self, path: &str) -> String {
        let route = self.route();
        let method = if self.wanted.head { "HEAD" } else { "GET" };
        let original = route.destinations.iter().find_map(|destination| match &destination.target {
            Target::Name(name) if destination.port == 80 => Some(name.to_string()),
            Target::Name(name) => Some(format!("{name}:{}", destination.port)),
            Target::Net(_) => None,
        });
        let host = match route.reverse_proxy().map(|mode| mode.authority) {
            Some(Authority::Original) => original.unwrap_or_else(|| route.upstream.authority.clone()),
            Some(Authority::Upstream) | None => route.upstream.authority.clone(),
        };
        let (base, version) = (&route.upstream.base_path, env!("CARGO_PKG_VERSION"));
        format!(
            "{method} {base}{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: hnp-agent-doctor/{version}\r\nAccept: */*\r\n\r\n"
        )
    }

    fn shown(&self, path: &str) -> String {
        let base = &self.route().upstream.base_path;
        match path.split_once('?') {
            Some((path, _)) => format!("{base}{path}?..."),
            None => format!("{base}{path}"),
        }
    }

    pub(super) fn requested(&self, answers: &[Asking], findings: &mut Vec<Finding>) {
        if answers.is_empty() {
            let withheld = self.identity.as_ref().and_then(Own::withheld);
            let why = withheld.unwrap_or(
                "the identity could not be loaded: the agent answers 503 itself, and sends nothing",
            );
            findings.push(super::skipped("request", "requests", why));
        }
        for Asking { shown, outcome } in answers {
            let method = if self.wanted.head { "HEAD" } else { "GET" };
            let what = if self.speaks_http() { format!("{method} {shown}") } else { shown.clone() };
            findings.push(match outcome {
                Ok(None) => Finding::new("request", what, State::Good, "taken with our certificate"),
                Ok(Some(answer)) => answered(what, answer),
                Err((reason, detail)) => {
                    Finding::bad("request", what, *reason, format!("{detail}. {}", reason.fix()))
                        .next(format!("hnp-agent explain {}", reason.code()))
                }
            });
        }
    }
}

fn answered(what: String, answer: &Answer) -> Finding {
    let Answer { status, took, .. } = answer;
    let facts = json!({"status": status, "ms": ms(*took)});
    let came = format!("{status} in {} ms", ms(*took));
    let finding = match status {
        _ if answer.about_certificate => {
            let reason = Reason::ClientCertificateRefused;
            Finding::bad("request", what, reason, format!("{came}: the upstream refuses our certificate"))
                .next(format!("hnp-agent explain {}", reason.code()))
        }
        ..400 => Finding::new("request", what, State::Good, came),
        404 => Finding::new(
            "request",
            what,
            State::Good,
            format!("{came}: carried; there is nothing at that path"),
        )
        .next("name a path that the upstream has with --path"),
        400..500 => {
            let detail =
                format!("{came}: carried; the refusal is the upstream's own, of the request or of who asks");
            Finding::new("request", what, State::Degraded, detail).next("look into the upstream's log")
        }
        500.. => {
            let detail = format!("{came}: carried; the failure is the upstream's own");
            Finding::new("request", what, State::Bad, detail).next("look into the upstream's log")
        }
    };
    finding.seen(Vec::new(), facts)
}

/// Waits for a refusal. Silence is none.
pub(super) async fn listen(io: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    match timeout(LISTEN, io.read(&mut [0; 256])).await {
        Ok(Ok(0)) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed after the handshake")),
        Ok(Err(error)) => Err(error),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

async fn exchange(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &str,
    asked: Asked,
    limit: usize,
) -> Result<Answer, Failure> {
    let failed = |error: io::Error| (unanswered(&error), error.to_string());
    let bad = |what: &dyn std::fmt::Display| (Reason::UpstreamBadResponse, what.to_string());
    let began = Instant::now();
    let written = match io.write_all(request.as_bytes()).await {
        Ok(()) => io.flush().await,
        error => error,
    };
    let mut bytes = Vec::new();
    let (mut scanned, mut interim) = (0, 0);
    loop {
        if let Some(len) = find_end(&bytes, &mut scanned, limit).map_err(|error| bad(&error))? {
            let response = Response::parse(&bytes[..len], asked).map_err(|error| bad(&error))?;
            if response.is_interim() && interim < MAX_INTERIM {
                interim += 1;
                bytes.drain(..len);
                scanned = 0;
                continue;
            }
            let (came, took) = (crate::clock::now(), began.elapsed());
            let date = skew::date(&bytes[..len]);
            bytes.drain(..len);
            let status = response.status;
            // Whatever ends the page early: what has come of it is looked at.
            while status == 400 && !is_about_certificate(status, &bytes) && bytes.len() < PAGE {
                if !matches!(timeout(LISTEN, io.read_buf(&mut bytes)).await, Ok(Ok(1..))) {
                    break;
                }
            }
            let about_certificate = is_about_certificate(status, &bytes);
            return Ok(Answer { status, about_certificate, date, came, took });
        }
        match io.read_buf(&mut bytes).await {
            Ok(0) if bytes.is_empty() => {
                // Whoever closes before he has read everything makes writing fail, too.
                let what = written.err().map_or("closed before its answer".into(), |error| error.to_string());
                return Err((Reason::UpstreamClosed, what));
            }
            Ok(0) => return Err((Reason::UpstreamTruncated, "closed in the middle of a head".into())),
            Ok(_) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}
