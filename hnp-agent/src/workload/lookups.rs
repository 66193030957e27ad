//! Asking who a pod is, as soon as its cgroup is seen first.
//!
//! The question goes out when the first connection of a pod is attributed, and nobody waits for the answer but what needs
//! it: an access line, which is written at the end. A cgroup that is new asks even about a UID that is known, because the
//! UID alone would say that it is the same pod. Of one UID one question is open at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::directory::Directory;
use super::pod::Pod;

/// Questions that wait to be taken. Beyond it none is asked, and pods go by their UIDs until the next list.
const WAITING: usize = 1024;

/// Who asks. Clones are the same.
#[derive(Clone, Debug)]
pub struct Lookups(Arc<State>);

#[derive(Debug)]
struct State {
    directory: Directory,
    questions: mpsc::Sender<Question>,
    open: Mutex<HashMap<Arc<str>, Arc<AtomicBool>>>,
}

/// A question: over when it is dropped, whatever came of it.
#[derive(Debug)]
pub struct Question {
    /// Which pod.
    pub uid: Arc<str>,
    open: Arc<AtomicBool>,
    lookups: Lookups,
}

/// What is known of a caller's pod at any time. Says nothing of who the caller is, so all are equal.
#[derive(Clone, Debug, Default)]
pub struct PodLink(Option<Arc<Linked>>);

#[derive(Debug)]
struct Linked {
    uid: Arc<str>,
    directory: Directory,
    open: Arc<AtomicBool>,
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
            Entry::Vacant(free) => Arc::clone(free.insert(Arc::new(AtomicBool::new(true)))),
        };
        let question = Question { uid: Arc::clone(&uid), open: Arc::clone(&open), lookups: self.clone() };
        // Where there is no room it is dropped, and so over. The map is not locked any more.
        drop(self.0.questions.try_send(question));
        PodLink(Some(Arc::new(linked(open))))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<AtomicBool>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.lookups.open().remove(&self.uid);
        self.open.store(false, SeqCst);
    }
}

impl PodLink {
    /// To a pod about which nobody is asked.
    pub fn to(directory: Directory, uid: &str) -> Self {
        Self(Some(Arc::new(Linked { uid: uid.into(), directory, open: Arc::default() })))
    }

    /// The pod, as far as it is known now.
    pub fn known(&self) -> Option<Arc<Pod>> {
        let linked = self.0.as_deref()?;
        linked.directory.of(&linked.uid)
    }

    /// Somebody has been asked and has not answered yet.
    pub fn is_awaited(&self) -> bool {
        self.0.as_deref().is_some_and(|linked| linked.open.load(SeqCst))
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
