//! Remembers over restarts which VIPs rest, and since when. A map that no program reads.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError, MapType};
use hnp_common::layout::{Address, MAX_DESTINATIONS, RestingVip};

use super::error::CaptureError;
use super::sys;
use crate::config::plan::{AddrRange, Cidr};

/// The map's name below the pins.
pub(super) const MAP: &str = "RESTING_VIPS";
const MAX_ENTRIES: u32 = MAX_DESTINATIONS;

/// Opens a former agent's map, or makes one if there is none of this shape; `true`: it is new.
pub(super) fn open_or_make(pin: &Path) -> Result<(OwnedFd, bool), CaptureError> {
    let opened = || -> Result<(OwnedFd, bool), MapError> {
        let (key, value) = (size_of::<Address>(), size_of::<RestingVip>());
        if let Some(former) = sys::open_pin(pin).map_err(MapError::IoError)? {
            let info = MapData::from_fd(former.try_clone().map_err(MapError::IoError)?)?.info()?;
            if (info.key_size() as usize, info.value_size() as usize) == (key, value) {
                return Ok((former, false));
            }
        }
        let made = sys::create_map("hnp_resting", MapType::Hash as u32, key, value, MAX_ENTRIES);
        Ok((made.map_err(MapError::IoError)?, true))
    };
    opened().map_err(|source| CaptureError::Map { doing: "open", map: MAP, source })
}

/// VIPs that stood for a destination not long ago.
pub(super) struct RestingVips {
    map: HashMap<MapData, Address, RestingVip>,
}

impl RestingVips {
    pub(super) fn new(map: Map) -> Result<Self, CaptureError> {
        let map = HashMap::try_from(map);
        Ok(Self { map: map.map_err(|source| CaptureError::Map { doing: "open", map: MAP, source })? })
    }

    /// Each with what it stood for and until when, CLOCK_MONOTONIC in nanoseconds; longest ago first.
    pub(super) fn all(&self) -> Result<Vec<(IpAddr, AddrRange, u64)>, CaptureError> {
        let mut all = Vec::new();
        for entry in self.map.iter() {
            let (vip, resting) =
                entry.map_err(|source| CaptureError::Map { doing: "read", map: MAP, source })?;
            let addr = SocketAddr::new(resting.address.into(), u16::from_be(resting.port));
            let net = Cidr { addr: addr.ip(), prefix: resting.prefix };
            all.push((vip.into(), AddrRange { net, port: addr.port() }, resting.since_ns));
        }
        all.sort_by_key(|(_, _, since)| *since);
        Ok(all)
    }

    pub(super) fn insert(&mut self, vip: IpAddr, range: AddrRange, since_ns: u64) {
        let resting = RestingVip {
            address: range.net.addr.into(),
            port: range.port.to_be(),
            prefix: range.net.prefix,
            pad: [0; 5],
            since_ns,
        };
        note(self.map.insert(Address::from(vip), resting, 0), vip);
    }

    pub(super) fn remove(&mut self, vip: IpAddr) {
        match self.map.remove(&vip.into()) {
            Err(MapError::KeyNotFound) => {}
            other => note(other, vip),
        }
    }
}

/// What is not remembered is only missed if the agent restarts within minutes, and is refused by the
/// flow's own destination then.
fn note(outcome: Result<(), MapError>, vip: IpAddr) {
    if let Err(error) = outcome {
        tracing::debug!(%error, %vip, "cannot remember which VIPs rest");
    }
}
