//! getpeername(2): the pod sees the address it dialled, not the VIP.

use aya_ebpf::programs::SockAddrContext;
use hnp_common::Verdict;

use crate::ctx::{self, ALLOW, Endpoint};
use crate::maps;
use crate::stack::read_address;

#[inline(always)]
pub(crate) fn v4(ctx: &SockAddrContext) -> i32 {
    let peer = ctx::endpoint4(ctx);
    if let Some(dialled) = dialled(ctx, peer) {
        ctx::set_endpoint4(ctx, dialled);
    }
    ALLOW
}

#[inline(always)]
pub(crate) fn v6(ctx: &SockAddrContext) -> i32 {
    let peer = ctx::endpoint6(ctx);
    if let Some(dialled) = dialled(ctx, peer) {
        ctx::set_endpoint6(ctx, dialled);
    }
    ALLOW
}

/// What was dialled, if the peer is the VIP this socket was sent to. The hook also runs for accepted
/// and for ordinary sockets: those have no state.
#[inline(always)]
fn dialled(ctx: &SockAddrContext, peer: Endpoint) -> Option<Endpoint> {
    let state = maps::state(ctx::socket(ctx))?;
    if state.vip != peer.address || state.agent_port != peer.port {
        return None;
    }
    maps::count(Verdict::PeerRestored);
    Some(Endpoint { address: read_address(&state.orig_address), port: state.orig_port })
}
