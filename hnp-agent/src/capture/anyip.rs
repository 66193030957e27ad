//! The AnyIP routes: `local <VIP range> dev lo`, which make every VIP an address of this node without
//! configuring one by one.
//!
//! The routes carry a protocol number of their own, so that one which a dead agent left is recognised
//! and one that somebody else made is never removed.

use std::io;
use std::net::IpAddr;
use std::thread;

use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Error as NetlinkError, Handle, RouteMessageBuilder};

use super::error::CaptureError;
use super::written;
use crate::config::plan::Cidr;

/// Marks our routes (`ip route show table local proto 119`). Free in rtnetlink(7) and iproute2.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(119);
const LOCAL_TABLE: u32 = 255;

/// The routes this agent made. Dropping it removes them.
#[derive(Debug)]
pub(super) struct Routes {
    made: Vec<Cidr>,
}

impl Routes {
    /// Makes the ranges local, where they are not yet. A node without IPv6 does without IPv6 VIPs.
    pub(super) fn ensure(ranges: &[Cidr]) -> Result<Self, CaptureError> {
        let mut routes = Self { made: Vec::new() };
        for range in ranges {
            match on_netlink(*range, Action::Add).map_err(|source| error("add", *range, source))? {
                Added::Made => routes.made.push(*range),
                Added::WasThere => {
                    tracing::debug!(range = written(*range), "somebody else made this range local")
                }
                Added::NoSuchFamily => {
                    tracing::info!(range = written(*range), "this node has no IPv6; its VIPs are not needed")
                }
            }
        }
        Ok(routes)
    }

    /// Removes what was made.
    pub(super) fn remove(mut self) -> Result<(), CaptureError> {
        self.remove_all()
    }

    fn remove_all(&mut self) -> Result<(), CaptureError> {
        let mut outcome = Ok(());
        for range in self.made.drain(..) {
            let removed = on_netlink(range, Action::Remove).map_err(|source| error("remove", range, source));
            outcome = outcome.and(removed.map(|_| ()));
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

#[derive(Clone, Copy)]
enum Action {
    Add,
    Remove,
}

enum Added {
    Made,
    WasThere,
    NoSuchFamily,
}

/// Talks netlink on a thread with a runtime of its own: the caller may be inside another runtime or in
/// none. The thread is in the caller's network namespace.
fn on_netlink(range: Cidr, action: Action) -> io::Result<Added> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netlink".into()).spawn_scoped(scope, move || {
            tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::select! {
                    outcome = change(&handle, range, action) => outcome,
                    () = connection => Err(io::Error::other("the netlink socket closed")),
                }
            })
        })?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the netlink thread panicked")))
    })
}

async fn change(handle: &Handle, range: Cidr, action: Action) -> io::Result<Added> {
    let route = local_route(range)?;
    match action {
        Action::Remove => delete(handle, route).await.map(|()| Added::WasThere),
        Action::Add => {
            // The kernel deletes only a route that carries our protocol number: a dead agent's.
            delete(handle, route.clone()).await?;
            match handle.route().add(route).execute().await {
                Ok(()) => Ok(Added::Made),
                Err(error) => match errno(&error) {
                    Some(libc::EEXIST) => Ok(Added::WasThere),
                    // IPv6 is not in the kernel, or switched off on lo.
                    Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EACCES) if range.addr.is_ipv6() => {
                        Ok(Added::NoSuchFamily)
                    }
                    _ => Err(io_error(error)),
                },
            }
        }
    }
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
    CaptureError::Route { doing, range: written(range), source }
}
