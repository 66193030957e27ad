//! Whether the API server answers what the configuration makes the agent ask it. Reads, and changes nothing.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use tokio::time::timeout;

use super::client::{ApiError, client};
use crate::config::plan::{Kubernetes, Plan};
use crate::finding::{Finding, State};

/// For each question: whoever types `doctor` waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks once for each thing that the agent would ask for. Nothing is found where it asks for nothing.
pub async fn examine(plan: &Plan) -> Vec<Finding> {
    let Some(cluster) = &plan.kubernetes else { return Vec::new() };
    let issues = plan.routes.iter().any(|route| plan.issuer_for(route).is_some());
    let selects = plan.routes.iter().any(|route| route.selects());
    let gateway = plan.gateway.is_some() && plan.knows_callers();
    let mut findings = Vec::new();
    if cluster.startup_taint.is_some() {
        findings.push(finding(cluster, "own node", node(cluster).await));
    }
    if issues || selects || gateway {
        findings.push(finding(cluster, "pods of this node", pods(cluster).await));
    }
    if findings.is_empty() {
        let detail = "not asked: nothing in this configuration needs it";
        findings.push(Finding::new("kubernetes", "API server", State::Skipped, detail));
    }
    findings
}

fn finding(cluster: &Kubernetes, what: &str, answer: Result<String, ApiError>) -> Finding {
    match answer {
        Ok(detail) => Finding::new("kubernetes", what, State::Good, detail),
        Err(error) => {
            let detail = format!("{}: {error}", cluster.api);
            Finding::new("kubernetes", what, State::Bad, detail).next(error.cause().fix())
        }
    }
}

async fn node(cluster: &Kubernetes) -> Result<String, ApiError> {
    let nodes: Api<Node> = Api::all(client(cluster, PATIENCE)?);
    let node = timeout(PATIENCE, nodes.get(&cluster.node_name)).await.map_err(|_| ApiError::Timeout)??;
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let own = taints.iter().any(|taint| Some(&*taint.key) == cluster.startup_taint.as_deref());
    let taint = if own { "the startup taint is still on it" } else { "it is without the startup taint" };
    Ok(format!("{} answers for {}; {taint}", cluster.api, cluster.node_name))
}

async fn pods(cluster: &Kubernetes) -> Result<String, ApiError> {
    let pods: Api<Pod> = Api::all(client(cluster, PATIENCE)?);
    let one = ListParams::default().fields(&format!("spec.nodeName={}", cluster.node_name)).limit(1);
    timeout(PATIENCE, pods.list_metadata(&one)).await.map_err(|_| ApiError::Timeout)??;
    Ok(format!("{} lists them", cluster.api))
}
