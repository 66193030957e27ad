//! Which names are looked up when, and which addresses follow from it. No I/O; time is an argument.
//!
//! What errs towards capturing: an address that a name no longer resolves to stays for a grace time,
//! because connections and caches of pods still know it; a name that stops resolving keeps all it
//! had. Only a positive answer without the address, older than the grace time, ends a capture.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::DesiredDestination;
use crate::config::plan::{AddrRange, Plan, RouteIndex, Target};

/// Pause before a name that failed is looked up again: first, doubling, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// The least pause between two look-ups that succeed, should TTL and Plan both allow none.
const LEAST: Duration = Duration::from_secs(1);

/// The destinations of a Plan, and what their names stand for.
#[derive(Debug)]
pub struct NameTable {
    literals: Vec<(AddrRange, RouteIndex)>,
    names: Vec<Name>,
    grace: Duration,
    max_ttl: Duration,
    started: Instant,
}

#[derive(Debug)]
struct Name {
    name: Arc<str>,
    wanted_by: Vec<(u16, RouteIndex)>,
    /// What it resolves to.
    current: Vec<IpAddr>,
    /// What it no longer resolves to, and until when that is captured.
    leaving: Vec<(IpAddr, Instant)>,
    lookup: Lookup,
    /// In a row.
    failures: u32,
}

/// How a destination's name is doing.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct NameState {
    /// The name.
    pub name: String,
    /// What it resolves to; none while it never has.
    pub addresses: Vec<IpAddr>,
    /// What it no longer resolves to and is still captured for a while.
    pub leaving: Vec<IpAddr>,
    /// Look-ups that failed, in a row.
    pub failures: u32,
    /// The words of the last one, while there is any.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lookup {
    Due(Instant),
    UnderWay,
}

impl NameTable {
    /// Every name is due at once.
    pub fn new(plan: &Plan, now: Instant) -> Self {
        let mut table = Self {
            literals: Vec::new(),
            names: Vec::new(),
            grace: plan.resolver.grace,
            max_ttl: plan.resolver.max_ttl,
            started: now,
        };
        for (route, facts) in plan.routes.iter().enumerate() {
            for destination in &facts.destinations {
                match &destination.target {
                    Target::Net(net) => {
                        table.literals.push((AddrRange { net: *net, port: destination.port }, route));
                    }
                    Target::Name(name) => table.entry(name, now).wanted_by.push((destination.port, route)),
                }
            }
        }
        table
    }

    /// Goes on with another Plan. Names that both have keep what is known of them, so that nothing is let
    /// go for the time of a look-up; names and addresses that the new one does not list are gone at once.
    pub fn replan(&mut self, plan: &Plan, now: Instant) {
        let before = std::mem::replace(self, Self::new(plan, now));
        self.started = before.started;
        for known in before.names {
            if let Some(name) = self.names.iter_mut().find(|name| name.name == known.name) {
                *name = Name { wanted_by: std::mem::take(&mut name.wanted_by), ..known };
            }
        }
    }

    fn entry(&mut self, name: &Arc<str>, now: Instant) -> &mut Name {
        let index = self.names.iter().position(|entry| entry.name == *name).unwrap_or_else(|| {
            self.names.push(Name {
                name: name.clone(),
                wanted_by: Vec::new(),
                current: Vec::new(),
                leaving: Vec::new(),
                lookup: Lookup::Due(now),
                failures: 0,
            });
            self.names.len() - 1
        });
        &mut self.names[index]
    }

    /// The names to look up now. Each is then under way until [`NameTable::resolved`] or
    /// [`NameTable::failed`] says what came of it.
    pub fn take_due(&mut self, now: Instant) -> Vec<Arc<str>> {
        let due = self.names.iter_mut().filter(|name| matches!(name.lookup, Lookup::Due(at) if at <= now));
        due.map(|name| {
            name.lookup = Lookup::UnderWay;
            name.name.clone()
        })
        .collect()
    }

    /// When [`NameTable::take_due`], [`NameTable::desired`] or [`NameTable::is_complete`] may next say
    /// something else; `None`: not before a look-up that is under way ends.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let lookups = self.names.iter().filter_map(|name| match name.lookup {
            Lookup::Due(at) => Some(at),
            Lookup::UnderWay => None,
        });
        let leaving = self.names.iter().flat_map(|name| &name.leaving).map(|(_, until)| *until);
        let complete = (!self.is_complete(now)).then_some(self.started + self.grace);
        lookups.chain(leaving.filter(|until| *until > now)).chain(complete).min()
    }

    /// A look-up succeeded. True if that ends an outage.
    pub fn resolved(&mut self, name: &str, addrs: &[IpAddr], valid_until: Instant, now: Instant) -> bool {
        let (grace, max_ttl) = (self.grace, self.max_ttl.max(LEAST));
        let Some(entry) = self.names.iter_mut().find(|entry| *entry.name == *name) else { return false };
        let gone = std::mem::replace(&mut entry.current, addrs.to_vec());
        entry.leaving.retain(|(addr, until)| *until > now && !addrs.contains(addr));
        entry
            .leaving
            .extend(gone.into_iter().filter(|addr| !addrs.contains(addr)).map(|addr| (addr, now + grace)));
        entry.lookup = Lookup::Due(valid_until.clamp(now + LEAST, now + max_ttl));
        std::mem::take(&mut entry.failures) > 0
    }

    /// A look-up failed; the name keeps what it had. True if that begins an outage.
    pub fn failed(&mut self, name: &str, now: Instant) -> bool {
        let Some(entry) = self.names.iter_mut().find(|entry| *entry.name == *name) else { return false };
        let pause = BACKOFF.0.saturating_mul(1 << entry.failures.min(16)).min(BACKOFF.1);
        entry.lookup = Lookup::Due(now + pause);
        entry.failures = entry.failures.saturating_add(1);
        entry.failures == 1
    }

    /// The files that say how names are resolved have changed: every name is due.
    pub fn all_due(&mut self, now: Instant) {
        for name in &mut self.names {
            if let Lookup::Due(at) = &mut name.lookup {
                *at = now;
            }
        }
    }

    /// What has to be captured now, in the order of addresses.
    pub fn desired(&self, now: Instant) -> Vec<DesiredDestination> {
        let mut routes: BTreeMap<AddrRange, BTreeSet<RouteIndex>> = BTreeMap::new();
        for (at, route) in &self.literals {
            routes.entry(*at).or_default().insert(*route);
        }
        for name in &self.names {
            let leaving = name.leaving.iter().filter(|(_, until)| *until > now).map(|(addr, _)| addr);
            for addr in name.current.iter().chain(leaving) {
                for (port, route) in &name.wanted_by {
                    let at = AddrRange::host(SocketAddr::new(*addr, *port));
                    routes.entry(at).or_default().insert(*route);
                }
            }
        }
        // The kernel finds the most specific entry alone: it stands for the wider ones, too.
        let wide: Vec<_> = routes
            .iter()
            .filter(|(at, _)| at.single().is_none())
            .map(|(at, routes)| (*at, routes.clone()))
            .collect();
        for (at, routes) in &mut routes {
            let around = wide.iter().filter(|(other, _)| other.port == at.port && other.net.holds(&at.net));
            routes.extend(around.flat_map(|(_, routes)| routes));
        }
        let desired = routes.into_iter();
        desired.map(|(at, routes)| DesiredDestination { at, routes: routes.into_iter().collect() }).collect()
    }

    /// Whether what [`NameTable::desired`] does not list may be given up. Not while a name has never
    /// resolved: what stands in the kernel from an earlier run may be its addresses. After the grace
    /// time they are too old to be believed.
    pub fn is_complete(&self, now: Instant) -> bool {
        now >= self.started + self.grace || self.pending().next().is_none()
    }

    /// The names that have never resolved.
    pub fn pending(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter().filter(|name| name.current.is_empty()).map(|name| &name.name)
    }

    /// How many names' last look-up failed.
    pub fn failing(&self) -> usize {
        self.names.iter().filter(|name| name.failures > 0).count()
    }

    /// Each name, for people.
    pub fn status(&self) -> Vec<NameState> {
        let state = |name: &Name| NameState {
            name: name.name.to_string(),
            addresses: name.current.clone(),
            leaving: name.leaving.iter().map(|(addr, _)| *addr).collect(),
            failures: name.failures,
            error: None,
        };
        self.names.iter().map(state).collect()
    }

    /// Whether there is any name at all.
    pub fn has_names(&self) -> bool {
        !self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::plan;
    use super::*;
    use crate::config::plan::Enforcement;

    const GRACE: Duration = Duration::from_secs(60);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn shown(table: &NameTable, now: Instant) -> Vec<String> {
        table.desired(now).iter().map(|one| format!("{} {:?}", one.at, one.routes)).collect()
    }

    #[test]
    fn literals_are_there_at_once_and_routes_that_share_an_address_are_put_together() {
        let now = Instant::now();
        let plan = plan(&[
            (&["10.0.0.1:80", "[::ffff:10.0.0.2]:80", "a.test:80"], Enforcement::Loose),
            (&["10.0.0.1:80", "10.0.0.1:81", "b.test:80"], Enforcement::Strict),
        ]);
        let mut table = NameTable::new(&plan, now);
        let literals = ["10.0.0.1:80 [0, 1]", "10.0.0.1:81 [1]", "10.0.0.2:80 [0]"];
        assert_eq!(shown(&table, now), literals);
        assert_eq!(table.take_due(now), ["a.test".into(), Arc::from("b.test")]);
        table.resolved("b.test", &[ip("10.0.0.2")], now + secs(60), now);
        assert_eq!(shown(&table, now)[2], "10.0.0.2:80 [0, 1]");
        assert_eq!(table.pending().map(|name| &**name).collect::<Vec<_>>(), ["a.test"]);
    }

    #[test]
    fn what_lies_in_a_range_has_the_ranges_routes_too() {
        let now = Instant::now();
        let routes: &[(&[&str], Enforcement)] = &[
            (&["10.0.0.0/8:80", "10.0.0.0/8:81"], Enforcement::Strict),
            (&["10.0.0.1:80", "10.1.0.0/16:80", "11.0.0.1:80"], Enforcement::Loose),
        ];
        let expected = [
            "10.0.0.0/8:80 [0]",
            "10.0.0.0/8:81 [0]",
            "10.0.0.1:80 [0, 1]",
            "10.1.0.0/16:80 [0, 1]",
            "11.0.0.1:80 [1]",
        ];
        assert_eq!(shown(&NameTable::new(&plan(routes), now), now), expected);
    }

    #[test]
    fn a_name_with_several_ports_is_looked_up_once() {
        let now = Instant::now();
        let mut table = NameTable::new(&plan(&[(&["a.test:80", "a.test:81"], Enforcement::Loose)]), now);
        assert_eq!(table.take_due(now).len(), 1);
        table.resolved("a.test", &[ip("fd00::1")], now + secs(60), now);
        assert_eq!(shown(&table, now), ["[fd00::1]:80 [0]", "[fd00::1]:81 [0]"]);
    }

    #[test]
    fn an_address_that_disappeared_stays_for_the_grace_time_unless_it_comes_back() {
        let now = Instant::now();
        let mut table = NameTable::new(&plan(&[(&["a.test:80"], Enforcement::Loose)]), now);
        table.resolved("a.test", &[ip("10.0.0.1")], now + secs(10), now);
        let moved = now + secs(10);
        table.resolved("a.test", &[ip("10.0.0.2")], moved + secs(300), moved);
        let both = ["10.0.0.1:80 [0]", "10.0.0.2:80 [0]"];
        assert_eq!(shown(&table, moved), both);
        assert_eq!(shown(&table, moved + GRACE - secs(1)), both);
        assert_eq!(table.next_due(moved), Some(moved + GRACE), "the moment at which it goes");
        assert_eq!(shown(&table, moved + GRACE), ["10.0.0.2:80 [0]"]);

        let back = moved + secs(20);
        table.resolved("a.test", &[ip("10.0.0.1"), ip("10.0.0.2")], back + secs(300), back);
        assert_eq!(shown(&table, moved + GRACE + secs(1)), both);
    }

    #[test]
    fn another_plan_keeps_what_is_known_of_the_names_it_has_too() {
        let now = Instant::now();
        let before = plan(&[(&["10.0.0.9:80", "a.test:80", "b.test:80"], Enforcement::Loose)]);
        let mut table = NameTable::new(&before, now);
        table.take_due(now);
        table.resolved("a.test", &[ip("10.0.0.1")], now + secs(60), now);
        table.resolved("b.test", &[ip("10.0.0.2")], now + secs(60), now);
        table.replan(
            &plan(&[(&["c.test:80"], Enforcement::Loose), (&["a.test:81"], Enforcement::Strict)]),
            now,
        );
        assert_eq!(shown(&table, now), ["10.0.0.1:81 [1]"]);
        assert_eq!(table.take_due(now), [Arc::from("c.test")], "what is known is not asked for again");
        table.resolved("b.test", &[ip("10.0.0.2")], now + secs(60), now);
        assert_eq!(shown(&table, now).len(), 1, "a look-up that ends too late adds nothing");
    }

    #[test]
    fn a_name_that_fails_later_keeps_its_addresses_however_long_it_takes() {
        let now = Instant::now();
        let mut table = NameTable::new(&plan(&[(&["a.test:80"], Enforcement::Strict)]), now);
        table.resolved("a.test", &[ip("10.0.0.1")], now + secs(10), now);
        assert!(table.failed("a.test", now + secs(10)), "the outage begins");
        assert!(!table.failed("a.test", now + secs(11)), "and goes on");
        assert_eq!(table.failing(), 1);
        let later = now + secs(86_400);
        assert_eq!(shown(&table, later), ["10.0.0.1:80 [0]"]);
        assert_eq!(table.pending().count(), 0);
        assert!(table.resolved("a.test", &[ip("10.0.0.1")], later + secs(60), later), "and ends");
        assert!(!table.resolved("a.test", &[ip("10.0.0.1")], later + secs(60), later));
        assert_eq!(table.failing(), 0);
    }

    #[test]
    fn failures_are_retried_after_half_a_second_and_at_most_half_a_minute() {
        let now = Instant::now();
        let mut table = NameTable::new(&plan(&[(&["a.test:80"], Enforcement::Loose)]), now);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            table.take_due(now + secs(3600));
            assert!(matches!(table.names[0].lookup, Lookup::UnderWay));
            table.failed("a.test", now);
            let Lookup::Due(at) = table.names[0].lookup else { panic!() };
            pauses.push(at.duration_since(now).as_millis());
        }
        assert_eq!(pauses[..7], [500, 1000, 2000, 4000, 8000, 16_000, 30_000]);
        assert!(pauses[7..].iter().all(|pause| *pause == 30_000));
    }

    #[test]
    fn a_look_up_comes_when_the_answer_ends_and_never_in_a_tight_loop() {
        let now = Instant::now();
        let mut table = NameTable::new(&plan(&[(&["a.test:80"], Enforcement::Loose)]), now);
        assert_eq!(table.next_due(now), Some(now));
        table.take_due(now);
        assert_eq!(table.next_due(now), Some(now + GRACE), "under way; only completeness can change");
        table.resolved("a.test", &[ip("10.0.0.1")], now + secs(30), now);
        assert_eq!(table.next_due(now), Some(now + secs(30)));
        assert!(table.take_due(now + secs(29)).is_empty());
        table.resolved("a.test", &[ip("10.0.0.1")], now, now);
        assert_eq!(table.next_due(now), Some(now + LEAST));
        table.resolved("a.test", &[ip("10.0.0.1")], now + secs(1_000_000), now);
        assert_eq!(table.next_due(now), Some(now + secs(300)), "the Plan's longest");
        table.all_due(now);
        assert_eq!(table.take_due(now).len(), 1);
    }

    #[test]
    fn nothing_is_given_up_while_a_name_has_never_resolved_within_the_grace_time() {
        let now = Instant::now();
        let mut table = NameTable::new(&plan(&[(&["a.test:80", "b.test:80"], Enforcement::Loose)]), now);
        assert!(!table.is_complete(now));
        table.resolved("a.test", &[ip("10.0.0.1")], now + secs(60), now);
        table.failed("b.test", now);
        assert!(!table.is_complete(now));
        assert!(table.is_complete(now + GRACE));
        table.resolved("b.test", &[ip("10.0.0.2")], now + secs(60), now);
        assert!(table.is_complete(now));
        let literals = NameTable::new(&plan(&[(&["10.0.0.1:80"], Enforcement::Loose)]), now);
        assert!(literals.is_complete(now) && !literals.has_names());
        assert_eq!(literals.next_due(now), None);
    }
}
