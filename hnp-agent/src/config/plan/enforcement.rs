//! What happens to connections that cannot be served, and for which pods something else does.

use std::sync::Arc;

use crate::config::selector::{Labels, Selector};

/// Another enforcement for some pods.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Override {
    /// The pods' namespaces; none: of any. There are some, or a selector.
    pub namespaces: Vec<Arc<str>>,
    /// The pods' labels.
    pub selector: Option<Selector>,
    /// What holds for them instead.
    pub enforcement: Enforcement,
}

/// What happens to connections that the route cannot or must not serve. In order: the later one wins
/// where routes share an address.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Enforcement {
    /// Never redirected; counted by workload.
    Observe,
    /// Redirected, and direct only while the agent's heartbeat is stale; requests for other names on the
    /// same address pass through untouched.
    Loose,
    /// Redirected or refused, never direct.
    Strict,
}

/// What is known of a pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodTraits<'a> {
    /// Its namespace.
    pub namespace: Option<&'a str>,
    /// Its labels.
    pub labels: Option<&'a Labels>,
}

/// What may hold for a pod: one enforcement where all that matters is known of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PossibleEnforcement {
    /// The weakest that may be meant.
    pub weakest: Enforcement,
    /// The strictest; what holds until more is known.
    pub strictest: Enforcement,
}

impl Enforcement {
    /// The word in the configuration, in logs and in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Loose => "loose",
            Self::Strict => "strict",
        }
    }
}

impl std::fmt::Display for Override {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} for", self.enforcement.as_str())?;
        if !self.namespaces.is_empty() {
            write!(f, " namespaces {}", self.namespaces.join(", "))?;
        }
        match &self.selector {
            Some(selector) if self.namespaces.is_empty() => write!(f, " pods with {selector}"),
            Some(selector) => write!(f, ", pods with {selector}"),
            None => Ok(()),
        }
    }
}

impl Override {
    /// Whether a pod is meant; `None`: what is known of it does not say.
    pub(super) fn matches(&self, pod: PodTraits<'_>) -> Option<bool> {
        let namespace = if self.namespaces.is_empty() {
            Some(true)
        } else {
            pod.namespace.map(|namespace| self.namespaces.iter().any(|name| **name == *namespace))
        };
        let labels = match &self.selector {
            None => Some(true),
            Some(selector) => pod.labels.map(|labels| selector.matches(labels)),
        };
        match (namespace, labels) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            (None, _) | (_, None) => None,
        }
    }
}

impl PossibleEnforcement {
    /// No doubt about it.
    pub fn only(enforcement: Enforcement) -> Self {
        Self { weakest: enforcement, strictest: enforcement }
    }
}
