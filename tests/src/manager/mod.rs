//! A real TLS manager that is LOOSE or STRICT, as the vendor's endpoint can be, and remembers what
//! it saw.
//!
//! One port serves TLS and plaintext by the first byte. Strict: TLS without a client certificate
//! ends in the handshake, plaintext gets 400; so a request from outside capture reaches the very
//! same port and is refused there, which a closed port could not prove. It runs on a thread of its
//! own inside the manager's network namespace.

mod behaviour;
mod fault;
mod http2;
mod record;
mod shown;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use self::behaviour::NOT_THE_PATTERN;
pub use self::fault::ALL as FAULTS;
pub use self::http2::Http2;
pub use self::record::{Connection, Request, TlsFacts};
pub use self::shown::Shown;

use self::record::Records;
use crate::clock::FastClock;
use crate::netns::Netns;
use crate::pki::{Ca, Leaf};
use crate::topology::World;
use crate::wire::{Stream, Wire};

/// Whom a manager serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Everybody: plaintext, TLS, TLS with a client certificate.
    Loose,
    /// Only TLS with a client certificate.
    Strict,
    /// Plaintext alone: no TLS on the port.
    Plaintext,
}

/// What a manager does with a connection that it serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Service {
    /// HTTP/1.1; the paths are in `behaviour.rs`.
    Http,
    /// Greets, sends back what it gets, and says `bye <count>` after the client's end of stream.
    Echo,
    /// Accepts, reads, never writes a byte: not even a handshake.
    Silent,
}

/// What manager to start.
pub struct Setup {
    name: String,
    addrs: Vec<SocketAddr>,
    mode: Mode,
    service: Service,
    tls: Option<Arc<rustls::ServerConfig>>,
    http2: Option<Http2>,
    clock: Option<FastClock>,
}

impl Setup {
    /// A plaintext HTTP server on a port of all of the namespace's addresses.
    pub fn new(name: &str, port: u16) -> Self {
        Self {
            name: name.to_owned(),
            addrs: vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)],
            mode: Mode::Plaintext,
            service: Service::Http,
            tls: None,
            http2: None,
            clock: None,
        }
    }

    /// Only on these addresses.
    #[must_use]
    pub fn on(mut self, addrs: &[IpAddr]) -> Self {
        let port = self.addrs[0].port();
        self.addrs = addrs.iter().map(|&addr| SocketAddr::new(addr, port)).collect();
        self
    }

    /// With TLS: this certificate, and clients' certificates from that CA.
    ///
    /// # Panics
    /// When certificate and key do not belong together.
    #[must_use]
    pub fn tls(self, mode: Mode, server: &Leaf, clients: &Ca) -> Self {
        self.tls_of(mode, server, clients.der())
    }

    /// The same by the certificate of a CA that somebody else has made.
    ///
    /// # Panics
    /// When certificate and key do not belong together, or it is no CA's.
    #[must_use]
    pub fn tls_of(mut self, mode: Mode, server: &Leaf, clients: CertificateDer<'static>) -> Self {
        let config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier_of(clients, mode))
            .with_single_cert(server.chain(), server.key())
            .expect("certificate and key belong together");
        self.mode = mode;
        self.tls = Some(Arc::new(config));
        self
    }

    /// Strict, by another clock, which judges clients' certificates and dates what is recorded; shows what it is given.
    ///
    /// # Panics
    /// Never: all protocol versions are there.
    #[must_use]
    pub fn tls_by(mut self, clock: FastClock, server: &Arc<Shown>, clients: &Ca) -> Self {
        let provider = Arc::clone(rustls::ServerConfig::builder().crypto_provider());
        let config = rustls::ServerConfig::builder_with_details(provider, clock.for_tls())
            .with_safe_default_protocol_versions()
            .expect("the provider has what they need")
            .with_client_cert_verifier(verifier_of(clients.der(), Mode::Strict))
            .with_cert_resolver(Arc::clone(server) as _);
        self.mode = Mode::Strict;
        self.tls = Some(Arc::new(config));
        self.clock = Some(clock);
        self
    }

    /// With TLS that asks clients for no certificate, as behind a load balancer that ends it.
    ///
    /// # Panics
    /// When certificate and key do not belong together.
    #[must_use]
    pub fn tls_for_anybody(mut self, server: &Leaf) -> Self {
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(server.chain(), server.key())
            .expect("certificate and key belong together");
        self.mode = Mode::Loose;
        self.tls = Some(Arc::new(config));
        self
    }

    /// Resumes no session: each handshake shows certificates.
    ///
    /// # Panics
    /// Without TLS, of which it is a part here.
    #[must_use]
    pub fn resuming_none(mut self) -> Self {
        let tls = self.tls.as_mut().and_then(Arc::get_mut).expect("`tls` comes first");
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        self
    }

    /// Speaks HTTP/2 with TLS clients that offer it, which it prefers.
    ///
    /// # Panics
    /// Without TLS, of which it is a part here.
    #[must_use]
    pub fn http2(mut self, settings: Http2) -> Self {
        let tls = self.tls.as_mut().and_then(Arc::get_mut).expect("`tls` comes first");
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        self.http2 = Some(settings);
        self
    }

    /// Something else than HTTP.
    #[must_use]
    pub fn service(mut self, service: Service) -> Self {
        self.service = service;
        self
    }
}

fn verifier_of(clients: CertificateDer<'static>, mode: Mode) -> Arc<dyn ClientCertVerifier> {
    let mut roots = RootCertStore::empty();
    roots.add(clients).expect("a CA's certificate");
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots));
    let verifier = match mode {
        Mode::Strict => verifier,
        Mode::Loose | Mode::Plaintext => verifier.allow_unauthenticated(),
    };
    verifier.build().expect("there is a root")
}

/// A manager that runs. Dropping it closes its ports and connections.
#[derive(Debug)]
pub struct Manager {
    records: Arc<Records>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    name: String,
}

impl Manager {
    /// Starts a manager in the world's manager namespace; its ports are open on return.
    ///
    /// # Panics
    /// When a port is taken.
    #[track_caller]
    pub fn start(world: &World, setup: Setup) -> Self {
        Self::start_in(world.manager_netns(), setup)
    }

    /// The same in another namespace, such as the node's.
    ///
    /// # Panics
    /// When a port is taken.
    #[track_caller]
    pub fn start_in(netns: &Netns, setup: Setup) -> Self {
        let records = Arc::new(Records::default());
        let (stop, stopped) = oneshot::channel();
        let (report, opened) = std::sync::mpsc::channel();
        let name = setup.name.clone();
        let (netns, shared) = (netns.clone(), Arc::clone(&records));
        let thread = std::thread::spawn(move || serve(&netns, setup, &shared, &report, stopped));
        let outcome: io::Result<()> = opened.recv().expect("the manager's thread reports before it serves");
        if let Err(error) = outcome {
            panic!("manager {name}: {error}");
        }
        Self { records, stop: Some(stop), thread: Some(thread), name }
    }

    /// A strict HTTP manager on a port of all addresses.
    ///
    /// # Panics
    /// When the port is taken.
    #[track_caller]
    pub fn strict(world: &World, name: &str, port: u16, server: &Leaf, clients: &Ca) -> Self {
        Self::start(world, Setup::new(name, port).tls(Mode::Strict, server, clients))
    }

    /// The name that its answers carry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All requests so far, in the order their heads arrived.
    pub fn requests(&self) -> Vec<Request> {
        self.records.requests()
    }

    /// How many requests there were.
    pub fn request_count(&self) -> usize {
        self.records.request_count()
    }

    /// The last request, if there was one.
    pub fn last_request(&self) -> Option<Request> {
        self.records.last_request()
    }

    /// The one request that carried a token.
    ///
    /// # Panics
    /// When none or several did.
    #[track_caller]
    pub fn request(&self, token: &str) -> Request {
        let mut found: Vec<Request> =
            self.requests().into_iter().filter(|request| request.token == token).collect();
        assert_eq!(found.len(), 1, "requests with token {token:?} at {}: {found:#?}", self.name);
        found.remove(0)
    }

    /// All connections so far.
    pub fn connections(&self) -> Vec<Connection> {
        self.records.connections()
    }

    /// How many payload bytes came in all (after TLS where there is TLS).
    pub fn payload_received(&self) -> u64 {
        self.connections().iter().map(|connection| connection.received).sum()
    }

    /// Forgets what it saw.
    pub fn forget(&self) {
        self.records.forget();
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("manager {} panicked", self.name);
        }
    }
}

fn serve(
    netns: &Netns,
    setup: Setup,
    records: &Arc<Records>,
    report: &std::sync::mpsc::Sender<io::Result<()>>,
    stopped: oneshot::Receiver<()>,
) {
    netns.enter().expect("a namespace that we made can be entered");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut listeners = Vec::new();
        for &addr in &setup.addrs {
            match listen(addr).await {
                Ok(listener) => listeners.push(listener),
                Err(error) => return report.send(Err(error)).expect("the starter waits"),
            }
        }
        report.send(Ok(())).expect("the starter waits");
        let setup = Arc::new(setup);
        // Owned by this function, and with it their connections: dropped when the handle is.
        let mut acceptors = JoinSet::new();
        for listener in listeners {
            acceptors.spawn(accept(listener, Arc::clone(&setup), Arc::clone(records)));
        }
        // Ends when the handle is dropped; the runtime's end closes everything.
        let _ = stopped.await;
    });
}

/// Listens; a port that was only just closed may still be held, by a child of another test between
/// its fork and its exec.
async fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let mut patience = 100;
    loop {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        match socket.bind(addr).and_then(|()| socket.listen(4096)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && patience > 0 => patience -= 1,
            outcome => return outcome,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn accept(listener: TcpListener, setup: Arc<Setup>, records: Arc<Records>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // A peer that is gone before it was accepted is no reason to stop.
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let (setup, records) = (Arc::clone(&setup), Arc::clone(&records));
        connections.spawn(async move {
            let connection = records.connected(canonical(peer), stream.local_addr().map(canonical).ok());
            if let Err(error) = converse(stream, connection, &setup, &records).await {
                records.failed(connection, &error.to_string());
            }
        });
    }
}

/// One connection, from its first byte to its end.
async fn converse(
    stream: TcpStream,
    connection: u64,
    setup: &Setup,
    records: &Arc<Records>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let received = records.counter(connection);
    if setup.service == Service::Silent {
        return behaviour::swallow(Wire::new(Box::new(stream), received)).await;
    }
    let mut first = [0];
    let is_tls = stream.peek(&mut first).await? > 0 && first[0] == 0x16;
    let io: Box<dyn Stream> = match &setup.tls {
        Some(config) if is_tls => {
            let tls = TlsAcceptor::from(Arc::clone(config)).accept(stream).await?;
            let at = setup.clock.map_or_else(SystemTime::now, FastClock::now);
            records.handshaken(connection, TlsFacts::of(tls.get_ref().1, at));
            if let (Some(settings), Some(b"h2")) = (setup.http2, tls.get_ref().1.alpn_protocol()) {
                return http2::serve(Box::new(tls), connection, &setup.name, settings, received, records)
                    .await;
            }
            Box::new(tls)
        }
        _ => Box::new(stream),
    };
    let wire = Wire::new(io, received);
    let refuse = setup.mode == Mode::Strict && !is_tls;
    match setup.service {
        Service::Http => behaviour::http(wire, connection, &setup.name, refuse, records).await,
        Service::Echo if refuse => Ok(()),
        Service::Echo => behaviour::echo(wire).await,
        Service::Silent => unreachable!("answered above"),
    }
}

/// IPv4 as IPv4, also where the socket is an IPv6 one.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// A counter that a connection and its record share.
type Counter = Arc<AtomicU64>;

/// A lock that no panic poisons: nothing under it can fail.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no panic while held")
}
