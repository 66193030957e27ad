//! What lies in the kernel's maps, byte for byte.
//!
//! Addresses are 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`: so one key serves both families
//! and a v4-mapped dial meets the same entry as a plain one. Ports are in network order too, because
//! the kernel hands them over so; a field in host order says so. Everything is `repr(C)` without
//! implicit padding: the kernel compares keys as bytes.
//!
//! Builds of different versions meet in these maps while one takes over from another. So layouts only
//! grow, at their end or in what is reserved, and zero in what was added means what held before it was
//! there. [`SocketState`] and [`FlowValue`] never grow: programs of both builds work on the same entry in
//! the middle of a swap.

/// The protocol number of TCP, the only one that is redirected.
pub const TCP: u8 = 6;

/// How many destinations (address and port) one node can capture.
pub const MAX_DESTINATIONS: u32 = 4096;
/// How many connections may be between connect() and the agent's accept at a time.
pub const MAX_FLOWS: u32 = 65_536;
/// How many pods the per-pod limit can keep count of at a time.
pub const MAX_PODS: u32 = 16_384;
/// How many QoS cgroups the agent may announce: two, and as many again while kubelet replaces them.
pub const MAX_QOS_CGROUPS: u32 = 16;
/// How many ranges of addresses one node can capture.
pub const MAX_NETWORKS: u32 = 1024;
/// How many pairs of pod and destination may have an enforcement of their own.
pub const MAX_OVERRIDES: u32 = 65_536;
/// How many pairs of workload and destination are counted at a time, for each reason to go direct.
pub const MAX_DIALS: u32 = 8192;
/// How many entries `GUARDED` has room for: one per guarded destination and one per guarded address.
pub const MAX_GUARDED: u32 = 2 * MAX_DESTINATIONS;
/// The same for `GUARDED_NETS`.
pub const MAX_GUARDED_NETS: u32 = 2048;
/// How many words of 64 bits `GUARD_FILTER` has: a bit for each value of [`Address::filter_bit`].
pub const GUARD_FILTER_WORDS: u32 = 1024;
/// How many cgroups may be the agent's: one, and those of successors that are starting.
pub const MAX_EXEMPT: u32 = 16;

/// An address as four words in network order, IPv4 as `::ffff:a.b.c.d`.
///
/// Words and not bytes, because that is how the kernel's context hands them out; in memory they are
/// the same sixteen bytes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// No address at all.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// An IPv4 address given as the kernel gives it: one word in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), word])
    }

    /// Its bit in `GUARD_FILTER`; others share it.
    #[inline(always)]
    pub const fn filter_bit(self) -> u32 {
        let word = self.0[0] ^ self.0[1] ^ self.0[2] ^ self.0[3];
        (word ^ word >> 16) & 0xffff
    }

    /// The word that holds an IPv4 address.
    #[inline(always)]
    pub const fn v4_word(self) -> u32 {
        self.0[3]
    }
}

/// Key of `DESTINATIONS`: what a pod dials.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct DestinationKey {
    /// The address.
    pub address: Address,
    /// The port, network order.
    pub port: u16,
    /// [`TCP`].
    pub protocol: u8,
    /// Always zero.
    pub pad: u8,
}
const _: () = assert!(size_of::<DestinationKey>() == 20);

/// What a key of `NETWORKS` compares, in order: the port and protocol whole, then the address up to its
/// prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct NetworkKey {
    /// The port, network order.
    pub port: u16,
    /// [`TCP`].
    pub protocol: u8,
    /// Always zero.
    pub pad: u8,
    /// The address; zeroes behind the prefix.
    pub address: Address,
}
const _: () = assert!(size_of::<NetworkKey>() == 20);

impl NetworkKey {
    /// The bits before the address: a key's prefix length is these and the address' own.
    pub const BITS_BEFORE_ADDRESS: u32 = 32;
    /// All bits: the prefix length of a look-up.
    pub const BITS: u32 = 160;
}

/// Value of `DESTINATIONS` and `NETWORKS`: where a dial to it is sent instead.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Destination {
    /// The VIP that stands for this destination; of the same family as its key's address.
    pub vip: Address,
    /// The agent's number for this destination; goes into the flow.
    pub id: u32,
    /// What holds for a pod that `OVERRIDES` does not list: [`enforcement`].
    pub enforcement: u8,
    /// 1: `OVERRIDES` may list pods for it.
    pub overridden: u8,
    /// Always zero.
    pub pad: [u8; 2],
    /// Stands for a later version's addition: a build of another shape, for tests of upgrades.
    #[cfg(feature = "other-shape")]
    pub added: u64,
}
#[cfg(not(feature = "other-shape"))]
const _: () = assert!(size_of::<Destination>() == 24);

/// What may hold for a pod that dials a destination; strictness is not in the order of the numbers.
pub mod enforcement {
    /// Redirected, direct while the heartbeat is stale.
    pub const LOOSE: u8 = 0;
    /// Redirected or refused.
    pub const STRICT: u8 = 1;
    /// Counted and let through.
    pub const OBSERVE: u8 = 2;
}

/// Key of `OVERRIDES`, `OBSERVED` and `LOOSE_DIRECT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PodDestination {
    /// The pod's cgroup.
    pub pod_id: u64,
    /// [`Destination::id`].
    pub destination: u32,
    /// Always zero.
    pub pad: u32,
}
const _: () = assert!(size_of::<PodDestination>() == 16);

/// Value of `OBSERVED` and `LOOSE_DIRECT`: how often a workload dialled a destination and went direct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dials {
    /// connect() calls.
    pub count: u64,
    /// When the last one was, CLOCK_MONOTONIC in nanoseconds.
    pub last_ns: u64,
    /// Cgroup of the task that called last.
    pub cgroup_id: u64,
    /// Its ancestors one and two levels below the attached cgroup; 0 where there is none.
    pub ancestor_ids: [u64; 2],
}
const _: () = assert!(size_of::<Dials>() == 40);

/// Value of `RESTING_VIPS`: what a VIP stood for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RestingVip {
    /// The address, or the first of a range.
    pub address: Address,
    /// The port, network order.
    pub port: u16,
    /// Number of leading bits that count, of the address' own family.
    pub prefix: u8,
    /// Always zero.
    pub pad: [u8; 5],
    /// Since when, CLOCK_MONOTONIC in nanoseconds.
    pub since_ns: u64,
}
const _: () = assert!(size_of::<RestingVip>() == 32);

/// The one value of `META`: who pinned these maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Meta {
    /// [`Meta::MAGIC`].
    pub magic: u32,
    /// [`Meta::SCHEMA`] of the build that pinned.
    pub schema: u32,
    /// The agent's version, filled up with zeroes.
    pub version: [u8; 56],
}
const _: () = assert!(size_of::<Meta>() == 64);

impl Meta {
    /// "hnp" and a zero.
    pub const MAGIC: u32 = u32::from_le_bytes(*b"hnp\0");
    /// Counts up when programs of two builds cannot work on the same maps: when the meaning of a key, of
    /// [`SocketState`] or of [`FlowValue`] changes. A map that only grows does not need it. 1 had no `META`.
    pub const SCHEMA: u32 = 2;
}

/// The one value of `HEARTBEAT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Heartbeat {
    /// When every worker had last answered, CLOCK_MONOTONIC in nanoseconds; 0: no agent serves.
    pub stamp_ns: u64,
    /// How old the stamp may be, in nanoseconds.
    pub limit_ns: u64,
}
const _: () = assert!(size_of::<Heartbeat>() == 16);

/// The one value of `SETTINGS`: what the programs need to know of the maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How many entries `NETWORKS` has; with none it is not asked.
    pub networks: u32,
    /// Always zero.
    pub reserved: [u32; 3],
}
const _: () = assert!(size_of::<Settings>() == 16);

impl DestinationKey {
    /// The port of the entry in `GUARDED` which says that an address is guarded at some port. Nobody
    /// can listen on it.
    pub const ANY_PORT: u16 = 0;
}

/// What the kernel remembers with a socket (`SOCKETS`): where it was going, and for whom.
///
/// Lives as long as the socket, or until the next connect() of the same socket to elsewhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SocketState {
    /// What the pod dialled.
    pub orig_address: Address,
    /// The VIP it was sent to.
    pub vip: Address,
    /// Port of what the pod dialled, network order.
    pub orig_port: u16,
    /// The agent's port, network order.
    pub agent_port: u16,
    /// [`Destination::id`]; 0 when the pod dialled the VIP itself.
    pub destination: u32,
    /// Cgroup of the task that called connect().
    pub cgroup_id: u64,
    /// Its ancestors one and two levels below the attached cgroup; 0 where there is none.
    pub ancestor_ids: [u64; 2],
    /// The pod's cgroup: what the per-pod limit counts by.
    pub pod_id: u64,
    /// Key of the flow that was written, once [`SocketState::FLOW`] is set.
    pub flow: FlowKey,
    /// A combination of the flags below.
    pub flags: u32,
    /// For later versions; zero.
    pub reserved: [u64; 2],
}
const _: () = assert!(size_of::<SocketState>() == 128);

impl SocketState {
    /// The pod dialled the VIP itself.
    pub const DIRECT: u32 = 1;
    /// A SYN was about to be sent: from here on, another connect() to the VIP is the pod's own.
    pub const STARTED: u32 = 2;
    /// This socket is counted against its pod's limit.
    pub const COUNTED: u32 = 4;
    /// A flow was written for this socket; the agent may have taken it since.
    pub const FLOW: u32 = 8;
    /// Strict is what holds for this pod and destination.
    pub const STRICT: u32 = 0x20;
}

/// Key of `FLOWS`: what the agent sees of an accepted socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct FlowKey {
    /// The client's address.
    pub client: Address,
    /// The VIP: the accepted socket's local address.
    pub vip: Address,
    /// The client's port, network order.
    pub client_port: u16,
    /// Always zero.
    pub pad: u16,
}
const _: () = assert!(size_of::<FlowKey>() == 36);

/// Value of `FLOWS`: a connection between connect() and the agent's accept.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlowValue {
    /// What the pod dialled.
    pub orig_address: Address,
    /// Its port, network order.
    pub orig_port: u16,
    /// Always zero.
    pub pad: u16,
    /// A combination of [`SocketState::DIRECT`], [`SocketState::STRICT`] and [`FlowValue::CLOSED`].
    pub flags: u32,
    /// Cgroup of the task that called connect().
    pub cgroup_id: u64,
    /// Its ancestors one and two levels below the attached cgroup; 0 where there is none.
    pub ancestor_ids: [u64; 2],
    /// The socket's cookie: a socket that closes deletes its own flow and nobody else's.
    pub cookie: u64,
    /// [`Destination::id`].
    pub destination: u32,
    /// Always zero.
    pub pad2: u32,
    /// For later versions; zero.
    pub reserved: [u64; 2],
}
const _: () = assert!(size_of::<FlowValue>() == 80);

impl FlowValue {
    /// The client's side of the connection is over; the agent may still have to accept it.
    pub const CLOSED: u32 = 0x10;
}

/// An address range, compared under a mask.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// The first address.
    pub base: Address,
    /// Ones where an address must equal `base`.
    pub mask: Address,
}
const _: () = assert!(size_of::<Range>() == 32);

impl Range {
    /// A range that holds no address: no address equals a base outside its own mask.
    pub const EMPTY: Self = Self { base: Address([u32::MAX; 4]), mask: Address::UNSPECIFIED };

    /// Whether `address` lies in it.
    #[inline(always)]
    pub const fn contains(&self, address: Address) -> bool {
        let (base, mask, a) = (self.base.0, self.mask.0, address.0);
        a[0] & mask[0] == base[0]
            && a[1] & mask[1] == base[1]
            && a[2] & mask[2] == base[2]
            && a[3] & mask[3] == base[3]
    }
}

/// The constants the programs are loaded with (`CONFIG`, read-only: the verifier prunes by them).
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// The cgroup the programs hang on; pods are counted from it downwards.
    pub attached_cgroup: u64,
    /// Cookie of the agent's network namespace; 0 when it is not known.
    pub agent_netns: u64,
    /// The range of IPv4 VIPs.
    pub vips4: Range,
    /// The range of IPv6 VIPs.
    pub vips6: Range,
    /// How many captured connections one pod may have open.
    pub connections_per_pod: u32,
    /// The agent's port, network order.
    pub agent_port: u16,
    /// 1 where the kernel has `bpf_set_retval`, so that refusals can carry an errno.
    pub has_set_retval: u8,
    /// Always zero.
    pub pad: u8,
}
const _: () = assert!(size_of::<Config>() == 88);

impl Config {
    /// Redirects nothing: what an object that nobody configured does.
    pub const EMPTY: Self = Self {
        attached_cgroup: 0,
        agent_netns: 0,
        vips4: Range::EMPTY,
        vips6: Range::EMPTY,
        connections_per_pod: 0,
        agent_port: 0,
        has_set_retval: 0,
        pad: 0,
    };

    /// Whether `address` is a VIP, in use or not.
    #[inline(always)]
    pub const fn is_vip(&self, address: Address) -> bool {
        self.vips4.contains(address) || self.vips6.contains(address)
    }
}

#[cfg(feature = "user")]
mod user {
    //! What only user space needs: conversions from and to `std::net`, and leave to copy as bytes.

    extern crate std;

    use std::net::{IpAddr, Ipv6Addr};

    use super::{
        Address, Config, Destination, DestinationKey, Dials, FlowKey, FlowValue, Heartbeat, Meta, NetworkKey,
        PodDestination, Range, RestingVip, Settings, SocketState, TCP,
    };

    impl From<IpAddr> for Address {
        fn from(address: IpAddr) -> Self {
            let octets = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
                *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            Self(words)
        }
    }

    impl From<Address> for IpAddr {
        /// v4-mapped addresses become IPv4: hnp never shows one.
        fn from(address: Address) -> Self {
            let mut octets = [0; 16];
            for (bytes, word) in octets.chunks_exact_mut(4).zip(address.0) {
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
            Self::V6(Ipv6Addr::from(octets)).to_canonical()
        }
    }

    impl DestinationKey {
        /// The key of a TCP destination; `port` in host order.
        pub fn tcp(address: IpAddr, port: u16) -> Self {
            Self { address: address.into(), port: port.to_be(), protocol: TCP, pad: 0 }
        }
    }

    impl NetworkKey {
        /// Prefix length and key of a range on a TCP port; `prefix` counts the bits of `addr`'s own
        /// family, `port` is in host order.
        pub fn tcp(addr: IpAddr, prefix: u8, port: u16) -> (u32, Self) {
            let before = if addr.is_ipv4() { 96 } else { 0 };
            let Range { base, .. } = Range::of(addr, prefix);
            let key = Self { port: port.to_be(), protocol: TCP, pad: 0, address: base };
            (Self::BITS_BEFORE_ADDRESS + before + u32::from(prefix), key)
        }
    }

    impl FlowKey {
        /// The key of an accepted socket; `client_port` in host order.
        pub fn new(client: IpAddr, client_port: u16, vip: IpAddr) -> Self {
            Self { client: client.into(), vip: vip.into(), client_port: client_port.to_be(), pad: 0 }
        }
    }

    impl Range {
        /// The range of a CIDR. `prefix` counts the bits of `base`'s own family.
        pub fn of(base: IpAddr, prefix: u8) -> Self {
            let prefix = match base {
                IpAddr::V4(_) => u32::from(prefix.min(32)) + 96,
                IpAddr::V6(_) => u32::from(prefix.min(128)),
            };
            let ones = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            let mask = Address::from(IpAddr::V6(Ipv6Addr::from(ones)));
            let base = Address::from(base);
            let mut masked = base.0;
            for (word, mask) in masked.iter_mut().zip(mask.0) {
                *word &= mask;
            }
            Self { base: Address(masked), mask }
        }
    }

    // SAFETY (all of these): `repr(C)` or `repr(transparent)` over integers, every byte is a declared
    // field (the size assertions above leave no room for padding), and every bit pattern is valid.
    macro_rules! pod {
        ($($name:ty),+) => {$(
            // SAFETY: as said above the macro.
            unsafe impl aya::Pod for $name {}
        )+};
    }
    pod!(
        Address,
        Config,
        Destination,
        DestinationKey,
        Dials,
        FlowKey,
        FlowValue,
        Heartbeat,
        Meta,
        NetworkKey,
        PodDestination,
        Range,
        RestingVip,
        Settings,
        SocketState
    );

    #[cfg(test)]
    mod tests {
        use super::*;

        fn ip(text: &str) -> IpAddr {
            text.parse().expect("an address")
        }

        #[test]
        fn one_address_has_one_form() {
            let v4 = Address::from(ip("10.1.2.3"));
            assert_eq!(v4, Address::from(ip("::ffff:10.1.2.3")));
            assert_eq!(v4, Address::v4(u32::from_ne_bytes([10, 1, 2, 3])));
            assert_eq!(v4.v4_word().to_ne_bytes(), [10, 1, 2, 3]);
            assert_eq!(IpAddr::from(v4), ip("10.1.2.3"));
            assert_eq!(IpAddr::from(Address::from(ip("fd00:77::9"))), ip("fd00:77::9"));
        }

        #[test]
        fn a_guarded_range_counts_its_port_first() {
            let (bits, key) = NetworkKey::tcp(ip("10.1.2.3"), 8, 443);
            assert_eq!((bits, key.port.to_ne_bytes()), (32 + 96 + 8, [1, 187]));
            assert_eq!(IpAddr::from(key.address), ip("10.0.0.0"), "bits beyond the prefix are zero");
            assert_eq!(NetworkKey::tcp(ip("fd00::1"), 128, 1).0, NetworkKey::BITS);
        }

        #[test]
        fn ranges_hold_their_own_and_nothing_else() {
            let v4 = Range::of(ip("169.254.77.9"), 24);
            assert!(v4.contains(ip("169.254.77.0").into()) && v4.contains(ip("169.254.77.255").into()));
            assert!(!v4.contains(ip("169.254.78.0").into()) && !v4.contains(ip("fd00:77::1").into()));
            assert!(!v4.contains(ip("::169.254.77.1").into()), "not the mapped prefix");
            let v6 = Range::of(ip("fd00:77::"), 64);
            assert!(v6.contains(ip("fd00:77::ffff:1").into()) && !v6.contains(ip("fd00:77:0:1::").into()));
            assert!(Range::of(ip("::"), 0).contains(ip("1.2.3.4").into()), "everything");
            assert!(Range::of(ip("10.0.0.1"), 32).contains(ip("10.0.0.1").into()));
            for any in ["0.0.0.0", "::", "255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
                assert!(!Range::EMPTY.contains(ip(any).into()), "{any}");
            }
        }
    }
}
