//! The table of keys: raw tree -> [`Plan`]. One function per section, in the order of the Plan.

mod upstream_proxies;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::defaults;
use super::error::{ConfigErrors, Mistake};
use super::hosts;
use super::plan::{
    Admin, Authority, Capture, Cidr, Destination, Enforcement, Host, Identity, Kubernetes, Limits, Log, Mode,
    NamePattern, Override, Plan, Protocol, Resolver, ReverseProxy, Roots, Route, Target, Timeouts, Trust,
    Tunnel, Unreadable, Upstream,
};
use super::read::{Reader, Section};
use super::selector::Selector;
use super::surroundings::Surroundings;
use super::values::{self, Wrong, nearest};
use super::yaml::{self, Mark, Node};

/// The name of the trust that stands for the system's roots.
const SYSTEM: &str = "system";

const TOP: &[&str] = &[
    "capture",
    "identities",
    "trusts",
    "upstream_proxies",
    "routes",
    "limits",
    "resolver",
    "kubernetes",
    "admin",
    "log",
    "run_dir",
    "drain",
    "workers",
];
const CAPTURE: &[&str] = &[
    "cgroup",
    "bpffs",
    "vips4",
    "vips6",
    "port",
    "connections_per_pod",
    "heartbeat",
    "pod_logs",
    "guard",
    "raw_sockets",
    "destroy_older_flows",
];
const IDENTITY: &[&str] = &["certificate", "key"];
const TRUST: &[&str] = &["roots"];
const ROUTE: &[&str] = &[
    "name",
    "destinations",
    "upstream",
    "server_name",
    "protocol",
    "authority",
    "mode",
    "tunnel",
    "enforcement",
    "overrides",
    "passthrough",
    "identity",
    "trust",
    "upstream_proxy",
    "timeouts",
    "pool_idle",
];
const OVERRIDE: &[&str] = &["namespaces", "selector", "enforcement"];
const TUNNEL: &[&str] = &["names", "nameless", "encrypted_hello"];
const TIMEOUTS: &[&str] = &["head", "idle", "connect", "tls", "response"];
const LIMITS: &[&str] = &["connections", "head_bytes", "buffer_bytes"];
const RESOLVER: &[&str] = &["resolv_conf", "hosts", "grace", "min_ttl", "max_ttl"];
const KUBERNETES: &[&str] = &["api", "service_account", "node_name", "startup_taint"];

/// Every key of the configuration, from the top; the documentation is compared with it.
#[cfg(test)]
fn all_keys() -> Vec<String> {
    let below =
        |parent: &str, keys: &[&str]| keys.iter().map(|key| format!("{parent}.{key}")).collect::<Vec<_>>();
    [
        below("capture", CAPTURE),
        below("identities.NAME", IDENTITY),
        below("trusts.NAME", TRUST),
        below("upstream_proxies.NAME", upstream_proxies::KEYS)
            .into_iter()
            .filter(|key| key != "upstream_proxies.NAME.timeouts")
            .collect(),
        below("upstream_proxies.NAME.timeouts", upstream_proxies::TIMEOUTS),
        below("routes[]", ROUTE)
            .into_iter()
            .filter(|key| {
                !["routes[].timeouts", "routes[].overrides", "routes[].tunnel"].contains(&key.as_str())
            })
            .collect(),
        below("routes[].overrides[]", OVERRIDE),
        below("routes[].tunnel", TUNNEL),
        below("routes[].timeouts", TIMEOUTS),
        below("limits", LIMITS),
        below("resolver", RESOLVER),
        below("kubernetes", KUBERNETES),
        below("admin", &["listen"]),
        below("log", &["format", "level", "access"]),
        below("drain", &["deadline"]),
        vec!["run_dir".into(), "workers".into()],
    ]
    .concat()
}

/// Text -> Plan and warnings. `around` is what holds where the text says nothing.
pub(super) fn plan(
    text: &str,
    path: &Path,
    around: &Surroundings,
) -> Result<(Plan, Vec<Mistake>), ConfigErrors> {
    let errors = |mistakes| ConfigErrors { path: path.to_owned(), mistakes };
    let root = yaml::tree(text).map_err(|mistake| errors(vec![mistake]))?.unwrap_or_else(nothing);
    let mut r = Reader::default();
    let top = r.known(&root, String::new(), TOP);

    let capture = capture(&mut r, &top);
    let mut identities = identities(&mut r, &top);
    let mut trusts = trusts(&mut r, &top);
    let mut proxies = upstream_proxies::upstream_proxies(&mut r, &top, &mut trusts);
    let kubernetes = kubernetes(&mut r, &top, around);
    let cluster = kubernetes.is_some();
    let mut named = References { identities: &mut identities, trusts: &mut trusts, proxies: &mut proxies };
    let routes = routes(&mut r, &top, &capture, &mut named, cluster);
    let limits = limits(&mut r, &top);
    if capture.connections_per_pod as usize >= limits.connections {
        let section = r.section(&top, "capture", CAPTURE);
        let what = "is not below limits.connections: one pod alone can take them all";
        r.warning(section.mark_of("connections_per_pod"), "capture.connections_per_pod", what);
    }
    let plan = Plan {
        limits,
        resolver: resolver(&mut r, &top),
        kubernetes,
        admin: admin(&mut r, &top, capture.port),
        log: log(&mut r, &top),
        run_dir: r.or(&top, "run_dir", defaults::RUN_DIR.into(), values::path),
        drain_deadline: {
            let section = r.section(&top, "drain", &["deadline"]);
            r.or(&section, "deadline", defaults::DRAIN_DEADLINE, values::duration)
        },
        workers: r.or(&top, "workers", around.workers, values::count(1, 256)),
        capture,
        routes,
        identities: identities.list,
        trusts: trusts.list,
        upstream_proxies: proxies.list.iter().map(|one| Arc::clone(&one.proxy)).collect(),
    };
    r.finish().map(|warnings| (plan, warnings)).map_err(errors)
}

fn capture(r: &mut Reader, top: &Section<'_>) -> Capture {
    let s = r.section(top, "capture", CAPTURE);
    let per_pod = values::count(1, 1_000_000);
    Capture {
        cgroup: r.optional(&s, "cgroup", values::path),
        bpffs: r.or(&s, "bpffs", defaults::BPFFS.into(), values::path),
        vips4: r.or(&s, "vips4", defaults::VIPS4, hosts::vips(true)),
        vips6: r.or(&s, "vips6", defaults::VIPS6, hosts::vips(false)),
        port: r.or(&s, "port", defaults::PORT, values::port),
        connections_per_pod: {
            let default = defaults::CONNECTIONS_PER_POD as usize;
            u32::try_from(r.or(&s, "connections_per_pod", default, per_pod)).expect("at most a million")
        },
        heartbeat: heartbeat(r, &s),
        pod_logs: r.or(&s, "pod_logs", defaults::POD_LOGS.into(), values::path),
        guard: r.or(&s, "guard", defaults::GUARD, values::guard),
        raw_sockets: r.or(&s, "raw_sockets", defaults::RAW_SOCKETS, values::raw_sockets),
        destroy_older_flows: r.or(&s, "destroy_older_flows", false, values::boolean),
    }
}

/// Shorter than a few beats, every hiccup of the node would open loose routes and close strict ones.
fn heartbeat(r: &mut Reader, s: &Section<'_>) -> Duration {
    const LEAST: Duration = Duration::from_secs(1);
    let heartbeat = r.or(s, "heartbeat", defaults::HEARTBEAT, values::duration);
    if heartbeat < LEAST {
        r.mistake(s.mark_of("heartbeat"), s.key("heartbeat"), "is too short; allowed: at least 1s");
    }
    heartbeat
}

/// Things that routes refer to by name.
struct Named<T> {
    list: Vec<Arc<T>>,
    /// Name, where it was written, and whether a route uses it.
    names: Vec<(Arc<str>, Mark, bool)>,
}

impl<T> Named<T> {
    fn new() -> Self {
        Self { list: Vec::new(), names: Vec::new() }
    }

    fn push(&mut self, name: Arc<str>, mark: Mark, value: T) {
        self.names.push((name, mark, false));
        self.list.push(Arc::new(value));
    }

    /// The index of a name, which is used from now on.
    fn find(&mut self, name: &str) -> Option<usize> {
        let index = self.names.iter().position(|(known, _, _)| &**known == name)?;
        self.names[index].2 = true;
        Some(index)
    }

    fn warn_unused(&self, r: &mut Reader, section: &str) {
        for (name, mark, used) in &self.names {
            if !used {
                r.warning(*mark, format!("{section}.{name}"), "no route uses it");
            }
        }
    }

    /// What to say about a name that is not there; `system` is always there among the trusts.
    fn unknown(&self, written: &str, section: &str) -> String {
        let mut names: Vec<&str> = self.names.iter().map(|(name, _, _)| &**name).collect();
        if section == "trusts" && !names.contains(&SYSTEM) {
            names.push(SYSTEM);
        }
        let hint = match nearest(written, &names) {
            Some(near) => format!("did you mean {near:?}?"),
            None if names.is_empty() => format!("allowed: a name under `{section}`, where there is none"),
            None => format!("allowed: {}", names.join(", ")),
        };
        format!("{written:?} is not under `{section}`; {hint}")
    }
}

fn identities(r: &mut Reader, top: &Section<'_>) -> Named<Identity> {
    let mut all = Named::new();
    for (name, section) in entries(r, top, "identities", IDENTITY) {
        let certificate = r.required(&section, "certificate", "the path of a PEM file", values::path);
        let key = r.required(&section, "key", "the path of a PEM file", values::path);
        let identity = Identity {
            name: Arc::clone(&name),
            certificate: certificate.unwrap_or_default(),
            key: key.unwrap_or_default(),
        };
        all.push(name, section.mark, identity);
    }
    all
}

fn trusts(r: &mut Reader, top: &Section<'_>) -> Named<Trust> {
    let mut all = Named::new();
    for (name, section) in entries(r, top, "trusts", TRUST) {
        if &*name == SYSTEM {
            let what = "always stands for the system's roots; allowed: another name";
            r.mistake(section.mark, section.path.clone(), what);
        }
        let roots = |text: &str| match text {
            SYSTEM => Ok(Roots::System),
            path => values::path(path).map(Roots::File).map_err(|_| {
                Wrong::new(format!("{path:?} is no roots"), "the absolute path of a PEM file, or system")
            }),
        };
        let roots = r.required(&section, "roots", "the path of a PEM file, or system", roots);
        all.push(Arc::clone(&name), section.mark, Trust { name, roots: roots.unwrap_or(Roots::System) });
    }
    all
}

/// The entries of a mapping from names to sections, with names and keys checked.
fn entries<'a>(r: &mut Reader, top: &Section<'a>, key: &str, keys: &[&str]) -> Vec<(Arc<str>, Section<'a>)> {
    let Some(node) = top.get(key) else { return Vec::new() };
    let map = r.named(node, key.to_owned());
    let mut all = Vec::new();
    for (name, node) in map.entries() {
        let path = map.key(name);
        match values::name(name) {
            Ok(name) => all.push((name, r.known(node, path, keys))),
            Err(wrong) => r.mistake(node.mark, path, wrong),
        }
    }
    all
}

fn routes(
    r: &mut Reader,
    top: &Section<'_>,
    capture: &Capture,
    named: &mut References<'_>,
    cluster: bool,
) -> Vec<Arc<Route>> {
    let nodes = r.list(top, "routes");
    if nodes.is_empty() {
        r.mistake(top.mark_of("routes"), "routes", "has no route; allowed: a list with at least one");
    }
    let mut seen = Seen { cluster, names: HashMap::new(), destinations: HashMap::new() };
    let mut routes = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let section = r.known(node, format!("routes[{index}]"), ROUTE);
        routes.extend(route(r, &section, capture, named, &mut seen).map(Arc::new));
    }
    named.identities.warn_unused(r, "identities");
    named.trusts.warn_unused(r, "trusts");
    named.proxies.warn_unused(r, "upstream_proxies");
    routes
}

/// What routes refer to.
struct References<'n> {
    identities: &'n mut Named<Identity>,
    trusts: &'n mut Named<Trust>,
    proxies: &'n mut Named<upstream_proxies::Proxy>,
}

/// What routes have in common: what must not be written twice, and where they are.
struct Seen {
    /// The API server is known, and with it pods' labels.
    cluster: bool,
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
    let mode = match r.or(s, "mode", Way::ReverseProxy, way) {
        Way::ReverseProxy => reverse_proxy(r, s, named).map(Mode::ReverseProxy),
        Way::Tunnel => Some(Mode::Tunnel(tunnel(r, s, &destinations, upstream.as_ref()))),
    };
    let enforcement = r.or(s, "enforcement", Enforcement::Loose, values::enforcement);
    let overrides = overrides(r, s, seen.cluster);
    let passthrough = passthrough(r, s, &destinations);
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
        timeouts,
    })
}

/// A mode, by its word.
#[derive(Clone, Copy)]
enum Way {
    ReverseProxy,
    Tunnel,
}

fn way(text: &str) -> Result<Way, Wrong> {
    values::word(text, &[("reverse-proxy", Way::ReverseProxy), ("tunnel", Way::Tunnel)])
}

fn reverse_proxy(r: &mut Reader, s: &Section<'_>, named: &mut References<'_>) -> Option<ReverseProxy> {
    only_with(r, s, &["tunnel"], "mode: tunnel");
    let protocol = r.or(s, "protocol", Protocol::Http, values::protocol);
    if protocol == Protocol::Opaque && !r.list(s, "passthrough").is_empty() {
        let what = "needs names, and an opaque route reads none; allowed: with protocol: http";
        r.mistake(s.mark_of("passthrough"), s.key("passthrough"), what);
    }
    let authority = r.optional(s, "authority", values::authority);
    if authority.is_some() && protocol == Protocol::Opaque {
        let what = "is a field of HTTP, and an opaque route reads none; allowed: with protocol: http";
        r.mistake(s.mark_of("authority"), s.key("authority"), what);
    }
    let authority = authority.unwrap_or(Authority::Upstream);
    let identity = reference(r, s, "identity", "identities", named.identities);
    let trust = match s.get("trust") {
        Some(node) if r.text(node, &s.key("trust")).is_some_and(|text| text != SYSTEM) => {
            reference(r, s, "trust", "trusts", named.trusts)
        }
        _ => Some(system_trust(named.trusts, s.mark)),
    };
    Some(ReverseProxy { protocol, authority, identity: identity?, trust: trust? })
}

/// Its names are the destinations' and the upstream's, unless others are written.
fn tunnel(
    r: &mut Reader,
    s: &Section<'_>,
    destinations: &[Destination],
    upstream: Option<&Upstream>,
) -> Tunnel {
    only_with(
        r,
        s,
        &["protocol", "authority", "identity", "trust", "server_name", "pool_idle"],
        "mode: reverse-proxy",
    );
    if upstream.is_some_and(|upstream| !upstream.base_path.is_empty()) {
        let what = "has a path, and a tunnel reads no requests; allowed: https://HOST[:PORT]";
        r.mistake(s.mark_of("upstream"), s.key("upstream"), what);
    }
    let t = r.section(s, "tunnel", TUNNEL);
    let nameless = r.or(&t, "nameless", Unreadable::Refuse, values::unreadable);
    let encrypted_hello = r.or(&t, "encrypted_hello", Unreadable::Refuse, values::unreadable);
    let mut names: Vec<NamePattern> = Vec::new();
    for (index, node) in r.list(&t, "names").iter().enumerate() {
        let key = format!("{}[{index}]", t.key("names"));
        names.extend(r.item(node, &key, hosts::name_pattern));
    }
    if t.get("names").is_none() {
        let named = destinations.iter().filter_map(|destination| match &destination.target {
            Target::Name(name) => Some(name),
            Target::Net(_) => None,
        });
        let upstream = upstream.and_then(|upstream| match &upstream.host {
            Host::Name(name) => Some(name),
            Host::Addr(_) => None,
        });
        for name in named.chain(upstream) {
            let name = NamePattern::Exact(Arc::clone(name));
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if names.is_empty() && nameless == Unreadable::Refuse {
            let what = "is missing, and neither the destinations nor the upstream have a name; allowed: a list \
                        of names or *.SUFFIX, or nameless: tunnel";
            r.mistake(t.mark, t.key("names"), what);
        }
    }
    Tunnel { names, nameless, encrypted_hello }
}

/// Notes keys that mean nothing in the route's mode: whoever wrote them expects something of them.
fn only_with(r: &mut Reader, s: &Section<'_>, keys: &[&str], allowed: &str) {
    for key in keys.iter().filter(|key| s.get(key).is_some()) {
        let what = format!("means nothing in this route's mode; allowed: with {allowed}");
        r.mistake(s.mark_of(key), s.key(key), what);
    }
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
    })
}

fn vip_range(capture: &Capture, target: &Target) -> Option<Cidr> {
    match target {
        Target::Name(_) => None,
        Target::Net(net) => [capture.vips4, capture.vips6].into_iter().find(|range| range.overlaps(net)),
    }
}

fn reference<T>(
    r: &mut Reader,
    s: &Section<'_>,
    key: &str,
    section: &str,
    all: &mut Named<T>,
) -> Option<usize> {
    let written = r.required(s, key, &format!("a name under `{section}`"), |text| Ok(text.to_owned()))?;
    let found = all.find(&written);
    if found.is_none() {
        let what = all.unknown(&written, section);
        r.mistake(s.mark_of(key), s.key(key), what);
    }
    found
}

/// The trust for routes that name none: the system's roots, one for all of them.
fn system_trust(trusts: &mut Named<Trust>, mark: Mark) -> usize {
    trusts.find(SYSTEM).unwrap_or_else(|| {
        trusts.push(SYSTEM.into(), mark, Trust { name: SYSTEM.into(), roots: Roots::System });
        trusts.find(SYSTEM).expect("it was just added")
    })
}

fn timeouts(r: &mut Reader, route: &Section<'_>) -> Timeouts {
    let s = r.section(route, "timeouts", TIMEOUTS);
    Timeouts {
        head: r.or(&s, "head", defaults::TIMEOUT_HEAD, values::duration),
        idle: r.or(&s, "idle", defaults::TIMEOUT_IDLE, values::duration),
        connect: r.or(&s, "connect", defaults::TIMEOUT_CONNECT, values::duration),
        tls: r.or(&s, "tls", defaults::TIMEOUT_TLS, values::duration),
        response: r.or(&s, "response", defaults::TIMEOUT_RESPONSE, values::duration),
    }
}

fn limits(r: &mut Reader, top: &Section<'_>) -> Limits {
    let s = r.section(top, "limits", LIMITS);
    Limits {
        connections: r.or(&s, "connections", defaults::CONNECTIONS, values::count(1, 1_000_000)),
        head_bytes: r.or(&s, "head_bytes", defaults::HEAD_BYTES, values::size(1024, 1024 * 1024)),
        buffer_bytes: r.or(&s, "buffer_bytes", defaults::BUFFER_BYTES, values::size(4096, 16 * 1024 * 1024)),
    }
}

fn resolver(r: &mut Reader, top: &Section<'_>) -> Resolver {
    let s = r.section(top, "resolver", RESOLVER);
    let resolver = Resolver {
        resolv_conf: r.or(&s, "resolv_conf", defaults::RESOLV_CONF.into(), values::path),
        hosts: r.or(&s, "hosts", defaults::HOSTS.into(), values::path),
        grace: r.or(&s, "grace", defaults::RESOLVER_GRACE, values::duration),
        min_ttl: r.or(&s, "min_ttl", defaults::RESOLVER_MIN_TTL, values::duration),
        max_ttl: r.or(&s, "max_ttl", defaults::RESOLVER_MAX_TTL, values::duration),
    };
    if resolver.min_ttl > resolver.max_ttl {
        let max = values::humane(resolver.max_ttl);
        r.mistake(
            s.mark_of("min_ttl"),
            s.key("min_ttl"),
            format!("is longer than max_ttl; allowed: at most {max}"),
        );
    }
    resolver
}

fn kubernetes(r: &mut Reader, top: &Section<'_>, around: &Surroundings) -> Option<Kubernetes> {
    let s = r.section(top, "kubernetes", KUBERNETES);
    let api = written_or_around(r, &s, "api", around.api.as_deref(), hosts::api_server);
    let node_name = written_or_around(r, &s, "node_name", around.node_name.as_deref(), values::node_name);
    let service_account = r.or(&s, "service_account", defaults::SERVICE_ACCOUNT.into(), values::path);
    let written = r.optional(&s, "startup_taint", values::taint);
    if matches!(written, Some(Some(_))) {
        // Somebody relies on the agent to remove it: what that takes must be there.
        for (key, known, variable) in [
            ("api", api.is_some(), "KUBERNETES_SERVICE_HOST"),
            ("node_name", node_name.is_some(), "NODE_NAME"),
        ] {
            if !known && s.get(key).is_none() {
                let what = format!(
                    "is missing, and startup_taint needs it; allowed: a value, or the variable {variable}"
                );
                r.mistake(s.mark_of("startup_taint"), s.key(key), what);
            }
        }
    }
    let startup_taint = written.unwrap_or_else(|| Some(defaults::STARTUP_TAINT.into()));
    Some(Kubernetes { api: api?, service_account, node_name: node_name?, startup_taint })
}

/// A value as written, or as the environment has it; a mistake names where it came from.
fn written_or_around<T>(
    r: &mut Reader,
    s: &Section<'_>,
    key: &str,
    around: Option<&str>,
    parse: impl Fn(&str) -> Result<T, Wrong>,
) -> Option<T> {
    if s.get(key).is_some() {
        return r.optional(s, key, parse);
    }
    match parse(around?) {
        Ok(value) => Some(value),
        Err(wrong) => {
            r.mistake(s.mark, s.key(key), format!("from the environment: {wrong}"));
            None
        }
    }
}

fn admin(r: &mut Reader, top: &Section<'_>, capture_port: u16) -> Admin {
    // `admin: off` reads as well as `admin: {listen: off}`.
    if let Some(node) = top.get("admin")
        && matches!(&node.kind, yaml::Kind::Scalar { text, .. } if text == "off")
    {
        return Admin { listen: None };
    }
    let s = r.section(top, "admin", &["listen"]);
    let listen = r.or(&s, "listen", Some(defaults::ADMIN_LISTEN), values::listen);
    if listen.is_some_and(|addr| addr.port() == capture_port) {
        let what =
            format!("port {capture_port} is the one connections are captured on; allowed: another port");
        r.mistake(s.mark_of("listen"), s.key("listen"), what);
    }
    Admin { listen }
}

fn log(r: &mut Reader, top: &Section<'_>) -> Log {
    let s = r.section(top, "log", &["format", "level", "access"]);
    Log {
        format: r.or(&s, "format", defaults::LOG_FORMAT, values::log_format),
        level: r.or(&s, "level", defaults::LOG_LEVEL.into(), values::log_level),
        access: r.or(&s, "access", true, values::boolean),
    }
}

/// Stands for an empty file.
fn nothing() -> Node {
    Node { mark: Mark { line: 1, column: 1 }, kind: yaml::Kind::Map(Vec::new()) }
}

#[cfg(test)]
mod tests;
