//! Bytes both ways, as they come: opaque routes, and what follows a protocol switch.
//!
//! Each direction ends by itself: an end of stream is passed on as one (half-close), and the other
//! direction goes on. A reset is passed on as a reset.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hnp_common::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};

use super::buffer::Buffer;
use super::client_io::ClientIo;
use super::police::Cut;
use crate::trust::tls_reason;
use crate::upstream::Io;

/// How a relay ended, and what it carried.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes from the client written to the upstream.
    pub up: u64,
    /// Bytes from the upstream written to the client.
    pub down: u64,
    /// Why it ended.
    pub reason: Reason,
    /// The error's words, if one ended it.
    pub detail: Option<String>,
}

/// Which end of a direction failed.
enum Fault {
    Read(io::Error),
    Write(io::Error),
}

/// One direction.
struct Direction<'b> {
    buffer: &'b mut Buffer,
    /// What `poll_write` took may still sit in the TLS session.
    unflushed: bool,
    read_ended: bool,
    done: bool,
    bytes: u64,
}

/// Relays until both directions ended, one failed, or nothing moved for `idle`. The buffers may hold
/// bytes that were read before: they go first.
pub async fn relay(
    client: &mut ClientIo,
    upstream: &mut Io,
    up: &mut Buffer,
    down: &mut Buffer,
    idle: Duration,
    cut: &Cut,
) -> Relayed {
    let mut up = Direction::new(up);
    let mut down = Direction::new(down);
    let mut last = Instant::now();
    let mut timer = pin!(sleep_until(last + idle));
    let relayed = poll_fn(|cx| {
        let before = (up.bytes, down.bytes, up.read_ended, down.read_ended);
        // Down first: when both fail at once, the upstream's alert says more than the broken pipe.
        let down_end = down.poll(upstream, client, cx);
        if let Poll::Ready(Err(fault)) = down_end {
            return Poll::Ready(match fault {
                Fault::Read(error) => upstream_fault(&error),
                Fault::Write(error) => (Reason::ClientGone, Some(error.to_string())),
            });
        }
        let up_end = up.poll(client, upstream, cx);
        if let Poll::Ready(Err(fault)) = up_end {
            return Poll::Ready(match fault {
                Fault::Read(error) => (Reason::ClientGone, Some(error.to_string())),
                Fault::Write(error) => upstream_fault(&error),
            });
        }
        if up_end.is_ready() && down_end.is_ready() {
            return Poll::Ready((Reason::Ok, None));
        }
        if before != (up.bytes, down.bytes, up.read_ended, down.read_ended) {
            last = Instant::now();
        }
        while timer.as_mut().poll(cx).is_ready() {
            if last.elapsed() >= idle {
                return Poll::Ready((Reason::IdleTimeout, Some(format!("no byte either way for {idle:?}"))));
            }
            timer.as_mut().reset(last + idle);
        }
        Poll::Pending
    });
    let (reason, detail) = cut.unless(relayed).await.unwrap_or_else(|(reason, why)| (reason, Some(why)));
    if reason != Reason::Ok {
        client.reset_on_close();
    }
    Relayed { up: up.bytes, down: down.bytes, reason, detail }
}

fn upstream_fault(error: &io::Error) -> (Reason, Option<String>) {
    (tls_reason(error).unwrap_or(Reason::UpstreamReset), Some(error.to_string()))
}

impl<'b> Direction<'b> {
    fn new(buffer: &'b mut Buffer) -> Self {
        Self { buffer, unflushed: false, read_ended: false, done: false, bytes: 0 }
    }

    /// Moves what can be moved; ready once the end of the stream was passed on.
    fn poll<R, W>(&mut self, from: &mut R, to: &mut W, cx: &mut Context<'_>) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.done {
            if !self.buffer.is_empty() {
                let n =
                    ready!(Pin::new(&mut *to).poll_write(cx, self.buffer.filled())).map_err(Fault::Write)?;
                self.buffer.consume(n);
                self.bytes += n as u64;
                self.unflushed = true;
            } else if self.read_ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Fault::Write)?;
                self.done = true;
            } else {
                if self.unflushed {
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Fault::Write)?;
                    self.unflushed = false;
                }
                let n = ready!(self.buffer.poll_fill(from, cx, 0)).map_err(Fault::Read)?;
                self.read_ended = n == 0;
                if self.buffer.is_full() {
                    self.buffer.grow();
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
