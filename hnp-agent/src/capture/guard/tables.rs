//! What the kernel's guard is told to guard: single addresses in a hash map, ranges in a trie.
//!
//! Each address and range has a second entry at no port in particular: a packet to anywhere else is
//! done with after one look. Before that stands a filter of bits by address, and most packets need no more.

use std::collections::HashSet;
use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap as KernelMap, Map, MapData, MapError};
use hnp_common::layout::{Address, DestinationKey, GUARD_FILTER_WORDS, NetworkKey};

use crate::capture::error::CaptureError;
use crate::config::plan::{AddrRange, Cidr};

/// `GUARDED`, `GUARDED_NETS` and `GUARD_FILTER`, and what is in them.
pub(in crate::capture) struct Tables {
    single: KernelMap<MapData, DestinationKey, u8>,
    nets: LpmTrie<MapData, NetworkKey, u8>,
    single_held: HashSet<DestinationKey>,
    nets_held: HashSet<(u32, NetworkKey)>,
    filter: Array<MapData, u64>,
    filter_held: Vec<u64>,
}

impl Tables {
    /// Starts from what is in them: they may have been a dead agent's.
    pub(in crate::capture) fn new(single: Map, nets: Map, filter: Map) -> Result<Self, CaptureError> {
        let single = KernelMap::try_from(single).map_err(error("open", SINGLE))?;
        let nets = LpmTrie::try_from(nets).map_err(error("open", NETS))?;
        let single_held = single.keys().collect::<Result<_, _>>().map_err(error("read", SINGLE))?;
        let nets_held = nets
            .keys()
            .map(|key| key.map(|key: Key<NetworkKey>| (key.prefix_len(), key.data())))
            .collect::<Result<_, _>>()
            .map_err(error("read", NETS))?;
        let filter = Array::try_from(filter).map_err(error("open", FILTER))?;
        let filter_held = filter.iter().collect::<Result<_, _>>().map_err(error("read", FILTER))?;
        Ok(Self { single, nets, single_held, nets_held, filter, filter_held })
    }

    /// Makes them hold exactly these. What is new comes before what is gone goes.
    pub(super) fn set(&mut self, guarded: &[AddrRange]) -> Result<(), CaptureError> {
        let (single, nets) = entries(guarded);
        let filter = filter_of(guarded);
        let both: Vec<_> = filter.iter().zip(&self.filter_held).map(|(new, held)| new | held).collect();
        let mut outcome = self.write_filter(&both);
        for key in single.difference(&self.single_held.clone()) {
            match self.single.insert(key, 1, 0) {
                Ok(()) => drop(self.single_held.insert(*key)),
                Err(source) => outcome = outcome.and(Err(error("insert into", SINGLE)(source))),
            }
        }
        for key in nets.difference(&self.nets_held.clone()) {
            match self.nets.insert(&Key::new(key.0, key.1), 1, 0) {
                Ok(()) => drop(self.nets_held.insert(*key)),
                Err(source) => outcome = outcome.and(Err(error("insert into", NETS)(source))),
            }
        }
        for key in self.single_held.clone().difference(&single) {
            match gone(self.single.remove(key)) {
                Ok(()) => drop(self.single_held.remove(key)),
                Err(source) => outcome = outcome.and(Err(error("remove from", SINGLE)(source))),
            }
        }
        for key in self.nets_held.clone().difference(&nets) {
            match gone(self.nets.remove(&Key::new(key.0, key.1))) {
                Ok(()) => drop(self.nets_held.remove(key)),
                Err(source) => outcome = outcome.and(Err(error("remove from", NETS)(source))),
            }
        }
        // A bit too many costs time, one too few a guarded address.
        if outcome.is_ok() { self.write_filter(&filter) } else { outcome }
    }

    fn write_filter(&mut self, filter: &[u64]) -> Result<(), CaptureError> {
        for (index, (word, held)) in (0_u32..).zip(filter.iter().zip(&mut self.filter_held)) {
            if word != held {
                self.filter.set(index, word, 0).map_err(error("write", FILTER))?;
                *held = *word;
            }
        }
        Ok(())
    }
}

const FILTER: &str = "GUARD_FILTER";
const SINGLE: &str = "GUARDED";
const NETS: &str = "GUARDED_NETS";

type Entries = (HashSet<DestinationKey>, HashSet<(u32, NetworkKey)>);

fn entries(guarded: &[AddrRange]) -> Entries {
    let (mut single, mut nets) = Entries::default();
    for AddrRange { net: range, port } in guarded {
        for port in [*port, DestinationKey::ANY_PORT] {
            if is_single(range) {
                single.insert(DestinationKey::tcp(range.addr, port));
            } else {
                nets.insert(NetworkKey::tcp(range.addr, range.prefix, port));
            }
        }
    }
    (single, nets)
}

fn filter_of(guarded: &[AddrRange]) -> Vec<u64> {
    let mut filter = vec![0; GUARD_FILTER_WORDS as usize];
    for AddrRange { net: range, .. } in guarded {
        if is_single(range) {
            let bit = Address::from(range.addr).filter_bit() as usize;
            filter[bit / 64] |= 1 << (bit % 64);
        } else {
            // A range has addresses everywhere in it.
            filter.fill(u64::MAX);
        }
    }
    filter
}

fn is_single(range: &Cidr) -> bool {
    match range.addr {
        IpAddr::V4(_) => range.prefix >= 32,
        IpAddr::V6(_) => range.prefix >= 128,
    }
}

fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn error(doing: &'static str, map: &'static str) -> impl FnOnce(MapError) -> CaptureError {
    move |source| CaptureError::Map { doing, map, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarded(addr: &str, prefix: u8, port: u16) -> AddrRange {
        AddrRange { net: Cidr { addr: addr.parse().expect("an address"), prefix }, port }
    }

    #[test]
    fn the_filter_has_a_bit_for_each_address_and_all_for_a_range() {
        let ones =
            |guarded: &[AddrRange]| filter_of(guarded).iter().map(|word| word.count_ones()).sum::<u32>();
        assert_eq!(ones(&[]), 0);
        let two = [guarded("10.0.0.1", 32, 80), guarded("fd00::1", 128, 80)];
        assert_eq!(ones(&two), 2);
        let bit = Address::from(two[1].net.addr).filter_bit();
        assert_ne!(filter_of(&two)[bit as usize / 64] >> (bit % 64) & 1, 0);
        assert_eq!(ones(&[two[0], guarded("10.0.0.0", 8, 80)]), 1 << 16);
    }

    #[test]
    fn an_address_and_a_range_each_have_an_entry_at_no_port() {
        let (single, nets) = entries(&[
            guarded("10.0.0.1", 32, 80),
            guarded("10.0.0.1", 32, 443),
            guarded("fd00::1", 128, 80),
            guarded("10.0.0.0", 8, 80),
            guarded("fd00::", 32, 80),
        ]);
        assert_eq!(single.len(), 3 + 2, "ports and addresses");
        assert_eq!(single.iter().filter(|key| key.port == DestinationKey::ANY_PORT).count(), 2);
        let mut bits: Vec<_> = nets.iter().map(|(bits, key)| (*bits, u16::from_be(key.port))).collect();
        bits.sort_unstable();
        assert_eq!(bits, [(64, 0), (64, 80), (136, 0), (136, 80)]);
    }
}
