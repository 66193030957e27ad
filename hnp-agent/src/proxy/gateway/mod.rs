//! The explicit gateway: clients that were told of it say themselves where they want to go.
//!
//! Whoever may ask (`callers`) is served by what a route lists, and by nothing else (`wanted`): after CONNECT
//! as a captured connection to that destination would be (`connect`), else request by request (`serve`).
//! What is dialled is a route's upstream. Only a name that a route lets through is resolved because a client
//! wrote it, and then the address is looked at (`way_out`): the gateway is never an open proxy.

mod callers;
mod connect;
mod serve;
mod wanted;
mod way_out;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

pub(super) use callers::STRANGERS;
pub use callers::{Callers, PodAddresses};
pub(super) use serve::serve;
pub use wanted::Wanted;
pub(super) use way_out::connect as connect_out;

use super::authority::{Choice, choose};
use super::buffer::Buffer;
use super::connection::Client;
use super::worker::{Lanes, Worker};
use crate::config::plan::{Enforcement, Host, Plan};
use crate::telemetry::record::{AskedRecord, Dialled};

/// What a client of the gateway asked for.
#[derive(Debug)]
pub enum Asked {
    /// By CONNECT, with what came behind its head; each request and hello inside decides for itself.
    Tunnel(Wanted, Option<Buffer>),
    /// By a request, for which this was decided; one in origin-form may name nothing.
    Request(Choice, Option<Wanted>),
}

impl Asked {
    /// The choice among the client's routes. As for a captured client of a strict route: nobody sent this
    /// client here without his knowledge, so what is not listed does not go on.
    pub fn choose(&self, plan: &Plan, client: &Client, host: Option<&str>) -> Choice {
        let wanted = match self {
            Self::Request(decided, _) => return *decided,
            Self::Tunnel(wanted, _) => wanted,
        };
        let by_name = matches!(wanted.host, Host::Name(_));
        if by_name && host.is_some_and(|host| host.parse::<IpAddr>().is_ok()) {
            // No address was asked for, so none is the destination's own.
            return Choice::Refuse(client.routes[0]);
        }
        let destination = wanted.place();
        choose(plan, &client.routes, destination, destination.ip(), Enforcement::Strict, host)
    }

    /// The same for one request of a connection of HTTP/2.
    pub fn of_stream(&self) -> Self {
        match self {
            Self::Tunnel(wanted, _) => Self::Tunnel(wanted.clone(), None),
            Self::Request(choice, wanted) => Self::Request(*choice, wanted.clone()),
        }
    }

    /// Host and port, where they were named.
    pub fn wanted(&self) -> Option<&Wanted> {
        match self {
            Self::Tunnel(wanted, _) => Some(wanted),
            Self::Request(_, wanted) => wanted.as_ref(),
        }
    }
}

/// What was asked for in this form, for the access line.
fn dialled(form: &'static str, wanted: Option<&Wanted>) -> Dialled {
    let authority = wanted.map(ToString::to_string);
    let address = wanted.and_then(Wanted::address);
    Dialled::Asked(Arc::new(AskedRecord { form, authority, address }))
}

/// The place of what names no address.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Wanted {
    /// Where it is, as routes are chosen by it; a name stands for no address.
    fn place(&self) -> SocketAddr {
        self.address().unwrap_or(SocketAddr::new(NOWHERE.ip(), self.port))
    }

    /// The address and port, where that was asked for.
    fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Addr(addr) => Some(SocketAddr::new(addr, self.port)),
            Host::Name(_) => None,
        }
    }
}

/// Moves a connection behind a CONNECT to the newest generation. Where no route lists any more what was asked
/// for, the next answer is the last.
pub(super) fn keep_up(lanes: &Lanes, worker: &mut Rc<Worker>, client: &mut Client) {
    let Some(wanted) = client.asked.as_deref().and_then(Asked::wanted) else { return };
    let newest = lanes.newest();
    if Rc::ptr_eq(&newest, worker) {
        return;
    }
    let routes = wanted.listed_by(&newest.plan);
    match routes.first() {
        Some(first) if !newest.plan.routes[*first].is_opaque() => {
            *worker = newest;
            client.routes = routes;
        }
        Some(_) | None => client.last = true,
    }
}
