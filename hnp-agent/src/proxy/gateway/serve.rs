//! A client's connection to the gateway: who is it, what does it begin with, and request by request where to.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hnp_common::Reason;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::callers::outside;
use super::connect;
use super::wanted::{Verdict, Wanted, judge_origin_form};
use super::{Asked, NOWHERE, dialled};
use crate::config::gateway::Gateway;
use crate::config::plan::Plan;
use crate::policy::Key;
use crate::proxy::answer::{self, Answer, LAST_WORDS};
use crate::proxy::authority::Choice;
use crate::proxy::buffer::Buffer;
use crate::proxy::client_io::ClientIo;
use crate::proxy::connection::{self, Client};
use crate::proxy::flow::Flow;
use crate::proxy::http1::forward::{self, Next};
use crate::proxy::http1::head::HeadError;
use crate::proxy::http1::serve::{self as http1, Incoming, Refusal};
use crate::proxy::http2::{self, Patience};
use crate::proxy::record::Recording;
use crate::proxy::tls::{self, Ending};
use crate::proxy::turned_away;
use crate::proxy::worker::{Lanes, Worker};
use crate::telemetry::record::HttpRecord;
use crate::upstream::UpstreamConnection;

/// Who made the terms on which TLS ends here; no route has this name to a client.
const GATEWAY: &str = "the gateway";
/// How long somebody who is not served may take to say what he speaks.
const STRANGERS_HEAD: Duration = Duration::from_secs(1);

/// What a connection, or the next request on it, begins with. The one place where more than HTTP/1.1 in the
/// clear would be served.
enum Opening {
    /// CONNECT.
    Connect,
    /// A request in origin-form or absolute-form.
    Request,
    /// A TLS handshake.
    Tls,
    /// The preface of HTTP/2 (RFC 9113 section 3.4).
    Http2,
}

impl Opening {
    /// By the head; `None`: TLS began in its place.
    fn of(head: Option<&[u8]>) -> Self {
        match head {
            None => Self::Tls,
            Some(head) if head.starts_with(b"PRI * HTTP/2.0\r\n") => Self::Http2,
            Some(head) if head.starts_with(b"CONNECT ") => Self::Connect,
            Some(_) => Self::Request,
        }
    }
}

/// Serves one accepted connection to its end. It holds the permit for as long as it is served.
pub(in crate::proxy) async fn serve(
    lanes: &Lanes,
    stream: TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
) {
    let mut open = lanes.around.counters.connection_opened();
    let base = connection::base_record(lanes.flow_id(), peer);
    open.known(&base);
    // Nothing was captured: no cgroup, and what holds is the strictest of each route.
    let flow = Flow {
        client: peer,
        vip: NOWHERE.ip(),
        orig_dst: NOWHERE,
        cgroup_id: 0,
        ancestor_ids: [0; 2],
        direct: true,
        strict: true,
    };
    let routes = Vec::new();
    let (stream, admitted, bound, asked) = (ClientIo::Tcp(stream), None, None, None);
    let (destination, standing) = (NOWHERE, lanes.police.standing());
    let client = Box::new(Client {
        stream,
        flow,
        destination,
        routes,
        base,
        admitted,
        standing,
        bound,
        seat: None,
        counted: false,
        last: false,
        asked,
    });
    Box::pin(admit(lanes, client, permit)).await;
    drop(open);
}

/// Looks who it is before a byte is read, so that strangers hold no place among those who are served.
async fn admit(lanes: &Lanes, mut client: Box<Client>, permit: OwnedSemaphorePermit) {
    let worker = lanes.newest();
    let Some(gateway) = &worker.plan.gateway else { return };
    let addr = client.flow.client.ip();
    let callers = &lanes.around.callers;
    let found = callers.look_up(&worker.plan, gateway, addr);
    if let Ok(Some(workload)) = found {
        client.base.workload = workload;
        return count_in(lanes, &worker, client, None, permit).await;
    }
    let Some(place) = lanes.strangers.take() else {
        client.stream.reset_on_close();
        let detail = format!("{addr} is not known, and there are too many like it");
        return Recording::begin(&worker, client.base).finish(Reason::CallerRefused, Some(detail));
    };
    let mut begun = None;
    if gateway.certifies() {
        // Whoever begins TLS may show who he is; from others nothing is lost by looking.
        let mut bytes = worker.stock.buffer();
        let head = timeout(STRANGERS_HEAD, http1::read_head(&worker, &mut client, &mut bytes)).await;
        if let Ok(Ok(None)) = head {
            let Some(certified) = end_tls(&worker, client, &bytes).await else { return };
            drop(place);
            return count_in(lanes, &worker, certified, None, permit).await;
        }
        begun = Some(bytes);
    }
    let known = match found {
        Ok(_) => callers.wait_for(gateway, addr).await,
        Err(outside) => Err(outside),
    };
    match known {
        Ok(workload) => {
            drop(place);
            client.base.workload = workload;
            count_in(lanes, &worker, client, begun, permit).await;
        }
        Err(detail) => {
            // What he speaks, so that he can be told in it.
            let mut bytes = begun.unwrap_or_else(|| worker.stock.buffer());
            let head = timeout(STRANGERS_HEAD, http1::read_head(&worker, &mut client, &mut bytes)).await;
            if let Ok(Ok(head_len)) = head {
                let opening = Opening::of(head_len.map(|len| &bytes.filled()[..len]));
                drop(bytes);
                turn_away(&worker, &mut client, &opening, Reason::CallerRefused, detail).await;
            } else {
                client.stream.reset_on_close();
                Recording::begin(&worker, client.base).finish(Reason::CallerRefused, Some(detail));
            }
        }
    }
}

/// Serves a client who was let in, among those of his workload.
async fn count_in(
    lanes: &Lanes,
    worker: &Rc<Worker>,
    client: Box<Client>,
    begun: Option<Buffer>,
    permit: OwnedSemaphorePermit,
) {
    let key = Key::at_gateway(&client.base.workload, client.flow.client.ip().to_canonical());
    let admitted = turned_away::admit(lanes, worker, client, key, permit).await;
    let Some((client, _permit)) = admitted else { return };
    requests(lanes, client, begun).await;
}

/// Ends a client's TLS on the gateway's own port.
async fn end_tls(worker: &Worker, client: Box<Client>, hello: &Buffer) -> Option<Box<Client>> {
    let gateway = worker.plan.gateway.as_ref()?;
    let mut recording = Recording::begin(worker, client.base.clone());
    recording.record.mode = "end-to-end";
    let terms = match worker.generation.gateway_terms(gateway.tls.as_ref()?) {
        Ok(terms) => terms,
        Err(error) => {
            tls::refuse(client, recording, error.reason(), error.to_string()).await;
            return None;
        }
    };
    let ending = Ending { terms, name: GATEWAY.into(), deadline: gateway.timeouts.head };
    tls::handshake(worker, client, hello, recording, ending).await
}

/// Whether a client that was admitted is served still.
fn still_served(worker: &Worker, gateway: &Gateway, client: &Client) -> Result<(), (Reason, String)> {
    let addr = client.flow.client.ip();
    if gateway.serves(addr, worker.plan.knows_callers()) && client.certificate().is_none() {
        return Ok(());
    }
    let (Some(admitted), Some(certificate)) = (&client.admitted, client.certificate()) else {
        return Err((Reason::CallerRefused, outside(addr)));
    };
    if certificate.has_expired(crate::clock::now()) {
        return Err((Reason::PodCertificateExpired, format!("the certificate of {}", certificate.subject)));
    }
    let terms = gateway.tls.as_ref().and_then(|tls| worker.generation.gateway_terms(tls).ok());
    if terms.is_some_and(|terms| terms.admits_as(&admitted.terms)) {
        return Ok(());
    }
    let detail = "this connection's TLS was made on other terms than those of the gateway now".to_owned();
    Err((Reason::CallerRefused, detail))
}

async fn requests(lanes: &Lanes, mut client: Box<Client>, mut buffer: Option<Buffer>) {
    let mut worker = lanes.newest();
    let mut kept: Option<(Wanted, UpstreamConnection)> = None;
    loop {
        // Its sockets outlive the section only within a reload that is not taken.
        let Some(timeouts) = worker.plan.gateway.as_ref().map(|gateway| gateway.timeouts) else { return };
        // Whatever is empty is dropped here, and not held while the connection waits.
        let begun = buffer.take().filter(|bytes: &Buffer| !bytes.is_empty());
        let mut bytes = match begun {
            Some(bytes) => bytes,
            None => match http1::wait(&worker, &mut client, timeouts.idle).await {
                Ok(bytes) => bytes,
                Err(reason) => return worker.stats.connection_ended(None, reason),
            },
        };
        let head_len = match timeout(timeouts.head, http1::read_head(&worker, &mut client, &mut bytes)).await
        {
            Ok(Ok(head_len)) => head_len,
            Ok(Err(refusal)) => return http1::refuse(&worker, &mut client, refusal).await,
            Err(_) => {
                let detail = format!("the head was not complete within {:?}", timeouts.head);
                let refusal = Refusal::Answer(Reason::HeadTimeout, detail);
                return http1::refuse(&worker, &mut client, refusal).await;
            }
        };
        worker = lanes.newest();
        let Some(gateway) = &worker.plan.gateway else { return };
        let opening = Opening::of(head_len.map(|len| &bytes.filled()[..len]));
        // Since he was admitted.
        if let Err((reason, detail)) = still_served(&worker, gateway, &client) {
            return turn_away(&worker, &mut client, &opening, reason, detail).await;
        }
        if matches!(opening, Opening::Tls) && gateway.tls.is_some() {
            let Some(ended) = Box::pin(end_tls(&worker, client, &bytes)).await else { return };
            client = ended;
            continue;
        }
        let head_len = match (&opening, head_len) {
            (Opening::Connect | Opening::Request, Some(head_len)) => head_len,
            (Opening::Http2, Some(_)) => {
                let patience = Patience { head: timeouts.head, idle: timeouts.idle };
                let one = |one| stream(lanes, one);
                return Box::pin(http2::serve(lanes, &worker, client, bytes, patience, one)).await;
            }
            (Opening::Tls | Opening::Http2, _) | (_, None) => {
                let detail = Reason::GatewayProtocol.fix().to_owned();
                return turn_away(&worker, &mut client, &opening, Reason::GatewayProtocol, detail).await;
            }
        };
        if let Opening::Connect = opening {
            return Box::pin(connect::serve(lanes, worker, client, bytes, head_len)).await;
        }
        let next = match request(&worker, gateway, &mut client, &mut bytes, head_len, &mut kept).await {
            Some(next) => next,
            None => return,
        };
        let route = client.routes.first().copied();
        match next {
            Next::Again => buffer = Some(bytes),
            Next::Close(reason) => {
                worker.stats.connection_ended(route, reason);
                return answer::linger(&mut client.stream).await;
            }
            Next::End(reason) => return worker.stats.connection_ended(route, reason),
        }
        // Places in this worker's Plan; the next request may meet another.
        client.routes.clear();
        (client.asked, client.base.destination) = (None, None);
    }
}

/// One request in origin-form or absolute-form: judged, and forwarded. `None`: it was refused, and the connection
/// has ended.
async fn request(
    worker: &Worker,
    gateway: &Gateway,
    client: &mut Client,
    bytes: &mut Buffer,
    head_len: usize,
    kept: &mut Option<(Wanted, UpstreamConnection)>,
) -> Option<Next> {
    let incoming = match http1::parse(bytes, head_len) {
        Ok(incoming) => incoming,
        Err((Some(HeadError::Target), _)) if wants_https(&bytes.filled()[..head_len]) => {
            let detail = "https:// in the clear; clients send CONNECT for it".to_owned();
            let nothing = HttpRecord { method: String::new(), path: String::new(), status: 0 };
            refuse(worker, client, nothing, Reason::ConnectRequired, detail, false).await;
            return None;
        }
        Err((error, detail)) => {
            let refusal = Refusal::Answer(http1::reason_of(error), detail);
            http1::refuse(worker, client, refusal).await;
            return None;
        }
    };
    let head = &bytes.filled()[..head_len];
    let (form, wanted, verdict) = judge(&worker.plan, gateway, &incoming, head);
    client.base.destination = Some(dialled(form, wanted.as_ref()));
    let choice = match verdict {
        Verdict::Go(choice) => choice,
        Verdict::Refuse(reason, detail) => {
            let (record, is_head) = (http_record(&incoming, head), incoming.request.is_head);
            refuse(worker, client, record, reason, detail, is_head).await;
            return None;
        }
    };
    let (Choice::Serve(route) | Choice::Passthrough(route) | Choice::Refuse(route)) = choice;
    client.routes = vec![route];
    client.destination = wanted.as_ref().map_or(NOWHERE, Wanted::place);
    // A connection to one name is none to another.
    let mut same = kept.take().filter(|(name, _)| Some(name) == wanted.as_ref()).map(|(_, kept)| kept);
    client.asked = Some(Box::new(Asked::Request(choice, wanted.clone())));
    // Boxed: a connection that waits must not hold the room that a request takes.
    let next = Box::pin(forward::forward(worker, client, bytes, incoming, &mut same)).await;
    *kept = wanted.zip(same);
    Some(next)
}

/// One request of a client that speaks HTTP/2.
async fn stream(lanes: &Lanes, mut client: Box<Client>) {
    let worker = lanes.newest();
    let Some(gateway) = &worker.plan.gateway else { return client.stream.reset_on_close() };
    let mut bytes = worker.stock.buffer();
    let head_len =
        match timeout(gateway.timeouts.head, http1::read_head(&worker, &mut client, &mut bytes)).await {
            Ok(Ok(Some(head_len))) => head_len,
            Ok(Err(refusal)) => return http1::refuse(&worker, &mut client, refusal).await,
            Ok(Ok(None)) | Err(_) => return client.stream.reset_on_close(),
        };
    let opening = Opening::of(Some(&bytes.filled()[..head_len]));
    if let Err((reason, detail)) = still_served(&worker, gateway, &client) {
        return turn_away(&worker, &mut client, &opening, reason, detail).await;
    }
    if let Opening::Connect = opening {
        return Box::pin(connect::serve(lanes, worker, client, bytes, head_len)).await;
    }
    let next = request(&worker, gateway, &mut client, &mut bytes, head_len, &mut None).await;
    if let Some(Next::Again | Next::Close(_)) = next {
        // A client that is gone takes no answer; the record has been written.
        let _ = client.stream.shutdown().await;
    }
}

/// What a request asks for, in which form, and what becomes of it.
fn judge(
    plan: &Plan,
    gateway: &Gateway,
    incoming: &Incoming,
    head: &[u8],
) -> (&'static str, Option<Wanted>, Verdict) {
    let request = &incoming.request;
    let authority = request.authority(head);
    let wanted = authority.and_then(|authority| Wanted::parse(authority, Some(80)));
    if !request.is_absolute() {
        let verdict = judge_origin_form(plan, gateway, wanted.as_ref());
        return ("origin", wanted, verdict);
    }
    let verdict = match &wanted {
        Some(wanted) => wanted.judge_request(plan),
        None => Verdict::Refuse(Reason::BadRequest, HeadError::Target.to_string()),
    };
    ("absolute", wanted, verdict)
}

fn wants_https(head: &[u8]) -> bool {
    const SCHEME: &[u8] = b"https://";
    let target = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    target.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
}

fn http_record(incoming: &Incoming, head: &[u8]) -> HttpRecord {
    HttpRecord {
        method: String::from_utf8_lossy(&head[incoming.request.method.clone()]).into_owned(),
        path: incoming.request.path_for_log(head),
        status: 0,
    }
}

/// Turns a connection away in the words of what it speaks.
async fn turn_away(
    worker: &Rc<Worker>,
    client: &mut Client,
    opening: &Opening,
    reason: Reason,
    detail: String,
) {
    let method = match opening {
        Opening::Connect => "CONNECT",
        Opening::Request | Opening::Http2 => "",
        Opening::Tls => {
            let recording = Recording::begin(worker, client.base.clone());
            // If the alert cannot be written the client is gone, and so is who would read it.
            let _ = timeout(LAST_WORDS, client.stream.write_all(&answer::tls_alert(reason))).await;
            recording.finish(reason, Some(detail));
            return answer::linger(&mut client.stream).await;
        }
    };
    let record = HttpRecord { method: method.into(), path: String::new(), status: 0 };
    refuse(worker, client, record, reason, detail, false).await;
}

/// Our own answer to a request that goes nowhere, and the end of the connection.
pub(super) async fn refuse(
    worker: &Worker,
    client: &mut Client,
    http: HttpRecord,
    reason: Reason,
    detail: String,
    is_head: bool,
) {
    let recording = Recording::begin(worker, client.base.clone());
    worker.stats.connection_ended(None, reason);
    end(client, recording, http, reason, detail, is_head).await;
}

/// The same with a record that was begun.
pub(super) async fn end(
    client: &mut Client,
    mut recording: Recording<'_>,
    http: HttpRecord,
    reason: Reason,
    detail: String,
    is_head: bool,
) {
    let answer = Answer {
        reason: reason.code(),
        message: &detail,
        route: recording.record.route.as_deref(),
        flow: client.base.flow_id,
    };
    // A client that is gone takes no answer; its record says what happened all the same.
    let written = answer::write(&mut client.stream, reason, &answer, is_head).await.unwrap_or(0);
    recording.record.bytes_down = written as u64;
    let status = if written > 0 { reason.status() } else { 0 };
    recording.record.http = Some(HttpRecord { status, ..http });
    recording.finish(reason, Some(detail));
    answer::linger(&mut client.stream).await;
}
