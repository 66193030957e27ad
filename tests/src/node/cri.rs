//! A client of the Container Runtime Interface: what a kubelet says to containerd, over its UNIX socket.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};

use super::proto;
use crate::poll::patience;

/// A pod takes half a second to make; one that takes this long never comes.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection to the runtime, for one thread.
pub(super) struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there, or it is not a container runtime.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
        let channel = runtime.block_on(endpoint.connect())?;
        let cri = Self { runtime, channel };
        cri.version()?;
        Ok(cri)
    }

    /// Such as `containerd 1.6.20`.
    ///
    /// # Errors
    /// As the runtime says.
    pub(super) fn version(&self) -> Result<String> {
        let request = proto::VersionRequest { version: "v1".to_owned() };
        let answer: proto::VersionResponse = self.call("Version", &request)?;
        Ok(format!("{} {}", answer.runtime_name, answer.runtime_version))
    }

    /// Makes a pod's sandbox, with its network; returns its id.
    ///
    /// # Errors
    /// As the runtime says.
    pub(super) fn run_sandbox(&self, config: &proto::PodSandboxConfig) -> Result<String> {
        let request = proto::RunPodSandboxRequest { config: Some(config.clone()) };
        self.call::<proto::Id>("RunPodSandbox", &request).map(|answer| answer.id)
    }

    /// Makes a container in a sandbox; returns its id.
    ///
    /// # Errors
    /// As the runtime says.
    pub(super) fn create(
        &self,
        sandbox: &str,
        sandbox_config: &proto::PodSandboxConfig,
        config: proto::ContainerConfig,
    ) -> Result<String> {
        let request = proto::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        self.call::<proto::Id>("CreateContainer", &request).map(|answer| answer.id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// As the runtime says.
    pub(super) fn start(&self, container: &str) -> Result<()> {
        self.call("StartContainer", &proto::Id { id: container.to_owned() })
    }

    /// How a container is.
    ///
    /// # Errors
    /// As the runtime says.
    pub(super) fn status(&self, container: &str) -> Result<proto::ContainerStatus> {
        let request = proto::Id { id: container.to_owned() };
        let answer: proto::ContainerStatusResponse = self.call("ContainerStatus", &request)?;
        answer.status.context("an answer without a status")
    }

    /// Runs a command in a container: its exit status, and what it wrote.
    ///
    /// # Errors
    /// As the runtime says: also when it takes longer than so many seconds.
    pub(super) fn exec(&self, container: &str, command: &[String], seconds: i64) -> Result<(i32, String)> {
        let request = proto::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.to_vec(),
            timeout: seconds,
        };
        let answer: proto::ExecSyncResponse = self.call("ExecSync", &request)?;
        let said = [answer.stdout, answer.stderr].concat();
        Ok((answer.exit_code, String::from_utf8_lossy(&said).into_owned()))
    }

    /// The address of a sandbox; none of one with the node's network.
    ///
    /// # Errors
    /// As the runtime says.
    pub(super) fn address(&self, sandbox: &str) -> Result<Option<IpAddr>> {
        let request = proto::Id { id: sandbox.to_owned() };
        let answer: proto::PodSandboxStatusResponse = self.call("PodSandboxStatus", &request)?;
        let network = answer.status.and_then(|status| status.network).unwrap_or_default();
        Ok(network.ip.parse().ok())
    }

    /// SIGTERM, and SIGKILL after so many seconds.
    ///
    /// # Errors
    /// As the runtime says.
    pub(super) fn stop(&self, container: &str, seconds: i64) -> Result<()> {
        let request = proto::StopContainerRequest { container_id: container.to_owned(), timeout: seconds };
        self.call("StopContainer", &request)
    }

    /// Ends a sandbox with all that is in it. The runtime still knows it.
    ///
    /// # Errors
    /// As the runtime says.
    pub(super) fn stop_sandbox(&self, sandbox: &str) -> Result<()> {
        self.call("StopPodSandbox", &proto::Id { id: sandbox.to_owned() })
    }

    /// Has the runtime forget a sandbox, which is ended for that.
    ///
    /// # Errors
    /// As the runtime says.
    pub(super) fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        self.stop_sandbox(sandbox)?;
        self.call("RemovePodSandbox", &proto::Id { id: sandbox.to_owned() })
    }

    fn call<A: Message + Default>(&self, method: &'static str, request: &impl Message) -> Result<A> {
        let bytes = request.encode_to_vec();
        let answer = self.runtime.block_on(async {
            let path =
                http::uri::PathAndQuery::from_maybe_shared(format!("/runtime.v1.RuntimeService/{method}"))?;
            let mut grpc = Grpc::new(self.channel.clone());
            let answering = async {
                grpc.ready().await?;
                grpc.unary(tonic::Request::new(bytes), path, crate::grpc::Bytes)
                    .await
                    .map_err(anyhow::Error::from)
            };
            tokio::time::timeout(patience(DEADLINE), answering).await.context("no answer")?
        });
        let answer = answer.with_context(|| format!("CRI: {method}"))?;
        A::decode(&answer.into_inner()[..]).with_context(|| format!("CRI: the answer to {method}"))
    }
}
