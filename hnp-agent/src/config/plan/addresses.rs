//! What is dialled, as the configuration names it: names, addresses, ranges.

use std::net::IpAddr;
use std::sync::Arc;

/// An address range.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Cidr {
    /// The first address; bits below the prefix are zero.
    pub addr: IpAddr,
    /// Number of leading bits that count.
    pub prefix: u8,
}

/// What a pod dials: a name, an address or a range of addresses, and a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Destination {
    /// What stands before the port.
    pub target: Target,
    /// The TCP port.
    pub port: u16,
}

/// What of a destination is not its port.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Target {
    /// A DNS name, lower case, without a trailing dot: whatever it resolves to.
    Name(Arc<str>),
    /// A range of addresses, never v4-mapped; one address is the range that holds only itself.
    Net(Cidr),
}

/// Addresses on one port: what capture matches once names are resolved.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AddrRange {
    /// The addresses; never v4-mapped.
    pub net: Cidr,
    /// The TCP port.
    pub port: u16,
}

/// A host, by name or by address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Host {
    /// A DNS name, lower case, without a trailing dot.
    Name(Arc<str>),
    /// An address; never v4-mapped.
    Addr(IpAddr),
}

/// Names that are let through.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NamePattern {
    /// One name, lower case, without a trailing dot.
    Exact(Arc<str>),
    /// Every name below this one, at any depth; not the name itself.
    Below(Arc<str>),
}

impl NamePattern {
    /// Whether `name` (lower case, without a trailing dot) is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Below(parent) => {
                name.strip_suffix(&**parent).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
            }
        }
    }
}

impl AddrRange {
    /// One address and a port.
    pub fn host(addr: std::net::SocketAddr) -> Self {
        Self { net: Cidr::host(addr.ip()), port: addr.port() }
    }

    /// Whether a dial to `addr` is meant.
    pub fn contains(&self, addr: std::net::SocketAddr) -> bool {
        self.port == addr.port() && self.net.contains(addr.ip())
    }

    /// The one address and port; `None` where there are several addresses.
    pub fn single(&self) -> Option<std::net::SocketAddr> {
        self.net.single().map(|addr| std::net::SocketAddr::new(addr, self.port))
    }
}

impl Cidr {
    /// The range that holds one address.
    pub fn host(addr: IpAddr) -> Self {
        let addr = addr.to_canonical();
        Self { addr, prefix: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// The one address in it; `None` where there are several.
    pub fn single(&self) -> Option<IpAddr> {
        (*self == Self::host(self.addr)).then_some(self.addr)
    }

    /// Whether all of `other` lies in this one.
    pub fn holds(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.addr)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.addr) || other.contains(self.addr)
    }

    /// Whether `addr` lies in the range. A v4-mapped address is the IPv4 address it stands for.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                u32::from(net) & mask == u32::from(addr) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(addr)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                u128::from(net) & mask == u128::from(addr) & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}
