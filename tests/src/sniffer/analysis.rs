//! What frames mean: who opened a connection to the manager, and what was said on it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};

use super::Watch;
use super::records::Stream;
use crate::wire::find;

/// A packet for one of the manager's addresses.
struct Packet<'a> {
    source: IpAddr,
    destination: IpAddr,
    content: Content<'a>,
}

enum Content<'a> {
    Segment {
        from: u16,
        to: u16,
        opens: bool,
        sequence: u32,
        payload: &'a [u8],
    },
    Datagram {
        to: u16,
    },
    /// A part of a packet: only the first has ports.
    Fragment,
    /// What has no ports, such as ICMP.
    Other,
}

type Streams = HashMap<(SocketAddr, SocketAddr), Vec<Stream>>;

pub(super) fn leaks(frames: &[Vec<u8>], watch: &Watch, markers: &[String]) -> Vec<String> {
    let mut leaks = Vec::new();
    for frame in frames.iter().filter(|frame| !is_on_the_way_to_the_agent(frame)) {
        if let Some(marker) = markers.iter().find(|marker| find(frame, marker.as_bytes()).is_some()) {
            leaks.push(format!("the marker {marker} in {}", describe(frame)));
            continue;
        }
        let Some(packet) = parse(frame, watch) else { continue };
        let stranger = !watch.clients.contains(&packet.source);
        let told = match packet.content {
            Content::Segment { to, opens: true, .. } if to == watch.port && stranger => "a SYN",
            Content::Datagram { to } if to == watch.port => "a datagram",
            Content::Fragment if stranger => "a fragment",
            _ => continue,
        };
        leaks.push(format!("{told} in {}", describe(frame)));
    }
    for ((from, to), streams) in streams(frames, watch) {
        for stream in streams {
            if let Err(what) = stream.check() {
                leaks.push(format!("{from} -> {to}: {what}"));
            }
        }
    }
    leaks
}

pub(super) fn tls_connections(frames: &[Vec<u8>], watch: &Watch) -> usize {
    let streams = streams(frames, watch).into_values().flatten();
    streams.filter(|stream| !stream.is_empty() && stream.check().is_ok()).count()
}

/// All that was said to the manager's port over TCP. A pair of addresses can be used again.
fn streams(frames: &[Vec<u8>], watch: &Watch) -> Streams {
    let mut streams = Streams::new();
    for packet in frames.iter().filter_map(|frame| parse(frame, watch)) {
        let Content::Segment { from, to, opens, sequence, payload } = packet.content else { continue };
        if to != watch.port {
            continue;
        }
        let key = (SocketAddr::new(packet.source, from), SocketAddr::new(packet.destination, to));
        let known = streams.entry(key).or_default();
        if opens && !known.last().is_some_and(|last| last.began_with(sequence)) {
            known.push(Stream::from_syn(sequence));
        } else if known.is_empty() {
            known.push(Stream::without_syn());
        }
        // A SYN takes a number of its own; what it carries comes behind.
        let sequence = if opens { sequence.wrapping_add(1) } else { sequence };
        known.last_mut().expect("one was added").add(sequence, payload);
    }
    streams
}

fn parse<'a>(frame: &'a [u8], watch: &Watch) -> Option<Packet<'a>> {
    let sliced = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let net = sliced.net?;
    let (source, destination): (IpAddr, IpAddr) = match &net {
        LaxNetSlice::Ipv4(v4) => {
            let header = v4.header();
            (header.source_addr().into(), header.destination_addr().into())
        }
        LaxNetSlice::Ipv6(v6) => {
            let header = v6.header();
            (header.source_addr().into(), header.destination_addr().into())
        }
        LaxNetSlice::Arp(_) => return None,
    };
    if !watch.addrs.contains(&destination) {
        return None;
    }
    let inside = net.ip_payload_ref()?;
    let content = match sliced.transport {
        _ if inside.fragmented => Content::Fragment,
        Some(TransportSlice::Tcp(tcp)) => Content::Segment {
            from: tcp.source_port(),
            to: tcp.destination_port(),
            opens: tcp.syn() && !tcp.ack(),
            sequence: tcp.sequence_number(),
            payload: tcp.payload(),
        },
        Some(TransportSlice::Udp(udp)) => Content::Datagram { to: udp.destination_port() },
        // The ports of UDP-Lite (RFC 3828) are where those of UDP are.
        _ if inside.ip_number == IpNumber(136) && inside.payload.len() >= 4 => {
            Content::Datagram { to: u16::from_be_bytes([inside.payload[2], inside.payload[3]]) }
        }
        _ => Content::Other,
    };
    Some(Packet { source, destination, content })
}

/// A frame in words: enough to see which technique it was.
/// Whether one of the ends is a VIP: where the manager is on the node, the sniffer hears its loopback too.
fn is_on_the_way_to_the_agent(frame: &[u8]) -> bool {
    let Ok(sliced) = LaxSlicedPacket::from_ethernet(frame) else { return false };
    match &sliced.net {
        Some(LaxNetSlice::Ipv4(v4)) => {
            let (from, to) = (v4.header().source_addr(), v4.header().destination_addr());
            [from, to].iter().any(|addr| addr.octets().starts_with(&[169, 254, 77]))
        }
        Some(LaxNetSlice::Ipv6(_) | LaxNetSlice::Arp(_)) | None => false,
    }
}

fn describe(frame: &[u8]) -> String {
    let Ok(sliced) = LaxSlicedPacket::from_ethernet(frame) else { return format!("{frame:02x?}") };
    let mut text = match &sliced.net {
        Some(LaxNetSlice::Ipv4(v4)) => {
            let header = v4.header();
            format!("{} -> {}", header.source_addr(), header.destination_addr())
        }
        Some(LaxNetSlice::Ipv6(v6)) => {
            let header = v6.header();
            format!("{} -> {}", header.source_addr(), header.destination_addr())
        }
        Some(LaxNetSlice::Arp(_)) | None => "no IP packet".to_owned(),
    };
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = [(tcp.syn(), "SYN "), (tcp.fin(), "FIN "), (tcp.rst(), "RST ")];
            let flags: String = flags.iter().filter_map(|(set, name)| set.then_some(*name)).collect();
            let (from, to) = (tcp.source_port(), tcp.destination_port());
            text += &format!(", TCP {from} -> {to} {flags}with {} bytes", tcp.payload().len());
        }
        Some(TransportSlice::Udp(udp)) => {
            text += &format!(", UDP to {} with {} bytes", udp.destination_port(), udp.payload().len());
        }
        _ => {
            let inside = sliced.net.as_ref().and_then(LaxNetSlice::ip_payload_ref);
            if let Some(inside) = inside {
                text += &format!(", protocol {}", inside.ip_number.0);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const NODE: [u8; 4] = [198, 18, 0, 1];
    const POD: [u8; 4] = [10, 244, 1, 2];
    const MANAGER: [u8; 4] = [198, 18, 0, 9];
    const HELLO: &[u8] = &[22, 3, 1, 0, 1, 1];

    fn watch() -> Watch {
        Watch { addrs: vec![MANAGER.into()], port: 80, clients: vec![NODE.into()] }
    }

    fn segment(from: [u8; 4], to: u16, syn: bool, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4(from, MANAGER, 64);
        let builder = builder.tcp(40_000, to, sequence, 1024);
        let builder = if syn { builder.syn() } else { builder.ack(1) };
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).expect("vectors grow");
        frame
    }

    fn told(frames: &[Vec<u8>]) -> Vec<String> {
        leaks(frames, &watch(), &["MARKER".to_owned()])
    }

    #[test]
    fn tls_from_the_node_is_no_leak() {
        let frames = [
            segment(NODE, 80, true, 9, b""),
            segment(NODE, 80, false, 10, HELLO),
            segment(POD, 81, true, 1, b""),
        ];
        assert_eq!(told(&frames), Vec::<String>::new());
        assert_eq!(tls_connections(&frames, &watch()), 1);
        // The same addresses and ports again.
        let again = [segment(NODE, 80, true, 99, b""), segment(NODE, 80, false, 100, HELLO)];
        assert_eq!(told(&[frames.to_vec(), again.to_vec()].concat()), Vec::<String>::new());
    }

    #[test]
    fn everything_else_is() {
        let mut datagram = Vec::new();
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]).ipv4(POD, MANAGER, 64).udp(5, 80);
        builder.write(&mut datagram, b"x").expect("vectors grow");
        let mut fragment = segment(POD, 81, true, 1, b"");
        // More fragments follow.
        fragment[20] |= 0x20;
        for frames in [
            vec![segment(POD, 80, true, 1, b"")],
            vec![segment(NODE, 80, false, 1, HELLO)],
            vec![segment(NODE, 80, true, 9, b"hello")],
            vec![segment(NODE, 80, true, 9, b""), segment(NODE, 80, false, 10, b"GET /")],
            vec![segment(NODE, 81, false, 9, b"xMARKERx")],
            vec![b"not a packet, but a MARKER".to_vec()],
            vec![datagram],
            vec![fragment],
        ] {
            assert_eq!(told(&frames).len(), 1, "{:?}", told(&frames));
        }
    }
}
