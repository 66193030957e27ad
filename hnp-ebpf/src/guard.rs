//! The guard: what leaves a pod for a strict destination although no socket hook saw it.
//!
//! Sockets that were lent to the pod or made before its process came in, raw and packet sockets, and
//! flows older than the agent pass no connect(). All of them leave by the pod's veth, so here, at the
//! node's end of it, they are met. What hooks redirect goes to a VIP and is none of this file's business.
//! TCP is answered with RST, so that a client learns at once and connects again, into capture; the rest
//! is dropped. Whatever cannot be read as far as its port and goes to a guarded address is dropped, too.

use hnp_common::Verdict;
use hnp_common::layout::{Address, DestinationKey};

use crate::maps;
use crate::packet::{DROP, NEXT, Packet};
use crate::reset::{self, Segment};

const ETHERNET: u32 = 14;
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const VLAN: u16 = 0x8100_u16.to_be();
const SERVICE_VLAN: u16 = 0x88a8_u16.to_be();
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;

/// Code that stands as often as there are numbers. No loop: from a loader without CAP_PERFMON the verifier
/// follows branches that are never taken, too, as a processor may, and so never comes to a loop's end.
macro_rules! unrolled {
    ($($number:literal)+, $step:block) => {
        $({ let _: u32 = $number; $step })+
    };
}

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// The bits of IPv4's flags and fragment offset: more fragments, and the offset.
const V4_FRAGMENT: u32 = 0x3fff;
const V4_OFFSET: u32 = 0x1fff;

pub(crate) enum Way {
    /// On, as if there were no guard.
    On,
    Dropped,
    /// Back to the sender, as a reset.
    Back,
}

/// The answer of the hook.
#[inline(always)]
pub(crate) fn judge(packet: &Packet) -> i32 {
    match decide(packet) {
        Way::On => NEXT,
        Way::Dropped => {
            maps::count(Verdict::GuardDropped);
            DROP
        }
        Way::Back => {
            maps::count(Verdict::GuardReset);
            packet.send_back()
        }
    }
}

#[inline(always)]
fn decide(packet: &Packet) -> Way {
    let (mut kind, mut at, mut had_tag) = (packet.protocol(), ETHERNET, packet.had_tag());
    // Tags behind the one that the kernel took off: the node takes that for untagged where the first is a
    // priority tag.
    unrolled!(1 2 3, {
        if kind == VLAN || kind == SERVICE_VLAN {
            let Some(tag) = packet.load::<[u16; 2]>(at) else {
                return Way::Dropped;
            };
            (kind, at, had_tag) = (tag[1], at + 4, true);
        }
    });
    let carried = match kind {
        IPV4 => v4(packet, at),
        IPV6 => v6(packet, at),
        VLAN | SERVICE_VLAN => return Way::Dropped,
        _ => return Way::On,
    };
    let carried = match carried {
        Ok(carried) => carried,
        Err(way) => return way,
    };
    if !maps::is_guarded(carried.to, DestinationKey::ANY_PORT) {
        return Way::On;
    }
    match carried.judge(packet) {
        // The answer would need the tag, the options, the further headers.
        Way::Back if had_tag || !carried.is_plain => Way::Dropped,
        Way::Back if kind == IPV4 => reset::v4(packet, &Segment { ip: at, tcp: at + IPV4_HEADER }),
        Way::Back => reset::v6(packet, &Segment { ip: at, tcp: at + IPV6_HEADER }),
        other => other,
    }
}

/// What an IP packet carries, and to whom.
struct Carried {
    to: Address,
    protocol: u8,
    /// Where it begins.
    at: u32,
    is_fragment: bool,
    is_later_fragment: bool,
    /// Nothing stands between it and the header.
    is_plain: bool,
}

/// Most packets go on right here. Dropped is what cannot be told, or has another last destination than the
/// one in its header.
#[inline(always)]
fn v4(packet: &Packet, at: u32) -> Result<Carried, Way> {
    let ip = packet.load::<[u32; 5]>(at).ok_or(Way::Dropped)?;
    let to = Address::v4(ip[4]);
    let header = (u32::from_be(ip[0]) >> 24 & 0xf) * 4;
    let is_plain = header == IPV4_HEADER;
    if is_plain && !maps::may_be_guarded(to) {
        return Err(Way::On);
    }
    if !is_plain && (header < IPV4_HEADER || is_source_routed(packet, at + IPV4_HEADER, at + header)) {
        return Err(Way::Dropped);
    }
    let fragment = u32::from_be(ip[1]);
    Ok(Carried {
        to,
        protocol: (u32::from_be(ip[2]) >> 16) as u8,
        at: at + header,
        is_fragment: fragment & V4_FRAGMENT != 0,
        is_later_fragment: fragment & V4_OFFSET != 0,
        is_plain,
    })
}

/// Whether the options name further hops, or cannot be read: ten are, each byte of padding counted as
/// one, and nobody sends more. (No node forwards by such options unless told to.)
#[inline(always)]
fn is_source_routed(packet: &Packet, from: u32, to: u32) -> bool {
    const END: u8 = 0;
    const PADDING: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let mut at = from;
    unrolled!(1 2 3 4 5 6 7 8 9 10, {
        if at >= to {
            return false;
        }
        let Some([kind, length]) = packet.load::<[u8; 2]>(at) else {
            return true;
        };
        match kind {
            END => return false,
            PADDING => at += 1,
            LOOSE | STRICT => return true,
            // Malformed; the stack drops it.
            _ if length < 2 => return true,
            _ => at += u32::from(length),
        }
    });
    at < to
}

/// As [`v4`]. Each extension header may stand once, and destination options twice (RFC 8200, section 4.1):
/// no more are looked behind.
#[inline(always)]
fn v6(packet: &Packet, at: u32) -> Result<Carried, Way> {
    let ip = packet.load::<[u32; 10]>(at).ok_or(Way::Dropped)?;
    let (to, protocol) = (Address([ip[6], ip[7], ip[8], ip[9]]), (u32::from_be(ip[1]) >> 8) as u8);
    if !is_extension(protocol) && !maps::may_be_guarded(to) {
        return Err(Way::On);
    }
    let mut carried = Carried {
        to,
        protocol,
        at: at + IPV6_HEADER,
        is_fragment: false,
        is_later_fragment: false,
        is_plain: true,
    };
    unrolled!(1 2 3 4 5, {
        if !is_extension(carried.protocol) {
            return Ok(carried);
        }
        // Next header, length beyond eight bytes, and what else matters of routing and fragments.
        let [next, more, third, fourth] = packet.load::<[u8; 4]>(carried.at).ok_or(Way::Dropped)?;
        carried.is_plain = false;
        carried.at += 8;
        if carried.protocol == FRAGMENT {
            carried.is_fragment |= third != 0 || fourth & !0b110 != 0;
            carried.is_later_fragment = third != 0 || fourth & !0b111 != 0;
        } else if carried.protocol == ROUTING && fourth != 0 {
            // Hops are left.
            return Err(Way::Dropped);
        } else {
            carried.at += u32::from(more) * 8;
        }
        carried.protocol = next;
        if carried.is_later_fragment {
            return Ok(carried);
        }
    });
    if is_extension(carried.protocol) { Err(Way::Dropped) } else { Ok(carried) }
}

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    const BITS: u64 = 1 << HOP_BY_HOP | 1 << ROUTING | 1 << FRAGMENT | 1 << DESTINATION_OPTIONS;
    protocol < 64 && BITS >> protocol & 1 != 0
}

impl Carried {
    /// What becomes of it; its address is guarded.
    #[inline(always)]
    fn judge(&self, packet: &Packet) -> Way {
        let guarded = match self.protocol {
            // TCP is not fragmented by its sender; there is nothing to spare.
            TCP if self.is_fragment => return Way::Dropped,
            TCP => Way::Back,
            // The first fragment holds the ports, and without it the others come to nothing.
            UDP | UDP_LITE | SCTP | DCCP if self.is_later_fragment => return Way::On,
            UDP | UDP_LITE | SCTP | DCCP => Way::Dropped,
            // In a later fragment; or one that nobody uses and that can stand before TCP.
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS => return Way::Dropped,
            // ICMP, tunnels: no ports, so no way to the destination's.
            _ => return Way::On,
        };
        let Some(ports) = packet.load::<[u16; 2]>(self.at) else {
            return Way::Dropped;
        };
        if maps::is_guarded(self.to, ports[1]) { guarded } else { Way::On }
    }
}
