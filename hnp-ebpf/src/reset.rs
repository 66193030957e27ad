//! Turns a TCP segment into the reset that answers it (RFC 9293, section 3.10.7.1).

use crate::guard::Way;
use crate::packet::Packet;
use crate::stack::pair;

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
    let (first, second) = ((0x4500_0000 | LEN).to_be(), DONT_FRAGMENT.to_be());
    let third = (TTL << 24 | PROTOCOL_TCP << 16).to_be();
    let addresses = sum2(from, to);
    let checksum = u32::from(!fold(sum2(first, second) + sum(third) + addresses)) << 16;
    answer(packet, segment, pseudo(addresses), |packet| {
        packet.store::<20, 3>(segment.ip, [pair(first, second), pair(third | checksum, to), from.into()])
    })
}

#[inline(always)]
pub(crate) fn v6(packet: &Packet, segment: &Segment) -> Way {
    let Some([f0, f1, f2, f3, t0, t1, t2, t3]) = packet.load::<[u32; 8]>(segment.ip + 8) else {
        return Way::Dropped;
    };
    let addresses = sum2(f0, f1) + sum2(f2, f3) + sum2(t0, t1) + sum2(t2, t3);
    let (first, second) = (0x6000_0000_u32.to_be(), (TCP_LEN << 16 | PROTOCOL_TCP << 8 | TTL).to_be());
    answer(packet, segment, pseudo(addresses), |packet| {
        packet.store::<8, 1>(segment.ip, [pair(first, second)])
            && packet.store::<16, 2>(segment.ip + 8, [pair(t0, t1), pair(t2, t3)])
            && packet.store::<16, 2>(segment.ip + 24, [pair(f0, f1), pair(f2, f3)])
    })
}

/// Makes the segment its own answer; `pseudo` is the pseudo header's sum.
#[inline(always)]
fn answer(packet: &Packet, segment: &Segment, pseudo: u32, write_ip: impl FnOnce(&Packet) -> bool) -> Way {
    let Some(tcp) = packet.load::<[u32; 4]>(segment.tcp) else {
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
    let ports = tcp[0].rotate_left(16);
    let flags = (5 << 28 | flags << 16).to_be();
    let device = fold(pseudo);
    // Two hardware addresses in three words: destination, source.
    let Some([a, b, c]) = packet.load::<[u32; 3]>(0) else {
        return Way::Dropped;
    };
    let macs = [pair(b >> 16 | c << 16, c >> 16 | a << 16), (a >> 16 | b << 16).into()];
    let written = packet.resize(segment.tcp + TCP_LEN)
        && packet.store::<12, 2>(0, macs)
        && write_ip(packet)
        && packet.store::<20, 3>(segment.tcp, [pair(ports, seq), pair(ack, flags), device.into()]);
    if !written {
        return Way::Dropped;
    }
    let checksum = segment.tcp + CHECKSUM;
    if !packet.leaves_checksum_to_device(checksum, device) {
        let sum = pseudo + sum2(ports, seq) + sum2(ack, flags);
        if !packet.store::<2, 1>(checksum, [(!fold(sum)).into()]) {
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
