//! Asking who a pod is, as soon as its cgroup is seen first.
//!
//! The question goes out when the first connection of a pod is attributed, and nobody waits for the answer but what needs
//! it: an access line, which is written at the end. A cgroup that is new asks even about a UID that is known, because the
//! UID alone would say that it is the same pod. Of one UID one question is open at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::directory::Directory;
use super::pod::{Pod, Teller};

/// Questions that wait to be taken. Beyond it none is asked, and pods go by their UIDs until the next list.
const WAITING: usize = 1024;

/// Who asks. Clones are the same.
#[derive(Clone, Debug)]
pub struct Lookups(Arc<State>);

#[derive(Debug)]
struct State {
    directory: Directory,
    questions: mpsc::Sender<Question>,
    open: Mutex<HashMap<Arc<str>, Arc<watch::Sender<bool>>>>,
}

/// A question: over when it is dropped, whatever came of it.
#[derive(Debug)]
pub struct Question {
    /// Which pod.
    pub uid: Arc<str>,
    open: Arc<watch::Sender<bool>>,
    lookups: Lookups,
}

/// What is known of a caller's pod at any time. Says nothing of who the caller is, so all are equal.
#[derive(Clone, Debug, Default)]
pub struct PodLink(Option<Arc<Linked>>);

#[derive(Debug)]
struct Linked {
    uid: Arc<str>,
    directory: Directory,
    open: Arc<watch::Sender<bool>>,
}

impl Lookups {
    /// What is asked is to be taken from the receiver; where that is gone, nothing is asked.
    pub fn new(directory: Directory) -> (Self, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(WAITING);
        (Self(Arc::new(State { directory, questions, open: Mutex::default() })), asked)
    }

    /// Asks about the pod whose cgroup is seen first. Never blocks.
    pub fn link(&self, uid: &str) -> PodLink {
        let uid: Arc<str> = uid.into();
        let linked = |open| Linked { uid: Arc::clone(&uid), directory: self.0.directory.clone(), open };
        let open = match self.open().entry(Arc::clone(&uid)) {
            Entry::Occupied(asked) => return PodLink(Some(Arc::new(linked(Arc::clone(asked.get()))))),
            Entry::Vacant(free) => Arc::clone(free.insert(Arc::new(watch::Sender::new(true)))),
        };
        let question = Question { uid: Arc::clone(&uid), open: Arc::clone(&open), lookups: self.clone() };
        // Where there is no room it is dropped, and so over. The map is not locked any more.
        drop(self.0.questions.try_send(question));
        PodLink(Some(Arc::new(linked(open))))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<watch::Sender<bool>>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.lookups.open().remove(&self.uid);
        self.open.send_replace(false);
    }
}

impl PodLink {
    /// To a pod about which nobody is asked.
    pub fn to(directory: Directory, uid: &str) -> Self {
        Self(Some(Arc::new(Linked { uid: uid.into(), directory, open: Arc::new(watch::Sender::new(false)) })))
    }

    /// The pod, as far as it is known now.
    pub fn known(&self) -> Option<Arc<Pod>> {
        let linked = self.0.as_deref()?;
        linked.directory.of(&linked.uid)
    }

    /// The pod, once nobody is asked about it any more, or at once where the API server has its word on it. `None`: what is wanted of
    /// it is not known, and was not told `within`.
    pub async fn wait_for(&self, want: impl Fn(&Pod) -> bool, within: Duration) -> Option<Arc<Pod>> {
        let linked = self.0.as_deref()?;
        let by_api = |pod: &Pod| want(pod) && pod.named_by == Teller::Api && !pod.gone;
        if let Some(pod) = self.known().filter(|pod| by_api(pod)) {
            return Some(pod);
        }
        let mut open = linked.open.subscribe();
        let answered = async { drop(open.wait_for(|open| !open).await) };
        let told = linked.directory.wait_for(&linked.uid, by_api, within);
        tokio::select! {
            // An answer that does not come in time is none: who has this UID now may be another pod.
            answered = timeout(within, answered) => answered.ok().and_then(|()| self.known()).filter(|pod| want(pod)),
            told = told => told,
        }
    }

    /// Somebody has been asked and has not answered yet.
    pub fn is_awaited(&self) -> bool {
        self.0.as_deref().is_some_and(|linked| *linked.open.borrow())
    }
}

impl PartialEq for PodLink {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for PodLink {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Facts, Teller};

    #[test]
    fn one_question_is_open_for_a_pod_and_the_next_cgroup_asks_again() {
        let directory = Directory::default();
        let (lookups, mut asked) = Lookups::new(directory.clone());
        let (first, second, other) = (lookups.link("a"), lookups.link("a"), lookups.link("b"));
        let questions = [asked.try_recv().unwrap(), asked.try_recv().unwrap()];
        assert_eq!(questions.each_ref().map(|question| &*question.uid), ["a", "b"]);
        assert!(asked.try_recv().is_err(), "one for both of a's");
        assert!(first.is_awaited() && second.is_awaited() && other.is_awaited());
        assert_eq!(first.known(), None);
        let [a, b] = questions;
        directory.tell(Teller::Runtime, [Facts::named("a", "ns", "name")]);
        drop(a);
        assert!(!first.is_awaited() && !second.is_awaited() && other.is_awaited());
        assert_eq!(first.known().unwrap().name, "name".into());
        // It is known, and asked for again all the same.
        assert!(lookups.link("a").is_awaited());
        drop((b, asked.try_recv().unwrap()));
        assert!(lookups.open().is_empty());
    }

    #[tokio::test]
    async fn who_needs_a_pods_name_waits_for_the_answer_and_not_beyond_it() {
        let directory = Directory::default();
        let (lookups, mut asked) = Lookups::new(directory.clone());
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(1));
        directory.tell(Teller::Runtime, [Facts::named("a", "ns", "before")]);
        let link = lookups.link("a");
        // It is known, but who has the UID now may be another one.
        assert_eq!(link.wait_for(|_| true, short).await, None);
        let answer = async {
            let question = asked.recv().await;
            directory.tell(Teller::Runtime, [Facts::named("a", "ns", "after")]);
            drop(question);
        };
        let (pod, ()) = tokio::join!(link.wait_for(|_| true, long), answer);
        assert_eq!(pod.unwrap().name, "after".into());
        // Nobody has more to say: it is not waited for.
        assert_eq!(link.wait_for(|pod| pod.labels.is_some(), long).await, None);
        // The API server's word is enough.
        let link = lookups.link("b");
        let told = async { directory.tell(Teller::Api, [Facts::named("b", "ns", "b")]) };
        let (pod, ()) = tokio::join!(link.wait_for(|_| true, long), told);
        assert!(pod.is_some() && link.is_awaited());
        assert_eq!(PodLink::default().wait_for(|_| true, long).await, None);
    }

    #[test]
    fn what_cannot_be_asked_is_not_waited_for() {
        let (lookups, asked) = Lookups::new(Directory::default());
        let all: Vec<PodLink> = (0..=WAITING).map(|pod| lookups.link(&pod.to_string())).collect();
        assert!(all[0].is_awaited() && !all[WAITING].is_awaited());
        drop(asked);
        assert!(!all[0].is_awaited() && !lookups.link("x").is_awaited());
        assert!(!PodLink::default().is_awaited());
    }
}
