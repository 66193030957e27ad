//! Reads what the kernel counted.

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use hnp_common::Verdict;

use super::error::CaptureError;

/// The kernel's `COUNTERS` and `PODS`.
pub(super) struct Counters {
    verdicts: PerCpuArray<MapData, u64>,
    pods: HashMap<MapData, u64, u64>,
}

impl Counters {
    pub(super) fn new(verdicts: Map, pods: Map) -> Result<Self, CaptureError> {
        Ok(Self {
            verdicts: PerCpuArray::try_from(verdicts).map_err(error("open", "COUNTERS"))?,
            pods: HashMap::try_from(pods).map_err(error("open", "PODS"))?,
        })
    }

    /// Each verdict with its sum over all CPUs.
    pub(super) fn verdicts(&self) -> Result<Vec<(&'static str, u64)>, CaptureError> {
        Verdict::ALL.iter().map(|verdict| Ok((verdict.code(), self.verdict(*verdict)?))).collect()
    }

    /// The sum of one over all CPUs.
    pub(super) fn verdict(&self, verdict: Verdict) -> Result<u64, CaptureError> {
        let per_cpu = self.verdicts.get(&verdict.index(), 0).map_err(error("read", "COUNTERS"))?;
        Ok(per_cpu.iter().sum())
    }

    /// Captured connections that are open, over all pods.
    pub(super) fn open_connections(&self) -> Result<u64, CaptureError> {
        let counts = self.pods.iter().map(|entry| entry.map(|(_, count)| count));
        counts.sum::<Result<u64, _>>().map_err(error("read", "PODS"))
    }
}

fn error(doing: &'static str, map: &'static str) -> impl Fn(MapError) -> CaptureError {
    move |source| CaptureError::Map { doing, map, source }
}
