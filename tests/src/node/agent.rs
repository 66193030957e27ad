//! The agent as it is deployed: from its own image, as the pod that a manifest of `deploy/` makes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{AGENT_IMAGE, Manifest, NAME, Node, Pod, proto};
use crate::agent::Config;
use crate::poll::{eventually, patience, pause, until};
use crate::scene::{IDENTITY, Scene, TRUST};

/// An agent in a pod of a node.
#[derive(Debug)]
pub struct AgentPod<'a> {
    node: &'a Node<'a>,
    pod: Pod,
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
        let filled = |volume: &str| scene.path("volumes").join(volume);
        fill(scene, config, &filled);
        for directory in manifest.directories() {
            fs::create_dir_all(node.path(&directory.to_string_lossy())).expect("the node's files are ours");
        }
        let (command, args, envs) = manifest.program(NAME);
        let container = proto::ContainerConfig {
            metadata: Some(proto::ContainerMetadata { name: manifest.container_name().to_owned() }),
            image: Some(proto::ImageSpec { image: AGENT_IMAGE.to_owned() }),
            command,
            args,
            envs,
            mounts: manifest.mounts(&filled),
            linux: Some(manifest.linux()),
            ..proto::ContainerConfig::default()
        };
        let cri = node.connect();
        let made = node.make(&cri, "hnp", "hnp-agent-x7k2p", &[], "burstable", manifest.sandbox(), container);
        let pod = made.unwrap_or_else(|error| panic!("the agent's pod: {error:#}"));
        Self { node, pod }
    }

    #[track_caller]
    fn wait_until_ready(&self) {
        let cri = self.node.connect();
        let until = Instant::now() + patience(Duration::from_secs(20));
        let mut last = String::new();
        while Instant::now() < until {
            let status = cri.status(&self.pod.container).unwrap_or_else(|error| panic!("{error:#}"));
            let proto::ContainerStatus { exit_code, reason, message, .. } = &status;
            let words = self.pod.last_words();
            assert!(
                status.state != proto::EXITED,
                "the agent ended: {exit_code} {reason} {message}\n{words}"
            );
            match self.get("/readyz") {
                Ok(text) if text.starts_with("HTTP/1.1 200 ") => return,
                Ok(text) => last = text,
                Err(error) => last = error.to_string(),
            }
            pause();
        }
        panic!("the agent is not ready: {last}\n{}", self.pod.last_words());
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

    /// A file of its own cgroup: `memory.peak`.
    pub fn cgroup_file(&self, name: &str) -> Option<String> {
        let path = format!("/sys/fs/cgroup{}/{name}", self.pod.cgroup);
        fs::read_to_string(self.node.path(&path)).ok()
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

/// What the ConfigMap and the Secret of `deploy/manifests/hnp.yaml` hold.
fn fill(scene: &Scene, config: &Config, filled: &dyn Fn(&str) -> PathBuf) {
    let put = |volume: &str, file: &str, content: Vec<u8>| {
        fs::create_dir_all(filled(volume)).expect("the world's directory is ours");
        fs::write(filled(volume).join(file), content).expect("the world's directory is ours");
    };
    let read = |path: &std::path::Path| fs::read(path).expect("the scene has written it");
    put("config", "hnp.yaml", config.to_yaml().into_bytes());
    put("config", "ca.crt", read(&scene.roots));
    put("client", "client.crt", read(&scene.client.certificate));
    put("client", "client.key", read(&scene.client.key));
}
