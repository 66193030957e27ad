//! Who dials observed destinations: counted by the kernel, named by the agent.

use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapError};
use hnp_common::layout::{self, PodDestination};

use super::destinations::Destinations;
use super::error::CaptureError;
use crate::clock::monotonic_ns;
use crate::config::plan::AddrRange;

/// One workload's dials to one observed destination.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Observation {
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

/// The kernel's `OBSERVED`.
pub(super) struct Observed {
    map: HashMap<MapData, PodDestination, layout::Observed>,
}

impl Observed {
    pub(super) fn new(map: Map) -> Result<Self, CaptureError> {
        Ok(Self { map: HashMap::try_from(map).map_err(|source| error("open", source))? })
    }

    /// All that is known of destinations that still are ones.
    pub(super) fn all(&self, destinations: &Destinations) -> Result<Vec<Observation>, CaptureError> {
        let now = monotonic_ns();
        let mut all = Vec::new();
        for entry in self.map.iter() {
            let (key, seen) = entry.map_err(|source| error("read", source))?;
            let Some((destination, routes)) = destinations.by_id(key.destination) else { continue };
            all.push(Observation {
                destination,
                routes,
                pod_id: key.pod_id,
                cgroup_id: seen.cgroup_id,
                ancestor_ids: seen.ancestor_ids,
                count: seen.count,
                age: Duration::from_nanos(now.saturating_sub(seen.last_ns)),
            });
        }
        Ok(all)
    }
}

fn error(doing: &'static str, source: MapError) -> CaptureError {
    CaptureError::Map { doing, map: "OBSERVED", source }
}
