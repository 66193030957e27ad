//! Whole conversations over a real socket, with an agent that only takes note of what it is told.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use tokio::sync::watch;

use super::wire::DESCRIPTORS;
use super::*;

/// More than fit into one packet.
const LISTENERS: usize = 2 * DESCRIPTORS + 3;

#[derive(Default)]
struct Notes(RefCell<Vec<&'static str>>);

impl Notes {
    fn note(&self, what: &'static str) {
        self.0.borrow_mut().push(what);
    }
}

fn offer() -> Offer {
    Offer {
        agent: "1.0.0".into(),
        netns: 1,
        cgroup: 2,
        gateway: Vec::new(),
        port: 15001,
        vips: ["a".into(), "b".into()],
        listeners: LISTENERS,
        admin: Some(([127, 0, 0, 1], 15090).into()),
        pending: vec!["name late".into()],
    }
}

impl Giver for Notes {
    fn offer(&self) -> io::Result<(Offer, Gift)> {
        let any = || File::open("/dev/null").map(OwnedFd::from);
        let listeners = (0..LISTENERS).map(|_| any()).collect::<io::Result<_>>()?;
        Ok((offer(), Gift { lock: any()?, admin: Some(any()?), listeners }))
    }

    async fn pause(&self) {
        self.note("pause");
    }

    fn resume(&self) {
        self.note("resume");
    }

    fn leave(&self) {
        self.note("leave");
    }
}

async fn asked(run_dir: &Path) -> (Predecessor, Gift) {
    match ask(run_dir).await.unwrap() {
        Answer::Yes(before, gift) => (*before, gift),
        Answer::Leaving(_) => panic!("it is not"),
    }
}

/// Runs an agent beside a successor, until that is done; what the agent was told.
async fn beside(
    run_dir: &Path,
    successor: impl Future<Output = ()>,
) -> (Vec<&'static str>, Option<HandedOver>) {
    let (door, agent) = (Door::open(run_dir).unwrap(), Notes::default());
    let (busy, failures) = (watch::Sender::new(false), Failures::default());
    let mut giving = Box::pin(give(&door, &agent, &busy, &failures));
    let mut handed_over = None;
    tokio::select! {
        to = &mut giving => handed_over = Some(to),
        () = successor => {}
    }
    drop(giving);
    (agent.0.into_inner(), handed_over)
}

#[tokio::test]
async fn a_successor_gets_everything_and_is_told_when_the_other_has_left() {
    let dir = tempfile::tempdir().unwrap();
    let successor = async {
        let (mut before, gift) = asked(dir.path()).await;
        assert_eq!(gift.listeners.len(), LISTENERS);
        assert!(gift.admin.is_some());
        assert_eq!(*before.offer(), offer());
        before.pause().await.unwrap();
        before.take().await.unwrap();
        std::future::pending::<()>().await;
    };
    let (told, handed_over) = beside(dir.path(), successor).await;
    assert_eq!(told, ["pause", "leave"]);
    let handed_over = handed_over.unwrap();
    assert_eq!(handed_over.to.pid, Some(std::process::id()));
    assert_eq!(handed_over.agent, env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn a_successor_that_gives_up_is_followed_by_one_that_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let successors = async {
        drop(asked(dir.path()).await);
        let (mut before, _) = asked(dir.path()).await;
        before.pause().await.unwrap();
        drop(before);
        let (mut before, _) = asked(dir.path()).await;
        before.pause().await.unwrap();
        before.take().await.unwrap();
        std::future::pending::<()>().await;
    };
    let (told, handed_over) = beside(dir.path(), successors).await;
    assert_eq!(told, ["pause", "resume", "pause", "leave"]);
    assert!(handed_over.is_some());
}

#[tokio::test]
async fn an_agent_that_stops_answering_amid_a_pause_accepts_again() {
    let dir = tempfile::tempdir().unwrap();
    let paused = async {
        let (mut before, _) = asked(dir.path()).await;
        before.pause().await.unwrap();
        // The agent stops answering here, as it does when its time for a hand-over is up.
    };
    let (told, handed_over) = beside(dir.path(), paused).await;
    assert_eq!(told, ["pause", "resume"]);
    assert!(handed_over.is_none());
}

#[tokio::test]
async fn an_agent_that_is_ending_says_so_and_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let door = Door::open(dir.path()).unwrap();
    let mut turned_away = TurnedAway::default();
    let answer = tokio::select! {
        answer = ask(dir.path()) => answer.unwrap(),
        never = turn_away(Some(&door), &mut turned_away) => match never {},
    };
    let Answer::Leaving(leaving) = answer else { panic!("it says that it is ending") };
    let mut ended = Box::pin(leaving.ended());
    let waits = tokio::time::timeout(Duration::from_millis(50), &mut ended);
    assert!(waits.await.is_err(), "it has not ended yet");
    drop(turned_away);
    ended.await;
}
