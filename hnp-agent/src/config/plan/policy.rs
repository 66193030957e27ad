//! Who may use a route: rules on what is known of a pod. What they come to is decided in `policy`.

use std::fmt;
use std::sync::Arc;

use crate::config::selector::Selector;

/// Which workloads may use a route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// Whether those may that no rule speaks of.
    pub default: Permission,
    /// Who may.
    pub allow: Vec<Rule>,
    /// Who may not, whatever else is said.
    pub deny: Vec<Rule>,
    /// Nobody is refused: what would be is counted and logged.
    pub dry_run: bool,
}

/// Whose word on a pod's labels counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LabelsBy {
    /// The API server's: they are what they are now.
    Api,
    /// The container runtime's, where no API server is known: they are what they were when the pod was made.
    Runtime,
}

/// Whether something is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Permission {
    /// It is.
    Allow,
    /// It is not.
    Deny,
}

impl Permission {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Which workloads are meant. At least one condition is set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Pods of one of these namespaces, where there are any.
    pub namespaces: Vec<Arc<str>>,
    /// Pods that run as one of these, likewise.
    pub service_accounts: Vec<ServiceAccountName>,
    /// Pods with such labels.
    pub selector: Option<Selector>,
    /// One of the conditions is enough; else all must hold.
    pub any: bool,
}

/// A service account as it is written: `NAMESPACE/NAME`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceAccountName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceAccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut conditions = Vec::new();
        if !self.namespaces.is_empty() {
            conditions.push(format!("namespace {}", self.namespaces.join(" or ")));
        }
        if !self.service_accounts.is_empty() {
            let names: Vec<String> = self.service_accounts.iter().map(ToString::to_string).collect();
            conditions.push(format!("service account {}", names.join(" or ")));
        }
        if let Some(selector) = &self.selector {
            conditions.push(format!("labels {selector}"));
        }
        f.write_str(&conditions.join(if self.any { "; or " } else { "; and " }))
    }
}

impl Policy {
    /// Whether a rule asks for what the API server knows best, or alone.
    pub fn needs_api(&self) -> bool {
        self.rules().any(|rule| !rule.service_accounts.is_empty() || rule.selector.is_some())
    }

    /// Whether a rule asks for labels.
    pub fn selects(&self) -> bool {
        self.rules().any(|rule| rule.selector.is_some())
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.allow.iter().chain(&self.deny)
    }
}
