//! Who goes direct although what he dials is a destination, by name: under observe, and while no agent answered.
//!
//! The kernel counts by cgroup. Names are looked up every second, while the pod is still there; a row
//! stays after it has gone, because a migration is about pods that live for a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::capture::Dials;
use crate::workload::{PodCgroup, WorkloadSource};

/// How many rows are kept; beyond it the one that was not seen for longest goes.
const ROWS: usize = 4096;

/// For how long it is asked again who somebody is: what is known of pods comes late, and of those that have gone never.
pub const ASKED: Duration = Duration::from_secs(60);

/// Why somebody went direct.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Why {
    /// The destination is only observed for him.
    Observed,
    /// It is loose, and no agent answered.
    NoAgent,
}

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
pub struct Table(Arc<Mutex<HashMap<Key, Row>>>);

/// Why, the pod's cgroup, and what was dialled.
type Key = (Why, u64, String);

impl Table {
    /// Takes in what the kernel counted.
    pub fn take(&self, why: Why, dials: Vec<Dials>, pods: &[PodCgroup], workloads: &dyn WorkloadSource) {
        let mut rows = self.lock();
        for seen in dials {
            let destination = seen.destination.to_string();
            let key = (why, seen.pod_id, destination.clone());
            let last = unix_seconds(seen.age);
            if let Some(row) = rows.get_mut(&key) {
                (row.connects, row.last) = (seen.count, last);
                if row.pod.is_some() || seen.age > ASKED {
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
            row.log(why);
            rows.insert(key, row);
        }
        while rows.len() > ROWS {
            let Some(oldest) = rows.iter().min_by_key(|(_, row)| row.last).map(|(key, _)| key.clone()) else {
                break;
            };
            rows.remove(&oldest);
        }
    }

    /// Those who went direct for that reason, the busiest first.
    pub fn rows(&self, why: Why) -> Vec<Row> {
        let all = self.lock();
        let mut rows: Vec<Row> =
            all.iter().filter(|((of, ..), _)| *of == why).map(|(_, row)| row.clone()).collect();
        drop(all);
        rows.sort_by(|a, b| b.connects.cmp(&a.connects).then_with(|| a.destination.cmp(&b.destination)));
        rows
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Row>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    /// Once for each pod: whoever wonders why it presents no certificate looks here first.
    fn log(&self, why: Why) {
        let routes = self.routes.join(", ");
        let words = match why {
            Why::Observed => {
                "a pod dials a destination that is only observed for it: it goes direct and presents no certificate"
            }
            // Of those that have gone the report has a number.
            Why::NoAgent if self.pod_uid.is_none() => return,
            Why::NoAgent => "a pod went direct while no agent answered, and presented no certificate",
        };
        tracing::info!(
            pod = self.pod,
            namespace = self.namespace,
            pod_uid = self.pod_uid,
            destination = self.destination,
            routes,
            "{words}"
        );
    }
}

fn unix_seconds(age: Duration) -> u64 {
    let then = crate::clock::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    then.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
