//! Takes flows out of the kernel: who connected, and where to.
//!
//! Read and deleted in one step, on the worker's own thread, right after accept.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use aya::maps::{HashMap as KernelMap, Map, MapData};
use hnp_common::Reason;
use hnp_common::layout::{FlowKey, FlowValue, SocketState};

use super::Ranges;
use super::error::CaptureError;
use super::sys::{self, Elements};
use crate::proxy::flow::{Flow, FlowSource};

/// The kernel's `FLOWS`.
pub(super) struct KernelFlows {
    map: KernelMap<MapData, FlowKey, FlowValue>,
    fd: OwnedFd,
    ranges: Ranges,
    /// Hash maps answer lookup-and-delete since Linux 5.14; found out at the first flow.
    in_one_step: AtomicBool,
}

impl Elements for KernelFlows {
    type Key = FlowKey;
    type Value = FlowValue;
}

impl KernelFlows {
    pub(super) fn new(map: Map, ranges: Ranges) -> Result<Self, CaptureError> {
        let Map::HashMap(data) = &map else { return Err(CaptureError::ObjectLacks("FLOWS")) };
        let fd = data
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| error("open", aya::maps::MapError::IoError(source)))?;
        // Checks the sizes of key and value, which the raw calls below rely on.
        let map = KernelMap::try_from(map).map_err(|source| error("open", source))?;
        Ok(Self { map, fd, ranges, in_one_step: AtomicBool::new(true) })
    }

    /// How many flows wait to be taken.
    pub(super) fn count(&self) -> Result<usize, CaptureError> {
        let mut count = 0;
        for key in self.map.keys() {
            key.map_err(|source| error("read", source))?;
            count += 1;
        }
        Ok(count)
    }

    /// Deletes what closed before the previous sweep and was never taken: the agent's backlog was
    /// full, or its listener was replaced. `closed` keeps what this sweep saw for the next one.
    pub(super) fn sweep(&self, closed: &mut HashMap<FlowKey, u64>) -> Result<usize, CaptureError> {
        let mut swept = 0;
        let mut seen = HashMap::new();
        for entry in self.map.iter() {
            let (key, value) = entry.map_err(|source| error("read", source))?;
            if value.flags & FlowValue::CLOSED == 0 {
                continue;
            }
            if closed.get(&key) == Some(&value.cookie) {
                sys::map_delete::<Self>(self.fd.as_fd(), &key)
                    .map_err(|source| error("remove from", aya::maps::MapError::IoError(source)))?;
                swept += 1;
            } else {
                seen.insert(key, value.cookie);
            }
        }
        *closed = seen;
        Ok(swept)
    }

    fn take_value(&self, key: &FlowKey) -> io::Result<Option<FlowValue>> {
        let fd = self.fd.as_fd();
        if self.in_one_step.load(Ordering::Relaxed) {
            match sys::map_lookup_and_delete::<Self>(fd, key) {
                Ok(value) => return Ok(value),
                Err(error) => {
                    tracing::debug!(%error, "no lookup-and-delete for hash maps; flows are taken in two steps");
                    self.in_one_step.store(false, Ordering::Relaxed);
                }
            }
        }
        // Nobody else takes this flow in between: it belongs to the one accepted socket.
        let value = sys::map_lookup::<Self>(fd, key)?;
        if value.is_some() {
            sys::map_delete::<Self>(fd, key)?;
        }
        Ok(value)
    }
}

impl FlowSource for KernelFlows {
    fn take(&self, client: SocketAddr, local: SocketAddr) -> Result<Flow, Reason> {
        let vip = vip(local.ip(), self.ranges).ok_or(Reason::NotVip)?;
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let key = FlowKey::new(client.ip(), client.port(), vip);
        match self.take_value(&key) {
            Ok(Some(value)) => Ok(flow(client, vip, &value)),
            Ok(None) => Err(Reason::NoFlow),
            Err(error) => {
                tracing::error!(%error, "cannot read the kernel's flows");
                Err(Reason::Internal)
            }
        }
    }
}

fn vip(local: IpAddr, ranges: Ranges) -> Option<IpAddr> {
    let local = local.to_canonical();
    (ranges.v4.contains(local.into()) || ranges.v6.contains(local.into())).then_some(local)
}

fn flow(client: SocketAddr, vip: IpAddr, value: &FlowValue) -> Flow {
    Flow {
        client,
        vip,
        orig_dst: SocketAddr::new(value.orig_address.into(), u16::from_be(value.orig_port)),
        cgroup_id: value.cgroup_id,
        ancestor_ids: value.ancestor_ids,
        direct: value.flags & SocketState::DIRECT != 0,
        strict: value.flags & SocketState::STRICT != 0,
    }
}

fn error(doing: &'static str, source: aya::maps::MapError) -> CaptureError {
    CaptureError::Map { doing, map: "FLOWS", source }
}

#[cfg(test)]
mod tests {
    use hnp_common::layout::Range;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_addresses_of_the_ranges_are_vips() {
        let ranges = Ranges { v4: Range::of(ip("169.254.77.0"), 24), v6: Range::of(ip("fd00:77::"), 64) };
        assert_eq!(vip(ip("::ffff:169.254.77.5"), ranges), Some(ip("169.254.77.5")), "a dual-stack listener");
        assert_eq!(vip(ip("fd00:77::5"), ranges), Some(ip("fd00:77::5")));
        for other in ["127.0.0.1", "169.254.78.1", "fd00:78::1", "::1"] {
            assert_eq!(vip(ip(other), ranges), None, "{other}");
        }
    }

    #[test]
    fn a_flow_reads_as_the_kernel_wrote_it() {
        let value = FlowValue {
            orig_address: ip("10.9.9.9").into(),
            orig_port: 443_u16.to_be(),
            pad: 0,
            flags: SocketState::DIRECT,
            cgroup_id: 7,
            ancestor_ids: [5, 6],
            cookie: 1,
            destination: 2,
            pad2: 0,
            reserved: [0; 2],
        };
        let flow = flow(SocketAddr::from(([10, 0, 0, 1], 9)), ip("169.254.77.5"), &value);
        assert_eq!(flow.orig_dst, SocketAddr::from(([10, 9, 9, 9], 443)));
        assert!(flow.direct && flow.cgroup_id == 7 && flow.ancestor_ids == [5, 6]);
    }
}
