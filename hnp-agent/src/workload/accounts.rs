//! Which service account a pod runs as: by the API server's word, and nobody else's.
//!
//! The runtime does not know it, and what a pod says of itself proves nothing. A pod's UID, which its cgroup holds, is the
//! API server's own, so it is the key: no two pods ever have the same.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// A service account.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Account {
    /// Its namespace, which is its pods' as well.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// On whose behalf something is sent.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'a> {
    /// The agent's own: connections ahead of use, and what an operator has looked at.
    Agent,
    /// The pod of this UID, by its cgroup.
    Pod(&'a str),
    /// Somebody who is not known to be a pod; why, in words.
    Unknown(&'static str),
}

/// By the pods' UIDs.
pub type ByPod = HashMap<Box<str>, Arc<Account>>;

/// The service accounts of this node's pods, as far as they are known. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Accounts(Arc<State>);

#[derive(Debug, Default)]
struct State {
    known: RwLock<ByPod>,
    /// How often it was changed.
    changes: watch::Sender<u64>,
}

impl Accounts {
    /// What a pod runs as.
    pub fn of(&self, pod_uid: &str) -> Option<Arc<Account>> {
        self.read(|known| known.get(pod_uid).cloned())
    }

    /// The same, for a pod of which the API server may be about to tell.
    pub async fn wait_for(&self, pod_uid: &str, within: Duration) -> Option<Arc<Account>> {
        let mut changes = self.0.changes.subscribe();
        let known = async {
            loop {
                changes.mark_unchanged();
                if let Some(account) = self.of(pod_uid) {
                    return Some(account);
                }
                changes.changed().await.ok()?;
            }
        };
        timeout(within, known).await.ok().flatten()
    }

    /// Looks at all of them.
    pub fn read<T>(&self, look: impl FnOnce(&ByPod) -> T) -> T {
        look(&self.0.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in what the API server says.
    pub fn change<T>(&self, change: impl FnOnce(&mut ByPod) -> T) -> T {
        let changed = change(&mut self.0.known.write().unwrap_or_else(PoisonError::into_inner));
        self.0.changes.send_modify(|changes| *changes += 1);
        changed
    }

    /// Grows with every change.
    pub fn changes(&self) -> u64 {
        *self.0.changes.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_hears_of_his_pod_and_of_no_other() {
        let accounts = Accounts::default();
        let account = |name: &str| Arc::new(Account { namespace: "ns".into(), name: name.into() });
        let long = Duration::from_secs(60);
        let later = async {
            tokio::task::yield_now().await;
            accounts.change(|known| known.insert("other".into(), account("b")));
            tokio::task::yield_now().await;
            accounts.change(|known| known.insert("mine".into(), account("a")));
        };
        let (found, ()) = tokio::join!(accounts.wait_for("mine", long), later);
        assert_eq!(found, Some(account("a")));
        assert_eq!(accounts.changes(), 2);
        assert_eq!(accounts.wait_for("nobody", Duration::from_millis(1)).await, None);
    }
}
