//! A client's socket that moves no more than its workload's share: it waits, and TCP holds the client back.
//!
//! Only where `limits.per_workload.bytes_per_second` is set is a socket wrapped in this; without, nothing looks. What was moved is
//! paid for afterwards, by a pause before the next bytes, so a short exchange after silence waits for nothing.

use std::future::Future as _;
use std::io;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::clock::monotonic_ns;
use crate::policy::Seat;

/// The most that is moved before it is paid for: one TLS record. More would let each of many connections run ahead.
const STEP: usize = 16 * 1024;

/// A socket and the share it moves by.
pub struct Paced {
    tcp: TcpStream,
    seat: Rc<Seat>,
    rate: NonZeroU64,
    /// Where something is owed.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    /// From now on. `rate` is in bytes per second.
    pub fn new(tcp: TcpStream, seat: Rc<Seat>, rate: NonZeroU64) -> Self {
        let owed = seat.owed(monotonic_ns());
        let mut paced = Self { tcp, seat, rate, pause: None };
        paced.wait(owed);
        paced
    }

    /// The socket itself.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Ready once there is something to read that may be read.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_paid(cx));
        self.tcp.poll_read_ready(cx)
    }

    /// Reads what is there and may be read, without waiting.
    ///
    /// # Errors
    /// `WouldBlock` when that is nothing.
    pub fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.pause.as_ref().is_some_and(|pause| pause.deadline() > Instant::now()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = buf.len().min(STEP);
        let n = self.tcp.try_read(&mut buf[..most])?;
        self.pay(n);
        Ok(n)
    }

    fn poll_paid(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    fn pay(&mut self, n: usize) {
        let wait = self.seat.pay(n, self.rate, monotonic_ns());
        self.wait(wait);
    }

    fn wait(&mut self, wait: Duration) {
        // Timers tick in milliseconds; a shorter debt is paid with the next one.
        if wait >= Duration::from_millis(1) {
            self.pause = Some(Box::pin(sleep(wait)));
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_paid(cx));
        let most = buf.remaining().min(STEP);
        let mut step = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut step))?;
        let n = step.filled().len();
        buf.advance(n);
        this.pay(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_paid(cx));
        let n = ready!(Pin::new(&mut this.tcp).poll_write(cx, &buf[..buf.len().min(STEP)]))?;
        this.pay(n);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() > STEP {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
            return Pin::new(this).poll_write(cx, first);
        }
        ready!(this.poll_paid(cx));
        let n = ready!(Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs))?;
        this.pay(n);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
