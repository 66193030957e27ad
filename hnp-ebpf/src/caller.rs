//! Who is calling: the current task's cgroup, and the pod above it.
//!
//! By cgroup and not by address, because a container's cgroup is there before its first instruction
//! and a pod's address reaches the API seconds later. Never by mark: CAP_NET_RAW can set that.

use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id};

use crate::maps::{self, config};

/// How deep below the root the attached cgroup may be: nested nodes (kind) reach 5.
const MAX_LEVEL: i32 = 12;

/// The calling task's place in the cgroup tree.
pub(crate) struct Caller {
    /// Its own cgroup.
    pub(crate) cgroup_id: u64,
    /// The ancestors one and two levels below the attached one; 0 where there is none.
    pub(crate) ancestor_ids: [u64; 2],
    /// The pod's cgroup, as far as it can be told: else the deepest one that can.
    pub(crate) pod_id: u64,
}

/// Whether the agent itself is calling.
#[inline(always)]
pub(crate) fn is_agent() -> bool {
    maps::is_exempt(current_cgroup())
}

/// The calling task.
#[inline(always)]
pub(crate) fn current() -> Caller {
    let cgroup_id = current_cgroup();
    let attached = config!(attached_cgroup);
    let mut ancestor_ids = [0; 2];
    // Found by walking and not told by the agent: in a container, its view of the tree may start
    // anywhere.
    for level in 0..MAX_LEVEL {
        if ancestor(level) == attached {
            ancestor_ids = [ancestor(level + 1), ancestor(level + 2)];
            break;
        }
    }
    let [first, second] = ancestor_ids;
    let pod_id = if second != 0 && maps::is_qos_cgroup(first) {
        second
    } else if first != 0 {
        first
    } else {
        cgroup_id
    };
    Caller { cgroup_id, ancestor_ids, pod_id }
}

#[inline(always)]
fn current_cgroup() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_current_cgroup_id() }
}

#[inline(always)]
fn ancestor(level: i32) -> u64 {
    // SAFETY: the helper takes a number and answers 0 where there is no such ancestor.
    unsafe { bpf_get_current_ancestor_cgroup_id(level) }
}
