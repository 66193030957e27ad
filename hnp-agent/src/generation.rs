//! One generation of the configuration: a Plan, and the certificates and roots its routes refer to.
//!
//! They are one unit, because a route refers to its identity and trust by their place in the Plan, and
//! the VIP table refers to routes the same way. Whoever holds an index holds the generation it is of;
//! nobody mixes two. A reload makes the next one (`reload`), and connections finish under their own.

use std::sync::Arc;

use crate::config::end_to_end::{EndToEnd, PodTls};
use crate::config::plan::{Plan, RouteIndex};
use crate::identity::snapshot::SharedIdentity;
use crate::serving::{Place, Serving, Terms, Unavailable};
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
    /// What pods are shown, where their TLS ends here.
    serving: Serving,
}

impl Generation {
    /// The next generation.
    pub fn new(
        number: u64,
        plan: Arc<Plan>,
        identities: Vec<SharedIdentity>,
        trusts: Vec<SharedTrust>,
    ) -> Self {
        let serving = Serving::new(plan.routes.len());
        Self { number, plan, identities, trusts, serving }
    }

    /// On what terms a route ends a pod's TLS now.
    ///
    /// # Errors
    /// What it needs could not be loaded.
    pub fn terms(&self, route: RouteIndex, mode: &EndToEnd) -> Result<Arc<Terms>, Unavailable> {
        let place = Place::Route(route, mode.onward.protocol);
        self.serving.terms(&self.plan, place, &mode.tls, &self.identities, &self.trusts)
    }

    /// The same for the gateway's own port.
    ///
    /// # Errors
    /// What it needs could not be loaded.
    pub fn gateway_terms(&self, tls: &PodTls) -> Result<Arc<Terms>, Unavailable> {
        self.serving.terms(&self.plan, Place::Gateway, tls, &self.identities, &self.trusts)
    }
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
        Arc::new(Self::new(number, Arc::new(plan), Vec::new(), Vec::new()))
    }
}
