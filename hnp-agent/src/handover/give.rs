//! The running agent's side: answers successors, one at a time, and goes on unless one took over.
//!
//! Nothing is given away before `Done`: descriptors are duplicates, and a pause ends by itself, whatever
//! becomes of the successor.

use std::convert::Infallible;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use super::door::Door;
use super::wire::{Channel, DESCRIPTORS, Message, Offer, Peer};
use super::{ANSWER, HandoverError, PAUSE, PREPARE};
use crate::telemetry::metrics::Exposition;
use crate::telemetry::names;

/// Before the socket is asked again after it failed.
const RETRY: Duration = Duration::from_secs(1);

/// What the running agent can do for a successor.
pub trait Giver {
    /// What it has, with duplicates of its descriptors.
    ///
    /// # Errors
    /// When descriptors run out.
    fn offer(&self) -> std::io::Result<(Offer, Gift)>;
    /// Stops accepting and changes nothing in the kernel any more, until [`Self::resume`]. Returns when no
    /// connection can be accepted any more.
    fn pause(&self) -> impl Future<Output = ()>;
    /// Goes on: accepts, and has its own programs where they were.
    fn resume(&self);
    /// What the successor took is its own from now on: forgets programs, pins, routes, lock and admin
    /// socket without touching them.
    fn leave(&self);
}

/// Descriptors that change hands.
#[derive(Debug)]
pub struct Gift {
    /// The lock on the pin directory: locked, and shared by all duplicates.
    pub lock: OwnedFd,
    /// The admin server's listening socket.
    pub admin: Option<OwnedFd>,
    /// The listening sockets of all workers.
    pub listeners: Vec<OwnedFd>,
}

/// Who took over. While it lives the successor takes this agent for alive.
#[derive(Debug)]
pub struct HandedOver {
    /// The successor.
    pub to: Peer,
    /// Its version.
    pub agent: String,
    /// How long nobody accepted, as seen from here.
    pub pause: Duration,
    channel: Channel,
}

impl HandedOver {
    /// Waits until the successor has ended.
    pub async fn successor_ended(&self) {
        self.channel.gone().await;
    }
}

/// Counts successors that did not take over.
#[derive(Clone, Debug, Default)]
pub struct Failures(Arc<AtomicU64>);

impl Failures {
    /// Writes `hnp_handovers_failed`; for [`crate::telemetry::Telemetry::register`].
    pub fn write(&self, out: &mut Exposition<'_, '_>) {
        out.single(&names::HANDOVERS_FAILED, self.0.load(Relaxed));
    }
}

/// Answers whoever connects, until one has taken over. `busy` is true while one is being answered. Dropping
/// the future breaks that off, and ends a pause.
pub async fn give(
    door: &Door,
    agent: &impl Giver,
    busy: &watch::Sender<bool>,
    failures: &Failures,
) -> HandedOver {
    loop {
        let channel = match door.next().await {
            Ok(channel) => channel,
            Err(error) => {
                tracing::warn!(%error, "successors cannot be answered; trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let pid = channel.peer().pid;
        let hello = timeout(ANSWER, hello(&channel)).await;
        let session = match hello {
            // Whoever only wants to know who we are connects and says nothing.
            Ok(Err(HandoverError::Gone { .. })) | Err(_) => continue,
            Ok(Ok(successor)) => {
                busy.send_replace(true);
                session(&channel, agent, successor).await
            }
            Ok(Err(error)) => Err(error),
        };
        busy.send_replace(false);
        match session {
            Ok((agent, pause)) => return HandedOver { to: channel.peer(), agent, pause, channel },
            Err(error) => {
                failures.0.fetch_add(1, Relaxed);
                tracing::warn!(
                    successor = pid,
                    error = &error as &dyn std::error::Error,
                    "the take-over did not come about; this agent goes on"
                );
                refuse(&channel, error.to_string(), false).await;
            }
        }
    }
}

/// Successors that were told to wait: the end of the connection tells them that this agent has ended.
#[derive(Debug, Default)]
pub struct TurnedAway(Vec<Channel>);

/// Tells whoever connects that this agent is ending, for as long as the future is polled.
pub async fn turn_away(door: Option<&Door>, waiting: &mut TurnedAway) -> Infallible {
    let Some(door) = door else { return std::future::pending().await };
    loop {
        match door.next().await {
            Ok(channel) => {
                refuse(&channel, "it is ending; start as soon as it has ended".into(), true).await;
                waiting.0.push(channel);
            }
            Err(error) => {
                tracing::debug!(%error, "successors cannot be answered");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Its version.
async fn hello(channel: &Channel) -> Result<String, HandoverError> {
    const DOING: &str = "saying hello";
    same_user(channel.peer())?;
    match channel.recv(DOING).await? {
        (Message::Hello { agent }, _) => Ok(agent),
        (other, _) => Err(confused(channel, DOING, &other)),
    }
}

async fn session(
    channel: &Channel,
    agent: &impl Giver,
    successor: String,
) -> Result<(String, Duration), HandoverError> {
    let to = channel.peer();
    tracing::info!(successor = to.pid, version = successor, "a successor asks to take over");
    let (offer, gift) =
        agent.offer().map_err(|source| HandoverError::System { doing: "duplicate sockets", source })?;
    send_offer(channel, offer, &gift).await?;
    drop(gift);

    const PREPARING: &str = "preparing to take over";
    expect(channel, PREPARE, PREPARING, |message| matches!(message, Message::Pause)).await?;
    let paused = Paused { agent, since: Instant::now(), left: false };
    // Workers answer at once; one that does not is a reason not to go on.
    if timeout(ANSWER.min(PAUSE), agent.pause()).await.is_err() {
        return Err(HandoverError::Silent { pid: to.pid, doing: "this agent's workers pause", limit: PAUSE });
    }
    channel.send(&Message::Paused, &[], PREPARING).await?;

    const TAKING: &str = "taking over";
    let left = PAUSE.saturating_sub(paused.since.elapsed());
    expect(channel, left, TAKING, |message| matches!(message, Message::Done)).await?;
    let pause = paused.leave();
    // If it died just now, that is a death like any later one: its programs are in place and refuse.
    if let Err(error) = channel.send(&Message::Yours, &[], TAKING).await {
        tracing::error!(%error, "the successor ended in the moment in which it took over; start another");
    }
    Ok((successor, pause))
}

async fn send_offer(channel: &Channel, offer: Offer, gift: &Gift) -> Result<(), HandoverError> {
    const DOING: &str = "offering the sockets";
    let mut first = vec![gift.lock.as_fd()];
    first.extend(gift.admin.as_ref().map(OwnedFd::as_fd));
    channel.send(&Message::Offer(offer), &first, DOING).await?;
    for some in gift.listeners.chunks(DESCRIPTORS) {
        let some: Vec<_> = some.iter().map(OwnedFd::as_fd).collect();
        channel.send(&Message::Listeners, &some, DOING).await?;
    }
    Ok(())
}

async fn expect(
    channel: &Channel,
    limit: Duration,
    doing: &'static str,
    wanted: impl FnOnce(&Message) -> bool,
) -> Result<(), HandoverError> {
    match timeout(limit, channel.recv(doing)).await {
        Ok(Ok((message, _))) if wanted(&message) => Ok(()),
        Ok(Ok((other, _))) => Err(confused(channel, doing, &other)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(HandoverError::Silent { pid: channel.peer().pid, doing, limit }),
    }
}

/// The agent does not accept. Dropping it, it does again.
struct Paused<'a, G: Giver> {
    agent: &'a G,
    since: Instant,
    left: bool,
}

impl<G: Giver> Paused<'_, G> {
    fn leave(mut self) -> Duration {
        self.agent.leave();
        self.left = true;
        self.since.elapsed()
    }
}

impl<G: Giver> Drop for Paused<'_, G> {
    fn drop(&mut self) {
        if !self.left {
            self.agent.resume();
            tracing::info!(paused = ?self.since.elapsed(), "this agent accepts again");
        }
    }
}

/// Says no; whoever is gone does not hear it.
async fn refuse(channel: &Channel, why: String, leaving: bool) {
    let agent = env!("CARGO_PKG_VERSION").to_owned();
    let no = Message::Refused { agent, why, leaving };
    let _ = timeout(ANSWER, channel.send(&no, &[], "saying no")).await;
}

pub(super) fn same_user(peer: Peer) -> Result<(), HandoverError> {
    let own = nix::unistd::geteuid().as_raw();
    if peer.uid == own { Ok(()) } else { Err(HandoverError::Stranger { pid: peer.pid, uid: peer.uid, own }) }
}

pub(super) fn confused(channel: &Channel, doing: &'static str, message: &Message) -> HandoverError {
    HandoverError::Confused { pid: channel.peer().pid, doing, what: format!("{message:?}") }
}
