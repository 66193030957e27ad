//! What runs in the kernel, attached once to the kubepods cgroup and, as a backstop, to pods' veths: a
//! list of hooks.
//!
//! Each hook reads, looks up, decides and writes; the decisions are in the file of its family. Past
//! "this is a destination" there are two ways out, redirect or refuse: no path lets plaintext by.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "the only way to an atomic addition on this target")]

mod bind;
mod caller;
mod connect;
mod ctx;
mod getpeername;
mod guard;
mod maps;
mod packet;
mod reset;
mod sendmsg;
mod sock_create;
mod sockops;
mod stack;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, sock_ops};
use aya_ebpf::programs::{SockAddrContext, SockContext, SockOpsContext, TcContext};

/// connect(2) over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn hnp_connect4(ctx: SockAddrContext) -> i32 {
    connect::v4(&ctx)
}

/// connect(2) over IPv6, v4-mapped addresses included.
#[cgroup_sock_addr(connect6)]
pub fn hnp_connect6(ctx: SockAddrContext) -> i32 {
    connect::v6(&ctx)
}

/// getpeername(2) over IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn hnp_getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername::v4(&ctx)
}

/// getpeername(2) over IPv6, v4-mapped addresses included.
#[cgroup_sock_addr(getpeername6)]
pub fn hnp_getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername::v6(&ctx)
}

/// bind(2) to an IPv4 address.
#[cgroup_sock_addr(bind4)]
pub fn hnp_bind4(ctx: SockAddrContext) -> i32 {
    bind::any(&ctx)
}

/// bind(2) to an IPv6 address.
#[cgroup_sock_addr(bind6)]
pub fn hnp_bind6(ctx: SockAddrContext) -> i32 {
    bind::any(&ctx)
}

/// sendmsg(2) with an address, over UDP and IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn hnp_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::v4(&ctx)
}

/// sendmsg(2) with an address, over UDP and IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn hnp_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::v6(&ctx)
}

/// Life of TCP connections. (A function called `sockops` would collide with its own ELF section.)
#[sock_ops]
pub fn hnp_sock_ops(ctx: SockOpsContext) -> u32 {
    sockops::event(&ctx);
    0
}

/// socket(2) over IPv4 and IPv6; attached only where pods are to have no raw sockets.
#[cgroup_sock(sock_create)]
pub fn hnp_sock_create(ctx: SockContext) -> i32 {
    sock_create::judge(&ctx)
}

/// What leaves a pod, at the node's end of its veth.
#[classifier]
pub fn hnp_guard(ctx: TcContext) -> i32 {
    guard::judge(&packet::Packet::of(&ctx))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing here panics: the verifier would not accept the loop if it could be reached.
    loop {}
}

/// No helper that asks for the GPL is called.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
