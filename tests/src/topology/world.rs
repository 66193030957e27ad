//! What a world consists of, and how it is laid out.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use super::remains::{dir_of, remove};
use super::{DNS4, MANAGER_NAME, MANAGER4, MANAGER6, NODE4, OTHER4, OTHER6, Pod};
use crate::cgroup::{self, Driver, Qos};
use crate::netns::Netns;
use crate::process::Place;

/// What a world consists of. Handles share it; the last one removes it.
#[derive(Debug)]
pub struct World {
    name: String,
    pub(super) driver: Driver,
    dir: PathBuf,
    cgroup: PathBuf,
    pub(super) node: Netns,
    pub(super) manager: Netns,
    pods: AtomicU32,
    hosts: Mutex<String>,
    diary: Mutex<Vec<String>>,
}

impl World {
    /// The name that all its parts begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory for the test's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in that directory.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// The kubepods cgroup, as the agent's `capture.cgroup` wants it.
    pub fn kubepods(&self) -> PathBuf {
        self.cgroup.join(self.driver.kubepods())
    }

    /// A directory on a bpffs of the world's own, as the agent's `capture.bpffs` wants it.
    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpffs/hnp")
    }

    /// The agent's `run_dir` on this node.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The node's namespace.
    pub fn node_netns(&self) -> &Netns {
        &self.node
    }

    /// The manager's namespace.
    pub fn manager_netns(&self) -> &Netns {
        &self.manager
    }

    /// The world's `/etc/hosts`.
    pub fn hosts_file(&self) -> PathBuf {
        self.path("hosts")
    }

    /// The world's `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> PathBuf {
        self.path("resolv.conf")
    }

    /// Adds a name to the world's `/etc/hosts`.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn add_host(&self, name: &str, addrs: &[IpAddr]) {
        let mut hosts = self.hosts.lock().expect("no panic while held");
        for addr in addrs {
            writeln!(hosts, "{addr} {name}").expect("strings grow");
        }
        // In place: programs have this very file bound over /etc/hosts.
        write_in_place(&self.hosts_file(), &hosts);
    }

    /// Replaces the world's `/etc/hosts` by these names (and localhost).
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn set_hosts(&self, entries: &[(&str, IpAddr)]) {
        let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for (name, addr) in entries {
            writeln!(text, "{addr} {name}").expect("strings grow");
        }
        write_in_place(&self.hosts_file(), &text);
        *self.hosts.lock().expect("no panic while held") = text;
    }

    /// Replaces the world's `/etc/resolv.conf`.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn set_resolv_conf(&self, text: &str) {
        write_in_place(&self.resolv_conf(), text);
    }

    /// Something worth knowing when the test fails.
    pub fn note(&self, line: String) {
        self.diary.lock().expect("no panic while held").push(line);
    }

    /// Which file is bound over which inside every program's mount namespace.
    pub(crate) fn etc_files(&self) -> Vec<(PathBuf, PathBuf)> {
        ["hosts", "resolv.conf", "nsswitch.conf"]
            .into_iter()
            .filter_map(|file| {
                // Through symbolic links: systemd's resolv.conf is one.
                let to = fs::canonicalize(Path::new("/etc").join(file)).ok()?;
                Some((self.path(file), to))
            })
            .collect()
    }

    pub(super) fn create(name: String, driver: Driver) -> Result<Self> {
        let dir = dir_of(&name);
        let cgroup = cgroup::mount_point()?.join(&name);
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        fs::write(dir.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
        fs::write(dir.join("resolv.conf"), format!("nameserver {DNS4}\noptions timeout:1 attempts:1\n"))?;
        fs::create_dir(dir.join("bpffs"))?;
        mount(Some("bpffs"), &dir.join("bpffs"), Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("mounting a bpffs (CONFIG_BPF_SYSCALL)")?;
        cgroup::create(&cgroup.join(driver.kubepods()))?;
        let node = Netns::create(&format!("{name}-node"))?;
        let manager = Netns::create(&format!("{name}-mgr"))?;
        let world = Self {
            name,
            driver,
            dir,
            cgroup,
            node,
            manager,
            pods: AtomicU32::new(0),
            hosts: Mutex::default(),
            diary: Mutex::default(),
        };
        world.set_hosts(&[(MANAGER_NAME, MANAGER4.into()), (MANAGER_NAME, MANAGER6.into())]);
        world.lay_network()?;
        Ok(world)
    }

    fn lay_network(&self) -> Result<()> {
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.node.sysctl(key, "1")?;
        }
        self.link("mgr0", &self.manager)?;
        self.node.ip(&format!(
            "addr add {NODE4}/24 dev mgr0\n\
             addr add fd00:9::1/64 dev mgr0 nodad\n\
             route add 198.18.66.0/24 via {MANAGER4}\n"
        ))?;
        let mut batch = String::new();
        for addr in [MANAGER4, OTHER4, DNS4] {
            writeln!(batch, "addr add {addr}/24 dev eth0")?;
        }
        for addr in [MANAGER6, OTHER6] {
            writeln!(batch, "addr add {addr}/64 dev eth0 nodad")?;
        }
        batch.push_str("route add default via 198.18.0.1\nroute add ::/0 via fd00:9::1\n");
        self.manager.ip(&batch)
    }

    /// A cable from the node to the peer's `eth0`, usable at once.
    fn link(&self, name: &str, peer: &Netns) -> Result<()> {
        self.node.ip(&format!(
            "link add {name} type veth peer name eth0 netns {}\nlink set {name} up\n",
            peer.name()
        ))?;
        peer.ip("link set eth0 up\n")?;
        // The end that was up before its peer learns of the carrier from a work queue, up to a second
        // later, and IPv6 does not answer until then. Up once more, it knows.
        self.node.ip(&format!("link set {name} down\nlink set {name} up\n"))
    }

    pub(super) fn make_pod(&self, this: &Arc<Self>, qos: Qos) -> Result<Pod> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let octet = u8::try_from(number).context("a world holds 255 pods")?;
        let netns = Netns::create(&format!("{}-pod{number}", self.name))?;
        let addr4 = Ipv4Addr::new(10, 244, octet, 2);
        let addr6 = Ipv6Addr::new(0xfd00, 0x244, u16::from(octet), 0, 0, 0, 0, 2);
        let (gate4, gate6) = (format!("10.244.{octet}.1"), format!("fd00:244:{octet:x}::1"));
        let link = format!("pod{number}");
        self.link(&link, &netns)?;
        self.node.ip(&format!("addr add {gate4}/24 dev {link}\naddr add {gate6}/64 dev {link} nodad\n"))?;
        netns.ip(&format!(
            "addr add {addr4}/24 dev eth0\n\
             addr add {addr6}/64 dev eth0 nodad\n\
             route add default via {gate4}\n\
             route add ::/0 via {gate6}\n"
        ))?;
        let (uid, container) = (uid(), container_id());
        let inside = self.driver.container(qos, &uid, &container);
        self.note(format!("pod{number} {uid} {addr4} {addr6} {}", netns.name()));
        Ok(Pod {
            place: self.place(this, &netns, inside.to_str().expect("ascii"))?,
            outside: self.place(this, &netns, "system/outside")?,
            uid,
            container,
            addr4,
            addr6,
        })
    }

    pub(super) fn place(&self, this: &Arc<Self>, netns: &Netns, cgroup: &str) -> Result<Place> {
        let path = self.cgroup.join(cgroup);
        cgroup::create(&path)?;
        Ok(Place { world: Arc::clone(this), netns: netns.clone(), cgroup: path })
    }

    pub(super) fn enter_hint(&self) -> String {
        format!("nsenter --net={}", self.node.path().display())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- world {} (node: {})", self.name, self.enter_hint());
            for line in self.diary.get_mut().map(std::mem::take).unwrap_or_default() {
                eprintln!("  {line}");
            }
        }
        if let Err(error) = remove(&self.name) {
            eprintln!("{}: not all of it could be removed: {error:#}", self.name);
        }
    }
}

pub(super) fn uid() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel has random UUIDs").trim().to_owned()
}

pub(super) fn container_id() -> String {
    (uid() + &uid()).replace('-', "")
}

fn write_in_place(path: &Path, text: &str) {
    let mut file =
        fs::File::options().write(true).create(true).truncate(true).open(path).expect("our own file");
    file.write_all(text.as_bytes()).expect("our own file");
}
