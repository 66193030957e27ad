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

mod remains;
mod world;

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::time::Instant;

use anyhow::{Result, ensure};

pub use self::remains::{leftovers, remove, sweep};
pub use self::world::World;

use self::world::{container_id, uid};
use crate::cgroup::{self, Driver, Qos};
use crate::kernel;
use crate::netns::{self, Netns};
use crate::process::Place;
use crate::tools;

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

    /// Removes a pod as kubelet would: its processes, its cgroup, its network.
    ///
    /// # Panics
    /// When something of it remains.
    #[track_caller]
    pub fn delete(&self, pod: Pod) {
        let (netns, pod_cgroup) = (pod.netns().name().to_owned(), pod.cgroup().parent().map(Path::to_owned));
        drop(pod);
        let gone = cgroup::remove_tree(&pod_cgroup.expect("a container's cgroup is in its pod's"));
        if let Err(error) = gone.and_then(|()| netns::remove(&netns)) {
            panic!("deleting a pod: {error:#}");
        }
    }

    /// A pod that comes after another one and has its network, and with that its addresses.
    ///
    /// # Panics
    /// When its cgroup cannot be made.
    pub fn successor(&self, pod: &Pod) -> Pod {
        let (uid, container) = (uid(), container_id());
        let path = self.world.driver.container(Qos::BestEffort, &uid, &container);
        let place = self.place(pod.netns(), path.to_str().expect("ascii"));
        Pod { place, uid, container, ..pod.clone() }
    }

    /// Ends a pod, but leaves its network to its successor.
    ///
    /// # Panics
    /// When something of it remains.
    #[track_caller]
    pub fn end(&self, pod: Pod) {
        let cgroup = pod.cgroup().parent().expect("a container's cgroup is in its pod's").to_owned();
        drop(pod);
        if let Err(error) = cgroup::remove_tree(&cgroup) {
            panic!("ending a pod: {error:#}");
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

    /// A namespace that a scenario laid beside the world's own, outside kubepods.
    pub fn place_in(&self, netns: &Netns, cgroup: &str) -> Place {
        self.place(netns, cgroup)
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

/// Holds the machine for a test that needs it alone, until dropped: two loads at a time measure
/// nothing.
///
/// # Panics
/// When the lock file cannot be made, and in a guest of the vm tier, where such tests do not belong.
pub fn alone() -> impl Drop {
    assert!(
        !kernel::in_a_guest(),
        "rates, counts and volumes stay on the host tier: name this scenario in xtask/src/vm/scenarios.rs"
    );
    let path = tools::target_dir().join("hnp-tests-alone.lock");
    let file =
        fs::File::options().create(true).append(true).open(&path).expect("the target directory is ours");
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .expect("locks can be had")
}

/// Lower-case letters, digits and dashes, short enough for a file name beside a prefix.
fn slug(test: &str) -> String {
    test.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect()
}

/// Thousands of sockets are held at a time; the soft limit is often 1024.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
