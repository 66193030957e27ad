//! The successor's side: asks, prepares, and goes on where the running agent stops.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::door;
use super::give::{Gift, confused, same_user};
use super::wire::{Channel, Message, Offer, Peer};
use super::{ANSWER, HandoverError, PAUSE};

/// How much of a pause may be over when the programs are about to be put in place; later the running
/// agent may go on while this one is still at it.
const LATEST: Duration = Duration::from_millis(PAUSE.as_millis() as u64 / 2);

/// The running agent, as its successor sees it. Dropping it before [`Predecessor::take`] tells it to go on.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    offer: Offer,
    paused: Option<Instant>,
}

/// What the running agent says.
#[derive(Debug)]
pub enum Answer {
    /// It hands over, and serves until it is told to pause.
    Yes(Box<Predecessor>, Gift),
    /// It is ending; after that an ordinary start is possible.
    Leaving(Leaving),
}

/// An agent that is ending.
#[derive(Debug)]
pub struct Leaving(Channel);

impl Leaving {
    /// Waits until it has ended.
    pub async fn ended(self) {
        self.0.gone().await;
    }
}

/// Asks the running agent to hand over.
///
/// # Errors
/// When nobody answers, or the answer is no. It goes on as before.
pub async fn ask(run_dir: &Path) -> Result<Answer, HandoverError> {
    const DOING: &str = "being asked to hand over";
    let channel = door::knock(run_dir)?;
    same_user(channel.peer())?;
    let hello = Message::Hello { agent: env!("CARGO_PKG_VERSION").to_owned() };
    channel.send(&hello, &[], DOING).await?;
    let conversation = async {
        let (offer, mut first) = match channel.recv(DOING).await? {
            (Message::Offer(offer), descriptors) => (offer, descriptors.into_iter()),
            (other, _) => return Err(confused(&channel, DOING, &other)),
        };
        let missing = |what: &str| HandoverError::Confused {
            pid: channel.peer().pid,
            doing: DOING,
            what: format!("an offer without {what}"),
        };
        let lock = first.next().ok_or_else(|| missing("the lock"))?;
        let admin = match offer.admin {
            Some(_) => Some(first.next().ok_or_else(|| missing("the admin socket"))?),
            None => None,
        };
        let mut listeners: Vec<OwnedFd> = Vec::new();
        while listeners.len() < offer.listeners {
            match channel.recv(DOING).await? {
                (Message::Listeners, more) if !more.is_empty() => listeners.extend(more),
                (Message::Listeners, _) => return Err(missing("all listeners")),
                (other, _) => return Err(confused(&channel, DOING, &other)),
            }
        }
        Ok((offer, Gift { lock, admin, listeners }))
    };
    match within(&channel, DOING, conversation).await {
        Ok((offer, gift)) => Ok(Answer::Yes(Box::new(Predecessor { channel, offer, paused: None }), gift)),
        Err(HandoverError::Refused { leaving: true, .. }) => Ok(Answer::Leaving(Leaving(channel))),
        Err(error) => Err(error),
    }
}

impl Predecessor {
    /// What it handed over, and what it runs with.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Who it is.
    pub fn peer(&self) -> Peer {
        self.channel.peer()
    }

    /// Has it stop accepting. From here on every moment counts.
    ///
    /// # Errors
    /// When it does not; it goes on as before.
    pub async fn pause(&mut self) -> Result<(), HandoverError> {
        const DOING: &str = "being asked to pause";
        self.paused = Some(Instant::now());
        self.channel.send(&Message::Pause, &[], DOING).await?;
        match within(&self.channel, DOING, self.channel.recv(DOING)).await? {
            (Message::Paused, _) => self.in_time(),
            (other, _) => Err(confused(&self.channel, DOING, &other)),
        }
    }

    /// Whether the programs may still be put in place.
    ///
    /// # Errors
    /// When the pause may be over before that is done.
    fn in_time(&self) -> Result<(), HandoverError> {
        let doing = "being asked to pause";
        match self.paused {
            Some(since) if since.elapsed() > LATEST => {
                Err(HandoverError::Silent { pid: self.peer().pid, doing, limit: LATEST })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Has it leave: the programs, pins, routes and the lock are this agent's from now on, and it alone
    /// accepts. Returns how long nobody did.
    ///
    /// # Errors
    /// When it has gone on already: then nothing of that holds, and this agent must not accept.
    pub async fn take(&self) -> Result<Duration, HandoverError> {
        const DOING: &str = "being asked to leave";
        match self.channel.send(&Message::Done, &[], DOING).await {
            // What it said before it broke off says why.
            Ok(()) | Err(HandoverError::Gone { .. }) => {}
            Err(other) => return Err(other),
        }
        match within(&self.channel, DOING, self.channel.recv(DOING)).await? {
            (Message::Yours, _) => Ok(self.paused.map(|since| since.elapsed()).unwrap_or_default()),
            (other, _) => Err(confused(&self.channel, DOING, &other)),
        }
    }

    /// Waits until it has drained and ended.
    pub async fn ended(self) {
        self.channel.gone().await;
    }
}

async fn within<T>(
    channel: &Channel,
    doing: &'static str,
    answer: impl Future<Output = Result<T, HandoverError>>,
) -> Result<T, HandoverError> {
    let pid = channel.peer().pid;
    timeout(ANSWER, answer).await.unwrap_or(Err(HandoverError::Silent { pid, doing, limit: ANSWER }))
}
