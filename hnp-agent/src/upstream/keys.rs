//! Under which key a request's connection is: of the route's one identity, or of its caller's own.
//!
//! What is looked up for every request is kept by the worker: the key of each route, and where an issuer makes an
//! identity for each workload, those of the pods that were here of late. Whether a key still holds is asked of the key
//! (`is_live`), because there may be thousands.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use hnp_common::Reason;

use super::{DialError, Need, Offer, PoolKey, ProxyKey, Upstreams, presentable, unavailable};
use crate::config::plan::{Route, RouteIndex};
use crate::identity::issuer::{Issuer, NotIssued, Slot};
use crate::identity::snapshot::IdentitySnapshot;
use crate::trust::snapshot::TrustSnapshot;
use crate::workload::Caller;

/// For how many sweeps a pod that asks for nothing is remembered.
const REMEMBERED: u8 = 60;

/// A route's current keys.
#[derive(Debug, Default)]
pub(super) struct RouteKeys {
    /// Of the route's identity.
    own: Keys,
    /// Of pods that have identities of their own, by UID.
    pods: HashMap<Box<str>, OfPod>,
}

/// What is known of a pod.
#[derive(Debug)]
struct OfPod {
    issuer: Arc<Issuer>,
    slot: Arc<Slot>,
    keys: Keys,
    /// Sweeps until it is forgotten.
    left: u8,
}

/// Keys by what is offered.
#[derive(Debug, Default)]
struct Keys {
    any: Option<Rc<PoolKey>>,
    http1: Option<Rc<PoolKey>>,
}

impl Keys {
    fn of(
        &mut self,
        route: &Route,
        offer: Offer,
        (identity, trust): (&Arc<IdentitySnapshot>, &Arc<TrustSnapshot>),
        proxy: Option<ProxyKey>,
    ) -> Rc<PoolKey> {
        let known = if offer == Offer::Http2 { &mut self.any } else { &mut self.http1 };
        if let Some(key) = known
            && Arc::ptr_eq(&key.identity, identity)
            && Arc::ptr_eq(&key.trust, trust)
            && key.proxy == proxy
        {
            return key.clone();
        }
        let key = Rc::new(PoolKey {
            route: route.name.clone(),
            host: route.upstream.host.clone(),
            port: route.upstream.port,
            server_name: route.upstream.server_name.clone(),
            proxy,
            offer,
            identity: identity.clone(),
            trust: trust.clone(),
        });
        *known = Some(key.clone());
        key
    }

    fn retain(&mut self, holds: impl Fn(&PoolKey) -> bool) {
        for key in [&mut self.any, &mut self.http1] {
            if key.as_ref().is_some_and(|key| !holds(key)) {
                *key = None;
            }
        }
    }
}

impl Upstreams {
    /// The key of a route's connections that speak for a caller now.
    pub(super) fn key(
        &self,
        route: RouteIndex,
        caller: Caller<'_>,
        need: Need,
    ) -> Result<Rc<PoolKey>, DialError> {
        let plan = &self.plan().routes[route];
        let Some(mode) = plan.reverse_proxy() else {
            return Err(DialError::new(Reason::Internal, "a tunnel presents no identity", None));
        };
        let name = &self.plan().identities[mode.identity].name;
        let shared = &self.generation.identities[mode.identity];
        let identity = shared.load();
        let identity = identity.as_ref().ok_or_else(|| unavailable("identity", name))?;
        let trust = self.generation.trusts[mode.trust].load();
        let trust =
            trust.as_ref().ok_or_else(|| unavailable("trust", &self.plan().trusts[mode.trust].name))?;
        let proxy = self.proxy(plan)?;
        let offer = match (Offer::of(mode), need) {
            (Offer::Http2, Need::Http1 | Need::WebSocket) => Offer::Http1,
            (offer, _) => offer,
        };
        let keys = &mut self.keys.borrow_mut()[route];
        let Some(issuer) = identity.issuer() else {
            presentable(identity)?;
            return Ok(keys.own.of(plan, offer, (identity, trust), proxy));
        };
        if let Some((of_pod, presented)) = keys.presented(issuer, caller)? {
            return Ok(of_pod.keys.of(plan, offer, (&presented, trust), proxy));
        }
        // Given up in this moment: the intermediate was replaced, or too many others wanted a place.
        let newest = shared.load();
        let newest = newest.as_ref().and_then(|newest| newest.issuer());
        match newest.map(|newest| keys.presented(newest, caller)).transpose()?.flatten() {
            Some((of_pod, presented)) => Ok(of_pod.keys.of(plan, offer, (&presented, trust), proxy)),
            None => Err(unavailable("identity", name)),
        }
    }

    /// Whether it is to be waited for the API server's word on what a caller runs as.
    pub(super) fn is_unconfirmed(&self, route: RouteIndex, caller: Caller<'_>) -> bool {
        let Some(issuer) = self.issuer(route) else { return false };
        let Caller::Pod(uid) = caller else { return false };
        let keys = &self.keys.borrow()[route];
        let known = keys.pods.get(uid).is_some_and(|of_pod| of_pod.is_of(&issuer));
        !known && issuer.may_become_known(uid)
    }

    /// Waits for it, as long as for a connection. What came of it is seen by [`Self::key`].
    pub(super) async fn confirm(&self, route: RouteIndex, caller: Caller<'_>) {
        let (Some(issuer), Caller::Pod(uid)) = (self.issuer(route), caller) else { return };
        issuer.wait_for_pod(uid, self.plan().routes[route].timeouts.connect).await;
    }

    /// What issues a route's identities, where each workload has its own.
    fn issuer(&self, route: RouteIndex) -> Option<Arc<Issuer>> {
        let mode = self.plan().routes[route].reverse_proxy()?;
        // Nearly all have none, and that is known without a look at what is loaded.
        self.plan().identities[mode.identity].source.issuer()?;
        self.generation.identities[mode.identity].load().as_ref()?.issuer().cloned()
    }

    /// Whether connections of a key may carry the route's requests now: those of its caller.
    pub(super) fn is_live(&self, route: RouteIndex, key: &PoolKey) -> bool {
        let plan = &self.plan().routes[route];
        let Some(mode) = plan.reverse_proxy() else { return false };
        let identity = self.generation.identities[mode.identity].load();
        let trust = self.generation.trusts[mode.trust].load();
        let (Some(identity), Some(trust)) = (&*identity, &*trust) else { return false };
        let presented = match identity.issuer() {
            None => Arc::ptr_eq(identity, &key.identity),
            Some(issuer) => key.identity.of_workload().is_some_and(|of| of.is_presented_by(issuer)),
        };
        let offered = match Offer::of(mode) {
            Offer::Http2 => key.offer != Offer::Nothing,
            offer => key.offer == offer,
        };
        presented
            && offered
            && Arc::ptr_eq(trust, &key.trust)
            && key.route == plan.name
            && key.host == plan.upstream.host
            && key.port == plan.upstream.port
            && key.server_name == plan.upstream.server_name
            && self.proxy(plan).is_ok_and(|proxy| proxy == key.proxy)
    }

    /// Whether any route's connections may be of a key.
    pub(super) fn has(&self, key: &PoolKey) -> bool {
        let named = |route: &RouteIndex| self.plan().routes[*route].name == key.route;
        (0..self.plan().routes.len()).find(named).is_some_and(|route| self.is_live(route, key))
    }

    /// How many connections may be idle together with those of a key, where others of its route are of other workloads.
    pub(super) fn idle_together(&self, key: &PoolKey) -> Option<usize> {
        key.identity.of_workload()?;
        let route = self.plan().routes.iter().find(|route| route.name == key.route)?;
        Some(route.upstream.pool_idle)
    }

    /// Forgets keys that are over, which hold private keys, and pods that have gone or have asked for nothing for a while.
    pub(super) fn sweep_keys(&self) {
        for (route, keys) in self.keys.borrow_mut().iter_mut().enumerate() {
            keys.own.retain(|key| self.is_live(route, key));
            keys.pods.retain(|_, of_pod| {
                of_pod.left = of_pod.left.saturating_sub(1);
                of_pod.left > 0 && !of_pod.slot.is_gone()
            });
            keys.pods.values_mut().for_each(|of_pod| of_pod.keys.retain(|key| self.is_live(route, key)));
        }
    }
}

impl RouteKeys {
    /// What a caller presents by an issuer; `None`: its place was given up in this moment.
    fn presented(
        &mut self,
        issuer: &Arc<Issuer>,
        caller: Caller<'_>,
    ) -> Result<Option<(&mut OfPod, Arc<IdentitySnapshot>)>, DialError> {
        let uid = match caller {
            Caller::Pod(uid) => uid,
            Caller::Unknown { why, .. } => return Err(DialError::new(Reason::WorkloadUnknown, why, None)),
            Caller::Agent => {
                let why = "each workload has an identity of its own on this route, and the agent has none";
                return Err(DialError::new(Reason::WorkloadUnknown, why, None));
            }
        };
        if self.pods.get(uid).is_none_or(|known| !known.is_of(issuer)) {
            let slot = issuer.of_pod(uid).map_err(not_issued)?;
            let of_pod = OfPod { issuer: Arc::clone(issuer), slot, keys: Keys::default(), left: REMEMBERED };
            self.pods.insert(uid.into(), of_pod);
        }
        let Some(of_pod) = self.pods.get_mut(uid) else { return Ok(None) };
        of_pod.left = REMEMBERED;
        let presented = of_pod.issuer.present(&of_pod.slot).map_err(not_issued)?.clone();
        Ok(presented.map(|presented| (of_pod, presented)))
    }
}

impl OfPod {
    fn is_of(&self, issuer: &Arc<Issuer>) -> bool {
        Arc::ptr_eq(&self.issuer, issuer) && !self.slot.is_gone()
    }
}

fn not_issued(error: NotIssued) -> DialError {
    let reason = match error {
        NotIssued::Unconfirmed(_) => Reason::ServiceAccountUnconfirmed,
        NotIssued::Failed(_) => Reason::IdentityUnavailable,
    };
    DialError::new(reason, error.to_string(), None)
}
