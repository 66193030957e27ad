//! What an agent needs to know of the cluster it runs in.

use serde_json::Value;

use super::{ApiServer, ServiceAccount};
use crate::agent::Config;
use crate::pki::Ca;
use crate::topology::World;

/// The name of the agent's node.
pub const NODE: &str = "worker-1";

/// The DaemonSet of the agents.
pub const DAEMONSET: &str = "hnp/hnp-agent";

/// A cluster's CA and the service account of its agents.
#[derive(Debug)]
pub struct Cluster<'a> {
    world: &'a World,
    /// Issues the API server's certificate.
    pub ca: Ca,
    /// The agents'.
    pub account: ServiceAccount,
}

impl<'a> Cluster<'a> {
    /// Writes the service account's files.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn new(world: &'a World) -> Self {
        let ca = Ca::new("hnp test cluster");
        let account = ServiceAccount::create(world, &ca);
        Self { world, ca, account }
    }

    /// Starts its API server, with [`NODE`] and these taints.
    ///
    /// # Panics
    /// When its port is taken.
    #[track_caller]
    pub fn start(&self, taints: Value) -> ApiServer {
        let server = self.ca.server(&[&ApiServer::address().ip().to_string()]);
        ApiServer::start(self.world, &server, &self.account, NODE, taints)
    }

    /// As in a pod: server and node from the environment, and the service account's files.
    pub fn config(&self, mut config: Config) -> Config {
        let address = ApiServer::address();
        config.kubernetes = format!("service_account: {}", self.account.dir.display());
        config.env = vec![
            ("NODE_NAME", NODE.to_owned()),
            ("KUBERNETES_SERVICE_HOST", address.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT", address.port().to_string()),
        ];
        config
    }

    /// The same for a pod of [`DAEMONSET`].
    pub fn config_of_a_daemonset(&self, config: Config) -> Config {
        let mut config = self.config(config);
        config.env.push(("DAEMONSET", DAEMONSET.to_owned()));
        config
    }
}
