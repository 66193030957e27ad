//! Who would be affected: the workloads that dial observed destinations, by name.
//!
//! The kernel counts by cgroup. Names are looked up every second, while the pod is still there; a row
//! stays after it has gone, because a migration is about pods that live for a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::capture::Observation;
use crate::workload::{PodCgroup, WorkloadSource};

/// How many rows are kept; beyond it the one that was not seen for longest goes.
const ROWS: usize = 4096;

/// One workload and one destination.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was dialled.
    pub destination: String,
    /// The routes it belongs to.
    pub routes: Vec<String>,
    /// The pod's namespace, where kubelet's log directory or the container runtime names it.
    pub namespace: Option<String>,
    /// The pod's name, likewise.
    pub pod: Option<String>,
    /// The pod's UID.
    pub pod_uid: Option<String>,
    /// The container that called last.
    pub container: Option<String>,
    /// Its cgroup below the cgroup2 mount.
    pub cgroup: Option<String>,
    /// How often.
    pub connects: u64,
    /// The last time, in seconds since 1970.
    pub last: u64,
}

/// All rows of this agent's life.
#[derive(Clone, Debug, Default)]
pub struct Table(Arc<Mutex<HashMap<(u64, String), Row>>>);

impl Table {
    /// Takes in what the kernel counted.
    pub fn take(&self, observations: Vec<Observation>, pods: &[PodCgroup], workloads: &dyn WorkloadSource) {
        let mut rows = self.lock();
        for seen in observations {
            let destination = seen.destination.to_string();
            let key = (seen.pod_id, destination.clone());
            let last = unix_seconds(seen.age);
            if let Some(row) = rows.get_mut(&key) {
                (row.connects, row.last) = (seen.count, last);
                if row.pod.is_some() {
                    continue;
                }
            }
            let workload = workloads.identify_cgroup(seen.cgroup_id, seen.ancestor_ids);
            let listed = pods.iter().find(|pod| pod.cgroup_id == seen.pod_id);
            let listed = listed.map(|pod| (Arc::clone(&pod.namespace), Arc::clone(&pod.name)));
            let known =
                || workload.pod.known().map(|pod| (Arc::clone(&pod.namespace), Arc::clone(&pod.name)));
            let (namespace, pod) = listed.or_else(known).unzip();
            if let Some(row) = rows.get_mut(&key) {
                // Whoever was asked has answered since.
                (row.namespace, row.pod) = (namespace.map(|it| it.to_string()), pod.map(|it| it.to_string()));
                continue;
            }
            let row = Row {
                destination,
                routes: seen.routes.iter().map(ToString::to_string).collect(),
                namespace: namespace.map(|it| it.to_string()),
                pod: pod.map(|it| it.to_string()),
                pod_uid: workload.pod_uid.clone(),
                container: workload.container_id.clone(),
                cgroup: workload.cgroup.clone(),
                connects: seen.count,
                last,
            };
            // Once for each pod: some pods of a route are let off, and whoever wonders why looks here first.
            tracing::info!(
                pod = row.pod,
                namespace = row.namespace,
                pod_uid = row.pod_uid,
                destination = row.destination,
                routes = row.routes.join(", "),
                "a pod dials a destination that is only observed for it: it goes direct and presents no certificate"
            );
            rows.insert(key, row);
        }
        while rows.len() > ROWS {
            let Some(oldest) = rows.iter().min_by_key(|(_, row)| row.last).map(|(key, _)| key.clone()) else {
                break;
            };
            rows.remove(&oldest);
        }
    }

    /// The rows, the busiest first.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.lock().values().cloned().collect();
        rows.sort_by(|a, b| b.connects.cmp(&a.connects).then_with(|| a.destination.cmp(&b.destination)));
        rows
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(u64, String), Row>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unix_seconds(age: Duration) -> u64 {
    let then = crate::clock::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    then.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
