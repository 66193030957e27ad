//! bind(2): nobody under kubepods but the agent takes the agent's port.
//!
//! A process of the agent's uid could otherwise share the port (SO_REUSEPORT) and receive a part of
//! all captured connections. Only the agent's network namespace matters: in its own, a pod may use
//! any port it likes.

use aya_ebpf::programs::SockAddrContext;
use hnp_common::Verdict;

use crate::caller;
use crate::ctx::{self, ALLOW, EADDRINUSE};
use crate::maps::config;

/// IPv4 and IPv6 alike: only the port counts.
#[inline(always)]
pub(crate) fn any(ctx: &SockAddrContext) -> i32 {
    const SOCK_STREAM: u32 = 1;
    let port = ctx::port(ctx);
    if port == 0 || port != config!(agent_port) || ctx::socket_type(ctx) != SOCK_STREAM {
        return ALLOW;
    }
    let agents = config!(agent_netns);
    if agents != 0 && ctx::netns(ctx) != agents {
        return ALLOW;
    }
    if caller::is_agent() {
        return ctx::allow(Verdict::Exempt);
    }
    ctx::refuse(ctx, Verdict::RefusedBind, EADDRINUSE)
}
