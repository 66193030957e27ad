//! How the API server is reached, the two calls on the agent's own node, and why calls fail.
//!
//! kube speaks to the server; token and CA are the service account's files. They are read anew for every
//! attempt, because Kubernetes replaces both, and attempts are rare.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::core::Status;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::patch;
use crate::config::plan::Kubernetes;

/// Connect and TLS; the server is on the cluster's own network.
const CONNECT: Duration = Duration::from_secs(5);
/// Both calls together: a server that is this slow is asked again later.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Under which name the API server records who changed what.
const FIELD_MANAGER: &str = "hnp-agent";

/// What an attempt came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// The node had no such taint.
    Absent,
    /// It had, and has not any more.
    Removed,
}

/// Why the node's taint could not be looked at or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// A file of the service account is missing or is not what it should be.
    #[error("{}: {what}", path.display())]
    ServiceAccount {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// No answer in time.
    #[error("no answer within {ATTEMPT:?}")]
    Timeout,
    /// The server answered that it will not.
    #[error("the API server answered {code}: {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// The server answered something that is no node.
    #[error("the API server's answer cannot be read: {0}")]
    Unreadable(serde_json::Error),
    /// No answer.
    #[error("{0}")]
    Unreachable(String),
}

/// The label of a failed attempt: a few words that dashboards hold on to, and what to do about each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cause {
    /// [`ApiError::ServiceAccount`]
    ServiceAccount,
    /// [`ApiError::Unreachable`]
    Unreachable,
    /// [`ApiError::Timeout`]
    Timeout,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NoSuchNode,
    /// 409 and 422: the node was changed at the same time
    Conflict,
    /// Any other answer, and one that cannot be read
    ServerError,
}

impl Cause {
    /// All of them; the index of each is its number.
    pub(super) const ALL: [Self; 8] = [
        Self::ServiceAccount,
        Self::Unreachable,
        Self::Timeout,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NoSuchNode,
        Self::Conflict,
        Self::ServerError,
    ];

    /// The label's value.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::ServiceAccount => "service_account",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NoSuchNode => "no_such_node",
            Self::Conflict => "conflict",
            Self::ServerError => "server_error",
        }
    }

    /// What to do about it.
    pub(super) fn fix(self) -> &'static str {
        match self {
            Self::ServiceAccount => {
                "mount the service account's token, or correct kubernetes.service_account"
            }
            Self::Unreachable => {
                "can this node reach kubernetes.api, and did the cluster's CA sign for that host?"
            }
            Self::Timeout => "the API server is slow or something between drops packets",
            Self::Unauthorized => "the service account's token is not accepted: was the account replaced?",
            Self::Forbidden => "give the service account what deploy/manifests/hnp.yaml gives it",
            Self::NoSuchNode => "is kubernetes.node_name the node's name as kubectl get nodes shows it?",
            Self::Conflict => {
                "nothing, unless it goes on: something else changes this node's taints all the time"
            }
            Self::ServerError => "look at the API server and its admission webhooks",
        }
    }
}

impl ApiError {
    /// Its label.
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::ServiceAccount { .. } => Cause::ServiceAccount,
            Self::Unreachable(_) => Cause::Unreachable,
            Self::Timeout => Cause::Timeout,
            Self::Refused { code: 401, .. } => Cause::Unauthorized,
            Self::Refused { code: 403, .. } => Cause::Forbidden,
            Self::Refused { code: 404, .. } => Cause::NoSuchNode,
            Self::Refused { code: 409 | 422, .. } => Cause::Conflict,
            Self::Refused { .. } | Self::Unreadable(_) => Cause::ServerError,
        }
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        let error = match error {
            kube::Error::Api(status) => return (*status).into(),
            kube::Error::SerdeError(error) => return Self::Unreadable(error),
            other => other,
        };
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(deeper) = source {
            let words = deeper.to_string();
            // Many of them repeat what they wrap.
            if !text.contains(&words) {
                let _ = write!(text, ": {words}");
            }
            source = deeper.source();
        }
        Self::Unreachable(text)
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        Self::Refused { code: status.code, message: status.message }
    }
}

/// Looks at the agent's node, and takes every taint of `key` off it.
pub(super) async fn attempt(cluster: &Kubernetes, key: &str) -> Result<Outcome, ApiError> {
    tokio::time::timeout(ATTEMPT, look_and_remove(cluster, key)).await.unwrap_or(Err(ApiError::Timeout))
}

async fn look_and_remove(cluster: &Kubernetes, key: &str) -> Result<Outcome, ApiError> {
    let nodes: Api<Node> = Api::all(client(cluster, ATTEMPT)?);
    let node = nodes.get(&cluster.node_name).await?;
    let Some(operations) = patch::removal(&node, key) else { return Ok(Outcome::Absent) };
    let patch: Patch<()> = Patch::Json(serde_json::from_value(operations).map_err(kube::Error::SerdeError)?);
    let by = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    nodes.patch(&cluster.node_name, &by, &patch).await?;
    Ok(Outcome::Removed)
}

/// A client that gives up an answer in which nothing came for so long.
pub(super) fn client(cluster: &Kubernetes, silence: Duration) -> Result<kube::Client, ApiError> {
    let wrong = |path: &PathBuf, what: String| ApiError::ServiceAccount { path: path.clone(), what };
    let (token, ca) = (cluster.service_account.join("token"), cluster.service_account.join("ca.crt"));
    let pem = crate::files::read(&ca).map_err(|error| wrong(&ca, error.to_string()))?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let roots = roots.map_err(|error| wrong(&ca, error.to_string()))?;
    if roots.is_empty() {
        return Err(wrong(&ca, "there is no certificate in it".into()));
    }
    let url =
        cluster.api.parse().map_err(|error| ApiError::Unreachable(format!("{}: {error}", cluster.api)))?;
    let mut config = kube::Config::new(url);
    config.root_cert = Some(roots.iter().map(|der| der.to_vec()).collect());
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(silence);
    config.auth_info.token_file = Some(token.display().to_string());
    // The loop around this has a rhythm of its own.
    config.default_retry = false;
    crate::files::read(&token).map_err(|error| wrong(&token, error.to_string()))?;
    Ok(kube::Client::try_from(config)?)
}
