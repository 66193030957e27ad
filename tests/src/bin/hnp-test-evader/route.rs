//! The pod's way out, as whoever writes frames by hand must know it: the interface, its addresses, and
//! the gateway's hardware address.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use nix::ifaddrs::getifaddrs;

use crate::sys::{Answer as _, No, Outcome};

/// The way out.
pub(crate) struct Route {
    pub(crate) interface: String,
    pub(crate) mac: [u8; 6],
    pub(crate) gateway_mac: [u8; 6],
    pub(crate) addrs: Vec<IpAddr>,
}

impl Route {
    pub(crate) fn find() -> Outcome<Self> {
        let (interface, gateway) = default_gateway()?;
        let (mut mac, mut addrs) = (None, Vec::new());
        for entry in getifaddrs().of("getifaddrs")?.filter(|entry| entry.interface_name == interface) {
            let Some(address) = entry.address else { continue };
            mac = mac.or(address.as_link_addr().and_then(nix::sys::socket::LinkAddr::addr));
            addrs.extend(address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip())));
            addrs.extend(address.as_sockaddr_in6().map(|v6| v6.ip()).filter(is_global).map(IpAddr::from));
        }
        let mac = mac.ok_or_else(|| No::missing("hardware address of its own"))?;
        let gateway_mac = hardware_address(gateway)?;
        Ok(Self { interface, mac, gateway_mac, addrs })
    }

    /// Our address of the target's family.
    pub(crate) fn source_for(&self, target: IpAddr) -> Outcome<IpAddr> {
        let ours = self.addrs.iter().find(|addr| addr.is_ipv4() == target.is_ipv4());
        ours.copied().ok_or_else(|| No::missing("address of the target's family"))
    }
}

fn is_global(addr: &std::net::Ipv6Addr) -> bool {
    !addr.is_unicast_link_local()
}

fn default_gateway() -> Outcome<(String, Ipv4Addr)> {
    let table = fs::read_to_string("/proc/net/route").of("read(/proc/net/route)")?;
    let found = table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (interface, destination, gateway) = (fields.next()?, fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        // In network order, printed as a number of this machine's.
        (destination == "00000000").then(|| (interface.to_owned(), Ipv4Addr::from(gateway.to_ne_bytes())))
    });
    found.ok_or_else(|| No::missing("default route"))
}

/// From the kernel's table of neighbours; a datagram has it ask first.
fn hardware_address(gateway: Ipv4Addr) -> Outcome<[u8; 6]> {
    const DISCARD: u16 = 9;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).of("bind")?;
    for _ in 0..500 {
        if let Some(mac) = neighbour(gateway)? {
            return Ok(mac);
        }
        // Refused or not: only the question counts.
        let _ = socket.send_to(b"?", (gateway, DISCARD));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Err(No::missing("gateway that answers"))
}

fn neighbour(addr: Ipv4Addr) -> Outcome<Option<[u8; 6]>> {
    let table = fs::read_to_string("/proc/net/arp").of("read(/proc/net/arp)")?;
    let of = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.first()?.parse() == Ok(addr)).then(|| fields.get(3).map(|mac| (*mac).to_owned()))?
    };
    let Some(text) = table.lines().skip(1).find_map(of) else { return Ok(None) };
    let bytes: Vec<u8> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    Ok(<[u8; 6]>::try_from(bytes).ok().filter(|mac| *mac != [0; 6]))
}
