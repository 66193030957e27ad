//! The only file that touches the raw context.
//!
//! Each field is read on its own and volatile: otherwise LLVM merges two loads into one through a
//! computed pointer, and the verifier answers "dereference of modified ctx ptr disallowed".

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr, bpf_sock_ops};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval, bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::programs::{SockAddrContext, SockContext, SockOpsContext};
use hnp_common::Verdict;
use hnp_common::layout::Address;

use crate::maps;

/// A hook's answer: let the call go on.
pub(crate) const ALLOW: i32 = 1;
/// A hook's answer: the call fails, with EPERM unless another errno was set.
pub(crate) const DENY: i32 = 0;

/// errno 98: somebody else has that address.
pub(crate) const EADDRINUSE: i32 = 98;
/// errno 111: what clients retry, or take as "no HTTP/3 here", sanely.
pub(crate) const ECONNREFUSED: i32 = 111;

/// An address and port as they stand in the context, both in network order.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    pub(crate) port: u16,
}

impl Endpoint {
    /// A port that nobody listens on (tcpmux, RFC 1078), on the loopback of the same family.
    #[inline(always)]
    pub(crate) fn nowhere(self) -> Self {
        const PORT: u16 = 1_u16.to_be();
        const V4: u32 = 0x7f00_0001_u32.to_be();
        let [a, b, c, _] = self.address.0;
        let address = if Address([a, b, c, V4]) == Address::v4(V4) {
            Address::v4(V4)
        } else {
            Address([0, 0, 0, 1_u32.to_be()])
        };
        Self { address, port: PORT }
    }
}

macro_rules! read {
    ($base:expr, $($field:tt)+) => {{
        let base = $base;
        // SAFETY: the kernel hands each hook a context of this type, valid while the hook runs.
        unsafe { read_volatile(&raw const (*base).$($field)+) }
    }};
}

macro_rules! write {
    ($base:expr, $field:ident $([$i:expr])?, $value:expr) => {{
        let base = $base;
        // SAFETY: as for reading; the verifier admits these fields for writing in this hook.
        unsafe { write_volatile(&raw mut (*base).$field $([$i])?, $value) }
    }};
}

/// The IPv4 address and port of this call.
#[inline(always)]
pub(crate) fn endpoint4(ctx: &SockAddrContext) -> Endpoint {
    Endpoint { address: Address::v4(read!(ctx.sock_addr, user_ip4)), port: port(ctx) }
}

/// The IPv6 address and port of this call.
#[inline(always)]
pub(crate) fn endpoint6(ctx: &SockAddrContext) -> Endpoint {
    let sa: *mut bpf_sock_addr = ctx.sock_addr;
    let words =
        [read!(sa, user_ip6[0]), read!(sa, user_ip6[1]), read!(sa, user_ip6[2]), read!(sa, user_ip6[3])];
    Endpoint { address: Address(words), port: port(ctx) }
}

/// Changes the address and port of this call to IPv4.
#[inline(always)]
pub(crate) fn set_endpoint4(ctx: &SockAddrContext, to: Endpoint) {
    write!(ctx.sock_addr, user_ip4, to.address.v4_word());
    write!(ctx.sock_addr, user_port, u32::from(to.port));
}

/// Changes the address and port of this call to IPv6.
#[inline(always)]
pub(crate) fn set_endpoint6(ctx: &SockAddrContext, to: Endpoint) {
    let words = to.address.0;
    write!(ctx.sock_addr, user_ip6[0], words[0]);
    write!(ctx.sock_addr, user_ip6[1], words[1]);
    write!(ctx.sock_addr, user_ip6[2], words[2]);
    write!(ctx.sock_addr, user_ip6[3], words[3]);
    write!(ctx.sock_addr, user_port, u32::from(to.port));
}

/// The port of this call, network order.
#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u16 {
    read!(ctx.sock_addr, user_port) as u16
}

/// The socket's type: `SOCK_STREAM` and so on.
#[inline(always)]
pub(crate) fn socket_type(ctx: &SockAddrContext) -> u32 {
    read!(ctx.sock_addr, type_)
}

/// The socket's protocol: `IPPROTO_TCP` and so on.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> u32 {
    read!(ctx.sock_addr, protocol)
}

/// The socket. Never null in these hooks.
#[inline(always)]
pub(crate) fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    read!(ctx.sock_addr, __bindgen_anon_1.sk)
}

/// The IPv4 address that the socket is bound to; 0 where it is to none.
#[inline(always)]
fn bound4(ctx: &SockAddrContext) -> u32 {
    read!(socket(ctx), src_ip4)
}

/// Where the kernel goes for whoever dials 0.0.0.0: to the address the socket is bound to, which another
/// process may be listening on (`ip_route_output_key` of net/ipv4/route.c).
#[inline(always)]
pub(crate) fn meant(ctx: &SockAddrContext, dialled: Endpoint) -> Endpoint {
    if dialled.address == Address::v4(0) {
        return Endpoint { address: Address::v4(bound4(ctx)), port: dialled.port };
    }
    dialled
}

/// A number that names the socket while the kernel runs.
#[inline(always)]
pub(crate) fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes this hook's context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// A number that names the socket's network namespace while the kernel runs.
#[inline(always)]
pub(crate) fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes this hook's context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The type of a socket that is being made.
#[inline(always)]
pub(crate) fn new_socket_type(ctx: &SockContext) -> u32 {
    read!(ctx.sock, type_)
}

/// As [`netns`], of a socket that is being made.
#[inline(always)]
pub(crate) fn new_socket_netns(ctx: &SockContext) -> u64 {
    // SAFETY: the helper takes this hook's context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// Counts a call and lets it go on.
#[inline(always)]
pub(crate) fn allow(verdict: Verdict) -> i32 {
    maps::count(verdict);
    ALLOW
}

/// Counts a refusal and has the caller see `errno`; EPERM where the kernel cannot carry one (< 5.18).
#[inline(always)]
pub(crate) fn refuse(ctx: &SockAddrContext, verdict: Verdict, errno: i32) -> i32 {
    maps::count(verdict);
    // Numbers only: copying text of a length that is not constant needs CAP_PERFMON.
    #[cfg(feature = "log")]
    aya_log_ebpf::info!(
        ctx,
        "port {}: refused, verdict {}, errno {}",
        u16::from_be(port(ctx)),
        verdict.index(),
        errno
    );
    #[cfg(not(feature = "log"))]
    let _ = ctx;
    if maps::config!(has_set_retval) != 0 {
        // SAFETY: the helper takes a number. It exists: user space probed for it.
        unsafe { bpf_set_retval(-errno) };
    }
    DENY
}

/// What happened to a TCP connection.
pub(crate) enum Event {
    /// The SYN is about to be sent; both ends of the connection are known.
    Connecting,
    /// The connection is over; it may never have been established.
    Closed { established: bool },
    /// Nothing of interest.
    Other,
}

/// Which event this is.
#[inline(always)]
pub(crate) fn event(ctx: &SockOpsContext) -> Event {
    const TCP_CONNECT_CB: u32 = 3;
    const STATE_CB: u32 = 10;
    const TCP_SYN_SENT: u32 = 2;
    const TCP_CLOSE: u32 = 7;
    match read!(ctx.ops, op) {
        TCP_CONNECT_CB => Event::Connecting,
        STATE_CB => {
            let (before, now) =
                (read!(ctx.ops, __bindgen_anon_1.args[0]), read!(ctx.ops, __bindgen_anon_1.args[1]));
            if now == TCP_CLOSE {
                Event::Closed { established: before != TCP_SYN_SENT }
            } else {
                Event::Other
            }
        }
        _ => Event::Other,
    }
}

/// The event's socket; null while there is only half a socket.
#[inline(always)]
pub(crate) fn event_socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    read!(ctx.ops, __bindgen_anon_2.sk)
}

/// As [`cookie`].
#[inline(always)]
pub(crate) fn event_cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes this hook's context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// The local end of the connection, port in network order.
#[inline(always)]
pub(crate) fn local(ctx: &SockOpsContext) -> Endpoint {
    const AF_INET: u32 = 2;
    let ops: *mut bpf_sock_ops = ctx.ops;
    // Both families are read before one is chosen: volatile loads in two branches still become one
    // load behind the branch, through a computed pointer ("dereference of modified ctx ptr").
    let v4 = read!(ops, local_ip4);
    let v6 = [
        read!(ops, local_ip6[0]),
        read!(ops, local_ip6[1]),
        read!(ops, local_ip6[2]),
        read!(ops, local_ip6[3]),
    ];
    let address = if read!(ops, family) == AF_INET { Address::v4(v4) } else { Address(v6) };
    // The one port that the kernel hands out in host order.
    Endpoint { address, port: (read!(ops, local_port) as u16).to_be() }
}

/// Asks for [`Event::Closed`] of this connection, too.
#[inline(always)]
pub(crate) fn watch_state(ctx: &SockOpsContext) {
    const STATE_CB_FLAG: u32 = 1 << 2;
    let flags = read!(ctx.ops, bpf_sock_ops_cb_flags) | STATE_CB_FLAG;
    // SAFETY: the helper takes this hook's context. It fails only for flags unknown to the kernel;
    // this one is as old as socket storage in this hook.
    unsafe { bpf_sock_ops_cb_flags_set(ctx.ops, flags as i32) };
}
