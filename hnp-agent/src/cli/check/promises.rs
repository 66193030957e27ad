//! What a strict route does not promise: said for each one it concerns, because people read `strict` as
//! more. docs/security.md has the reasons.

use rustls_pki_types::CertificateDer;

use super::Finding;
use crate::certs::names::Name;
use crate::config::plan::{Capture, CaptureMode, Enforcement, Guard, Plan, RawSockets, Route, Target};
use crate::identity::issuer::mint::Mint;
use crate::serving;

/// What a strict route does not promise where nothing is captured.
pub(super) fn uncaptured(index: usize, route: &Route, capture: &Capture) -> Option<Finding> {
    let strict = route.strictest_enforcement() == Enforcement::Strict;
    (strict && capture.mode == CaptureMode::Off).then(|| {
        let what = format!(
            "route {:?} is strict and capture is off: who asks the gateway is held to it, and who dials the manager \
             past the gateway is not hindered",
            route.name
        );
        Finding::elsewhere(format!("routes[{index}].enforcement"), what)
    })
}

/// What a strict route by name does not promise: said for each, because people read `strict` as more.
pub(super) fn by_name(index: usize, route: &Route) -> Option<Finding> {
    let names: Vec<String> = route
        .destinations
        .iter()
        .filter(|destination| matches!(destination.target, Target::Name(_)))
        .map(ToString::to_string)
        .collect();
    let strict = route.strictest_enforcement() == Enforcement::Strict;
    (strict && !names.is_empty()).then(|| {
        let what = format!(
            "route {:?} is strict by name ({}): it promises only the addresses the names have resolved to; a pod \
             that dials another address of the manager goes direct. List the manager's addresses (a CIDR such as \
             198.18.0.0/24:443) or the Service's ClusterIP as well",
            route.name,
            names.join(", ")
        );
        Finding::elsewhere(format!("routes[{index}].destinations"), what)
    })
}

/// What a name that a strict route lets through does to its promise.
pub(super) fn way_out(index: usize, route: &Route) -> Option<Finding> {
    let strict = route.strictest_enforcement() == Enforcement::Strict;
    (strict && !route.passthrough.is_empty()).then(|| {
        let names: Vec<String> = route.passthrough.iter().map(ToString::to_string).collect();
        let what = format!(
            "route {:?} is strict and lets {} through: a pod that writes such a name as Host or SNI reaches the \
             destination's address without mutual TLS. List only names under which the server there does not take \
             the manager's requests",
            route.name,
            names.join(", ")
        );
        Finding::elsewhere(format!("routes[{index}].passthrough"), what)
    })
}

/// A route that the gateway's clients cannot use.
pub(super) fn by_address(index: usize, route: &Route, plan: &Plan) -> Option<Finding> {
    plan.issuer_for(route)?;
    plan.gateway.is_some().then(|| {
        let what = format!(
            "on route {:?} each workload has an identity of its own, so clients of the gateway are refused there \
             (workload_unknown): they are known by their address alone. They have to dial the destinations themselves",
            route.name
        );
        Finding::elsewhere(format!("routes[{index}].identity"), what)
    })
}

/// What an identity can be shown as to pods.
pub(super) enum Shown {
    /// Its own certificate.
    Leaf(CertificateDer<'static>),
    /// What it issues.
    Issued(Box<Mint>),
}

impl Shown {
    fn is_for(&self, name: &str) -> bool {
        match self {
            Self::Leaf(leaf) => serving::is_for(leaf, name),
            Self::Issued(mint) => mint.server(&[Name::Dns(name.into())], crate::clock::now()).is_ok(),
        }
    }
}

/// Names of a route that ends TLS for which it has no certificate to show. `shown`: by identity, what was loaded.
pub(super) fn unserved(index: usize, route: &Route, shown: &[Option<Shown>]) -> Option<Finding> {
    let serving = &route.end_to_end()?.tls.serving;
    let shown: Option<Vec<_>> = serving.iter().map(|identity| shown[*identity].as_ref()).collect();
    // What could not be loaded is a mistake of its own.
    let shown = shown?;
    let names: Vec<&str> = route
        .destinations
        .iter()
        .filter_map(|destination| match &destination.target {
            Target::Name(name) => Some(&**name),
            Target::Net(_) => None,
        })
        .filter(|name| !shown.iter().any(|shown| shown.is_for(name)))
        .collect();
    (!names.is_empty()).then(|| {
        let what = format!(
            "route {:?} has no certificate for {}: pods that verify the server they dial will refuse the first one \
             listed. Add one with that name among its DNS names (subjectAltName), or an issuer whose intermediate may \
             issue for it",
            route.name,
            names.join(", ")
        );
        Finding::elsewhere(format!("routes[{index}].end_to_end.serving"), what)
    })
}

/// A strict route that the guard does not stand behind.
pub(super) fn unguarded(index: usize, route: &Route, capture: &Capture) -> Option<Finding> {
    if route.strictest_enforcement() != Enforcement::Strict {
        return None;
    }
    let (key, why, fix) = match capture.guard {
        Guard::Off => ("enforcement", "capture.guard is off", "set capture.guard: auto"),
        Guard::Auto if !route.is_strict_for_all() => (
            "overrides",
            "its overrides let some pods off, and a packet does not say which pod sent it",
            "where pods try to get around capture, give those that are let off a route of their own",
        ),
        Guard::Auto => return None,
    };
    let mut direct = vec!["lent and packet sockets"];
    if capture.raw_sockets == RawSockets::Allow {
        direct.push("raw sockets");
    }
    if !destroys_older(route, capture) {
        direct.push("flows older than the agent");
    }
    let what = format!(
        "route {:?} is strict and not guarded, because {why}: {} go direct; connect(), sendto() and bind() hold. To \
         close it, {fix}",
        route.name,
        direct.join(", ")
    );
    Some(Finding::elsewhere(format!("routes[{index}].{key}"), what))
}

/// Whether packets of any pod to the route's destinations are refused. They do not say which pod sent them, so
/// only where none is let off.
fn is_guarded(route: &Route, capture: &Capture) -> bool {
    capture.guard == Guard::Auto && route.is_strict_for_all()
}

/// Whether flows to the route's destinations that are older than their capture are destroyed.
fn destroys_older(route: &Route, capture: &Capture) -> bool {
    capture.destroy_older_flows && route.is_strict_for_all()
}

/// What no setting holds for a strict route, in a few words each; nothing for other routes.
pub(super) fn not_held(route: &Route, capture: &Capture) -> Vec<&'static str> {
    if route.strictest_enforcement() != Enforcement::Strict || capture.mode == CaptureMode::Off {
        return Vec::new();
    }
    let mut not_held = vec![
        "hostNetwork pods' lent, raw and packet sockets and older flows",
        "sockets lent from the node's own network namespace",
        "stacks in user space (Kata, gVisor, KubeVirt) where no veth leads to them",
    ];
    not_held.push(match capture.raw_sockets {
        RawSockets::Allow => {
            "raw and packet sockets on interfaces that are not veth (macvlan, ipvlan, SR-IOV)"
        }
        RawSockets::Refuse => "packet sockets on interfaces that are not veth (macvlan, ipvlan, SR-IOV)",
    });
    if is_guarded(route, capture) {
        not_held.push(
            "the moment between a veth's birth and the guard's attach (sockets without connect() only)",
        );
    }
    match (destroys_older(route, capture), is_guarded(route, capture)) {
        (true, _) => {}
        (false, true) => not_held.push("a flow older than the agent, until its next packet"),
        (false, false) => not_held.push("flows older than the agent"),
    }
    not_held.push("tunnels that end on the node, and other addresses of the manager");
    not_held
}
