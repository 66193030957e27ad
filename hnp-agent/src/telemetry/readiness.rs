//! What the agent is still waiting for. `/readyz` is the list; empty means ready.
//!
//! A condition is a guard: whoever holds it says what it waits for, and dropping it means done. So
//! nobody has to enumerate all conditions in one place, and none is forgotten when a task is added.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The set of pending conditions. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<Mutex<Conditions>>,
    /// Told whenever the last condition is gone.
    fulfilled: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Conditions {
    next_id: u64,
    list: Vec<Condition>,
}

#[derive(Debug)]
struct Condition {
    id: u64,
    name: String,
    why: String,
}

impl Readiness {
    /// Nothing pending yet: take the guards before the admin server starts to listen.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition that holds readiness down until the guard is dropped. `name` is stable
    /// (`identity manager-client`), `why` is for people and may change with [`Pending::because`].
    #[must_use = "readiness comes up again when the guard is dropped"]
    pub fn pending(&self, name: impl Into<String>, why: impl Into<String>) -> Pending {
        let mut conditions = self.lock();
        let id = conditions.next_id;
        conditions.next_id += 1;
        conditions.list.push(Condition { id, name: name.into(), why: why.into() });
        Pending { readiness: self.clone(), id }
    }

    /// True when nothing is pending.
    pub fn is_ready(&self) -> bool {
        self.lock().list.is_empty()
    }

    /// Waits until nothing is pending. Safe to drop at any time.
    pub async fn ready(&self) {
        loop {
            // Listens before it looks: what is fulfilled in between is not missed.
            let fulfilled = self.fulfilled.notified();
            if self.is_ready() {
                return;
            }
            fulfilled.await;
        }
    }

    /// What is pending, oldest first: name and why.
    pub fn conditions(&self) -> Vec<(String, String)> {
        self.lock().list.iter().map(|condition| (condition.name.clone(), condition.why.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Conditions> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pending condition; dropping it says it is fulfilled.
#[derive(Debug)]
pub struct Pending {
    readiness: Readiness,
    id: u64,
}

impl Pending {
    /// Replaces the words for people.
    pub fn because(&self, why: impl Into<String>) {
        let mut conditions = self.readiness.lock();
        if let Some(condition) = conditions.list.iter_mut().find(|condition| condition.id == self.id) {
            condition.why = why.into();
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut conditions = self.readiness.lock();
        conditions.list.retain(|condition| condition.id != self.id);
        if conditions.list.is_empty() {
            self.readiness.fulfilled.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_guard_is_gone() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let first = readiness.pending("identity a", "not loaded");
        let second = readiness.pending("name b", "not resolved");
        first.because("no such file");
        assert_eq!(
            readiness.conditions(),
            [("identity a".into(), "no such file".into()), ("name b".into(), String::from("not resolved"))]
        );
        drop(first);
        assert!(!readiness.is_ready());
        drop(second);
        assert!(readiness.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_when_the_last_guard_goes() {
        let readiness = Readiness::new();
        readiness.ready().await;
        let (first, second) = (readiness.pending("a", "a"), readiness.pending("b", "b"));
        let waits = tokio::time::timeout(std::time::Duration::from_secs(1), readiness.ready());
        drop(first);
        assert!(waits.await.is_err(), "one is left");
        let (told, ()) =
            tokio::join!(tokio::time::timeout(std::time::Duration::from_secs(1), readiness.ready()), async {
                drop(second)
            });
        told.expect("ready");
    }

    #[test]
    fn two_conditions_of_one_name_are_two() {
        let readiness = Readiness::new();
        let first = readiness.pending("drain", "draining");
        let second = readiness.pending("drain", "draining");
        drop(first);
        assert!(!readiness.is_ready());
        drop(second);
        assert!(readiness.is_ready());
    }
}
