//! sendmsg(2) with an address: a datagram to a destination is refused.
//!
//! That is QUIC, most likely. An errno at once has clients fall back to TCP, which is carried; a
//! datagram let through would be an unencrypted way around the agent.

use aya_ebpf::programs::SockAddrContext;
use hnp_common::Verdict;
use hnp_common::layout::enforcement;

use crate::ctx::{self, ALLOW, ECONNREFUSED, Endpoint};
use crate::{caller, maps};

#[inline(always)]
pub(crate) fn v4(ctx: &SockAddrContext) -> i32 {
    decide(ctx, ctx::endpoint4(ctx))
}

#[inline(always)]
pub(crate) fn v6(ctx: &SockAddrContext) -> i32 {
    decide(ctx, ctx::endpoint6(ctx))
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, dialled: Endpoint) -> i32 {
    let destination = maps::destination(dialled);
    if destination.is_none() && !maps::is_vip(dialled) {
        return ALLOW;
    }
    if caller::is_agent() {
        return ctx::allow(Verdict::Exempt);
    }
    if let Some(destination) = destination {
        // As at connect(): what is not redirected may speak QUIC as it likes.
        let enforcement = maps::enforcement(destination, caller::current().pod_id);
        if enforcement == enforcement::OBSERVE || enforcement == enforcement::LOOSE && !maps::is_beating() {
            return ALLOW;
        }
    }
    ctx::refuse(ctx, Verdict::RefusedUdp, ECONNREFUSED)
}
