//! A client that speaks TLS where plaintext is expected: refused, or let through untouched.
//!
//! Its SNI decides as a Host would. What is let through goes on with every byte as it came, hello
//! included, to where the client was going; hnp holds no key to it. What is refused gets an alert, so
//! that the client's error names TLS and not a broken connection.

use std::future::poll_fn;

use hnp_common::Reason;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::answer::{self, LAST_WORDS};
use super::authority::{Choice, choose};
use super::buffer::Buffer;
use super::connection::Client;
use super::hello::{Hello, HelloReader};
use super::record::Recording;
use super::relay::{relay, reset_on_close};
use super::worker::Worker;
use crate::config::plan::{Enforcement, RouteIndex};

/// Serves a connection whose first byte, in `bytes`, begins a TLS handshake.
pub(super) async fn serve(worker: &Worker, mut client: Client, mut bytes: Buffer) {
    let first = client.routes[0];
    let mut recording = Recording::begin(worker, client.base.clone());
    recording.record.route = Some(worker.plan.routes[first].name.clone());
    let deadline = worker.plan.routes[first].timeouts.head;
    let hello = match timeout(deadline, read(worker, &mut client, &mut bytes)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(detail)) => {
            reset_on_close(&client.stream);
            return recording.finish(Reason::ClientGone, Some(detail));
        }
        Err(_) => {
            let detail = format!("the TLS hello was not complete within {deadline:?}");
            return refuse(client, recording, Reason::HeadTimeout, detail).await;
        }
    };
    let is_strict =
        |route: &&RouteIndex| worker.plan.routes[**route].strictest_enforcement() == Enforcement::Strict;
    let strict = match client.enforcement(&worker.plan) {
        Enforcement::Strict => client.routes.iter().find(is_strict).copied(),
        Enforcement::Loose | Enforcement::Observe => None,
    };
    let nameless = match hello {
        Hello::Name(name) => Ok(name),
        Hello::NoName => Err("the TLS hello names no server (SNI)".into()),
        Hello::Unreadable(why) => Err(format!("the TLS hello cannot be read: {why}")),
    };
    let name = match nameless {
        Ok(name) => name,
        Err(detail) => {
            // It names nothing else, so it is taken for the route's own name; a strict route says more.
            let (route, reason) = match strict {
                Some(strict) => (strict, Reason::TlsWithoutName),
                None => (first, Reason::TlsFromClient),
            };
            recording.record.route = Some(worker.plan.routes[route].name.clone());
            return refuse(client, recording, reason, detail).await;
        }
    };
    match choose(
        &worker.plan,
        &client.routes,
        client.destination,
        client.flow.vip,
        client.enforcement(&worker.plan),
        Some(&name),
    ) {
        Choice::Serve(route) => {
            recording.record.route = Some(worker.plan.routes[route].name.clone());
            refuse(client, recording, Reason::TlsFromClient, fix()).await;
        }
        Choice::Refuse(route) => {
            recording.record.route = Some(worker.plan.routes[route].name.clone());
            let detail = format!("this address serves other names than {name:?}");
            refuse(client, recording, Reason::SniRefused, detail).await;
        }
        Choice::Passthrough(route) => pass(worker, client, bytes, recording, route).await,
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

/// On to where the client was going, byte for byte.
async fn pass(
    worker: &Worker,
    mut client: Client,
    mut bytes: Buffer,
    mut recording: Recording<'_>,
    route: RouteIndex,
) {
    let plan = &worker.plan.routes[route];
    recording.record.route = Some(plan.name.clone());
    recording.record.mode = "passthrough";
    let dialled = worker.upstreams.connect_direct(client.destination, plan.timeouts.connect).await;
    let mut upstream = match dialled {
        Ok(upstream) => upstream,
        Err(error) => {
            recording.failed_upstream(&client.destination.to_string(), error.addr);
            reset_on_close(&client.stream);
            return recording.finish(error.reason, Some(error.detail));
        }
    };
    recording.upstream(&upstream.info, upstream.reused);
    let mut down = worker.stock.buffer();
    let idle = plan.timeouts.idle;
    let relayed =
        relay(&mut client.stream, &mut upstream.io, &mut bytes, &mut down, idle, &worker.kill).await;
    recording.record.bytes_up = relayed.up;
    recording.record.bytes_down = relayed.down;
    let reason = if relayed.reason == Reason::Ok { Reason::Passthrough } else { relayed.reason };
    recording.finish(reason, relayed.detail);
}

async fn refuse(mut client: Client, recording: Recording<'_>, reason: Reason, detail: String) {
    // If the alert cannot be written the client is gone, and so is who would read it.
    let _ = timeout(LAST_WORDS, client.stream.write_all(&answer::tls_alert(reason))).await;
    recording.finish(reason, Some(detail));
    answer::linger(&mut client.stream).await;
}

fn fix() -> String {
    Reason::TlsFromClient.fix().into()
}
