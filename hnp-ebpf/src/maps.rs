//! Every map: who owns it, how long an entry lives, who deletes it.

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuArray};
use hnp_common::Verdict;
use hnp_common::layout::{
    Config, Destination, DestinationKey, FlowKey, FlowValue, MAX_DESTINATIONS, MAX_EXEMPT, MAX_FLOWS,
    MAX_PODS, MAX_QOS_CGROUPS, SocketState, TCP,
};

use crate::ctx::Endpoint;

/// Set by the agent before loading; read-only and frozen, so the verifier prunes by it.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Global<Config> = Global::new(Config::EMPTY);

/// Owned by the agent: it inserts and deletes what routes name.
#[map]
static DESTINATIONS: HashMap<DestinationKey, Destination> = HashMap::with_max_entries(MAX_DESTINATIONS, 0);

/// Owned by the kernel side: made at connect(), deleted by a connect() to elsewhere or with the socket.
#[btf_map]
static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Written at the SYN; taken by the agent on accept. Deleted when the connection does not come about,
/// and swept out by the agent when it closed long ago and was never accepted.
/// Not an LRU: an eviction would cut the connection of somebody else.
#[map]
static FLOWS: HashMap<FlowKey, FlowValue> = HashMap::with_max_entries(MAX_FLOWS, 0);

/// Open captured connections by pod. Counted at the SYN, uncounted when the socket closes. An LRU,
/// because nobody tells when a pod is gone for good; an evicted pod starts again at zero.
#[map]
static PODS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(MAX_PODS, 0);

/// Owned by the agent: cgroups between the attached one and the pods (`burstable`, `besteffort`).
#[map]
static QOS_CGROUPS: HashMap<u64, u8> = HashMap::with_max_entries(MAX_QOS_CGROUPS, 0);

/// Owned by the agent: its cgroup, which is never redirected and alone may bind the agent's port. A map
/// and no constant: a successor starts in another cgroup and must bind the port while the programs of
/// the one that died still guard it.
#[map]
static EXEMPT: HashMap<u64, u8> = HashMap::with_max_entries(MAX_EXEMPT, 0);

/// One counter per verdict; never reset while the programs are loaded.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::COUNT, 0);

/// One field of the configuration. Field by field, because the whole does not fit the stack well.
macro_rules! config {
    ($($field:tt)+) => {{
        let config = (&raw const $crate::maps::CONFIG).cast::<hnp_common::layout::Config>();
        // SAFETY: `Global<T>` is transparent over a `T` that is always initialised; the read is
        // volatile, because the loader changes what the compiler believes to be constant.
        unsafe { core::ptr::read_volatile(&raw const (*config).$($field)+) }
    }};
}
pub(crate) use config;

/// The destination that a pod dials, if it is one.
#[inline(always)]
pub(crate) fn destination(dialled: Endpoint) -> Option<&'static Destination> {
    let key = DestinationKey { address: dialled.address, port: dialled.port, protocol: TCP, pad: 0 };
    // SAFETY: entries are written whole by the agent and reused only after a grace period; an entry
    // that is deleted meanwhile still reads as one of the destinations there were.
    unsafe { DESTINATIONS.get(key) }
}

/// Whether the dialled address is a VIP, in use or not.
#[inline(always)]
pub(crate) fn is_vip(dialled: Endpoint) -> bool {
    let [a, b, c, d] = dialled.address.0;
    macro_rules! within {
        ($range:ident) => {
            a & config!($range.mask.0[0]) == config!($range.base.0[0])
                && b & config!($range.mask.0[1]) == config!($range.base.0[1])
                && c & config!($range.mask.0[2]) == config!($range.base.0[2])
                && d & config!($range.mask.0[3]) == config!($range.base.0[3])
        };
    }
    within!(vips4) || within!(vips6)
}

/// What is remembered with a socket.
#[inline(always)]
pub(crate) fn state(sk: *mut bpf_sock) -> Option<&'static mut SocketState> {
    // SAFETY: `sk` is the context's socket; the value belongs to it. connect() and the events of a
    // connection hold the socket's lock, so nobody else changes it meanwhile.
    unsafe {
        bpf_sk_storage_get(sockets(), sk.cast(), core::ptr::null_mut(), 0).cast::<SocketState>().as_mut()
    }
}

/// Room to remember something with a socket: what was there, or zeroes. `None`: no memory for it.
#[inline(always)]
pub(crate) fn state_or_new(sk: *mut bpf_sock) -> Option<&'static mut SocketState> {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as in `state`; the kernel fills new values with zeroes, which are a valid state.
    unsafe {
        bpf_sk_storage_get(sockets(), sk.cast(), core::ptr::null_mut(), flags).cast::<SocketState>().as_mut()
    }
}

/// Forgets what is remembered with a socket; it may have gone to a destination before.
#[inline(always)]
pub(crate) fn forget(sk: *mut bpf_sock, cookie: impl FnOnce() -> u64) {
    if let Some(state) = state(sk) {
        release(state, true, cookie);
        // SAFETY: as in `state`.
        unsafe { bpf_sk_storage_delete(sockets(), sk.cast()) };
    }
}

/// Gives back what a connection holds beside its socket: its place in the pod's count, and its flow.
///
/// The flags say what it holds, so this may be called any number of times. A flow is deleted only if
/// the agent will never see its connection. One that was established waits in the agent's backlog,
/// and a client may well have sent all it had to say and be gone by then: that flow is marked, and
/// the agent sweeps it out if it never comes to accept it.
#[inline(always)]
pub(crate) fn release(state: &mut SocketState, established: bool, cookie: impl FnOnce() -> u64) {
    if state.flags & SocketState::COUNTED != 0 {
        uncount_connection(state.pod_id);
    }
    if state.flags & SocketState::FLOW != 0
        && let Some(flow) = FLOWS.get_ptr_mut(state.flow)
        // SAFETY: a map value, valid while the program runs; the worst a reused entry can do is to
        // have another cookie.
        && unsafe { (*flow).cookie } == cookie()
    {
        if established {
            // SAFETY: as above.
            unsafe { (*flow).flags |= FlowValue::CLOSED };
        } else if FLOWS.remove(state.flow).is_ok() {
            count(Verdict::FlowDropped);
        }
    }
    // STARTED stays: what this socket dials next is its own doing.
    state.flags &= SocketState::DIRECT | SocketState::STARTED;
}

/// Offers a connection to the agent. `false`: the map is full.
#[inline(always)]
pub(crate) fn offer_flow(key: &FlowKey, value: &FlowValue) -> bool {
    FLOWS.insert(key, value, 0).is_ok()
}

/// Whether the pod has as many captured connections open as it may have.
#[inline(always)]
pub(crate) fn is_at_limit(pod_id: u64) -> bool {
    // SAFETY: read-only.
    unsafe { PODS.get(pod_id) }.is_some_and(|open| *open >= u64::from(config!(connections_per_pod)))
}

/// Counts one more open connection of the pod.
#[inline(always)]
pub(crate) fn count_connection(pod_id: u64) {
    if PODS.get_ptr_mut(pod_id).is_none() {
        // Somebody else's first connection may be quicker: then this adds to theirs.
        let _ = PODS.insert(pod_id, 0, BPF_NOEXIST.into());
    }
    if let Some(open) = PODS.get_ptr_mut(pod_id) {
        add(open, 1);
    }
}

/// Counts one less. Stops at zero: an evicted pod started again while connections were open.
#[inline(always)]
fn uncount_connection(pod_id: u64) {
    if let Some(open) = PODS.get_ptr_mut(pod_id)
        // SAFETY: a map value, valid while the program runs.
        && unsafe { open.read_volatile() } > 0
    {
        add(open, u64::MAX);
    }
}

/// Whether the cgroup stands between the attached one and the pods.
#[inline(always)]
pub(crate) fn is_qos_cgroup(id: u64) -> bool {
    QOS_CGROUPS.get_ptr(id).is_some()
}

/// Whether the cgroup is the agent's.
#[inline(always)]
pub(crate) fn is_exempt(cgroup_id: u64) -> bool {
    EXEMPT.get_ptr(cgroup_id).is_some()
}

/// Counts a verdict.
#[inline(always)]
pub(crate) fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict.index()) {
        // SAFETY: this CPU's own slot; programs of this kind do not interrupt each other on one CPU
        // except from softirq, where a lost count is the price of not paying for an atomic.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
fn add(to: *mut u64, amount: u64) {
    // The intrinsic, because core offers `fetch_add` only where there is compare-and-swap, too.
    // SAFETY: a map value, aligned to 8 bytes and valid while the program runs.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(to, amount) };
}

#[inline(always)]
fn sockets() -> *mut c_void {
    (&raw const SOCKETS).cast_mut().cast()
}
