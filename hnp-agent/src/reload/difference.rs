//! What a changed configuration changes: what is taken at once, and what waits for a restart.
//!
//! Pure. What the programs in the kernel, the sockets and the threads were made with cannot change under
//! them; everything else can. Nothing that was written is passed over in silence.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::end_to_end::{ClientAuth, ClientName};
use crate::config::gateway::Gateway;
use crate::config::plan::{
    Admin, Capture, Limits, Log, Mode, PerWorkload, Plan, Route, UpstreamWay, Workloads,
};

/// What differs between the configuration in force and the one in the file, in words.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Difference {
    /// Routes that are new, by name.
    pub(super) added: Vec<String>,
    /// Routes that are gone.
    pub(super) removed: Vec<String>,
    /// Routes that changed, and in what: `manager (enforcement loose -> strict, destinations)`.
    pub(super) changed: Vec<String>,
    /// Other keys that have another value: `identities.manager-client`, `drain.deadline`.
    pub(super) settings: Vec<String>,
}

impl Difference {
    /// From one Plan to the next; both must agree in what waits for a restart.
    pub(super) fn between(old: &Plan, new: &Plan) -> Self {
        let mut difference = Self::default();
        for route in &new.routes {
            match old.routes.iter().find(|known| known.name == route.name) {
                None => difference.added.push(route.name.to_string()),
                Some(known) => difference.changed.extend(changes((old, known), (new, route))),
            }
        }
        let gone = |route: &&Arc<Route>| new.routes.iter().all(|kept| kept.name != route.name);
        difference.removed = old.routes.iter().filter(gone).map(|route| route.name.to_string()).collect();

        let settings = &mut difference.settings;
        note(settings, "identities", &old.identities, &new.identities, |one| &one.name);
        note(settings, "trusts", &old.trusts, &new.trusts, |one| &one.name);
        note(settings, "upstream_proxies", &old.upstream_proxies, &new.upstream_proxies, |one| &one.name);
        if difference.added.is_empty()
            && difference.removed.is_empty()
            && old.routes.iter().zip(&new.routes).any(|(old, new)| old.name != new.name)
        {
            // The first one serves a request that names no host.
            settings.push("the order of routes".into());
        }
        for (key, differs) in [
            ("gateway", old.gateway != new.gateway),
            ("limits.head_bytes", old.limits.head_bytes != new.limits.head_bytes),
            ("limits.buffer_bytes", old.limits.buffer_bytes != new.limits.buffer_bytes),
            ("limits.per_workload", old.limits.per_workload != new.limits.per_workload),
            ("resolver", old.resolver != new.resolver),
            ("workloads.deadline", old.workloads.deadline != new.workloads.deadline),
            ("log.level", old.log.level != new.log.level),
            ("drain.deadline", old.drain_deadline != new.drain_deadline),
        ] {
            if differs {
                settings.push(key.into());
            }
        }
        difference
    }

    /// There is nothing to do.
    pub(super) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What of a route differs; `None`: nothing.
fn changes((old_plan, old): (&Plan, &Route), (new_plan, new): (&Plan, &Route)) -> Option<String> {
    let protocol = |route: &Route| route.reverse_proxy().map(|mode| mode.protocol);
    let upstream_protocol = |route: &Route| route.reverse_proxy().map(|mode| mode.upstream_protocol);
    let authority = |route: &Route| route.reverse_proxy().map(|mode| mode.authority);
    let identity =
        |plan: &Plan, route: &Route| Some(plan.identities[route.reverse_proxy()?.identity].name.clone());
    let trust = |plan: &Plan, route: &Route| Some(plan.trusts[route.reverse_proxy()?.trust].name.clone());
    let mut what = Vec::new();
    if old.enforcement != new.enforcement {
        what.push(format!("enforcement {} -> {}", old.enforcement.as_str(), new.enforcement.as_str()));
    }
    for (key, differs) in [
        ("destinations", old.destinations != new.destinations),
        ("upstream", old.upstream != new.upstream),
        ("mode", old.mode.as_str() != new.mode.as_str()),
        ("protocol", protocol(old) != protocol(new)),
        ("upstream_protocol", upstream_protocol(old) != upstream_protocol(new)),
        ("authority", authority(old) != authority(new)),
        ("end_to_end", end_to_end(old_plan, old) != end_to_end(new_plan, new)),
        ("tunnel", old.tunnel() != new.tunnel()),
        ("overrides", old.overrides != new.overrides),
        ("passthrough", old.passthrough != new.passthrough),
        ("policy", old.policy != new.policy),
        ("identity", identity(old_plan, old) != identity(new_plan, new)),
        ("trust", trust(old_plan, old) != trust(new_plan, new)),
        ("upstream_proxy", way(old) != way(new)),
        ("timeouts", old.timeouts != new.timeouts),
    ] {
        if differs {
            what.push(key.to_owned());
        }
    }
    // Whatever keys there will be: a place in a list is no difference, all else is one.
    let mut placed = Route { way: new.way.clone(), ..old.clone() };
    match (&mut placed.mode, &new.mode) {
        (Mode::ReverseProxy(old), Mode::ReverseProxy(new)) => {
            (old.identity, old.trust) = (new.identity, new.trust);
        }
        (Mode::EndToEnd(old), Mode::EndToEnd(new)) => {
            (old.onward.identity, old.onward.trust) = (new.onward.identity, new.onward.trust);
            old.tls = new.tls.clone();
        }
        _ => {}
    }
    let same = placed == *new;
    if what.is_empty() && !same {
        what.push("other keys".to_owned());
    }
    (!what.is_empty()).then(|| format!("{} ({})", new.name, what.join(", ")))
}

/// What pods are shown and asked for, by name.
#[derive(Eq, PartialEq)]
struct ShownAndAsked<'p> {
    serving: Vec<&'p str>,
    asked: Option<(&'p str, &'p [ClientName])>,
}

fn end_to_end<'p>(plan: &'p Plan, route: &'p Route) -> Option<ShownAndAsked<'p>> {
    let mode = route.end_to_end()?;
    let serving = mode.tls.serving.iter().map(|index| &*plan.identities[*index].name).collect();
    let asked = match &mode.tls.client_auth {
        ClientAuth::None => None,
        ClientAuth::Required { trust, names } => Some((&*plan.trusts[*trust].name, &names[..])),
    };
    Some(ShownAndAsked { serving, asked })
}

/// How a route's upstream is reached, by name: a proxy's own changes are noted with the proxy.
fn way(route: &Route) -> (Option<&str>, Option<&str>) {
    match &route.way {
        UpstreamWay::Direct => (None, None),
        UpstreamWay::Exempt(proxy) => (None, Some(proxy)),
        UpstreamWay::Through(through) => (Some(&through.proxy.name), None),
    }
}

/// Notes what was added to, removed from or changed in a list of named things.
fn note<T: PartialEq>(
    settings: &mut Vec<String>,
    section: &str,
    old: &[Arc<T>],
    new: &[Arc<T>],
    name: impl Fn(&T) -> &Arc<str>,
) {
    let find = |list: &[Arc<T>], wanted: &T| list.iter().find(|one| name(one) == name(wanted)).cloned();
    for one in new {
        if find(old, one).as_ref() != Some(one) {
            settings.push(format!("{section}.{}", name(one)));
        }
    }
    for one in old {
        if find(new, one).is_none() {
            settings.push(format!("{section}.{} (removed)", name(one)));
        }
    }
}

/// What can be taken of a configuration while the agent runs, and the keys that wait for a restart.
pub(super) fn in_force(running: &Plan, written: Plan) -> (Plan, Vec<&'static str>) {
    // Taken apart, so that a new key cannot be forgotten here.
    let Capture {
        mode,
        cgroup,
        bpffs,
        vips4,
        vips6,
        port,
        connections_per_pod,
        heartbeat,
        pod_logs,
        guard,
        raw_sockets,
        destroy_older_flows,
    } = &running.capture;
    let Limits { connections, head_bytes: _, buffer_bytes: _, per_workload: _ } = running.limits;
    let Log { format, level: _, access } = running.log;
    let Admin { listen, page } = running.admin;
    let Workloads { runtime, deadline: _ } = &running.workloads;
    let capture = &written.capture;
    let waiting = [
        ("capture.mode", capture.mode != *mode),
        ("capture.cgroup", capture.cgroup != *cgroup),
        ("capture.bpffs", capture.bpffs != *bpffs),
        ("capture.vips4", capture.vips4 != *vips4),
        ("capture.vips6", capture.vips6 != *vips6),
        ("capture.port", capture.port != *port),
        ("capture.connections_per_pod", capture.connections_per_pod != *connections_per_pod),
        ("capture.heartbeat", capture.heartbeat != *heartbeat),
        ("capture.pod_logs", capture.pod_logs != *pod_logs),
        ("capture.guard", capture.guard != *guard),
        ("capture.raw_sockets", capture.raw_sockets != *raw_sockets),
        ("capture.destroy_older_flows", capture.destroy_older_flows != *destroy_older_flows),
        ("gateway.listen", listens(&written) != listens(running)),
        ("workloads.runtime", written.workloads.runtime != *runtime),
        ("kubernetes", written.kubernetes != running.kubernetes),
        ("limits.connections", written.limits.connections != connections),
        ("admin.listen", written.admin.listen != listen),
        ("admin.page", written.admin.page != page),
        ("log.format", written.log.format != format),
        ("log.access", written.log.access != access),
        ("run_dir", written.run_dir != running.run_dir),
        ("workers", written.workers != running.workers),
    ];
    let waiting = waiting.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect();
    let plan = Plan {
        capture: running.capture.clone(),
        gateway: match (&running.gateway, written.gateway) {
            (Some(running), Some(written)) => Some(Gateway { listen: running.listen.clone(), ..written }),
            // Its sockets are there, or are not; who may ask stays with them.
            // Its certificates are places in another Plan.
            (running, _) => running.clone().map(|gateway| Gateway { tls: None, ..gateway }),
        },
        limits: Limits {
            connections,
            per_workload: PerWorkload {
                // Below what all may have as long as that is what it was.
                connections: written.limits.per_workload.connections.clamp(1, connections.max(2) - 1),
                ..written.limits.per_workload
            },
            ..written.limits
        },
        log: Log { format, access, ..written.log },
        admin: running.admin.clone(),
        workloads: Workloads { runtime: runtime.clone(), ..written.workloads },
        kubernetes: running.kubernetes.clone(),
        run_dir: running.run_dir.clone(),
        workers: running.workers,
        ..written
    };
    (plan, waiting)
}

fn listens(plan: &Plan) -> &[SocketAddr] {
    plan.gateway.as_ref().map_or(&[], |gateway| &gateway.listen)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "
identities: {i: {certificate: /c, key: /k}, j: {certificate: /d, key: /l}}
trusts: {t: {roots: /r}}
routes:
- {name: a, destinations: ['a.test:80'], upstream: 'https://a.test', identity: i, trust: t}
- {name: b, destinations: ['b.test:80'], upstream: 'https://b.test', identity: j, trust: t}
workers: 2
";

    fn read(text: &str) -> Plan {
        crate::config::parse(text, std::path::Path::new("test.yaml")).unwrap()
    }

    fn differs(from: &str, to: &str) -> Difference {
        assert!(BASE.contains(from), "{from}");
        Difference::between(&read(BASE), &read(&BASE.replace(from, to)))
    }

    #[test]
    fn routes_are_told_by_name_and_what_changed_in_them_is_named() {
        let moved = differs(
            "- {name: a, destinations: ['a.test:80'],",
            "- {name: a, enforcement: strict, destinations: ['a.test:80', '10.0.0.1:80'],",
        );
        assert_eq!(moved.changed, ["a (enforcement loose -> strict, destinations)"]);
        let renamed = differs("{name: b,", "{name: c,");
        assert_eq!((renamed.added, renamed.removed), (vec!["c".to_owned()], vec!["b".to_owned()]));
        assert_eq!(differs("identity: j,", "identity: i, pool_idle: 3,").changed, ["b (upstream, identity)"]);
        assert_eq!(differs("workers: 2", "drain: {deadline: 3s}").settings, ["drain.deadline"]);
    }

    #[test]
    fn places_in_a_list_are_no_difference_and_definitions_are_one() {
        let swapped = differs(
            "{i: {certificate: /c, key: /k}, j: {certificate: /d, key: /l}}",
            "{j: {certificate: /d, key: /l}, i: {certificate: /c, key: /k}}",
        );
        assert!(swapped.is_nothing(), "{swapped:?}");
        assert_eq!(differs("certificate: /d", "certificate: /e").settings, ["identities.j"]);
        assert_eq!(differs("roots: /r", "roots: /s").settings, ["trusts.t"]);
        assert!(Difference::between(&read(BASE), &read(&format!("# a comment\n{BASE}"))).is_nothing());
        let (first, second) = BASE.split_once("- {name: b").unwrap();
        let (head, first) = first.split_once("- {name: a").unwrap();
        let (second, rest) = second.split_once('\n').unwrap();
        let turned = format!("{head}- {{name: b{second}\n- {{name: a{first}{rest}");
        assert_eq!(Difference::between(&read(BASE), &read(&turned)).settings, ["the order of routes"]);
    }

    #[test]
    fn a_proxy_on_the_way_is_a_change_of_the_route_and_its_own_changes_are_its_own() {
        let through = |more: &str| {
            let proxies = format!("upstream_proxies: {{p: {{url: 'http://p:1', {more}}}}}\nroutes:");
            BASE.replace("routes:", &proxies).replace("{name: a,", "{name: a, upstream_proxy: p,")
        };
        let added = Difference::between(&read(BASE), &read(&through("")));
        assert_eq!(
            (added.changed, added.settings),
            (vec!["a (upstream_proxy)".into()], vec!["upstream_proxies.p".into()])
        );
        let slower = Difference::between(&read(&through("")), &read(&through("timeouts: {answer: 3s}")));
        assert_eq!((slower.changed, slower.settings), (vec![], vec!["upstream_proxies.p".into()]));
        let exempt = Difference::between(&read(&through("")), &read(&through("no_proxy: [a.test]")));
        assert_eq!(exempt.changed, ["a (upstream_proxy)"]);
        let secret =
            |password: &str| read(&through("").replace("http://p", &format!("http://u:{password}@p")));
        let changed = Difference::between(&secret("one"), &secret("two"));
        assert_eq!(changed.settings, ["upstream_proxies.p"]);
        assert!(
            !format!("{:?}", secret("one")).contains("one@")
                && !format!("{:?}", secret("qwert")).contains("qwert")
        );
    }

    #[test]
    fn a_gateways_sockets_stay_and_whom_it_serves_is_taken() {
        let with = |gateway: &str| read(&format!("{BASE}gateway: {{{gateway}}}\n"));
        let running = with("sources: [10.0.0.0/8]");
        let (plan, waiting) = in_force(&running, with("sources: [10.1.0.0/16], route: b"));
        assert_eq!(
            (waiting, Difference::between(&running, &plan).settings),
            (vec![], vec!["gateway".into()])
        );
        assert_eq!(plan.gateway, with("sources: [10.1.0.0/16], route: b").gateway);
        let (plan, waiting) = in_force(&running, with("sources: [10.1.0.0/16], listen: ['0.0.0.0:1']"));
        assert_eq!(waiting, ["gateway.listen"]);
        assert_eq!(plan.gateway, with("sources: [10.1.0.0/16]").gateway);
        for (running, written) in [(&running, read(BASE)), (&read(BASE), running.clone())] {
            let (plan, waiting) = in_force(running, written);
            assert_eq!((waiting, &plan.gateway), (vec!["gateway.listen"], &running.gateway));
        }
    }

    #[test]
    fn what_cannot_change_under_way_is_named_and_stays() {
        let running = read(BASE);
        let text = format!(
            "{BASE}capture: {{cgroup: /sys/fs/cgroup/x, bpffs: /sys/fs/bpf/x, vips4: 169.254.78.0/24, vips6: fd00:78::/64, \
             port: 15002, connections_per_pod: 7}}\nlimits: {{connections: 70, head_bytes: 2KiB}}\n\
             admin: {{listen: off}}\nlog: {{format: text, access: false, level: debug}}\n\
             workloads: {{runtime: off, deadline: 3s}}\n"
        );
        let (plan, waiting) = in_force(&running, read(&text.replace("workers: 2", "workers: 3")));
        assert_eq!(
            waiting,
            [
                "capture.cgroup",
                "capture.bpffs",
                "capture.vips4",
                "capture.vips6",
                "capture.port",
                "capture.connections_per_pod",
                "workloads.runtime",
                "limits.connections",
                "admin.listen",
                "admin.page",
                "log.format",
                "log.access",
                "workers",
            ]
        );
        assert_eq!((plan.workers, plan.capture.port), (2, running.capture.port));
        let difference = Difference::between(&running, &plan);
        assert_eq!(
            difference.settings,
            ["limits.head_bytes", "limits.per_workload", "workloads.deadline", "log.level"],
            "the rest is taken"
        );
        assert!(in_force(&running, running.clone()).1.is_empty());
    }
}
