//! How an agent comes by the lock, the port and the admin port: by taking them, or from the agent that
//! runs already.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpListener;

use crate::admin;
use crate::capture::{CaptureError, Node, Turn};
use crate::config::plan::Plan;
use crate::handover::{self, Answer, Gift, HandoverError, Offer, Predecessor};
use crate::proxy::listener::{self, Listeners};
use crate::telemetry::readiness::Readiness;

/// The condition that says that the start is not over; a successor is not measured by it.
pub(super) const STARTING: &str = "start";

/// How long a successor waits for what its predecessor has already, above all names.
const SETTLE: Duration = Duration::from_secs(10);
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// What an agent has before it attaches.
pub(super) struct Begun {
    pub(super) turn: Turn,
    pub(super) listeners: Vec<Listeners>,
    pub(super) admin: Option<TcpListener>,
    /// Whom it takes over from; that one serves until it is told to pause.
    pub(super) before: Option<Predecessor>,
}

/// How long a successor looks for somebody to ask: an agent that has just started, or has nearly ended, holds
/// the lock and does not answer.
const SEARCH: Duration = Duration::from_secs(5);
const SEARCH_POLL: Duration = Duration::from_millis(100);

/// Takes the turn on this node; with `take_over`, from an agent that is running.
pub(super) async fn begin(plan: &Plan, node: &Node, take_over: bool) -> Result<Begun> {
    let deadline = Instant::now() + SEARCH;
    loop {
        let (dir, pid) = match Turn::take(node, &plan.capture) {
            Ok(turn) => return fresh(plan, turn).await,
            Err(CaptureError::Locked { dir, pid }) => (dir, pid),
            Err(other) => return Err(other.into()),
        };
        if !take_over {
            // The socket knows better: /proc/locks names whoever locked first, were it long gone.
            let pid = handover::holder(&plan.run_dir).or(pid);
            return Err(CaptureError::Locked { dir, pid }.into());
        }
        match handover::ask(&plan.run_dir).await {
            Ok(Answer::Yes(before, gift)) => return from_running(plan, node, *before, gift).await,
            Ok(Answer::Leaving(leaving)) => {
                tracing::info!("the running agent is ending; starting as soon as it has");
                leaving.ended().await;
            }
            Err(HandoverError::NobodyThere { .. }) if Instant::now() < deadline => {}
            Err(error) => return Err(error).context("cannot take over from the running agent"),
        }
        tokio::time::sleep(SEARCH_POLL).await;
    }
}

async fn fresh(plan: &Plan, turn: Turn) -> Result<Begun> {
    let port = plan.capture.port;
    // After the turn: a dead agent's programs still keep the port for that agent's cgroup.
    let mut listeners = listener::open(port, plan.workers).with_context(|| {
        format!("cannot listen on port {port}: if something else uses it, set `capture.port` to a free port")
    })?;
    open_gateway(plan, &mut listeners)?;
    let admin = match plan.admin.listen {
        Some(addr) => Some(admin::bind(addr).await?),
        None => None,
    };
    Ok(Begun { turn, listeners, admin, before: None })
}

/// Opens the gateway's sockets, where the Plan has one.
pub(super) fn open_gateway(plan: &Plan, listeners: &mut [Listeners]) -> Result<()> {
    let Some(gateway) = &plan.gateway else { return Ok(()) };
    listener::open_gateway(listeners, &gateway.listen).map_err(cannot_listen)
}

fn cannot_listen((addr, error): (SocketAddr, std::io::Error)) -> anyhow::Error {
    let what =
        format!("cannot listen on {addr}: if something else uses it, set `gateway.listen` to a free port");
    anyhow::Error::from(error).context(what)
}

async fn from_running(plan: &Plan, node: &Node, before: Predecessor, gift: Gift) -> Result<Begun> {
    let pid = before.peer().pid;
    tracing::info!(predecessor = pid, version = before.offer().agent, "preparing to take over");
    agree(plan, node, before.offer())?;
    let Gift { lock, admin, listeners: mut descriptors } = gift;
    let turn = Turn::inherit(node, &plan.capture, lock)?;
    let mut gateway = listener::none(plan.workers);
    let wanted = plan.gateway.as_ref().map_or(&[][..], |gateway| &gateway.listen);
    listener::inherit_gateway(&mut gateway, &mut descriptors, &before.offer().gateway, wanted)
        .map_err(cannot_listen)?;
    let listeners = listener::inherit(descriptors, plan.capture.port, plan.workers)
        .context("cannot take over the listening sockets")?;
    let listeners =
        listeners.into_iter().zip(gateway).map(|(one, gateway)| one.with_gateway(gateway)).collect();
    let admin = match (plan.admin.listen, admin) {
        (Some(addr), Some(socket)) if before.offer().admin == Some(addr) => {
            Some(TcpListener::from_std(StdListener::from(socket))?)
        }
        (Some(addr), _) => Some(admin::bind(addr).await?),
        (None, _) => None,
    };
    Ok(Begun { turn, listeners, admin, before: Some(before) })
}

/// What a successor cannot change without a moment in which connections fail.
fn agree(plan: &Plan, node: &Node, offer: &Offer) -> Result<()> {
    let differs = |what: &str, theirs: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
        format!(
            "cannot take over: the running agent has {what} {theirs}, this one {ours}. That cannot change in a \
             take-over; stop the running agent, then start this one"
        )
    };
    let capture = &plan.capture;
    if offer.port != capture.port {
        bail!(differs("`capture.port`", &offer.port, &capture.port));
    }
    for ((key, theirs), ours) in
        ["`capture.vips4`", "`capture.vips6`"].iter().zip(&offer.vips).zip(vips(plan))
    {
        if *theirs != ours {
            bail!(differs(key, theirs, &ours));
        }
    }
    if offer.cgroup != node.cgroup_id() {
        bail!(differs("the cgroup (`capture.cgroup`) with id", &offer.cgroup, &node.cgroup_id()));
    }
    let netns = netns()?;
    if offer.netns != netns {
        bail!(differs("the network namespace (in pods: `hostNetwork: true`)", &offer.netns, &netns));
    }
    Ok(())
}

/// The VIP ranges, as an [`Offer`] has them.
pub(super) fn vips(plan: &Plan) -> [String; 2] {
    [plan.capture.vips4, plan.capture.vips6].map(|range| range.to_string())
}

/// The inode of this process's network namespace.
pub(super) fn netns() -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let namespace = std::fs::metadata("/proc/self/ns/net").context("cannot look at /proc/self/ns/net")?;
    Ok(namespace.ino())
}

/// Waits until this agent waits for nothing that the running one has: whoever takes over with a broken
/// certificate, or without the addresses of a name, would refuse what is served now.
pub(super) async fn until_as_ready_as(before: &Predecessor, readiness: &Readiness) -> Result<()> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let mut missing = readiness.conditions();
        missing.retain(|(name, _)| name != STARTING && !before.offer().pending.contains(name));
        let Some((name, why)) = missing.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            bail!(
                "cannot take over: the running agent has what this one still waits for after {SETTLE:?}: {name} \
                 ({why}). Correct that, then try again"
            );
        }
        tokio::time::sleep(SETTLE_POLL).await;
    }
}
