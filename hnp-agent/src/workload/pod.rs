//! What is known of a pod, and by whose word.
//!
//! Three tell of pods: kubelet's log directories (namespace and name), the runtime (labels and annotations as they were when
//! the pod was made), and the API server (labels as they are, service account, owner). What is decided by a part may depend on
//! who told it: an identity is issued by the API server's word alone, and what a pod says of itself proves nothing.

use std::sync::Arc;

use crate::config::selector::Labels;

/// Who tells of pods; the later is believed rather than the earlier.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Teller {
    /// kubelet, by the names of its log directories.
    Logs,
    /// The container runtime, over its CRI socket.
    Runtime,
    /// The API server.
    Api,
}

impl Teller {
    /// All of them, by their places.
    pub const ALL: [Self; 3] = [Self::Logs, Self::Runtime, Self::Api];
}

/// A part of what is known of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Known<T> {
    /// What it is.
    pub value: T,
    /// Who says so.
    pub by: Teller,
    /// He still does; else it was his last word, and the pod has gone as far as he knows.
    pub stands: bool,
}

/// A service account.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Account {
    /// Its namespace, which is its pods' as well.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// What made a pod and answers for it: the owner reference that has `controller: true`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Owner {
    /// Such as `ReplicaSet`.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A pod of this node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pod {
    /// By its cgroup: a static pod's is the hash of its manifest.
    pub uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Who calls it so.
    pub named_by: Teller,
    /// Its labels; `None`: not known, which is not the same as having none.
    pub labels: Option<Known<Arc<Labels>>>,
    /// Its annotations, but those that are longer than [`ANNOTATION_BYTES`].
    pub annotations: Option<Known<Arc<Labels>>>,
    /// What it runs as. Only the API server knows, and of static pods nobody.
    pub account: Option<Known<Arc<Account>>>,
    /// What made it. Only the API server knows.
    pub owner: Option<Known<Owner>>,
    /// Nobody says any more that it is there.
    pub gone: bool,
}

impl Pod {
    /// What it runs as, by the API server's word, which still stands.
    pub fn confirmed_account(&self) -> Option<&Arc<Account>> {
        standing(self.account.as_ref(), Teller::Api)
    }

    /// Its labels, likewise.
    pub fn confirmed_labels(&self) -> Option<&Arc<Labels>> {
        standing(self.labels.as_ref(), Teller::Api)
    }

    /// Its labels as they were when it was made, by the runtime's word, which still stands.
    pub fn labels_at_creation(&self) -> Option<&Arc<Labels>> {
        standing(self.labels.as_ref(), Teller::Runtime)
    }
}

fn standing<T>(part: Option<&Known<T>>, by: Teller) -> Option<&T> {
    part.filter(|part| part.stands && part.by == by).map(|part| &part.value)
}

/// Annotations that are longer are not kept: some hold whole manifests.
pub const ANNOTATION_BYTES: usize = 1024;

/// What one teller says of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Facts {
    /// Which pod.
    pub uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its labels, where the teller knows them.
    pub labels: Option<Arc<Labels>>,
    /// Its annotations, likewise.
    pub annotations: Option<Arc<Labels>>,
    /// What it runs as, likewise.
    pub account: Option<Arc<Account>>,
    /// What made it, likewise.
    pub owner: Option<Owner>,
    /// The UID is what the pod's own annotations claim (a static pod's mirror): anybody may write them, so it is believed only
    /// where kubelet or the runtime knows a pod of this UID by the same namespace and name.
    pub claimed: bool,
}

impl Facts {
    /// Of one of whom only that is known.
    pub fn named(uid: &str, namespace: &str, name: &str) -> Self {
        Self {
            uid: uid.into(),
            namespace: namespace.into(),
            name: name.into(),
            labels: None,
            annotations: None,
            account: None,
            owner: None,
            claimed: false,
        }
    }

    /// The same pod by both names.
    pub(super) fn is_namesake(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.name == other.name
    }
}

/// Of annotations, those that are kept.
pub fn short_annotations(mut all: Labels) -> Arc<Labels> {
    all.retain(|_, value| value.len() <= ANNOTATION_BYTES);
    Arc::new(all)
}
