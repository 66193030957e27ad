//! This agent as a successor finds it: what it hands over, and how it pauses, goes on and leaves.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::begin;
use crate::capture::Node;
use crate::config::plan::Plan;
use crate::handover::{Gift, Giver, Offer};
use crate::proxy::gate::Gate;
use crate::proxy::listener::Listeners;
use crate::telemetry::readiness::Readiness;
use crate::upkeep::SharedCapture;

/// All that a hand-over needs. It holds duplicates of the sockets: while it lives, the kernel goes on taking
/// connections, so it is dropped before a drain without a successor.
pub(super) struct Standing {
    pub(super) plan: Arc<Plan>,
    pub(super) captured: SharedCapture,
    pub(super) readiness: Readiness,
    /// One per worker.
    pub(super) gates: Vec<Gate>,
    /// Ends the admin server.
    pub(super) admin: CancellationToken,
    sockets: Vec<OwnedFd>,
    admin_socket: Option<OwnedFd>,
    netns: u64,
    cgroup: u64,
}

impl Standing {
    /// With the sockets and the token that ends the admin server. Nobody accepts yet.
    pub(super) fn new(
        plan: &Arc<Plan>,
        node: &Node,
        (listeners, admin, admin_ends): (&[Listeners], Option<&TcpListener>, CancellationToken),
        (captured, readiness): (&SharedCapture, &Readiness),
    ) -> anyhow::Result<Self> {
        let mut sockets = Vec::new();
        for worker in listeners {
            sockets.extend(worker.duplicates()?);
        }
        let admin_socket = admin.map(|admin| admin.as_fd().try_clone_to_owned()).transpose()?;
        Ok(Self {
            plan: Arc::clone(plan),
            captured: captured.clone(),
            readiness: readiness.clone(),
            gates: listeners.iter().map(|_| Gate::new(false)).collect(),
            admin: admin_ends,
            sockets,
            admin_socket,
            netns: begin::netns()?,
            cgroup: node.cgroup_id(),
        })
    }

    /// Lets the workers accept.
    pub(super) fn accept(&self) {
        self.gates.iter().for_each(Gate::open);
    }
}

impl Giver for Standing {
    fn offer(&self) -> io::Result<(Offer, Gift)> {
        let offer = Offer {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            netns: self.netns,
            cgroup: self.cgroup,
            port: self.plan.capture.port,
            gateway: self.plan.gateway.iter().flat_map(|gateway| gateway.listen.clone()).collect(),
            vips: begin::vips(&self.plan),
            listeners: self.sockets.len(),
            admin: self.plan.admin.listen,
            pending: self.readiness.conditions().into_iter().map(|(name, _)| name).collect(),
        };
        let gift = Gift {
            lock: self.captured.lock()?,
            admin: self.admin_socket.as_ref().map(OwnedFd::try_clone).transpose()?,
            listeners: self.sockets.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?,
        };
        Ok((offer, gift))
    }

    async fn pause(&self) {
        self.captured.hold();
        self.gates.iter().for_each(Gate::close);
        for gate in &self.gates {
            gate.closed().await;
        }
    }

    fn resume(&self) {
        self.captured.release();
        self.accept();
    }

    fn leave(&self) {
        self.captured.hand_over();
        self.admin.cancel();
    }
}
