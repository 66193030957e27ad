//! A network that is left through a proxy alone: a namespace between the node and one where the manager
//! also lives, the real squid in it, and a proxy that misbehaves as told.
//!
//! ```text
//!   node 198.19.0.1 ---- 198.19.0.2 proxy 10.77.0.1 ---- 10.77.0.9 manager
//! ```
//! The node has no route to 10.77.0.0/24 and knows no name there; the proxy forwards nothing by itself.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::netns::Netns;
use crate::pki::Leaf;
use crate::poll::eventually;
use crate::process::{Place, Running};
use crate::tools;
use crate::topology::{MANAGER_NAME, MANAGER4, Topology};

/// The proxy, as the node sees it.
pub const PROXY4: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
/// The name that the node has for it.
pub const PROXY_NAME: &str = "proxy.corp.test";
/// The manager behind the proxy.
pub const INSIDE4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
/// The name that the proxy alone has for it.
pub const INSIDE_NAME: &str = "inside.hnp.test";

/// The network between; it goes with its world.
#[derive(Debug)]
pub struct Corporate {
    netns: Netns,
    place: Place,
}

impl Corporate {
    /// Lays it in a world.
    ///
    /// # Panics
    /// When a part cannot be made.
    #[track_caller]
    pub fn lay(topology: &Topology) -> Self {
        let netns = Netns::create(&format!("{}-corp", topology.name())).expect("namespaces can be made");
        let (node, manager) = (topology.node_netns(), topology.manager_netns());
        let name = netns.name();
        let laid = node
            .ip(&format!(
                "link add corp0 type veth peer name eth0 netns {name}\n\
                 addr add 198.19.0.1/24 dev corp0\nlink set corp0 up\n"
            ))
            .and_then(|()| {
                manager.ip(&format!(
                    "link add corp1 type veth peer name eth1 netns {name}\n\
                     addr add {INSIDE4}/24 dev corp1\nlink set corp1 up\n"
                ))
            })
            .and_then(|()| {
                netns.ip(&format!(
                    "addr add {PROXY4}/24 dev eth0\naddr add 10.77.0.1/24 dev eth1\n\
                     link set eth0 up\nlink set eth1 up\n\
                     route add 198.18.0.0/24 via {INSIDE4}\n"
                ))
            });
        laid.expect("links and addresses can be made");
        topology.add_host(PROXY_NAME, &[IpAddr::V4(PROXY4)]);
        let place = topology.place_in(&netns, "system/proxy");
        Self { netns, place }
    }
}

/// A running squid, without a cache.
#[derive(Debug)]
pub struct Squid {
    running: Running,
    dir: PathBuf,
}

/// What squid asks for and offers.
#[derive(Debug, Default)]
pub struct SquidSetup<'a> {
    /// Speak TLS to clients, with this certificate.
    pub tls: Option<&'a Leaf>,
    /// Ask for this user and password.
    pub credentials: Option<(&'a str, &'a str)>,
    /// More names that it knows the manager by.
    pub manager: &'a [&'a str],
}

impl Squid {
    /// Starts it on a port of the proxy's namespace. A former one of that port must be gone.
    ///
    /// # Panics
    /// When squid is missing or refuses its configuration.
    #[track_caller]
    pub fn start(topology: &Topology, corporate: &Corporate, port: u16, setup: &SquidSetup<'_>) -> Self {
        let dir = topology.path(&format!("squid-{port}"));
        fs::create_dir_all(&dir).expect("the world's directory is ours");
        // Squid gives up root; all that it opens later must be its user's to open.
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own file");
        };
        mode(&dir, 0o777);
        let managers = [&[MANAGER_NAME], setup.manager].concat().join(" ");
        fs::write(
            dir.join("hosts"),
            format!("127.0.0.1 localhost\n{INSIDE4} {INSIDE_NAME}\n{MANAGER4} {managers}\n"),
        )
        .expect("the world's directory is ours");
        let mut listen = format!("http_port {PROXY4}:{port}\n");
        if let Some(leaf) = setup.tls {
            let files = leaf.write(&dir, "proxy");
            mode(&files.key, 0o644);
            listen = format!(
                "https_port {PROXY4}:{port} tls-cert={} tls-key={}\n",
                files.certificate.display(),
                files.key.display()
            );
        }
        let mut access = "http_access allow all\n".to_owned();
        if let Some((user, password)) = setup.credentials {
            let hash = tools::run(&dir, "openssl", &["passwd", "-apr1", password]);
            fs::write(dir.join("users"), format!("{user}:{hash}")).expect("the world's directory is ours");
            access = format!(
                "auth_param basic program /usr/lib/squid/basic_ncsa_auth {}\nauth_param basic children 1 startup=1\n\
                 acl known proxy_auth REQUIRED\nhttp_access allow known\nhttp_access deny all\n",
                dir.join("users").display()
            );
        }
        let at = dir.display();
        let conf = format!(
            "{listen}{access}pid_filename none\ncoredump_dir {at}\ncache_log {at}/cache.log\n\
             access_log stdio:{at}/access.log logformat=squid\nlogfile_rotate 0\ncache deny all\ncache_mem 4 MB\n\
             memory_pools off\npinger_enable off\nhosts_file {at}/hosts\ndns_nameservers 127.0.0.1\n\
             max_filedescriptors 1024\nshutdown_lifetime 0 seconds\nvisible_hostname squid\n\
             forward_timeout 5 seconds\nconnect_timeout 3 seconds\n"
        );
        let path = dir.join("squid.conf");
        fs::write(&path, conf).expect("the world's directory is ours");
        // A service name of its own: shared memory goes by it.
        let service = format!("t{}p{port}", std::process::id());
        let mut running = corporate
            .place
            .command(tools::need("squid"))
            .args(["-N", "-n", &service, "-f"])
            .arg(&path)
            .spawn();
        eventually(Duration::from_secs(20), "squid listens", || {
            assert!(running.is_alive(), "squid ended: {}{}", running.stderr(), log_of(&dir));
            corporate.netns.run(|| TcpStream::connect((PROXY4, port))).is_ok()
        });
        Self { running, dir }
    }

    /// One line for each CONNECT that has ended, with status and target. Connections without a request
    /// (somebody looked whether it listens) are left out.
    pub fn tunnels(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        text.lines().filter(|line| line.contains(" CONNECT ")).map(str::to_owned).collect()
    }

    /// Ends it, with its tunnels, without a word.
    pub fn kill(self) {
        drop(self);
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- squid\n{}{}", self.running.stderr(), log_of(&self.dir));
            eprintln!("{}", self.tunnels().join("\n"));
        }
    }
}

fn log_of(dir: &Path) -> String {
    fs::read_to_string(dir.join("cache.log")).unwrap_or_default()
}

/// A proxy that answers every request with the same bytes and then keeps the connection, or closes it.
#[derive(Debug)]
pub struct BadProxy {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
    addr: SocketAddr,
    netns: Netns,
}

impl BadProxy {
    /// Starts it. `answer` goes out when a request's head is complete; nothing, where it is empty.
    ///
    /// # Panics
    /// When the port is taken.
    #[track_caller]
    pub fn start(corporate: &Corporate, port: u16, answer: &[u8], close: bool) -> Self {
        let addr = SocketAddr::from((PROXY4, port));
        let listener = corporate.netns.run(|| TcpListener::bind(addr)).expect("the port is free");
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counter, answer) = (Arc::clone(&stop), Arc::clone(&asked), answer.to_owned());
        let thread = std::thread::spawn(move || {
            let mut kept = Vec::new();
            for mut stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                if head(&mut stream) {
                    counter.fetch_add(1, Ordering::SeqCst);
                    // A client that is gone by now has seen enough.
                    let _ = stream.write_all(&answer);
                }
                if !close {
                    kept.push(stream);
                }
            }
        });
        Self { stop, asked, thread: Some(thread), addr, netns: corporate.netns.clone() }
    }

    /// How many requests came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for BadProxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread; it may be gone already.
        let addr = self.addr;
        drop(self.netns.run(|| TcpStream::connect(addr)));
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.expect("it is joined once").expect("the proxy's thread does not panic");
        }
    }
}

/// Reads a request's head; whether it came.
fn head(stream: &mut TcpStream) -> bool {
    let (mut bytes, mut block) = (Vec::new(), [0; 1024]);
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut block) {
            Ok(read @ 1..) => bytes.extend_from_slice(&block[..read]),
            _ => return false,
        }
    }
    true
}
