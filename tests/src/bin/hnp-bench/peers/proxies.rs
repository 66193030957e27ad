//! The proxies, each with one worker, on one CPU, and without logs: like for like. hnp is dialled as pods dial
//! it, through capture; the others at an address of the node.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hnp_tests::agent::{Agent, CAPABILITIES, Route};
use hnp_tests::pki::{CLIENT_NAME, Files, Spec};
use hnp_tests::poll::eventually;
use hnp_tests::process::{Cmd, Place, Running};
use hnp_tests::scene::{Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

use super::text;
use crate::connect::take_off;

/// Where the manager listens, with TLS and nothing else.
pub(super) const MANAGER: u16 = 8443;
/// The same, where it speaks HTTP/2 with those who offer it.
const MANAGER_HTTP2: u16 = 8444;
/// The node's address that the first pod has for a gateway.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// What is asked for: a kibibyte, and more than a window takes.
pub(super) const SMALL: &str = "/small";
pub(super) const LARGE: &str = "/large";
const LARGE_BYTES: u64 = 256 << 20;

/// What a proxy understands of what it carries.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Http,
    Opaque,
}

/// The client certificate's key.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) enum Key {
    #[serde(rename = "RSA-2048")]
    Rsa,
    #[serde(rename = "P-256")]
    P256,
}

/// A program in one of its modes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Program {
    Haproxy,
    Nginx,
    Stunnel,
    Hnp,
}

impl Kind {
    /// Those that are compared, hnp last.
    pub(super) fn programs(self) -> &'static [Program] {
        match self {
            Self::Http => &[Program::Haproxy, Program::Nginx, Program::Hnp],
            Self::Opaque => &[Program::Haproxy, Program::Nginx, Program::Stunnel, Program::Hnp],
        }
    }
}

/// The world, the certificates, and where things run.
pub(super) struct Stage {
    pub(super) scene: Scene,
    pub(super) pod: hnp_tests::topology::Pod,
    /// The identity with an RSA key; the scene's own has one on P-256.
    rsa: Files,
    binaries: Binaries,
    cpus: Cpus,
}

struct Binaries {
    /// Where packages were unpacked.
    root: PathBuf,
    libraries: String,
}

struct Cpus {
    proxy: CpuSet,
    others: CpuSet,
}

impl Stage {
    pub(super) fn new(scene: Scene) -> Result<Self> {
        // One family, so that nobody is slower for having chosen the other one.
        scene.set_hosts(&[(MANAGER_NAME, MANAGER4.into())]);
        let pod = scene.pod();
        // Thousands of short connections a second, for minutes: their ports must not run out.
        for netns in [pod.netns(), scene.node_netns()] {
            netns.sysctl("net/ipv4/ip_local_port_range", "16384 65000")?;
            netns.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        }
        let rsa = scene.clients.issue(&Spec::client(CLIENT_NAME).rsa()).write(scene.dir(), "client-rsa");
        for files in [&rsa, &scene.client] {
            let both = [&files.certificate, &files.key].map(fs::read_to_string);
            let [certificate, key] = both;
            fs::write(files.certificate.with_extension("pem"), certificate? + &key?)?;
        }
        let root = std::env::var_os("HNP_PEERS").map_or_else(|| "/".into(), PathBuf::from);
        let libraries = std::env::var("HNP_PEERS_LIBRARIES").unwrap_or_default();
        Ok(Self { scene, pod, rsa, binaries: Binaries { root, libraries }, cpus: Cpus::split()? })
    }

    pub(super) fn identity(&self, key: Key) -> &Files {
        match key {
            Key::Rsa => &self.rsa,
            Key::P256 => &self.scene.client,
        }
    }

    /// Starts something that is no proxy, beside the proxies' CPU.
    pub(super) fn spawn_beside(&self, command: Cmd) -> Result<Running> {
        on(&self.cpus.others, || command.spawn())
    }

    /// How the machine is divided, in words.
    pub(super) fn division(&self) -> String {
        let names = |set: &CpuSet| {
            let on = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false));
            on.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",")
        };
        format!(
            "proxies on CPU {}, load and manager on {}",
            names(&self.cpus.proxy),
            names(&self.cpus.others)
        )
    }

    /// The manager: nginx, which wants a client certificate.
    pub(super) fn manager(&self) -> Result<Running> {
        let dir = self.dir("manager")?;
        fs::write(dir.join("small"), vec![b'x'; 1024])?;
        fs::File::create(dir.join("large"))?.set_len(LARGE_BYTES)?;
        let server = self.scene.server.write(&dir, "server");
        let clients = self.scene.clients.write(&dir, "clients");
        let at = dir.display();
        let conf = text::manager(&dir, &server, &clients, MANAGER, MANAGER_HTTP2);
        let place = self.scene.manager_side();
        let command = self.nginx(&place, &dir, &conf)?;
        let running = self.spawn_beside(command)?;
        listens(running, &place, (MANAGER4, MANAGER).into(), &format!("the manager in {at}"))
    }

    /// Starts a program for a kind of load and waits until it serves.
    pub(super) fn start(&self, program: Program, kind: Kind) -> Result<Proxy> {
        let running = match program {
            Program::Hnp => Handle::Agent(self.agent()?),
            Program::Haproxy => Handle::Peer(self.peer(program, kind, |dir| {
                let conf = dir.join("haproxy.cfg");
                fs::write(&conf, text::haproxy(self, kind))?;
                let command = self.command(&self.scene.node(), "usr/sbin/haproxy")?;
                Ok(command.args(["-db", "-f"]).arg(conf))
            })?),
            Program::Nginx => Handle::Peer(self.peer(program, kind, |dir| {
                let module = self.binary("usr/lib/nginx/modules/ngx_stream_module.so")?;
                self.nginx(&self.scene.node(), dir, &text::nginx(self, dir, &module, kind))
            })?),
            Program::Stunnel => Handle::Peer(self.peer(program, kind, |dir| {
                let conf = dir.join("stunnel.conf");
                fs::write(&conf, text::stunnel(self))?;
                Ok(self.command(&self.scene.node(), "usr/bin/stunnel4")?.arg(conf))
            })?),
        };
        Ok(Proxy { program, handle: running })
    }

    /// Where clients of a program dial.
    pub(super) fn address(program: Program, kind: Kind, key: Key) -> SocketAddr {
        let which = 2 * u16::from(kind == Kind::Opaque) + u16::from(key == Key::P256);
        match program {
            Program::Haproxy => (NODE, 7010 + which).into(),
            Program::Nginx => (NODE, 7020 + which).into(),
            Program::Stunnel => (NODE, 7030 + which).into(),
            Program::Hnp => (MANAGER4, 80 + which).into(),
        }
    }

    /// Where clients of hnp dial for the manager that speaks HTTP/2.
    pub(super) fn http2() -> SocketAddr {
        (MANAGER4, 90).into()
    }

    /// The roots of the manager's certificate.
    pub(super) fn roots(&self) -> &Path {
        &self.scene.roots
    }

    fn agent(&self) -> Result<Agent> {
        let mut config = self.scene.config();
        config.workers = 1;
        config.access = false;
        let upstream = format!("https://{MANAGER_NAME}:{MANAGER}");
        for (kind, key) in [
            (Kind::Http, Key::Rsa),
            (Kind::Http, Key::P256),
            (Kind::Opaque, Key::Rsa),
            (Kind::Opaque, Key::P256),
        ] {
            let name = format!("{kind:?}-{key:?}").to_lowercase();
            let port = Self::address(Program::Hnp, kind, key).port();
            let destinations = [format!("{MANAGER_NAME}:{port}"), format!("{MANAGER4}:{port}")];
            let destinations = destinations.each_ref().map(String::as_str);
            let route = match kind {
                Kind::Http => Route::strict(&name, &destinations, &upstream),
                Kind::Opaque => Route::opaque(&name, &destinations, &upstream),
            };
            let identity = format!("client-{key:?}").to_lowercase();
            config = config.route(route.with(&identity, TRUST));
            if kind == Kind::Http {
                config = config.identity(&identity, self.identity(key));
            }
        }
        let port = Self::http2().port();
        let destinations = [format!("{MANAGER_NAME}:{port}"), format!("{MANAGER4}:{port}")];
        let upstream = format!("https://{MANAGER_NAME}:{MANAGER_HTTP2}");
        let route = Route::strict("http2", &destinations.each_ref().map(String::as_str), &upstream);
        config = config.route(route.with("client-rsa", TRUST));
        let mut agent =
            on(&self.cpus.proxy, || Agent::spawn(self.scene.agent_place(), &config, CAPABILITIES))?;
        agent.wait_until_ready();
        Ok(agent)
    }

    fn peer(
        &self,
        program: Program,
        kind: Kind,
        command: impl FnOnce(&Path) -> Result<Cmd>,
    ) -> Result<Running> {
        let name = format!("{program:?}-{kind:?}").to_lowercase();
        let dir = self.dir(&name)?;
        let command = command(&dir)?;
        let running = on(&self.cpus.proxy, || command.spawn())?;
        listens(running, &self.scene.node(), Self::address(program, kind, Key::P256), &name)
    }

    fn nginx(&self, place: &Place, dir: &Path, conf: &str) -> Result<Cmd> {
        let path = dir.join("nginx.conf");
        fs::write(&path, conf)?;
        let command = self.command(place, "usr/sbin/nginx")?;
        // Without -e it opens the system's log before it has read the configuration.
        Ok(command.args(["-e", "stderr", "-p"]).arg(dir).arg("-c").arg(path))
    }

    /// A program of a package, with the libraries that came with it.
    fn command(&self, place: &Place, file: &str) -> Result<Cmd> {
        let command = place.command(self.binary(file)?);
        let libraries = &self.binaries.libraries;
        Ok(if libraries.is_empty() { command } else { command.env("LD_LIBRARY_PATH", libraries) })
    }

    /// A file of a package: unpacked, or the system's.
    fn binary(&self, file: &str) -> Result<PathBuf> {
        let places = [&*self.binaries.root, Path::new("/")];
        places
            .iter()
            .map(|place| place.join(file))
            .find(|path| path.is_file())
            .with_context(|| format!("/{file} is missing; run: cargo xtask bench peers"))
    }

    /// A new directory, also where a program was started before.
    fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.scene.path(name);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(dir)
    }
}

/// A proxy that runs.
pub(super) struct Proxy {
    pub(super) program: Program,
    handle: Handle,
}

enum Handle {
    Peer(Running),
    Agent(Agent),
}

impl Proxy {
    pub(super) fn pid(&self) -> i32 {
        match &self.handle {
            Handle::Peer(running) => running.pid(),
            Handle::Agent(agent) => agent.pid(),
        }
    }

    /// Resident bytes, shared pages included.
    pub(super) fn resident(&self) -> Result<f64> {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let field = text.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
        let kibibytes: f64 = field.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kibibytes * 1024.0)
    }

    /// The last words it wrote, for when something went wrong.
    pub(super) fn words(&self) -> String {
        let all = match &self.handle {
            Handle::Peer(running) => running.stderr(),
            Handle::Agent(agent) => agent.log(),
        };
        let lines: Vec<&str> = all.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    pub(super) fn stop(self, scene: &Scene) -> Result<()> {
        match self.handle {
            // Dropping it ends it.
            Handle::Peer(_) => Ok(()),
            Handle::Agent(agent) => take_off(scene, Some(agent)),
        }
    }
}

impl Cpus {
    /// The proxies' CPU is the first; where there is only one, all share it.
    fn split() -> Result<Self> {
        let all = sched_getaffinity(Pid::from_raw(0))?;
        let mut allowed = (0..CpuSet::count()).filter(|&cpu| all.is_set(cpu).unwrap_or(false));
        let first = allowed.next().context("no CPU")?;
        let (mut proxy, mut others) = (CpuSet::new(), CpuSet::new());
        proxy.set(first)?;
        for cpu in allowed {
            others.set(cpu)?;
        }
        Ok(Self { others: if others == CpuSet::new() { proxy } else { others }, proxy })
    }
}

/// Does something on some CPUs; what it starts stays there.
fn on<T>(cpus: &CpuSet, work: impl FnOnce() -> T) -> Result<T> {
    let me = Pid::from_raw(0);
    let before = sched_getaffinity(me)?;
    sched_setaffinity(me, cpus)?;
    let done = work();
    sched_setaffinity(me, &before)?;
    Ok(done)
}

fn listens(mut running: Running, place: &Place, address: SocketAddr, name: &str) -> Result<Running> {
    let mut alive = true;
    eventually(Duration::from_secs(10), &format!("{name} listens"), || {
        alive = running.is_alive();
        !alive || place.netns().run(|| TcpStream::connect(address)).is_ok()
    });
    ensure!(alive, "{name} ended: {}", running.stderr());
    Ok(running)
}
