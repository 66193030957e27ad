//! Who goes direct although what he dials is a destination, by name: under observe, and while no agent answered.
//!
//! The kernel counts by cgroup. Names are looked up every second, while the pod is still there; a row
//! stays after it has gone, because a migration is about pods that live for a minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::capture::Dials;
use crate::workload::{PodCgroup, WorkloadSource};

/// How many rows are kept of each cause; beyond it those go that were not seen for longest.
const ROWS: usize = 4096;

/// For how long it is asked again who somebody is: what is known of pods comes late, and of those that have gone never.
pub const ASKED: Duration = Duration::from_secs(60);

/// Why somebody went direct.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Cause {
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

/// All rows of this agent's life, and what the kernel has kept from before.
#[derive(Clone, Debug, Default)]
pub struct Table(Arc<Mutex<HashMap<Key, Known>>>);

/// Why, the pod's cgroup, and what was dialled.
type Key = (Cause, u64, String);

#[derive(Debug)]
struct Known {
    row: Row,
    /// Until when it is asked who it is.
    asked: Instant,
}

impl Table {
    /// Takes in what the kernel counted.
    pub fn take(&self, cause: Cause, dials: Vec<Dials>, pods: &[PodCgroup], workloads: &dyn WorkloadSource) {
        let now = Instant::now();
        let mut all = self.lock();
        // What was let go of must not come again with the next look.
        let oldest = oldest(&all, cause);
        for seen in dials {
            let key = (cause, seen.pod_id, seen.destination.to_string());
            let last = unix_seconds(seen.age);
            let Some(known) = all.get_mut(&key) else {
                if oldest.is_none_or(|oldest| last > oldest) {
                    let row = Row::of(&seen, last, pods, workloads);
                    row.log(cause);
                    all.insert(key, Known { row, asked: now + ASKED });
                }
                continue;
            };
            let (more, was_nameless) = (seen.count > known.row.connects, known.row.is_nameless());
            if more {
                known.asked = now + ASKED;
            }
            (known.row.connects, known.row.last) = (seen.count, last);
            if known.row.pod.is_none() && now < known.asked {
                let row = Row::of(&seen, last, pods, workloads);
                // Whoever was asked has answered since, or it has gone and is who it was.
                if row.pod.is_some() || row.pod_uid.is_some() || known.row.pod_uid.is_none() {
                    known.row = row;
                }
            }
            known.row.routes = seen.routes.iter().map(ToString::to_string).collect();
            if cause == Cause::NoAgent && (more || was_nameless && !known.row.is_nameless()) {
                known.row.log(cause);
            }
        }
        forget(&mut all, cause);
    }

    /// Those who went direct for that cause, the busiest first.
    pub fn rows(&self, cause: Cause) -> Vec<Row> {
        let all = self.lock();
        let mut rows: Vec<Row> = of(&all, cause).map(|(_, known)| known.row.clone()).collect();
        drop(all);
        rows.sort_by(|a, b| b.connects.cmp(&a.connects).then_with(|| a.destination.cmp(&b.destination)));
        rows
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of(all: &HashMap<Key, Known>, cause: Cause) -> impl Iterator<Item = (&Key, &Known)> {
    all.iter().filter(move |((of, ..), _)| *of == cause)
}

/// When who was not seen for longest was seen, where there is no room for more.
fn oldest(all: &HashMap<Key, Known>, cause: Cause) -> Option<u64> {
    let is_full = of(all, cause).count() >= ROWS;
    is_full.then(|| of(all, cause).map(|(_, known)| known.row.last).min()).flatten()
}

fn forget(all: &mut HashMap<Key, Known>, cause: Cause) {
    let mut ages: Vec<(u64, Key)> = match of(all, cause).count() {
        count if count > ROWS => of(all, cause).map(|(key, known)| (known.row.last, key.clone())).collect(),
        _ => return,
    };
    ages.sort_unstable_by_key(|(last, _)| *last);
    for (_, key) in &ages[..ages.len() - ROWS] {
        all.remove(key);
    }
}

impl Row {
    fn of(seen: &Dials, last: u64, pods: &[PodCgroup], workloads: &dyn WorkloadSource) -> Self {
        let workload = workloads.identify_cgroup(seen.cgroup_id, seen.ancestor_ids);
        let listed = pods.iter().find(|pod| pod.cgroup_id == seen.pod_id);
        let listed = listed.map(|pod| (Arc::clone(&pod.namespace), Arc::clone(&pod.name)));
        let known = || workload.pod.known().map(|pod| (Arc::clone(&pod.namespace), Arc::clone(&pod.name)));
        let (namespace, pod) = listed.or_else(known).unzip();
        Self {
            destination: seen.destination.to_string(),
            routes: seen.routes.iter().map(ToString::to_string).collect(),
            namespace: namespace.map(|it| it.to_string()),
            pod: pod.map(|it| it.to_string()),
            pod_uid: workload.pod_uid.clone(),
            container: workload.container_id.clone(),
            cgroup: workload.cgroup.clone(),
            connects: seen.count,
            last,
        }
    }

    /// Whether nobody can say any more who it was.
    pub fn is_nameless(&self) -> bool {
        self.pod.is_none() && self.pod_uid.is_none()
    }

    /// Whoever wonders why a pod presents no certificate looks here first.
    fn log(&self, cause: Cause) {
        let words = match cause {
            Cause::Observed => {
                "a pod dials a destination that is only observed for it: it goes direct and presents no certificate"
            }
            // Of those that have gone the report has a number.
            Cause::NoAgent if self.is_nameless() => return,
            Cause::NoAgent => "a pod went direct while no agent answered, and presented no certificate",
        };
        tracing::info!(
            pod = self.pod,
            namespace = self.namespace,
            pod_uid = self.pod_uid,
            destination = self.destination,
            routes = self.routes.join(", "),
            connects = self.connects,
            last = crate::telemetry::rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(self.last)),
            "{words}"
        );
    }
}

fn unix_seconds(age: Duration) -> u64 {
    let then = crate::clock::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    then.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::{AddrRange, Cidr};
    use crate::workload::Workload;

    /// Knows everybody by one UID, once it knows anybody.
    #[derive(Default)]
    struct Late(Mutex<Option<String>>);

    impl WorkloadSource for Late {
        fn identify_cgroup(&self, _: u64, _: [u64; 2]) -> Arc<Workload> {
            let pod_uid = self.0.lock().unwrap().clone();
            Arc::new(Workload { pod_uid, ..Workload::default() })
        }
    }

    fn dials(pod_id: u64, count: u64, age: u64) -> Dials {
        let net = Cidr { addr: [192, 0, 2, 1].into(), prefix: 32 };
        Dials {
            destination: AddrRange { net, port: 80 },
            routes: vec!["m".into()],
            pod_id,
            cgroup_id: pod_id,
            ancestor_ids: [0; 2],
            count,
            age: Duration::from_secs(age),
        }
    }

    #[test]
    fn who_is_told_late_is_named_however_long_ago_it_was_and_stays_who_it_was() {
        let (table, late) = (Table::default(), Late::default());
        let take = |seen| table.take(Cause::NoAgent, vec![seen], &[], &late);
        let uid = || table.rows(Cause::NoAgent)[0].pod_uid.clone();
        // Dialled an hour ago, and this agent has just begun.
        take(dials(1, 1, 3600));
        assert_eq!(uid(), None);
        *late.0.lock().unwrap() = Some("u".into());
        take(dials(1, 1, 3600));
        assert_eq!(uid().as_deref(), Some("u"));
        *late.0.lock().unwrap() = None;
        take(dials(1, 2, 0));
        let row = &table.rows(Cause::NoAgent)[0];
        assert_eq!((row.pod_uid.as_deref(), row.connects), (Some("u"), 2));
        // The control.
        assert!(table.rows(Cause::Observed).is_empty());
    }

    #[test]
    fn a_destination_may_become_another_routes() {
        let (table, nobody) = (Table::default(), Late::default());
        let take = |routes: &[&str]| {
            let routes = routes.iter().map(|name| Arc::from(*name)).collect();
            table.take(Cause::NoAgent, vec![Dials { routes, ..dials(1, 1, 0) }], &[], &nobody);
            table.rows(Cause::NoAgent)[0].routes.clone()
        };
        assert_eq!(take(&["m"]), ["m"]);
        assert_eq!(take(&["n", "o"]), ["n", "o"]);
    }

    #[test]
    fn of_too_many_the_latest_are_kept_and_those_let_go_of_do_not_come_again() {
        let (table, nobody) = (Table::default(), Late::default());
        let many = || (0..ROWS as u64 + 100).map(|pod| dials(pod, pod, 10 * (pod + 1))).collect::<Vec<_>>();
        table.take(Cause::Observed, vec![dials(7, 7, 1_000_000)], &[], &nobody);
        for _ in 0..2 {
            table.take(Cause::NoAgent, many(), &[], &nobody);
            let rows = table.rows(Cause::NoAgent);
            assert_eq!((rows.len(), rows[0].connects), (ROWS, ROWS as u64 - 1));
        }
        // One that is new comes in the place of the oldest; the other cause has rows of its own.
        table.take(Cause::NoAgent, vec![dials(9_999, 9_999, 0)], &[], &nobody);
        let rows = table.rows(Cause::NoAgent);
        assert_eq!((rows.len(), rows[0].connects, rows[1].connects), (ROWS, 9_999, ROWS as u64 - 2));
        assert_eq!(table.rows(Cause::Observed).len(), 1);
    }
}
