//! Every map: who owns it, how long an entry lives, who deletes it.

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_storage_delete, bpf_sk_storage_get,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use hnp_common::Verdict;
use hnp_common::layout::{
    Address, Config, Destination, DestinationKey, Dials, FlowKey, FlowValue, GUARD_FILTER_WORDS, Heartbeat,
    MAX_DESTINATIONS, MAX_DIALS, MAX_EXEMPT, MAX_FLOWS, MAX_GUARDED, MAX_GUARDED_NETS, MAX_NETWORKS,
    MAX_OVERRIDES, MAX_PODS, MAX_QOS_CGROUPS, NetworkKey, PodDestination, Settings, SocketState, TCP,
};

use crate::caller::Caller;
use crate::ctx::Endpoint;
use crate::stack::{Words, pair};

/// Set by the agent before loading; read-only and frozen, so the verifier prunes by it.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Global<Config> = Global::new(Config::EMPTY);

/// Owned by the agent: it inserts and deletes what routes name.
#[map]
static DESTINATIONS: HashMap<DestinationKey, Destination> = HashMap::with_max_entries(MAX_DESTINATIONS, 0);

/// As `DESTINATIONS`, for ranges of addresses: the longest prefix wins, and a single address over all.
#[map]
static NETWORKS: LpmTrie<NetworkKey, Destination> = LpmTrie::with_max_entries(MAX_NETWORKS, 0);

/// Owned by the agent: what holds for one pod and destination instead of what holds for all.
#[map]
static OVERRIDES: HashMap<PodDestination, u32> = HashMap::with_max_entries(MAX_OVERRIDES, 0);

/// Who dials observed destinations. Read by the agent; an LRU, for nobody tells when a pod is gone.
#[map]
static OBSERVED: LruHashMap<PodDestination, Dials> = LruHashMap::with_max_entries(MAX_DIALS, 0);

/// Who dials loose destinations while no agent answers. As `OBSERVED`.
#[map]
static LOOSE_DIRECT: LruHashMap<PodDestination, Dials> = LruHashMap::with_max_entries(MAX_DIALS, 0);

/// Stamped by the agent while every worker answers; nobody needs to be alive to find it stale.
#[map]
static HEARTBEAT: Array<Heartbeat> = Array::with_max_entries(1, 0);

/// Owned by the agent.
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

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

/// Owned by the agent: a bit is clear where no guarded address can be. First of all, because the keys of
/// the next two are built on the stack, and where the loader has no CAP_PERFMON the verifier puts a
/// speculation barrier behind such writes: 120 ns a packet.
#[map]
static GUARD_FILTER: Array<u64> = Array::with_max_entries(GUARD_FILTER_WORDS, 0);

/// Owned by the agent: what the guard keeps pods from, with an entry for each address at
/// [`DestinationKey::ANY_PORT`].
#[map]
static GUARDED: HashMap<DestinationKey, u8> = HashMap::with_max_entries(MAX_GUARDED, 0);

/// Owned by the agent: the same for address ranges. While there is one, all bits of the filter are set.
#[map]
static GUARDED_NETS: LpmTrie<NetworkKey, u8> = LpmTrie::with_max_entries(MAX_GUARDED_NETS, 0);

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
    let [a, b, c, d] = dialled.address.0;
    let port_and_protocol = u32::from(dialled.port) | u32::from(TCP) << 16;
    let key = Words::new([pair(a, b), pair(c, d), port_and_protocol.into()]);
    // SAFETY: these are the fields of a key in their order. Entries are written whole by the agent and
    // reused only after a grace period; one that is deleted meanwhile still reads as one of the
    // destinations there were.
    if let Some(found) = unsafe { DESTINATIONS.get(key.as_ref::<DestinationKey>()) } {
        return Some(found);
    }
    let settings = settings()?;
    // SAFETY: a map value, valid while the program runs.
    if unsafe { (&raw const (*settings).networks).read_volatile() } == 0 {
        return None;
    }
    within(&NETWORKS, dialled)
}

/// A value of an array map. Raw, because the map's own method would put an index of four bytes on the stack.
#[inline(always)]
fn value_at<T>(map: *const c_void, index: u32) -> Option<*mut T> {
    let index = Words::new([index.into()]);
    // SAFETY: a map and a key of its size.
    let value = unsafe { bpf_map_lookup_elem(map.cast_mut(), (&raw const *index.as_ref::<u32>()).cast()) };
    if value.is_null() { None } else { Some(value.cast()) }
}

#[inline(always)]
fn settings() -> Option<*mut Settings> {
    value_at((&raw const SETTINGS).cast(), 0)
}

/// The narrowest range that holds an endpoint.
#[inline(always)]
fn within<V>(ranges: &'static LpmTrie<NetworkKey, V>, endpoint: Endpoint) -> Option<&'static V> {
    // As words: aya's `Key` is packed, and bytes that are not aligned are set by loops that the verifier
    // accepts from CAP_PERFMON only.
    let [a, b, c, d] = endpoint.address.0;
    let protocol = u32::from(TCP) << 16 | u32::from(endpoint.port);
    let key = Words::new([pair(NetworkKey::BITS, protocol), pair(a, b), pair(c, d)]);
    // SAFETY: the same bytes (this target is little-endian), and no alignment is asked for.
    ranges.get(unsafe { key.as_ref::<Key<NetworkKey>>() })
}

/// What holds for a pod that dials the destination.
#[inline(always)]
pub(crate) fn enforcement(destination: &Destination, pod_id: u64) -> u8 {
    if destination.overridden != 0 {
        let key = Words::new([pod_id, destination.id.into()]);
        // SAFETY: these are the fields of a key in their order; the value is read-only, one word.
        if let Some(own) = unsafe { OVERRIDES.get(key.as_ref::<PodDestination>()) } {
            return *own as u8;
        }
    }
    destination.enforcement
}

/// Whether the agent serves: every worker answered not long ago.
#[inline(always)]
pub(crate) fn is_beating() -> bool {
    let Some(heartbeat) = value_at::<Heartbeat>((&raw const HEARTBEAT).cast(), 0) else { return false };
    // SAFETY: a map value, valid while the program runs; each word is written at once.
    let (stamp, limit) = unsafe {
        (
            (&raw const (*heartbeat).stamp_ns).read_volatile(),
            (&raw const (*heartbeat).limit_ns).read_volatile(),
        )
    };
    // A stamp from another CPU may be a little ahead of this one's clock.
    stamp != 0 && now_ns().saturating_sub(stamp) <= limit
}

/// CLOCK_MONOTONIC.
#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts a workload's dial to an observed destination.
#[inline(always)]
pub(crate) fn count_observed(destination: &Destination, caller: &Caller) {
    count_dial(&OBSERVED, destination, caller);
}

/// Counts a workload's dial to a loose destination that no agent answered for.
#[inline(always)]
pub(crate) fn count_loose_direct(destination: &Destination, caller: &Caller) {
    count_dial(&LOOSE_DIRECT, destination, caller);
}

#[inline(always)]
fn count_dial(dials: &'static LruHashMap<PodDestination, Dials>, destination: &Destination, caller: &Caller) {
    let key = Words::new([caller.pod_id, destination.id.into()]);
    // SAFETY: these are the fields of a key in their order.
    let key = unsafe { key.as_ref::<PodDestination>() };
    if let Some(seen) = dials.get_ptr_mut(key) {
        // SAFETY: a map value, valid while the program runs. Two writers at a time leave the one's or the other's
        // caller; the worst an entry can do that is given to another pod meanwhile is to count one too many there.
        unsafe {
            add(&raw mut (*seen).count, 1);
            (*seen).last_ns = now_ns();
            (*seen).cgroup_id = caller.cgroup_id;
            (*seen).ancestor_ids = caller.ancestor_ids;
        }
        return;
    }
    let [first, second] = caller.ancestor_ids;
    let seen = Words::new([1, now_ns(), caller.cgroup_id, first, second]);
    // A count is lost if another CPU was quicker.
    // SAFETY: these are the fields of a value in their order.
    let _ = dials.insert(key, unsafe { seen.as_ref::<Dials>() }, BPF_NOEXIST.into());
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
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value, the key would be copied to the stack"
)]
pub(crate) fn release(state: &mut SocketState, established: bool, cookie: impl FnOnce() -> u64) {
    if state.flags & SocketState::COUNTED != 0 {
        uncount_connection(state.pod_id);
    }
    if state.flags & SocketState::FLOW != 0
        && let Some(flow) = FLOWS.get_ptr_mut(&state.flow)
        // SAFETY: a map value, valid while the program runs; the worst a reused entry can do is to
        // have another cookie.
        && unsafe { (*flow).cookie } == cookie()
    {
        if established {
            // SAFETY: as above.
            unsafe { (*flow).flags |= FlowValue::CLOSED };
        } else if FLOWS.remove(&state.flow).is_ok() {
            count(Verdict::FlowDropped);
        }
    }
    // STARTED stays: what this socket dials next is its own doing.
    state.flags &= SocketState::DIRECT | SocketState::STARTED | SocketState::STRICT;
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

/// Whether the guard may keep pods from this address at some port.
#[inline(always)]
pub(crate) fn may_be_guarded(address: Address) -> bool {
    let bit = address.filter_bit();
    let word = value_at::<u64>((&raw const GUARD_FILTER).cast(), bit / 64);
    // SAFETY: a map value, valid while the program runs.
    word.is_some_and(|word| unsafe { word.read_volatile() } >> (bit % 64) & 1 != 0)
}

/// Whether the guard keeps pods from this address and port (network order).
#[inline(always)]
pub(crate) fn is_guarded(address: Address, port: u16) -> bool {
    let [a, b, c, d] = address.0;
    let port_and_protocol = u32::from(port) | u32::from(TCP) << 16;
    let key = Words::new([pair(a, b), pair(c, d), port_and_protocol.into()]);
    // SAFETY: these are the fields of a key in their order.
    GUARDED.get_ptr(unsafe { key.as_ref::<DestinationKey>() }).is_some()
        || within(&GUARDED_NETS, Endpoint { address, port }).is_some()
}

/// Counts a verdict.
#[inline(always)]
pub(crate) fn count(verdict: Verdict) {
    if let Some(counter) = value_at::<u64>((&raw const COUNTERS).cast(), verdict.index()) {
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
