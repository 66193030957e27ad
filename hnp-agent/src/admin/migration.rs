//! `/migration`: who still goes direct, why, and whom strict would cut off.
//!
//! Asked for with a query: `route`, `namespace`, `since` (seconds). Documented in docs/operations.md. What it says is what
//! this agent has seen, and who went direct that the kernel has kept: a pod that has not called yet is not in it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hnp_common::Reason;
use serde::Serialize;
use serde_json::{Value, json};

use super::query::pairs;
use super::status::Sources;
use crate::capture::{Look, Uncaptured};
use crate::config::plan::{Enforcement, Plan, PodTraits, PossibleEnforcement, Route};
use crate::direct;
use crate::telemetry::migration::{Beginning, Counts, STRICT_ALONE, Seen};
use crate::telemetry::{Telemetry, rfc3339};
use crate::workload::Workload;

/// The shape of the answer; grows when a field changes its meaning, not when one is added.
const SCHEMA: u32 = 1;
/// Workloads that are listed, those first whom strict cuts off.
const ROWS: usize = 256;
/// Workloads that the last line names.
const NAMED: usize = 5;

/// What is asked for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Wanted {
    route: Option<String>,
    namespace: Option<String>,
    /// Nobody who was last seen longer ago.
    since: Option<Duration>,
}

/// What was read of the kernel for an answer.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    pub(super) look: Look,
    pub(super) loose_direct: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Migration {
    schema: u32,
    now: String,
    /// Since when this agent has been counting.
    since: String,
    routes: Vec<OfRoute>,
    workloads: Vec<OfWorkload>,
    /// How many there are, listed or not.
    workloads_matching: usize,
    loose_direct: Option<u64>,
    looked_into: u64,
    not_looked_into: Option<String>,
    outlook: Outlook,
    words: String,
}

#[derive(Debug, Serialize)]
struct OfRoute {
    name: String,
    mode: &'static str,
    enforcement: &'static str,
    overrides: Vec<String>,
    #[serde(flatten)]
    captured: Captured,
    namespaces: Vec<OfNamespace>,
}

#[derive(Debug, Serialize)]
struct OfNamespace {
    namespace: Option<String>,
    /// What holds there; where labels decide, the weakest and the strictest.
    enforcement: String,
    #[serde(flatten)]
    captured: Captured,
}

/// Captured connections, by what they begin with.
#[derive(Debug, Serialize)]
struct Captured {
    captured: u64,
    begins: BTreeMap<&'static str, u64>,
    /// Null where there was none.
    tls_share: Option<f64>,
}

#[derive(Debug, Serialize)]
struct OfWorkload {
    why: Why,
    under_strict: UnderStrict,
    /// By which it is or would be refused.
    reason: Option<&'static str>,
    route: String,
    namespace: Option<String>,
    /// Null where it is not known, or where rows of several were added up.
    pod: Option<String>,
    pod_uid: Option<String>,
    cgroup: Option<String>,
    destination: Option<String>,
    /// Connections; requests where another name was asked for.
    times: u64,
    last: Option<String>,
    #[serde(skip)]
    seen: Option<SystemTime>,
}

/// Why somebody is listed.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
enum Why {
    /// A strict route refuses it already.
    Refused,
    /// It speaks TLS itself and is carried as it is, without a certificate of the route's.
    OwnTls,
    /// It asks for another name on the address and is passed on.
    OtherName,
    /// It is only observed.
    Observed,
    /// It has open connections that passed no capture.
    Uncaptured,
    /// It went direct while no agent answered.
    LooseDirect,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
enum UnderStrict {
    Refused,
    /// Nobody has seen what it sends.
    Unknown,
    /// Its connection is reset where the guard stands; what it dials anew is captured.
    Reset,
    /// It has been carried, and is refused while no agent answers.
    Carried,
}

/// What the whole comes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outlook {
    /// Strict cuts off somebody.
    CutsOff,
    /// Too little was seen.
    Unknown,
    /// Nobody.
    Clear,
}

/// Understands a query.
///
/// # Errors
/// What of it cannot be understood, in words.
pub(super) fn wanted(query: &str) -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    for (key, value) in pairs(query)? {
        match key {
            "route" => wanted.route = Some(value),
            "namespace" => wanted.namespace = Some(value),
            "since" => {
                let seconds = value.parse().map_err(|_| format!("since={value}: a number of seconds"))?;
                wanted.since = Some(Duration::from_secs(seconds));
            }
            _ => return Err(format!("there is no filter {key:?}; there are route, namespace and since")),
        }
    }
    Ok(wanted)
}

/// Answers.
pub(super) fn answer(
    wanted: &Wanted,
    sources: &Sources,
    telemetry: &Telemetry,
    direct: &direct::Table,
    kernel: Kernel,
) -> Value {
    let generation = sources.in_force.generations.borrow().clone();
    let plan = &*generation.plan;
    let now = crate::clock::now();
    let seen = telemetry.migration();
    let mut workloads = carried(plan, &seen);
    workloads.extend(still_observed(plan, direct.rows(direct::Cause::Observed)));
    workloads.extend(unanswered(plan, &seen, direct.rows(direct::Cause::NoAgent)));
    let Kernel { look, loose_direct } = kernel;
    for one in look.found {
        let workload = sources.workloads.identify_cgroup(one.cgroup_id, one.ancestor_ids);
        workloads.extend(uncaptured(plan, &one, &workload, now));
    }
    workloads
        .retain(|row| wanted.includes(&row.route, row.namespace.as_deref()) && wanted.is_recent(row, now));
    workloads.sort_by(|a, b| {
        (a.under_strict, a.why, &a.route).cmp(&(b.under_strict, b.why, &b.route)).then(b.seen.cmp(&a.seen))
    });
    let routes: Vec<_> = plan
        .routes
        .iter()
        .filter(|route| wanted.route.as_deref().is_none_or(|name| *route.name == *name))
        .map(|route| of_route(route, wanted, &seen, &workloads))
        .collect();
    let captured: u64 =
        routes.iter().flat_map(|route| &route.namespaces).map(|of| of.captured.captured).sum();
    let since = rfc3339(sources.since);
    let (outlook, words) = outlook(&workloads, captured, &since);
    let workloads_matching = workloads.len();
    workloads.truncate(ROWS);
    let migration = Migration {
        schema: SCHEMA,
        now: rfc3339(now),
        since,
        routes,
        workloads,
        workloads_matching,
        loose_direct,
        looked_into: look.namespaces,
        not_looked_into: look.missed,
        outlook,
        words,
    };
    // Numbers, texts and lists of them.
    serde_json::to_value(migration).unwrap_or_else(|error| json!({"error": error.to_string()}))
}

impl Wanted {
    fn includes(&self, route: &str, namespace: Option<&str>) -> bool {
        self.route.as_deref().is_none_or(|wanted| wanted == route)
            && self.namespace.as_deref().is_none_or(|wanted| namespace == Some(wanted))
    }

    fn is_recent(&self, row: &OfWorkload, now: SystemTime) -> bool {
        let age = |seen| now.duration_since(seen).unwrap_or_default();
        self.since.is_none_or(|since| row.seen.is_none_or(|seen| age(seen) <= since))
    }
}

/// Those whom only a strict route refuses, whether theirs does or not.
fn carried(plan: &Plan, seen: &[Seen]) -> Vec<OfWorkload> {
    let mut rows = Vec::new();
    for seen in seen {
        let Some(route) = route_of(plan, &seen.route) else { continue };
        let is_strict = holds(route, seen.namespace.as_deref()).strictest == Enforcement::Strict;
        for (reason, applied) in STRICT_ALONE.iter().zip(seen.counts.strict_alone) {
            let why = match reason {
                _ if applied.last.is_none() => continue,
                // It may have been loose before, or be so again.
                _ if is_strict && applied.refused > 0 => Why::Refused,
                Reason::TlsFromClient | Reason::TlsWithoutName => Why::OwnTls,
                _ => Why::OtherName,
            };
            let workload = seen.workload.as_deref();
            rows.push(OfWorkload {
                why,
                under_strict: UnderStrict::Refused,
                reason: Some(reason.code()),
                route: seen.route.to_string(),
                namespace: seen.namespace.as_ref().map(ToString::to_string),
                pod: seen.pod.as_ref().map(ToString::to_string),
                pod_uid: workload.and_then(|workload| workload.pod_uid.clone()),
                cgroup: workload.and_then(|workload| workload.cgroup.clone()),
                destination: None,
                times: applied.carried + applied.refused,
                last: applied.last.map(rfc3339),
                seen: applied.last,
            });
        }
    }
    rows
}

/// Those who are only observed, on each route on which they still are.
fn still_observed(plan: &Plan, rows: Vec<direct::Row>) -> Vec<OfWorkload> {
    let is_observed = |may: PossibleEnforcement| may.weakest == Enforcement::Observe;
    by_route(plan, rows, Why::Observed, is_observed).collect()
}

/// Those who went direct while no agent answered, where that may come again. Those whose names have gone with them are
/// added up.
fn unanswered(plan: &Plan, seen: &[Seen], rows: Vec<direct::Row>) -> Vec<OfWorkload> {
    let is_let_off = |may: PossibleEnforcement| may.weakest != Enforcement::Strict;
    let (nameless, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(direct::Row::is_nameless);
    let carried: HashSet<(&str, &str)> = seen
        .iter()
        .filter_map(|seen| Some((&*seen.route, seen.workload.as_ref()?.pod_uid.as_deref()?)))
        .collect();
    let mut all: Vec<_> = by_route(plan, rows, Why::LooseDirect, is_let_off).collect();
    for row in &mut all {
        if row.pod_uid.as_deref().is_some_and(|uid| carried.contains(&(&*row.route, uid))) {
            row.under_strict = UnderStrict::Carried;
        }
    }
    let mut gone: BTreeMap<_, OfWorkload> = BTreeMap::new();
    for row in by_route(plan, nameless, Why::LooseDirect, is_let_off) {
        match gone.entry((row.route.clone(), row.destination.clone(), row.cgroup.clone())) {
            Entry::Vacant(entry) => {
                entry.insert(row);
            }
            Entry::Occupied(entry) => {
                let sum = entry.into_mut();
                sum.times += row.times;
                if row.seen > sum.seen {
                    (sum.seen, sum.last) = (row.seen, row.last);
                }
            }
        }
    }
    all.extend(gone.into_values());
    all
}

/// Who went direct, for each route where what holds for the pod is as asked for. Nobody has seen what they send.
fn by_route(
    plan: &Plan,
    rows: Vec<direct::Row>,
    why: Why,
    is_wanted: impl Fn(PossibleEnforcement) -> bool,
) -> impl Iterator<Item = OfWorkload> {
    rows.into_iter().flat_map(move |row| {
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(row.last);
        let routes = row.routes.iter().filter_map(|name| route_of(plan, name));
        let wanted = routes.filter(|route| is_wanted(holds(route, row.namespace.as_deref())));
        let of_route = |route: &Route| OfWorkload {
            why,
            under_strict: UnderStrict::Unknown,
            reason: None,
            route: route.name.to_string(),
            namespace: row.namespace.clone(),
            pod: row.pod.clone(),
            pod_uid: row.pod_uid.clone(),
            cgroup: row.cgroup.clone(),
            destination: Some(row.destination.clone()),
            times: row.connects,
            last: Some(rfc3339(last)),
            seen: Some(last),
        };
        wanted.map(of_route).collect::<Vec<_>>()
    })
}

/// Open connections that passed no capture, of pods that are more than observed.
fn uncaptured(plan: &Plan, one: &Uncaptured, workload: &Workload, now: SystemTime) -> Option<OfWorkload> {
    let (namespace, pod) =
        workload.pod.known().map(|pod| (pod.namespace.to_string(), pod.name.to_string())).unzip();
    let is_more = |name: &&Arc<str>| {
        route_of(plan, name)
            .is_some_and(|route| holds(route, namespace.as_deref()).strictest != Enforcement::Observe)
    };
    let route = one.routes.iter().find(is_more)?.to_string();
    Some(OfWorkload {
        why: Why::Uncaptured,
        under_strict: UnderStrict::Reset,
        reason: None,
        route,
        namespace,
        pod,
        pod_uid: workload.pod_uid.clone(),
        cgroup: workload.cgroup.clone(),
        destination: Some(one.destination.to_string()),
        times: one.open,
        last: Some(rfc3339(now)),
        seen: Some(now),
    })
}

fn route_of<'a>(plan: &'a Plan, name: &str) -> Option<&'a Route> {
    plan.routes.iter().find(|route| *route.name == *name).map(|route| &**route)
}

fn holds(route: &Route, namespace: Option<&str>) -> PossibleEnforcement {
    route.enforcement_for(PodTraits { namespace, labels: None })
}

fn of_route(route: &Route, wanted: &Wanted, seen: &[Seen], workloads: &[OfWorkload]) -> OfRoute {
    let mut namespaces: BTreeMap<Option<&str>, Counts> = BTreeMap::new();
    for seen in seen.iter().filter(|seen| seen.route == route.name) {
        if wanted.includes(&route.name, seen.namespace.as_deref()) {
            namespaces.entry(seen.namespace.as_deref()).or_default().add(&seen.counts);
        }
    }
    for row in workloads.iter().filter(|row| *row.route == *route.name) {
        namespaces.entry(row.namespace.as_deref()).or_default();
    }
    let mut all = Counts::default();
    namespaces.values().for_each(|counts| all.add(counts));
    let of_namespace = |(namespace, counts): (&Option<&str>, &Counts)| {
        let PossibleEnforcement { weakest, strictest } = holds(route, *namespace);
        OfNamespace {
            namespace: namespace.map(ToOwned::to_owned),
            enforcement: match weakest == strictest {
                true => strictest.as_str().to_owned(),
                false => format!("{} to {}, by pod", weakest.as_str(), strictest.as_str()),
            },
            captured: captured(counts),
        }
    };
    OfRoute {
        name: route.name.to_string(),
        mode: route.mode.as_str(),
        enforcement: route.enforcement.as_str(),
        overrides: route.overrides.iter().map(ToString::to_string).collect(),
        captured: captured(&all),
        namespaces: namespaces.iter().map(of_namespace).collect(),
    }
}

fn captured(counts: &Counts) -> Captured {
    let sum: u64 = counts.begun.iter().sum();
    let share = counts.begun[Beginning::Tls as usize] as f64 / sum.max(1) as f64;
    Captured {
        captured: sum,
        begins: Beginning::ALL.iter().map(|one| one.as_str()).zip(counts.begun).collect(),
        tls_share: (sum > 0).then_some((share * 1000.0).round() / 1000.0),
    }
}

/// What it comes to, and the last line.
fn outlook(workloads: &[OfWorkload], captured: u64, since: &str) -> (Outlook, String) {
    let of = |wanted: UnderStrict| workloads.iter().filter(move |row| row.under_strict == wanted);
    let (now, would): (Vec<_>, Vec<_>) = of(UnderStrict::Refused).partition(|row| row.why == Why::Refused);
    let (observed, unseen): (Vec<_>, Vec<_>) =
        of(UnderStrict::Unknown).partition(|row| row.why == Why::Observed);
    let mut parts = Vec::new();
    if !now.is_empty() {
        parts.push(format!("strict cuts off already: {}", list(&now)));
    }
    if !would.is_empty() {
        parts.push(format!("strict would cut off: {}", list(&would)));
    }
    if !observed.is_empty() {
        parts.push(format!("not known, because only observed (let loose carry them): {}", list(&observed)));
    }
    if !unseen.is_empty() {
        parts.push(format!("not known, because they went direct while no agent answered: {}", list(&unseen)));
    }
    let outlook = match (now.len() + would.len(), observed.len() + unseen.len()) {
        (0, 0) if captured == 0 => {
            parts.push(format!("not known: nothing was captured since {since}"));
            Outlook::Unknown
        }
        (0, 0) => {
            parts.push(format!(
                "strict would cut off nobody whom this agent has seen since {since} ({captured} connections)"
            ));
            Outlook::Clear
        }
        (0, _) => Outlook::Unknown,
        _ => Outlook::CutsOff,
    };
    let reset: u64 = of(UnderStrict::Reset).map(|row| row.times).sum();
    if reset > 0 {
        parts.push(format!(
            "{reset} open connections passed no capture: the guard resets them once the route is strict for every pod"
        ));
    }
    (outlook, parts.join("; "))
}

/// The first few, each with what tells it apart.
fn list(rows: &[&OfWorkload]) -> String {
    let mut names: Vec<String> = rows
        .iter()
        .take(NAMED)
        .map(|row| {
            let who = match (&row.namespace, &row.pod, &row.pod_uid) {
                (Some(namespace), Some(pod), _) => format!("{namespace}/{pod}"),
                (_, _, Some(uid)) => format!("pod {uid}"),
                (Some(namespace), ..) => format!("pods of {namespace}"),
                _ => row.cgroup.clone().unwrap_or_else(|| "pods".to_owned()),
            };
            match row.reason {
                Some(reason) => format!("{who} on {} ({reason})", row.route),
                None => format!("{who} on {}", row.route),
            }
        })
        .collect();
    if rows.len() > NAMED {
        names.push(format!("{} more", rows.len() - NAMED));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_understood_or_refused_with_words() {
        assert_eq!(wanted(""), Ok(Wanted::default()));
        let one = wanted("route=m&namespace=team%2da&since=60").unwrap();
        assert_eq!((one.route.as_deref(), one.namespace.as_deref()), (Some("m"), Some("team-a")));
        assert_eq!(one.since, Some(Duration::from_secs(60)));
        for (bad, word) in
            [("since=x", "seconds"), ("since=-1", "seconds"), ("pod=x", "namespace"), ("route=%4", "percent")]
        {
            let words = wanted(bad).unwrap_err();
            assert!(words.contains(word), "{bad}: {words}");
        }
    }

    fn row(why: Why, under_strict: UnderStrict) -> OfWorkload {
        OfWorkload {
            why,
            under_strict,
            reason: (under_strict == UnderStrict::Refused).then_some("tls_from_client"),
            route: "m".into(),
            namespace: Some("staging".into()),
            pod: Some("web".into()),
            pod_uid: None,
            cgroup: None,
            destination: None,
            times: 2,
            last: None,
            seen: None,
        }
    }

    #[test]
    fn the_last_line_is_clear_only_when_something_was_seen_and_nothing_is_open() {
        let say = |rows: &[OfWorkload], captured| outlook(rows, captured, "T");
        assert_eq!(say(&[], 0).0, Outlook::Unknown);
        let (clear, words) = say(&[], 7);
        assert!(
            clear == Outlook::Clear && words.contains("nobody") && words.contains("7 connections"),
            "{words}"
        );
        let reset = row(Why::Uncaptured, UnderStrict::Reset);
        let (clear, words) = say(&[reset], 7);
        assert!(clear == Outlook::Clear && words.contains("2 open connections"), "{words}");
        let (unknown, words) = say(&[row(Why::Observed, UnderStrict::Unknown)], 7);
        assert!(unknown == Outlook::Unknown && words.contains("staging/web"), "{words}");
        let cut = [row(Why::OwnTls, UnderStrict::Refused), row(Why::Observed, UnderStrict::Unknown)];
        let (cuts, words) = say(&cut, 7);
        assert_eq!(cuts, Outlook::CutsOff);
        assert!(
            words.starts_with("strict would cut off: staging/web on m (tls_from_client); not known"),
            "{words}"
        );
        let many: Vec<_> = (0..8).map(|_| row(Why::Refused, UnderStrict::Refused)).collect();
        let (_, words) = say(&many, 7);
        assert!(words.starts_with("strict cuts off already: ") && words.ends_with(", 3 more"), "{words}");
    }

    #[test]
    fn pods_that_had_gone_nameless_are_added_up_and_strict_routes_let_nobody_off() {
        let plan = |enforcement: &str| {
            let text = format!(
                "identities: {{c: {{certificate: /c, key: /k}}}}\n\
                 routes: [{{name: m, destinations: ['m.test:80'], upstream: 'https://m.test', identity: c, \
                 enforcement: {enforcement}}}]"
            );
            crate::config::parse(&text, std::path::Path::new("x")).unwrap()
        };
        let row = |uid: Option<&str>, connects, last| direct::Row {
            destination: "192.0.2.1:80".into(),
            routes: vec!["m".into()],
            namespace: None,
            pod: None,
            pod_uid: uid.map(Into::into),
            container: None,
            cgroup: Some("/kubepods/besteffort".into()),
            connects,
            last,
        };
        let rows = || vec![row(None, 1, 5), row(Some("u"), 4, 6), row(None, 2, 9), row(None, 3, 7)];
        let seen = unanswered(&plan("loose"), &[], rows());
        let said: Vec<_> = seen.iter().map(|row| (row.pod_uid.as_deref(), row.times)).collect();
        assert_eq!(said, [(Some("u"), 4), (None, 6)]);
        assert!(seen.iter().all(|row| row.under_strict == UnderStrict::Unknown));
        assert_eq!(outlook(&seen, 7, "T").0, Outlook::Unknown);
        assert_eq!(seen[1].seen, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(9)));
        assert_eq!(seen[1].last.as_deref(), Some("1970-01-01T00:00:09.000Z"));
        // Who has been carried as well is known.
        let workload = Workload { pod_uid: Some("u".into()), ..Workload::default() };
        let counts = Counts::default();
        let carried = Seen {
            route: "m".into(),
            namespace: None,
            pod: None,
            workload: Some(Arc::new(workload)),
            counts,
        };
        let elsewhere = Seen { route: "n".into(), ..carried.clone() };
        let of = |seen: &[Seen]| unanswered(&plan("loose"), seen, rows())[0].under_strict;
        assert_eq!((of(&[carried]), of(&[elsewhere])), (UnderStrict::Carried, UnderStrict::Unknown));
        // The control.
        assert!(unanswered(&plan("strict"), &[], rows()).is_empty());
    }
}
