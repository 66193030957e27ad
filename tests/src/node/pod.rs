//! Pods as a kubelet makes them: a cgroup below kubepods by the pod's uid, a log folder by its namespace and name, a
//! sandbox, a container.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use super::cri::Cri;
use super::{CLIENT_IMAGE, LOAD_IMAGE, Node, proto};
use crate::cgroup;
use crate::client::Job;
use crate::poll::until;
use crate::process::tail;

/// Who a pod is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Spec {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// The words of its program.
    pub args: Vec<String>,
    image: &'static str,
}

impl Spec {
    /// A pod that does one POST and ends: to an address and port, for a host, to a path.
    pub fn post(namespace: &str, name: &str, to: (&str, u16), host: &str, path: &str) -> Self {
        let args = [to.0, &to.1.to_string(), host, path, "first act"].map(str::to_owned).to_vec();
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Self { namespace, name, labels: Vec::new(), args, image: CLIENT_IMAGE }
    }

    /// A pod that does a job of the load client's and ends; it writes the report.
    pub fn load(namespace: &str, name: &str, job: &Job) -> Self {
        let args = vec![serde_json::to_string(job).expect("jobs are plain data")];
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Self { namespace, name, labels: Vec::new(), args, image: LOAD_IMAGE }
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// A pod with one container. It is the caller's to remove; what is left ends with the node.
#[derive(Debug)]
pub struct Pod {
    /// The pod's uid, as the API would show it.
    pub uid: String,
    /// The container's id.
    pub container: String,
    /// The container's cgroup, as the node sees it.
    pub cgroup: String,
    pub(super) sandbox: String,
    pub(super) log: PathBuf,
    pub(super) class: &'static str,
    /// When the runtime was asked to start the container.
    started: SystemTime,
}

/// How a container was and ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: i32,
    /// From the moment in which the runtime was asked to start its program to the program's end: no less than it lived. (The
    /// runtime notes the start when it has seen it, which can be after the end.)
    pub lived: Duration,
    /// What it wrote.
    pub output: String,
}

impl Node<'_> {
    /// Runs a pod to its end and removes it.
    ///
    /// # Errors
    /// When a step of it fails, with the runtime's words.
    pub fn run(&self, spec: &Spec) -> Result<(Pod, Ended)> {
        let cri = self.connect();
        let pod = self.start_pod(&cri, spec)?;
        let ended = self.wait(&cri, &pod)?;
        self.remove(&cri, &pod)?;
        Ok((pod, ended))
    }

    /// Runs a pod to its end, and leaves it as one that has ended: the runtime knows of it until it is [forgotten](Self::forget),
    /// as for a while on a node with a kubelet.
    ///
    /// # Errors
    /// When a step of it fails, with the runtime's words.
    pub fn run_and_keep(&self, spec: &Spec) -> Result<(Pod, Ended)> {
        let cri = self.connect();
        let pod = self.start_pod(&cri, spec)?;
        let ended = self.wait(&cri, &pod)?;
        cri.stop_sandbox(&pod.sandbox)?;
        Ok((pod, ended))
    }

    /// Removes what is left of a pod.
    ///
    /// # Errors
    /// When a step of it fails, with the runtime's words.
    pub fn forget(&self, pod: &Pod) -> Result<()> {
        self.remove(&self.connect(), pod)
    }

    fn start_pod(&self, cri: &Cri, spec: &Spec) -> Result<Pod> {
        let own = proto::NamespaceOption { network: 0, pid: proto::CONTAINER, ipc: 0 };
        let sandbox = proto::LinuxSandboxSecurityContext {
            namespace_options: Some(own.clone()),
            ..proto::LinuxSandboxSecurityContext::default()
        };
        let container = proto::ContainerConfig {
            metadata: Some(proto::ContainerMetadata { name: "job".to_owned() }),
            image: Some(proto::ImageSpec { image: spec.image.to_owned() }),
            args: spec.args.clone(),
            linux: Some(proto::LinuxContainerConfig {
                resources: Some(proto::LinuxContainerResources {
                    cpu_shares: 2,
                    oom_score_adj: 1000,
                    ..proto::LinuxContainerResources::default()
                }),
                security_context: Some(proto::LinuxContainerSecurityContext {
                    namespace_options: Some(own),
                    ..proto::LinuxContainerSecurityContext::default()
                }),
            }),
            ..proto::ContainerConfig::default()
        };
        self.make(cri, &spec.namespace, &spec.name, &spec.labels, "besteffort", sandbox, container)
    }

    /// What a kubelet does to start a pod, in its order.
    #[expect(clippy::too_many_arguments, reason = "all that a kubelet tells the runtime of a pod")]
    pub(super) fn make(
        &self,
        cri: &Cri,
        namespace: &str,
        name: &str,
        labels: &[(String, String)],
        class: &'static str,
        sandbox: proto::LinuxSandboxSecurityContext,
        mut container: proto::ContainerConfig,
    ) -> Result<Pod> {
        let uid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("a uid")?.trim().to_owned();
        let folder = format!("/var/log/pods/{namespace}_{name}_{uid}");
        let of_container = container.metadata.as_ref().map_or("", |metadata| &metadata.name).to_owned();
        let own: HashMap<String, String> = [
            ("io.kubernetes.pod.name", name),
            ("io.kubernetes.pod.namespace", namespace),
            ("io.kubernetes.pod.uid", &uid),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let parent = format!("/kubepods/{class}/pod{uid}");
        cgroup::create(&self.path("/sys/fs/cgroup").join(&parent[1..]))?;
        fs::create_dir_all(self.path(&folder).join(&of_container)).context("the log folder")?;
        let network = sandbox.namespace_options.as_ref().map_or(0, |options| options.network);
        let config = proto::PodSandboxConfig {
            metadata: Some(proto::PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: namespace.to_owned(),
            }),
            // A pod with the node's network has the node's name.
            hostname: if network == proto::NODE { String::new() } else { name.to_owned() },
            log_directory: folder.clone(),
            labels: own.clone().into_iter().chain(labels.iter().cloned()).collect(),
            linux: Some(proto::LinuxPodSandboxConfig {
                cgroup_parent: parent.clone(),
                security_context: Some(sandbox),
            }),
        };
        let sandbox = cri.run_sandbox(&config)?;
        container.labels = own;
        container.labels.insert("io.kubernetes.container.name".to_owned(), of_container.clone());
        container.log_path = format!("{of_container}/0.log");
        let log = self.path(&folder).join(&container.log_path);
        let container = cri.create(&sandbox, &config, container)?;
        let started = SystemTime::now();
        cri.start(&container)?;
        let cgroup = format!("{parent}/{container}");
        Ok(Pod { uid, container, cgroup, sandbox, log, class, started })
    }

    fn wait(&self, cri: &Cri, pod: &Pod) -> Result<Ended> {
        let what = format!("pod {} ends", pod.uid);
        let (status, _) = until(Duration::from_secs(120), &what, || {
            let status = cri.status(&pod.container);
            status.map(|status| (status.state == proto::EXITED).then_some(status)).transpose()
        });
        let status = status?;
        let finished = Duration::from_nanos(status.finished_at.try_into().context("a time before 1970")?);
        let lived = (SystemTime::UNIX_EPOCH + finished).duration_since(pod.started);
        Ok(Ended {
            status: status.exit_code,
            lived: lived.context("the clock was set back")?,
            output: pod.output(),
        })
    }

    /// Ends a pod and removes it, as a kubelet would: its cgroup, too, and its log.
    pub(super) fn remove(&self, cri: &Cri, pod: &Pod) -> Result<()> {
        cri.remove_sandbox(&pod.sandbox)?;
        let cgroup = format!("/sys/fs/cgroup/kubepods/{}/pod{}", pod.class, pod.uid);
        cgroup::remove_tree(&self.path(&cgroup))?;
        let folder = pod.log.parent().and_then(std::path::Path::parent).context("a log has a folder")?;
        fs::remove_dir_all(folder).context("the log folder")
    }
}

impl Pod {
    /// What its program has written, on either stream: the text of the runtime's log.
    pub fn output(&self) -> String {
        self.stream(None)
    }

    /// What it has written on one stream: `stdout`, `stderr`.
    pub(super) fn stream(&self, wanted: Option<&str>) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let mut output = String::new();
        for line in text.unwrap_or_default().lines() {
            // TIME STREAM F|P TEXT: a long line comes in parts, of which the last one is F.
            let mut fields = line.splitn(4, ' ');
            let (_, stream, tag) = (fields.next(), fields.next(), fields.next());
            if wanted.is_some() && stream != wanted {
                continue;
            }
            output.push_str(fields.next().unwrap_or_default());
            if tag != Some("P") {
                output.push('\n');
            }
        }
        output
    }

    /// The last of its words, for a message.
    pub fn last_words(&self) -> String {
        tail(&self.output()).to_owned()
    }
}
