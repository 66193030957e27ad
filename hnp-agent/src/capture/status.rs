//! What is captured now, for whoever asks the running agent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::Capture;

/// What the kernel does for this agent.
#[derive(Clone, Debug, Serialize)]
pub struct CaptureStatus {
    /// The cgroup that the programs hang on.
    pub cgroup: PathBuf,
    /// Each program.
    pub hooks: Vec<HookStatus>,
    /// How old the heartbeat is by which the kernel knows that the agent serves; null before the first.
    pub heartbeat_age_ms: Option<u64>,
    /// How old it may be.
    pub heartbeat_limit_ms: u64,
    /// Flows that the kernel recorded and nobody has taken yet.
    pub flows_waiting: Option<usize>,
    /// Captured connections that are open, as the kernel counts them.
    pub connections_open: Option<u64>,
    /// What the programs decided, by verdict; those of which there is none are left out.
    pub verdicts: BTreeMap<&'static str, u64>,
    /// What keeps packets from strict destinations that pass no hook; null where it is off.
    pub guard: Option<GuardStatus>,
    /// What is captured.
    pub destinations: Vec<DestinationStatus>,
}

/// One program.
#[derive(Clone, Debug, Serialize)]
pub struct HookStatus {
    /// Its name.
    pub program: &'static str,
    /// It hangs on the cgroup.
    pub attached: bool,
}

/// The guard on pods' veths.
#[derive(Clone, Debug, Serialize)]
pub struct GuardStatus {
    /// `tcx` or `clsact`; null where it is not needed or not possible.
    pub way: Option<&'static str>,
    /// Veths that are guarded.
    pub interfaces: usize,
    /// Those that should be and cannot.
    pub failing: usize,
}

/// One address or range.
#[derive(Clone, Debug, Serialize)]
pub struct DestinationStatus {
    /// What pods dial.
    pub at: String,
    /// Where they are sent.
    pub vip: String,
    /// What holds for a pod that nothing is known of.
    pub enforcement: &'static str,
    /// What holds whoever dials.
    pub weakest: &'static str,
    /// The routes it belongs to; none while it is a former agent's that is not yet known.
    pub routes: Vec<String>,
}

impl Capture {
    /// A look at everything; a few dozen system calls.
    pub fn status(&self) -> CaptureStatus {
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let hooks = self.hung.attachment.programs(&self.hung.cgroup);
        let verdicts = self.counters.verdicts().unwrap_or_default();
        let guard = self.guard.as_ref().map(|guard| {
            let status = guard.status();
            let way = status.way.ok().map(super::guard::Way::as_str);
            GuardStatus { way, interfaces: status.interfaces, failing: status.failing }
        });
        CaptureStatus {
            cgroup: self.hung.cgroup.path.clone(),
            hooks: hooks.map(|(program, attached)| HookStatus { program, attached }).collect(),
            heartbeat_age_ms: self.beating.as_ref().and_then(|beating| beating.age()).map(ms),
            heartbeat_limit_ms: ms(self.plan.heartbeat),
            flows_waiting: self.flows.count().ok(),
            connections_open: self.counters.open_connections().ok(),
            verdicts: verdicts.into_iter().filter(|(_, count)| *count > 0).collect(),
            guard,
            destinations: self.destinations.all(),
        }
    }
}
