//! Turns a TCP segment into the reset that answers it (RFC 9293, section 3.10.7.1).

use crate::guard::Way;
use crate::packet::Packet;

/// Where the headers of a segment begin. Options of IP are none: the answer has none either, and the
/// checksum is counted from where it was.
pub(crate) struct Segment {
    pub(crate) ip: u32,
    pub(crate) tcp: u32,
}

const PROTOCOL_TCP: u32 = 6;
const TCP_LEN: u32 = 20;
const CHECKSUM: u32 = 16;
/// A hop limit that hosts begin with.
const TTL: u32 = 64;

const SYN: u32 = 0x02;
const RST: u32 = 0x04;
const ACK: u32 = 0x10;

#[inline(always)]
pub(crate) fn v4(packet: &Packet, segment: &Segment) -> Way {
    const LEN: u32 = 20 + TCP_LEN;
    const DONT_FRAGMENT: u32 = 0x4000;
    let Some([from, to]) = packet.load::<[u32; 2]>(segment.ip + 12) else {
        return Way::Dropped;
    };
    let mut ip = [
        (0x4500_0000 | LEN).to_be(),
        DONT_FRAGMENT.to_be(),
        (TTL << 24 | PROTOCOL_TCP << 16).to_be(),
        to,
        from,
    ];
    let sum = sum2(ip[0], ip[1]) + sum2(ip[2], ip[3]) + sum(ip[4]);
    ip[2] |= u32::from(!fold(sum)) << 16;
    answer(packet, segment, pseudo(sum2(from, to)), |packet| packet.store(segment.ip, &ip))
}

#[inline(always)]
pub(crate) fn v6(packet: &Packet, segment: &Segment) -> Way {
    let Some([f0, f1, f2, f3, t0, t1, t2, t3]) = packet.load::<[u32; 8]>(segment.ip + 8) else {
        return Way::Dropped;
    };
    let addresses = sum2(f0, f1) + sum2(f2, f3) + sum2(t0, t1) + sum2(t2, t3);
    let start = [0x6000_0000_u32.to_be(), (TCP_LEN << 16 | PROTOCOL_TCP << 8 | TTL).to_be()];
    answer(packet, segment, pseudo(addresses), |packet| {
        packet.store(segment.ip, &start) && packet.store(segment.ip + 8, &[t0, t1, t2, t3, f0, f1, f2, f3])
    })
}

/// Makes the segment its own answer; `pseudo` is the pseudo header's sum.
#[inline(always)]
fn answer(packet: &Packet, segment: &Segment, pseudo: u32, write_ip: impl FnOnce(&Packet) -> bool) -> Way {
    let Some(mut tcp) = packet.load::<[u32; 5]>(segment.tcp) else {
        return Way::Dropped;
    };
    let flags = u32::from_be(tcp[3]) >> 16;
    let (seq, ack, flags) = if flags & RST != 0 {
        return Way::Dropped;
    } else if flags & ACK != 0 {
        (tcp[2], 0, RST)
    } else if flags & SYN != 0 {
        (0, u32::from_be(tcp[1]).wrapping_add(1).to_be(), RST | ACK)
    } else {
        return Way::Dropped;
    };
    // Ports are two halves of one word.
    tcp[0] = tcp[0].rotate_left(16);
    tcp[1] = seq;
    tcp[2] = ack;
    tcp[3] = (5 << 28 | flags << 16).to_be();
    let device = fold(pseudo);
    tcp[4] = u32::from(device);
    let Some(macs) = packet.load::<[u16; 6]>(0) else {
        return Way::Dropped;
    };
    let written = packet.resize(segment.tcp + TCP_LEN)
        && packet.store(0, &[macs[3], macs[4], macs[5], macs[0], macs[1], macs[2]])
        && write_ip(packet)
        && packet.store(segment.tcp, &tcp);
    if !written {
        return Way::Dropped;
    }
    let checksum = segment.tcp + CHECKSUM;
    if !packet.leaves_checksum_to_device(checksum, device) {
        let sum = pseudo + sum2(tcp[0], tcp[1]) + sum2(tcp[2], tcp[3]);
        if !packet.store(checksum, &!fold(sum)) {
            return Way::Dropped;
        }
    }
    Way::Back
}

/// The pseudo header's sum: addresses, protocol, length.
#[inline(always)]
fn pseudo(addresses: u32) -> u32 {
    addresses + ((PROTOCOL_TCP + TCP_LEN) as u16).to_be() as u32
}

// Sums of 16-bit words in the order in which they lie in memory; they come out in that order, too (RFC
// 1071, section 2). A few dozen of them fit 32 bits.

#[inline(always)]
fn sum(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

#[inline(always)]
fn sum2(a: u32, b: u32) -> u32 {
    sum(a) + sum(b)
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}
