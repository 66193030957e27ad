//! Who is calling: from a flow's cgroup ids to a pod.
//!
//! The cgroup path holds the pod's UID from the first instruction of the container, long before its
//! IP address reaches the API; so the kernel's cgroup id is the key and cgroupfs the first source.

pub mod appearing;
mod cgroupfs;
mod directory;
mod lookups;
mod names;
mod pod;
mod pods;
pub mod runtime;

use std::sync::Arc;

pub use cgroupfs::CgroupWorkloads;
pub use directory::{ByUid, Directory};
pub use lookups::{Lookups, PodLink, Question};
pub use pod::{ANNOTATION_BYTES, Account, Facts, Known, Owner, Pod, Teller, short_annotations};
pub use pods::{PodCgroup, PodLogs, Pods};

use crate::proxy::flow::Flow;

/// Who is calling, as far as this node can tell.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Workload {
    /// Path below the cgroup2 mount, such as `/kubepods/besteffort/pod<uid>/<container>`.
    pub cgroup: Option<String>,
    /// The pod's UID with dashes, as the API shows it.
    pub pod_uid: Option<String>,
    /// The container's id, without the runtime's prefix.
    pub container_id: Option<String>,
    /// What is known of the pod, now and later.
    pub pod: PodLink,
}

/// On whose behalf something is sent.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'a> {
    /// The agent's own: connections ahead of use, and what an operator has looked at.
    Agent,
    /// The pod of this UID, by its cgroup.
    Pod(&'a str),
    /// Somebody who is not known to be a certain pod.
    Unknown {
        /// Why, in words.
        why: &'static str,
        /// The UID of the pod that it most likely is.
        likely: Option<&'a str>,
    },
}

impl<'a> Caller<'a> {
    /// The UID of the pod that it is, or most likely is: good enough for taking turns, and for nothing that a pod is
    /// trusted with.
    pub fn likely_pod(self) -> Option<&'a str> {
        match self {
            Self::Pod(uid) => Some(uid),
            Self::Unknown { likely, .. } => likely,
            Self::Agent => None,
        }
    }
}

/// Where the data path asks who is calling. Must answer from memory or with a few file-system
/// calls: it runs right after accept.
pub trait WorkloadSource: Send + Sync + 'static {
    /// The caller of a flow; fields stay `None` where nothing is known.
    fn identify(&self, flow: &Flow) -> Arc<Workload> {
        self.identify_cgroup(flow.cgroup_id, flow.ancestor_ids)
    }

    /// The same for a cgroup and its ancestors one and two levels below the attached one.
    fn identify_cgroup(&self, cgroup_id: u64, ancestor_ids: [u64; 2]) -> Arc<Workload>;
}
