//! Packets written by hand: what a SYN with the attacker's bytes looks like in all the wrappings that a
//! forwarding node takes off or passes on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, TcpHeader, UdpHeader,
};

/// UDP-Lite, RFC 3828.
pub(crate) const UDP_LITE: IpNumber = IpNumber(136);

/// From whom to whom.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) target: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) target_port: u16,
}

impl Ends {
    /// A TCP segment with a right checksum.
    pub(crate) fn segment(self, syn: bool, payload: &[u8]) -> Vec<u8> {
        let mut header = TcpHeader::new(self.source_port, self.target_port, 0x1357_9bdf, 64_000);
        header.syn = syn;
        header.ack = !syn;
        header.psh = !syn;
        header.checksum = match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                header.calc_checksum_ipv4_raw(source.octets(), target.octets(), payload)
            }
            (source, target) => {
                header.calc_checksum_ipv6_raw(v6(source).octets(), v6(target).octets(), payload)
            }
        }
        .expect("it is short");
        [&header.to_bytes()[..], payload].concat()
    }

    /// A UDP datagram; UDP-Lite's header has the same shape.
    pub(crate) fn datagram(self, payload: &[u8]) -> Vec<u8> {
        let (from, to) = (self.source_port, self.target_port);
        let header = match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let ip = Ipv4Header::new(0, 64, IpNumber::UDP, source.octets(), target.octets());
                UdpHeader::with_ipv4_checksum(from, to, &ip.expect("it is short"), payload)
            }
            _ => UdpHeader::with_ipv6_checksum(from, to, &self.header6(IpNumber::UDP, 0), payload),
        };
        [&header.expect("it is short").to_bytes()[..], payload].concat()
    }

    /// An IP packet.
    pub(crate) fn packet(self, protocol: IpNumber, content: &[u8]) -> Vec<u8> {
        match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => finish4(header4(source, target, protocol), content),
            _ => [&self.header6(protocol, content.len()).to_bytes()[..], content].concat(),
        }
    }

    /// An IPv4 packet with four bytes of options that do nothing, or an IPv6 packet as it is.
    pub(crate) fn with_options(self, protocol: IpNumber, content: &[u8]) -> Vec<u8> {
        let (IpAddr::V4(source), IpAddr::V4(target)) = (self.source, self.target) else {
            return self.packet(protocol, content);
        };
        let mut header = header4(source, target, protocol);
        const NOTHING: [u8; 4] = [1; 4];
        header.options = Ipv4Options::from(NOTHING);
        finish4(header, content)
    }

    /// Two fragments: `first` bytes, a multiple of eight, and the rest.
    pub(crate) fn fragments(self, protocol: IpNumber, content: &[u8], first: u16) -> [Vec<u8>; 2] {
        let (start, rest) = content.split_at(usize::from(first));
        let identification = self.source_port;
        [(0, true, start), (first / 8, false, rest)].map(|(offset, more, part)| {
            let offset = IpFragOffset::try_new(offset).expect("it is small");
            match (self.source, self.target) {
                (IpAddr::V4(source), IpAddr::V4(target)) => {
                    let mut header = header4(source, target, protocol);
                    header.identification = identification;
                    header.dont_fragment = false;
                    header.more_fragments = more;
                    header.fragment_offset = offset;
                    finish4(header, part)
                }
                _ => {
                    let fragment = Ipv6FragmentHeader::new(protocol, offset, more, u32::from(identification));
                    self.packet(
                        IpNumber::IPV6_FRAGMENTATION_HEADER,
                        &[&fragment.to_bytes()[..], part].concat(),
                    )
                }
            }
        })
    }

    /// An IPv6 packet with so many destination options headers, each with padding alone.
    pub(crate) fn behind_extensions(self, count: usize, protocol: IpNumber, content: &[u8]) -> Vec<u8> {
        const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];
        let mut content = content.to_vec();
        let mut next = protocol;
        for _ in 0..count {
            let header = Ipv6RawExtHeader::new_raw(next, &PADDING).expect("eight bytes in all");
            content = [&header.to_bytes()[..], &content].concat();
            next = IpNumber::IPV6_DESTINATION_OPTIONS;
        }
        self.packet(next, &content)
    }

    fn header6(self, protocol: IpNumber, length: usize) -> Ipv6Header {
        Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: u16::try_from(length).expect("it is short"),
            next_header: protocol,
            hop_limit: 64,
            source: v6(self.source).octets(),
            destination: v6(self.target).octets(),
        }
    }
}

fn header4(source: Ipv4Addr, target: Ipv4Addr, protocol: IpNumber) -> Ipv4Header {
    Ipv4Header::new(0, 64, protocol, source.octets(), target.octets()).expect("it is short")
}

fn finish4(mut header: Ipv4Header, content: &[u8]) -> Vec<u8> {
    header.set_payload_len(content.len()).expect("it is short");
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes()[..], content].concat()
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}
