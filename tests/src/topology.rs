//! A world: one node, its pods, and the network where the manager lives.
//!
//! ```text
//!   pod 10.244.N.2 ---- node 10.244.N.1   198.18.0.1 ---- manager 198.18.0.9, .10, .53
//!   fd00:244:N::2       fd00:244:N::1     fd00:9::1       fd00:9::9, ::10, ::53
//! ```
//! The node forwards, so every pod can reach the manager directly: that is the control which shows
//! that a port is open and that only capture makes the difference. Each world has namespaces and
//! cgroups under a name of its own, so worlds exist side by side. All of it goes when the last
//! handle is dropped; what a killed run left behind, the next one removes.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cgroup::{self, Driver, Qos};
use crate::netns::{self, Netns};
use crate::process::Place;

/// The manager's first address.
pub const MANAGER4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 9);
/// The manager's first IPv6 address.
pub const MANAGER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9);
/// A second address of the manager's host, for a second destination.
pub const OTHER4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 10);
/// A second IPv6 address of the manager's host.
pub const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0x10);
/// Where [`crate::dns::Dns`] answers.
pub const DNS4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 53);
/// The node's own address towards the manager.
pub const NODE4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// An address that swallows every packet: no answer, no ICMP.
pub const BLACK_HOLE4: Ipv4Addr = Ipv4Addr::new(198, 18, 66, 66);
/// The name under which pods know the manager.
pub const MANAGER_NAME: &str = "manager.hnp.test";

/// Names that begin so belong to tests and are swept when their owner is gone.
const TEST_PREFIX: &str = "hnp-test-";

/// A world, by its last handle. See the module's words.
#[derive(Debug)]
pub struct Topology {
    world: Arc<World>,
}

impl Topology {
    /// The world of the test that calls, named after it, with the cgroupfs driver.
    ///
    /// # Panics
    /// Without root or cgroup2; the message says what to do.
    #[track_caller]
    pub fn for_test() -> Self {
        Self::for_test_with(Driver::Cgroupfs)
    }

    /// The same, with the cgroup names of the given driver.
    ///
    /// # Panics
    /// Like [`Self::for_test`].
    #[track_caller]
    pub fn for_test_with(driver: Driver) -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(|| sweep(TEST_PREFIX));
        let thread = std::thread::current();
        let test = thread.name().and_then(|name| name.rsplit("::").next()).unwrap_or("unnamed");
        let started = Instant::now();
        match Self::named(&format!("{TEST_PREFIX}{}", slug(test)), driver) {
            Ok(topology) => {
                let (took, hint) = (started.elapsed(), topology.enter_hint());
                eprintln!("world {} made in {took:?}; enter its node: {hint}", topology.name());
                topology
            }
            Err(error) => panic!("{error:#}"),
        }
    }

    /// A world whose name begins with `prefix`.
    ///
    /// # Errors
    /// Without root or cgroup2, or when a part cannot be made; nothing remains then.
    pub fn named(prefix: &str, driver: Driver) -> Result<Self> {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this makes network namespaces and cgroups and needs root: sudo -E cargo xtask test --tier host"
        );
        raise_open_files();
        let name = format!("{prefix}-{}-{}", std::process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed));
        let made = World::create(name.clone(), driver);
        if made.is_err() {
            let _ = remove(&name);
        }
        Ok(Self { world: Arc::new(made?) })
    }

    /// A new pod: best effort, one container.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn pod(&self) -> Pod {
        self.pod_with(Qos::BestEffort)
    }

    /// A new pod of a quality-of-service class.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn pod_with(&self, qos: Qos) -> Pod {
        match self.world.make_pod(&self.world, qos) {
            Ok(pod) => pod,
            Err(error) => panic!("making a pod: {error:#}"),
        }
    }

    /// The node's netns, outside kubepods.
    pub fn node(&self) -> Place {
        self.place(&self.world.node, "system/node")
    }

    /// The manager's netns, outside kubepods: a neighbour on the network, too.
    pub fn manager_side(&self) -> Place {
        self.place(&self.world.manager, "system/manager")
    }

    /// Where the agent runs: the node's netns and a cgroup of its own outside kubepods.
    pub fn agent_place(&self) -> Place {
        self.place(&self.world.node, "system/agent")
    }

    /// The node's netns and a cgroup under kubepods: a DaemonSet's pod with hostNetwork.
    pub fn host_network_pod(&self) -> Place {
        let path = self.world.driver.container(Qos::BestEffort, &uid(), &container_id());
        self.place(&self.world.node, path.to_str().expect("ascii"))
    }

    fn place(&self, netns: &Netns, cgroup: &str) -> Place {
        self.world.place(&self.world, netns, cgroup).expect("cgroups of our own tree can be made")
    }
}

impl Deref for Topology {
    type Target = Arc<World>;

    fn deref(&self) -> &Arc<World> {
        &self.world
    }
}

/// A pod: its network namespace, its cgroup, and who it is.
#[derive(Clone, Debug)]
pub struct Pod {
    place: Place,
    outside: Place,
    /// The pod's UID, as the API shows it.
    pub uid: String,
    /// The container's id.
    pub container: String,
    /// Its IPv4 address.
    pub addr4: Ipv4Addr,
    /// Its IPv6 address.
    pub addr6: Ipv6Addr,
}

impl Pod {
    /// The control: the same network namespace, but outside the pod's cgroup and outside kubepods.
    pub fn outside_cgroup(&self) -> &Place {
        &self.outside
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// What a world consists of. Handles share it; the last one removes it.
#[derive(Debug)]
pub struct World {
    name: String,
    driver: Driver,
    dir: PathBuf,
    cgroup: PathBuf,
    node: Netns,
    manager: Netns,
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

    fn create(name: String, driver: Driver) -> Result<Self> {
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

    fn make_pod(&self, this: &Arc<Self>, qos: Qos) -> Result<Pod> {
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

    fn place(&self, this: &Arc<Self>, netns: &Netns, cgroup: &str) -> Result<Place> {
        let path = self.cgroup.join(cgroup);
        cgroup::create(&path)?;
        Ok(Place { world: Arc::clone(this), netns: netns.clone(), cgroup: path })
    }

    fn enter_hint(&self) -> String {
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

/// Removes everything of a world, by its name, whoever made it.
///
/// # Errors
/// When something remains; the first thing is named.
pub fn remove(name: &str) -> Result<()> {
    let cgroups = cgroup::mount_point().and_then(|mount| cgroup::remove_tree(&mount.join(name)));
    let mut namespaces = Ok(());
    for netns in netns::names_with(&format!("{name}-")) {
        namespaces = namespaces.and(netns::remove(&netns));
    }
    let dir = dir_of(name);
    let _ = umount2(&dir.join("bpffs"), MntFlags::MNT_DETACH);
    let files = match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    };
    cgroups.and(namespaces).and(files)
}

/// What is left of worlds whose name begins with `prefix`: namespaces, cgroups, directories, mounts.
pub fn leftovers(prefix: &str) -> Vec<String> {
    let mut left: Vec<String> =
        netns::names_with(prefix).into_iter().map(|name| format!("network namespace {name}")).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|place| place.contains(&format!("/{prefix}")))
            .map(|place| format!("mount {place}")),
    );
    for (kind, dir) in
        [("cgroup", cgroup::mount_point().unwrap_or_default()), ("directory", std::env::temp_dir())]
    {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        left.extend(
            entries
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
                .map(|entry| format!("{kind} {}", entry.path().display())),
        );
    }
    left
}

/// Removes worlds whose name begins with `prefix` and whose owner, named by process id, is dead.
pub fn sweep(prefix: &str) {
    let dirs = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for name in dirs.filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.rsplit('-').nth(1).and_then(|pid| pid.parse::<u32>().ok());
        if name.starts_with(prefix) && owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            eprintln!("removing the stale world {name}");
            if let Err(error) = remove(&name) {
                eprintln!("{name}: {error:#}");
            }
        }
    }
}

/// Holds the machine for a test that needs it alone, until dropped: two loads at a time measure
/// nothing.
///
/// # Panics
/// When the lock file cannot be made.
pub fn alone() -> impl Drop {
    let path = std::env::temp_dir().join("hnp-tests-alone.lock");
    let file =
        fs::File::options().create(true).append(true).open(&path).expect("temporary files can be made");
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .expect("locks can be had")
}

/// Waits until a directory exists no more, or gives up after `deadline`.
pub fn gone_within(path: &Path, deadline: Duration) -> bool {
    let until = Instant::now() + deadline;
    while path.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    !path.exists()
}

fn dir_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

/// Lower-case letters, digits and dashes, short enough for a file name beside a prefix.
fn slug(test: &str) -> String {
    test.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect()
}

fn uid() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel has random UUIDs").trim().to_owned()
}

fn container_id() -> String {
    (uid() + &uid()).replace('-', "")
}

fn write_in_place(path: &Path, text: &str) {
    let mut file =
        fs::File::options().write(true).create(true).truncate(true).open(path).expect("our own file");
    file.write_all(text.as_bytes()).expect("our own file");
}

/// Thousands of sockets are held at a time; the soft limit is often 1024.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
