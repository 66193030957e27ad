//! The scene that most scenarios play in: a world, a CA for the manager, a CA for clients, and what
//! is usually started in it.

use std::ops::Deref;
use std::path::PathBuf;

use crate::agent::{Agent, Config, Route};
use crate::manager::{Manager, Mode, Setup};
use crate::pki::{Ca, Files, Leaf};
use crate::topology::{MANAGER_NAME, Topology};

/// The identity that routes of a scene present.
pub const IDENTITY: &str = "manager-client";
/// The trust of a scene's routes.
pub const TRUST: &str = "manager";
/// What pods dial on port 80: the manager's name and both of its addresses.
pub const DESTINATIONS: &[&str] = &["manager.hnp.test:80", "198.18.0.9:80", "[fd00:9::9]:80"];
/// What the agent dials for it.
pub const UPSTREAM: &str = "https://manager.hnp.test:80";

/// A world with certificates. Everything else is started by the scenario, in its own words.
#[derive(Debug)]
pub struct Scene {
    /// Issues the manager's certificates.
    pub servers: Ca,
    /// Issues clients' certificates.
    pub clients: Ca,
    /// The manager's certificate, for [`MANAGER_NAME`].
    pub server: Leaf,
    /// The serial of the client certificate that the agent presents.
    pub client_serial: String,
    /// Where that certificate and its key lie.
    pub client: Files,
    /// The roots for the manager's certificate.
    pub roots: PathBuf,
    topology: Topology,
}

impl Scene {
    /// The scene of the test that calls.
    ///
    /// # Panics
    /// Without root or cgroup2; the message says what to do.
    #[track_caller]
    pub fn for_test() -> Self {
        Self::in_world(Topology::for_test())
    }

    /// A scene in a world that was made otherwise.
    ///
    /// # Panics
    /// When a file cannot be written.
    pub fn in_world(topology: Topology) -> Self {
        let (servers, clients) = (Ca::new("hnp test servers"), Ca::new("hnp test clients"));
        let server = servers.server(&[MANAGER_NAME]);
        let leaf = clients.client();
        let client = leaf.write(topology.dir(), "client");
        let roots = servers.write(topology.dir(), "ca");
        Self { servers, clients, server, client_serial: leaf.serial, client, roots, topology }
    }

    /// A strict HTTP manager on port 80.
    ///
    /// # Panics
    /// When the port is taken.
    #[track_caller]
    pub fn strict_manager(&self) -> Manager {
        Manager::strict(&self.topology, "manager", 80, &self.server, &self.clients)
    }

    /// A loose HTTP manager on a port.
    ///
    /// # Panics
    /// When the port is taken.
    #[track_caller]
    pub fn loose_manager(&self, name: &str, port: u16) -> Manager {
        Manager::start(&self.topology, Setup::new(name, port).tls(Mode::Loose, &self.server, &self.clients))
    }

    /// A configuration with the scene's identity and trust, and no route yet.
    pub fn config(&self) -> Config {
        Config::new(&self.topology).identity(IDENTITY, &self.client).trust(TRUST, &self.roots)
    }

    /// The strict route from [`DESTINATIONS`] to [`UPSTREAM`].
    pub fn route(&self) -> Route {
        Route::strict("manager", DESTINATIONS, UPSTREAM).with(IDENTITY, TRUST)
    }

    /// Starts the agent with the strict route from [`DESTINATIONS`] to [`UPSTREAM`].
    ///
    /// # Panics
    /// When it is not ready in time.
    #[track_caller]
    pub fn agent(&self) -> Agent {
        Agent::start(&self.topology, &self.config().route(self.route()))
    }

    /// Starts the agent with one route.
    ///
    /// # Panics
    /// When it is not ready in time.
    #[track_caller]
    pub fn agent_with(&self, route: Route) -> Agent {
        Agent::start(&self.topology, &self.config().route(route.with(IDENTITY, TRUST)))
    }
}

impl Deref for Scene {
    type Target = Topology;

    fn deref(&self) -> &Topology {
        &self.topology
    }
}
