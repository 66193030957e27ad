//! What the guard asks netlink: which veths lead to other namespaces, and which of them are uplinks.
//!
//! Blocking, with a socket of its own: an event must not wait for a runtime.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::constants::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

/// An interface whose other end is in another namespace.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Veth {
    pub(super) index: u32,
    pub(super) name: String,
}

impl Veth {
    /// `None`: it is something else, or both of its ends are here.
    pub(super) fn of(message: &LinkMessage) -> Option<Self> {
        let (mut is_veth, mut leads_away, mut name) = (false, false, String::new());
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::LinkInfo(info) => {
                    is_veth |= info.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                LinkAttribute::LinkNetNsId(_) => leads_away = true,
                LinkAttribute::IfName(written) => name.clone_from(written),
                _ => {}
            }
        }
        (is_veth && leads_away).then_some(Self { index: message.header.index, name })
    }
}

/// A socket that asks and waits for the answer.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All veths whose other end is in another namespace.
    pub(super) fn veths(&mut self) -> io::Result<Vec<Veth>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let veth = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewLink(link) => Veth::of(link),
            _ => None,
        };
        Ok(answers.iter().filter_map(veth).collect())
    }

    /// The interfaces that default routes and the ways to these addresses leave by.
    pub(super) fn uplinks(&mut self, towards: &[IpAddr]) -> io::Result<BTreeSet<u32>> {
        let mut uplinks = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut all = RouteMessage::default();
            all.header.address_family = family;
            for answer in self.dump(RouteNetlinkMessage::GetRoute(all))? {
                if let RouteNetlinkMessage::NewRoute(route) = answer
                    && route.header.destination_prefix_length == 0
                    && route.header.kind == RouteType::Unicast
                {
                    uplinks.extend(interfaces(&route));
                }
            }
        }
        for address in towards {
            let mut way = RouteMessage::default();
            let (family, prefix, address) = match *address {
                IpAddr::V4(addr) => (AddressFamily::Inet, 32, RouteAddress::Inet(addr)),
                IpAddr::V6(addr) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(addr)),
            };
            way.header.address_family = family;
            way.header.destination_prefix_length = prefix;
            way.attributes.push(RouteAttribute::Destination(address));
            match self.request(RouteNetlinkMessage::GetRoute(way), 0) {
                Ok(answers) => {
                    for answer in answers {
                        if let RouteNetlinkMessage::NewRoute(route) = answer {
                            uplinks.extend(interfaces(&route));
                        }
                    }
                }
                // No way there: no uplink either.
                Err(error) => tracing::debug!(%error, "no route towards a guarded address"),
            }
        }
        Ok(uplinks)
    }

    /// Asks for a change or one thing; the kernel's refusal is the error.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(message, NLM_F_REQUEST | NLM_F_ACK | flags)
    }

    /// Asks for all there is.
    pub(super) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for answer in messages(&bytes) {
                // An answer to a question that was given up.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return if error.code.is_none() { Ok(answers) } else { Err(error.to_io()) };
                    }
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
            }
        }
    }
}

/// The messages in what was received. One that cannot be read is none of those that are looked for.
pub(super) fn messages(mut bytes: &[u8]) -> Vec<NetlinkMessage<RouteNetlinkMessage>> {
    const ALIGNED: usize = 4;
    let mut all = Vec::new();
    while let Some(length) = bytes.first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        if length < 16 || length > bytes.len() {
            break;
        }
        match NetlinkMessage::deserialize(&bytes[..length]) {
            Ok(message) => all.push(message),
            Err(error) => tracing::debug!(%error, "a netlink message that cannot be read"),
        }
        bytes = bytes.get(length.next_multiple_of(ALIGNED)..).unwrap_or_default();
    }
    all
}

fn interfaces(route: &RouteMessage) -> Vec<u32> {
    let mut interfaces = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => interfaces.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    interfaces
}
