//! What the kernel decided, one counter each: index into the per-CPU array `COUNTERS`, and the value
//! of the metric's label. Indices are between one object and the agent that carries it; names are an
//! interface.

use crate::Reason;

macro_rules! verdicts {
    ($($(#[doc = $what:literal])+ $name:ident = $code:literal, $reason:expr;)+) => {
        /// What a hook decided about one call.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Verdict { $($(#[doc = $what])+ $name),+ }

        impl Verdict {
            /// Every verdict, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The stable word for metrics.
            pub const fn code(self) -> &'static str { match self { $(Self::$name => $code),+ } }

            /// The reason the caller was refused for; `None` where it was not.
            pub const fn reason(self) -> Option<Reason> { match self { $(Self::$name => $reason),+ } }
        }
    };
}

verdicts! {
    /// connect() to a destination, sent to its VIP.
    Redirected = "redirected", None;
    /// connect() to a VIP by the pod itself; let through, recorded as direct.
    Direct = "direct", None;
    /// connect() that another instance of the programs had redirected already.
    AlreadyDone = "already_done", None;
    /// connect() to somewhere else; untouched.
    Missed = "missed", None;
    /// A call by the agent; untouched.
    Exempt = "exempt", None;
    /// connect() to an observed destination; untouched and counted by workload.
    Observed = "observed", None;
    /// connect() to a loose destination while no agent answers; untouched and counted by workload.
    LooseDirect = "loose_direct", None;
    /// connect() to a strict destination refused: no agent answers.
    RefusedStale = "agent_stale", Some(Reason::AgentStale);
    /// connect() refused: the original destination could not be kept.
    RefusedNotStored = "orig_dst_not_stored", Some(Reason::OrigDstNotStored);
    /// connect() to a VIP refused: not the agent's port.
    RefusedVipPort = "vip_port", Some(Reason::VipPort);
    /// connect() refused: the pod has too many captured connections open.
    RefusedFlowLimit = "flow_limit", Some(Reason::FlowLimit);
    /// connect() or sendmsg() of a datagram socket to a destination refused.
    RefusedUdp = "udp_refused", Some(Reason::UdpRefused);
    /// bind() to the agent's port refused.
    RefusedBind = "bind_refused", Some(Reason::BindRefused);
    /// getpeername() answered with what the pod had dialled.
    PeerRestored = "peer_restored", None;
    /// A flow was written for the agent to take.
    FlowStored = "flow_stored", None;
    /// A flow could not be written, so the agent will refuse the connection: the map is full.
    FlowMapFull = "flow_map_full", Some(Reason::NoFlow);
    /// A flow was not written, so the agent will refuse the connection: the pod is over its limit.
    FlowOverLimit = "flow_over_limit", Some(Reason::FlowLimit);
    /// A flow was deleted, because its connection did not come about.
    FlowDropped = "flow_dropped", None;
    /// A TCP packet that no hook had seen was on its way to a strict destination; answered with RST.
    GuardReset = "guard_reset", Some(Reason::Guarded);
    /// A packet that no hook had seen was on its way to a strict destination; dropped.
    GuardDropped = "guard_dropped", Some(Reason::Guarded);
    /// socket() for a raw IP socket refused, where `capture.raw_sockets` says so.
    RefusedRawSocket = "raw_socket_refused", Some(Reason::RawSocketRefused);
}

impl Verdict {
    /// How many there are: the size of `COUNTERS`.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// Its counter.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict;

    #[test]
    fn indices_are_dense_and_codes_unique() {
        for (i, a) in Verdict::ALL.iter().enumerate() {
            assert_eq!(a.index() as usize, i);
            for b in &Verdict::ALL[i + 1..] {
                assert_ne!(a.code(), b.code());
            }
        }
    }

    #[test]
    fn a_refusal_is_counted_under_its_reason() {
        use Verdict::*;
        for verdict in
            [RefusedStale, RefusedNotStored, RefusedVipPort, RefusedFlowLimit, RefusedUdp, RefusedBind]
        {
            assert_eq!(verdict.reason().map(|reason| reason.code()), Some(verdict.code()));
        }
    }
}
