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
    // Each way on its own, as at connect(): where they meet, the verifier of older kernels looks at a
    // destination that is none ("R6 invalid mem access").
    if let Some(destination) = maps::destination(dialled) {
        if caller::is_agent() {
            return ctx::allow(Verdict::Exempt);
        }
        // As at connect(): what is not redirected may speak QUIC as it likes.
        let enforcement = maps::enforcement(destination, caller::current().pod_id);
        if enforcement == enforcement::OBSERVE || enforcement == enforcement::LOOSE && !maps::is_beating() {
            return ALLOW;
        }
        return ctx::refuse(ctx, Verdict::RefusedUdp, ECONNREFUSED);
    }
    if !maps::is_vip(dialled) {
        return ALLOW;
    }
    if caller::is_agent() {
        return ctx::allow(Verdict::Exempt);
    }
    ctx::refuse(ctx, Verdict::RefusedUdp, ECONNREFUSED)
}
