//! What the manager does, by path. Every answer carries the request's own token, in a header and in
//! its body, so that an answer in the wrong hands is seen at once.
//!
//! | path | answer |
//! |---|---|
//! | anything else | JSON of what the manager saw, the body's length and hash included; with `seed=S` the body must be that [`Pattern`] |
//! | `/bytes/N?seed=S` | N bytes of a [`Pattern`]; `&chunked` for chunked transfer coding, `&ms=M` for M ms between blocks |
//! | `/echo` | the request's body |
//! | `/slow?ms=N` | as anything else, N ms later |
//! | `/drip?parts=N&ms=M` | N chunks of the token, M ms apart |
//! | `/dated?date=D` | 200 with that Date, in which `+` stands for a blank |
//! | `/status/N` | that status; 204 and 304 without a body |
//! | `/continue/refuse` | 417 at once, without reading the body |
//! | `/early-hints` | 103, then as anything else |
//! | `/upgrade` | 101, then everything comes back |
//! | `/fault/...` | see `fault.rs` |

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::fault;
use super::record::{Records, Request, query_value};
use crate::pattern::{Comparison, Pattern, hex};
use crate::wire::{Framing, Head, Wire};

/// Reads and says nothing until the other side gives up.
pub(super) async fn swallow(mut wire: Wire) -> io::Result<()> {
    while !wire.read_some().await?.is_empty() {}
    Ok(())
}

/// Greets, returns what comes, says good-bye after the client's end of stream.
pub(super) async fn echo(mut wire: Wire) -> io::Result<()> {
    wire.write(b"220 ready\r\n").await?;
    let count = return_everything(&mut wire).await?;
    wire.write(format!("bye {count}\r\n").as_bytes()).await?;
    wire.finish().await
}

/// Serves requests until one side has enough.
pub(super) async fn http(
    mut wire: Wire,
    connection: u64,
    manager: &str,
    refuse: bool,
    records: &Arc<Records>,
) -> io::Result<()> {
    while let Some(head) = wire.read_head().await? {
        let (number, request) = records.requested(connection, &head);
        let mut exchange = Exchange { wire: &mut wire, manager, request, head, number, records };
        let goes_on = if refuse { exchange.refuse().await? } else { exchange.answer().await? };
        if !goes_on {
            break;
        }
    }
    wire.finish().await
}

/// One request under way.
pub(super) struct Exchange<'a> {
    pub(super) wire: &'a mut Wire,
    pub(super) manager: &'a str,
    pub(super) request: Request,
    head: Head,
    number: usize,
    records: &'a Records,
}

/// A body that has been read.
pub(super) struct Body {
    bytes: u64,
    sha256: String,
    data: Vec<u8>,
}

/// The error of a connection on which a body was not the pattern that its request announced.
pub const NOT_THE_PATTERN: &str = "the body is not the pattern of its seed";

/// Larger bodies are hashed, not kept.
const KEPT: usize = 1 << 20;

impl Exchange<'_> {
    /// Answers; returns whether another request may follow.
    async fn answer(&mut self) -> io::Result<bool> {
        let target = self.request.target.clone();
        let path = target.split('?').next().unwrap_or_default();
        if let Some(fault) = path.split("/fault/").nth(1) {
            return fault::commit(self, fault).await;
        }
        // Behind a base path the manager's own paths begin later.
        let path = path.strip_prefix("/base").unwrap_or(path);
        if path == "/continue/refuse" {
            self.send(417, "connection: close\r\n", b"refused before the body").await?;
            return Ok(false);
        }
        let body = self.read_body().await?;
        match path.split('/').nth(1).unwrap_or_default() {
            "bytes" => self.send_bytes(path).await?,
            "echo" => self.send(200, "", &body.data).await?,
            "slow" => {
                tokio::time::sleep(self.pause()).await;
                self.send_what_was_seen(&body).await?;
            }
            "drip" => self.drip().await?,
            "status" => {
                let status = path.rsplit('/').next().and_then(|code| code.parse().ok()).unwrap_or(500);
                self.send(status, "", b"a body where the status has one").await?;
            }
            "dated" => {
                let date = query_value(&self.request.target, "date").unwrap_or_default().replace('+', " ");
                self.send(200, &format!("date: {date}\r\n"), b"").await?;
            }
            "early-hints" => {
                self.wire.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n").await?;
                self.send_what_was_seen(&body).await?;
            }
            "upgrade" => {
                self.upgrade().await?;
                return Ok(false);
            }
            _ => self.send_what_was_seen(&body).await?,
        }
        Ok(!self.head.closes())
    }

    /// What a strict manager tells who comes without TLS.
    async fn refuse(&mut self) -> io::Result<bool> {
        let text =
            format!("{{\"manager\":\"{}\",\"error\":\"client certificate required\"}}\n", self.manager);
        self.send(400, "connection: close\r\n", text.as_bytes()).await?;
        Ok(false)
    }

    /// Reads the request's body, after a 100 where the client waits for one.
    pub(super) async fn read_body(&mut self) -> io::Result<Body> {
        if self.head.header("expect").is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue")) {
            self.wire.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let framing = self.head.framing(Framing::Length(0))?;
        let (mut hash, mut data) = (Sha256::new(), Vec::new());
        let seed = query_value(&self.request.target, "seed").and_then(|seed| seed.parse().ok());
        let mut comparison = seed.map(Comparison::new);
        let mut sink = |piece: &[u8]| {
            hash.update(piece);
            if let Some(comparison) = &mut comparison {
                comparison.take(piece);
            }
            if data.len() + piece.len() <= KEPT {
                data.extend_from_slice(piece);
            }
        };
        let read = self.wire.read_body(framing, &mut sink).await;
        if comparison.is_some_and(|comparison| !comparison.holds()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, NOT_THE_PATTERN));
        }
        let bytes = read?;
        let body = Body { bytes, sha256: hex(&hash.finalize()), data };
        self.records.body_ended(self.number, body.bytes, &body.sha256);
        Ok(body)
    }

    async fn send_what_was_seen(&mut self, body: &Body) -> io::Result<()> {
        let Request { token, method, target, peer, tls, .. } = &self.request;
        let client = tls.as_ref().and_then(|tls| tls.client.as_ref());
        let seen = json!({
            "manager": self.manager,
            "token": token,
            "method": method,
            "target": target,
            "host": self.request.host(),
            "peer": peer.to_string(),
            "client_subject": client.map(|client| &client.subject),
            "client_serial": client.map(|client| &client.serial),
            "tls": tls.as_ref().map(|tls| &tls.version),
            "key_exchange": tls.as_ref().map(|tls| &tls.key_exchange),
            "body_bytes": body.bytes,
            "body_sha256": body.sha256,
        });
        let text = format!("{seen}\n");
        self.send(200, "content-type: application/json\r\n", text.as_bytes()).await
    }

    /// Sends an answer with a length; the body is left out where HTTP has none.
    pub(super) async fn send(&mut self, status: u16, headers: &str, body: &[u8]) -> io::Result<()> {
        let bodiless = status == 204 || status == 304 || self.request.method == "HEAD";
        let length =
            if status == 204 { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let mut message = format!(
            "HTTP/1.1 {status} {}\r\nx-manager: {}\r\nx-token: {}\r\n{headers}{length}\r\n",
            phrase(status),
            self.manager,
            self.request.token
        )
        .into_bytes();
        if !bodiless {
            message.extend_from_slice(body);
        }
        self.wire.write(&message).await
    }

    async fn send_bytes(&mut self, path: &str) -> io::Result<()> {
        let length = path.rsplit('/').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
        let seed = query_value(&self.request.target, "seed").and_then(|seed| seed.parse().ok()).unwrap_or(0);
        let chunked = self.request.target.contains("chunked");
        let framing = if chunked {
            "transfer-encoding: chunked".to_owned()
        } else {
            format!("content-length: {length}")
        };
        let head = format!("HTTP/1.1 200 OK\r\nx-token: {}\r\n{framing}\r\n\r\n", self.request.token);
        self.wire.write(head.as_bytes()).await?;
        if self.request.method == "HEAD" {
            return Ok(());
        }
        let slow = query_value(&self.request.target, "ms").is_some();
        let mut pattern = Pattern::new(seed, length);
        while let Some(block) = pattern.next_block() {
            if chunked {
                self.chunk(block).await?;
            } else {
                self.wire.write(block).await?;
            }
            if slow {
                tokio::time::sleep(self.pause()).await;
            }
        }
        if chunked { self.wire.write(b"0\r\n\r\n").await } else { Ok(()) }
    }

    async fn drip(&mut self) -> io::Result<()> {
        let token = self.request.token.clone();
        let head = format!("HTTP/1.1 200 OK\r\nx-token: {token}\r\ntransfer-encoding: chunked\r\n\r\n");
        self.wire.write(head.as_bytes()).await?;
        let parts =
            query_value(&self.request.target, "parts").and_then(|parts| parts.parse().ok()).unwrap_or(1);
        for _ in 0..parts {
            self.chunk(format!("{token}\n").as_bytes()).await?;
            tokio::time::sleep(self.pause()).await;
        }
        self.wire.write(b"0\r\n\r\n").await
    }

    async fn upgrade(&mut self) -> io::Result<()> {
        let protocol = self.head.header("upgrade").unwrap_or_default();
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\nx-token: {}\r\n\r\n",
            self.request.token
        );
        self.wire.write(head.as_bytes()).await?;
        return_everything(self.wire).await.map(drop)
    }

    async fn chunk(&mut self, payload: &[u8]) -> io::Result<()> {
        self.wire.write(format!("{:x}\r\n", payload.len()).as_bytes()).await?;
        self.wire.write(payload).await?;
        self.wire.write(b"\r\n").await
    }

    fn pause(&self) -> Duration {
        let ms = query_value(&self.request.target, "ms").and_then(|ms| ms.parse().ok()).unwrap_or(100);
        Duration::from_millis(ms)
    }
}

async fn return_everything(wire: &mut Wire) -> io::Result<usize> {
    let mut count = 0;
    loop {
        let piece = wire.read_some().await?;
        if piece.is_empty() {
            return Ok(count);
        }
        count += piece.len();
        wire.write(&piece).await?;
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        417 => "Expectation Failed",
        _ => "Status",
    }
}
