//! Keeps what is captured in step with what names resolve to: the thin shell around [`NameTable`].
//!
//! Literal addresses are handed out at once, names as they resolve, each on its own schedule, so that
//! one silent name server does not hold up the others. What cannot be applied is tried again.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::schedule::{NameState, NameTable};
use super::{CHECK_FILES, DesiredDestination, ResolveError, Resolved, Resolver};
use crate::config::plan::{Capture, Host};
use crate::generation::Generation;
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;
use crate::telemetry::readiness::{Pending, Readiness};

/// Pause before a set that could not be applied is tried again: first, doubling, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What has to be captured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Desired {
    /// All of it, in the order of addresses.
    pub destinations: Vec<DesiredDestination>,
    /// False while a name has not resolved since the agent started: what an earlier run left in the
    /// kernel and is not listed must then stay, for it may be that name's addresses. True when all
    /// have, and after the Plan's grace time.
    pub complete: bool,
    /// What the routes of the destinations are counted in.
    pub generation: Arc<Generation>,
}

/// How the names are doing, for the gauges.
#[derive(Debug, Default)]
pub struct NameStatus {
    pending: AtomicUsize,
    failing: AtomicUsize,
    names: Mutex<Vec<NameState>>,
}

impl NameStatus {
    /// Each name, in the order of the Plan.
    pub fn names(&self) -> Vec<NameState> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<NameState>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `hnp_names_pending` and `hnp_names_failing`; for [`crate::telemetry::Telemetry::register`].
    pub fn write(&self, out: &mut Exposition<'_, '_>) {
        out.single(&names::NAMES_PENDING, self.pending.load(Relaxed) as u64);
        out.single(&names::NAMES_FAILING, self.failing.load(Relaxed) as u64);
    }
}

/// Calls `on_change` with the whole desired set: at once, and whenever it or the generation changes, until
/// `cancel`.
/// An error of `on_change` is logged, holds readiness down and has it called again.
///
/// Holds readiness down as `name <name>` for every name that has never resolved. Names that fail
/// later keep their addresses.
pub async fn keep_in_step<E: Display>(
    mut generations: watch::Receiver<Arc<Generation>>,
    mut resolver: Resolver,
    readiness: Readiness,
    status: Arc<NameStatus>,
    on_change: impl FnMut(Desired) -> Result<(), E>,
    cancel: CancellationToken,
) {
    let generation = generations.borrow_and_update().clone();
    let mut keeper = Keeper {
        table: NameTable::new(&generation.plan, Instant::now()),
        generation,
        guards: HashMap::new(),
        unfit: HashMap::new(),
        errors: HashMap::new(),
        readiness: &readiness,
    };
    keeper.guard_names();
    let mut publisher = Publisher { on_change, published: None, guard: None, retry: None };
    let mut known_files = resolver.generation();
    let mut lookups = JoinSet::new();
    loop {
        let now = Instant::now();
        let files = resolver.generation();
        if files != known_files {
            known_files = files;
            keeper.table.all_due(now);
        }
        for name in keeper.table.take_due(now) {
            let resolver = resolver.clone();
            lookups.spawn(async move {
                let found = resolver.lookup(&Host::Name(name.clone())).await;
                (name, found)
            });
        }
        publisher.publish(keeper.desired(now), &readiness, now);
        status.pending.store(keeper.guards.len(), Relaxed);
        status.failing.store(keeper.table.failing(), Relaxed);
        *status.lock() = keeper.status();

        let files = keeper.table.has_names().then_some(now + CHECK_FILES);
        let wake = [keeper.table.next_due(now), publisher.retry_at(), files].into_iter().flatten().min();
        // All of them are cancel-safe: join_next takes a result only when it returns it.
        tokio::select! {
            () = cancel.cancelled() => return,
            Ok(()) = generations.changed() => {
                let next = generations.borrow_and_update().clone();
                if let Some(new) = resolver.replaced_by(&next.plan.resolver) {
                    resolver = new;
                    keeper.table.all_due(Instant::now());
                }
                keeper.follow(next, Instant::now());
            }
            Some(done) = lookups.join_next() => match done {
                Ok((name, found)) => keeper.take(&name, found, Instant::now()),
                // Not aborted by anybody: it panicked. Its name must not be lost for that.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
        }
    }
}

/// The table, and what people are told about it.
struct Keeper<'a> {
    table: NameTable,
    generation: Arc<Generation>,
    /// By name that has never resolved.
    guards: HashMap<Arc<str>, Pending>,
    /// By name: addresses that were left out and logged.
    unfit: HashMap<Arc<str>, Vec<IpAddr>>,
    /// By name whose last look-up failed: why.
    errors: HashMap<Arc<str>, String>,
    readiness: &'a Readiness,
}

impl Keeper<'_> {
    fn desired(&self, now: Instant) -> Desired {
        Desired {
            destinations: self.table.desired(now),
            complete: self.table.is_complete(now),
            generation: self.generation.clone(),
        }
    }

    fn status(&self) -> Vec<NameState> {
        let mut names = self.table.status();
        for name in &mut names {
            name.error = self.errors.get(&*name.name).cloned();
        }
        names
    }

    /// Goes on with another generation.
    fn follow(&mut self, generation: Arc<Generation>, now: Instant) {
        self.table.replan(&generation.plan, now);
        self.generation = generation;
        self.guard_names();
    }

    /// Holds readiness down for the names that have never resolved, and for no others.
    fn guard_names(&mut self) {
        let pending: Vec<_> = self.table.pending().cloned().collect();
        self.guards.retain(|name, _| pending.contains(name));
        for name in pending {
            let guard = || self.readiness.pending(format!("name {name}"), "not resolved yet");
            self.guards.entry(name.clone()).or_insert_with(guard);
        }
    }

    fn take(&mut self, name: &Arc<str>, found: Result<Resolved, ResolveError>, now: Instant) {
        let found = found.map_err(|error| error.to_string()).and_then(|found| self.fit(name, found));
        match found {
            Ok(found) => {
                if self.table.resolved(name, &found.addrs, found.valid_until, now) {
                    tracing::info!(%name, addrs = ?found.addrs, "name of a destination resolves again");
                }
                self.guards.remove(name);
                self.errors.remove(name);
            }
            Err(why) => {
                self.errors.insert(name.clone(), why.clone());
                if let Some(guard) = self.guards.get(name) {
                    guard.because(why.clone());
                }
                if self.table.failed(name, now) {
                    let keeps = !self.guards.contains_key(name);
                    tracing::warn!(%name, why, keeps_addresses = keeps, ready = self.readiness.is_ready(), "name of a destination does not resolve");
                }
            }
        }
    }

    /// Leaves out addresses that cannot be a destination: whoever controls the name's records could
    /// otherwise have every pod's own loopback, or the VIPs, redirected.
    fn fit(&mut self, name: &Arc<str>, mut found: Resolved) -> Result<Resolved, String> {
        let (fit, unfit): (Vec<_>, Vec<_>) =
            found.addrs.into_iter().partition(|addr| is_destination(*addr, &self.generation.plan.capture));
        if unfit.is_empty() {
            self.unfit.remove(name);
        } else if self.unfit.get(name) != Some(&unfit) {
            tracing::warn!(%name, addrs = ?unfit, "name of a destination resolves to addresses that cannot be captured (loopback, multicast, unspecified or a VIP); left out");
            self.unfit.insert(name.clone(), unfit.clone());
        }
        if fit.is_empty() {
            return Err(format!("resolves to nothing that can be captured: {unfit:?}"));
        }
        found.addrs = fit;
        Ok(found)
    }
}

fn is_destination(addr: IpAddr, capture: &Capture) -> bool {
    let broadcast = matches!(addr, IpAddr::V4(addr) if addr.is_broadcast());
    let vip = capture.vips4.contains(addr) || capture.vips6.contains(addr);
    !(addr.is_loopback() || addr.is_unspecified() || addr.is_multicast() || broadcast || vip)
}

/// Hands sets out, and remembers which one was taken.
struct Publisher<F> {
    on_change: F,
    published: Option<Desired>,
    /// Held while the last set could not be applied.
    guard: Option<Pending>,
    retry: Option<(Instant, Duration)>,
}

impl<F> Publisher<F> {
    fn publish<E: Display>(&mut self, desired: Desired, readiness: &Readiness, now: Instant)
    where
        F: FnMut(Desired) -> Result<(), E>,
    {
        if self.published.as_ref() == Some(&desired) || self.retry.is_some_and(|(at, _)| at > now) {
            return;
        }
        match (self.on_change)(desired.clone()) {
            Ok(()) => {
                self.published = Some(desired);
                self.guard = None;
                self.retry = None;
            }
            Err(error) => {
                self.published = None;
                let why = error.to_string();
                match &self.guard {
                    Some(guard) => guard.because(why),
                    None => {
                        tracing::error!(%error, "destinations could not be applied; trying again");
                        self.guard = Some(readiness.pending("destinations", why));
                    }
                }
                let pause = self.retry.map_or(RETRY.0, |(_, pause)| (pause * 2).min(RETRY.1));
                self.retry = Some((now + pause, pause));
            }
        }
    }

    fn retry_at(&self) -> Option<Instant> {
        self.retry.map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::super::testing::{Answer, Dns, Node, eventually, plan};
    use super::*;
    use crate::config::plan::Enforcement;

    /// The loop, running, and the sets it handed out.
    struct Running {
        sets: Arc<Mutex<Vec<Desired>>>,
        readiness: Readiness,
        status: Arc<NameStatus>,
        cancel: CancellationToken,
        task: tokio::task::JoinHandle<()>,
        generations: watch::Sender<Arc<Generation>>,
    }

    impl Running {
        #[expect(clippy::disallowed_methods, reason = "a test has no parent for its tasks")]
        fn start(node: &Node, destinations: &[&str]) -> Self {
            let mut plan = plan(&[(destinations, Enforcement::Loose)]);
            plan.resolver = node.plan.clone();
            let sets = Arc::new(Mutex::new(Vec::new()));
            let (readiness, status) = (Readiness::new(), Arc::new(NameStatus::default()));
            let cancel = CancellationToken::new();
            let for_task = Arc::clone(&sets);
            let on_change = move |set| {
                for_task.lock().unwrap().push(set);
                Ok::<_, Infallible>(())
            };
            let (generations, receiver) = watch::channel(Generation::for_test(1, plan));
            let task = tokio::spawn(keep_in_step(
                receiver,
                node.resolver(),
                readiness.clone(),
                Arc::clone(&status),
                on_change,
                cancel.clone(),
            ));
            Self { sets, readiness, status, cancel, task, generations }
        }

        /// As a reload does.
        fn replan(&self, node: &Node, destinations: &[&str]) {
            let mut plan = plan(&[(destinations, Enforcement::Loose)]);
            plan.resolver = node.plan.clone();
            let number = self.generations.borrow().number + 1;
            self.generations.send_replace(Generation::for_test(number, plan));
        }

        fn last(&self) -> Option<(Vec<String>, bool)> {
            let sets = self.sets.lock().unwrap();
            let last = sets.last()?;
            Some((last.destinations.iter().map(|one| one.at.to_string()).collect(), last.complete))
        }

        async fn until(&self, addrs: &[&str], complete: bool) {
            eventually(&format!("{addrs:?}"), async || {
                self.last() == Some((addrs.iter().map(|addr| (*addr).to_owned()).collect(), complete))
            })
            .await;
        }

        async fn end(self) {
            self.cancel.cancel();
            self.task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn literals_come_at_once_names_when_they_resolve_and_readiness_says_which_is_missing() {
        let dns = Dns::start();
        dns.set("slow.test.", Answer::ServFail);
        dns.set("good.test.", Answer::addrs(300, &["10.0.0.2"]));
        let node = Node::new(&dns);
        let run = Running::start(&node, &["10.0.0.1:80", "good.test:80", "slow.test:80"]);
        run.until(&["10.0.0.1:80", "10.0.0.2:80"], false).await;
        {
            let sets = run.sets.lock().unwrap();
            assert_eq!(sets[0].destinations.len(), 1, "the literal did not wait: {:?}", sets[0]);
        }
        eventually("the guard's words", async || {
            matches!(&run.readiness.conditions()[..], [(name, why)] if name == "name slow.test" && why.contains("127.0.0.1"))
        })
        .await;
        assert_eq!(run.status.pending.load(Relaxed), 1);

        dns.set("slow.test.", Answer::addrs(300, &["10.0.0.3"]));
        run.until(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], true).await;
        assert!(run.readiness.is_ready());
        eventually("the gauge", async || run.status.pending.load(Relaxed) == 0).await;
        run.end().await;
    }

    #[tokio::test]
    async fn a_changed_record_is_followed_after_its_ttl_and_an_outage_changes_nothing() {
        let dns = Dns::start();
        dns.set("m.test.", Answer::addrs(1, &["10.0.0.1"]));
        let mut node = Node::new(&dns);
        node.plan.grace = Duration::from_secs(2);
        let run = Running::start(&node, &["m.test:80"]);
        run.until(&["10.0.0.1:80"], true).await;
        dns.set("m.test.", Answer::addrs(1, &["10.0.0.2"]));
        run.until(&["10.0.0.1:80", "10.0.0.2:80"], true).await;
        run.until(&["10.0.0.2:80"], true).await;

        dns.set("m.test.", Answer::NxDomain);
        eventually("the outage", async || run.status.failing.load(Relaxed) == 1).await;
        let asked = dns.asked("m.test.");
        eventually("another attempt", async || dns.asked("m.test.") > asked).await;
        assert_eq!(run.last(), Some((vec!["10.0.0.2:80".to_owned()], true)));
        assert!(run.readiness.is_ready(), "a name that has resolved once does not take readiness away");
        dns.set("m.test.", Answer::addrs(300, &["10.0.0.2"]));
        eventually("the recovery", async || run.status.failing.load(Relaxed) == 0).await;
        run.end().await;
    }

    #[tokio::test]
    async fn a_new_hosts_file_is_followed_without_waiting_for_the_ttl() {
        let dns = Dns::start();
        dns.set("m.test.", Answer::addrs(300, &["10.0.0.1"]));
        let mut node = Node::new(&dns);
        node.plan.grace = Duration::ZERO;
        let run = Running::start(&node, &["m.test:80"]);
        run.until(&["10.0.0.1:80"], true).await;
        node.write_hosts("10.9.9.9 m.test\n");
        run.until(&["10.9.9.9:80"], true).await;
        run.end().await;
    }

    #[tokio::test]
    async fn another_generation_adds_and_removes_and_never_lets_go_of_what_stays() {
        let dns = Dns::start();
        dns.set("stays.test.", Answer::addrs(300, &["10.0.0.1"]));
        dns.set("goes.test.", Answer::ServFail);
        dns.set("comes.test.", Answer::addrs(300, &["10.0.0.3"]));
        let node = Node::new(&dns);
        let run = Running::start(&node, &["stays.test:80", "goes.test:80", "10.0.0.9:80"]);
        run.until(&["10.0.0.1:80", "10.0.0.9:80"], false).await;
        run.replan(&node, &["comes.test:80", "stays.test:80"]);
        run.until(&["10.0.0.1:80", "10.0.0.3:80"], true).await;
        assert!(run.readiness.is_ready(), "nobody waits for a name that is not in the configuration");
        let sets = run.sets.lock().unwrap().clone();
        assert!(sets.iter().all(|set| set.destinations.iter().any(|one| one.at.port == 80)));
        let new: Vec<_> = sets.iter().filter(|set| set.generation.number == 2).collect();
        let kept = |set: &&Desired| set.destinations.iter().any(|one| one.at.to_string() == "10.0.0.1:80");
        assert!(new.iter().all(kept), "{new:?}");
        run.end().await;
    }

    #[tokio::test]
    async fn addresses_no_destination_can_have_are_left_out() {
        let dns = Dns::start();
        dns.set(
            "some.test.",
            Answer::addrs(300, &["127.0.0.1", "10.0.0.1", "169.254.77.3", "::1", "224.0.0.1"]),
        );
        dns.set("none.test.", Answer::addrs(300, &["0.0.0.0", "::ffff:127.0.0.1", "fd00:77::1"]));
        let node = Node::new(&dns);
        let run = Running::start(&node, &["some.test:80", "none.test:80"]);
        run.until(&["10.0.0.1:80"], false).await;
        eventually("the guard's words", async || {
            matches!(&run.readiness.conditions()[..], [(name, why)] if name == "name none.test" && why.contains("127.0.0.1"))
        })
        .await;
        run.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_cannot_be_applied_is_tried_again_and_holds_readiness_down() {
        let plan = plan(&[(&["10.0.0.1:80"], Enforcement::Loose)]);
        let (_generations, receiver) = watch::channel(Generation::for_test(1, plan));
        let dns = Dns::start();
        let readiness = Readiness::new();
        let cancel = CancellationToken::new();
        let mut calls = Vec::new();
        let on_change = |desired: Desired| {
            calls.push(Instant::now());
            assert_eq!(desired.destinations.len(), 1);
            match calls.len() {
                4 => cancel.cancel(),
                _ => assert_eq!(readiness.is_ready(), calls.len() == 1),
            }
            if calls.len() < 4 { Err("the map is full") } else { Ok(()) }
        };
        let node = Node::new(&dns);
        let resolver = node.resolver();
        let status = Arc::new(NameStatus::default());
        keep_in_step(receiver, resolver, readiness.clone(), status, on_change, cancel.clone()).await;
        assert!(readiness.is_ready());
        let pauses: Vec<_> = calls.windows(2).map(|two| (two[1] - two[0]).as_millis() / 100 * 100).collect();
        assert_eq!(pauses, [500, 1000, 2000]);
    }
}
