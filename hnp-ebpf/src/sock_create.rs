//! socket(2), only where the operator asked for it: pods get no raw IP sockets.
//!
//! A socket that is only being made has no destination, so this is all or nothing, and breaks ping in
//! images that send ICMP by raw sockets. It holds where no guard can stand. Raw sockets alone: packet
//! sockets (AF_PACKET) pass no cgroup hook, and all others connect or send later. In the node's own
//! network namespace network plugins need theirs, and nothing is promised for pods there.

use aya_ebpf::programs::SockContext;
use hnp_common::Verdict;

use crate::ctx::{self, ALLOW, DENY};
use crate::maps::{self, config};

/// `SOCK_RAW` of linux/net.h.
const SOCK_RAW: u32 = 3;

/// IPv4 and IPv6 alike: the hook sees no other family.
#[inline(always)]
pub(crate) fn judge(ctx: &SockContext) -> i32 {
    if ctx::new_socket_type(ctx) != SOCK_RAW || ctx::new_socket_netns(ctx) == config!(agent_netns) {
        return ALLOW;
    }
    maps::count(Verdict::RefusedRawSocket);
    // EPERM, as for a process without CAP_NET_RAW.
    DENY
}
