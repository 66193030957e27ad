//! Tells the kernel which pods have an enforcement of their own.
//!
//! A pod that the kernel has not heard of gets the strictest that any pod may get; so every pod that is
//! known is listed for every destination with overrides, also where none of them names it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use aya::maps::{HashMap as KernelMap, Map, MapData, MapError};
use hnp_common::layout::{PodDestination, enforcement};

use super::error::CaptureError;
use crate::config::plan::{Enforcement, PodTraits, PossibleEnforcement};
use crate::config::selector::Labels;

/// What is known of one pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodFacts {
    /// The pod's cgroup.
    pub cgroup_id: u64,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels; `None` until somebody who knows them has said so.
    pub labels: Option<Arc<Labels>>,
}

impl PodFacts {
    fn traits(&self) -> PodTraits<'_> {
        PodTraits { namespace: Some(&self.namespace), labels: self.labels.as_deref() }
    }
}

/// A destination for which pods may have an enforcement of their own.
pub(super) struct Destination<'a> {
    /// Its number.
    pub(super) id: u32,
    /// What a former agent listed may stay where it is not known better.
    pub(super) keeps_listed: bool,
    /// What may hold for a pod.
    pub(super) enforcement: Box<dyn Fn(PodTraits<'_>) -> PossibleEnforcement + 'a>,
}

/// The kernel's `OVERRIDES`.
pub(super) struct Overrides {
    map: KernelMap<MapData, PodDestination, u32>,
    listed: HashMap<PodDestination, u32>,
    /// `None` until they were looked for: what is listed stays.
    pods: Option<Vec<PodFacts>>,
}

impl Overrides {
    /// What a former agent listed stays listed until the pods are known here.
    pub(super) fn new(map: Map) -> Result<Self, CaptureError> {
        let map: KernelMap<MapData, PodDestination, u32> =
            KernelMap::try_from(map).map_err(|source| error("open", source))?;
        let listed = map.iter().collect::<Result<_, _>>().map_err(|source| error("read", source))?;
        Ok(Self { map, listed, pods: None })
    }

    /// The highest number of a destination that pods are listed for; 0 where none is.
    pub(super) fn last_id(&self) -> u32 {
        self.listed.keys().map(|key| key.destination).max().unwrap_or(0)
    }

    pub(super) fn set_pods(&mut self, pods: Vec<PodFacts>) {
        self.pods = Some(pods);
    }

    /// Lists every pod for every destination; the first failure is reported, the rest is done all the same.
    pub(super) fn apply<'a>(
        &mut self,
        destinations: impl Iterator<Item = Destination<'a>>,
    ) -> Result<(), CaptureError> {
        let (mut wanted, mut overridden) = (HashMap::new(), HashSet::new());
        for destination in destinations {
            overridden.insert(destination.id);
            for pod in self.pods.iter().flatten() {
                let key = PodDestination { pod_id: pod.cgroup_id, destination: destination.id, pad: 0 };
                let possible = (destination.enforcement)(pod.traits());
                // An agent that has just begun does not know labels that the one before it knew.
                let listed = self.listed.get(&key).copied();
                let listed = listed.filter(|it| destination.keeps_listed && possible.includes(*it));
                wanted.insert(key, listed.unwrap_or_else(|| u32::from(number(possible.strictest))));
            }
        }
        let mut outcome = Ok(());
        for (key, value) in &wanted {
            if self.listed.get(key) != Some(value) {
                match self.map.insert(key, value, 0) {
                    Ok(()) => drop(self.listed.insert(*key, *value)),
                    Err(source) => outcome = outcome.and(Err(error("insert into", source))),
                }
            }
        }
        // Until the pods are known, only what is of no destination any more is known to be over.
        let is_over = |key: &&PodDestination| match self.pods {
            Some(_) => !wanted.contains_key(*key),
            None => !overridden.contains(&key.destination),
        };
        let gone: Vec<_> = self.listed.keys().filter(is_over).copied().collect();
        for key in gone {
            match self.map.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => drop(self.listed.remove(&key)),
                Err(source) => outcome = outcome.and(Err(error("remove from", source))),
            }
        }
        outcome
    }
}

impl PossibleEnforcement {
    /// Whether the kernel's number stands for one of these.
    fn includes(self, listed: u32) -> bool {
        let listed = u8::try_from(listed).map_or(Enforcement::Strict, enforcement);
        (self.weakest..=self.strictest).contains(&listed)
    }
}

/// The kernel's number.
pub(super) fn number(of: Enforcement) -> u8 {
    match of {
        Enforcement::Observe => enforcement::OBSERVE,
        Enforcement::Loose => enforcement::LOOSE,
        Enforcement::Strict => enforcement::STRICT,
    }
}

/// What the kernel's number stands for; one that is unknown is refused rather than let through.
pub(super) fn enforcement(number: u8) -> Enforcement {
    match number {
        enforcement::OBSERVE => Enforcement::Observe,
        enforcement::LOOSE => Enforcement::Loose,
        _ => Enforcement::Strict,
    }
}

fn error(doing: &'static str, source: MapError) -> CaptureError {
    CaptureError::Map { doing, map: "OVERRIDES", source }
}
