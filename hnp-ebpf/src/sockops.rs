//! The life of a redirected connection: offered to the agent at its SYN, given back when it closes.
//!
//! At the SYN (`TCP_CONNECT_CB`) and not at ESTABLISHED, because the source port is known there for
//! the first time and with TCP Fast Open the agent may accept before the connection is established.
//! This runs several times for every TCP connection of every pod: it leaves early.

use aya_ebpf::programs::SockOpsContext;
use hnp_common::Verdict;
use hnp_common::layout::{FlowValue, SocketState};

use crate::ctx::{self, Event};
use crate::maps;
use crate::stack::{Words, pair};

#[inline(always)]
pub(crate) fn event(ctx: &SockOpsContext) {
    let event = ctx::event(ctx);
    if let Event::Other = event {
        return;
    }
    let sk = ctx::event_socket(ctx);
    if sk.is_null() {
        return;
    }
    let Some(state) = maps::state(sk) else { return };
    match event {
        Event::Connecting => connecting(ctx, state),
        Event::Closed { established } => maps::release(state, established, || ctx::event_cookie(ctx)),
        Event::Other => {}
    }
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext, state: &mut SocketState) {
    if state.flags & SocketState::STARTED != 0 {
        return;
    }
    state.flags |= SocketState::STARTED;
    // Checked at connect(), too; here for those that called connect() and sent no SYN until now.
    if maps::is_at_limit(state.pod_id) {
        maps::count(Verdict::FlowOverLimit);
        return;
    }
    ctx::watch_state(ctx);
    maps::count_connection(state.pod_id);
    state.flags |= SocketState::COUNTED;

    let client = ctx::local(ctx);
    // In its place with the socket, from where the map takes it, too. No flag says yet that it is there.
    state.flow.client = client.address;
    state.flow.vip = state.vip;
    state.flow.client_port = client.port;
    state.flow.pad = 0;
    let [a, b, c, d] = state.orig_address.0;
    let flow = Words::new([
        pair(a, b),
        pair(c, d),
        pair(state.orig_port.into(), state.flags & (SocketState::DIRECT | SocketState::STRICT)),
        state.cgroup_id,
        state.ancestor_ids[0],
        state.ancestor_ids[1],
        ctx::event_cookie(ctx),
        pair(state.destination, 0),
        // Zeroes, from where the compiler does not know it: a run of constant ones is set by a loop that the
        // verifier accepts from CAP_PERFMON only.
        state.reserved[0],
        state.reserved[1],
    ]);
    // SAFETY: these are the fields of a flow in their order.
    if maps::offer_flow(&state.flow, unsafe { flow.as_ref::<FlowValue>() }) {
        state.flags |= SocketState::FLOW;
        maps::count(Verdict::FlowStored);
    } else {
        // The agent finds no flow and refuses the connection.
        maps::count(Verdict::FlowMapFull);
        #[cfg(feature = "log")]
        aya_log_ebpf::warn!(ctx, "the flow map is full; the agent will refuse a connection");
    }
}
