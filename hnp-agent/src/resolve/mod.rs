//! Names to addresses, as the node itself would find them: hosts file, search list, ndots, and the
//! records' TTL.
//!
//! Two rooms ask: `upstream` before it dials, on each worker, and [`keep_in_step`], which tells the
//! kernel what a destination's name stands for. Both files are read again when they change, without
//! a restart. A name that cannot be resolved is [`ResolveError::NotFound`] only where a server said
//! so; a server that fails or keeps silent is [`ResolveError::Failed`], so that nobody mistakes an
//! outage for an answer.

mod ask;
mod keep;
pub mod schedule;
mod settings;
#[cfg(test)]
mod testing;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::plan::{self, AddrRange, Host, RouteIndex};
pub use keep::{Desired, NameStatus, keep_in_step};
pub use schedule::NameState;
pub use settings::SettingsError;
use settings::{Files, Settings};

/// How often the files are looked at, at most.
const CHECK_FILES: Duration = Duration::from_secs(1);

/// Addresses that capture has to know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredDestination {
    /// What pods dial.
    pub at: AddrRange,
    /// The routes whose destinations stand for it now, in the order of the Plan. Never empty. An address
    /// has the routes of all ranges it lies in, too.
    pub routes: Vec<RouteIndex>,
}

/// What a host stands for now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolved {
    /// Never empty, no address twice, none v4-mapped; IPv4 first, else as the server ordered them.
    pub addrs: Vec<IpAddr>,
    /// When to ask again: the shortest TTL on the way, within the Plan's limits.
    pub valid_until: Instant,
}

/// Why a host has no address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResolveError {
    /// The name does not exist, or exists without an address.
    #[error("no such name, or a name without an address")]
    NotFound,
    /// No server gave an answer: SERVFAIL, silence, or none is configured. With the words for people.
    #[error("{0}")]
    Failed(String),
}

/// Resolves names for one runtime: its connections to name servers live on the runtime that first
/// used them. Clones share one cache.
#[derive(Clone, Debug)]
pub struct Resolver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: plan::Resolver,
    /// Where name servers listen: 53, but for tests, as resolv.conf cannot say otherwise.
    port: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    files: Files,
    settings: Arc<Settings>,
    /// Grows with every change of the files.
    generation: u64,
    checked: Instant,
    /// By name. Bounded by the Plan: nobody resolves names that a client wrote.
    cache: HashMap<Arc<str>, Resolved>,
}

impl Resolver {
    /// Reads both files. One that does not exist is an empty one.
    ///
    /// # Errors
    /// When a file exists and cannot be read.
    pub fn new(plan: &plan::Resolver) -> Result<Self, SettingsError> {
        Self::with_port(plan, 53)
    }

    fn with_port(plan: &plan::Resolver, port: u16) -> Result<Self, SettingsError> {
        let files = Files::read(plan)?;
        let state = State {
            settings: Arc::new(Settings::parse(&files, plan, port)),
            files,
            generation: 1,
            checked: Instant::now(),
            cache: HashMap::new(),
        };
        Ok(Self { shared: Arc::new(Shared { plan: plan.clone(), port, state: Mutex::new(state) }) })
    }

    /// The resolver for another Plan; `None` where this one does what it says. Should its files not be
    /// readable after all, this one goes on.
    pub fn replaced_by(&self, plan: &plan::Resolver) -> Option<Self> {
        if self.shared.plan == *plan {
            return None;
        }
        match Self::with_port(plan, self.shared.port) {
            Ok(new) => Some(new),
            Err(error) => {
                tracing::warn!(%error, "names are resolved as before");
                None
            }
        }
    }

    /// The host's addresses, IPv4 and IPv6. From memory while the last answer is valid; a name in the
    /// hosts file never reaches a server, and an address stands for itself.
    ///
    /// Takes up to 2 s per name server and attempt; put a deadline of your own around it.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub async fn lookup(&self, host: &Host) -> Result<Resolved, ResolveError> {
        self.find(host, true).await
    }

    /// The same for a name that a client wrote: the answer is not remembered, or clients could fill the
    /// memory with names.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub async fn lookup_once(&self, host: &Host) -> Result<Resolved, ResolveError> {
        self.find(host, false).await
    }

    async fn find(&self, host: &Host, remember: bool) -> Result<Resolved, ResolveError> {
        let now = Instant::now();
        let plan = &self.shared.plan;
        let name = match host {
            Host::Addr(addr) => {
                return Ok(Resolved { addrs: vec![addr.to_canonical()], valid_until: now + plan.max_ttl });
            }
            Host::Name(name) => name,
        };
        let settings = {
            let mut state = self.current(now);
            if let Some(addrs) = state.settings.hosts.get(&**name) {
                return Ok(Resolved { addrs: addrs.clone(), valid_until: now + plan.max_ttl });
            }
            match state.cache.get(name) {
                Some(known) if known.valid_until > now => return Ok(known.clone()),
                Some(_) => drop(state.cache.remove(name)),
                None => {}
            }
            state.settings.clone()
        };

        let answer = settings.ask(name).await?;
        let now = Instant::now();
        let ttl = if answer.partial { Duration::ZERO } else { answer.ttl };
        let valid_until = now + ttl.min(plan.max_ttl).max(plan.min_ttl);
        let resolved = Resolved { addrs: answer.addrs, valid_until };
        if !remember {
            return Ok(resolved);
        }
        let mut state = self.current(now);
        if Arc::ptr_eq(&state.settings, &settings) {
            state.cache.insert(name.clone(), resolved.clone());
        }
        Ok(resolved)
    }

    /// A number that grows when hosts file or resolv.conf changed: what was resolved before may be
    /// wrong. Looks at the files, at most once a second.
    pub fn generation(&self) -> u64 {
        self.current(Instant::now()).generation
    }

    /// The state, after a look at the files if one is due.
    fn current(&self, now: Instant) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.checked) >= CHECK_FILES {
            state.checked = now;
            if state.files.reread(&self.shared.plan) {
                state.settings = Arc::new(Settings::parse(&state.files, &self.shared.plan, self.shared.port));
                state.generation += 1;
                state.cache.clear();
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Answer, Dns, Node, eventually, name};
    use super::*;

    #[tokio::test]
    async fn both_families_are_found_once_each_and_unmapped() {
        let dns = Dns::start();
        dns.set("m.test.", Answer::addrs(300, &["10.0.0.2", "10.0.0.1", "10.0.0.2"]));
        dns.add("m.test.", Answer::addrs(300, &["fd00::1", "::ffff:10.0.0.1", "::ffff:10.0.0.3"]));
        let node = Node::new(&dns);
        let found = node.resolver().lookup(&name("m.test")).await.unwrap();
        let addrs: Vec<String> = found.addrs.iter().map(IpAddr::to_string).collect();
        assert_eq!(addrs, ["10.0.0.2", "10.0.0.1", "fd00::1", "10.0.0.3"]);
    }

    #[tokio::test]
    async fn names_that_clients_write_are_not_remembered() {
        let dns = Dns::start();
        dns.set("m.test.", Answer::addrs(300, &["10.0.0.1"]));
        let node = Node::new(&dns);
        let resolver = node.resolver();
        for _ in 0..2 {
            assert_eq!(resolver.lookup_once(&name("m.test")).await.unwrap().addrs.len(), 1);
        }
        assert_eq!(dns.asked("m.test."), 4, "each time, for both families");
        resolver.lookup(&name("m.test")).await.unwrap();
        resolver.lookup_once(&name("m.test")).await.unwrap();
        assert_eq!(dns.asked("m.test."), 6, "what is known anyhow is used");
    }

    #[tokio::test]
    async fn ttl_is_honoured_within_the_plans_limits() {
        let dns = Dns::start();
        for (host, ttl) in [("short.test.", 0), ("fits.test.", 60), ("long.test.", 86_400)] {
            dns.set(host, Answer::addrs(ttl, &["10.0.0.1"]));
        }
        let mut node = Node::new(&dns);
        node.plan.min_ttl = Duration::from_secs(5);
        node.plan.max_ttl = Duration::from_secs(300);
        let resolver = node.resolver();
        for (host, expected) in [("short.test", 5), ("fits.test", 60), ("long.test", 300)] {
            let found = resolver.lookup(&name(host)).await.unwrap();
            let left = found.valid_until.duration_since(Instant::now()).as_secs_f64();
            let expected = f64::from(expected);
            assert!((expected - 3.0..=expected).contains(&left), "{host}: {left} s instead of {expected}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_asked_for_again_when_its_ttl_is_over_and_not_before() {
        let dns = Dns::start();
        dns.set("m.test.", Answer::addrs(1, &["10.0.0.1"]));
        let node = Node::new(&dns);
        let resolver = node.resolver();
        let first = resolver.lookup(&name("m.test")).await.unwrap();
        dns.set("m.test.", Answer::addrs(300, &["10.0.0.9"]));
        assert_eq!(resolver.lookup(&name("m.test")).await.unwrap(), first);
        assert_eq!(dns.asked("m.test."), 2, "one query per family so far");
        eventually("the new address", async || {
            let now = Instant::now();
            let found = resolver.lookup(&name("m.test")).await.unwrap();
            let changed = found.addrs == ["10.0.0.9".parse::<IpAddr>().unwrap()];
            assert!(!changed || now >= first.valid_until, "changed before the TTL was over");
            changed
        })
        .await;
    }

    #[tokio::test]
    async fn a_name_that_is_not_there_and_a_server_that_fails_are_different_things() {
        let dns = Dns::start();
        dns.set("nodata.test.", Answer::NoData);
        dns.set("servfail.test.", Answer::ServFail);
        dns.set("silent.test.", Answer::Silence);
        let node = Node::new(&dns);
        let resolver = node.resolver();
        assert_eq!(resolver.lookup(&name("nx.test")).await, Err(ResolveError::NotFound));
        assert_eq!(resolver.lookup(&name("nodata.test")).await, Err(ResolveError::NotFound));
        let (servfail, silent) = (name("servfail.test"), name("silent.test"));
        let (servfail, silent) = tokio::join!(resolver.lookup(&servfail), resolver.lookup(&silent));
        assert!(
            matches!(&servfail, Err(ResolveError::Failed(why)) if why.contains("127.0.0.1")),
            "{servfail:?}"
        );
        assert!(matches!(silent, Err(ResolveError::Failed(_))), "{silent:?}");
        // Not remembered: as soon as the server is well again, so is the name.
        dns.set("silent.test.", Answer::addrs(60, &["10.0.0.1"]));
        assert!(resolver.lookup(&name("silent.test")).await.is_ok());
    }

    #[tokio::test]
    async fn one_family_that_fails_does_not_hide_the_other_and_is_asked_again_soon() {
        let dns = Dns::start();
        dns.set("m.test.", Answer::addrs(300, &["10.0.0.1"]));
        dns.add("m.test.", Answer::Aaaa(Box::new(Answer::Silence)));
        let mut node = Node::new(&dns);
        node.plan.min_ttl = Duration::from_secs(1);
        let began = Instant::now();
        let found = node.resolver().lookup(&name("m.test")).await.unwrap();
        assert_eq!(found.addrs.len(), 1);
        assert!(began.elapsed() < Duration::from_secs(2), "waited {:?} for a silent AAAA", began.elapsed());
        assert!(found.valid_until < Instant::now() + Duration::from_secs(2));
    }

    #[tokio::test]
    async fn ndots_decides_whether_the_search_list_or_the_name_itself_comes_first() {
        let dns = Dns::start();
        dns.set("manager.", Answer::addrs(60, &["10.0.0.1"]));
        dns.set("manager.two.test.", Answer::addrs(60, &["10.0.0.2"]));
        dns.set("a.b.", Answer::addrs(60, &["10.0.0.3"]));
        dns.set("a.b.two.test.", Answer::addrs(60, &["10.0.0.4"]));
        dns.set("only.searched.two.test.", Answer::addrs(60, &["10.0.0.5"]));
        dns.set("broken.one.test.", Answer::ServFail);
        dns.set("broken.two.test.", Answer::addrs(60, &["10.0.0.6"]));
        let node = Node::new(&dns);
        let resolve = async |ndots: u8, host: &str| {
            node.write_resolv_conf(&format!(
                "nameserver 127.0.0.1\nsearch one.test two.test\noptions ndots:{ndots}\n"
            ));
            node.resolver().lookup(&name(host)).await.map(|found| found.addrs[0].to_string())
        };
        assert_eq!(resolve(1, "manager").await.unwrap(), "10.0.0.2");
        assert_eq!(resolve(0, "manager").await.unwrap(), "10.0.0.1");
        assert_eq!(resolve(1, "a.b").await.unwrap(), "10.0.0.3");
        assert_eq!(resolve(2, "a.b").await.unwrap(), "10.0.0.4");
        assert_eq!(resolve(1, "only.searched").await.unwrap(), "10.0.0.5");
        assert_eq!(resolve(1, "broken").await.unwrap(), "10.0.0.6", "SERVFAIL of one domain is not the end");
        dns.set("broken.two.test.", Answer::NxDomain);
        assert!(matches!(resolve(1, "broken").await, Err(ResolveError::Failed(_))), "nor is it `not found`");
    }

    #[tokio::test]
    async fn a_server_that_refuses_or_is_not_there_is_passed_over() {
        let dns = Dns::start();
        let refusing = Dns::start_on("127.0.0.2", dns.port());
        refusing.set("m.test.", Answer::Refused);
        dns.set("m.test.", Answer::addrs(60, &["10.0.0.1"]));
        let node = Node::new(&dns);
        node.write_resolv_conf("nameserver 127.0.0.2\nnameserver 127.0.0.3\nnameserver 127.0.0.1\n");
        let found = node.resolver().lookup(&name("m.test")).await.unwrap();
        assert_eq!(found.addrs, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(refusing.asked("m.test.") > 0, "the first server was asked first");
    }

    #[tokio::test]
    async fn an_answer_too_large_for_udp_is_fetched_over_tcp_whole() {
        let dns = Dns::start();
        let many: Vec<String> = (1..=100).map(|n| format!("10.0.1.{n}")).collect();
        dns.set("m.test.", Answer::addrs(60, &many.iter().map(String::as_str).collect::<Vec<_>>()));
        let node = Node::new(&dns);
        let found = node.resolver().lookup(&name("m.test")).await.unwrap();
        assert_eq!(found.addrs.len(), 100);
    }

    #[tokio::test]
    async fn the_hosts_file_wins_and_is_read_again_when_it_changes() {
        let dns = Dns::start();
        dns.set("m.test.", Answer::addrs(60, &["10.0.0.1"]));
        let node = Node::new(&dns);
        node.write_hosts(
            "# managers\n10.9.9.1 other M.Test. # the one\n::ffff:10.9.9.2 m.test\nnonsense m.test\n",
        );
        let resolver = node.resolver();
        let found = resolver.lookup(&name("m.test")).await.unwrap();
        let addrs: Vec<String> = found.addrs.iter().map(IpAddr::to_string).collect();
        assert_eq!(
            (addrs.as_slice(), dns.asked("m.test.")),
            (&["10.9.9.1".into(), "10.9.9.2".into()][..], 0)
        );

        let before = resolver.generation();
        node.write_hosts("10.9.9.3 m.test\n");
        eventually("the new hosts file", async || {
            resolver.lookup(&name("m.test")).await.unwrap().addrs == ["10.9.9.3".parse::<IpAddr>().unwrap()]
        })
        .await;
        assert!(resolver.generation() > before);
        std::fs::remove_file(&node.plan.hosts).unwrap();
        eventually("DNS", async || {
            resolver.lookup(&name("m.test")).await.unwrap().addrs == ["10.0.0.1".parse::<IpAddr>().unwrap()]
        })
        .await;
    }

    #[tokio::test]
    async fn resolv_conf_is_read_again_and_none_at_all_is_a_failure_that_says_so() {
        let dns = Dns::start();
        dns.set("m.test.", Answer::addrs(60, &["10.0.0.1"]));
        let node = Node::new(&dns);
        std::fs::remove_file(&node.plan.resolv_conf).unwrap();
        let resolver = node.resolver();
        match resolver.lookup(&name("m.test")).await {
            Err(ResolveError::Failed(why)) => assert!(why.contains("resolv.conf"), "{why}"),
            other => panic!("{other:?}"),
        }
        node.write_resolv_conf("nameserver 127.0.0.1\n");
        eventually("the new name server", async || resolver.lookup(&name("m.test")).await.is_ok()).await;
    }

    #[tokio::test]
    async fn an_address_stands_for_itself() {
        let dns = Dns::start();
        let node = Node::new(&dns);
        let resolver = node.resolver();
        let host = Host::Addr("192.0.2.1".parse().unwrap());
        let found = resolver.lookup(&host).await.unwrap();
        assert_eq!(found.addrs, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let dns = Dns::start();
        let mut node = Node::new(&dns);
        node.plan.hosts = node.plan.hosts.parent().unwrap().to_owned();
        let error = Resolver::new(&node.plan).unwrap_err().to_string();
        assert!(error.contains(node.plan.hosts.to_str().unwrap()), "{error}");
    }
}
