//! The agent's port: one SO_REUSEPORT listener per worker and address family, on the wildcard, so
//! that every VIP is answered without knowing them.
//!
//! A permit is taken before accept: a full agent leaves connections in the kernel's queue instead of
//! accepting what it cannot serve. A failed accept never ends a listener.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::connection;
use super::worker::Lanes;

/// The kernel's queue of connections not yet accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Pause after a failed accept (EMFILE, ENFILE, ENOBUFS): first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// One worker's listening sockets, not yet bound to a runtime.
#[derive(Debug)]
pub struct Listeners {
    v4: std::net::TcpListener,
    v6: Option<std::net::TcpListener>,
}

/// Opens one set of listeners per worker.
///
/// # Errors
/// `AddrInUse` when anybody else listens on the port already, even with SO_REUSEPORT: sharing it
/// would hand him a part of the connections.
pub fn open(port: u16, workers: usize) -> io::Result<Vec<Listeners>> {
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    drop(listen(v4, false)?);
    let has_v6 = match listen(v6, false) {
        Ok(_) => true,
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => false,
        Err(error) => return Err(error),
    };
    (0..workers)
        .map(|_| {
            Ok(Listeners { v4: listen(v4, true)?, v6: if has_v6 { Some(listen(v6, true)?) } else { None } })
        })
        .collect()
}

fn listen(addr: SocketAddr, share: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restart must not wait for the TIME_WAIT of its predecessor's connections.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until the worker is told to stop, then takes what the kernel has accepted already, and
/// closes. `permits` bounds the connections of this worker; `tasks` owns them.
///
/// # Errors
/// The sockets cannot be registered with this thread's runtime.
pub async fn serve(
    lanes: Rc<Lanes>,
    listeners: Listeners,
    permits: usize,
    tasks: TaskTracker,
) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(permits));
    let v4 = TcpListener::from_std(listeners.v4)?;
    let v6 = listeners.v6.map(TcpListener::from_std).transpose()?;
    let on_v4 = accept(&lanes, v4, &permits, &tasks);
    match v6 {
        Some(v6) => {
            tokio::join!(on_v4, accept(&lanes, v6, &permits, &tasks));
        }
        None => on_v4.await,
    }
    Ok(())
}

async fn accept(lanes: &Rc<Lanes>, listener: TcpListener, permits: &Arc<Semaphore>, tasks: &TaskTracker) {
    let mut pause = BACKOFF.0;
    loop {
        // Acquire and accept are cancel-safe: neither has taken anything when it is dropped.
        let accepted = tokio::select! {
            biased;
            () = lanes.around.stop.cancelled() => break,
            accepted = next(&listener, permits) => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                pause = BACKOFF.0;
                start(lanes, stream, peer, permit, tasks);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, ?pause, "accept failed; pausing");
                sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
    // Whoever the kernel has told "connected" is served, not reset.
    while let Ok(permit) = permits.clone().try_acquire_owned() {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = std::future::ready(()) => break,
        };
        match accepted {
            Ok((stream, peer)) => start(lanes, stream, peer, permit, tasks),
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

fn start(
    lanes: &Rc<Lanes>,
    stream: TcpStream,
    peer: SocketAddr,
    permit: OwnedSemaphorePermit,
    tasks: &TaskTracker,
) {
    let lanes = Rc::clone(lanes);
    tasks.spawn_local(async move {
        // The connection first: it sees the cut too, and says so to its client and its record.
        tokio::select! {
            biased;
            () = connection::serve(&lanes, stream, peer) => {}
            () = lanes.around.kill.cancelled() => {}
        }
        drop(permit);
    });
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
}
