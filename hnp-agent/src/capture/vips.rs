//! Which VIP stands for which destination. Pure: no map, no clock.
//!
//! A VIP is stable while its destination is captured. One that is given back rests for as long as
//! possible: a connection that was under way to it must not reach another destination. So VIPs that
//! were never used come first, then the one that has rested longest.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::plan::{AddrRange, Cidr};

/// How long a VIP that was given back must not stand for another destination: a connection that was sent
/// there may still be on its way. A SYN is repeated for some two minutes (`net.ipv4.tcp_syn_retries`).
const QUARANTINE_NS: u64 = 180 * 1_000_000_000;

/// The VIPs of one family.
#[derive(Debug)]
pub(super) struct VipPool {
    range: Cidr,
    /// Offset of the next VIP that was never used.
    next: u128,
    /// Offset behind the last VIP.
    end: u128,
    in_use: HashMap<IpAddr, AddrRange>,
    /// Given back, longest ago first, with what they stood for and until when.
    resting: VecDeque<(IpAddr, AddrRange, u64)>,
}

impl VipPool {
    pub(super) fn new(range: Cidr) -> Self {
        let bits = if range.addr.is_ipv4() { 32 } else { 128 };
        let size = 1_u128.checked_shl(bits - u32::from(range.prefix)).unwrap_or(u128::MAX);
        // The first address names the network and the last one of IPv4 is the broadcast: people and
        // tools do not expect a host there. A range of one or two addresses has nothing to spare.
        let (next, end) = match size {
            0..=2 => (0, size),
            _ if range.addr.is_ipv4() => (1, size - 1),
            _ => (1, size),
        };
        Self { range, next, end, in_use: HashMap::new(), resting: VecDeque::new() }
    }

    /// The range, as it is written.
    pub(super) fn range(&self) -> Cidr {
        self.range
    }

    /// How many VIPs are in use.
    pub(super) fn in_use(&self) -> usize {
        self.in_use.len()
    }

    /// How many VIPs rest.
    pub(super) fn resting(&self) -> usize {
        self.resting.len()
    }

    /// A VIP for a destination that has none yet; `None`: all are in use or have not rested for long.
    pub(super) fn assign(&mut self, destination: AddrRange, now_ns: u64) -> Option<IpAddr> {
        let vip =
            self.former(destination).or_else(|| self.never_used()).or_else(|| self.longest_rested(now_ns))?;
        self.in_use.insert(vip, destination);
        Some(vip)
    }

    /// Takes a VIP that a former agent assigned; `false`: it is not in the range, or in use.
    pub(super) fn reserve(&mut self, vip: IpAddr, destination: AddrRange) -> bool {
        if !self.contains(vip) || self.in_use.contains_key(&vip) {
            return false;
        }
        self.resting.retain(|(resting, _, _)| *resting != vip);
        self.in_use.insert(vip, destination);
        true
    }

    /// Gives a VIP back.
    pub(super) fn release(&mut self, vip: IpAddr, now_ns: u64) {
        if let Some(destination) = self.in_use.remove(&vip) {
            self.resting.push_back((vip, destination, now_ns));
        }
    }

    /// Takes note of a VIP that a former agent gave back.
    pub(super) fn rest(&mut self, vip: IpAddr, destination: AddrRange, since_ns: u64) {
        if self.contains(vip) && !self.in_use.contains_key(&vip) {
            self.resting.push_back((vip, destination, since_ns));
        }
    }

    fn former(&mut self, destination: AddrRange) -> Option<IpAddr> {
        let at = self.resting.iter().position(|(_, former, _)| *former == destination)?;
        self.resting.remove(at).map(|(vip, _, _)| vip)
    }

    fn never_used(&mut self) -> Option<IpAddr> {
        while self.next < self.end {
            let vip = self.at(self.next);
            self.next += 1;
            // Reserved ones were taken out of turn.
            let used =
                self.in_use.contains_key(&vip) || self.resting.iter().any(|(resting, _, _)| *resting == vip);
            if !used {
                return Some(vip);
            }
        }
        None
    }

    fn longest_rested(&mut self, now_ns: u64) -> Option<IpAddr> {
        let (_, _, since) = self.resting.front()?;
        if now_ns.saturating_sub(*since) < QUARANTINE_NS {
            return None;
        }
        self.resting.pop_front().map(|(vip, _, _)| vip)
    }

    fn at(&self, offset: u128) -> IpAddr {
        match self.range.addr {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() + offset as u32).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + offset).into(),
        }
    }

    /// Whether an address may be one of these VIPs.
    pub(super) fn contains(&self, vip: IpAddr) -> bool {
        let offset = match (self.range.addr, vip) {
            (IpAddr::V4(base), IpAddr::V4(vip)) => vip.to_bits().checked_sub(base.to_bits()).map(u128::from),
            (IpAddr::V6(base), IpAddr::V6(vip)) => vip.to_bits().checked_sub(base.to_bits()),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        };
        offset.is_some_and(|offset| offset < self.end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn pool(cidr: &str) -> VipPool {
        let (addr, prefix) = cidr.split_once('/').expect("a cidr");
        VipPool::new(Cidr { addr: addr.parse().expect("an address"), prefix: prefix.parse().expect("bits") })
    }

    fn destination(n: u16) -> AddrRange {
        AddrRange::host(([10, 0, 0, 1], n).into())
    }

    #[test]
    fn every_address_of_the_range_is_used_and_none_beyond() {
        let mut vips = pool("169.254.77.0/29");
        let all: Vec<_> = (1..=6).map(|n| vips.assign(destination(n), 0).expect("one is left")).collect();
        assert_eq!(all.first(), Some(&"169.254.77.1".parse().expect("an address")));
        assert_eq!(all.last(), Some(&"169.254.77.6".parse().expect("an address")));
        assert_eq!(vips.assign(destination(7), 0), None);
        assert_eq!(
            pool("10.0.0.9/32").assign(destination(1), 0),
            Some("10.0.0.9".parse().expect("an address"))
        );
        assert_eq!(
            pool("fd00:77::/64").assign(destination(1), 0),
            Some("fd00:77::1".parse().expect("an address"))
        );
        assert!(pool("::/0").assign(destination(1), 0).is_some());
    }

    #[test]
    fn a_released_vip_rests_until_all_others_were_used() {
        let mut vips = pool("169.254.77.0/29");
        let first = vips.assign(destination(1), 0).expect("one is left");
        let second = vips.assign(destination(2), 0).expect("one is left");
        vips.release(second, 0);
        vips.release(first, 0);
        for n in 3..=6 {
            let vip = vips.assign(destination(n), 0).expect("one is left");
            assert!(vip != first && vip != second, "never used ones come first");
        }
        assert_eq!(vips.assign(destination(7), QUARANTINE_NS - 1), None, "not for long enough");
        assert_eq!(vips.assign(destination(7), QUARANTINE_NS), Some(second), "longest rested");
        assert_eq!(vips.assign(destination(8), QUARANTINE_NS), Some(first));
    }

    #[test]
    fn a_destination_that_comes_back_gets_its_former_vip() {
        let mut vips = pool("169.254.77.0/24");
        let former = vips.assign(destination(1), 0).expect("one is left");
        vips.assign(destination(2), 0);
        vips.release(former, 0);
        assert_eq!(vips.assign(destination(1), 0), Some(former));
    }

    #[test]
    fn what_a_former_agent_assigned_is_not_assigned_again() {
        let mut vips = pool("169.254.77.0/29");
        let inherited = "169.254.77.1".parse().expect("an address");
        assert!(vips.reserve(inherited, destination(1)));
        assert!(!vips.reserve(inherited, destination(2)), "in use");
        assert!(
            !vips.reserve("169.254.78.1".parse().expect("an address"), destination(2)),
            "not in the range"
        );
        assert_ne!(vips.assign(destination(2), 0), Some(inherited));
    }

    proptest! {
        #[test]
        fn no_two_destinations_share_a_vip(steps in proptest::collection::vec((any::<bool>(), 0_u16..24), 0..400)) {
            let mut vips = pool("169.254.77.0/28");
            let mut held: HashMap<AddrRange, IpAddr> = HashMap::new();
            for (take, n) in steps {
                let destination = destination(n);
                match (take, held.get(&destination).copied()) {
                    (true, None) => {
                        let vip = vips.assign(destination, QUARANTINE_NS);
                        prop_assert_eq!(vip.is_none(), held.len() == 14, "exhausted only when all are in use");
                        held.extend(vip.map(|vip| (destination, vip)));
                    }
                    (false, Some(vip)) => {
                        vips.release(vip, 0);
                        held.remove(&destination);
                    }
                    (true, Some(_)) | (false, None) => {}
                }
                prop_assert_eq!(held.values().collect::<HashSet<_>>().len(), held.len());
                prop_assert_eq!(vips.in_use(), held.len());
            }
        }
    }
}
