//! A DaemonSet's manifest as a kubelet reads it: what it says becomes the words of the runtime interface.
//!
//! So that what starts here is what `deploy/` says, down to each setting of its security context. A key that a pod
//! would be another one with and that is not known here fails the test.

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

/// The pod that a DaemonSet makes, with its first container.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// `spec.template.spec`
    pod: Value,
}

impl Manifest {
    /// The DaemonSet of a file, among whatever else is in it.
    ///
    /// # Panics
    /// When there is none, or the file is no YAML.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let set = documents.into_iter().find(|document| document["kind"] == "DaemonSet");
        let set = set.unwrap_or_else(|| panic!("{} has no DaemonSet", path.display()));
        Self { pod: set["spec"]["template"]["spec"].clone() }
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

    /// Directories of the node that the pod wants made if they are not there.
    pub fn directories(&self) -> Vec<PathBuf> {
        let volumes = list(&self.pod["volumes"]);
        let made = volumes.iter().filter(|volume| volume["hostPath"]["type"] == "DirectoryOrCreate");
        made.map(|volume| PathBuf::from(text(&volume["hostPath"]["path"]))).collect()
    }

    /// The container's name.
    pub fn container_name(&self) -> &str {
        text(&self.container()["name"])
    }

    fn container(&self) -> &Value {
        &self.pod["containers"][0]
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
            privileged: self.container()["securityContext"]["privileged"] == true,
            seccomp: self.seccomp(),
        }
    }

    /// For the container. `volume` gives the directory that stands for a ConfigMap or a Secret, by its name.
    ///
    /// # Panics
    /// Where the manifest says what is not known here.
    pub(super) fn linux(&self) -> proto::LinuxContainerConfig {
        let context = &self.container()["securityContext"];
        known(
            context,
            &[
                "runAsUser",
                "privileged",
                "allowPrivilegeEscalation",
                "readOnlyRootFilesystem",
                "capabilities",
                "seccompProfile",
                "runAsNonRoot",
                "runAsGroup",
                "appArmorProfile",
                "seLinuxOptions",
            ],
        );
        let privileged = context["privileged"] == true;
        let unless_privileged = |paths: &[&str]| {
            let paths = if privileged { &[] } else { paths };
            paths.iter().map(|path| (*path).to_owned()).collect()
        };
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
                    add_capabilities: texts(&context["capabilities"]["add"]),
                    drop_capabilities: texts(&context["capabilities"]["drop"]),
                }),
                privileged,
                namespace_options: Some(self.namespaces()),
                run_as_user: context["runAsUser"].as_i64().map(|value| proto::Int64Value { value }),
                readonly_rootfs: context["readOnlyRootFilesystem"] == true,
                no_new_privs: context["allowPrivilegeEscalation"] == false,
                masked_paths: unless_privileged(&MASKED),
                readonly_paths: unless_privileged(&READ_ONLY),
                seccomp: self.seccomp(),
            }),
        }
    }

    fn seccomp(&self) -> Option<proto::SecurityProfile> {
        let own = &self.container()["securityContext"]["seccompProfile"]["type"];
        let pods = &self.pod["securityContext"]["seccompProfile"]["type"];
        let profile_type = match own.as_str().or(pods.as_str()) {
            Some("RuntimeDefault") => 0,
            // What a kubelet takes where nothing is said.
            Some("Unconfined") | None => 1,
            Some(other) => panic!("seccompProfile {other} is not known here"),
        };
        Some(proto::SecurityProfile { profile_type })
    }

    /// The container's words and variables.
    ///
    /// # Panics
    /// Where a variable comes from what is not known here.
    pub(super) fn program(&self, node: &str) -> (Vec<String>, Vec<String>, Vec<proto::KeyValue>) {
        let container = self.container();
        let variable = |entry: &Value| {
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

    /// The container's mounts. `filled` gives the directory that stands for a ConfigMap or a Secret, by the
    /// volume's name.
    ///
    /// # Panics
    /// Where a volume is of a kind that is not known here.
    pub(super) fn mounts(&self, filled: &dyn Fn(&str) -> PathBuf) -> Vec<proto::Mount> {
        let volumes = list(&self.pod["volumes"]);
        let mount = |entry: &Value| {
            known(entry, &["name", "mountPath", "readOnly", "mountPropagation"]);
            let name = text(&entry["name"]);
            let volume = volumes.iter().find(|volume| volume["name"] == name);
            let volume = volume.unwrap_or_else(|| panic!("no volume {name}"));
            let host_path = match &volume["hostPath"]["path"] {
                Value::String(path) => PathBuf::from(path),
                _ if ["configMap", "secret"].iter().any(|kind| volume.get(kind).is_some()) => filled(name),
                _ => panic!("the volume {volume} is not known here"),
            };
            proto::Mount {
                container_path: text(&entry["mountPath"]).to_owned(),
                host_path: host_path.to_str().expect("our own paths are UTF-8").to_owned(),
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
        let mounts = manifest.mounts(&|name| PathBuf::from("/filled").join(name));
        let bpffs = mounts.iter().find(|mount| mount.container_path == "/sys/fs/bpf").expect("mounted");
        assert_eq!((bpffs.propagation, bpffs.readonly), (1, false));
        assert!(mounts.iter().any(|mount| mount.host_path == "/filled/config" && mount.readonly));
        assert!(manifest.directories().contains(&PathBuf::from("/run/hnp")));
        assert_eq!(manifest.program("worker").2[0].value, "worker");
    }

    #[test]
    #[should_panic(expected = "is not known here")]
    fn a_setting_that_nobody_reads_is_no_setting() {
        known(&serde_json::json!({"runAsUser": 0, "procMount": "Unmasked"}), &["runAsUser"]);
    }
}
