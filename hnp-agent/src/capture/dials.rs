//! Who goes direct although the destination is one: counted by the kernel, named by the agent.

use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapError};
use hnp_common::layout::{self, PodDestination};

use super::destinations::Destinations;
use super::error::CaptureError;
use crate::clock::monotonic_ns;
use crate::config::plan::AddrRange;

/// One workload's dials to one destination that went direct.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dials {
    /// What was dialled.
    pub destination: AddrRange,
    /// The names of the routes it belongs to.
    pub routes: Vec<Arc<str>>,
    /// The pod's cgroup.
    pub pod_id: u64,
    /// Cgroup of the task that called last.
    pub cgroup_id: u64,
    /// Its ancestors one and two levels below the attached cgroup; 0 where there is none.
    pub ancestor_ids: [u64; 2],
    /// How often.
    pub count: u64,
    /// How long ago the last time was.
    pub age: Duration,
}

/// One of the kernel's maps of them.
pub(super) struct DialsMap {
    name: &'static str,
    map: HashMap<MapData, PodDestination, layout::Dials>,
}

impl DialsMap {
    pub(super) fn new(name: &'static str, map: Map) -> Result<Self, CaptureError> {
        let map = HashMap::try_from(map);
        Ok(Self { name, map: map.map_err(|source| CaptureError::Map { doing: "open", map: name, source })? })
    }

    /// The highest number of a destination that is counted for; 0 without one.
    pub(super) fn last_id(&self) -> Result<u32, CaptureError> {
        let mut ids = self.map.keys().map(|key| key.map(|key| key.destination));
        ids.try_fold(0, |last, id| id.map(|id| id.max(last))).map_err(|source| self.unreadable(source))
    }

    /// All that is known of destinations that still are ones of routes.
    pub(super) fn all(&self, destinations: &Destinations) -> Result<Vec<Dials>, CaptureError> {
        let (now, by_id) = (monotonic_ns(), destinations.by_id());
        let mut all = Vec::new();
        for entry in self.map.iter() {
            let (key, seen) = entry.map_err(|source| self.unreadable(source))?;
            let Some((destination, routes)) = by_id.get(&key.destination) else { continue };
            all.push(Dials {
                destination: *destination,
                routes: routes.clone(),
                pod_id: key.pod_id,
                cgroup_id: seen.cgroup_id,
                ancestor_ids: seen.ancestor_ids,
                count: seen.count,
                age: Duration::from_nanos(now.saturating_sub(seen.last_ns)),
            });
        }
        Ok(all)
    }

    fn unreadable(&self, source: MapError) -> CaptureError {
        CaptureError::Map { doing: "read", map: self.name, source }
    }
}
