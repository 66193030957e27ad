//! One generation of the configuration: a Plan, and the certificates and roots its routes refer to.
//!
//! They are one unit, because a route refers to its identity and trust by their place in the Plan, and
//! the VIP table refers to routes the same way. Whoever holds an index holds the generation it is of;
//! nobody mixes two. A reload makes the next one (`reload`), and connections finish under their own.

use std::sync::Arc;

use crate::config::plan::Plan;
use crate::identity::snapshot::SharedIdentity;
use crate::trust::snapshot::SharedTrust;

/// A Plan in force, and what its identities and trusts stand for at the moment.
#[derive(Debug)]
pub struct Generation {
    /// Grows by one with every configuration that is applied; the one of the start is 1.
    pub number: u64,
    /// The configuration.
    pub plan: Arc<Plan>,
    /// In the order of the Plan. What a Plan has in common with the one before is the same here.
    pub identities: Vec<SharedIdentity>,
    /// In the order of the Plan, as the identities.
    pub trusts: Vec<SharedTrust>,
}

/// A generation is never changed, so its number says it all.
impl PartialEq for Generation {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Generation {}

#[cfg(test)]
impl Generation {
    /// One whose identities and trusts nobody asks for.
    pub(crate) fn for_test(number: u64, plan: Plan) -> Arc<Self> {
        Arc::new(Self { number, plan: Arc::new(plan), identities: Vec::new(), trusts: Vec::new() })
    }
}
