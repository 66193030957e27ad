//! The AnyIP routes: `local <VIP range> dev lo`, which make every VIP an address of this node without
//! configuring one by one.
//!
//! The routes carry a protocol number of their own, so that one which a dead agent left is recognised
//! and one that somebody else made is never removed. A dead agent's programs still send pods there: its
//! routes stay while a successor starts, and if that fails.

use std::io;
use std::net::IpAddr;
use std::thread;

use futures_util::StreamExt as _;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Error as NetlinkError, Handle, RouteMessageBuilder};

use super::error::CaptureError;
use crate::config::plan::Cidr;

/// Marks our routes (`ip route show table local proto 119`). Free in rtnetlink(7) and iproute2.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(119);
const LOCAL_TABLE: u32 = 255;

/// The routes of the VIP ranges. Dropping it removes those that are this agent's: the ones it made,
/// and once [`Routes::take_over`] was called, a dead agent's too.
#[derive(Debug)]
pub(super) struct Routes {
    made: Vec<Cidr>,
    adopted: Vec<Cidr>,
}

impl Routes {
    /// Makes the ranges local, where they are not yet. A node without IPv6 does without IPv6 VIPs.
    pub(super) fn ensure(ranges: &[Cidr]) -> Result<Self, CaptureError> {
        let mut routes = Self { made: Vec::new(), adopted: Vec::new() };
        for range in ranges {
            match on_netlink(async |handle: &Handle| add(handle, *range).await)
                .map_err(|source| error("add", *range, source))?
            {
                Added::Made => routes.made.push(*range),
                Added::WasOurs => routes.adopted.push(*range),
                Added::WasThere => {
                    tracing::debug!(range = %range, "somebody else made this range local")
                }
                Added::NoSuchFamily => {
                    tracing::info!(range = %range, "this node has no IPv6; its VIPs are not needed")
                }
            }
        }
        Ok(routes)
    }

    /// Makes a former agent's routes this one's, and removes those of ranges that are no longer used.
    /// Whoever calls this has put programs of its own in the place of those that sent pods there.
    pub(super) fn take_over(&mut self) {
        self.made.append(&mut self.adopted);
        let kept = self.made.clone();
        match on_netlink(async move |handle: &Handle| remove_others(handle, &kept).await) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed a former agent's routes of other VIP ranges"),
            Err(error) => tracing::warn!(%error, "cannot look for a former agent's routes of other ranges"),
        }
    }

    /// Leaves everything as it is.
    pub(super) fn keep(mut self) {
        self.made.clear();
        self.adopted.clear();
    }

    /// Removes what is this agent's.
    pub(super) fn remove(mut self) -> Result<(), CaptureError> {
        self.remove_all()
    }

    fn remove_all(&mut self) -> Result<(), CaptureError> {
        let mut outcome = Ok(());
        for range in self.made.drain(..) {
            let removed = on_netlink(async |handle: &Handle| delete(handle, local_route(range)?).await);
            outcome = outcome.and(removed.map_err(|source| error("remove", range, source)));
        }
        outcome
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        if let Err(error) = self.remove_all() {
            tracing::warn!(error = &error as &dyn std::error::Error, "a route is left behind");
        }
    }
}

/// All routes of VIP ranges in this network namespace, whoever made them.
pub(super) fn all() -> Result<Vec<Cidr>, CaptureError> {
    let listed = on_netlink(async |handle: &Handle| {
        let mut all = Vec::new();
        for v6 in [false, true] {
            all.extend(ours(handle, v6).await?.iter().filter_map(cidr));
        }
        Ok(all)
    });
    listed.map_err(|source| CaptureError::Routes { doing: "list", source })
}

/// Removes them all; which there were.
pub(super) fn remove_all() -> Result<Vec<Cidr>, CaptureError> {
    let there = all()?;
    on_netlink(async |handle: &Handle| remove_others(handle, &[]).await)
        .map_err(|source| CaptureError::Routes { doing: "remove", source })?;
    Ok(there)
}

enum Added {
    Made,
    /// A dead agent's.
    WasOurs,
    WasThere,
    NoSuchFamily,
}

/// Talks netlink on a thread with a runtime of its own: the caller may be inside another runtime or in
/// none. The thread is in the caller's network namespace.
fn on_netlink<T: Send>(work: impl AsyncFnOnce(&Handle) -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netlink".into()).spawn_scoped(scope, move || {
            tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::select! {
                    outcome = work(&handle) => outcome,
                    () = connection => Err(io::Error::other("the netlink socket closed")),
                }
            })
        })?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the netlink thread panicked")))
    })
}

async fn add(handle: &Handle, range: Cidr) -> io::Result<Added> {
    match handle.route().add(local_route(range)?).execute().await {
        Ok(()) => Ok(Added::Made),
        Err(error) => match errno(&error) {
            Some(libc::EEXIST) => {
                let ours = ours(handle, range.addr.is_ipv6()).await?;
                let same = ours.iter().any(|route| cidr(route) == Some(network(range)));
                Ok(if same { Added::WasOurs } else { Added::WasThere })
            }
            // IPv6 is not in the kernel, or switched off on lo.
            Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EACCES) if range.addr.is_ipv6() => {
                Ok(Added::NoSuchFamily)
            }
            _ => Err(io_error(error)),
        },
    }
}

/// Removes our routes of all ranges but these; how many there were.
async fn remove_others(handle: &Handle, kept: &[Cidr]) -> io::Result<usize> {
    let kept: Vec<_> = kept.iter().copied().map(network).collect();
    let mut removed = 0;
    for v6 in [false, true] {
        for route in ours(handle, v6).await? {
            if cidr(&route).is_some_and(|range| !kept.contains(&range)) {
                delete(handle, route).await?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// All local routes with our protocol number.
async fn ours(handle: &Handle, v6: bool) -> io::Result<Vec<RouteMessage>> {
    let all = if v6 {
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()
    } else {
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()
    };
    let mut dump = std::pin::pin!(handle.route().get(all).execute());
    let mut ours = Vec::new();
    while let Some(route) = dump.next().await {
        match route {
            Ok(route) if route.header.protocol == PROTOCOL && route.header.kind == RouteType::Local => {
                ours.push(route);
            }
            Ok(_) => {}
            Err(error) if v6 && errno(&error) == Some(libc::EOPNOTSUPP) => break,
            Err(error) => return Err(io_error(error)),
        }
    }
    Ok(ours)
}

fn cidr(route: &RouteMessage) -> Option<Cidr> {
    let addr = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(addr)) => Some(IpAddr::V4(*addr)),
        RouteAttribute::Destination(RouteAddress::Inet6(addr)) => Some(IpAddr::V6(*addr)),
        _ => None,
    })?;
    Some(Cidr { addr, prefix: route.header.destination_prefix_length })
}

/// The range by its first address, as the kernel shows it.
pub(super) fn network(range: Cidr) -> Cidr {
    let addr = match range.addr {
        IpAddr::V4(addr) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(range.prefix)).unwrap_or(0);
            std::net::Ipv4Addr::from_bits(addr.to_bits() & mask).into()
        }
        IpAddr::V6(addr) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(range.prefix)).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(addr.to_bits() & mask).into()
        }
    };
    Cidr { addr, prefix: range.prefix }
}

/// Deletes the route; one that is not there is as good as deleted.
async fn delete(handle: &Handle, route: RouteMessage) -> io::Result<()> {
    match handle.route().del(route).execute().await {
        Ok(()) => Ok(()),
        Err(error) => match errno(&error) {
            Some(libc::ESRCH | libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EACCES) => Ok(()),
            _ => Err(io_error(error)),
        },
    }
}

fn local_route(range: Cidr) -> io::Result<RouteMessage> {
    let lo = nix::net::if_::if_nametoindex("lo")?;
    Ok(match range.addr {
        IpAddr::V4(addr) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(addr, range.prefix)
            .output_interface(lo)
            .table_id(LOCAL_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .protocol(PROTOCOL)
            .build(),
        IpAddr::V6(addr) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(addr, range.prefix)
            .output_interface(lo)
            .table_id(LOCAL_TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Universe)
            .protocol(PROTOCOL)
            .build(),
    })
}

fn errno(error: &NetlinkError) -> Option<i32> {
    match error {
        NetlinkError::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}

fn io_error(error: NetlinkError) -> io::Error {
    errno(&error).map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

fn error(doing: &'static str, range: Cidr, source: io::Error) -> CaptureError {
    CaptureError::Route { doing, range: range.to_string(), source }
}
