//! The pods of this node as far as they are known, by their UIDs: one place for what all tellers say.
//!
//! A pod's UID, which its cgroup holds, is the API server's own, so it is the key: no two pods ever have the same. An
//! address is never one: it may be another pod's by now. Each teller's word is kept by itself, so a source that goes away takes
//! nothing with it, and one that comes back is believed at once. A pod that has gone is kept for a while, because its last access
//! lines are still to be written, and a bounded number of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout;

use super::pod::{Facts, Known, Pod, Teller};

/// How long a pod that has gone is known: longer than a connection of a process that has ended lasts.
const KEPT: Duration = Duration::from_secs(300);
/// How many pods that have gone are known at most.
const MOST_GONE: usize = 2048;

/// Pods by their UIDs.
pub type ByUid = HashMap<Arc<str>, Arc<Pod>>;

/// The pods of this node, as far as they are known. Clones are the same.
#[derive(Clone, Debug)]
pub struct Directory(Arc<State>);

#[derive(Debug)]
struct State {
    /// What readers see; they never wait. Replaced as a whole.
    known: ArcSwap<ByUid>,
    entries: Mutex<HashMap<Arc<str>, Entry>>,
    /// How often it was changed.
    changes: watch::Sender<u64>,
    kept: Duration,
}

/// What is said under one UID.
#[derive(Debug, Default)]
struct Entry {
    /// By [`Teller`]'s places, and whether it stands.
    told: [Option<(Facts, bool)>; Teller::ALL.len()],
    /// What pods claim that say they are mirrors of this one.
    claims: Vec<Facts>,
    gone: Option<Instant>,
}

impl Default for Directory {
    fn default() -> Self {
        Self::keeping(KEPT)
    }
}

impl Directory {
    fn keeping(kept: Duration) -> Self {
        let (known, entries) = (ArcSwap::default(), Mutex::default());
        Self(Arc::new(State { known, entries, changes: watch::Sender::new(0), kept }))
    }

    /// A pod, also one that has gone of late. Costs a look-up in a map that is read without a lock.
    pub fn of(&self, uid: &str) -> Option<Arc<Pod>> {
        self.0.known.load().get(uid).cloned()
    }

    /// A pod of which somebody may be about to tell what is wanted; `None` when the time has passed.
    pub async fn wait_for(
        &self,
        uid: &str,
        want: impl Fn(&Pod) -> bool,
        within: Duration,
    ) -> Option<Arc<Pod>> {
        let mut changes = self.subscribe();
        let known = async {
            loop {
                changes.mark_unchanged();
                if let Some(pod) = self.of(uid).filter(|pod| want(pod)) {
                    return Some(pod);
                }
                changes.changed().await.ok()?;
            }
        };
        timeout(within, known).await.ok().flatten()
    }

    /// All of them, as of now.
    pub fn all(&self) -> Arc<ByUid> {
        self.0.known.load_full()
    }

    /// Grows with every change.
    pub fn changes(&self) -> u64 {
        *self.0.changes.borrow()
    }

    /// To be woken by changes.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Takes in what is said of some pods.
    pub fn tell(&self, by: Teller, facts: impl IntoIterator<Item = Facts>) {
        let mut entries = self.entries();
        let changed = facts.into_iter().map(|facts| put(&mut entries, by, facts)).collect();
        self.publish(&mut entries, changed);
    }

    /// Takes in what is said of all pods there are: of those that are left out it is said that they have gone.
    pub fn tell_all(&self, by: Teller, facts: impl IntoIterator<Item = Facts>) {
        let mut entries = self.entries();
        let mut changed = HashSet::new();
        for (uid, entry) in entries.iter_mut() {
            let told = entry.told[by as usize].as_mut();
            let stood = told.is_some_and(|(_, stands)| std::mem::replace(stands, false));
            let claimed = by == Teller::Api && !std::mem::take(&mut entry.claims).is_empty();
            if stood || claimed {
                changed.insert(Arc::clone(uid));
            }
        }
        changed.extend(facts.into_iter().map(|facts| put(&mut entries, by, facts)));
        self.publish(&mut entries, changed);
    }

    /// A pod has gone as far as one teller knows.
    pub fn withdraw(&self, by: Teller, gone: &Facts) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&gone.uid) else { return };
        if gone.claimed {
            entry.claims.retain(|claim| !claim.is_namesake(gone));
        } else if let Some((_, stands)) = &mut entry.told[by as usize] {
            *stands = false;
        }
        self.publish(&mut entries, HashSet::from([Arc::clone(&gone.uid)]));
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what has become of these, and forgets those that have gone for long. Nothing is done where nothing is new: most of what
    /// the API server tells is of a pod's status.
    fn publish(&self, entries: &mut HashMap<Arc<str>, Entry>, changed: HashSet<Arc<str>>) {
        let now = Instant::now();
        let known = self.0.known.load();
        let mut news: Vec<(Arc<str>, Option<Arc<Pod>>)> = Vec::new();
        for uid in changed {
            let Some(entry) = entries.get_mut(&uid) else { continue };
            let pod = entry.merged(&uid);
            let there = pod.as_ref().is_some_and(|pod| !pod.gone) || !entry.claims.is_empty();
            entry.gone = if there { None } else { Some(entry.gone.unwrap_or(now)) };
            if pod.as_ref() != known.get(&uid).map(|pod| &**pod) {
                news.push((uid, pod.map(Arc::new)));
            }
        }
        if news.is_empty() {
            return;
        }
        let mut gone: Vec<(Instant, Arc<str>)> =
            entries.iter().filter_map(|(uid, entry)| Some((entry.gone?, Arc::clone(uid)))).collect();
        gone.sort_unstable();
        let too_many = gone.len().saturating_sub(MOST_GONE);
        let over = |at: Instant| now.duration_since(at) > self.0.kept;
        let forgotten =
            gone.into_iter().enumerate().filter(|(place, (at, _))| *place < too_many || over(*at));
        let forgotten = forgotten.map(|(_, (_, uid))| (uid, None));
        let mut next = ByUid::clone(&known);
        for (uid, pod) in news.into_iter().chain(forgotten) {
            match pod {
                Some(pod) => drop(next.insert(uid, pod)),
                None => {
                    next.remove(&uid);
                    if entries.get(&uid).is_some_and(|entry| entry.gone.is_some()) {
                        entries.remove(&uid);
                    }
                }
            }
        }
        self.0.known.store(Arc::new(next));
        self.0.changes.send_modify(|changes| *changes += 1);
    }
}

fn put(entries: &mut HashMap<Arc<str>, Entry>, by: Teller, facts: Facts) -> Arc<str> {
    let uid = Arc::clone(&facts.uid);
    let entry = entries.entry(Arc::clone(&uid)).or_default();
    if facts.claimed {
        entry.claims.retain(|claim| !claim.is_namesake(&facts));
        entry.claims.push(facts);
    } else {
        entry.told[by as usize] = Some((facts, true));
    }
    uid
}

impl Entry {
    /// What all of it comes to. Whoever still stands by his word is believed before who does not, then as [`Teller`] says; of who
    /// calls the pod by another name than the first of them nothing is taken.
    fn merged(&self, uid: &Arc<str>) -> Option<Pod> {
        let told = Teller::ALL.iter().zip(&self.told);
        let mut words: Vec<(bool, Teller, &Facts)> = told
            .filter_map(|(by, told)| told.as_ref().map(|(facts, stands)| (*stands, *by, facts)))
            .collect();
        if self.told[Teller::Api as usize].is_none()
            && let Some(claim) =
                self.claims.iter().find(|claim| words.iter().any(|(_, _, facts)| facts.is_namesake(claim)))
        {
            words.push((true, Teller::Api, claim));
        }
        words.sort_by_key(|(stands, by, _)| std::cmp::Reverse((*stands, *by)));
        let &(stands, named_by, first) = words.first()?;
        words.retain(|(_, _, facts)| facts.is_namesake(first));
        Some(Pod {
            uid: Arc::clone(uid),
            namespace: Arc::clone(&first.namespace),
            name: Arc::clone(&first.name),
            named_by,
            labels: part(&words, |facts| facts.labels.clone()),
            annotations: part(&words, |facts| facts.annotations.clone()),
            account: part(&words, |facts| facts.account.clone()),
            owner: part(&words, |facts| facts.owner.clone()),
            gone: !stands,
        })
    }
}

fn part<T>(words: &[(bool, Teller, &Facts)], of: impl Fn(&Facts) -> Option<T>) -> Option<Known<T>> {
    words.iter().find_map(|&(stands, by, facts)| Some(Known { value: of(facts)?, by, stands }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Account;

    fn labelled(uid: &str, name: &str, app: &str) -> Facts {
        let labels = [("app".to_owned(), app.to_owned())].into_iter().collect();
        Facts { labels: Some(Arc::new(labels)), ..Facts::named(uid, "ns", name) }
    }

    fn of_account(uid: &str, account: &str) -> Facts {
        let account = Account { namespace: "ns".into(), name: account.into() };
        Facts { account: Some(Arc::new(account)), ..labelled(uid, uid, "api") }
    }

    /// Who names it, its name, its label and whether it has gone.
    fn seen(directory: &Directory, uid: &str) -> Option<(Teller, String, String, bool)> {
        let pod = directory.of(uid)?;
        let app = pod.labels.as_ref().map_or(String::new(), |labels| labels.value["app"].clone());
        Some((pod.named_by, pod.name.to_string(), app, pod.gone))
    }

    #[tokio::test]
    async fn who_waits_hears_of_his_pod_and_of_no_other() {
        let directory = Directory::default();
        let long = Duration::from_secs(60);
        let confirmed = |pod: &Pod| pod.confirmed_account().is_some();
        let later = async {
            tokio::task::yield_now().await;
            directory.tell(Teller::Api, [of_account("other", "b")]);
            tokio::task::yield_now().await;
            // Not what is waited for.
            directory.tell(Teller::Runtime, [labelled("mine", "mine", "x")]);
            tokio::task::yield_now().await;
            directory.tell(Teller::Api, [of_account("mine", "a")]);
        };
        let (found, ()) = tokio::join!(directory.wait_for("mine", confirmed, long), later);
        assert_eq!(found.unwrap().confirmed_account().unwrap().name, "a".into());
        assert_eq!(directory.changes(), 3);
        assert_eq!(directory.wait_for("nobody", confirmed, Duration::from_millis(1)).await, None);
    }

    #[test]
    fn the_api_servers_word_is_believed_first_and_a_source_that_ends_takes_nothing_along() {
        let directory = Directory::default();
        let seen = |uid| seen(&directory, uid);
        directory.tell_all(Teller::Logs, [Facts::named("a", "ns", "a")]);
        assert_eq!(seen("a"), Some((Teller::Logs, "a".into(), String::new(), false)));
        directory.tell(Teller::Runtime, [labelled("a", "a", "runtime")]);
        assert_eq!(seen("a"), Some((Teller::Runtime, "a".into(), "runtime".into(), false)));
        directory.tell(Teller::Api, [of_account("a", "x")]);
        assert_eq!(seen("a"), Some((Teller::Api, "a".into(), "api".into(), false)));
        // Again, and nothing is new.
        let before = directory.changes();
        directory.tell(Teller::Api, [of_account("a", "x")]);
        directory.tell_all(Teller::Runtime, [labelled("a", "a", "runtime")]);
        assert_eq!(directory.changes(), before);
        // The pod has gone from the server: what it said confirms nothing any more, and is remembered.
        directory.tell_all(Teller::Api, []);
        let pod = directory.of("a").unwrap();
        assert_eq!(seen("a"), Some((Teller::Runtime, "a".into(), "runtime".into(), false)));
        assert_eq!((pod.confirmed_account(), pod.confirmed_labels()), (None, None));
        assert_eq!(pod.account.as_ref().unwrap().value.name, "x".into());
        directory.tell_all(Teller::Runtime, []);
        directory.tell_all(Teller::Logs, []);
        // The last word of him who is believed most.
        assert_eq!(seen("a"), Some((Teller::Api, "a".into(), "api".into(), true)));
        directory.tell(Teller::Api, [of_account("a", "x")]);
        assert!(directory.of("a").unwrap().confirmed_account().is_some(), "it is there again");
    }

    #[test]
    fn two_who_call_a_pod_by_different_names_are_not_mixed() {
        let directory = Directory::default();
        directory.tell(Teller::Runtime, [labelled("a", "old", "runtime")]);
        directory.tell(Teller::Api, [Facts::named("a", "ns", "new")]);
        assert_eq!(seen(&directory, "a"), Some((Teller::Api, "new".into(), String::new(), false)));
        // A UID that comes back as another pod's: the last word of the one before is not its.
        directory.withdraw(Teller::Api, &Facts::named("a", "ns", "new"));
        directory.tell(Teller::Runtime, [Facts::named("a", "ns", "other")]);
        assert_eq!(seen(&directory, "a"), Some((Teller::Runtime, "other".into(), String::new(), false)));
    }

    #[test]
    fn a_mirror_is_believed_where_the_node_knows_the_pod_by_the_same_name() {
        let directory = Directory::default();
        let claim = |uid: &str, name: &str| Facts { claimed: true, ..labelled(uid, name, name) };
        directory.tell_all(Teller::Api, [claim("static", "static-a"), claim("static", "forged")]);
        assert_eq!(seen(&directory, "static"), None, "a claim alone is none");
        directory.tell(Teller::Logs, [Facts::named("static", "ns", "static-a")]);
        let expected = (Teller::Api, "static-a".into(), "static-a".into(), false);
        assert_eq!(seen(&directory, "static"), Some(expected));
        directory.withdraw(Teller::Api, &claim("static", "static-a"));
        let expected = (Teller::Logs, "static-a".into(), String::new(), false);
        assert_eq!(seen(&directory, "static"), Some(expected.clone()), "the forged one is no substitute");
        // Whom the server itself knows by this UID is nobody's mirror.
        directory.tell(Teller::Api, [labelled("a", "a", "own"), claim("a", "a")]);
        assert_eq!(seen(&directory, "a").unwrap().2, "own");
        directory.tell_all(Teller::Api, []);
        assert_eq!(seen(&directory, "static"), Some(expected));
        assert!(directory.of("a").unwrap().gone);
    }

    #[test]
    fn pods_that_have_gone_are_forgotten_in_time_and_are_not_too_many() {
        let directory = Directory::keeping(Duration::ZERO);
        directory.tell_all(Teller::Api, [of_account("a", "x"), of_account("b", "x")]);
        directory.tell_all(Teller::Api, [of_account("b", "x")]);
        directory.tell(Teller::Api, [of_account("c", "x")]);
        assert_eq!((directory.of("a"), directory.all().len()), (None, 2));
        let directory = Directory::default();
        for round in 0..4 {
            let pods = (0..MOST_GONE).map(|pod| Facts::named(&format!("{round}-{pod}"), "ns", "pod"));
            directory.tell_all(Teller::Runtime, pods);
        }
        assert_eq!(directory.all().len(), 2 * MOST_GONE);
        assert_eq!(directory.entries().len(), 2 * MOST_GONE);
        assert_eq!((directory.of("0-0"), directory.of("3-0").map(|pod| pod.gone)), (None, Some(false)));
        // Claims that nobody confirms go with their list.
        let claim = |n: usize| Facts { claimed: true, ..Facts::named(&n.to_string(), "ns", "pod") };
        directory.tell_all(Teller::Api, (0..10).map(claim));
        directory.tell_all(Teller::Api, []);
        directory.tell(Teller::Api, [Facts::named("x", "ns", "x")]);
        assert!(directory.entries().len() <= 2 * MOST_GONE + 1, "{}", directory.entries().len());
    }
}
