//! CONNECT: from here on the connection is served as a captured one to that destination would be.

use std::rc::Rc;
use std::time::Duration;

use hnp_common::Reason;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::serve::{end, refuse};
use super::wanted::Wanted;
use super::{Asked, dialled, way_out};
use crate::config::plan::RouteIndex;
use crate::proxy::buffer::Buffer;
use crate::proxy::connection::Client;
use crate::proxy::http1::head::{HeadError, Lines, content_length};
use crate::proxy::http1::serve as http1;
use crate::proxy::opaque;
use crate::proxy::record::Recording;
use crate::proxy::relay::relay;
use crate::proxy::worker::{Lanes, Worker};
use crate::telemetry::record::{HttpRecord, HttpVersion};

/// RFC 9110 section 9.3.6: no length, for what follows is no body.
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
/// How long a client may take to take it; it asked for it and is there.
const TOLD: Duration = Duration::from_secs(5);

/// Where a CONNECT's head says that it goes (RFC 9112 section 3.2.3).
fn parse(head: &[u8]) -> Result<Wanted, HeadError> {
    let lines = Lines::cut(head)?;
    let mut parts = head[lines.first.clone()].split(|byte| *byte == b' ');
    let (Some(b"CONNECT"), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(HeadError::FirstLine);
    };
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => {}
        other if other.starts_with(b"HTTP/") => return Err(HeadError::Version),
        _ => return Err(HeadError::FirstLine),
    }
    let mut hosts = 0;
    for field in &lines.fields {
        let (name, value) = (&head[field.name.clone()], &head[field.value.clone()]);
        hosts += usize::from(name.eq_ignore_ascii_case(b"host"));
        // A CONNECT has no body: whoever announces one means something else by what follows.
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return Err(HeadError::TransferEncoding);
        }
        if name.eq_ignore_ascii_case(b"content-length") && content_length(value)? != 0 {
            return Err(HeadError::ContentLength);
        }
    }
    if hosts > 1 {
        return Err(HeadError::Host);
    }
    Wanted::parse(target, None).ok_or(HeadError::Target)
}

/// Serves a CONNECT, whose head is at the front of `bytes`, and what follows it.
pub(super) async fn serve(
    lanes: &Lanes,
    worker: Rc<Worker>,
    mut client: Box<Client>,
    mut bytes: Buffer,
    head_len: usize,
) {
    let wanted = match parse(&bytes.filled()[..head_len]) {
        Ok(wanted) => wanted,
        Err(error) => {
            let (reason, detail) = (http1::reason_of(Some(error)), error.to_string());
            return refuse(&worker, &mut client, connect_record(), reason, detail, false).await;
        }
    };
    bytes.consume(head_len);
    let routes = wanted.listed_by(&worker.plan);
    let passed_by = if routes.is_empty() { wanted.passed_by(&worker.plan) } else { None };
    client.destination = wanted.place();
    client.base.destination = Some(dialled("connect", Some(&wanted)));
    let Some(first) = routes.first().copied().or(passed_by) else {
        let (reason, detail) = wanted.unlisted();
        return refuse(&worker, &mut client, connect_record(), reason, detail, false).await;
    };
    client.asked = Some(Box::new(Asked::Tunnel(wanted, (!bytes.is_empty()).then_some(bytes))));
    if passed_by.is_some() {
        return pass(&worker, client, first).await;
    }
    client.routes = routes;
    // What follows is another connection's: its TLS, where it has one, is not the gateway's, nor what it speaks.
    client.admitted = None;
    client.base.client_protocol = HttpVersion::Http1;
    if tell(&mut client).await.is_err() {
        client.stream.reset_on_close();
        return worker.stats.connection_ended(Some(first), Reason::ClientGone);
    }
    if worker.plan.routes[first].is_opaque() {
        opaque::serve(&worker, client, first).await;
    } else {
        http1::serve(lanes, worker, client).await;
    }
}

/// To a name that is let through: only once somebody answers there is the client told so.
async fn pass(worker: &Worker, mut client: Box<Client>, route: RouteIndex) {
    let plan = &worker.plan.routes[route];
    let mut recording = Recording::begin(worker, client.base.clone());
    recording.record.route = Some(plan.name.clone());
    recording.record.mode = "passthrough";
    recording.show();
    let mut upstream = match way_out::connect(worker, &client, plan.timeouts.connect).await {
        Ok(upstream) => upstream,
        Err(error) => {
            recording.failed_direct(client.dialled(), &error);
            worker.stats.connection_ended(Some(route), error.reason);
            return end(&mut client, recording, connect_record(), error.reason, error.detail, false).await;
        }
    };
    recording.upstream(&upstream);
    if let Err(detail) = tell(&mut client).await {
        client.stream.reset_on_close();
        return recording.finish(Reason::ClientGone, Some(detail));
    }
    let mut up = client.begun().unwrap_or_else(|| worker.stock.buffer());
    let mut down = worker.stock.buffer();
    let idle = plan.timeouts.idle;
    let cut = client.cut(worker);
    let relayed = relay(&mut client.stream, &mut upstream.io, &mut up, &mut down, idle, &cut).await;
    recording.record.bytes_up = relayed.up;
    recording.record.bytes_down = relayed.down;
    let reason = if relayed.reason == Reason::Ok { Reason::Passthrough } else { relayed.reason };
    recording.finish(reason, relayed.detail);
}

async fn tell(client: &mut Client) -> Result<(), String> {
    match timeout(TOLD, client.stream.write_all(ESTABLISHED)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the client did not take the answer to CONNECT".into()),
    }
}

/// The line of a CONNECT that opened nothing.
fn connect_record() -> HttpRecord {
    HttpRecord { method: "CONNECT".into(), path: String::new(), status: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let parsed = |head: &str| parse(head.as_bytes()).map(|wanted| wanted.to_string());
        for head in [
            "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n",
            "CONNECT a.test:443 HTTP/1.0\r\n\r\n",
            "CONNECT A.test.:443 HTTP/1.1\r\nHost: other\r\nProxy-Authorization: Basic x\r\nContent-Length: 0\r\n\r\n",
        ] {
            assert_eq!(parsed(head).as_deref(), Ok("a.test:443"), "{head:?}");
        }
        for (head, error) in [
            ("CONNECT a.test HTTP/1.1\r\n\r\n", HeadError::Target),
            ("CONNECT /x HTTP/1.1\r\n\r\n", HeadError::Target),
            ("CONNECT http://a.test:80 HTTP/1.1\r\n\r\n", HeadError::Target),
            ("CONNECT a.test:443  HTTP/1.1\r\n\r\n", HeadError::FirstLine),
            ("connect a.test:443 HTTP/1.1\r\n\r\n", HeadError::FirstLine),
            ("CONNECT a.test:443 HTTP/2.0\r\n\r\n", HeadError::Version),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", HeadError::Host),
            ("CONNECT a:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n", HeadError::ContentLength),
            ("CONNECT a:1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", HeadError::TransferEncoding),
        ] {
            assert_eq!(parsed(head), Err(error), "{head:?}");
        }
    }
}
