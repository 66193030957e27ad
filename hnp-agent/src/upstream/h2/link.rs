//! One HTTP/2 connection: its settings, the task that drives it, and what is known of it.
//!
//! The task belongs to the worker's [`super::Links`] and ends by itself once nobody holds the connection: the
//! library then says GOAWAY and closes. Where that cannot be sent, or a PING is not answered, it is cut.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong, RecvStream};
use hnp_common::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::fault::fault;
use crate::trust::tls_reason;
use crate::upstream::ConnectionInfo;
use crate::upstream::pool::MAX_IDLE;
use crate::upstream::warm::REFRESH;

/// Streams of one connection at a time, where the upstream allows as many: nginx' own limit. More would share
/// one congestion window, and one broken connection would cost more requests.
pub(super) const STREAMS: usize = 128;
/// What an upstream may send on one stream before the client has read it: 5 MB/s at 50 ms. Each reader that
/// stalls holds so much of the agent's memory, so it is not more.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The library counts what a stream has not yet given to its reader against the connection's window too. With
/// room for every stream's own, no number of slow readers can stop the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS as u32;
/// What one stream may have waiting to be sent, beyond the upstream's window: a large block of the relay.
const SEND_BUFFER: usize = 64 * 1024;
/// After so long a connection takes no more streams: the next one asks the name servers again, so that an
/// upstream that has moved is noticed as soon as with connections that end.
const MAX_AGE: Duration = Duration::from_secs(10 * 60);
/// Streams given up before their end, after which a connection takes no more. Servers count resets and close
/// the connection of whoever sends many (CVE-2023-44487; 100 is the lowest limit one meets), and with it the
/// requests of other pods.
const MAX_GIVEN_UP: usize = 90;
/// Streams of which only the end is to come. Upstreams that send it in a frame of its own send it at once.
const ENDING: usize = STREAMS;
/// Between two PINGs on a connection that stays silent. Servers of gRPC close it for more (their limit is five
/// minutes unless data flows in between).
const PING_AGAIN: Duration = Duration::from_secs(5 * 60);

/// What the worker, the driver and the streams of a connection tell each other.
#[derive(Debug, Default)]
struct State {
    /// Reads that brought bytes.
    reads: Cell<u64>,
    streams: Cell<usize>,
    given_up: Cell<usize>,
    /// Nobody opens streams any more, and the last one has ended.
    left: Cell<bool>,
    /// The driver has ended.
    closed: Cell<bool>,
    /// Why, where that was no ordinary end.
    failed: RefCell<Option<Failed>>,
}

impl State {
    /// What the connection itself failed of: what TLS said is lost in the library's errors.
    fn failure(&self) -> Option<io::Error> {
        match &*self.failed.borrow() {
            Some(Failed::Tls(error)) => Some(io::Error::new(io::ErrorKind::InvalidData, error.clone())),
            Some(Failed::Silent(ping)) => {
                let detail =
                    format!("the HTTP/2 connection was silent, and no PING was answered within {ping:?}");
                Some(fault(Reason::UpstreamResponseTimeout, detail))
            }
            None => None,
        }
    }
}

#[derive(Debug)]
enum Failed {
    Tls(rustls::Error),
    Silent(Duration),
}

/// A connection that streams are opened on.
pub(super) struct Link {
    pub(super) info: Rc<ConnectionInfo>,
    /// Grows with every connection of the worker.
    pub(super) number: u64,
    send: RefCell<SendRequest<Bytes>>,
    state: Rc<State>,
    since: Instant,
    idle_since: Cell<Instant>,
    /// Answers that are read to their length, and whose end is still to come.
    ending: RefCell<VecDeque<RecvStream>>,
    keep: bool,
    /// It takes no more streams.
    retired: Cell<bool>,
}

/// The parts of a connection that must be given to somebody who drives them.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()>>>;

impl Link {
    /// Begins HTTP/2 on a connection that has agreed to it. `ping`: see [`drive`].
    ///
    /// # Errors
    /// Our own first bytes could not be written.
    pub(super) async fn begin<T>(
        io: T,
        info: Rc<ConnectionInfo>,
        number: u64,
        settings: Settings,
    ) -> io::Result<(Rc<Self>, Driver)>
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let state = Rc::new(State::default());
        let watched = Watched { io, state: state.clone() };
        let (send, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(settings.streams)
            .max_header_list_size(u32::try_from(settings.terms.head_limit).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER)
            .handshake::<_, Bytes>(watched)
            .await
            .map_err(|error| state.failure().unwrap_or_else(|| io::Error::other(error)))?;
        let pings = connection.ping_pong();
        let now = Instant::now();
        let driver = drive(connection, pings, settings.terms.ping, state.clone());
        let send = RefCell::new(send);
        let link = Self {
            info,
            number,
            send,
            state,
            since: now,
            idle_since: Cell::new(now),
            ending: RefCell::default(),
            keep: settings.terms.keep,
            retired: Cell::new(false),
        };
        Ok((Rc::new(link), Box::pin(driver)))
    }

    /// Whether it takes another stream.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        !self.retired.get()
            && self.state.streams.get() < self.capacity()
            && self.state.given_up.get() < MAX_GIVEN_UP
            && now.duration_since(self.since) < MAX_AGE
            && self.is_open()
    }

    /// Whether the upstream has said SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 section 3).
    pub(super) fn offers_websocket(&self) -> bool {
        self.send.borrow().is_extended_connect_protocol_enabled()
    }

    /// Whether it takes another stream, and will for some time to come.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.has_room(now)
            && now.duration_since(self.since) < MAX_AGE - (MAX_IDLE - REFRESH)
            && self.idle(now).is_none_or(|idle| idle < REFRESH)
    }

    /// How many streams it carries at a time.
    pub(super) fn capacity(&self) -> usize {
        self.send.borrow().current_max_send_streams().min(STREAMS)
    }

    /// Neither closed nor told to go away.
    pub(super) fn is_open(&self) -> bool {
        !self.state.closed.get()
            && matches!(
                self.send.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop())),
                Poll::Ready(Ok(()))
            )
    }

    /// How long it has had no stream.
    pub(super) fn idle(&self, now: Instant) -> Option<Duration> {
        (self.state.streams.get() == 0).then(|| now.duration_since(self.idle_since.get()))
    }

    /// For one stream: the library keeps what waits to be opened with the handle.
    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.send.borrow().clone()
    }

    pub(super) fn opened(&self) {
        self.state.streams.set(self.state.streams.get() + 1);
    }

    /// A stream has ended, by itself or because nobody wanted it any more.
    pub(super) fn ended(&self, given_up: bool) {
        self.state.streams.set(self.state.streams.get() - 1);
        self.state.given_up.set(self.state.given_up.get() + usize::from(given_up));
        if self.state.streams.get() == 0 {
            self.idle_since.set(Instant::now());
            self.retired.set(!self.keep);
        }
    }

    /// Keeps a stream, of which only the end is to come, until that is there.
    pub(super) fn wait_for_end(&self, stream: RecvStream) {
        let mut ending = self.ending.borrow_mut();
        while ending.front().is_some_and(RecvStream::is_end_stream) || ending.len() >= ENDING {
            ending.pop_front();
        }
        ending.push_back(stream);
    }

    /// What the connection itself failed of.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.state.failure()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.left.set(true);
    }
}

/// What a connection is begun with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// Streams that may be opened before the upstream has said how many.
    pub(super) streams: usize,
    /// What the configuration says.
    pub(super) terms: Terms,
}

/// What of the configuration holds for a connection as long as it lives.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Terms {
    /// Bytes of an answer's head, as HTTP/2 counts them.
    pub(in crate::upstream) head_limit: usize,
    /// It is kept when it has no stream.
    pub(in crate::upstream) keep: bool,
    /// How long a connection with requests under way may be silent before it is asked whether it lives, and
    /// how long it may take to answer.
    pub(in crate::upstream) ping: Duration,
}

/// Drives a connection to its end.
async fn drive<T: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<T, Bytes>,
    mut pings: Option<PingPong>,
    ping: Duration,
    state: Rc<State>,
) {
    let mut tick = interval_at(Instant::now() + ping, ping);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = Pulse::default();
    poll_fn(|cx| {
        if Pin::new(&mut connection).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(pings) = &mut pings else { return Poll::Pending };
        pulse.poll(&state, pings, &mut tick, cx).map(|()| {
            if state.streams.get() > 0 {
                *state.failed.borrow_mut() = Some(Failed::Silent(ping));
            }
        })
    })
    .await;
    // Before the streams hear of it from the library, when the connection is dropped.
    state.closed.set(true);
}

/// Whether the other side still lives.
#[derive(Debug, Default)]
struct Pulse {
    reads: u64,
    /// A PING is under way; `reads` says what had come before it.
    asked: bool,
    last: Option<Instant>,
    /// It was already closing at the last tick.
    closing: bool,
}

impl Pulse {
    /// Ready when the connection has to be given up.
    fn poll(
        &mut self,
        state: &State,
        pings: &mut PingPong,
        tick: &mut Interval,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.asked && pings.poll_pong(cx).is_ready() {
            // The answer itself is no sign that data flows.
            self.asked = false;
            self.reads = state.reads.get();
        }
        loop {
            let now = ready!(tick.poll_tick(cx));
            let silent = state.reads.get() == self.reads;
            self.reads = state.reads.get();
            if self.asked && silent {
                return Poll::Ready(());
            }
            if !silent {
                self.last = None;
            }
            // It is closing, and its last bytes are not taken.
            if state.left.get() && std::mem::replace(&mut self.closing, true) {
                return Poll::Ready(());
            }
            if silent
                && state.streams.get() > 0
                && !self.asked
                && self.last.is_none_or(|last| now - last >= PING_AGAIN)
            {
                self.asked = pings.send_ping(Ping::opaque()).is_ok();
                self.last = Some(now);
                if pings.poll_pong(cx).is_ready() {
                    self.asked = false;
                }
            }
        }
    }
}

/// A connection that notes what the library does not tell.
struct Watched<T> {
    io: T,
    state: Rc<State>,
}

impl<T> Watched<T> {
    fn note<R>(&self, result: io::Result<R>) -> io::Result<R> {
        if let Err(error) = &result
            && tls_reason(error).is_some()
            && let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            self.state.failed.borrow_mut().get_or_insert(Failed::Tls(tls.clone()));
        }
        result
    }
}

impl<T: AsyncRead + Unpin> Watched<T> {
    /// A write fails because the other side has closed, and its alert, which says why, may be unread or just
    /// arriving; either way the read side soon has an end. What else lies there is lost with the connection:
    /// the library gives that up at the first error.
    fn written<R>(&mut self, result: io::Result<R>, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        let gone = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        if result.as_ref().is_err_and(|error| gone.contains(&error.kind())) {
            let mut scratch = [0; 1024];
            loop {
                let mut buf = ReadBuf::new(&mut scratch);
                match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                    Ok(()) if buf.filled().is_empty() => break,
                    Ok(()) => {}
                    Err(error) => {
                        let _ = self.note::<()>(Err(error));
                        break;
                    }
                }
            }
        }
        Poll::Ready(self.note(result))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        if buf.filled().len() > before {
            self.state.reads.set(self.state.reads.get() + 1);
        }
        Poll::Ready(self.note(result))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        self.written(result, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs));
        self.written(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.io).poll_flush(cx));
        self.written(result, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
