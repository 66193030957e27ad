//! A client's socket that moves no more than its workload's share: it waits, and TCP holds the client back.
//!
//! Where `limits.per_workload.bytes_per_second` is not set, all of it is one look at a number. What was moved is paid for afterwards, by a
//! pause before the next bytes, so a short exchange after silence waits for nothing.

use std::future::Future as _;
use std::io;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::clock::monotonic_ns;
use crate::policy::Seat;

/// The most that is moved before it is paid for: one TLS record. More would let each of many connections run ahead.
const STEP: usize = 16 * 1024;
/// A pause is looked at this often: the rate that made it may have changed.
const LOOK: Duration = Duration::from_secs(1);

/// A socket and the share it moves by.
pub struct Paced {
    tcp: TcpStream,
    seat: Rc<Seat>,
    /// Where something is owed. Boxed: rare.
    pause: Option<Box<Pause>>,
}

struct Pause {
    until: Instant,
    /// By which it was reckoned.
    rate: NonZeroU64,
    sleep: Pin<Box<Sleep>>,
}

impl Paced {
    /// From now on.
    pub fn new(tcp: TcpStream, seat: Rc<Seat>) -> Self {
        let mut paced = Self { tcp, seat, pause: None };
        if let Some(rate) = paced.seat.rate() {
            paced.wait(paced.seat.owed(monotonic_ns()), rate);
        }
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
        let Some(rate) = self.seat.rate() else { return self.tcp.try_read(buf) };
        if self.pause.as_ref().is_some_and(|pause| pause.rate == rate && pause.until > Instant::now()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = buf.len().min(STEP);
        let n = self.tcp.try_read(&mut buf[..most])?;
        self.pay(n, rate);
        Ok(n)
    }

    /// Ready once nothing is owed, or what made it owed has changed.
    fn poll_paid(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(pause) = &mut self.pause {
            if self.seat.rate() == Some(pause.rate) {
                ready!(pause.sleep.as_mut().poll(cx));
                let now = Instant::now();
                if now < pause.until {
                    pause.sleep.as_mut().reset(pause.until.min(now + LOOK));
                    continue;
                }
            }
            self.pause = None;
        }
        Poll::Ready(())
    }

    fn pay(&mut self, n: usize, rate: NonZeroU64) {
        let wait = self.seat.pay(n, rate, monotonic_ns());
        self.wait(wait, rate);
    }

    fn wait(&mut self, wait: Duration, rate: NonZeroU64) {
        // Timers tick in milliseconds; a shorter debt is paid with the next one.
        if wait >= Duration::from_millis(1) {
            let now = Instant::now();
            let until = now + wait;
            let sleep = Box::pin(sleep_until(until.min(now + LOOK)));
            self.pause = Some(Box::new(Pause { until, rate, sleep }));
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
        let Some(rate) = this.seat.rate() else { return Pin::new(&mut this.tcp).poll_read(cx, buf) };
        let most = buf.remaining().min(STEP);
        let mut step = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut step))?;
        let n = step.filled().len();
        buf.advance(n);
        this.pay(n, rate);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_paid(cx));
        let Some(rate) = this.seat.rate() else { return Pin::new(&mut this.tcp).poll_write(cx, buf) };
        let n = ready!(Pin::new(&mut this.tcp).poll_write(cx, &buf[..buf.len().min(STEP)]))?;
        this.pay(n, rate);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_paid(cx));
        let Some(rate) = this.seat.rate() else {
            return Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs);
        };
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() > STEP {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
            return Pin::new(this).poll_write(cx, first);
        }
        let n = ready!(Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs))?;
        this.pay(n, rate);
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
