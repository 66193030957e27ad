//! What the configuration takes from around it when it does not say: read once, here, so that reading the
//! configuration itself stays a pure function.

use super::defaults;

/// What this process knows of where it runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Surroundings {
    /// The CPUs it may use.
    pub(super) workers: usize,
    /// `NODE_NAME`: the node's name, as a pod's specification hands it in (`fieldRef: spec.nodeName`).
    pub(super) node_name: Option<String>,
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`, which every pod has, as a URL.
    pub(super) api: Option<String>,
    /// `DAEMONSET`: the DaemonSet this pod is of, as `NAMESPACE/NAME`, which no field of a pod hands in.
    pub(super) daemonset: Option<String>,
    /// `SPIFFE_ENDPOINT_SOCKET`: where the SPIFFE Workload API is (SPIFFE Workload Endpoint section 4).
    pub(super) spiffe_socket: Option<String>,
}

impl Surroundings {
    /// Those of this process.
    pub(super) fn here() -> Self {
        let workers = defaults::workers();
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let api = variable("KUBERNETES_SERVICE_HOST").map(|host| {
            let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into());
            // The variable holds an IPv6 address without brackets.
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            format!("https://{host}:{port}")
        });
        let spiffe_socket = variable("SPIFFE_ENDPOINT_SOCKET");
        let (node_name, daemonset) = (variable("NODE_NAME"), variable("DAEMONSET"));
        Self { workers, node_name, api, daemonset, spiffe_socket }
    }
}
