//! Sending what was written by hand: through raw IP sockets, and below IP through AF_PACKET.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use etherparse::IpNumber;
use hnp_tests::evasion::{Attack, Ending, Technique};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{LinkAddr, MsgFlags, SockaddrLike as _, sendto};
use socket2::{Domain, Protocol, Socket, Type};
use std::os::fd::AsRawFd as _;

use crate::frames::{Ends, UDP_LITE};
use crate::route::Route;
use crate::sys::{Answer as _, Outcome, set_int, socket};

/// linux/if_packet.h
const PACKET_VNET_HDR: i32 = 15;
/// A tag of 802.1Q with priority and VLAN 0.
const PRIORITY_TAG: [u8; 4] = [0x81, 0, 0, 0];
/// More than an interface of 1500 bytes takes at once.
const SUPER_SEGMENT: usize = 4000;

pub(crate) fn carry_out(attack: &Attack) -> Outcome {
    let route = Route::find()?;
    let ends = ends(attack, &route)?;
    let bytes = &attack.bytes;
    let (tcp, syn) = (IpNumber::TCP, ends.segment(true, bytes));
    // Past the TCP header and four bytes: the ports are in the first part alone, the marker in the second.
    const FIRST: u16 = 24;
    let frames = match attack.technique {
        Technique::RawTcp => return raw(attack, libc::IPPROTO_TCP, &syn),
        Technique::RawHeader => return raw(attack, libc::IPPROTO_RAW, &ends.packet(tcp, &syn)),
        Technique::PacketData => vec![ends.packet(tcp, &ends.segment(false, bytes))],
        Technique::PacketOptions => vec![ends.with_options(tcp, &syn)],
        Technique::PacketFragments => ends.fragments(tcp, &syn, FIRST).to_vec(),
        Technique::PacketSecondFragment => ends.fragments(tcp, &syn, FIRST)[1..].to_vec(),
        Technique::PacketExtension => vec![ends.behind_extensions(1, tcp, &syn)],
        Technique::PacketManyExtensions => vec![ends.behind_extensions(16, tcp, &syn)],
        Technique::PacketUdp => vec![ends.packet(IpNumber::UDP, &ends.datagram(bytes))],
        Technique::PacketUdpLite => vec![ends.packet(UDP_LITE, &ends.datagram(bytes))],
        Technique::PacketOffload => {
            let long = [&bytes[..], &vec![b'.'; SUPER_SEGMENT]].concat();
            vec![ends.packet(tcp, &ends.segment(false, &long))]
        }
        _ => vec![ends.packet(tcp, &syn)],
    };
    let tags: &[u8] = &match attack.technique {
        Technique::PacketVlan => PRIORITY_TAG.to_vec(),
        Technique::PacketTwoVlans => PRIORITY_TAG.repeat(2),
        _ => Vec::new(),
    };
    let offload = attack.technique == Technique::PacketOffload;
    let ether_type: [u8; 2] = if attack.target.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    for packet in frames {
        let mut frame = [&route.gateway_mac[..], &route.mac, tags, &ether_type, &packet].concat();
        if offload {
            frame = [&offload_header(attack.target), &frame[..]].concat();
        }
        send(&route, &frame, offload)?;
    }
    Ok(Ending::Sent { answer: String::new() })
}

fn ends(attack: &Attack, route: &Route) -> Outcome<Ends> {
    static PORT: AtomicU16 = AtomicU16::new(0);
    // No two attempts are one connection, and none is one that the kernel has.
    let source_port = 20_000 + PORT.fetch_add(1, Ordering::Relaxed) % 10_000;
    let (target, target_port) = (attack.target.ip(), attack.target.port());
    Ok(Ends { source: route.source_for(target)?, target, source_port, target_port })
}

/// IPPROTO_TCP has the kernel add the IP header; IPPROTO_RAW means that there is one.
fn raw(attack: &Attack, protocol: i32, content: &[u8]) -> Outcome {
    let socket = socket(Domain::for_address(attack.target), Type::RAW, protocol)?;
    // A raw socket over IPv6 takes the port for a protocol.
    let addr = SocketAddr::new(attack.target.ip(), 0);
    socket.send_to(content, &addr.into()).of("sendto")?;
    Ok(Ending::Sent { answer: String::new() })
}

fn send(route: &Route, frame: &[u8], offload: bool) -> Outcome<()> {
    // Sending needs no protocol; with one, the socket would receive, too.
    let socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0))).probe("socket(AF_PACKET)")?;
    if offload {
        set_int(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, 1).probe("setsockopt(PACKET_VNET_HDR)")?;
    }
    let index = if_nametoindex(route.interface.as_str()).of("if_nametoindex")?;
    sendto(socket.as_raw_fd(), frame, &link(index)?, MsgFlags::empty()).of("sendto(AF_PACKET)")?;
    Ok(())
}

fn link(index: u32) -> Outcome<LinkAddr> {
    let addr = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET.try_into().expect("families are small"),
        sll_protocol: 0,
        sll_ifindex: index.try_into().expect("indices are small"),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    let length = size_of_val(&addr).try_into().ok();
    // SAFETY: a whole sockaddr_ll, and the length says so.
    let addr = unsafe { LinkAddr::from_raw((&raw const addr).cast(), length) };
    addr.ok_or(nix::errno::Errno::EINVAL).of("(an address of an interface)")
}

/// A `virtio_net_hdr`: the checksum is to be made, and the segment to be cut, by the card.
fn offload_header(target: SocketAddr) -> [u8; 10] {
    const NEEDS_CHECKSUM: u8 = 1;
    let (kind, network): (u8, u16) = if target.is_ipv4() { (1, 14 + 20) } else { (4, 14 + 40) };
    let [headers, size, start, offset] = [network + 20, 1000, network, 16].map(u16::to_ne_bytes);
    let mut header = [0; 10];
    header[..2].copy_from_slice(&[NEEDS_CHECKSUM, kind]);
    for (number, field) in [headers, size, start, offset].iter().enumerate() {
        header[2 + 2 * number..][..2].copy_from_slice(field);
    }
    header
}
