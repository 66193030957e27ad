//! The one clock that the kernel's programs share with the agent.

/// CLOCK_MONOTONIC in nanoseconds: what `bpf_ktime_get_ns` gives the programs. It goes on over restarts of
/// the agent and begins anew with the kernel.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one timespec, written by the kernel.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
