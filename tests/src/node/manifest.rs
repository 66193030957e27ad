//! A DaemonSet's manifest as a kubelet reads it: what it says becomes the words of the runtime interface.
//!
//! So that what starts here is what `deploy/` says, down to each setting of its security context. A key that is not known
//! here fails the test, wherever in the pod it is: the pod would be another one with it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::proto;

/// What kubelets hide from containers, and what they make read-only in them (`procMount: Default`).
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Keys of a pod that are for the scheduler, the API server or the one who pulls images: they change nothing in the pod.
const OF_OTHERS: [&str; 7] = [
    "serviceAccountName",
    "imagePullSecrets",
    "priorityClassName",
    "nodeSelector",
    "tolerations",
    "affinity",
    "terminationGracePeriodSeconds",
];
/// What the service account's files are mounted as, where a pod has them.
pub(super) const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The pod that a DaemonSet makes, with its one container, and the ConfigMaps beside it.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// `spec.template.spec`
    pod: Value,
    /// `spec.template.metadata.annotations`
    annotations: Value,
    /// `namespace/name` of the DaemonSet.
    name: String,
    maps: Vec<Value>,
}

/// What a volume of a pod is on the node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Source {
    /// A path of the node, of a `hostPath.type`.
    Node(PathBuf, String),
    /// Files of a ConfigMap, with its name.
    Map(String),
    /// Files of a Secret, with their mode.
    Secret(u32),
    /// Nothing yet.
    Empty,
}

/// How a kubelet asks a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Probe {
    /// A command in it ends well, in so many seconds.
    Exec(Vec<String>, i64),
    /// A port of the pod takes connections.
    Port(u16),
}

impl Manifest {
    /// The DaemonSet of a file, among whatever else is in it.
    ///
    /// # Panics
    /// When there is none, the file is no YAML, or the pod has what is not known here.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        let yaml =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // An API server's YAML is 1.1, where 0400 is octal.
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(&yaml, options)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let set = documents.iter().find(|document| document["kind"] == "DaemonSet");
        let set = set.unwrap_or_else(|| panic!("{} has no DaemonSet", path.display()));
        let template = &set["spec"]["template"];
        let manifest = Self {
            pod: template["spec"].clone(),
            annotations: template["metadata"]["annotations"].clone(),
            name: format!("{}/{}", text(&set["metadata"]["namespace"]), text(&set["metadata"]["name"])),
            maps: documents.iter().filter(|document| document["kind"] == "ConfigMap").cloned().collect(),
        };
        manifest.check();
        manifest
    }

    /// What nobody here reads, another pod would be made without.
    #[track_caller]
    fn check(&self) {
        let own = [
            "automountServiceAccountToken",
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "dnsPolicy",
            "securityContext",
            "containers",
            "volumes",
        ];
        known(&self.pod, &[&own[..], &OF_OTHERS].concat());
        known(&self.pod["securityContext"], &["seccompProfile", "runAsNonRoot", "runAsUser", "fsGroup"]);
        assert_eq!(list(&self.pod["containers"]).len(), 1, "one container is known here");
        known(
            self.container(),
            &[
                "name",
                "image",
                "imagePullPolicy",
                "command",
                "args",
                "env",
                "securityContext",
                "livenessProbe",
                "readinessProbe",
                "resources",
                "volumeMounts",
            ],
        );
        known(
            &self.container()["securityContext"],
            &[
                "runAsUser",
                "privileged",
                "allowPrivilegeEscalation",
                "readOnlyRootFilesystem",
                "capabilities",
                "seccompProfile",
                "appArmorProfile",
                "seLinuxOptions",
            ],
        );
        known(&self.container()["resources"], &["requests", "limits"]);
        known(&self.container()["resources"]["limits"], &["cpu", "memory"]);
        let image = text(&self.container()["image"]);
        assert!(image.ends_with(concat!("hnp-agent:", env!("CARGO_PKG_VERSION"))), "the image {image}");
        for probe in ["livenessProbe", "readinessProbe"] {
            self.probe(probe);
        }
        for volume in list(&self.pod["volumes"]) {
            source(volume);
        }
    }

    /// `namespace/name` of the DaemonSet.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A file of one of the ConfigMaps beside it: `hnp.yaml`.
    pub fn file(&self, file: &str) -> Option<&str> {
        self.maps.iter().find_map(|map| map["data"][file].as_str())
    }

    /// The same with a limit: `cpu`, `100m`.
    #[must_use]
    pub fn limit(mut self, resource: &str, value: &str) -> Self {
        self.pod["containers"][0]["resources"]["limits"][resource] = value.into();
        self
    }

    /// The same without a volume and what is mounted of it.
    #[must_use]
    pub fn without_volume(mut self, name: &str) -> Self {
        for list in ["/volumes", "/containers/0/volumeMounts"] {
            if let Some(Value::Array(entries)) = self.pod.pointer_mut(list) {
                entries.retain(|entry| entry["name"] != name);
            }
        }
        self
    }

    /// The same without a capability.
    #[must_use]
    pub fn without_capability(mut self, name: &str) -> Self {
        let added = "/containers/0/securityContext/capabilities/add";
        if let Some(Value::Array(entries)) = self.pod.pointer_mut(added) {
            entries.retain(|entry| entry != name);
        }
        self
    }

    /// The capabilities it adds.
    pub fn capabilities(&self) -> Vec<String> {
        texts(&self.container()["securityContext"]["capabilities"]["add"])
    }

    /// Whether the pod is in the node's network.
    pub fn has_the_nodes_network(&self) -> bool {
        self.pod["hostNetwork"] == true
    }

    /// Whether it has the service account's files.
    pub(super) fn has_account(&self) -> bool {
        self.pod["automountServiceAccountToken"] != false
    }

    /// The group that volumes' files are given, beside root.
    pub(super) fn group(&self) -> Option<u32> {
        let group = self.pod["securityContext"]["fsGroup"].as_u64();
        group.map(|group| group.try_into().expect("a group"))
    }

    /// Its volumes by name.
    pub(super) fn volumes(&self) -> Vec<(String, Source)> {
        let volumes = list(&self.pod["volumes"]);
        volumes.iter().map(|volume| (text(&volume["name"]).to_owned(), source(volume))).collect()
    }

    /// What a kubelet asks: `livenessProbe`, `readinessProbe`.
    ///
    /// # Panics
    /// When it asks in a way that is not known here.
    #[track_caller]
    pub(super) fn probe(&self, kind: &str) -> Option<Probe> {
        let probe = &self.container()[kind];
        known(probe, &["exec", "tcpSocket", "periodSeconds", "timeoutSeconds", "failureThreshold"]);
        known(&probe["exec"], &["command"]);
        known(&probe["tcpSocket"], &["port"]);
        if probe.is_null() {
            return None;
        }
        // A kubelet's own default.
        let seconds = probe["timeoutSeconds"].as_i64().unwrap_or(1);
        Some(match probe["tcpSocket"]["port"].as_u64() {
            Some(port) => Probe::Port(port.try_into().expect("a port")),
            None => Probe::Exec(texts(&probe["exec"]["command"]), seconds),
        })
    }

    /// The container's name.
    pub fn container_name(&self) -> &str {
        text(&self.container()["name"])
    }

    fn container(&self) -> &Value {
        &self.pod["containers"][0]
    }

    /// Of the container's security context, or of the pod's.
    fn security(&self, key: &str) -> &Value {
        let own = &self.container()["securityContext"][key];
        if own.is_null() { &self.pod["securityContext"][key] } else { own }
    }

    fn namespaces(&self) -> proto::NamespaceOption {
        let of_node = |key: &str, own: i32| if self.pod[key] == true { proto::NODE } else { own };
        proto::NamespaceOption {
            network: of_node("hostNetwork", 0),
            pid: of_node("hostPID", proto::CONTAINER),
            ipc: of_node("hostIPC", 0),
        }
    }

    /// For the sandbox.
    pub(super) fn sandbox(&self) -> proto::LinuxSandboxSecurityContext {
        proto::LinuxSandboxSecurityContext {
            namespace_options: Some(self.namespaces()),
            selinux_options: self.selinux(),
            supplemental_groups: self.group().map(i64::from).into_iter().collect(),
            privileged: self.container()["securityContext"]["privileged"] == true,
            seccomp: self.seccomp(),
        }
    }

    /// For the container.
    ///
    /// # Panics
    /// Where the manifest says what is not known here, or what a kubelet refuses.
    pub(super) fn linux(&self) -> proto::LinuxContainerConfig {
        let context = &self.container()["securityContext"];
        let privileged = context["privileged"] == true;
        let unless_privileged = |paths: &[&str]| {
            let paths = if privileged { &[] } else { paths };
            paths.iter().map(|path| (*path).to_owned()).collect()
        };
        let user = self.security("runAsUser").as_i64();
        // The image's own user is root.
        let root = user.unwrap_or(0) == 0;
        assert!(!(root && self.security("runAsNonRoot") == true), "runAsNonRoot, and root");
        let limits = &self.container()["resources"]["limits"];
        let resources = proto::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: limits["cpu"].as_str().map_or(0, |cpu| millis(cpu) * 100),
            cpu_shares: 2,
            memory_limit_in_bytes: limits["memory"].as_str().map_or(0, mebibytes),
            oom_score_adj: -997,
        };
        proto::LinuxContainerConfig {
            resources: Some(resources),
            security_context: Some(proto::LinuxContainerSecurityContext {
                capabilities: Some(proto::Capability {
                    add_capabilities: self.capabilities(),
                    drop_capabilities: texts(&context["capabilities"]["drop"]),
                }),
                privileged,
                namespace_options: Some(self.namespaces()),
                selinux_options: self.selinux(),
                run_as_user: user.map(|value| proto::Int64Value { value }),
                readonly_rootfs: context["readOnlyRootFilesystem"] == true,
                supplemental_groups: self.group().map(i64::from).into_iter().collect(),
                no_new_privs: context["allowPrivilegeEscalation"] == false,
                masked_paths: unless_privileged(&MASKED),
                readonly_paths: unless_privileged(&READ_ONLY),
                seccomp: self.seccomp(),
                apparmor: self.app_armor(),
            }),
        }
    }

    fn seccomp(&self) -> Option<proto::SecurityProfile> {
        Some(profile(self.security("seccompProfile")["type"].as_str(), "seccompProfile"))
    }

    /// By the field, or the annotation that Kubernetes had before 1.30. What is not said is the runtime's to decide.
    fn app_armor(&self) -> Option<proto::SecurityProfile> {
        let field = self.container()["securityContext"]["appArmorProfile"]["type"].as_str();
        let key = format!("container.apparmor.security.beta.kubernetes.io/{}", self.container_name());
        let said = match self.annotations[&key].as_str() {
            Some("unconfined") => Some("Unconfined"),
            Some(other) => panic!("{key}: {other} is not known here"),
            None => field,
        };
        said.map(|said| profile(Some(said), "appArmorProfile"))
    }

    /// Whether AppArmor is to leave the container alone.
    pub fn wants_no_app_armor(&self) -> bool {
        self.app_armor() == Some(proto::SecurityProfile { profile_type: proto::UNCONFINED })
    }

    fn selinux(&self) -> Option<proto::SeLinuxOption> {
        let options = &self.container()["securityContext"]["seLinuxOptions"];
        known(options, &["type"]);
        options["type"].as_str().map(|kind| proto::SeLinuxOption { kind: kind.to_owned() })
    }

    /// Whether it names a type of SELinux'.
    pub fn has_se_linux_options(&self) -> bool {
        self.selinux().is_some()
    }

    /// The container's words and variables.
    ///
    /// # Panics
    /// Where a variable comes from what is not known here.
    pub(super) fn program(&self, node: &str) -> (Vec<String>, Vec<String>, Vec<proto::KeyValue>) {
        let container = self.container();
        let variable = |entry: &Value| {
            known(entry, &["name", "value", "valueFrom"]);
            let from = &entry["valueFrom"]["fieldRef"]["fieldPath"];
            let value = match (entry["value"].as_str(), from.as_str()) {
                (Some(value), None) => value,
                (None, Some("spec.nodeName")) => node,
                other => panic!("a variable of {other:?} is not known here"),
            };
            proto::KeyValue { key: text(&entry["name"]).to_owned(), value: value.to_owned() }
        };
        let env = list(&container["env"]).iter().map(variable).collect();
        (texts(&container["command"]), texts(&container["args"]), env)
    }

    /// The container's mounts. `laid` gives the path on the node where a volume lies, by its name.
    ///
    /// # Panics
    /// Where there is no such volume.
    pub(super) fn mounts(&self, laid: &dyn Fn(&str) -> PathBuf) -> Vec<proto::Mount> {
        let volumes = list(&self.pod["volumes"]);
        let mount = |entry: &Value| {
            known(entry, &["name", "mountPath", "readOnly", "mountPropagation"]);
            let name = text(&entry["name"]);
            assert!(volumes.iter().any(|volume| volume["name"] == name), "no volume {name}");
            proto::Mount {
                container_path: text(&entry["mountPath"]).to_owned(),
                host_path: laid(name).to_str().expect("our own paths are UTF-8").to_owned(),
                readonly: entry["readOnly"] == true,
                propagation: match entry["mountPropagation"].as_str() {
                    None | Some("None") => 0,
                    Some("HostToContainer") => 1,
                    Some("Bidirectional") => 2,
                    Some(other) => panic!("mountPropagation {other} is not known here"),
                },
            }
        };
        list(&self.container()["volumeMounts"]).iter().map(mount).collect()
    }
}

#[track_caller]
fn source(volume: &Value) -> Source {
    known(volume, &["name", "hostPath", "configMap", "secret", "emptyDir"]);
    known(&volume["hostPath"], &["path", "type"]);
    known(&volume["configMap"], &["name"]);
    known(&volume["secret"], &["secretName", "defaultMode"]);
    // Who goes beyond sizeLimit is evicted, which nobody here does.
    known(&volume["emptyDir"], &["medium", "sizeLimit"]);
    if let Some(path) = volume["hostPath"]["path"].as_str() {
        let kind = volume["hostPath"]["type"].as_str().unwrap_or_default();
        let there = ["", "Directory", "DirectoryOrCreate", "File", "Socket"];
        assert!(there.contains(&kind), "hostPath.type {kind} is not known here");
        return Source::Node(PathBuf::from(path), kind.to_owned());
    }
    if let Some(name) = volume["configMap"]["name"].as_str() {
        return Source::Map(name.to_owned());
    }
    if volume["secret"]["secretName"].is_string() {
        let mode = volume["secret"]["defaultMode"].as_u64().unwrap_or(0o644);
        return Source::Secret(mode.try_into().expect("a mode"));
    }
    assert!(volume["emptyDir"].is_object(), "the volume {volume} is not known here");
    Source::Empty
}

/// A profile by its `type`. What a kubelet takes where nothing is said is none.
#[track_caller]
fn profile(kind: Option<&str>, key: &str) -> proto::SecurityProfile {
    let profile_type = match kind {
        Some("RuntimeDefault") => proto::RUNTIME_DEFAULT,
        Some("Unconfined") | None => proto::UNCONFINED,
        Some(other) => panic!("{key} {other} is not known here"),
    };
    proto::SecurityProfile { profile_type }
}

/// A key that is overlooked would make another pod than the manifest says.
#[track_caller]
fn known(object: &Value, keys: &[&str]) {
    for key in object.as_object().into_iter().flat_map(|object| object.keys()) {
        assert!(keys.contains(&key.as_str()), "{key} in {object} is not known here");
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn texts(value: &Value) -> Vec<String> {
    list(value).iter().map(|entry| text(entry).to_owned()).collect()
}

#[track_caller]
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// Thousandths of a processor: `100m`, `2`.
fn millis(cpu: &str) -> i64 {
    let whole = |text: &str| text.parse::<i64>().unwrap_or_else(|_| panic!("cpu: {cpu} is not known here"));
    cpu.strip_suffix('m').map_or_else(|| whole(cpu) * 1000, whole)
}

/// Bytes of `128Mi`.
fn mebibytes(memory: &str) -> i64 {
    let number = memory.strip_suffix("Mi").and_then(|number| number.parse::<i64>().ok());
    number.unwrap_or_else(|| panic!("memory: {memory} is not known here")) << 20
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_daemonset_that_ships_is_understood_to_its_last_setting() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/hnp.yaml");
        let manifest = Manifest::read(&path).limit("cpu", "100m").limit("memory", "128Mi");
        let linux = manifest.linux();
        let (resources, context) = (linux.resources.expect("set"), linux.security_context.expect("set"));
        assert_eq!((resources.cpu_quota, resources.memory_limit_in_bytes), (10_000, 128 << 20));
        assert!(context.readonly_rootfs && context.no_new_privs && !context.privileged);
        let capabilities = context.capabilities.expect("set");
        assert_eq!(capabilities.drop_capabilities, ["ALL"]);
        assert_eq!(capabilities.add_capabilities, ["BPF", "NET_ADMIN"]);
        assert_eq!(context.namespace_options.expect("set").network, proto::NODE);
        let mounts = manifest.mounts(&|name| PathBuf::from("/laid").join(name));
        let bpffs = mounts.iter().find(|mount| mount.container_path == "/sys/fs/bpf").expect("mounted");
        assert_eq!((bpffs.propagation, bpffs.readonly), (1, false));
        assert!(mounts.iter().any(|mount| mount.host_path == "/laid/config" && mount.readonly));
        let volumes = manifest.volumes();
        let of = |name: &str| volumes.iter().find(|(of, _)| of == name).map(|(_, source)| source.clone());
        assert_eq!(of("run"), Some(Source::Node("/run/hnp".into(), "DirectoryOrCreate".to_owned())));
        assert_eq!(of("client"), Some(Source::Secret(0o400)));
        assert_eq!(of("config"), Some(Source::Map("hnp-agent".to_owned())));
        assert!(manifest.wants_no_app_armor() && manifest.has_account());
        let ready = ["/hnp-agent", "status", "--run-dir", "/run/hnp", "--probe", "ready"];
        assert_eq!(manifest.probe("readinessProbe"), Some(Probe::Exec(ready.map(str::to_owned).into(), 5)));
        assert!(manifest.file("hnp.yaml").is_some_and(|text| text.contains("upstream:")));
        assert_eq!(manifest.program("worker").2[0].value, "worker");
    }

    #[test]
    #[should_panic(expected = "procMount")]
    fn a_setting_that_nobody_reads_is_no_setting() {
        known(&json!({"runAsUser": 0, "procMount": "Unmasked"}), &["runAsUser"]);
    }

    #[test]
    #[should_panic(expected = "projected")]
    fn a_volume_of_another_kind_is_none() {
        source(&json!({"name": "token", "projected": {"sources": []}}));
    }
}
