//! `/status`: what this agent is, has and does, for the person on call.
//!
//! One object, documented in docs/operations.md: fields are added and never change their meaning. No key material,
//! no tokens and nothing of what requests carry.

use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use crate::capture::CaptureStatus;
use crate::config::plan::{CaptureMode, Identity, IdentityPlace, IdentitySource, Plan, Roots, Route, Trust};
use crate::expiry::Lifetime;
use crate::files::published::Published;
use crate::identity::snapshot::IdentitySnapshot;
use crate::reload::InForce;
use crate::resolve::{NameState, NameStatus};
use crate::telemetry::readiness::Readiness;
use crate::telemetry::{ReasonCount, Telemetry, UpstreamHealth, rfc3339};
use crate::trust::snapshot::TrustSnapshot;
use crate::upkeep::SharedCapture;
use crate::workload::WorkloadSource;

/// The shape of the answer; grows when a field changes its meaning, not when one is added.
const SCHEMA: u32 = 1;
/// Reasons that are shown, the most frequent first.
const REASONS: usize = 10;

/// Where the answer comes from.
#[derive(Clone)]
pub struct Sources {
    /// When the agent started.
    pub since: SystemTime,
    /// The configuration in force.
    pub in_force: InForce,
    /// What is captured; `None`: nothing ever is.
    pub captured: Option<SharedCapture>,
    /// How destinations' names are doing.
    pub names: Arc<NameStatus>,
    /// Who a cgroup is.
    pub workloads: Arc<dyn WorkloadSource>,
}

#[derive(Debug, Serialize)]
struct Status {
    schema: u32,
    version: &'static str,
    pid: u32,
    now: String,
    since: String,
    uptime_s: u64,
    ready: bool,
    pending: Vec<Pending>,
    configuration: Configuration,
    /// `on`, `off`, or `handing_over` while a successor may be changing it.
    capture_mode: &'static str,
    capture: Option<CaptureStatus>,
    names: Vec<NameState>,
    routes: Vec<RouteStatus>,
    identities: Vec<IdentityStatus>,
    trusts: Vec<TrustStatus>,
    connections_open: u64,
    connections_limit: usize,
    workers: usize,
    reasons: Vec<ReasonCount>,
}

#[derive(Debug, Serialize)]
struct Pending {
    name: String,
    why: String,
}

#[derive(Debug, Serialize)]
struct Configuration {
    generation: u64,
    /// What is wrong with the file, while the one in force is an older one.
    error: Option<String>,
    keys_waiting_for_restart: u64,
}

#[derive(Debug, Serialize)]
struct RouteStatus {
    name: String,
    destinations: Vec<String>,
    upstream: String,
    proxy: Option<String>,
    mode: &'static str,
    /// `http` or `opaque`; null where nothing is read.
    protocol: Option<&'static str>,
    enforcement: &'static str,
    overrides: Vec<String>,
    identity: Option<String>,
    trust: Option<String>,
    health: UpstreamHealth,
}

/// Of a certificate or a root.
#[derive(Debug, Serialize)]
struct Dates {
    not_before: String,
    not_after: String,
    /// How much of the lifetime is over, from 0 to 1 and beyond.
    lifetime_over: f64,
    seconds_left: i64,
}

#[derive(Debug, Serialize)]
struct IdentityStatus {
    name: String,
    /// `files`, `spiffe` or `issuer`.
    kind: &'static str,
    source: String,
    /// `ok`, `failing` (what the source holds is broken; the one before is in use), `expired` or `missing`.
    state: &'static str,
    generation: Option<u64>,
    subject: Option<String>,
    issuer: Option<String>,
    serial: Option<String>,
    dates: Option<Dates>,
    failures: u64,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct TrustStatus {
    name: String,
    source: String,
    /// As an identity's.
    state: &'static str,
    generation: Option<u64>,
    roots: Option<usize>,
    /// The subject of the root that ends first, where they are from a file.
    first_to_end: Option<String>,
    dates: Option<Dates>,
    failures: u64,
    error: Option<String>,
}

/// Answers.
pub(super) fn answer(sources: &Sources, telemetry: &Telemetry, readiness: &Readiness) -> Value {
    let generation = sources.in_force.generations.borrow().clone();
    let (plan, now) = (&*generation.plan, crate::clock::now());
    let capture = sources.captured.as_ref().and_then(|captured| captured.with(|capture| capture.status()));
    let capture_mode = match (plan.capture.mode, &capture) {
        (CaptureMode::Off, _) => "off",
        (CaptureMode::On, Some(_)) => "on",
        (CaptureMode::On, None) => "handing_over",
    };
    let pending: Vec<_> =
        readiness.conditions().into_iter().map(|(name, why)| Pending { name, why }).collect();
    let mut reasons = telemetry.reasons();
    reasons.truncate(REASONS);
    let (identities, trusts) = (sources.in_force.identities.load(), sources.in_force.trusts.load());
    let status = Status {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        now: rfc3339(now),
        since: rfc3339(sources.since),
        uptime_s: now.duration_since(sources.since).unwrap_or_default().as_secs(),
        ready: pending.is_empty(),
        pending,
        configuration: Configuration {
            generation: generation.number,
            error: sources.in_force.error(),
            keys_waiting_for_restart: sources.in_force.waiting(),
        },
        capture_mode,
        capture,
        names: sources.names.names(),
        routes: plan.routes.iter().map(|route| route_status(plan, route, telemetry)).collect(),
        identities: identities.iter().filter_map(|one| identity_status(plan, one, now)).collect(),
        trusts: trusts.iter().filter_map(|one| trust_status(plan, one, now)).collect(),
        connections_open: telemetry.open_connections(),
        connections_limit: plan.limits.connections,
        workers: plan.workers,
        reasons,
    };
    // Numbers, texts and lists of them.
    serde_json::to_value(status).unwrap_or_else(|error| json!({"error": error.to_string()}))
}

fn route_status(plan: &Plan, route: &Route, telemetry: &Telemetry) -> RouteStatus {
    let presents = route.reverse_proxy();
    RouteStatus {
        name: route.name.to_string(),
        destinations: route.destinations.iter().map(ToString::to_string).collect(),
        upstream: format!("https://{}{}", route.upstream.authority, route.upstream.base_path),
        proxy: route.through().map(|through| through.proxy.name.to_string()),
        mode: route.mode.as_str(),
        protocol: presents.map(|mode| mode.protocol.as_str()),
        enforcement: route.enforcement.as_str(),
        overrides: route.overrides.iter().map(ToString::to_string).collect(),
        identity: presents.map(|mode| plan.identities[mode.identity].name.to_string()),
        trust: presents.map(|mode| plan.trusts[mode.trust].name.to_string()),
        health: telemetry.health(&route.name),
    }
}

fn identity_status(
    plan: &Plan,
    published: &Published<IdentitySnapshot>,
    now: SystemTime,
) -> Option<IdentityStatus> {
    let definition = plan.identities.iter().find(|one| one.name == published.name)?;
    let snapshot = published.shared.load_full();
    let leaf = snapshot.as_ref().map(|snapshot| &snapshot.leaf);
    let lifetime = leaf.map(|leaf| leaf.lifetime());
    let (kind, source) = identity_source(definition);
    Some(IdentityStatus {
        name: published.name.to_string(),
        kind,
        source,
        state: state(published, lifetime, now),
        generation: snapshot.as_ref().map(|snapshot| snapshot.generation),
        subject: leaf.map(|leaf| leaf.subject.clone()),
        issuer: leaf.map(|leaf| leaf.issuer.clone()),
        serial: leaf.map(|leaf| leaf.serial.clone()),
        dates: lifetime.map(|lifetime| Dates::of(lifetime, now)),
        failures: published.status.failures(),
        error: published.status.error(),
    })
}

fn identity_source(identity: &Identity) -> (&'static str, String) {
    let kind = match &identity.source {
        IdentitySource::Files(_) => "files",
        IdentitySource::Spiffe(spiffe) => return ("spiffe", format!("{}: {}", spiffe.api, spiffe.choice)),
        IdentitySource::Issuer(_) => "issuer",
    };
    let place = identity.source.files().map(|files| match &files.place {
        IdentityPlace::Pair { certificate, .. } => certificate.display().to_string(),
        IdentityPlace::Directory(directory) => directory.display().to_string(),
    });
    (kind, place.unwrap_or_default())
}

fn trust_status(plan: &Plan, published: &Published<TrustSnapshot>, now: SystemTime) -> Option<TrustStatus> {
    let definition: &Arc<Trust> = plan.trusts.iter().find(|one| one.name == published.name)?;
    let snapshot = published.shared.load_full();
    // Nobody chose those of the system's store one by one, and a Workload API renews its own.
    let watched = snapshot.as_ref().filter(|_| matches!(definition.roots, Roots::File(_)));
    let first = watched.and_then(|snapshot| snapshot.dates.first());
    Some(TrustStatus {
        name: published.name.to_string(),
        source: definition.roots.to_string(),
        // Verification does not look at a root's dates (RFC 5280 section 6.1.1 (d)): no root makes it expired.
        state: state(published, None, now),
        generation: snapshot.as_ref().map(|snapshot| snapshot.generation),
        roots: snapshot.as_ref().map(|snapshot| snapshot.roots),
        first_to_end: first.map(|root| root.subject.clone()),
        dates: first.map(|root| Dates::of(root.lifetime, now)),
        failures: published.status.failures(),
        error: published.status.error(),
    })
}

fn state<S>(published: &Published<S>, lifetime: Option<Lifetime>, now: SystemTime) -> &'static str {
    match lifetime {
        _ if published.shared.load().is_none() => "missing",
        Some(lifetime) if lifetime.not_after < now => "expired",
        Some(_) | None if published.status.is_failing() => "failing",
        Some(_) | None => "ok",
    }
}

impl Dates {
    fn of(lifetime: Lifetime, now: SystemTime) -> Self {
        let Lifetime { not_before, not_after } = lifetime;
        let whole = seconds(not_after, not_before).max(1.0);
        Self {
            not_before: rfc3339(not_before),
            not_after: rfc3339(not_after),
            // Three digits are what people read.
            lifetime_over: (seconds(now, not_before) / whole * 1000.0).round() / 1000.0,
            seconds_left: seconds(not_after, now) as i64,
        }
    }
}

/// From one moment to another, negative where that is earlier.
fn seconds(to: SystemTime, from: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(after) => after.as_secs_f64(),
        Err(before) => -before.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_say_how_much_is_over_before_within_and_after() {
        let at = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + second);
        let lifetime = Lifetime { not_before: at(0), not_after: at(1000) };
        let seen = |now| {
            let dates = Dates::of(lifetime, now);
            (dates.lifetime_over, dates.seconds_left)
        };
        assert_eq!(seen(at(250)), (0.25, 750));
        assert_eq!(seen(at(1500)), (1.5, -500));
        assert_eq!(seen(SystemTime::UNIX_EPOCH + Duration::from_secs(999_900)), (-0.1, 1100));
    }
}
