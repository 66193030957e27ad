//! A client that speaks TLS where its first byte may be anything: its TLS ends here, is tunnelled to the
//! upstream, is let through to where it was going, or is refused.
//!
//! Its SNI decides as a Host would. What is carried goes on with every byte as it came, hello included; hnp
//! holds no key to it and lends it no identity. Where it ends here the route's terms hold (`serving`), and what
//! comes out of it is served as if it had come in the clear. What is refused gets an alert, so that the client's error
//! names TLS and not a broken connection.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hnp_common::Reason;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::answer::{self, LAST_WORDS};
use super::authority::Choice;
use super::buffer::Buffer;
use super::client_io::{ClientIo, end_tls};
use super::connection::{Admitted, Client};
use super::gateway;
use super::handshakes;
use super::hello::{Hello, HelloReader};
use super::record::Recording;
use super::relay::relay;
use super::worker::{Lanes, Worker};
use super::{http1, opaque};
use crate::config::plan::{Enforcement, Mode, Plan, Protocol, RouteIndex, Unreadable};
use crate::serving::{Terms, reason};
use crate::telemetry::migration::Beginning;

/// What becomes of a hello.
enum Verdict {
    /// To us.
    End,
    /// To the route's upstream.
    Tunnel,
    /// To where the client was going.
    Pass,
    /// Nowhere.
    Refuse(Reason, String),
}

/// Serves a connection whose first byte, in `bytes`, begins a TLS handshake.
pub(super) async fn serve(lanes: &Lanes, worker: Rc<Worker>, mut client: Box<Client>, mut bytes: Buffer) {
    let first = client.routes[0];
    let mut recording = Recording::begin(&worker, client.base.clone());
    recording.record.route = Some(worker.plan.routes[first].name.clone());
    let deadline = worker.plan.routes[first].timeouts.head;
    let hello = match timeout(deadline, read(&worker, &mut client, &mut bytes)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(detail)) => {
            client.begins_with(&worker, first, Beginning::Tls);
            client.stream.reset_on_close();
            return recording.finish(Reason::ClientGone, Some(detail));
        }
        Err(_) => {
            client.begins_with(&worker, first, Beginning::Tls);
            let detail = format!("the TLS hello was not complete within {deadline:?}");
            return refuse(client, recording, Reason::HeadTimeout, detail).await;
        }
    };
    let (route, verdict) = judge(&worker.plan, &client, &hello);
    client.begins_with(&worker, route, Beginning::Tls);
    if let Some(reason) = refused_by_strict_alone(&worker.plan, &client, &hello, (route, &verdict)) {
        client.sends_what_strict_refuses(&worker, route, reason, matches!(verdict, Verdict::Refuse(..)));
    }
    recording.record.route = Some(worker.plan.routes[route].name.clone());
    let allowed = match verdict {
        Verdict::Tunnel => client.permit(&worker, route).await,
        Verdict::End => match client.permit(&worker, route).await {
            // Before the route's terms are asked for: they may change meanwhile.
            Ok(()) => handshakes::wait(&worker, &mut client, &mut recording.record).await,
            refused => refused,
        },
        Verdict::Pass | Verdict::Refuse(..) => Ok(()),
    };
    let verdict = match allowed {
        Ok(()) => verdict,
        Err((reason, detail)) => Verdict::Refuse(reason, detail),
    };
    match verdict {
        Verdict::Refuse(reason, detail) => refuse(client, recording, reason, detail).await,
        Verdict::Tunnel | Verdict::Pass => carry(&worker, client, bytes, recording, route, verdict).await,
        Verdict::End => match end(&worker, client, &bytes, recording, route).await {
            Some((client, Protocol::Http)) => Box::pin(http1::serve::serve(lanes, worker, client)).await,
            Some((client, Protocol::Opaque)) => opaque::serve(&worker, client, route).await,
            None => {}
        },
    }
}

/// The handshake, on the route's terms. Its record is written here where it comes to nothing; else the requests,
/// or the bytes, have theirs.
async fn end(
    worker: &Worker,
    client: Box<Client>,
    hello: &Buffer,
    mut recording: Recording<'_>,
    route: RouteIndex,
) -> Option<(Box<Client>, Protocol)> {
    let plan = &worker.plan.routes[route];
    let mode = plan.end_to_end()?;
    recording.record.mode = plan.mode.as_str();
    let terms = match worker.generation.terms(route, mode) {
        Ok(terms) => terms,
        Err(error) => {
            refuse(client, recording, error.reason(), error.to_string()).await;
            return None;
        }
    };
    let ending = Ending { terms, name: plan.name.clone(), deadline: plan.timeouts.tls };
    handshake(worker, client, hello, recording, ending).await.map(|client| (client, mode.onward.protocol))
}

/// What a handshake needs.
pub(super) struct Ending {
    pub(super) terms: Arc<Terms>,
    /// Who made the terms.
    pub(super) name: Arc<str>,
    pub(super) deadline: Duration,
}

/// The handshake; see [`end`].
pub(super) async fn handshake(
    worker: &Worker,
    mut client: Box<Client>,
    hello: &Buffer,
    recording: Recording<'_>,
    ending: Ending,
) -> Option<Box<Client>> {
    let Ending { terms, name, deadline } = ending;
    let below = std::mem::replace(&mut client.stream, ClientIo::Lent);
    let steps = end_tls(below, &terms.config, hello.filled());
    let turns = worker.upstreams.rota().run(client.base.workload.pod_uid.as_deref(), steps);
    let ended = timeout(deadline, turns).await;
    let (reason, detail) = match ended {
        Ok(Ok(stream)) => match terms.readmits(stream.get_ref().1) {
            Ok(tls) => {
                let tls = Arc::new(tls);
                client.base.client_tls = Some(Arc::clone(&tls));
                client.admitted = Some(Box::new(Admitted { route: name, terms, tls }));
                client.stream = ClientIo::Tls(Box::new(stream));
                recording.forget();
                return Some(client);
            }
            Err(error) => {
                ClientIo::Tls(Box::new(stream)).reset_on_close();
                reason::of(&error)
            }
        },
        Ok(Err((error, below))) => {
            let (reason, detail) = reason::of_io(&error);
            recording.finish(reason, Some(detail));
            if let Some(mut below) = below {
                // A client of TLS 1.3 may be sending already: a reset would overtake the alert.
                answer::linger(&mut below).await;
            }
            return None;
        }
        Err(_) => (Reason::PodTlsTimeout, format!("no TLS handshake within {deadline:?}")),
    };
    recording.finish(reason, Some(detail));
    None
}

/// Which route a hello belongs to, and what that route does with it.
fn judge(plan: &Plan, client: &Client, hello: &Hello) -> (RouteIndex, Verdict) {
    let enforcement = client.enforcement(plan);
    // A hello without a name names nothing else, so it is taken for the route's own name: a strict one's
    // before all.
    let is_strict = |route: &&RouteIndex| plan.routes[**route].strictest_enforcement() == Enforcement::Strict;
    let strict = match enforcement {
        Enforcement::Strict => client.routes.iter().find(is_strict).copied(),
        Enforcement::Loose | Enforcement::Observe => None,
    };
    let own = strict.unwrap_or(client.routes[0]);
    let (name, encrypted) = match hello {
        Hello::Name { name, encrypted } => (name, *encrypted),
        Hello::NoName => {
            let detail = "the TLS hello names no server (SNI)".to_owned();
            let verdict = match &plan.routes[own].mode {
                Mode::Tunnel(tunnel) if tunnel.nameless == Unreadable::Tunnel => Verdict::Tunnel,
                Mode::ReverseProxy(_) if strict.is_none() => Verdict::Tunnel,
                Mode::EndToEnd(_) => Verdict::End,
                Mode::Tunnel(_) | Mode::ReverseProxy(_) => Verdict::Refuse(Reason::TlsWithoutName, detail),
            };
            return (own, verdict);
        }
        Hello::Unreadable(why) => {
            let reason = if strict.is_some() { Reason::TlsWithoutName } else { Reason::TlsFromClient };
            return (own, Verdict::Refuse(reason, format!("the TLS hello cannot be read: {why}")));
        }
    };
    match client.choose(plan, Some(name)) {
        Choice::Serve(route) => {
            let verdict = match &plan.routes[route].mode {
                Mode::EndToEnd(_) => Verdict::End,
                Mode::Tunnel(tunnel) if encrypted && tunnel.encrypted_hello == Unreadable::Refuse => {
                    let detail = format!("behind {name:?} the TLS hello may ask for another name");
                    Verdict::Refuse(Reason::EncryptedHello, detail)
                }
                Mode::ReverseProxy(_) if enforcement == Enforcement::Strict => {
                    Verdict::Refuse(Reason::TlsFromClient, Reason::TlsFromClient.fix().into())
                }
                // A loose route disturbs nobody who keeps his own TLS.
                Mode::Tunnel(_) | Mode::ReverseProxy(_) => Verdict::Tunnel,
            };
            (route, verdict)
        }
        Choice::Refuse(route) => {
            let detail = format!("this address serves other names than {name:?}");
            (route, Verdict::Refuse(Reason::SniRefused, detail))
        }
        Choice::Passthrough(route) => (route, Verdict::Pass),
    }
}

/// Why a strict route refuses a hello that a loose one carries, as this one does or does not; `None`: both do the same.
fn refused_by_strict_alone(
    plan: &Plan,
    client: &Client,
    hello: &Hello,
    (route, verdict): (RouteIndex, &Verdict),
) -> Option<Reason> {
    let lends = matches!(plan.routes[route].mode, Mode::ReverseProxy(_));
    match (verdict, hello) {
        // A tunnel carries TLS, and one without a name as its own keys say.
        (Verdict::Tunnel, _) | (Verdict::Refuse(..), Hello::NoName) if !lends => None,
        (Verdict::Refuse(reason, _), Hello::Name { .. } | Hello::NoName) => Some(*reason),
        (Verdict::Tunnel, Hello::NoName) => Some(Reason::TlsWithoutName),
        (Verdict::Tunnel, Hello::Name { .. }) => Some(Reason::TlsFromClient),
        (Verdict::Pass, Hello::Name { name, .. }) if !client.may_pass(plan, name) => Some(Reason::SniRefused),
        // What cannot be read is refused on every route.
        (Verdict::Pass | Verdict::End | Verdict::Tunnel | Verdict::Refuse(..), _) => None,
    }
}

async fn read(worker: &Worker, client: &mut Client, bytes: &mut Buffer) -> Result<Hello, String> {
    let limit = worker.plan.limits.head_bytes;
    let mut reader = HelloReader::default();
    loop {
        if let Some(hello) = reader.look(bytes.filled()) {
            return Ok(hello);
        }
        if bytes.filled().len() >= limit {
            return Ok(Hello::Unreadable(format!("it is longer than {limit} bytes")));
        }
        match poll_fn(|cx| bytes.poll_fill(&mut client.stream, cx, limit)).await {
            Ok(0) => return Err("closed in the middle of a TLS hello".into()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// On, byte for byte, until both sides have ended.
async fn carry(
    worker: &Worker,
    mut client: Box<Client>,
    mut bytes: Buffer,
    mut recording: Recording<'_>,
    route: RouteIndex,
    way: Verdict,
) {
    let plan = &worker.plan.routes[route];
    recording.record.mode = if let Verdict::Tunnel = way { "tunnel" } else { "passthrough" };
    recording.show();
    if let Verdict::Pass = way {
        client.standing.leave();
    }
    let cut = client.cut(worker);
    let dialled = if let Verdict::Tunnel = way {
        let has_left = || client.stream.has_left();
        cut.unless(worker.upstreams.connect_tunnel(route, client.caller(), &has_left)).await
    } else {
        Ok(gateway::connect_out(worker, &client, plan.timeouts.connect).await)
    };
    let mut upstream = match dialled {
        Ok(Ok(upstream)) => upstream,
        Err((reason, why)) => {
            client.stream.reset_on_close();
            return recording.finish(reason, Some(why));
        }
        Ok(Err(error)) => {
            match way {
                Verdict::Tunnel => recording.failed_upstream(plan, &error),
                Verdict::Pass | Verdict::End | Verdict::Refuse(..) => {
                    recording.failed_direct(client.dialled(), &error)
                }
            }
            client.stream.reset_on_close();
            return recording.finish(error.reason, Some(error.detail));
        }
    };
    recording.upstream(&upstream);
    let mut down = worker.stock.buffer();
    let idle = plan.timeouts.idle;
    let relayed = relay(&mut client.stream, &mut upstream.io, &mut bytes, &mut down, idle, &cut).await;
    recording.record.bytes_up = relayed.up;
    recording.record.bytes_down = relayed.down;
    let reason = match (relayed.reason, way) {
        (Reason::Ok, Verdict::Pass) => Reason::Passthrough,
        (reason, _) => reason,
    };
    recording.finish(reason, relayed.detail);
}

pub(super) async fn refuse(
    mut client: Box<Client>,
    recording: Recording<'_>,
    reason: Reason,
    detail: String,
) {
    // If the alert cannot be written the client is gone, and so is who would read it.
    let _ = timeout(LAST_WORDS, client.stream.write_all(&answer::tls_alert(reason))).await;
    recording.finish(reason, Some(detail));
    answer::linger(&mut client.stream).await;
}
