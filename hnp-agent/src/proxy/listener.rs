//! The agent's port: one SO_REUSEPORT listener per worker and address family, on the wildcard, so
//! that every VIP is answered without knowing them. And the gateway's, one per worker and address.
//!
//! A permit is taken before accept: a full agent leaves connections in the kernel's queue instead of
//! accepting what it cannot serve. A failed accept never ends a listener.
//!
//! Listeners outlive an agent that hands over: a queue belongs to its socket, so whoever closes an inherited
//! one resets the connections that wait in it. With fewer workers than before, each serves several.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::connection;
use super::gate::{Entrance, Gate, Inside};
use super::gateway;
use super::worker::Lanes;

/// The kernel's queue of connections not yet accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Pause after a failed accept (EMFILE, ENFILE, ENOBUFS): first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// One worker's listening sockets, not yet bound to a runtime.
#[derive(Debug, Default)]
pub struct Listeners {
    sockets: Vec<std::net::TcpListener>,
    gateway: Vec<std::net::TcpListener>,
}

/// Where a connection came in.
#[derive(Clone, Copy, Debug)]
enum Door {
    /// The agent's port, on a VIP.
    Capture,
    /// The gateway's.
    Gateway,
}

impl Listeners {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.sockets.len() + self.gateway.len()
    }

    /// Whether there is none: a worker without work.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// With the gateway's sockets of another set.
    #[must_use]
    pub fn with_gateway(self, other: Self) -> Self {
        Self { gateway: other.gateway, ..self }
    }

    /// Descriptors of the same sockets, for a successor. While one is open, the kernel goes on taking
    /// connections.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn duplicates(&self) -> io::Result<Vec<OwnedFd>> {
        let all = self.sockets.iter().chain(&self.gateway);
        all.map(|socket| socket.as_fd().try_clone_to_owned()).collect()
    }
}

/// Opens one set of listeners per worker.
///
/// # Errors
/// `AddrInUse` when anybody else listens on the port already, even with SO_REUSEPORT: sharing it
/// would hand him a part of the connections.
pub fn open(port: u16, workers: usize) -> io::Result<Vec<Listeners>> {
    let (v4, v6) = wildcards(port);
    drop(listen(v4, false)?);
    let has_v6 = match listen(v6, false) {
        Ok(_) => true,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => false,
        Err(error) => return Err(error),
    };
    (0..workers)
        .map(|_| {
            let mut sockets = vec![listen(v4, true)?];
            if has_v6 {
                sockets.push(listen(v6, true)?);
            }
            Ok(Listeners { sockets, gateway: Vec::new() })
        })
        .collect()
}

/// None, for so many workers: nothing is captured.
pub fn none(workers: usize) -> Vec<Listeners> {
    (0..workers).map(|_| Listeners::default()).collect()
}

/// Opens the gateway's listeners, one on each of the addresses for every worker. A node without IPv6 does
/// without its wildcard.
///
/// # Errors
/// As [`open`], with the address.
pub fn open_gateway(workers: &mut [Listeners], addrs: &[SocketAddr]) -> Result<(), (SocketAddr, io::Error)> {
    for &addr in addrs {
        match listen(addr, false) {
            Ok(_) => {}
            Err(error)
                if addr == wildcards(addr.port()).1
                    && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
            {
                continue;
            }
            Err(error) => return Err((addr, error)),
        }
        for worker in workers.iter_mut() {
            worker.gateway.push(listen(addr, true).map_err(|error| (addr, error))?);
        }
    }
    Ok(())
}

/// Takes the gateway's listeners out of what a former agent handed over: those on an address that is still
/// wanted are shared out as [`inherit`] does, the others closed. Where it had none, they are opened.
///
/// # Errors
/// As [`inherit`] and [`open_gateway`].
pub fn inherit_gateway(
    workers: &mut [Listeners],
    descriptors: &mut Vec<OwnedFd>,
    theirs: &[SocketAddr],
    wanted: &[SocketAddr],
) -> Result<(), (SocketAddr, io::Error)> {
    let mut inherited: Vec<(SocketAddr, Socket)> = Vec::new();
    for descriptor in std::mem::take(descriptors) {
        let socket = Socket::from(descriptor);
        match socket.local_addr().ok().and_then(|addr| addr.as_socket()) {
            Some(addr) if theirs.contains(&addr) => inherited.push((addr, socket)),
            _ => descriptors.push(socket.into()),
        }
    }
    for &addr in wanted {
        let failed = |error| (addr, error);
        let mut sockets = Vec::new();
        for (_, socket) in inherited.extract_if(.., |(at, _)| *at == addr) {
            socket.set_nonblocking(true).map_err(failed)?;
            sockets.push(std::net::TcpListener::from(socket));
        }
        if sockets.is_empty() {
            open_gateway(workers, &[addr])?;
            continue;
        }
        while sockets.len() < workers.len() {
            sockets.push(bind(addr, true).map_err(failed)?.into());
        }
        let count = workers.len();
        for (number, socket) in sockets.into_iter().enumerate() {
            workers[number % count].gateway.push(socket);
        }
    }
    Ok(())
}

/// Shares out the listeners of a former agent. Where it had fewer than there are workers, sockets are
/// added; these are bound and do not listen before they are served, so giving up loses no connection.
///
/// # Errors
/// When a descriptor is no listener on this port, or no socket can be added.
pub fn inherit(descriptors: Vec<OwnedFd>, port: u16, workers: usize) -> io::Result<Vec<Listeners>> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for descriptor in descriptors {
        let socket = Socket::from(descriptor);
        let listens = socket.is_listener()?;
        let addr = socket.local_addr()?.as_socket();
        let family = match addr {
            Some(SocketAddr::V4(_)) => &mut v4,
            Some(SocketAddr::V6(_)) | None => &mut v6,
        };
        if !listens || addr.is_none_or(|addr| addr.port() != port || !addr.ip().is_unspecified()) {
            let what = format!("one of the sockets handed over is no listener on port {port}: {addr:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        socket.set_nonblocking(true)?;
        family.push(std::net::TcpListener::from(socket));
    }
    let (any4, any6) = wildcards(port);
    for (family, any) in [(&mut v4, any4), (&mut v6, any6)] {
        // A node without IPv6 does without.
        while !family.is_empty() && family.len() < workers {
            family.push(bind(any, true)?.into());
        }
    }
    let mut all: Vec<_> = (0..workers).map(|_| Listeners::default()).collect();
    for family in [v4, v6] {
        for (number, socket) in family.into_iter().enumerate() {
            all[number % workers].sockets.push(socket);
        }
    }
    Ok(all)
}

fn wildcards(port: u16) -> (SocketAddr, SocketAddr) {
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    (v4, SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port))
}

fn listen(addr: SocketAddr, share: bool) -> io::Result<std::net::TcpListener> {
    let socket = bind(addr, share)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind(addr: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restart must not wait for the TIME_WAIT of its predecessor's connections.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Accepts while the gate is open, until the worker is told to stop, then takes what the kernel has
/// accepted already, and closes. Stopped behind a closed gate, it takes nothing: the queues are another
/// process's. `permits` bounds the connections of this worker; `tasks` owns them.
///
/// # Errors
/// The sockets cannot be registered with this thread's runtime.
pub async fn serve(
    lanes: Rc<Lanes>,
    listeners: Listeners,
    gate: Gate,
    permits: usize,
    tasks: TaskTracker,
) -> io::Result<()> {
    // Each loop holds one while it waits.
    let permits = Arc::new(Semaphore::new(permits.max(listeners.len())));
    let mut loops = JoinSet::new();
    let captured = listeners.sockets.into_iter().map(|socket| (socket, Door::Capture));
    let explicit = listeners.gateway.into_iter().map(|socket| (socket, Door::Gateway));
    for (socket, door) in captured.chain(explicit) {
        let entrance = gate.entrance();
        let start = Start { lanes: lanes.clone(), door, tasks: tasks.clone() };
        loops.spawn_local(accept(start, socket, entrance, permits.clone()));
    }
    while let Some(ended) = loops.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok(())
}

async fn accept(
    start: Start,
    socket: std::net::TcpListener,
    mut entrance: Entrance,
    permits: Arc<Semaphore>,
) -> io::Result<()> {
    let lanes = &start.lanes;
    let Some(mut inside) = enter(lanes, &mut entrance).await else { return Ok(()) };
    // Answers must not wait for an ACK (Nagle). What is accepted has this from its listener, as Linux clones the
    // socket, and is spared a system call; a failure costs only latency.
    let _ = SockRef::from(&socket).set_tcp_nodelay(true);
    // Not before the worker may accept: connections would be promised what a start that fails takes back.
    // Of a socket that listens already this sets the length of the queue.
    SockRef::from(&socket).listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket)?;
    while let Left::Closed = accept_while_open(&start, &listener, inside, &permits).await {
        inside = match enter(lanes, &mut entrance).await {
            Some(inside) => inside,
            None => return Ok(()),
        };
    }
    take_the_rest(&start, &listener, &permits).await;
    Ok(())
}

/// Waits for the gate; `None`: stopped behind a closed one.
async fn enter(lanes: &Lanes, entrance: &mut Entrance) -> Option<Inside> {
    // Both are cancel-safe. The gate first: behind an open one the queue is this worker's to the end.
    tokio::select! {
        biased;
        inside = entrance.opened() => Some(inside),
        () = lanes.around.stop.cancelled() => None,
    }
}

/// Why accepting ended.
enum Left {
    /// The gate closed, and may open again.
    Closed,
    /// The worker is to stop.
    Stopped,
}

async fn accept_while_open(
    start: &Start,
    listener: &TcpListener,
    mut inside: Inside,
    permits: &Arc<Semaphore>,
) -> Left {
    let mut pause = BACKOFF.0;
    loop {
        // All are cancel-safe: none has taken anything when it is dropped.
        let accepted = tokio::select! {
            biased;
            () = inside.closed() => return Left::Closed,
            () = start.lanes.around.stop.cancelled() => return Left::Stopped,
            accepted = next(listener, permits) => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                pause = BACKOFF.0;
                start.serve(stream, peer, permit);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, ?pause, "accept failed; pausing");
                sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Whoever the kernel has told "connected" is served, not reset.
async fn take_the_rest(start: &Start, listener: &TcpListener, permits: &Arc<Semaphore>) {
    while let Ok(permit) = permits.clone().try_acquire_owned() {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = std::future::ready(()) => break,
        };
        match accepted {
            Ok((stream, peer)) => start.serve(stream, peer, permit),
            Err(_) => break,
        }
    }
}

async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

/// How a connection that was accepted is begun.
struct Start {
    lanes: Rc<Lanes>,
    door: Door,
    tasks: TaskTracker,
}

impl Start {
    fn serve(&self, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit) {
        let (lanes, door) = (Rc::clone(&self.lanes), self.door);
        self.tasks.spawn_local(async move {
            let served = async {
                match door {
                    Door::Capture => connection::serve(&lanes, stream, peer, permit).await,
                    // Boxed: captured connections would hold its state too.
                    Door::Gateway => Box::pin(gateway::serve(&lanes, stream, peer, permit)).await,
                }
            };
            // The connection first: it sees the cut too, and says so to its client and its record.
            tokio::select! {
                biased;
                () = served => {}
                () = lanes.around.kill.cancelled() => {}
            }
        });
    }
}

/// Errors that concern the connection that was being accepted and not the listener (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    ) || error.raw_os_error() == Some(libc::EPROTO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_somebody_shares_is_refused() {
        let other = listen(SocketAddr::from(([0, 0, 0, 0], 0)), true).unwrap();
        let port = other.local_addr().unwrap().port();
        assert_eq!(open(port, 2).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(other);
        assert_eq!(open(port, 2).unwrap().len(), 2);
    }

    #[test]
    fn inherited_sockets_are_shared_out_over_more_and_over_fewer_workers() {
        let four = open(free_port(), 4).unwrap();
        let families = four[0].len();
        let port = four[0].sockets[0].local_addr().unwrap().port();
        let duplicates = |all: &[Listeners]| all.iter().flat_map(|l| l.duplicates().unwrap()).collect();
        let one = inherit(duplicates(&four), port, 1).unwrap();
        assert_eq!(one[0].len(), 4 * families);
        let three = inherit(duplicates(&one), port, 3).unwrap();
        assert!(three.iter().all(|listeners| !listeners.is_empty()));
        assert_eq!(three.iter().map(Listeners::len).sum::<usize>(), 4 * families);
        drop((four, one));
        let six = inherit(duplicates(&three), port, 6).unwrap();
        assert!(six.iter().all(|listeners| listeners.len() == families));
        // Those that were added take no connection before they are served.
        let listening =
            six.iter().flat_map(|l| &l.sockets).filter(|s| SockRef::from(s).is_listener().unwrap());
        assert_eq!(listening.count(), 4 * families);

        let other = inherit(duplicates(&six), port ^ 1, 2).unwrap_err();
        assert!(other.to_string().contains("no listener on port"), "{other}");
    }

    fn free_port() -> u16 {
        let any = listen(SocketAddr::from(([0, 0, 0, 0], 0)), false).unwrap();
        any.local_addr().unwrap().port()
    }
}
