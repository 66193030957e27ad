//! A relay that keeps what goes to the manager for a while, for kernels without sch_netem.

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::netns::Netns;

/// The relay; it ends when this is dropped.
pub(super) struct Relay {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Takes connections at `listen` in a namespace and carries them to `to` in the same one. The first byte of
    /// a connection waits twice: once as its SYN would have.
    ///
    /// # Panics
    /// When the port is taken.
    #[track_caller]
    pub(super) fn start(netns: &Netns, listen: SocketAddr, to: SocketAddr, delay: Duration) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (report, opened) = std::sync::mpsc::channel();
        let netns = netns.clone();
        let thread = std::thread::spawn(move || {
            netns.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.expect("a runtime");
                runtime.block_on(async {
                    let listener = match TcpListener::bind(listen).await {
                        Ok(listener) => listener,
                        Err(error) => return drop(report.send(Err(error))),
                    };
                    drop(report.send(Ok(())));
                    tokio::select! {
                        () = serve(&listener, to, delay) => {}
                        _ = stopped => {}
                    }
                });
            });
        });
        let outcome: io::Result<()> = opened.recv().expect("the thread reports before it serves");
        outcome.unwrap_or_else(|error| panic!("a relay at {listen}: {error}"));
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the relay panicked");
        }
    }
}

async fn serve(listener: &TcpListener, to: SocketAddr, delay: Duration) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        // Whatever ends one connection is the business of its two sides.
        connections.spawn(async move { carry(client, to, delay).await });
        while connections.try_join_next().is_some() {}
    }
}

async fn carry(client: TcpStream, to: SocketAddr, delay: Duration) -> io::Result<()> {
    let since = Instant::now();
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (queue, mut queued) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from_client.read(&mut buffer).await?;
            let due = Instant::now().max(since + delay) + delay;
            if queue.send((due, buffer[..count].to_vec())).is_err() || count == 0 {
                return io::Result::Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = queued.recv().await {
            sleep_until(due).await;
            if bytes.is_empty() {
                break;
            }
            to_server.write_all(&bytes).await?;
        }
        to_server.shutdown().await
    };
    let back = async move {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(read, write, back).map(|_| ())
}
