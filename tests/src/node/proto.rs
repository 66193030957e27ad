//! Messages of the Container Runtime Interface, v1: those fields that a kubelet sets for such pods as ours.
//!
//! Names and numbers are those of `runtime/v1/api.proto`, the published interface; what is not here is not sent.

use std::collections::HashMap;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field:meta])* $key:ident: $kind:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct $name { $($(#[$field])* pub(super) $key: $kind,)* })*
    };
}

messages! {
    PodSandboxConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<PodSandboxMetadata>,
        #[prost(string, tag = "2")] hostname: String,
        #[prost(string, tag = "3")] log_directory: String,
        #[prost(map = "string, string", tag = "6")] labels: HashMap<String, String>,
        #[prost(message, optional, tag = "8")] linux: Option<LinuxPodSandboxConfig>,
    }
    PodSandboxMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(string, tag = "2")] uid: String,
        #[prost(string, tag = "3")] namespace: String,
    }
    LinuxPodSandboxConfig {
        #[prost(string, tag = "1")] cgroup_parent: String,
        #[prost(message, optional, tag = "2")] security_context: Option<LinuxSandboxSecurityContext>,
    }
    LinuxSandboxSecurityContext {
        #[prost(message, optional, tag = "1")] namespace_options: Option<NamespaceOption>,
        #[prost(message, optional, tag = "2")] selinux_options: Option<SeLinuxOption>,
        #[prost(int64, repeated, tag = "5")] supplemental_groups: Vec<i64>,
        #[prost(bool, tag = "6")] privileged: bool,
        #[prost(message, optional, tag = "9")] seccomp: Option<SecurityProfile>,
    }
    /// 0: the pod's own, 1: the container's own, 2: the node's.
    NamespaceOption {
        #[prost(int32, tag = "1")] network: i32,
        #[prost(int32, tag = "2")] pid: i32,
        #[prost(int32, tag = "3")] ipc: i32,
    }
    SeLinuxOption {
        #[prost(string, tag = "3")] kind: String,
    }
    /// [`RUNTIME_DEFAULT`] or [`UNCONFINED`].
    SecurityProfile {
        #[prost(int32, tag = "1")] profile_type: i32,
    }
    RunPodSandboxRequest {
        #[prost(message, optional, tag = "1")] config: Option<PodSandboxConfig>,
    }
    /// Of requests and answers that hold an id and nothing else that is used here.
    Id {
        #[prost(string, tag = "1")] id: String,
    }
    CreateContainerRequest {
        #[prost(string, tag = "1")] pod_sandbox_id: String,
        #[prost(message, optional, tag = "2")] config: Option<ContainerConfig>,
        #[prost(message, optional, tag = "3")] sandbox_config: Option<PodSandboxConfig>,
    }
    ContainerConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<ContainerMetadata>,
        #[prost(message, optional, tag = "2")] image: Option<ImageSpec>,
        #[prost(string, repeated, tag = "3")] command: Vec<String>,
        #[prost(string, repeated, tag = "4")] args: Vec<String>,
        #[prost(message, repeated, tag = "6")] envs: Vec<KeyValue>,
        #[prost(message, repeated, tag = "7")] mounts: Vec<Mount>,
        #[prost(map = "string, string", tag = "9")] labels: HashMap<String, String>,
        #[prost(string, tag = "11")] log_path: String,
        #[prost(message, optional, tag = "15")] linux: Option<LinuxContainerConfig>,
    }
    ContainerMetadata {
        #[prost(string, tag = "1")] name: String,
    }
    ImageSpec {
        #[prost(string, tag = "1")] image: String,
    }
    KeyValue {
        #[prost(string, tag = "1")] key: String,
        #[prost(string, tag = "2")] value: String,
    }
    /// Propagation 0: private, 1: from the node to the container, 2: both ways.
    Mount {
        #[prost(string, tag = "1")] container_path: String,
        #[prost(string, tag = "2")] host_path: String,
        #[prost(bool, tag = "3")] readonly: bool,
        #[prost(int32, tag = "5")] propagation: i32,
    }
    LinuxContainerConfig {
        #[prost(message, optional, tag = "1")] resources: Option<LinuxContainerResources>,
        #[prost(message, optional, tag = "2")] security_context: Option<LinuxContainerSecurityContext>,
    }
    LinuxContainerResources {
        #[prost(int64, tag = "1")] cpu_period: i64,
        #[prost(int64, tag = "2")] cpu_quota: i64,
        #[prost(int64, tag = "3")] cpu_shares: i64,
        #[prost(int64, tag = "4")] memory_limit_in_bytes: i64,
        #[prost(int64, tag = "5")] oom_score_adj: i64,
    }
    LinuxContainerSecurityContext {
        #[prost(message, optional, tag = "1")] capabilities: Option<Capability>,
        #[prost(bool, tag = "2")] privileged: bool,
        #[prost(message, optional, tag = "3")] namespace_options: Option<NamespaceOption>,
        #[prost(message, optional, tag = "4")] selinux_options: Option<SeLinuxOption>,
        #[prost(message, optional, tag = "5")] run_as_user: Option<Int64Value>,
        #[prost(bool, tag = "7")] readonly_rootfs: bool,
        #[prost(int64, repeated, tag = "8")] supplemental_groups: Vec<i64>,
        #[prost(bool, tag = "11")] no_new_privs: bool,
        #[prost(string, repeated, tag = "13")] masked_paths: Vec<String>,
        #[prost(string, repeated, tag = "14")] readonly_paths: Vec<String>,
        #[prost(message, optional, tag = "15")] seccomp: Option<SecurityProfile>,
        #[prost(message, optional, tag = "16")] apparmor: Option<SecurityProfile>,
    }
    Capability {
        #[prost(string, repeated, tag = "1")] add_capabilities: Vec<String>,
        #[prost(string, repeated, tag = "2")] drop_capabilities: Vec<String>,
    }
    Int64Value {
        #[prost(int64, tag = "1")] value: i64,
    }
    ContainerStatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<ContainerStatus>,
    }
    /// State 2: exited. The time in nanoseconds since 1970.
    ContainerStatus {
        #[prost(int32, tag = "3")] state: i32,
        #[prost(int64, tag = "6")] finished_at: i64,
        #[prost(int32, tag = "7")] exit_code: i32,
        #[prost(string, tag = "10")] reason: String,
        #[prost(string, tag = "11")] message: String,
    }
    PodSandboxStatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<PodSandboxStatus>,
    }
    PodSandboxStatus {
        #[prost(message, optional, tag = "5")] network: Option<PodSandboxNetworkStatus>,
    }
    PodSandboxNetworkStatus {
        #[prost(string, tag = "1")] ip: String,
    }
    /// The timeout in seconds.
    ExecSyncRequest {
        #[prost(string, tag = "1")] container_id: String,
        #[prost(string, repeated, tag = "2")] cmd: Vec<String>,
        #[prost(int64, tag = "3")] timeout: i64,
    }
    ExecSyncResponse {
        #[prost(bytes = "vec", tag = "1")] stdout: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] stderr: Vec<u8>,
        #[prost(int32, tag = "3")] exit_code: i32,
    }
    StopContainerRequest {
        #[prost(string, tag = "1")] container_id: String,
        #[prost(int64, tag = "2")] timeout: i64,
    }
    VersionRequest {
        #[prost(string, tag = "1")] version: String,
    }
    VersionResponse {
        #[prost(string, tag = "2")] runtime_name: String,
        #[prost(string, tag = "3")] runtime_version: String,
    }
}

/// The network, process or IPC namespace of the node.
pub(super) const NODE: i32 = 2;
/// The container's own.
pub(super) const CONTAINER: i32 = 1;
/// [`SecurityProfile::profile_type`]: the runtime's own.
pub(super) const RUNTIME_DEFAULT: i32 = 0;
/// None.
pub(super) const UNCONFINED: i32 = 1;
/// [`ContainerStatus::state`] of one that has ended.
pub(super) const EXITED: i32 = 2;
