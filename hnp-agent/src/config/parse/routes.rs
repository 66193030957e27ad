//! The list `routes`: what each one is for, and how it is reached. What its mode needs is in [`modes`].

use std::collections::HashMap;
use std::sync::Arc;

use super::modes::{self, Way};
use super::{Named, policy, upstream_proxies};
use crate::config::defaults;
use crate::config::hosts;
use crate::config::plan::{
    Capture, Cidr, Destination, Enforcement, Host, Identity, Mode, NamePattern, Override, Route, Target,
    Timeouts, Trust, Upstream,
};
use crate::config::read::{Reader, Section};
use crate::config::selector::Selector;
use crate::config::values;
use crate::config::yaml::{self, Mark};

pub(super) const KEYS: &[&str] = &[
    "name",
    "destinations",
    "upstream",
    "server_name",
    "protocol",
    "upstream_protocol",
    "authority",
    "mode",
    "end_to_end",
    "tunnel",
    "enforcement",
    "overrides",
    "passthrough",
    "policy",
    "identity",
    "trust",
    "upstream_proxy",
    "timeouts",
    "pool_idle",
    "pool_warm",
];
pub(super) const OVERRIDE: &[&str] = &["namespaces", "selector", "enforcement"];
pub(super) const TIMEOUTS: &[&str] = &["head", "idle", "connect", "tls", "response", "ping"];

pub(super) fn routes(
    r: &mut Reader,
    top: &Section<'_>,
    capture: &Capture,
    named: &mut References<'_>,
    tellers: policy::Tellers,
) -> Vec<Arc<Route>> {
    let nodes = r.list(top, "routes");
    if nodes.is_empty() {
        r.mistake(top.mark_of("routes"), "routes", "has no route; allowed: a list with at least one");
    }
    let mut seen = Seen { tellers, names: HashMap::new(), destinations: HashMap::new() };
    let mut routes = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let section = r.known(node, format!("routes[{index}]"), KEYS);
        routes.extend(route(r, &section, capture, named, &mut seen).map(Arc::new));
    }
    named.identities.warn_unused(r, "identities");
    named.trusts.warn_unused(r, "trusts");
    named.proxies.warn_unused(r, "upstream_proxies");
    routes
}

/// What routes refer to.
pub(super) struct References<'n> {
    pub(super) identities: &'n mut Named<Identity>,
    pub(super) trusts: &'n mut Named<Trust>,
    pub(super) proxies: &'n mut Named<upstream_proxies::Proxy>,
    /// Why no issuer can tell for whom it is to issue; `None`: it can.
    pub(super) unknown_workloads: Option<&'static str>,
}

/// What routes have in common: what must not be written twice, and where they are.
struct Seen {
    tellers: policy::Tellers,
    names: HashMap<Arc<str>, Mark>,
    destinations: HashMap<String, (String, Mark)>,
}

fn route(
    r: &mut Reader,
    s: &Section<'_>,
    capture: &Capture,
    named: &mut References<'_>,
    seen: &mut Seen,
) -> Option<Route> {
    let name = r.required(s, "name", "a name, unique among the routes", values::name);
    if let Some(name) = &name
        && let Some(earlier) = seen.names.insert(Arc::clone(name), s.mark_of("name"))
    {
        let what = format!(
            "{name:?} is the name of the route in line {} too; allowed: a name of its own",
            earlier.line
        );
        r.mistake(s.mark_of("name"), s.key("name"), what);
    }
    let destinations = destinations(r, s, capture, seen);
    let upstream = upstream(r, s, capture);
    let through =
        upstream_proxies::way(r, s, upstream.as_ref().map(|upstream| &upstream.host), named.proxies);
    let mode = match r.or(s, "mode", Way::ReverseProxy, modes::way) {
        Way::ReverseProxy => modes::reverse_proxy(r, s, named).map(Mode::ReverseProxy),
        Way::EndToEnd => modes::end_to_end(r, s, named).map(Mode::EndToEnd),
        Way::Tunnel => Some(Mode::Tunnel(modes::tunnel(r, s, &destinations, upstream.as_ref()))),
    };
    let enforcement = r.or(s, "enforcement", Enforcement::Loose, values::enforcement);
    let overrides = overrides(r, s, seen.tellers.cluster);
    let passthrough = passthrough(r, s, &destinations);
    let policy = policy::policy(r, s, seen.tellers);
    if policy.is_some() && !passthrough.is_empty() {
        let what = "goes to where the client was going and does not use the route: the policy does not hold for it, \
                    `limits.per_workload` does";
        r.warning(s.mark_of("passthrough"), s.key("passthrough"), what);
    }
    let timeouts = timeouts(r, s);
    // Everything was read and its mistakes noted; only now may one of them end this.
    Some(Route {
        name: name?,
        destinations,
        upstream: upstream?,
        way: through?,
        mode: mode?,
        enforcement,
        overrides,
        passthrough,
        policy,
        timeouts,
    })
}

fn overrides(r: &mut Reader, s: &Section<'_>, cluster: bool) -> Vec<Override> {
    let mut overrides = Vec::new();
    for (index, node) in r.list(s, "overrides").iter().enumerate() {
        let section = r.known(node, format!("{}[{index}]", s.key("overrides")), OVERRIDE);
        let allowed = "observe, loose or strict";
        let enforcement = r.required(&section, "enforcement", allowed, values::enforcement);
        let mut namespaces = Vec::new();
        for (index, node) in r.list(&section, "namespaces").iter().enumerate() {
            namespaces.extend(r.item(node, &format!("{}[{index}]", section.key("namespaces")), values::name));
        }
        let selector = r.optional(&section, "selector", Selector::read);
        if selector.is_some() && !cluster {
            let what = "asks for labels, which only the API server knows; allowed: with kubernetes.api and \
                        kubernetes.node_name, or the variables KUBERNETES_SERVICE_HOST and NODE_NAME";
            r.mistake(section.mark_of("selector"), section.key("selector"), what);
        }
        if namespaces.is_empty() && section.get("selector").is_none() {
            let what = "names no pods; allowed: a list of namespaces with at least one, a selector, or both";
            r.mistake(section.mark_of("namespaces"), section.key("namespaces"), what);
        }
        overrides.extend(enforcement.map(|enforcement| Override { namespaces, selector, enforcement }));
    }
    overrides
}

fn destinations(r: &mut Reader, s: &Section<'_>, capture: &Capture, seen: &mut Seen) -> Vec<Destination> {
    let nodes = r.list(s, "destinations");
    if nodes.is_empty() && s.get("destinations").is_none_or(|node| matches!(&node.kind, yaml::Kind::List(_)))
    {
        r.mistake(
            s.mark_of("destinations"),
            s.key("destinations"),
            "has no destination; allowed: a list of HOST:PORT, IPv4[/PREFIX]:PORT or [IPv6[/PREFIX]]:PORT",
        );
    }
    let mut destinations = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let key = format!("{}[{index}]", s.key("destinations"));
        let Some(destination) = r.item(node, &key, hosts::destination) else { continue };
        if let Some(range) = vip_range(capture, &destination.target) {
            let what = format!(
                "{:?} lies in the VIP range {range}; allowed: what pods dial",
                destination.to_string()
            );
            r.mistake(node.mark, key, what);
            continue;
        }
        match seen.destinations.get(&destination.to_string()) {
            Some((earlier, mark)) => {
                let what = format!("{destination} is already {earlier} in line {}; allowed: once", mark.line);
                r.mistake(node.mark, key, what);
            }
            None => {
                seen.destinations.insert(destination.to_string(), (key, node.mark));
                destinations.push(destination);
            }
        }
    }
    destinations
}

fn passthrough(r: &mut Reader, s: &Section<'_>, destinations: &[Destination]) -> Vec<NamePattern> {
    let nodes = r.list(s, "passthrough");
    let mut patterns: Vec<NamePattern> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let key = format!("{}[{index}]", s.key("passthrough"));
        let Some(pattern) = r.item(node, &key, hosts::name_pattern) else { continue };
        let own = destinations
            .iter()
            .find(|one| matches!(&one.target, Target::Name(name) if pattern.matches(name)));
        if let Some(own) = own {
            let what = format!("{pattern} is a destination of this route ({own}); allowed: other names");
            r.mistake(node.mark, key, what);
        } else if patterns.contains(&pattern) {
            r.mistake(node.mark, key, format!("{pattern} is already listed; allowed: once"));
        } else {
            patterns.push(pattern);
        }
    }
    patterns
}

fn upstream(r: &mut Reader, s: &Section<'_>, capture: &Capture) -> Option<Upstream> {
    let url = r.required(s, "upstream", "https://HOST[:PORT][/BASE]", hosts::upstream);
    let server_name = r.optional(s, "server_name", hosts::server_name);
    let pool_idle = r.or(s, "pool_idle", defaults::POOL_IDLE, values::count(0, 10_000));
    let pool_warm = r.or(s, "pool_warm", defaults::POOL_WARM, values::count(0, 1000));
    if pool_warm > pool_idle {
        let what = format!("is more than the pool may hold; allowed: at most pool_idle, {pool_idle}");
        r.mistake(s.mark_of("pool_warm"), s.key("pool_warm"), what);
    }
    let url = url?;
    if let Host::Addr(addr) = url.host
        && let Some(range) = vip_range(capture, &Target::Net(Cidr::host(addr)))
    {
        let what = format!(
            "{:?} lies in the VIP range {range}; allowed: the manager's address",
            url.host.to_string()
        );
        r.mistake(s.mark_of("upstream"), s.key("upstream"), what);
    }
    let authority = match url.port {
        443 => url.host.to_string(),
        port => format!("{}:{port}", url.host),
    };
    Some(Upstream {
        server_name: server_name.unwrap_or_else(|| hosts::server_name_of(&url.host)),
        host: url.host,
        port: url.port,
        base_path: url.base_path,
        authority,
        pool_idle,
        pool_warm,
    })
}

fn vip_range(capture: &Capture, target: &Target) -> Option<Cidr> {
    match target {
        Target::Name(_) => None,
        Target::Net(net) => [capture.vips4, capture.vips6].into_iter().find(|range| range.overlaps(net)),
    }
}

fn timeouts(r: &mut Reader, route: &Section<'_>) -> Timeouts {
    let s = r.section(route, "timeouts", TIMEOUTS);
    Timeouts {
        head: r.or(&s, "head", defaults::TIMEOUT_HEAD, values::duration),
        idle: r.or(&s, "idle", defaults::TIMEOUT_IDLE, values::duration),
        connect: r.or(&s, "connect", defaults::TIMEOUT_CONNECT, values::duration),
        tls: r.or(&s, "tls", defaults::TIMEOUT_TLS, values::duration),
        response: r.or(&s, "response", defaults::TIMEOUT_RESPONSE, values::duration),
        ping: r.or(&s, "ping", defaults::TIMEOUT_PING, values::duration),
    }
}
