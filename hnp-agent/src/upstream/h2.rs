//! HTTP/2 towards upstreams: connections that all requests of a worker share, where their [`PoolKey`] is the same.
//!
//! The relay does not know of it. To an exchange a stream is one more kind of [`super::Io`] that takes and gives
//! the bytes of HTTP/1.1 (`exchange`), so the defences, deadlines, reasons and records of the relay stay the only
//! ones. While a connection is being made, whoever could share it waits for it: a burst of pods must not become a
//! burst of handshakes.

mod answer;
mod exchange;
mod fault;
mod link;
mod request;
#[cfg(test)]
mod tests;

pub use exchange::Exchange;
pub use fault::{Unprocessed, fault_reason};
pub(crate) use request::can_carry;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::pool::{MAX_IDLE, Shared, too_many};
use super::{ConnectionInfo, DialError, Io, PoolKey, UpstreamConnection};
pub(super) use link::Terms;
use link::{Link, STREAMS, Settings};

/// How long others wait for the first connection to an upstream of which nobody knows yet whether it speaks
/// HTTP/2. A handshake in a data centre takes some milliseconds; where it takes seconds, and ends in HTTP/1.1,
/// to wait for it would be to do it twice.
const FIRST: Duration = Duration::from_millis(250);

/// One worker's connections of HTTP/2, and the tasks that drive them.
#[derive(Default)]
pub(super) struct Links {
    groups: RefCell<HashMap<Rc<PoolKey>, Group>>,
    drivers: RefCell<JoinSet<()>>,
    made: Cell<u64>,
}

/// What is known of one key's upstream.
struct Group {
    links: Vec<Rc<Link>>,
    dials: Vec<Rc<Dial>>,
    speaks: Speaks,
    /// Streams that one connection takes, as the last one said.
    streams: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Speaks {
    Unknown,
    Http1,
    Http2,
}

/// A connection that is being made.
struct Dial {
    /// Requests that want to share it, the one that makes it included.
    claims: Cell<usize>,
    over: CancellationToken,
    failed: RefCell<Option<DialError>>,
}

/// What a request does that found no connection with room.
pub(super) enum Turn {
    /// There is one now.
    Stream(UpstreamConnection),
    /// It waits for one that another request makes.
    Wait(Waiting),
    /// It makes one; others may wait for it.
    Make(Making),
}

/// A place among those that wait.
pub(super) struct Waiting {
    dial: Rc<Dial>,
    /// It may turn out not to be shared.
    unknown: bool,
}

/// How a wait ended.
pub(super) enum Waited {
    /// It is time to look again.
    Look,
    /// It takes too long for what may come of it.
    Alone,
}

/// The duty to make a connection. Dropped, those who wait look again.
pub(super) struct Making {
    links: Rc<Links>,
    key: Rc<PoolKey>,
    dial: Rc<Dial>,
}

impl Links {
    /// A stream on a connection that has room. `after`: only on those made later than the one of this number.
    pub(super) fn take(&self, key: &Rc<PoolKey>, after: Option<u64>) -> Option<UpstreamConnection> {
        let groups = self.groups.borrow();
        let now = Instant::now();
        // The oldest first, so that the others can become idle and go.
        let fits = |link: &&Rc<Link>| after.is_none_or(|after| link.number > after) && link.has_room(now);
        let link = groups.get(key)?.links.iter().find(fits)?;
        Some(stream(link.clone(), false))
    }

    /// A stream on a connection that has room, and whose upstream has offered to make a WebSocket of one.
    pub(super) fn take_for_websocket(&self, key: &Rc<PoolKey>) -> Option<UpstreamConnection> {
        let groups = self.groups.borrow();
        let now = Instant::now();
        let link =
            groups.get(key)?.links.iter().find(|link| link.offers_websocket() && link.has_room(now))?;
        Some(stream(link.clone(), false))
    }

    /// Whether a request of a key would find a connection now, and for some time to come.
    pub(super) fn is_warm(&self, key: &Rc<PoolKey>, now: Instant) -> bool {
        self.groups.borrow().get(key).is_some_and(|group| group.links.iter().any(|link| link.is_fresh(now)))
    }

    /// What to do next where [`Self::take`] had nothing.
    pub(super) fn turn(self: &Rc<Self>, key: &Rc<PoolKey>, after: Option<u64>) -> Turn {
        if let Some(connection) = self.take(key, after) {
            return Turn::Stream(connection);
        }
        let mut groups = self.groups.borrow_mut();
        let group = groups.entry(key.clone()).or_insert_with(Group::new);
        group.links.retain(|link| link.is_open());
        if let Some(newest) = group.links.last() {
            group.streams = newest.capacity().max(1);
        }
        let known = group.speaks;
        if known != Speaks::Http1
            && let Some(dial) = group.dials.iter().find(|dial| dial.claims.get() < group.streams)
        {
            dial.claims.set(dial.claims.get() + 1);
            return Turn::Wait(Waiting { dial: dial.clone(), unknown: known == Speaks::Unknown });
        }
        let dial = Dial::new();
        group.dials.push(dial.clone());
        Turn::Make(Making { links: self.clone(), key: key.clone(), dial })
    }

    /// To make one that nobody waits for.
    pub(super) fn alone(self: &Rc<Self>, key: &Rc<PoolKey>) -> Making {
        Making { links: self.clone(), key: key.clone(), dial: Dial::new() }
    }

    /// The number of the newest connection.
    pub(super) fn newest(&self) -> u64 {
        self.made.get()
    }

    /// Drops what is not `live`, what nobody has used for long, what takes no more streams once the last one has ended,
    /// and what is more than may be idle `together`, as [`super::pool::Pool::sweep`].
    pub(super) fn sweep(
        &self,
        live: impl Fn(&PoolKey) -> bool,
        together: impl Fn(&PoolKey) -> Option<usize>,
        now: Instant,
    ) {
        while self.drivers.borrow_mut().try_join_next().is_some() {}
        let mut groups = self.groups.borrow_mut();
        groups.retain(|key, group| {
            let is_live = live(key);
            group.links.retain(|link| {
                is_live
                    && link.is_open()
                    && link.idle(now).is_none_or(|idle| idle < MAX_IDLE && link.has_room(now))
            });
            // What is known of the upstream is worth keeping as long as its key is.
            is_live || !group.dials.is_empty()
        });
        let shared = groups.iter().filter_map(|(key, group)| Some((key, group, together(key)?)));
        let waiting = shared.flat_map(|(key, group, most)| {
            let since = group.links.iter().filter_map(|link| Some(now - link.idle(now)?));
            since.map(move |since| Shared { route: key.route.clone(), most, since })
        });
        for (route, until) in too_many(waiting.collect()) {
            for (_, group) in groups.iter_mut().filter(|(key, _)| key.route == route) {
                group.links.retain(|link| link.idle(now).is_none_or(|idle| now - idle > until));
            }
        }
    }

    /// How many connections are open to a route's upstream, and how many of them have no stream.
    pub(super) fn count(&self, route: &str) -> (usize, usize) {
        let groups = self.groups.borrow();
        let links = groups.iter().filter(|(key, _)| *key.route == *route).flat_map(|(_, group)| &group.links);
        let now = Instant::now();
        links.fold((0, 0), |(open, idle), link| (open + 1, idle + usize::from(link.idle(now).is_some())))
    }

    async fn begin<T: AsyncRead + AsyncWrite + Unpin + 'static>(
        &self,
        io: T,
        info: Rc<ConnectionInfo>,
        settings: Settings,
    ) -> io::Result<Rc<Link>> {
        self.made.set(self.made.get() + 1);
        let (link, driver) = Link::begin(io, info, self.made.get(), settings).await?;
        self.drivers.borrow_mut().spawn_local(driver);
        Ok(link)
    }
}

impl Group {
    fn new() -> Self {
        Self { links: Vec::new(), dials: Vec::new(), speaks: Speaks::Unknown, streams: STREAMS }
    }
}

impl Dial {
    fn new() -> Rc<Self> {
        Rc::new(Self { claims: Cell::new(1), over: CancellationToken::new(), failed: RefCell::default() })
    }
}

impl Waiting {
    /// Waits until the connection is there, or is not to come.
    ///
    /// # Errors
    /// Why it did not come about.
    pub(super) async fn wait(self) -> Result<Waited, DialError> {
        let over = self.dial.over.cancelled();
        if !self.unknown {
            over.await;
        } else if timeout(FIRST, over).await.is_err() {
            return Ok(Waited::Alone);
        }
        match &*self.dial.failed.borrow() {
            Some(error) => Err(error.clone()),
            None => Ok(Waited::Look),
        }
    }
}

impl Making {
    /// What came of it was HTTP/2: shares it, and takes the first stream.
    ///
    /// # Errors
    /// The connection broke at once.
    pub(super) async fn share<T: AsyncRead + AsyncWrite + Unpin + 'static>(
        self,
        io: T,
        info: Rc<ConnectionInfo>,
        terms: Terms,
    ) -> io::Result<UpstreamConnection> {
        let streams = self.links.groups.borrow().get(&self.key).map_or(STREAMS, |group| group.streams);
        let settings = Settings { streams, terms };
        let link = self.links.begin(io, info, settings).await?;
        self.with_group(|group| {
            group.speaks = Speaks::Http2;
            group.links.push(link.clone());
        });
        Ok(stream(link, true))
    }

    /// What came of it was HTTP/1.1, which is nobody else's.
    pub(super) fn own(self) {
        self.with_group(|group| group.speaks = Speaks::Http1);
    }

    /// Nothing came of it.
    pub(super) fn failed(self, error: &DialError) {
        *self.dial.failed.borrow_mut() = Some(error.clone());
    }

    fn with_group(&self, change: impl FnOnce(&mut Group)) {
        if let Some(group) = self.links.groups.borrow_mut().get_mut(&self.key) {
            change(group);
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.with_group(|group| group.dials.retain(|dial| !Rc::ptr_eq(dial, &self.dial)));
        self.dial.over.cancel();
    }
}

fn stream(link: Rc<Link>, first: bool) -> UpstreamConnection {
    let info = link.info.clone();
    let io = Io::H2(Box::new(Exchange::new(link)));
    // Without a key: it is not lent, and so not given back.
    UpstreamConnection { io, info, reused: !first, outage: Duration::ZERO, key: None }
}
