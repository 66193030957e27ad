//! The request's way: from the client's buffer and socket to the upstream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hnp_common::Reason;
use tokio::io::AsyncWrite as _;

use crate::proxy::buffer::Buffer;
use crate::proxy::client_io::ClientIo;
use crate::proxy::http1::body::Decoder;
use crate::upstream::Io;

/// The request's way.
pub(super) struct Up<'a> {
    pub(super) head: &'a [u8],
    pub(super) body: &'a mut Buffer,
    pub(super) decoder: Decoder,
    /// Bytes at the front of `body` that belong to this request and are not yet written.
    pub(super) ready: usize,
    pub(super) bytes: u64,
    pub(super) unflushed: bool,
    pub(super) state: UpState,
}

pub(super) enum UpState {
    Sending,
    /// The whole request was sent and flushed.
    Sent,
    /// The upstream stopped taking it; its answer, if any, says why.
    Broken(io::Error),
}

/// Which end of the way failed.
pub(super) enum UpFault {
    Client(Reason, String),
    Upstream(io::Error),
}

impl Up<'_> {
    pub(super) fn poll(
        &mut self,
        client: &mut ClientIo,
        upstream: &mut Io,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UpFault>> {
        loop {
            if !self.head.is_empty() {
                let n =
                    ready!(Pin::new(&mut *upstream).poll_write(cx, self.head)).map_err(UpFault::Upstream)?;
                self.head = &self.head[n..];
                self.unflushed = true;
                continue;
            }
            self.look_ahead()?;
            if self.ready > 0 {
                let part = &self.body.filled()[..self.ready];
                let n = ready!(Pin::new(&mut *upstream).poll_write(cx, part)).map_err(UpFault::Upstream)?;
                self.body.consume(n);
                self.ready -= n;
                self.bytes += n as u64;
                self.unflushed = true;
                continue;
            }
            if self.unflushed {
                ready!(Pin::new(&mut *upstream).poll_flush(cx)).map_err(UpFault::Upstream)?;
                self.unflushed = false;
            }
            if self.decoder.is_done() {
                return Poll::Ready(Ok(()));
            }
            let n = ready!(self.body.poll_fill(client, cx, 0))
                .map_err(|error| UpFault::Client(Reason::ClientGone, error.to_string()))?;
            if n == 0 {
                let detail = "the client closed in the middle of its request".into();
                return Poll::Ready(Err(UpFault::Client(Reason::ClientGone, detail)));
            }
            if self.body.is_full() {
                self.body.grow();
            }
        }
    }

    /// How much of what was read belongs to this request.
    fn look_ahead(&mut self) -> Result<(), UpFault> {
        while self.ready < self.body.filled().len() {
            let step = self
                .decoder
                .step(&self.body.filled()[self.ready..])
                .map_err(|error| UpFault::Client(Reason::BadRequest, error.to_string()))?;
            if step.wire == 0 {
                break;
            }
            self.ready += step.wire;
        }
        Ok(())
    }
}
