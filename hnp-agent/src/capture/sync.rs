//! Keeps two tables in step: what the kernel redirects, and what each VIP stands for in the agent.
//!
//! The order is the promise: the agent knows a VIP before the kernel sends anybody there, and forgets
//! it after the kernel stopped. Only this file writes either table.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use aya::maps::{HashMap as KernelMap, Map, MapData, MapError};
use hnp_common::layout::{Destination, DestinationKey};

use super::error::CaptureError;
use super::pins;
use super::vips::VipPool;
use crate::config::plan::{self, RouteIndex};
use crate::proxy::flow::{SharedVipTable, VipEntry, VipTable};
use crate::resolve::{Desired, DesiredDestination};

/// What is captured at the moment.
pub(super) struct Destinations {
    kernel: KernelMap<MapData, DestinationKey, Destination>,
    vips4: VipPool,
    vips6: VipPool,
    captured: HashMap<SocketAddr, Captured>,
    last_id: u32,
    published: SharedVipTable,
}

#[derive(Clone, Debug)]
struct Captured {
    vip: IpAddr,
    id: u32,
    strict: bool,
    /// Empty for what a former agent captured, until it is desired: nobody is served there yet.
    routes: Vec<RouteIndex>,
}

impl Destinations {
    pub(super) fn new(
        map: Map,
        plan: &plan::Capture,
        published: SharedVipTable,
    ) -> Result<Self, CaptureError> {
        Ok(Self {
            kernel: KernelMap::try_from(map).map_err(|source| error("open", source))?,
            vips4: VipPool::new(plan.vips4),
            vips6: VipPool::new(plan.vips6),
            captured: HashMap::new(),
            last_id: 0,
            published,
        })
    }

    /// Captures what a dead agent captured, with the same VIPs where they are still in the ranges:
    /// nothing is open between its end and the first [`Destinations::sync`], and no connection under
    /// way reaches another destination.
    pub(super) fn inherit(&mut self, bpffs: &Path) -> Result<(), CaptureError> {
        let pin = pins::map_pin(bpffs, "DESTINATIONS");
        if !pin.exists() {
            return Ok(());
        }
        let Some(former) = open_same_shape(&pin).map_err(|source| error("read a former agent's", source))?
        else {
            tracing::warn!(pin = %pin.display(), "a former agent's destinations have another form; left behind");
            return Ok(());
        };
        let mut without_vip = Vec::new();
        for entry in former.iter() {
            let (key, value) = entry.map_err(|source| error("read a former agent's", source))?;
            let address = SocketAddr::new(key.address.into(), u16::from_be(key.port));
            let vip = IpAddr::from(value.vip);
            self.last_id = self.last_id.max(value.id);
            if self.pool(address).reserve(vip, address) {
                self.adopt(address, vip, value)?;
            } else {
                without_vip.push((address, value));
            }
        }
        // Only once the others have theirs: a new one must not be one of those.
        for (address, value) in without_vip {
            let vip = self.assign(address)?;
            self.adopt(address, vip, value)?;
        }
        Ok(())
    }

    fn adopt(&mut self, address: SocketAddr, vip: IpAddr, former: Destination) -> Result<(), CaptureError> {
        let captured = Captured { vip, id: former.id, strict: former.strict != 0, routes: Vec::new() };
        self.captured.insert(address, captured);
        self.capture(address).map_err(|source| error("insert into", source))
    }

    /// How many addresses are captured.
    pub(super) fn len(&self) -> usize {
        self.captured.len()
    }

    /// As [`Capture::sync`](super::Capture::sync).
    pub(super) fn sync(&mut self, desired: &Desired) -> Result<(), CaptureError> {
        // The first failure is reported; the rest is done all the same.
        let mut outcome = Ok(());
        let complete = desired.complete;
        let desired: HashMap<SocketAddr, &DesiredDestination> =
            desired.destinations.iter().map(|desired| (desired.addr, desired)).collect();

        let mut changed = Vec::new();
        for (address, desired) in &desired {
            match self.prepare(*address, desired) {
                Ok(true) => changed.push(*address),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        self.publish();

        for address in changed {
            if let Err(source) = self.capture(address) {
                self.forget(address);
                outcome = outcome.and(Err(error("insert into", source)));
            }
        }
        // Inherited and not yet desired: it may be the address of a name that has not resolved yet.
        let stays = |captured: &Captured| !complete && captured.routes.is_empty();
        let gone: Vec<_> = self
            .captured
            .iter()
            .filter(|(address, captured)| !desired.contains_key(*address) && !stays(captured))
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            match self.kernel.remove(&key(address)) {
                Ok(()) | Err(MapError::KeyNotFound) => self.forget(address),
                // Still redirected: then it must still be known here.
                Err(source) => outcome = outcome.and(Err(error("remove from", source))),
            }
        }
        self.publish();
        outcome
    }

    /// Makes room for a destination here; `true`: the kernel must hear of it.
    fn prepare(&mut self, address: SocketAddr, desired: &DesiredDestination) -> Result<bool, CaptureError> {
        if let Some(captured) = self.captured.get_mut(&address) {
            let strict_changed = captured.strict != desired.strict;
            captured.strict = desired.strict;
            captured.routes.clone_from(&desired.routes);
            return Ok(strict_changed);
        }
        if self.vips4.contains(address.ip()) || self.vips6.contains(address.ip()) {
            return Err(CaptureError::DestinationIsVip(address));
        }
        let vip = self.assign(address)?;
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let captured =
            Captured { vip, id: self.last_id, strict: desired.strict, routes: desired.routes.clone() };
        self.captured.insert(address, captured);
        Ok(true)
    }

    fn assign(&mut self, address: SocketAddr) -> Result<IpAddr, CaptureError> {
        let pool = self.pool(address);
        pool.assign(address).ok_or_else(|| CaptureError::VipsExhausted {
            range: super::written(pool.range()),
            key: if address.is_ipv4() { "vips4" } else { "vips6" },
            destination: address,
            in_use: pool.in_use(),
        })
    }

    fn capture(&mut self, address: SocketAddr) -> Result<(), MapError> {
        let Some(captured) = self.captured.get(&address) else { return Ok(()) };
        let value = Destination {
            vip: captured.vip.into(),
            id: captured.id,
            strict: captured.strict.into(),
            pad: [0; 3],
        };
        self.kernel.insert(key(address), value, 0)
    }

    fn forget(&mut self, address: SocketAddr) {
        if let Some(captured) = self.captured.remove(&address) {
            self.pool(address).release(captured.vip);
        }
    }

    fn publish(&self) {
        let served = self.captured.iter().filter(|(_, captured)| !captured.routes.is_empty());
        let entries = served
            .map(|(address, captured)| {
                (captured.vip, VipEntry { destination: *address, routes: captured.routes.clone() })
            })
            .collect();
        self.published.store(Arc::new(VipTable { entries }));
    }

    fn pool(&mut self, address: SocketAddr) -> &mut VipPool {
        if address.is_ipv4() { &mut self.vips4 } else { &mut self.vips6 }
    }
}

/// Opens a pinned map, if it is made of the same keys and values: a pin itself says nothing of that.
fn open_same_shape(pin: &Path) -> Result<Option<KernelMap<MapData, DestinationKey, Destination>>, MapError> {
    let data = MapData::from_pin(pin)?;
    let info = data.info()?;
    let same = info.key_size() as usize == size_of::<DestinationKey>()
        && info.value_size() as usize == size_of::<Destination>();
    if !same {
        return Ok(None);
    }
    KernelMap::try_from(Map::from_map_data(data)?).map(Some)
}

fn key(address: SocketAddr) -> DestinationKey {
    DestinationKey::tcp(address.ip(), address.port())
}

fn error(doing: &'static str, source: MapError) -> CaptureError {
    CaptureError::Map { doing, map: "DESTINATIONS", source }
}
