//! The data path in one process: real sockets on loopback, a real TLS upstream that insists on a
//! client certificate, and fakes only for what the kernel would say.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use hnp_common::Reason;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SerialNumber};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::connection;
use super::flow::{Flow, FlowSource, SharedVipTable, VipEntry, VipTable};
use super::worker::{Lanes, Surroundings};
use crate::config::plan::{AddrRange, Enforcement, Host, Route};
use crate::generation::Generation;
use crate::identity::snapshot::{Holder, IdentitySnapshot, LeafInfo, SharedIdentity};
use crate::telemetry::Telemetry;
use crate::trust::snapshot::TrustSnapshot;
use crate::workload::{Workload, WorkloadSource};

/// Every connection is a captured one, from nobody in particular.
struct Fakes;

impl FlowSource for Fakes {
    fn take(&self, client: SocketAddr, local: SocketAddr) -> Result<Flow, Reason> {
        let (vip, orig_dst) = (local.ip(), local);
        Ok(Flow { client, vip, orig_dst, cgroup_id: 1, ancestor_ids: [0; 2], direct: true, strict: false })
    }
}

impl WorkloadSource for Fakes {
    fn identify_cgroup(&self, _: u64, _: [u64; 2]) -> Arc<Workload> {
        Arc::default()
    }
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: rustls_pki_types::CertificateDer<'static>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        Arc::new(roots)
    }

    fn issue(
        &self,
        name: &str,
        serial: u64,
    ) -> (Vec<rustls_pki_types::CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (vec![cert.der().clone()], PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    fn identity(&self, generation: u64) -> Arc<IdentitySnapshot> {
        let (chain, key) = self.issue("client.test", generation);
        let key = crate::crypto::provider().key_provider.load_private_key(key).unwrap();
        let leaf = LeafInfo {
            subject: String::new(),
            issuer: String::new(),
            serial: String::new(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            version: 3,
        };
        let certified_key = Arc::new(CertifiedKey::new(chain, key));
        Arc::new(IdentitySnapshot {
            name: "i".into(),
            generation,
            certified_key,
            leaf,
            holder: Holder::Agent,
            until: None,
        })
    }
}

/// What the upstream saw.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: Mutex<Vec<(usize, Vec<u8>)>>,
}

/// Answers `ok` to everything; `/die` on a connection that has served before closes without a word.
async fn upstream(listener: TcpListener, tls: TlsAcceptor, seen: Arc<Seen>) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let number = seen.connections.fetch_add(1, SeqCst);
        let (tls, seen) = (tls.clone(), seen.clone());
        tokio::task::spawn_local(async move {
            let Ok(mut stream) = tls.accept(tcp).await else { return };
            let mut bytes = Vec::new();
            let mut served = 0;
            loop {
                let mut block = [0; 4096];
                match stream.read(&mut block).await {
                    Ok(n @ 1..) => bytes.extend_from_slice(&block[..n]),
                    _ => return,
                }
                while let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                    let head: Vec<u8> = bytes.drain(..end + 4).collect();
                    let dies = served > 0 && head.windows(5).any(|w| w == b"/die ");
                    seen.requests.lock().unwrap().push((number, head));
                    if dies {
                        return;
                    }
                    served += 1;
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").await.unwrap();
                }
            }
        });
    }
}

/// What listens where clients were going, in plaintext.
async fn original(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::task::spawn_local(async move {
            let mut block = [0; 4096];
            while let Ok(1..) = stream.read(&mut block).await {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\noriginal\n").await.unwrap();
            }
        });
    }
}

/// The agent's address stands for the destination.
fn table(generation: &Arc<Generation>, destination: SocketAddr) -> VipTable {
    let entry = VipEntry {
        destination: AddrRange::host(destination),
        routes: vec![0],
        generation: generation.clone(),
    };
    let entries = [(IpAddr::V4(Ipv4Addr::LOCALHOST), entry)].into();
    VipTable { generation: Some(generation.clone()), entries }
}

struct World {
    ca: Ca,
    seen: Arc<Seen>,
    identity: SharedIdentity,
    lanes: Rc<Lanes>,
    vips: SharedVipTable,
    destination: SocketAddr,
    agent: SocketAddr,
}

impl World {
    /// Must run inside a `LocalSet`.
    async fn new() -> Self {
        let ca = Ca::new();
        let seen = Arc::<Seen>::default();
        let (chain, key) = ca.issue("localhost", 9000);
        let clients = WebPkiClientVerifier::builder_with_provider(ca.roots(), crate::crypto::provider())
            .build()
            .unwrap();
        let config = rustls::ServerConfig::builder_with_provider(crate::crypto::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::task::spawn_local(upstream(listener, TlsAcceptor::from(Arc::new(config)), seen.clone()));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let destination = listener.local_addr().unwrap();
        tokio::task::spawn_local(original(listener));
        let dialled = destination.port();

        let text = format!(
            "identities: {{i: {{certificate: /c, key: /k}}}}\ntrusts: {{t: {{roots: system}}}}\nlog: {{access: false}}\nworkers: 1\n\
             routes: [{{name: r, destinations: [\"a.test:{dialled}\"], upstream: \"https://127.0.0.1:{port}\", \
             server_name: localhost, enforcement: strict, identity: i, trust: t}}]\n"
        );
        let plan = Arc::new(crate::config::parse(&text, Path::new("test.yaml")).unwrap());
        let trust = TrustSnapshot::of_roots(ca.roots());
        let identity: SharedIdentity = Arc::new(ArcSwapOption::new(Some(ca.identity(1))));
        let trusts = vec![Arc::new(ArcSwapOption::new(Some(Arc::new(trust))))];
        let telemetry = Telemetry::new(&plan);
        let generation = Arc::new(Generation::new(1, plan, vec![identity.clone()], trusts));
        let vips = SharedVipTable::new(ArcSwap::from_pointee(table(&generation, destination)));
        let around = Surroundings {
            flows: Arc::new(Fakes),
            vips: vips.clone(),
            workloads: Arc::new(Fakes),
            callers: crate::proxy::gateway::Callers::nobody(),
            directory: crate::workload::Directory::default(),
            usages: crate::policy::Usages::default(),
            counters: telemetry.worker(0),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            first_flow_id: 1,
        };
        let lanes = Rc::new(Lanes::new(generation, around).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent = listener.local_addr().unwrap();
        let serving = lanes.clone();
        tokio::task::spawn_local(async move {
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                let (lanes, permit) = (serving.clone(), permit());
                tokio::task::spawn_local(
                    async move { connection::serve(&lanes, stream, peer, permit).await },
                );
            }
        });
        Self { ca, seen, identity, lanes, vips, destination, agent }
    }

    /// The route as it is, but for `change`, as the next generation; the table refers to it at once.
    fn reload(&self, change: impl FnOnce(&mut Route)) -> Arc<Generation> {
        let current = self.lanes.current().generation.clone();
        let mut plan = (*current.plan).clone();
        let mut route = (*plan.routes[0]).clone();
        change(&mut route);
        plan.routes = vec![Arc::new(route)];
        let (identities, trusts) = (current.identities.clone(), current.trusts.clone());
        let next = Arc::new(Generation::new(current.number + 1, Arc::new(plan), identities, trusts));
        self.vips.store(Arc::new(table(&next, self.destination)));
        next
    }

    async fn client(&self) -> TcpStream {
        TcpStream::connect(self.agent).await.unwrap()
    }

    fn upstream_connections(&self) -> usize {
        self.seen.connections.load(SeqCst)
    }
}

/// Sends a head and reads one answer with a `Content-Length`: status line and body.
async fn ask(client: &mut TcpStream, head: &str) -> (String, String) {
    client.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap();
            if body.len() >= length.parse().unwrap() {
                return (head.lines().next().unwrap().to_owned(), body.to_owned());
            }
        }
        let mut block = [0; 4096];
        let n = client.read(&mut block).await.unwrap();
        assert!(n > 0, "closed after {text:?}");
        bytes.extend_from_slice(&block[..n]);
    }
}

const GET: &str = "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n";

async fn in_world<F: Future<Output = ()>>(test: impl FnOnce(Rc<World>) -> F) {
    tokio::task::LocalSet::new().run_until(async { test(Rc::new(World::new().await)).await }).await;
}

#[tokio::test]
async fn many_clients_share_a_connection_one_after_the_other() {
    in_world(async |world: Rc<World>| {
        for _ in 0..3 {
            let mut client = world.client().await;
            for _ in 0..2 {
                assert_eq!(ask(&mut client, GET).await, ("HTTP/1.1 200 OK".into(), "ok\n".into()));
            }
        }
        assert_eq!(world.upstream_connections(), 1);
        let requests = world.seen.requests.lock().unwrap();
        assert_eq!(requests.len(), 6);
        assert!(requests[0].1.starts_with(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:"));
    })
    .await;
}

#[tokio::test]
async fn a_new_identity_is_never_spoken_for_by_an_old_connection() {
    in_world(async |world: Rc<World>| {
        let mut client = world.client().await;
        ask(&mut client, GET).await;
        world.identity.store(Some(world.ca.identity(2)));
        ask(&mut client, GET).await;
        assert_eq!(world.upstream_connections(), 2);
        world.lanes.sweep();
        assert_eq!(world.lanes.idle("r"), 1, "the old generation's connection is closed");
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_died_is_replaced_where_that_is_safe() {
    in_world(async |world: Rc<World>| {
        let mut client = world.client().await;
        ask(&mut client, GET).await;
        let (status, _) = ask(&mut client, "GET /die HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!(status, "HTTP/1.1 200 OK", "idempotent: sent again on a new connection");
        assert_eq!(world.upstream_connections(), 2);
        let (status, body) =
            ask(&mut client, "POST /die HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(status, "HTTP/1.1 502 Bad Gateway", "a POST may have been done: it is not sent again");
        assert!(body.contains("\"reason\":\"upstream_closed\""), "{body}");
        assert_eq!(world.seen.requests.lock().unwrap().len(), 4);
    })
    .await;
}

#[tokio::test]
async fn another_host_on_a_strict_route_is_refused_and_never_forwarded() {
    in_world(async |world: Rc<World>| {
        let mut client = world.client().await;
        ask(&mut client, GET).await;
        let (status, body) = ask(&mut client, "GET /x HTTP/1.1\r\nHost: b.test\r\n\r\n").await;
        assert_eq!(status, "HTTP/1.1 421 Misdirected Request");
        assert!(body.contains("\"reason\":\"host_refused\""), "{body}");
        assert_eq!(world.seen.requests.lock().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn whoever_was_accepted_before_the_stop_is_served() {
    in_world(async |world: Rc<World>| {
        let mut kept = world.client().await;
        ask(&mut kept, GET).await;
        world.lanes.around.stop.cancel();
        for _ in 0..20 {
            let (status, _) = ask(&mut world.client().await, GET).await;
            assert_eq!(status, "HTTP/1.1 200 OK");
        }
        // The control: a connection between two requests is closed, not kept.
        let mut rest = Vec::new();
        kept.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
    })
    .await;
}

#[tokio::test]
async fn a_reload_that_leaves_a_route_as_it_is_keeps_its_connections_warm() {
    in_world(async |world: Rc<World>| {
        let mut kept = world.client().await;
        ask(&mut kept, GET).await;
        world.reload(|route| route.timeouts.idle *= 2);
        ask(&mut kept, GET).await;
        ask(&mut world.client().await, GET).await;
        world.lanes.sweep();
        ask(&mut kept, GET).await;
        assert_eq!(world.upstream_connections(), 1);
        // The control: another upstream is another connection, and the old one is closed.
        world.reload(|route| route.upstream.host = Host::Name("localhost".into()));
        ask(&mut kept, GET).await;
        assert_eq!(world.upstream_connections(), 2);
        world.lanes.sweep();
        assert_eq!(world.lanes.idle("r"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_kept_connection_follows_the_configuration_at_its_next_request() {
    in_world(async |world: Rc<World>| {
        let elsewhere = "GET /x HTTP/1.1\r\nHost: b.test\r\n\r\n";
        world.reload(|route| route.enforcement = Enforcement::Loose);
        let mut client = world.client().await;
        ask(&mut client, GET).await;
        assert_eq!(ask(&mut client, elsewhere).await.1, "original\n");
        world.reload(|route| route.enforcement = Enforcement::Strict);
        let (status, body) = ask(&mut client, elsewhere).await;
        assert_eq!(status, "HTTP/1.1 421 Misdirected Request", "{body}");
    })
    .await;
}

#[tokio::test]
async fn a_connection_whose_destination_is_gone_has_one_more_answer_and_ends() {
    in_world(async |world: Rc<World>| {
        let mut client = world.client().await;
        ask(&mut client, GET).await;
        let next = world.reload(|_| {});
        let generation = Some(next);
        world.vips.store(Arc::new(VipTable { generation, entries: [].into() }));
        assert_eq!(ask(&mut client, GET).await.0, "HTTP/1.1 200 OK");
        assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0, "closed");
        let mut new = world.client().await;
        let _ = new.write_all(GET.as_bytes()).await;
        assert!(new.read(&mut [0; 16]).await.is_err(), "whoever comes now is refused");
    })
    .await;
}

#[tokio::test]
async fn a_generation_is_forgotten_when_its_last_connection_has_ended() {
    in_world(async |world: Rc<World>| {
        let mut client = world.client().await;
        ask(&mut client, GET).await;
        let old = Arc::downgrade(&world.lanes.current().generation);
        world.reload(|_| {});
        world.lanes.sweep();
        assert_eq!(world.lanes.current().generation.number, 2);
        assert!(old.upgrade().is_some(), "a connection is still of it");
        drop(client);
        while old.upgrade().is_some() {
            tokio::task::yield_now().await;
            world.lanes.sweep();
        }
    })
    .await;
}

fn permit() -> tokio::sync::OwnedSemaphorePermit {
    Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap()
}

/// Memory per connection is this, plus the sockets, plus buffers while bytes are under way.
#[tokio::test]
async fn the_future_of_a_connection_stays_small() {
    in_world(async |world: Rc<World>| {
        let (stream, peer) = (world.client().await, world.agent);
        let future = connection::serve(&world.lanes, stream, peer, permit());
        let size = size_of_val(&future);
        assert!(size <= 1792, "{size} bytes");
    })
    .await;
}
