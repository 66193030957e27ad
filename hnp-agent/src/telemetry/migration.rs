//! What strict means for whom: how the captured connections of each pod begin, and which of them only a strict
//! route refuses.
//!
//! Each worker writes into tables of its own, once for each connection, behind a lock that nobody else holds but who
//! looks. Rows are by pod and bounded: of too many, those that say least are added up by namespace.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use hnp_common::Reason;

use crate::workload::Workload;

/// How many pods' rows an agent keeps, over all workers.
const PODS: usize = 2048;
/// How many namespaces of a route a worker adds rows up for; those of further ones are added to none.
const NAMESPACES: usize = 256;

/// What a captured connection begins with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Beginning {
    /// A TLS handshake.
    Tls,
    /// A request of HTTP/1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// It ended, or was left alone for too long, without a byte.
    Nothing,
    /// Anything else, a request that is none or not complete among it.
    Other,
    /// Nobody looked: the route is opaque.
    Opaque,
}

impl Beginning {
    /// All of them, by their places.
    pub const ALL: [Self; 6] =
        [Self::Tls, Self::Http1, Self::Http2, Self::Nothing, Self::Other, Self::Opaque];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Nothing => "nothing",
            Self::Other => "other",
            Self::Opaque => "opaque",
        }
    }
}

/// What a strict route refuses of what a loose one carries.
pub const STRICT_ALONE: [Reason; 4] =
    [Reason::TlsFromClient, Reason::TlsWithoutName, Reason::SniRefused, Reason::HostRefused];

/// How often one of [`STRICT_ALONE`] applied.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Applied {
    /// It was carried all the same: the route is not strict for that pod.
    pub carried: u64,
    /// It was refused.
    pub refused: u64,
    /// The last time.
    pub last: Option<SystemTime>,
}

/// What was seen of a pod, or of several.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By the places of [`Beginning::ALL`].
    pub begun: [u64; Beginning::ALL.len()],
    /// By the places of [`STRICT_ALONE`].
    pub strict_alone: [Applied; STRICT_ALONE.len()],
}

/// One pod on one route, or those of a namespace whose rows were too many.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The route's name.
    pub route: Arc<str>,
    /// The pod's namespace, where it is known.
    pub namespace: Option<Arc<str>>,
    /// The pod's name; `None`: not known, or several.
    pub pod: Option<Arc<str>>,
    /// Who it is; `None`: several.
    pub workload: Option<Arc<Workload>>,
    /// What was seen.
    pub counts: Counts,
}

/// One worker's tables.
#[derive(Debug)]
pub(super) struct Migration(Mutex<Tables>);

#[derive(Debug)]
struct Tables {
    routes: HashMap<Arc<str>, OfRoute>,
    pods: usize,
    unnamed: usize,
    /// How many `pods` may be.
    keep: usize,
}

#[derive(Debug, Default)]
struct OfRoute {
    /// By UID, or by cgroup where there is none.
    pods: HashMap<Box<str>, OfPod>,
    added_up: HashMap<Option<Arc<str>>, Counts>,
}

#[derive(Debug)]
struct OfPod {
    workload: Arc<Workload>,
    /// Namespace and name: kept, because they are forgotten elsewhere when the pod has gone.
    named: Option<(Arc<str>, Arc<str>)>,
    last: SystemTime,
    counts: Counts,
}

impl Migration {
    /// Empty, of one of so many workers.
    pub(super) fn new(workers: usize) -> Self {
        let keep = PODS.div_ceil(workers);
        Self(Mutex::new(Tables { routes: HashMap::new(), pods: 0, unnamed: 0, keep }))
    }

    /// A connection has begun.
    pub(super) fn begun(&self, route: &Arc<str>, workload: &Arc<Workload>, with: Beginning) {
        self.lock().change(route, workload, |counts, _| counts.begun[with as usize] += 1);
    }

    /// What only a strict route refuses has come.
    pub(super) fn strict_alone(
        &self,
        route: &Arc<str>,
        workload: &Arc<Workload>,
        reason: Reason,
        refused: bool,
    ) {
        let Some(place) = STRICT_ALONE.iter().position(|one| *one == reason) else { return };
        self.lock().change(route, workload, |counts, now| {
            let applied = &mut counts.strict_alone[place];
            *(if refused { &mut applied.refused } else { &mut applied.carried }) += 1;
            applied.last = Some(now);
        });
    }

    /// Names the pods that are known by now. For a timer: many live no longer than a second.
    pub(super) fn name(&self) {
        let mut tables = self.lock();
        if tables.unnamed == 0 {
            return;
        }
        let mut unnamed = 0;
        for row in tables.routes.values_mut().flat_map(|of| of.pods.values_mut()) {
            row.name();
            // Who is not asked about any more stays what it is.
            unnamed += usize::from(row.named.is_none() && row.workload.pod.is_awaited());
        }
        tables.unnamed = unnamed;
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn change(
        &mut self,
        route: &Arc<str>,
        workload: &Arc<Workload>,
        change: impl FnOnce(&mut Counts, SystemTime),
    ) {
        let now = crate::clock::now();
        let who = workload.pod_uid.as_deref().or(workload.cgroup.as_deref()).unwrap_or_default();
        if let Some(row) = self.routes.get_mut(route).and_then(|of| of.pods.get_mut(who)) {
            row.last = now;
            return change(&mut row.counts, now);
        }
        if self.pods >= self.keep {
            self.make_room();
        }
        let mut row =
            OfPod { workload: Arc::clone(workload), named: None, last: now, counts: Counts::default() };
        row.name();
        change(&mut row.counts, now);
        self.pods += 1;
        self.unnamed += usize::from(row.named.is_none());
        self.routes.entry(Arc::clone(route)).or_default().pods.insert(who.into(), row);
    }

    /// Adds up half of the rows: those first whom strict would not cut off, and of these the oldest.
    fn make_room(&mut self) {
        let all = self.routes.values().flat_map(|of| of.pods.values());
        let mut worth: Vec<_> = all.map(OfPod::worth).collect();
        let half = worth.len() / 2;
        let (_, least, _) = worth.select_nth_unstable(half);
        let least = *least;
        let mut left = self.keep.saturating_sub(half).max(1);
        for OfRoute { pods, added_up } in self.routes.values_mut() {
            pods.retain(|_, row| {
                let stays = left > 0 && row.worth() > least;
                left -= usize::from(stays);
                if !stays {
                    let namespace = row.named.take().map(|(namespace, _)| namespace);
                    let room = added_up.len() < NAMESPACES || added_up.contains_key(&namespace);
                    added_up.entry(namespace.filter(|_| room)).or_default().add(&row.counts);
                }
                stays
            });
        }
        self.pods = self.routes.values().map(|of| of.pods.len()).sum();
    }
}

impl OfPod {
    fn worth(&self) -> (bool, SystemTime) {
        (self.counts.strict_alone.iter().any(|applied| applied.last.is_some()), self.last)
    }

    fn name(&mut self) {
        if self.named.is_none()
            && let Some(pod) = self.workload.pod.known()
        {
            self.named = Some((Arc::clone(&pod.namespace), Arc::clone(&pod.name)));
        }
    }
}

impl Counts {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (sum, n) in self.begun.iter_mut().zip(other.begun) {
            *sum += n;
        }
        for (sum, applied) in self.strict_alone.iter_mut().zip(other.strict_alone) {
            sum.carried += applied.carried;
            sum.refused += applied.refused;
            sum.last = sum.last.max(applied.last);
        }
    }
}

/// Whose a row is.
#[derive(Eq, Hash, PartialEq)]
enum Who {
    /// One pod's, by UID or cgroup.
    Pod(Box<str>),
    /// Those of a namespace that were added up.
    Several(Option<Arc<str>>),
}

/// What all workers have seen; a pod that several have served is there once.
pub(super) fn all<'a>(workers: impl Iterator<Item = &'a Migration>) -> Vec<Seen> {
    let mut all: HashMap<(Arc<str>, Who), Seen> = HashMap::new();
    for worker in workers {
        worker.name();
        let tables = worker.lock();
        for (route, of) in &tables.routes {
            let pods = of.pods.iter().map(|(who, row)| {
                let (namespace, pod) = row.named.clone().unzip();
                (Who::Pod(who.clone()), namespace, pod, Some(&row.workload), &row.counts)
            });
            let added_up = of
                .added_up
                .iter()
                .map(|(of, counts)| (Who::Several(of.clone()), of.clone(), None, None, counts));
            for (key, namespace, pod, workload, counts) in pods.chain(added_up) {
                let seen = all.entry((Arc::clone(route), key)).or_insert_with(|| Seen {
                    route: Arc::clone(route),
                    namespace,
                    pod,
                    workload: workload.cloned(),
                    counts: Counts::default(),
                });
                seen.counts.add(counts);
            }
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(uid: usize) -> Arc<Workload> {
        Arc::new(Workload { pod_uid: Some(uid.to_string()), ..Workload::default() })
    }

    #[test]
    fn rows_are_bounded_nothing_is_lost_and_whom_strict_would_cut_off_stays_named() {
        let (workers, route): (_, Arc<str>) = ([Migration::new(2), Migration::new(2)], "m".into());
        let many = 10 * PODS;
        let cut = workload(0);
        workers[0].strict_alone(&route, &cut, Reason::TlsFromClient, false);
        workers[1].strict_alone(&route, &cut, Reason::TlsFromClient, true);
        // The control: a reason that holds for loose routes too says nothing of strict.
        workers[0].strict_alone(&route, &cut, Reason::BadRequest, true);
        for uid in 1..=many {
            workers[uid % 2].begun(&route, &workload(uid), Beginning::Http1);
        }
        let seen = all(workers.iter());
        assert!(seen.len() <= PODS + 2, "{}", seen.len());
        let begun: u64 = seen.iter().map(|seen| seen.counts.begun[Beginning::Http1 as usize]).sum();
        assert_eq!(begun, many as u64);
        let is_cut = |seen: &&Seen| seen.workload.as_ref() == Some(&cut);
        let [tls, ..] = seen.iter().find(is_cut).expect("it stays").counts.strict_alone;
        assert_eq!((tls.carried, tls.refused, tls.last.is_some()), (1, 1, true));
    }

    #[test]
    fn places_are_those_of_the_list() {
        for (place, beginning) in Beginning::ALL.into_iter().enumerate() {
            assert_eq!(beginning as usize, place);
        }
    }
}
