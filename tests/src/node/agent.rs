//! The agent as it is deployed: from its own image, as the pod that a manifest of `deploy/` makes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cri::Cri;
use super::manifest::{ACCOUNT, Probe, Source};
use super::{AGENT_IMAGE, Manifest, Node, Pod, proto};
use crate::agent::Config;
use crate::api_server::{ApiServer, NODE};
use crate::poll::{eventually, patience, pause, until};
use crate::scene::{IDENTITY, Scene, TRUST};

/// An agent in a pod of a node.
#[derive(Debug)]
pub struct AgentPod<'a> {
    node: &'a Node<'a>,
    pod: Pod,
    /// Its own, where it has not the node's network.
    address: Option<IpAddr>,
    alive: Option<Probe>,
    ready: Option<Probe>,
}

/// The configuration for an agent in a pod: the paths of `deploy/`, the scene's identity and route, and a trust with these
/// keys.
pub fn config(scene: &Scene, trust: &str) -> Config {
    let mut config = Config::new(scene);
    config.cgroup = PathBuf::from("/sys/fs/cgroup/kubepods");
    config.bpffs = PathBuf::from("/sys/fs/bpf/hnp");
    config.run_dir = PathBuf::from("/run/hnp");
    config.resolver = "min_ttl: 1s".to_owned();
    config
        .identity_with(IDENTITY, "certificate: /etc/mtls/client.crt, key: /etc/mtls/client.key")
        .trust_with(TRUST, trust)
        .route(scene.route())
}

impl<'a> AgentPod<'a> {
    /// Starts the agent by a manifest, and waits until it is ready.
    ///
    /// # Panics
    /// When it ends or is not ready in time; its words are shown.
    #[track_caller]
    pub fn start(node: &'a Node<'a>, scene: &Scene, manifest: &Manifest) -> Self {
        let agent = Self::spawn(node, scene, manifest, &config(scene, "roots: /etc/hnp/ca.crt"));
        agent.wait_until_ready();
        agent
    }

    /// Starts the agent by a manifest and a configuration, and does not wait.
    ///
    /// # Panics
    /// When the runtime cannot start it.
    #[track_caller]
    pub fn spawn(node: &'a Node<'a>, scene: &Scene, manifest: &Manifest, config: &Config) -> Self {
        Self::make(node, scene, manifest, &config.to_yaml())
    }

    /// Starts the agent by a manifest with the configuration that is in it, but for the CA, which is the scene's. Does not
    /// wait.
    ///
    /// # Panics
    /// When there is none in it, or the runtime cannot start it.
    #[track_caller]
    pub fn as_rendered(node: &'a Node<'a>, scene: &Scene, manifest: &Manifest) -> Self {
        let config = manifest.file("hnp.yaml").expect("a rendering has a ConfigMap");
        Self::make(node, scene, manifest, config)
    }

    #[track_caller]
    fn make(node: &'a Node<'a>, scene: &Scene, manifest: &Manifest, config: &str) -> Self {
        let laid = lay_volumes(node, scene, manifest, config);
        let mut mounts = manifest.mounts(&|name| {
            laid.iter().find(|(volume, _)| volume == name).map(|(_, path)| path.clone()).unwrap_or_default()
        });
        let (command, args, mut envs) = manifest.program(NODE);
        if let Some(account) = &node.account {
            let api = ApiServer::address();
            for (key, value) in [("HOST", api.ip().to_string()), ("PORT", api.port().to_string())] {
                envs.push(proto::KeyValue { key: format!("KUBERNETES_SERVICE_{key}"), value });
            }
            if manifest.has_account() {
                mounts.push(proto::Mount {
                    container_path: ACCOUNT.to_owned(),
                    host_path: account.display().to_string(),
                    readonly: true,
                    propagation: 0,
                });
            }
        }
        let container = proto::ContainerConfig {
            metadata: Some(proto::ContainerMetadata { name: manifest.container_name().to_owned() }),
            image: Some(proto::ImageSpec { image: AGENT_IMAGE.to_owned() }),
            command,
            args,
            envs,
            mounts,
            linux: Some(manifest.linux()),
            ..proto::ContainerConfig::default()
        };
        let cri = node.connect();
        let made = node.make(&cri, "hnp", "hnp-agent-x7k2p", &[], "burstable", manifest.sandbox(), container);
        let pod = made.unwrap_or_else(|error| panic!("the agent's pod: {error:#}"));
        let address = cri.address(&pod.sandbox).unwrap_or_else(|error| panic!("{error:#}"));
        let address = address.filter(|_| !manifest.has_the_nodes_network());
        let (alive, ready) = (manifest.probe("livenessProbe"), manifest.probe("readinessProbe"));
        Self { node, pod, address, alive, ready }
    }

    /// Waits until its readiness probe succeeds, and sees that its liveness probe does then.
    ///
    /// # Panics
    /// When it has none, ends, or is not ready within twenty seconds.
    #[track_caller]
    pub fn wait_until_ready(&self) {
        let cri = self.node.connect();
        let until = Instant::now() + patience(Duration::from_secs(20));
        let ready = self.ready.as_ref().expect("who is to become ready is asked for it");
        loop {
            self.check(&cri);
            match self.ask(&cri, ready) {
                Ok(()) => break,
                Err(said) => {
                    let late = Instant::now() > until;
                    assert!(!late, "the agent is not ready: {said}\n{}", self.pod.last_words());
                }
            }
            pause();
        }
        if let Some(alive) = &self.alive {
            let said = self.ask(&cri, alive);
            assert_eq!(said, Ok(()), "it is ready, and not alive");
        }
    }

    /// What its readiness probe says.
    ///
    /// # Errors
    /// When it fails; the probe's words.
    ///
    /// # Panics
    /// When it has none.
    pub fn ready(&self) -> Result<(), String> {
        let ready = self.ready.as_ref().expect("who is to become ready is asked for it");
        self.ask(&self.node.connect(), ready)
    }

    #[track_caller]
    fn check(&self, cri: &Cri) {
        let status = cri.status(&self.pod.container).unwrap_or_else(|error| panic!("{error:#}"));
        let proto::ContainerStatus { exit_code, reason, message, .. } = &status;
        let words = self.pod.last_words();
        assert!(status.state != proto::EXITED, "the agent ended: {exit_code} {reason} {message}\n{words}");
    }

    /// As a kubelet asks.
    fn ask(&self, cri: &Cri, probe: &Probe) -> Result<(), String> {
        match probe {
            Probe::Exec(command, seconds) => {
                let seconds = patience(Duration::from_secs(seconds.unsigned_abs())).as_secs();
                match cri.exec(&self.pod.container, command, seconds.cast_signed()) {
                    Ok((0, _)) => Ok(()),
                    Ok((status, said)) => Err(format!("exit status {status}: {said}")),
                    Err(error) => Err(format!("{error:#}")),
                }
            }
            Probe::Port(port) => {
                let address = SocketAddr::new(self.address.unwrap_or(Ipv4Addr::LOCALHOST.into()), *port);
                let connect = || TcpStream::connect_timeout(&address, patience(Duration::from_secs(1)));
                let connected = self.node.topology().node_netns().run(connect);
                connected.map(drop).map_err(|error| format!("{address}: {error}"))
            }
        }
    }

    /// Its pod's own address; none with the node's network.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Asks the admin port on the node's loopback, as a kubelet's probe does: the whole answer.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn get(&self, path: &str) -> std::io::Result<String> {
        self.node.topology().node_netns().run(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", 15090))?;
            stream.set_read_timeout(Some(patience(Duration::from_secs(5))))?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    /// The pod that it is.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// All access lines so far.
    pub fn access_lines(&self) -> Vec<Value> {
        let lines = self.pod.stream(Some("stdout"));
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until so many access lines of a kind have come, and returns them.
    ///
    /// # Panics
    /// When they have not within ten seconds.
    #[track_caller]
    pub fn wait_for_lines(&self, count: usize, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let what = format!("{count} access lines:\n{}", self.pod.last_words());
        until(Duration::from_secs(10), &what, || {
            let lines: Vec<Value> = self.access_lines().into_iter().filter(&wanted).collect();
            (lines.len() >= count).then_some(lines)
        })
        .0
    }

    /// Waits for words in its diagnostics.
    ///
    /// # Panics
    /// When they do not come within twenty seconds.
    #[track_caller]
    pub fn wait_for_words(&self, words: &str) {
        let what = format!("the agent says {words:?}:\n{}", self.pod.last_words());
        eventually(Duration::from_secs(20), &what, || self.pod.stream(Some("stderr")).contains(words));
    }

    /// The directory of its own cgroup.
    pub fn cgroup(&self) -> PathBuf {
        self.node.path("/sys/fs/cgroup").join(&self.pod.cgroup[1..])
    }

    /// The node that it runs on.
    pub fn node(&self) -> &Node<'a> {
        self.node
    }

    /// Ends it, as a kubelet does: SIGTERM, and SIGKILL after thirty seconds.
    ///
    /// # Panics
    /// When the runtime cannot.
    #[track_caller]
    pub fn stop(self) {
        let cri = self.node.connect();
        let stopped = cri.stop(&self.pod.container, 30).and_then(|()| self.node.remove(&cri, &self.pod));
        stopped.unwrap_or_else(|error| panic!("ending the agent's pod: {error:#}"));
    }
}

impl Drop for AgentPod<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- agent, its pod's words\n{}", self.pod.last_words());
        }
    }
}

/// Lays out a pod's volumes as a kubelet does: where each of them is on the node. The secret is the scene's client certificate.
#[track_caller]
fn lay_volumes(node: &Node<'_>, scene: &Scene, manifest: &Manifest, config: &str) -> Vec<(String, PathBuf)> {
    let put = |path: PathBuf, content: &[u8], mode: u32| {
        // As an update of the files is made: not through what is there.
        let _ = fs::remove_file(&path);
        fs::write(&path, content).expect("the world's directory is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("our own file");
        chown(&path, None, manifest.group()).expect("root may");
    };
    let read = |path: &Path| fs::read(path).expect("the scene has written it");
    let lay = |(name, source): (String, Source)| {
        let own = scene.path("volumes").join(&name);
        fs::create_dir_all(&own).expect("the world's directory is ours");
        let path = match source {
            Source::Node(path, kind) => {
                let here = node.path(&path.to_string_lossy());
                match kind.as_str() {
                    "DirectoryOrCreate" => fs::create_dir_all(&here).expect("the node's files are ours"),
                    "Directory" => assert!(here.is_dir(), "{} is no directory of the node", path.display()),
                    "File" => assert!(here.is_file(), "{} is no file of the node", path.display()),
                    _ => assert!(here.exists(), "{} is not on the node", path.display()),
                }
                path
            }
            Source::Map(_) => {
                put(own.join("hnp.yaml"), config.as_bytes(), 0o644);
                put(own.join("ca.crt"), &read(&scene.roots), 0o644);
                own
            }
            Source::Secret(mode) => {
                put(own.join("client.crt"), &read(&scene.client.certificate), mode);
                put(own.join("client.key"), &read(&scene.client.key), mode);
                own
            }
            Source::Empty => {
                // In memory, as all of the node's /run.
                let path = Path::new("/run/kubelet").join(&name);
                fs::create_dir_all(node.path(&path.to_string_lossy())).expect("the node's files are ours");
                path
            }
        };
        (name, path)
    };
    manifest.volumes().into_iter().map(lay).collect()
}
