//! One request on its way: which route, which connection, and what to say when it fails.

use std::time::Duration;

use hnp_common::Reason;

use super::exchange::{self, End, Ended, Failure, Terms};
use super::response::Asked;
use super::serve::{Incoming, rest_of};
use crate::config::plan::{Authority, Mode, Route, RouteIndex};
use crate::proxy::answer::{self, Answer};
use crate::proxy::authority::Choice;
use crate::proxy::buffer::Buffer;
use crate::proxy::connection::{Bound, Client};
use crate::proxy::gateway;
use crate::proxy::record::Recording;
use crate::proxy::relay::relay;
use crate::proxy::worker::Worker;
use crate::telemetry::migration::Beginning;
use crate::telemetry::record::HttpRecord;
use crate::upstream::{DialError, Need, Unprocessed, UpstreamConnection, can_carry};

/// What becomes of the client's connection.
pub enum Next {
    /// It is exactly between two requests.
    Again,
    /// It ends, for this reason; the client may still be reading or sending.
    Close(Reason),
    /// It has ended, for this reason.
    End(Reason),
}

/// How often a request is sent that the upstream says it has not looked at. It says so when it closes a
/// connection or has too much to do: another time or two is worth it, more would be the load it complains of.
const UNPROCESSED_ATTEMPTS: u8 = 3;

/// Where a request goes.
#[derive(Clone, Copy)]
enum Way {
    /// To the route's upstream, over mutual TLS.
    Upstream,
    /// To where the client was going, in cleartext, untouched.
    Direct,
}

/// Forwards one request and writes its record. `kept` is this client's cleartext connection from an
/// earlier passthrough.
pub async fn forward(
    worker: &Worker,
    client: &mut Client,
    bytes: &mut Buffer,
    incoming: Incoming,
    kept: &mut Option<UpstreamConnection>,
) -> Next {
    let mut recording = Recording::begin(worker, client.base.clone());
    let head = &bytes.filled()[..incoming.head_len];
    recording.record.bytes_up = incoming.head_len as u64;
    recording.record.http = Some(HttpRecord {
        method: String::from_utf8_lossy(&head[incoming.request.method.clone()]).into_owned(),
        path: incoming.request.path_for_log(head),
        status: 0,
    });
    let host = incoming.request.host.as_deref();
    let choice = client.choose(&worker.plan, host);
    let (Choice::Serve(chosen) | Choice::Passthrough(chosen) | Choice::Refuse(chosen)) = choice;
    client.begins_with(worker, chosen, Beginning::Http1);
    if let Choice::Passthrough(_) | Choice::Refuse(_) = choice
        && client.admitted.is_none()
        && !client.may_pass(&worker.plan, host.unwrap_or_default())
    {
        let refused = matches!(choice, Choice::Refuse(_));
        client.sends_what_strict_refuses(worker, chosen, Reason::HostRefused, refused);
    }
    let (route, way) = match choice {
        Choice::Serve(route) => (route, Way::Upstream),
        Choice::Passthrough(route) if client.admitted.is_none() => (route, Way::Direct),
        Choice::Passthrough(route) | Choice::Refuse(route) => {
            recording.record.route = Some(worker.plan.routes[route].name.clone());
            let host = host.unwrap_or_default();
            let detail = match choice {
                // What came in TLS goes nowhere in the clear.
                Choice::Passthrough(_) => {
                    format!("inside of TLS this address serves other names than {host:?}")
                }
                _ => format!("this address serves other names than {host:?}"),
            };
            return Box::pin(answer_and_end(client, recording, &incoming, Reason::HostRefused, detail)).await;
        }
    };
    let plan = &worker.plan.routes[route];
    recording.record.route = Some(plan.name.clone());
    let admitted = match way {
        Way::Upstream => match admit(worker, client, route) {
            // Boxed: it seldom waits.
            Ok(()) => Box::pin(client.permit(worker, route)).await,
            refused => refused,
        },
        Way::Direct => {
            client.standing.leave();
            Ok(())
        }
    };
    if let Err((reason, detail)) = admitted {
        return Box::pin(answer_and_end(client, recording, &incoming, reason, detail)).await;
    }
    recording.record.mode = match way {
        Way::Upstream => plan.mode.as_str(),
        Way::Direct => "passthrough",
    };
    recording.show();

    // What goes on to where a captured client was going is none of ours; a client of the gateway spoke to us.
    let verbatim = matches!(way, Way::Direct) && client.asked.is_none();
    let forwarded = client.certificate().map(|certificate| certificate.forwarded.as_str());
    let wanted = wanted_of(&incoming, bytes.filled());
    let message = take_message(bytes, &incoming, plan, (way, verbatim), forwarded);
    let mut need = match way {
        Way::Upstream if is_carried_by_http2(&message) => wanted,
        Way::Upstream | Way::Direct => Need::Http1,
    };
    let mut bound = match way {
        Way::Upstream => take_bound(worker, client, route),
        Way::Direct => None,
    };
    let binds = bound.is_some() || incoming.request.binds_connection;
    recording.record.bytes_up += incoming.whole_body.unwrap_or(0) as u64;
    let mut terms = terms(worker, plan, &incoming, verbatim, client);
    terms.dated = matches!(way, Way::Upstream) && worker.upstreams.wants_date(route);
    let mut answer = worker.stock.buffer();
    let (mut failed_before, mut attempts) = (None, 1_u8);
    loop {
        let connected = match way {
            Way::Upstream => match bound.take() {
                Some(connection) => Ok(Ok(connection)),
                None => terms.cut.unless(upstream(worker, client, route, need, failed_before)).await,
            },
            Way::Direct => Ok(direct(worker, client, plan, kept).await),
        };
        let mut connection = match connected {
            Ok(Ok(connection)) => connection,
            Err((reason, detail)) => {
                return Box::pin(answer_and_end(client, recording, &incoming, reason, detail)).await;
            }
            Ok(Err(error)) => {
                match way {
                    Way::Upstream => recording.failed_upstream(plan, &error),
                    Way::Direct => recording.failed_direct(client.dialled(), &error),
                }
                let told = answer_and_end(client, recording, &incoming, error.reason, error.detail);
                return Box::pin(told).await;
            }
        };
        recording.upstream(&connection);
        let ended =
            exchange::run(&mut client.stream, &mut connection.io, &message, bytes, &mut answer, &terms).await;
        match ended.end {
            End::Failed(ref failure)
                if let Some(again) = again(&incoming, &connection, failure, need, attempts) =>
            {
                (need, attempts) = (again, attempts + 1);
                failed_before = Some(connection.shared());
                worker.stats.retried(route);
                answer = worker.stock.buffer();
            }
            _ => {
                note(&mut recording, &ended);
                if terms.dated && ended.status != 0 {
                    worker.upstreams.dated(route, ended.date);
                }
                return match ended.end {
                    End::Complete { upstream_reusable, client_reusable, certificate_refused } => {
                        if upstream_reusable {
                            match way {
                                Way::Upstream if binds => {
                                    let route = plan.name.clone();
                                    client.bound = Some(Box::new(Bound { route, connection }));
                                }
                                Way::Upstream => worker.upstreams.give_back(route, connection),
                                Way::Direct => *kept = Some(connection),
                            }
                        }
                        let reason = match way {
                            Way::Upstream if certificate_refused => Reason::ClientCertificateRefused,
                            Way::Upstream => Reason::Ok,
                            Way::Direct => Reason::Passthrough,
                        };
                        let detail = (reason == Reason::ClientCertificateRefused).then(|| {
                            worker.upstreams.with_dates(route, client.caller(), reason, String::new())
                        });
                        recording.finish(reason, detail);
                        if client_reusable { Next::Again } else { Next::Close(Reason::Ok) }
                    }
                    // Boxed: rare, and every connection's future would hold their states.
                    End::Switched => {
                        let idle = plan.timeouts.idle;
                        Box::pin(switched(worker, client, bytes, recording, connection, answer, idle)).await
                    }
                    End::Failed(mut failure) => {
                        if let Way::Upstream = way {
                            failure.detail = worker.upstreams.with_dates(
                                route,
                                client.caller(),
                                failure.reason,
                                failure.detail,
                            );
                        }
                        Box::pin(failed(client, recording, &incoming, failure)).await
                    }
                };
            }
        }
    }
}

/// Whether a client may use a route's upstream as it has come: in cleartext, or by TLS that ended here.
fn admit(worker: &Worker, client: &Client, route: RouteIndex) -> Result<(), (Reason, String)> {
    let plan = &worker.plan.routes[route];
    let mode = match &plan.mode {
        Mode::ReverseProxy(_) => return Ok(()),
        Mode::EndToEnd(mode) => mode,
        Mode::Tunnel(_) => {
            return Err((Reason::TlsExpected, "this route tunnels TLS and carries no plaintext".into()));
        }
    };
    let Some(admitted) = &client.admitted else {
        return Err((Reason::TlsExpected, "this route ends TLS and takes no plaintext".into()));
    };
    // Another name of the address may ask for another certificate, and so may this one since: a certificate or
    // a root was renewed, or the terms were changed.
    let terms = worker.generation.terms(route, mode);
    if admitted.route != plan.name || !terms.is_ok_and(|terms| terms.admits_as(&admitted.terms)) {
        let detail = format!("this connection's TLS was made on other terms than those of {:?}", &*plan.name);
        return Err((Reason::HostRefused, detail));
    }
    match &admitted.tls.certificate {
        Some(certificate) if certificate.has_expired(crate::clock::now()) => {
            Err((Reason::PodCertificateExpired, format!("the certificate of {}", certificate.subject)))
        }
        Some(_) | None => Ok(()),
    }
}

/// The connection that this client has authenticated at the route's upstream, while it can be used.
fn take_bound(worker: &Worker, client: &mut Client, route: RouteIndex) -> Option<UpstreamConnection> {
    let Bound { route: name, mut connection } = *client.bound.take()?;
    let usable = name == worker.plan.routes[route].name
        && worker.upstreams.is_current(route, &connection)
        && connection.is_quiet();
    connection.reused = true;
    usable.then_some(connection)
}

/// Writes into the record what the exchange carried.
fn note(recording: &mut Recording<'_>, ended: &Ended) {
    let record = &mut recording.record;
    record.bytes_up += ended.up;
    record.bytes_down += ended.down;
    if let Some(http) = &mut record.http {
        http.status = ended.status;
    }
    if let Some(upstream) = &mut record.upstream {
        upstream.first_byte = ended.first_byte;
    }
}

/// After a 101: bytes both ways, as they come.
async fn switched(
    worker: &Worker,
    client: &mut Client,
    bytes: &mut Buffer,
    mut recording: Recording<'_>,
    mut connection: UpstreamConnection,
    mut answer: Buffer,
    idle: Duration,
) -> Next {
    let cut = client.cut(worker);
    let relayed = relay(&mut client.stream, &mut connection.io, bytes, &mut answer, idle, &cut).await;
    recording.record.bytes_up += relayed.up;
    recording.record.bytes_down += relayed.down;
    recording.finish(relayed.reason, relayed.detail);
    Next::End(relayed.reason)
}

async fn failed(
    client: &mut Client,
    recording: Recording<'_>,
    incoming: &Incoming,
    failure: Failure,
) -> Next {
    if failure.answer_begun || failure.reason.status() == 0 {
        // Part of an answer is out, or there is none of ours to give: only a reset says that the rest
        // will not come.
        client.stream.reset_on_close();
    } else {
        return answer_and_end(client, recording, incoming, failure.reason, failure.detail).await;
    }
    recording.finish(failure.reason, Some(failure.detail));
    Next::End(failure.reason)
}

/// Takes the head off the buffer, rewritten for its way, and the body with it where all of it is
/// there: one write, and a request that can be sent again.
fn take_message(
    bytes: &mut Buffer,
    incoming: &Incoming,
    plan: &Route,
    (way, verbatim): (Way, bool),
    forwarded: Option<&str>,
) -> Vec<u8> {
    let filled = bytes.filled();
    let head = &filled[..incoming.head_len];
    let body = &filled[incoming.head_len..][..incoming.whole_body.unwrap_or(0)];
    let mut message = Vec::with_capacity(head.len() + body.len() + plan.upstream.base_path.len() + 128);
    match way {
        Way::Upstream => {
            let (request, upstream) = (&incoming.request, &plan.upstream);
            let original = match plan.reverse_proxy().map(|mode| mode.authority) {
                Some(Authority::Original) => request.authority(head),
                Some(Authority::Upstream) | None => None,
            };
            let authority = original.unwrap_or(upstream.authority.as_bytes());
            request.write_for_upstream(head, authority, &upstream.base_path, forwarded, &mut message);
        }
        Way::Direct if verbatim => message.extend_from_slice(head),
        Way::Direct => {
            let own = incoming.request.authority(head).unwrap_or_default();
            incoming.request.write_for_upstream(head, own, "", None, &mut message);
        }
    }
    message.extend_from_slice(body);
    bytes.consume(head.len() + body.len());
    message
}

fn terms(worker: &Worker, plan: &Route, incoming: &Incoming, verbatim: bool, client: &Client) -> Terms {
    let request = &incoming.request;
    Terms {
        framing: rest_of(request.framing, incoming.whole_body),
        asked: Asked {
            head: request.is_head,
            upgrade: if verbatim { request.upgrade_untouched } else { request.upgrade },
            http10: request.http10,
        },
        close: !request.keep_alive || request.http10 || client.last || worker.stop.is_cancelled(),
        verbatim,
        dated: false,
        head_limit: worker.plan.limits.head_bytes,
        response: plan.timeouts.response,
        idle: plan.timeouts.idle,
        cut: client.cut(worker),
    }
}

/// What a request asks of its connection; its head is at the front of `bytes`.
fn wanted_of(incoming: &Incoming, bytes: &[u8]) -> Need {
    let request = &incoming.request;
    match () {
        () if request.binds_connection => Need::Http1,
        () if !request.upgrade => Need::Any,
        () if request.opens_websocket(&bytes[..incoming.head_len]) => Need::WebSocket,
        () => Need::Http1,
    }
}

/// Whether HTTP/2 can carry a message as it is: `Host` is its first field.
fn is_carried_by_http2(message: &[u8]) -> bool {
    let mut lines = message.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let target = lines.next().and_then(|line| line.split(|byte| *byte == b' ').nth(1));
    let authority = lines.next().and_then(|line| line.strip_prefix(b"Host: "));
    can_carry(target.unwrap_or_default(), authority.unwrap_or_default())
}

async fn upstream(
    worker: &Worker,
    client: &Client,
    route: RouteIndex,
    need: Need,
    failed: Option<Option<u64>>,
) -> Result<UpstreamConnection, DialError> {
    let (caller, has_left) = (client.caller(), || client.stream.has_left());
    let connected = match failed {
        // Boxed: rare.
        Some(failed) => {
            Box::pin(worker.upstreams.connect_again(route, caller, need, failed, &has_left)).await
        }
        None => worker.upstreams.connect(route, caller, need, &has_left).await,
    };
    if connected.as_ref().is_ok_and(|connection| connection.reused) {
        worker.stats.pool_hit(route);
    }
    connected
}

async fn direct(
    worker: &Worker,
    client: &Client,
    plan: &Route,
    kept: &mut Option<UpstreamConnection>,
) -> Result<UpstreamConnection, DialError> {
    if let Some(mut connection) = kept.take()
        && connection.is_quiet()
    {
        connection.reused = true;
        return Ok(connection);
    }
    // Boxed: rare, and every connection's future would hold it.
    Box::pin(gateway::connect_out(worker, client, plan.timeouts.connect)).await
}

/// A pooled connection may have been closed while the request was on its way. Where the upstream said
/// nothing, and doing it twice is doing it once, it is sent again, once.
/// What HTTP/2 says was not processed is sent again whatever it is, a few times.
fn again(
    incoming: &Incoming,
    connection: &UpstreamConnection,
    failure: &Failure,
    need: Need,
    attempts: u8,
) -> Option<Need> {
    if incoming.whole_body.is_none() || failure.answer_begun {
        return None;
    }
    match connection.unprocessed() {
        Some(Unprocessed::OverHttp1) => (need != Need::Http1).then_some(Need::Http1),
        Some(Unprocessed::Anew) => (attempts < UNPROCESSED_ATTEMPTS).then_some(need),
        None => {
            let safe = attempts == 1
                && connection.reused
                && incoming.request.idempotent
                && !failure.upstream_spoke
                && matches!(failure.reason, Reason::UpstreamClosed | Reason::UpstreamReset);
            safe.then_some(need)
        }
    }
}

/// Our own answer to a request that has none, and the end of the connection.
async fn answer_and_end(
    client: &mut Client,
    mut recording: Recording<'_>,
    incoming: &Incoming,
    reason: Reason,
    detail: String,
) -> Next {
    let answer = Answer {
        reason: reason.code(),
        message: &detail,
        route: recording.record.route.as_deref(),
        flow: client.base.flow_id,
    };
    // A client that is gone takes no answer; its record says what happened all the same.
    let written =
        answer::write(&mut client.stream, reason, &answer, incoming.request.is_head).await.unwrap_or(0);
    recording.record.bytes_down += written as u64;
    if let Some(http) = &mut recording.record.http {
        http.status = if written > 0 { reason.status() } else { 0 };
    }
    recording.finish(reason, Some(detail));
    Next::Close(reason)
}
