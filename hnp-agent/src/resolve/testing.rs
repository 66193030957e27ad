//! A name server that answers over UDP and TCP on loopback as a test tells it, and a node's two files.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::time::Instant;

use super::Resolver;
use crate::config::defaults;
use crate::config::plan::{
    self, Admin, Capture, Cidr, Destination, Enforcement, Host, Limits, Log, LogFormat, Mode, PerWorkload,
    Plan, Protocol, Route, RuntimeSocket, Target, Timeouts, Upstream, UpstreamWay, Workloads,
};

/// What the server does when it is asked for a name.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// Address records of both families, all with one TTL in seconds.
    Addrs(u32, Vec<IpAddr>),
    /// Only to questions for AAAA.
    Aaaa(Box<Answer>),
    NxDomain,
    NoData,
    ServFail,
    Refused,
    Silence,
}

impl Answer {
    pub(super) fn addrs(ttl: u32, addrs: &[&str]) -> Self {
        Self::Addrs(ttl, addrs.iter().map(|addr| addr.parse().unwrap()).collect())
    }
}

/// The server. Names it was not told of do not exist.
pub(super) struct Dns {
    addr: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Zone {
    names: HashMap<String, Vec<Answer>>,
    asked: HashMap<String, usize>,
    stop: bool,
}

impl Dns {
    pub(super) fn start() -> Self {
        Self::start_on("127.0.0.1", 0)
    }

    pub(super) fn start_on(addr: &str, port: u16) -> Self {
        // Another test may have the same port over TCP: then another one.
        let (udp, tcp) = std::iter::repeat_with(|| {
            let udp = UdpSocket::bind((addr, port)).unwrap();
            let tcp = TcpListener::bind(udp.local_addr().unwrap()).ok()?;
            Some((udp, tcp))
        })
        .flatten()
        .next()
        .unwrap();
        let addr = udp.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let (for_udp, for_tcp) = (Arc::clone(&zone), Arc::clone(&zone));
        let threads = vec![
            std::thread::spawn(move || serve_udp(&udp, &for_udp)),
            std::thread::spawn(move || serve_tcp(&tcp, &for_tcp)),
        ];
        Self { addr, zone, threads }
    }

    pub(super) fn port(&self) -> u16 {
        self.addr.port()
    }

    /// From now on, this and nothing else for the name (with a trailing dot).
    pub(super) fn set(&self, name: &str, answer: Answer) {
        self.zone.lock().unwrap().names.insert(name.to_owned(), vec![answer]);
    }

    /// This too.
    pub(super) fn add(&self, name: &str, answer: Answer) {
        self.zone.lock().unwrap().names.get_mut(name).unwrap().push(answer);
    }

    /// How often it was asked for the name, both families together.
    pub(super) fn asked(&self, name: &str) -> usize {
        self.zone.lock().unwrap().asked.get(name).copied().unwrap_or(0)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.zone.lock().unwrap().stop = true;
        let _ = UdpSocket::bind((self.addr.ip(), 0)).and_then(|socket| socket.send_to(&[], self.addr));
        let _ = TcpStream::connect(self.addr);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// RFC 1035, 4.2.1: what a UDP answer holds; more is truncated, and asked for again over TCP.
const UDP_MAX: usize = 512;

fn serve_udp(socket: &UdpSocket, zone: &Mutex<Zone>) {
    let mut buf = [0; 4096];
    loop {
        let Ok((len, client)) = socket.recv_from(&mut buf) else { continue };
        if zone.lock().unwrap().stop {
            return;
        }
        let Some(response) = answer(&buf[..len], zone) else { continue };
        let mut bytes = response.to_vec().unwrap();
        if bytes.len() > UDP_MAX {
            bytes = response.truncate().to_vec().unwrap();
        }
        socket.send_to(&bytes, client).unwrap();
    }
}

/// One connection after the other, each until it is closed or idle.
fn serve_tcp(listener: &TcpListener, zone: &Mutex<Zone>) {
    loop {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        if zone.lock().unwrap().stop {
            return;
        }
        // Clients keep connections open; the next one's turn, and the end, must come all the same.
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut len = [0; 2];
        while stream.read_exact(&mut len).is_ok() {
            let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut query).unwrap();
            let Some(response) = answer(&query, zone) else { continue };
            let response = response.to_vec().unwrap();
            stream.write_all(&u16::try_from(response.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&response).unwrap();
        }
    }
}

/// What the zone says to a query; `None` is silence.
fn answer(query: &[u8], zone: &Mutex<Zone>) -> Option<Message> {
    let mut zone = zone.lock().unwrap();
    let query = Message::from_vec(query).ok()?;
    let question = query.queries[0].clone();
    let name = question.name().to_string();
    *zone.asked.entry(name.clone()).or_default() += 1;
    let answers = zone.names.get(&name).cloned().unwrap_or_else(|| vec![Answer::NxDomain]);
    let mut response = query.into_response();
    response.metadata.recursion_available = true;
    for answer in answers {
        let answer = match answer {
            Answer::Aaaa(answer) if question.query_type() == RecordType::AAAA => *answer,
            answer => answer,
        };
        match answer {
            Answer::Addrs(ttl, addrs) => {
                let fitting = addrs
                    .into_iter()
                    .map(RData::from)
                    .filter(|data| data.record_type() == question.query_type());
                let records = fitting.map(|data| Record::from_rdata(question.name().clone(), ttl, data));
                response.answers.extend(records);
            }
            Answer::NxDomain => response.metadata.response_code = ResponseCode::NXDomain,
            Answer::ServFail => response.metadata.response_code = ResponseCode::ServFail,
            Answer::Refused => response.metadata.response_code = ResponseCode::Refused,
            Answer::Silence => return None,
            Answer::NoData | Answer::Aaaa(_) => {}
        }
    }
    Some(response)
}

/// The files of a node that uses one server.
pub(super) struct Node {
    pub(super) plan: plan::Resolver,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Node {
    pub(super) fn new(dns: &Dns) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan::Resolver {
            resolv_conf: dir.path().join("resolv.conf"),
            hosts: dir.path().join("hosts"),
            grace: Duration::from_secs(60),
            min_ttl: Duration::ZERO,
            max_ttl: Duration::from_secs(300),
        };
        let node = Self { plan, port: dns.port(), _dir: dir };
        node.write_resolv_conf("nameserver 127.0.0.1\n");
        node.write_hosts("");
        node
    }

    pub(super) fn resolver(&self) -> Resolver {
        Resolver::with_port(&self.plan, self.port).unwrap()
    }

    pub(super) fn write_resolv_conf(&self, text: &str) {
        std::fs::write(&self.plan.resolv_conf, text).unwrap();
    }

    pub(super) fn write_hosts(&self, text: &str) {
        std::fs::write(&self.plan.hosts, text).unwrap();
    }
}

pub(super) fn name(name: &str) -> Host {
    Host::Name(name.into())
}

/// Waits until the condition holds; panics after 20 s.
pub(super) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < end, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A Plan with these routes: what they are dialled as, and their enforcement. Grace 60 s, TTL up to 300 s.
pub(super) fn plan(routes: &[(&[&str], Enforcement)]) -> Plan {
    let routes = routes.iter().enumerate().map(|(index, (destinations, enforcement))| {
        Arc::new(Route {
            name: format!("route-{index}").into(),
            destinations: destinations.iter().map(|text| destination(text)).collect(),
            upstream: Upstream {
                host: Host::Name("manager.test".into()),
                port: 443,
                base_path: String::new(),
                server_name: "manager.test".try_into().unwrap(),
                authority: "manager.test".into(),
                pool_idle: 0,
                pool_warm: 0,
            },
            way: UpstreamWay::Direct,
            mode: Mode::ReverseProxy(plan::ReverseProxy {
                protocol: Protocol::Http,
                upstream_protocol: plan::UpstreamProtocol::Auto,
                authority: plan::Authority::Upstream,
                identity: 0,
                trust: 0,
            }),
            enforcement: *enforcement,
            overrides: Vec::new(),
            passthrough: Vec::new(),
            policy: None,
            timeouts: Timeouts {
                head: Duration::from_secs(1),
                idle: Duration::from_secs(1),
                connect: Duration::from_secs(1),
                tls: Duration::from_secs(1),
                response: Duration::from_secs(1),
                ping: Duration::from_secs(1),
            },
        })
    });
    Plan {
        capture: Capture {
            mode: plan::CaptureMode::On,
            cgroup: None,
            bpffs: "/sys/fs/bpf/hnp".into(),
            vips4: Cidr { addr: "169.254.77.0".parse().unwrap(), prefix: 24 },
            vips6: Cidr { addr: "fd00:77::".parse().unwrap(), prefix: 64 },
            port: 15001,
            connections_per_pod: 100,
            heartbeat: Duration::from_secs(2),
            pod_logs: "/var/log/pods".into(),
            guard: plan::Guard::Auto,
            raw_sockets: plan::RawSockets::Allow,
            destroy_older_flows: false,
        },
        gateway: None,
        routes: routes.collect(),
        identities: Vec::new(),
        trusts: Vec::new(),
        upstream_proxies: Vec::new(),
        limits: Limits {
            connections: 100,
            head_bytes: 65_536,
            buffer_bytes: 16_384,
            per_workload: PerWorkload {
                connections: 50,
                new_connections_per_second: None,
                handshakes_per_second: defaults::HANDSHAKES,
                bytes_per_second: None,
            },
        },
        resolver: plan::Resolver {
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            grace: Duration::from_secs(60),
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(300),
        },
        workloads: Workloads { runtime: RuntimeSocket::Off, deadline: Duration::from_secs(2) },
        kubernetes: None,
        admin: Admin { listen: None, page: false },
        log: Log { format: LogFormat::Json, level: "info".into(), access: false },
        run_dir: "/nowhere".into(),
        drain_deadline: Duration::from_secs(1),
        workers: 1,
    }
}

fn destination(text: &str) -> Destination {
    if let Some((net, port)) = text.rsplit_once(':')
        && let Some((addr, prefix)) = net.split_once('/')
    {
        let net = Cidr { addr: addr.parse().unwrap(), prefix: prefix.parse().unwrap() };
        return Destination { target: Target::Net(net), port: port.parse().unwrap() };
    }
    match text.parse::<SocketAddr>() {
        Ok(addr) => Destination { target: Target::Net(Cidr::host(addr.ip())), port: addr.port() },
        Err(_) => {
            let (name, port) = text.split_once(':').unwrap();
            Destination { target: Target::Name(name.into()), port: port.parse().unwrap() }
        }
    }
}
