//! connect(2): sends what goes to a destination to its VIP, and remembers where it was going.
//!
//! Here and not in netfilter, because a refusal is then an errno that the caller sees at once, and
//! because the caller's cgroup is known. Decided by destination first: whoever dials it is captured,
//! known or not. `Err` is a refusal, so `?` fails closed.

use aya_ebpf::programs::SockAddrContext;
use hnp_common::Verdict;
use hnp_common::layout::{Destination, SocketState, enforcement};

use crate::caller::Caller;
use crate::ctx::{self, ECONNREFUSED, Endpoint};
use crate::maps::config;
use crate::stack::read_address;
use crate::{caller, maps};

#[inline(always)]
pub(crate) fn v4(ctx: &SockAddrContext) -> i32 {
    let dialled = ctx::meant(ctx, ctx::endpoint4(ctx));
    conclude(ctx, dialled, decide(ctx, dialled), ctx::set_endpoint4)
}

#[inline(always)]
pub(crate) fn v6(ctx: &SockAddrContext) -> i32 {
    // A v4-mapped address is the key of the IPv4 destination, and its VIP is v4-mapped in turn.
    let dialled = ctx::meant(ctx, ctx::endpoint6(ctx));
    conclude(ctx, dialled, decide(ctx, dialled), ctx::set_endpoint6)
}

/// Where the call goes, and what that counts as.
struct Way {
    verdict: Verdict,
    to: Endpoint,
}

#[inline(always)]
fn conclude(
    ctx: &SockAddrContext,
    dialled: Endpoint,
    way: Result<Way, Verdict>,
    rewrite: impl FnOnce(&SockAddrContext, Endpoint),
) -> i32 {
    // Every way has an endpoint, refused or not. Without CAP_PERFMON, Linux before 6.17 also follows the
    // branches that are never taken (a processor might, for a moment), and there a value that belongs
    // to another way was never written ("R4 !read_ok").
    let (refused, Way { verdict, to }) = match way {
        Ok(way) => (false, way),
        // Where refusals carry no errno (< 5.18) a closed port gives the same one: on the caller's own
        // loopback, where nothing of it leaves the pod.
        Err(verdict) => (true, Way { verdict, to: dialled.nowhere() }),
    };
    if refused && config!(has_set_retval) != 0 {
        return ctx::refuse(ctx, verdict, ECONNREFUSED);
    }
    if to != dialled {
        rewrite(ctx, to);
    }
    ctx::allow(verdict)
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, dialled: Endpoint) -> Result<Way, Verdict> {
    if let Some(destination) = maps::destination(dialled) {
        if caller::is_agent() {
            return Ok(Way { verdict: Verdict::Exempt, to: dialled });
        }
        return to_destination(ctx, dialled, destination);
    }
    if maps::is_vip(dialled) {
        if caller::is_agent() {
            return Ok(Way { verdict: Verdict::Exempt, to: dialled });
        }
        return to_vip(ctx, dialled);
    }
    // This socket may have gone to a destination before.
    maps::forget(ctx::socket(ctx), || ctx::cookie(ctx));
    Ok(Way { verdict: Verdict::Missed, to: dialled })
}

/// A destination was dialled: what holds for this pod, and whether an agent serves, decide.
#[inline(always)]
fn to_destination(
    ctx: &SockAddrContext,
    dialled: Endpoint,
    destination: &Destination,
) -> Result<Way, Verdict> {
    let caller = caller::current();
    let enforcement = maps::enforcement(destination, caller.pod_id);
    if enforcement == enforcement::OBSERVE {
        maps::forget(ctx::socket(ctx), || ctx::cookie(ctx));
        if stream_only(ctx).is_ok() {
            maps::count_observed(destination, &caller);
        }
        return Ok(Way { verdict: Verdict::Observed, to: dialled });
    }
    if !maps::is_beating() {
        if enforcement == enforcement::LOOSE {
            maps::forget(ctx::socket(ctx), || ctx::cookie(ctx));
            if stream_only(ctx).is_ok() {
                maps::count_loose_direct(destination, &caller);
            }
            return Ok(Way { verdict: Verdict::LooseDirect, to: dialled });
        }
        return Err(Verdict::RefusedStale);
    }
    stream_only(ctx)?;
    let vip = Endpoint { address: read_address(&destination.vip), port: config!(agent_port) };
    let flags = if enforcement == enforcement::STRICT { SocketState::STRICT } else { 0 };
    remember(ctx, &caller, dialled, vip, destination.id, flags)?;
    Ok(Way { verdict: Verdict::Redirected, to: vip })
}

/// A VIP was dialled, by the pod itself as far as this instance of the programs can tell.
///
/// While a successor takes over, two instances run in a row for a moment, each with sockets of its
/// own: what the first one redirects is direct to the second. The agent serves it, marked as direct;
/// it is refused if the successor has another port.
#[inline(always)]
fn to_vip(ctx: &SockAddrContext, dialled: Endpoint) -> Result<Way, Verdict> {
    stream_only(ctx)?;
    if let Some(state) = maps::state(ctx::socket(ctx))
        && state.vip == dialled.address
        && state.agent_port == dialled.port
        && state.flags & (SocketState::STARTED | SocketState::DIRECT) == 0
    {
        return Ok(Way { verdict: Verdict::AlreadyDone, to: dialled });
    }
    if dialled.port != config!(agent_port) {
        return Err(Verdict::RefusedVipPort);
    }
    // Never what an earlier connect() left: the pod goes where it says now.
    remember(ctx, &caller::current(), dialled, dialled, 0, SocketState::DIRECT)?;
    Ok(Way { verdict: Verdict::Direct, to: dialled })
}

/// Only TCP is carried; anything else to a destination is refused, so that clients fall back to it.
#[inline(always)]
fn stream_only(ctx: &SockAddrContext) -> Result<(), Verdict> {
    const TCP: u32 = hnp_common::layout::TCP as u32;
    const MPTCP: u32 = 262;
    match ctx::protocol(ctx) {
        TCP | MPTCP => Ok(()),
        _ => Err(Verdict::RefusedUdp),
    }
}

#[inline(always)]
fn remember(
    ctx: &SockAddrContext,
    caller: &Caller,
    dialled: Endpoint,
    vip: Endpoint,
    destination: u32,
    flags: u32,
) -> Result<(), Verdict> {
    if maps::is_at_limit(caller.pod_id) {
        return Err(Verdict::RefusedFlowLimit);
    }
    let state = maps::state_or_new(ctx::socket(ctx)).ok_or(Verdict::RefusedNotStored)?;
    maps::release(state, true, || ctx::cookie(ctx));
    // Field by field: a whole value on the stack is zeroed by a loop that the verifier accepts from
    // CAP_PERFMON only. The flow's key stays as it is; no flag says that there is one.
    state.orig_address = dialled.address;
    state.vip = vip.address;
    state.orig_port = dialled.port;
    state.agent_port = vip.port;
    state.destination = destination;
    state.cgroup_id = caller.cgroup_id;
    state.ancestor_ids = caller.ancestor_ids;
    state.pod_id = caller.pod_id;
    state.flags = flags;
    Ok(())
}
