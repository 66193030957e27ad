//! Connections that are made ahead of use, so that the first request of a pod takes one round trip.
//!
//! Where a route asks for them (`pool_warm`), a worker looks once a second whether they are there: at its start,
//! when one was taken, closed or has waited long, and when an identity or a trust has a new generation, which no
//! earlier connection speaks for. One dial at a time, beside the requests and never in their way: a request that
//! finds none dials as ever. They wait no longer than all others ([`MAX_IDLE`]), so one that nobody uses is made
//! again every [`REFRESH`]; with a resumed session that is neither a signature nor a certificate.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::pool::MAX_IDLE;
use super::{DialError, Io, Need, Offer, PoolKey, Upstreams, retry};
use crate::backoff;
use crate::config::plan::RouteIndex;
use crate::workload::Caller;

/// How old an idle connection may be and still count: what replaces it is there before it goes, also where TCP and
/// TLS take all of their usual deadlines (5 s each).
pub(super) const REFRESH: Duration = MAX_IDLE.saturating_sub(Duration::from_secs(10));

/// Pauses after a failure, the first and the longest. Nobody waits for this, and every worker of every node may
/// be at it: a manager that is down hears from each twice a minute.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// One that ends sooner than that and unused was not wanted: a server that refuses our certificate in TLS 1.3 says
/// so after the handshake, one that is full or keeps none idle closes. That counts as a failure. Longer than a
/// round trip with 2 s of injected delay.
const YOUNG: Duration = Duration::from_secs(5);

/// What one worker does about it.
#[derive(Default)]
pub(super) struct Warmth {
    /// By the route's name.
    routes: RefCell<HashMap<Arc<str>, Progress>>,
    dials: RefCell<JoinSet<()>>,
}

/// How a route's connections are doing.
struct Progress {
    key: Rc<PoolKey>,
    dialling: bool,
    failures: u32,
    next: Instant,
    /// The last one, until it is known to be good.
    made: Option<Made>,
}

struct Made {
    at: Instant,
    /// How many there were then.
    had: usize,
    /// How many requests had found one.
    hits: u64,
}

impl Upstreams {
    /// Begins to make the connections that the routes are to have and do not. Call it every second or so, on
    /// the newest generation alone.
    pub fn keep_warm(self: &Rc<Self>) {
        let now = Instant::now();
        for (index, route) in self.plan().routes.iter().enumerate() {
            let wanted = route.upstream.pool_warm;
            if wanted == 0 {
                continue;
            }
            // Without an identity there is nobody to be; the log says why.
            let Ok(key) = self.key(index, Caller::Agent, Need::Any) else { continue };
            if key.offer == Offer::Nothing {
                continue;
            }
            let (have, hits) = (self.have(&key, wanted, now), self.stats.pool_hits(index));
            if self.shared.warmth.is_due(&key, have, hits, now) && have < wanted {
                self.begin(index, key);
            }
        }
    }

    fn have(&self, key: &Rc<PoolKey>, wanted: usize, now: Instant) -> usize {
        // One of HTTP/2 carries what many of HTTP/1.1 do.
        if self.shared.links.is_warm(key, now) {
            return wanted;
        }
        self.shared.pool.borrow().fresh(key, now)
    }

    fn begin(self: &Rc<Self>, route: RouteIndex, key: Rc<PoolKey>) {
        let warmth = &self.shared.warmth;
        warmth.change(&key, |progress| progress.dialling = true);
        let upstreams = self.clone();
        warmth.dials.borrow_mut().spawn_local(async move {
            let failed = upstreams.rota().run(None, upstreams.make(route, &key)).await.err();
            let now = Instant::now();
            let wanted = upstreams.plan().routes[route].upstream.pool_warm;
            let (had, hits) = (upstreams.have(&key, wanted, now), upstreams.stats.pool_hits(route));
            upstreams.shared.warmth.change(&key, |progress| {
                progress.dialling = false;
                match failed {
                    None => progress.made = Some(Made { at: now, had, hits }),
                    Some(error) => {
                        let (reason, detail) = (error.reason.code(), error.detail);
                        tracing::debug!(route = &*key.route, reason, detail, "no connection ahead of use");
                        progress.failed(now);
                    }
                }
            });
        });
    }

    async fn make(&self, route: RouteIndex, key: &Rc<PoolKey>) -> Result<(), DialError> {
        let plan = &self.plan().routes[route];
        let end = Instant::now() + retry::deadline(plan);
        let made = match key.offer {
            // Another than those that are there.
            Offer::Http2 => {
                let newest = self.shared.links.newest();
                Box::pin(self.dial_shared(route, key.clone(), Some(newest), end)).await?
            }
            Offer::Http1 | Offer::Nothing => Box::pin(self.dial_tls(route, key.clone(), end)).await?,
        };
        match made.io {
            Io::Tls(_) => {
                self.shared.pool.borrow_mut().keep(made, plan.upstream.pool_idle, Instant::now());
            }
            // The connection stays; what ends is the stream that was not opened.
            Io::H2(_) | Io::Plain(_) => {}
        }
        Ok(())
    }
}

impl Warmth {
    /// Whether it is time for a dial, where one is wanted.
    fn is_due(&self, key: &Rc<PoolKey>, have: usize, hits: u64, now: Instant) -> bool {
        let mut routes = self.routes.borrow_mut();
        let progress = routes.entry(key.route.clone()).or_insert_with(|| Progress::new(key, now));
        if progress.dialling {
            return false;
        }
        if progress.key != *key {
            // What failed for the former generation says nothing of this one.
            *progress = Progress::new(key, now);
        }
        progress.look(have, hits, now);
        now >= progress.next
    }

    fn change(&self, key: &Rc<PoolKey>, change: impl FnOnce(&mut Progress)) {
        if let Some(progress) = self.routes.borrow_mut().get_mut(&key.route) {
            change(progress);
        }
    }

    /// Forgets routes that are gone, and dials that have ended.
    pub(super) fn sweep(&self, live: impl Fn(&PoolKey) -> bool) {
        while self.dials.borrow_mut().try_join_next().is_some() {}
        self.routes.borrow_mut().retain(|_, progress| progress.dialling || live(&progress.key));
    }
}

impl Progress {
    fn new(key: &Rc<PoolKey>, now: Instant) -> Self {
        Self { key: key.clone(), dialling: false, failures: 0, next: now, made: None }
    }

    /// What has become of the last one that was made.
    fn look(&mut self, have: usize, hits: u64, now: Instant) {
        let Some(made) = &self.made else { return };
        if hits != made.hits || now.duration_since(made.at) >= YOUNG {
            self.failures = 0;
            self.made = None;
        } else if have < made.had {
            self.made = None;
            self.failed(now);
        }
    }

    fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.next = now + backoff::pause(RETRY.0, RETRY.1, self.failures);
    }
}
