//! One technique before the judge: first without hnp, where it must reach the manager, or it proves
//! nothing; then with an agent that is alive, killed, and killed and started again and again. All the
//! time the manager's network is sniffed.

use std::net::SocketAddr;

use super::expect::Expect;
use super::stage::Stage;
use super::{Attack, Technique};
use crate::aloud;
use crate::process::Place;
use crate::scene::Scene;
use crate::topology::{MANAGER_NAME, MANAGER4, Pod};

/// Where the manager is, and what is configured for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scenery {
    /// On the network; its name and its addresses are destinations.
    Network,
    /// On the network; only its name is a destination.
    ByName,
    /// On the node itself, whose addresses are destinations.
    Node,
    /// On the network; what is attacked is the agent's port, where the control has a stand-in.
    AgentsPort,
    /// On the network; what is attacked is the pod's own loopback, where a stand-in listens all the time.
    Loopback,
}

/// Changes an attack before it begins.
type Arrange = Box<dyn Fn(&Scene, &Pod, &mut Attack)>;

/// Somewhere to attack from.
type From = Box<dyn Fn(&Scene, &Pod) -> Place>;

/// What is sent, with a marker in it.
type Say = Box<dyn Fn(&str) -> Vec<u8>>;

/// A technique, and what is to become of it.
pub struct Trial {
    pub(super) technique: Technique,
    pub(super) target: SocketAddr,
    pub(super) expect: Expect,
    pub(super) from: From,
    pub(super) arrange: Arrange,
    pub(super) bytes: Say,
    pub(super) scenery: Scenery,
}

impl Trial {
    /// A technique against the manager's IPv4 address, from a pod. Nothing is expected but that
    /// nothing leaks.
    pub fn new(technique: Technique) -> Self {
        Self {
            technique,
            target: (MANAGER4, 80).into(),
            expect: Expect::Nothing,
            from: Box::new(|_, pod| Place::clone(pod)),
            arrange: Box::new(|_, _, _| {}),
            bytes: Box::new(request),
            scenery: Scenery::Network,
        }
    }

    /// Against another address.
    #[must_use]
    pub fn to(mut self, target: impl Into<SocketAddr>) -> Self {
        self.target = target.into();
        self
    }

    /// By another technique.
    #[must_use]
    pub fn with_technique(self, technique: Technique) -> Self {
        Self { technique, ..self }
    }

    /// From somewhere else than the pod.
    #[must_use]
    pub fn from(mut self, from: impl Fn(&Scene, &Pod) -> Place + 'static) -> Self {
        self.from = Box::new(from);
        self
    }

    /// With more than a technique and a target.
    #[must_use]
    pub fn arranged(mut self, arrange: impl Fn(&Scene, &Pod, &mut Attack) + 'static) -> Self {
        self.arrange = Box::new(arrange);
        self
    }

    /// With other bytes than a request; they are to hold the marker.
    #[must_use]
    pub fn saying(mut self, bytes: impl Fn(&str) -> Vec<u8> + 'static) -> Self {
        self.bytes = Box::new(bytes);
        self
    }

    /// Only the manager's name is a destination, so Host decides.
    #[must_use]
    pub fn by_name(self) -> Self {
        Self { scenery: Scenery::ByName, ..self }
    }

    /// The manager runs on the node itself; the node's addresses are destinations.
    #[must_use]
    pub fn manager_on_the_node(self) -> Self {
        Self { scenery: Scenery::Node, ..self }
    }

    /// The target is the agent's port. In the control, where there is no agent, somebody else listens
    /// there, and that is who must be reached.
    #[must_use]
    pub fn at_the_agents_port(self) -> Self {
        Self { scenery: Scenery::AgentsPort, ..self }
    }

    /// Somebody in the pod itself listens on the target's port: it is he who is reached, with and without
    /// an agent.
    #[must_use]
    pub fn inside_the_pod(self) -> Self {
        Self { scenery: Scenery::Loopback, expect: Expect::Untouched, ..self }
    }

    /// A living agent carries it over mutual TLS.
    #[must_use]
    pub fn served(mut self) -> Self {
        self.expect = Expect::Served;
        self
    }

    /// A living agent answers so.
    #[must_use]
    pub fn answered(mut self, answer: &'static str) -> Self {
        self.expect = Expect::Answered(answer);
        self
    }

    /// Refused with this error, whether or not an agent is alive.
    #[must_use]
    pub fn refused(mut self, errno: &'static str) -> Self {
        self.expect = Expect::Refused(errno);
        self
    }

    /// A living agent closes the connection without a word.
    #[must_use]
    pub fn ignored(mut self) -> Self {
        self.expect = Expect::Ignored;
        self
    }

    /// Control, then the agent's whole life.
    ///
    /// # Panics
    /// When the control does not reach the manager, when something leaks, or when an attempt does not
    /// come to what is expected.
    #[track_caller]
    pub fn judge(self) {
        let stage = Stage::set(&self);
        if let Some((call, errno)) = stage.control(&self) {
            aloud::say(&format!("{:?} is NOT POSSIBLE ON THIS KERNEL: {call}: {errno}", self.technique));
            return;
        }
        stage.trial(&self);
    }
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial").field("technique", &self.technique).field("target", &self.target).finish()
    }
}

/// A request that the manager answers, with the marker where the manager looks for a token.
pub(super) fn request(marker: &str) -> Vec<u8> {
    let head = format!("GET /hello HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nx-token: {marker}\r\n");
    format!("{head}connection: close\r\n\r\n").into_bytes()
}
