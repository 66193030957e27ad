//! Keeps two tables in step: what the kernel redirects, and what each VIP stands for in the agent.
//!
//! The order is the promise: the agent knows a VIP before the kernel sends anybody there, and forgets
//! it after the kernel stopped. Only this room's tables write either.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap as KernelMap, LpmTrie, Map, MapData, MapError, lpm_trie};
use hnp_common::layout::{Destination, DestinationKey, NetworkKey, Settings};

use super::error::CaptureError;
use super::overrides::{self, Overrides, PodFacts};
use super::resting::RestingVips;
use super::status::DestinationStatus;
use super::vips::VipPool;
use crate::clock::monotonic_ns;
use crate::config::plan::{
    self, AddrRange, Cidr, Enforcement, Plan, PodTraits, PossibleEnforcement, RouteIndex,
};
use crate::generation::Generation;
use crate::proxy::flow::{SharedVipTable, VipEntry, VipTable};
use crate::resolve::{Desired, DesiredDestination};

/// The kernel's maps of destinations.
pub(super) struct KernelMaps {
    /// `DESTINATIONS`: single addresses.
    pub(super) hosts: Map,
    /// `NETWORKS`: ranges.
    pub(super) networks: Map,
    /// `SETTINGS`.
    pub(super) settings: Map,
    /// `OVERRIDES`.
    pub(super) overrides: Map,
    /// VIPs that rest, of no use to the programs.
    pub(super) resting: Map,
}

/// What is captured at the moment.
pub(super) struct Destinations {
    kernel: Kernel,
    overrides: Overrides,
    resting: RestingVips,
    vips4: VipPool,
    vips6: VipPool,
    captured: HashMap<AddrRange, Captured>,
    /// Not captured any more: connections that were on their way when it ended are served all the same.
    gone: Vec<(Instant, IpAddr, VipEntry)>,
    /// What was desired last is counted in.
    generation: Option<Arc<Generation>>,
    last_id: u32,
    published: SharedVipTable,
}

/// How long a VIP is known after the kernel stopped sending connections there: one may wait in the
/// listener's queue for its turn.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
struct Captured {
    vip: IpAddr,
    id: u32,
    /// What holds for a pod that nothing is known of.
    enforcement: Enforcement,
    /// What holds whoever dials.
    weakest: Enforcement,
    /// Some pods have another enforcement.
    overridden: bool,
    /// As far as this agent knows, the rules for pods are those that a former agent listed pods by.
    rules_are_old: bool,
    /// Empty for what a former agent captured, until it is desired: nobody is served there yet.
    routes: Vec<RouteIndex>,
    /// What the routes are counted in; `None` while there are none.
    generation: Option<Arc<Generation>>,
}

impl Destinations {
    /// Goes on with what the maps hold already: a former agent's destinations keep their VIPs where those
    /// are still in the ranges. So nothing is open between its end and the first
    /// [`Destinations::sync`], and no connection under way reaches another destination.
    ///
    /// `counted`: the highest number that dials are counted for.
    pub(super) fn new(
        maps: KernelMaps,
        plan: &plan::Capture,
        published: SharedVipTable,
        counted: u32,
    ) -> Result<Self, CaptureError> {
        let mut destinations = Self {
            kernel: Kernel::new(maps.hosts, maps.networks, maps.settings)?,
            overrides: Overrides::new(maps.overrides)?,
            resting: RestingVips::new(maps.resting)?,
            vips4: VipPool::new(plan.vips4),
            vips6: VipPool::new(plan.vips6),
            captured: HashMap::new(),
            gone: Vec::new(),
            generation: None,
            last_id: 0,
            published,
        };
        // A number that pods are still listed or counted for must not come to mean another destination.
        destinations.last_id = destinations.overrides.last_id().max(counted);
        destinations.inherit()?;
        Ok(destinations)
    }

    fn inherit(&mut self) -> Result<(), CaptureError> {
        for (vip, range, since) in self.resting.all()? {
            self.pool(range).rest(vip, range, since);
        }
        let mut without_vip = Vec::new();
        for (range, value) in self.kernel.all()? {
            let vip = IpAddr::from(value.vip);
            self.last_id = self.last_id.max(value.id);
            if self.pool(range).reserve(vip, range) {
                self.captured.insert(range, Captured::inherited(vip, &value));
            } else {
                without_vip.push((range, value));
            }
        }
        // Only once the others have theirs: a new one must not be one of those.
        for (range, value) in without_vip {
            let vip = self.assign(range)?;
            self.captured.insert(range, Captured::inherited(vip, &value));
            self.capture(range)?;
        }
        self.kernel.count_networks()
    }

    /// How many addresses and ranges are captured.
    pub(super) fn len(&self) -> usize {
        self.captured.len()
    }

    /// Whether pods are refused at any of them while no agent serves.
    pub(super) fn any_strict(&self) -> bool {
        self.captured.values().any(|captured| captured.enforcement == Enforcement::Strict)
    }

    /// What must never be reached directly, whoever dials it.
    pub(super) fn strict_for_all(&self) -> impl Iterator<Item = AddrRange> {
        let strict = self.captured.iter().filter(|(_, captured)| captured.weakest == Enforcement::Strict);
        strict.map(|(range, _)| *range)
    }

    /// Those that are known to belong to routes, by their numbers, with the names of these.
    pub(super) fn by_id(&self) -> HashMap<u32, (AddrRange, Vec<Arc<str>>)> {
        let known = self.captured.iter().filter(|(_, captured)| !captured.routes.is_empty());
        known.map(|(range, captured)| (captured.id, (*range, captured.route_names()))).collect()
    }

    /// All of them, with the names of their routes.
    pub(super) fn with_routes(&self) -> Vec<(AddrRange, Vec<Arc<str>>)> {
        self.captured.iter().map(|(range, captured)| (*range, captured.route_names())).collect()
    }

    /// All of them, for people.
    pub(super) fn all(&self) -> Vec<DestinationStatus> {
        let mut all: Vec<_> = self.captured.iter().collect();
        all.sort_by_key(|(range, _)| **range);
        let shown = |(range, captured): (&AddrRange, &Captured)| DestinationStatus {
            at: range.to_string(),
            vip: captured.vip.to_string(),
            enforcement: captured.enforcement.as_str(),
            weakest: captured.weakest.as_str(),
            routes: captured.route_names().iter().map(ToString::to_string).collect(),
        };
        all.into_iter().map(shown).collect()
    }

    /// Forgets what has been gone for long enough.
    pub(super) fn housekeep(&mut self) {
        let before = self.gone.len();
        self.gone.retain(|(since, ..)| since.elapsed() < ON_ITS_WAY);
        if self.gone.len() != before {
            self.publish();
        }
    }

    /// Whether there is somewhere to send everybody to whom the kernel redirects: not so for what was inherited
    /// and has not been desired yet.
    pub(super) fn all_known(&self) -> bool {
        self.generation.is_some() && self.captured.values().all(|captured| !captured.routes.is_empty())
    }

    /// As [`Capture::sync`](super::Capture::sync).
    pub(super) fn sync(&mut self, desired: &Desired) -> Result<(), CaptureError> {
        // The first failure is reported; the rest is done all the same.
        let mut outcome = Ok(());
        let complete = desired.complete;
        let generation = desired.generation.clone();
        self.gone.retain(|(since, ..)| since.elapsed() < ON_ITS_WAY);
        let desired: HashMap<AddrRange, &DesiredDestination> =
            desired.destinations.iter().map(|desired| (desired.at, desired)).collect();

        let mut changed = Vec::new();
        for (range, desired) in &desired {
            match self.prepare(&generation, *range, desired) {
                Ok(true) => changed.push(*range),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        self.generation = Some(generation.clone());
        self.publish();

        // Pods first: a pod that is to be let off must not be refused for a moment.
        outcome = outcome.and(self.apply_overrides());
        for range in changed {
            if let Err(error) = self.capture(range) {
                self.forget(range);
                outcome = outcome.and(Err(error));
            }
        }
        // Inherited and not yet desired: it may be the address of a name that has not resolved yet.
        let stays = |captured: &Captured| !complete && captured.routes.is_empty();
        let gone: Vec<_> = self
            .captured
            .iter()
            .filter(|(range, captured)| !desired.contains_key(*range) && !stays(captured))
            .map(|(range, _)| *range)
            .collect();
        for range in gone {
            match self.kernel.remove(range) {
                Ok(()) => self.forget(range),
                // Still redirected: then it must still be known here.
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        self.publish();
        outcome.and(self.kernel.count_networks())
    }

    /// Tells the kernel what holds for each of the pods that are known.
    pub(super) fn set_pods(&mut self, pods: Vec<PodFacts>) -> Result<(), CaptureError> {
        self.overrides.set_pods(pods);
        self.apply_overrides()
    }

    fn apply_overrides(&mut self) -> Result<(), CaptureError> {
        let overridden = self.captured.values().filter(|captured| captured.overridden);
        self.overrides.apply(overridden.map(|captured| overrides::Destination {
            id: captured.id,
            keeps_listed: captured.rules_are_old,
            enforcement: Box::new(|pod| captured.possible(pod)),
        }))
    }

    /// Makes room for a destination here; `true`: the kernel must hear of it.
    fn prepare(
        &mut self,
        generation: &Arc<Generation>,
        range: AddrRange,
        desired: &DesiredDestination,
    ) -> Result<bool, CaptureError> {
        let plan = &*generation.plan;
        let routes = || desired.routes.iter().map(|route| &plan.routes[*route]);
        let PossibleEnforcement { weakest, strictest: enforcement } =
            possible(plan, &desired.routes, PodTraits::default());
        let overridden = routes().any(|route| !route.overrides.is_empty());
        if let Some(captured) = self.captured.get_mut(&range) {
            let changed = (captured.enforcement, captured.overridden) != (enforcement, overridden);
            captured.rules_are_old &= captured.has_the_rules_of(plan, &desired.routes);
            captured.enforcement = enforcement;
            captured.weakest = weakest;
            captured.overridden = overridden;
            captured.routes.clone_from(&desired.routes);
            captured.generation = Some(generation.clone());
            return Ok(changed);
        }
        if [&self.vips4, &self.vips6].iter().any(|pool| pool.range().overlaps(&range.net)) {
            return Err(CaptureError::DestinationIsVip(range));
        }
        let vip = self.assign(range)?;
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let routes = desired.routes.clone();
        let (id, generation) = (self.last_id, Some(generation.clone()));
        let rules_are_old = false;
        let captured =
            Captured { vip, id, enforcement, weakest, overridden, rules_are_old, routes, generation };
        self.captured.insert(range, captured);
        Ok(true)
    }

    fn assign(&mut self, range: AddrRange) -> Result<IpAddr, CaptureError> {
        let now = monotonic_ns();
        let pool = self.pool(range);
        let vip = pool.assign(range, now).ok_or_else(|| CaptureError::VipsExhausted {
            range: pool.range().to_string(),
            key: if range.net.addr.is_ipv4() { "vips4" } else { "vips6" },
            destination: range,
            in_use: pool.in_use(),
            resting: pool.resting(),
        })?;
        self.resting.remove(vip);
        Ok(vip)
    }

    fn capture(&mut self, range: AddrRange) -> Result<(), CaptureError> {
        match self.captured.get(&range) {
            Some(captured) => self.kernel.insert(range, captured.value()),
            None => Ok(()),
        }
    }

    fn forget(&mut self, range: AddrRange) {
        if let Some(captured) = self.captured.remove(&range) {
            let now = monotonic_ns();
            self.pool(range).release(captured.vip, now);
            self.resting.insert(captured.vip, range, now);
            let since = Instant::now();
            self.gone.extend(captured.entry(range).map(|entry| (since, captured.vip, entry)));
        }
    }

    fn publish(&self) {
        let gone = self.gone.iter().map(|(_, vip, entry)| (*vip, entry.clone()));
        let captured = self
            .captured
            .iter()
            .filter_map(|(range, captured)| Some((captured.vip, captured.entry(*range)?)));
        // A VIP that was given to somebody else since is his.
        let entries = gone.chain(captured).collect();
        self.published.store(Arc::new(VipTable { generation: self.generation.clone(), entries }));
    }

    fn pool(&mut self, range: AddrRange) -> &mut VipPool {
        if range.net.addr.is_ipv4() { &mut self.vips4 } else { &mut self.vips6 }
    }
}

/// What may hold for a pod where routes share an address: the strictest of them.
fn possible(plan: &Plan, routes: &[RouteIndex], pod: PodTraits<'_>) -> PossibleEnforcement {
    let all = routes.iter().map(|route| plan.routes[*route].enforcement_for(pod));
    let stricter = |a: PossibleEnforcement, b: PossibleEnforcement| PossibleEnforcement {
        weakest: a.weakest.max(b.weakest),
        strictest: a.strictest.max(b.strictest),
    };
    all.reduce(stricter).unwrap_or(PossibleEnforcement::only(Enforcement::Strict))
}

impl Captured {
    /// Whoever a former agent let off is let off again once the routes are known: until then nobody
    /// but those whom `OVERRIDES` still lists.
    fn inherited(vip: IpAddr, value: &Destination) -> Self {
        let enforcement = overrides::enforcement(value.enforcement);
        let overridden = value.overridden != 0;
        let weakest = if overridden { Enforcement::Observe } else { enforcement };
        let (id, routes) = (value.id, Vec::new());
        let rules_are_old = true;
        Self { vip, id, enforcement, weakest, overridden, rules_are_old, routes, generation: None }
    }

    /// What may hold for a pod. The routes are those of the generation that was applied last, and not of a
    /// newer one; of what a former agent captured it is not known yet.
    fn possible(&self, pod: PodTraits<'_>) -> PossibleEnforcement {
        match &self.generation {
            Some(generation) => possible(&generation.plan, &self.routes, pod),
            None => PossibleEnforcement { weakest: Enforcement::Observe, strictest: Enforcement::Strict },
        }
    }

    /// Whether pods are told apart as they are now; also where that is not known.
    fn has_the_rules_of(&self, plan: &Plan, routes: &[RouteIndex]) -> bool {
        let Some(generation) = &self.generation else { return true };
        let rules = |plan: &Plan, routes: &[RouteIndex]| -> Vec<_> {
            routes
                .iter()
                .map(|route| &plan.routes[*route])
                .map(|r| (r.enforcement, r.overrides.clone()))
                .collect()
        };
        rules(&generation.plan, &self.routes) == rules(plan, routes)
    }

    fn route_names(&self) -> Vec<Arc<str>> {
        let plan = self.generation.as_ref().map(|generation| &generation.plan);
        let name = |route: &RouteIndex| plan.map(|plan| plan.routes[*route].name.clone());
        self.routes.iter().filter_map(name).collect()
    }

    /// What the agent has to know of it; `None`: nobody is served there yet.
    fn entry(&self, range: AddrRange) -> Option<VipEntry> {
        let generation = self.generation.clone()?;
        Some(VipEntry { destination: range, routes: self.routes.clone(), generation })
    }

    fn value(&self) -> Destination {
        Destination {
            vip: self.vip.into(),
            id: self.id,
            enforcement: overrides::number(self.enforcement),
            overridden: self.overridden.into(),
            pad: [0; 2],
            #[cfg(feature = "other-shape")]
            added: 0,
        }
    }
}

/// `DESTINATIONS`, `NETWORKS` and `SETTINGS`, as one table by range.
struct Kernel {
    hosts: KernelMap<MapData, DestinationKey, Destination>,
    networks: LpmTrie<MapData, NetworkKey, Destination>,
    settings: Array<MapData, Settings>,
}

impl Kernel {
    fn new(hosts: Map, networks: Map, settings: Map) -> Result<Self, CaptureError> {
        Ok(Self {
            hosts: KernelMap::try_from(hosts).map_err(error("open", "DESTINATIONS"))?,
            networks: LpmTrie::try_from(networks).map_err(error("open", "NETWORKS"))?,
            settings: Array::try_from(settings).map_err(error("open", "SETTINGS"))?,
        })
    }

    fn all(&self) -> Result<Vec<(AddrRange, Destination)>, CaptureError> {
        let mut all = Vec::new();
        for entry in self.hosts.iter() {
            let (key, value) = entry.map_err(error("read", "DESTINATIONS"))?;
            let net = Cidr::host(key.address.into());
            all.push((AddrRange { net, port: u16::from_be(key.port) }, value));
        }
        for entry in self.networks.iter() {
            let (key, value) = entry.map_err(error("read", "NETWORKS"))?;
            let (bits, key) = (key.prefix_len(), key.data());
            let addr = IpAddr::from(key.address);
            let before = NetworkKey::BITS_BEFORE_ADDRESS + if addr.is_ipv4() { 96 } else { 0 };
            let prefix = u8::try_from(bits.saturating_sub(before)).unwrap_or(u8::MAX);
            all.push((AddrRange { net: Cidr { addr, prefix }, port: u16::from_be(key.port) }, value));
        }
        Ok(all)
    }

    fn insert(&mut self, range: AddrRange, value: Destination) -> Result<(), CaptureError> {
        match range.single() {
            Some(addr) => {
                let key = DestinationKey::tcp(addr.ip(), addr.port());
                self.hosts.insert(key, value, 0).map_err(error("insert into", "DESTINATIONS"))
            }
            None => {
                self.networks.insert(&network(range), value, 0).map_err(error("insert into", "NETWORKS"))?;
                // At once: the programs must not overlook the first one.
                self.count_networks()
            }
        }
    }

    /// What is not there is as good as removed.
    fn remove(&mut self, range: AddrRange) -> Result<(), CaptureError> {
        let (removed, map) = match range.single() {
            Some(addr) => (self.hosts.remove(&DestinationKey::tcp(addr.ip(), addr.port())), "DESTINATIONS"),
            None => (self.networks.remove(&network(range)), "NETWORKS"),
        };
        match removed {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(gone)) if gone.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(source) => Err(error("remove from", map)(source)),
        }
    }

    /// Has the programs look at `NETWORKS` while there is anything in it.
    fn count_networks(&mut self) -> Result<(), CaptureError> {
        let mut networks = 0;
        for key in self.networks.keys() {
            key.map_err(error("read", "NETWORKS"))?;
            networks += 1;
        }
        let settings = Settings { networks, reserved: [0; 3] };
        self.settings.set(0, settings, 0).map_err(error("insert into", "SETTINGS"))
    }
}

fn network(range: AddrRange) -> lpm_trie::Key<NetworkKey> {
    let (bits, key) = NetworkKey::tcp(range.net.addr, range.net.prefix, range.port);
    lpm_trie::Key::new(bits, key)
}

fn error(doing: &'static str, map: &'static str) -> impl Fn(MapError) -> CaptureError {
    move |source| CaptureError::Map { doing, map, source }
}
