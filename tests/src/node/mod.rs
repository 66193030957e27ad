//! A node with real pods: containerd, runc and CNI plugins on the node of a [`Topology`], in mounts, process ids and a
//! cgroup root of its own.
//!
//! The test is the kubelet: it says to the container runtime interface what a kubelet says, and keeps the cgroups and log
//! folders as one does. The runtime and the images are brought by `cargo xtask test --tier node`. All of it ends with the
//! node's first process, and what is left in the world's cgroup ends with the world.

mod agent;
mod cri;
mod limits;
mod manifest;
mod pod;
mod proto;
mod relay;

pub use self::agent::{AgentPod, config};
pub use self::limits::{HIERARCHIES, Limits, Usage};
pub use self::manifest::Manifest;
pub use self::pod::{Ended, Pod, Spec};
pub use self::relay::Relay;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use self::cri::Cri;
use crate::api_server::Cluster;
use crate::poll::until;
use crate::process::{Running, tail};
use crate::tools;
use crate::topology::Topology;

/// Names the folder that the packages of the runtime were unpacked into.
pub const PACKAGES: &str = "HNP_NODE_PACKAGES";
/// Names the folder with the images: `hnp-agent.tar` and those of the test's own pods.
pub const IMAGES: &str = "HNP_NODE_IMAGES";
/// Names the folder with the chart's renderings: `plain-1.30.yaml`.
pub const RENDERINGS: &str = "HNP_NODE_RENDERINGS";

/// What test pods run that make a load: the test kit's client, with a job as its argument.
const LOAD_IMAGE: &str = "localhost/hnp-test-load:1";
/// What other test pods run: `tests/clients/static_client.c`.
const CLIENT_IMAGE: &str = "localhost/static_client:1";
/// What sandboxes run: `tests/clients/pause.c`.
const PAUSE_IMAGE: &str = "localhost/pause:1";
/// The agent's own.
const AGENT_IMAGE: &str = concat!("localhost/hnp-agent:", env!("CARGO_PKG_VERSION"));

/// A node on which a container runtime runs. Dropping it ends everything on it.
#[derive(Debug)]
pub struct Node<'w> {
    topology: &'w Topology,
    running: Running,
    root: PathBuf,
    /// The files of the service account that pods are given.
    account: Option<PathBuf>,
}

impl<'w> Node<'w> {
    /// Makes a node of the world's: the runtime answers, and the images are there, on return.
    ///
    /// # Panics
    /// When a part of it is missing or does not start; the message says which.
    #[track_caller]
    pub fn start(topology: &'w Topology) -> Self {
        Self::with_files(topology, &[])
    }

    /// The same with files of its own over those of this machine: from where, and to where.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[track_caller]
    pub fn with_files(topology: &'w Topology, files: &[(&Path, &str)]) -> Self {
        let (packages, images) = (brought(PACKAGES), brought(IMAGES));
        let config = topology.path("containerd.toml");
        fs::write(&config, containerd_config(topology, &packages)).expect("the world's directory is ours");
        let network = topology.path("cni");
        fs::create_dir(&network).expect("the world's directory is ours");
        fs::write(network.join("10-hnp.conflist"), NETWORK).expect("the world's directory is ours");
        symlink(tools::sibling("hnp-test-node"), topology.path("hnp-test-runc"))
            .expect("the world's directory is ours");

        let netns = topology.node_netns().clone();
        let libraries = ["usr/lib", "lib"].map(|dir| packages.join(dir).join("x86_64-linux-gnu"));
        let running = topology
            .place_in(&netns, "")
            .command(tools::sibling("hnp-test-node"))
            .arg(in_packages(&packages, "usr/bin/containerd"))
            .arg(&config)
            .args(files.iter().flat_map(|(from, to)| [from.as_os_str(), to.as_ref()]))
            .env("PATH", &path_with(&packages))
            .env("LD_LIBRARY_PATH", &libraries.map(|dir| dir.display().to_string()).join(":"))
            .spawn();
        let mut node = Self { topology, running, root: PathBuf::new(), account: None };
        let (pid, _) = until(Duration::from_secs(30), "the node's first process", || {
            node.check();
            node.running.stdout().lines().next()?.parse::<u32>().ok()
        });
        node.root = PathBuf::from(format!("/proc/{pid}/root"));
        let (cri, took) = until(Duration::from_secs(60), "containerd answers", || {
            node.check();
            Cri::connect(&node.socket()).ok()
        });
        eprintln!("{} after {took:?}", cri.version().expect("it has answered before"));
        for image in ["pause.tar", "static_client.tar", "hnp-test-load.tar", "hnp-agent.tar"] {
            node.import(&packages, &images.join(image));
        }
        node
    }

    /// The same as a node of a cluster: pods are told of its API server, and have its agents' service account.
    #[must_use]
    pub fn in_cluster(mut self, cluster: &Cluster<'_>) -> Self {
        self.account = Some(cluster.account.dir.clone());
        self
    }

    /// The world that it is a node of.
    pub fn topology(&self) -> &Topology {
        self.topology
    }

    /// A path of the node, as this process finds it.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// Whether the node's cgroups have a controller: `cpu`, `memory`.
    pub fn has_controller(&self, name: &str) -> bool {
        let there = fs::read_to_string(self.path("/sys/fs/cgroup/cgroup.controllers")).unwrap_or_default();
        there.split_whitespace().any(|controller| controller == name)
    }

    /// What the runtime has said.
    pub fn log(&self) -> String {
        self.running.stderr()
    }

    fn socket(&self) -> PathBuf {
        self.path("/run/containerd/containerd.sock")
    }

    #[track_caller]
    fn connect(&self) -> Cri {
        Cri::connect(&self.socket()).unwrap_or_else(|error| panic!("{error:#}\n{}", tail(&self.log())))
    }

    #[track_caller]
    fn check(&mut self) {
        assert!(self.running.is_alive(), "the node ended:\n{}", tail(&self.log()));
    }

    #[track_caller]
    fn import(&self, packages: &Path, archive: &Path) {
        let output = Command::new(in_packages(packages, "usr/bin/ctr"))
            .args(["--namespace", "k8s.io", "--address"])
            .arg(self.socket())
            .args(["images", "import"])
            .arg(archive)
            .stdin(Stdio::null())
            .output()
            .expect("ctr starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "importing {}: {said}\n{}", archive.display(), tail(&self.log()));
    }
}

/// A bridge that pods hang on and whose address is their gateway. Nothing is translated: the manager sees who comes.
const NETWORK: &str = r#"{"cniVersion": "0.4.0", "name": "hnp", "plugins": [
    {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": false, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "10.245.0.0/16"}]]}}]}
"#;

fn containerd_config(topology: &Topology, packages: &Path) -> String {
    let plugins = in_packages(packages, "usr/lib/cni/bridge");
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  # A negative value needs CAP_SYS_RESOURCE, which root of a container has not.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{network}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "{runtime}"
"#,
        plugins = plugins.parent().expect("a plugin lies in a folder").display(),
        network = topology.path("cni").display(),
        runtime = topology.path("hnp-test-runc").display(),
    )
}

/// A rendering of the chart, with a values file of its `ci/` and as of a version of Kubernetes: `plain`, `1.30`.
///
/// # Panics
/// When there is none, or it holds what is not known here.
#[track_caller]
pub fn rendering(values: &str, version: &str) -> Manifest {
    Manifest::read(&brought(RENDERINGS).join(format!("{values}-{version}.yaml")))
}

/// The names of the values files that there are renderings of.
///
/// # Panics
/// When the folder cannot be read.
pub fn renderings() -> BTreeSet<String> {
    let files = fs::read_dir(brought(RENDERINGS)).expect("the renderings are there");
    let names = files.map(|file| file.expect("it can be read").file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.rsplit_once('-').map(|(values, _)| values.to_owned())).collect()
}

#[track_caller]
fn brought(variable: &str) -> PathBuf {
    std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
        panic!("{variable} is not set: the node tier needs what `cargo xtask test --tier node` brings")
    })
}

/// A file of the packages, or of the system where it was there before.
fn in_packages(packages: &Path, file: &str) -> PathBuf {
    let unpacked = packages.join(file);
    if unpacked.is_file() { unpacked } else { Path::new("/").join(file) }
}

fn path_with(packages: &Path) -> String {
    let own = ["usr/bin", "usr/sbin"].map(|dir| packages.join(dir).display().to_string()).join(":");
    format!("{own}:/usr/sbin:/usr/bin:/sbin:/bin")
}
