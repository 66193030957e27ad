//! The table of keys: raw tree -> [`Plan`]. One function per section, in the order of the Plan.

mod gateway;
mod modes;
mod policy;
mod routes;
pub(super) mod upstream_proxies;

use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::defaults;
use super::error::{ConfigErrors, Mistake};
use super::hosts;
use super::plan::{
    Admin, Capture, CaptureMode, Identity, IdentityFiles, IdentityPlace, IdentitySource, Issuer, Kubernetes,
    Limits, Log, NamePattern, OnDoubt, Peers, PerWorkload, Plan, Resolver, Revocation, Roots, RuntimeSocket,
    TlsVersion, Trust, Workloads,
};
use super::read::{Reader, Section};
use super::spiffe::{SpiffeIdentity, SvidChoice, WorkloadApi};
use super::surroundings::Surroundings;
use super::values::{self, Wrong, nearest};
use super::yaml::{self, Mark, Node};

/// The name of the trust that stands for the system's roots.
const SYSTEM: &str = "system";

const TOP: &[&str] = &[
    "capture",
    "gateway",
    "identities",
    "trusts",
    "upstream_proxies",
    "routes",
    "limits",
    "resolver",
    "workloads",
    "kubernetes",
    "admin",
    "log",
    "run_dir",
    "drain",
    "workers",
];
const CAPTURE: &[&str] = &[
    "mode",
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
const FILES: &[&str] = &["certificate", "key", "directory", "passphrase_file"];
const IDENTITY: &[&str] = &["certificate", "key", "directory", "passphrase_file", "spiffe", "issuer"];
const SPIFFE_IDENTITY: &[&str] = &["socket", "hint", "id"];
const ISSUER: [&[&str]; 2] = [FILES, &["trust_domain", "lifetime", "pod_uid", "max_identities"]];
const TRUST: &[&str] = &["roots", "spiffe", "ids", "names", "tls_min", "crls", "crl_unknown", "crl_expired"];
const SPIFFE_TRUST: &[&str] = &["socket"];
const LIMITS: &[&str] = &["connections", "head_bytes", "buffer_bytes", "per_workload"];
const PER_WORKLOAD: &[&str] =
    &["connections", "new_connections_per_second", "handshakes_per_second", "bytes_per_second"];
const RESOLVER: &[&str] = &["resolv_conf", "hosts", "grace", "min_ttl", "max_ttl"];
const WORKLOADS: &[&str] = &["runtime", "deadline"];
const ADMIN: &[&str] = &["listen", "page"];
const KUBERNETES: &[&str] = &["api", "service_account", "node_name", "startup_taint", "daemonset"];

/// Every key of the configuration, from the top; the documentation is compared with it.
#[cfg(test)]
fn all_keys() -> Vec<String> {
    let below =
        |parent: &str, keys: &[&str]| keys.iter().map(|key| format!("{parent}.{key}")).collect::<Vec<_>>();
    let all: Vec<String> = [
        below("capture", CAPTURE),
        below("gateway", gateway::KEYS).into_iter().filter(|key| key != "gateway.timeouts").collect(),
        below("gateway.tls", modes::END_TO_END),
        below("gateway.timeouts", gateway::TIMEOUTS),
        below("identities.NAME", IDENTITY),
        below("identities.NAME.issuer", &ISSUER.concat()),
        below("identities.NAME.spiffe", SPIFFE_IDENTITY),
        below("trusts.NAME", TRUST),
        below("trusts.NAME.spiffe", SPIFFE_TRUST),
        below("upstream_proxies.NAME", upstream_proxies::KEYS),
        below("upstream_proxies.NAME.timeouts", upstream_proxies::TIMEOUTS),
        below("routes[]", routes::KEYS),
        below("routes[].overrides[]", routes::OVERRIDE),
        below("routes[].policy", policy::KEYS),
        below("routes[].policy.allow[]", policy::RULE),
        below("routes[].policy.deny[]", policy::RULE),
        below("routes[].end_to_end", modes::END_TO_END),
        below("routes[].tunnel", modes::TUNNEL),
        below("routes[].timeouts", routes::TIMEOUTS),
        below("limits", LIMITS),
        below("limits.per_workload", PER_WORKLOAD),
        below("resolver", RESOLVER),
        below("workloads", WORKLOADS),
        below("kubernetes", KUBERNETES),
        below("admin", ADMIN),
        below("log", &["format", "level", "access"]),
        below("drain", &["deadline"]),
        vec!["run_dir".into(), "workers".into()],
    ]
    .concat();
    // A section is no key where its keys are listed.
    let holds_others = |key: &String| all.iter().any(|other| other.starts_with(&format!("{key}.")));
    let is_list = |key: &String| all.iter().any(|other| other.starts_with(&format!("{key}[].")));
    all.iter().filter(|key| !holds_others(key) && !is_list(key)).cloned().collect()
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
    let kubernetes = kubernetes(&mut r, &top, around);
    let cluster = kubernetes.is_some();
    let mut identities = identities(&mut r, &top, around);
    let mut trusts = trusts(&mut r, &top, around);
    let mut proxies = upstream_proxies::upstream_proxies(&mut r, &top, &mut trusts);
    let unknown_workloads = match capture.mode {
        _ if !cluster => Some(
            "asks for pods' service accounts, which only the API server knows; allowed: with kubernetes.api and \
             kubernetes.node_name, or the variables KUBERNETES_SERVICE_HOST and NODE_NAME",
        ),
        CaptureMode::Off => Some(
            "issues only for pods that were captured, because an address proves nothing; allowed: with capture.mode: on",
        ),
        CaptureMode::On => None,
    };
    let mut named = routes::References {
        identities: &mut identities,
        trusts: &mut trusts,
        proxies: &mut proxies,
        unknown_workloads,
    };
    let gateway_section = r.section(&top, "gateway", gateway::KEYS);
    let gateway_tls = gateway::tls(&mut r, &gateway_section, &mut named);
    let workloads = workloads(&mut r, &top);
    let runtime = capture.mode == CaptureMode::On && workloads.runtime != RuntimeSocket::Off;
    let tellers = policy::Tellers { cluster, runtime };
    let routes = routes::routes(&mut r, &top, &capture, &mut named, tellers);
    let limits = limits(&mut r, &top, &capture);
    if capture.mode == CaptureMode::On && capture.connections_per_pod as usize >= limits.connections {
        let section = r.section(&top, "capture", CAPTURE);
        let what = "is not below limits.connections: one pod alone can take them all";
        r.warning(section.mark_of("connections_per_pod"), "capture.connections_per_pod", what);
    }
    let mut plan = Plan {
        gateway: None,
        limits,
        resolver: resolver(&mut r, &top),
        workloads,
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
    plan.gateway = gateway::gateway(&mut r, &top, &gateway_section, gateway_tls, &plan);
    r.finish().map(|warnings| (plan, warnings)).map_err(errors)
}

fn capture(r: &mut Reader, top: &Section<'_>) -> Capture {
    // `capture: off` reads as well as `capture: {mode: off}`.
    let word = match top.get("capture").map(|node| &node.kind) {
        Some(yaml::Kind::Scalar { text, .. }) if text == "off" => Some(CaptureMode::Off),
        _ => None,
    };
    let s = match word {
        Some(_) => Section::empty(top.mark_of("capture"), "capture"),
        None => r.section(top, "capture", CAPTURE),
    };
    let per_pod = values::count(1, 1_000_000);
    Capture {
        mode: word.unwrap_or_else(|| r.or(&s, "mode", CaptureMode::On, values::capture_mode)),
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

fn workloads(r: &mut Reader, top: &Section<'_>) -> Workloads {
    let s = r.section(top, "workloads", WORKLOADS);
    Workloads {
        runtime: r.or(&s, "runtime", RuntimeSocket::Auto, values::runtime_socket),
        deadline: deadline(r, &s),
    }
}

/// Shorter than an answer takes, the first connection of every pod would be decided without one; longer than clients wait, it
/// would be decided for nobody.
fn deadline(r: &mut Reader, s: &Section<'_>) -> Duration {
    const BOUNDS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
    let deadline = r.or(s, "deadline", defaults::WORKLOAD_DEADLINE, values::duration);
    if !BOUNDS.contains(&deadline) {
        let [least, most] = [BOUNDS.start(), BOUNDS.end()].map(|bound| values::humane(*bound));
        let what = format!("is out of bounds; allowed: {least} to {most}");
        r.mistake(s.mark_of("deadline"), s.key("deadline"), what);
    }
    deadline
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

fn identities(r: &mut Reader, top: &Section<'_>, around: &Surroundings) -> Named<Identity> {
    let mut all = Named::new();
    for (name, section) in entries(r, top, "identities", IDENTITY) {
        let source = match ["spiffe", "issuer"].map(|kind| section.get(kind).is_some()) {
            [true, _] => IdentitySource::Spiffe(spiffe_identity(r, &section, around)),
            [false, true] => IdentitySource::Issuer(issuer(r, &section)),
            [false, false] => IdentitySource::Files(identity_files(r, &section)),
        };
        let identity = Identity { name: Arc::clone(&name), source };
        all.push(name, section.mark, identity);
    }
    all
}

/// Where certificate and key lie.
fn identity_files(r: &mut Reader, section: &Section<'_>) -> IdentityFiles {
    let place = match r.optional(section, "directory", values::path) {
        Some(directory) => {
            for other in ["certificate", "key"].into_iter().filter(|key| section.get(key).is_some()) {
                let what = "stands beside `directory`, which says where it is; allowed: one of the two";
                r.mistake(section.mark_of(other), section.key(other), what);
            }
            IdentityPlace::Directory(directory)
        }
        // A mistake of its own.
        None if section.get("directory").is_some() => IdentityPlace::Directory(PathBuf::new()),
        None => {
            let mut path = |key| {
                let allowed = "the path of a PEM file, or `directory` instead of both";
                r.required(section, key, allowed, values::path).unwrap_or_default()
            };
            IdentityPlace::Pair { certificate: path("certificate"), key: path("key") }
        }
    };
    IdentityFiles { place, passphrase_file: r.optional(section, "passphrase_file", values::path) }
}

/// What issues identities for workloads, and all that it needs to know them.
fn issuer(r: &mut Reader, identity: &Section<'_>) -> Issuer {
    for other in FILES.iter().filter(|key| identity.get(key).is_some()) {
        let what = "stands beside `issuer`, which has its own; allowed: one of the two";
        r.mistake(identity.mark_of(other), identity.key(other), what);
    }
    let s = r.section(identity, "issuer", &ISSUER.concat());
    let intermediate = identity_files(r, &s);
    let domain = "a trust domain, such as prod.example.org";
    Issuer {
        intermediate,
        trust_domain: r
            .required(&s, "trust_domain", domain, values::trust_domain)
            .unwrap_or_else(|| "unknown".into()),
        lifetime: {
            let lifetime = r.or(&s, "lifetime", defaults::ISSUED_LIFETIME, values::duration);
            if lifetime < defaults::SHORTEST_LIFETIME {
                let least = values::humane(defaults::SHORTEST_LIFETIME);
                let what = format!("is too short to be renewed in time; allowed: at least {least}");
                r.mistake(s.mark_of("lifetime"), s.key("lifetime"), what);
            }
            lifetime
        },
        pod_uid: r.or(&s, "pod_uid", false, values::boolean),
        max_identities: r.or(&s, "max_identities", defaults::MAX_IDENTITIES, values::count(1, 1_000_000)),
    }
}

/// An identity that is given out on the node.
fn spiffe_identity(r: &mut Reader, section: &Section<'_>, around: &Surroundings) -> SpiffeIdentity {
    for (other, _) in section.entries().filter(|(key, _)| *key != "spiffe") {
        let what = "stands beside `spiffe`, which gives certificate and key; allowed: one of the two";
        r.mistake(section.mark_of(other), section.key(other), what);
    }
    let s = r.section(section, "spiffe", SPIFFE_IDENTITY);
    let api = workload_api(r, &s, around);
    let hint = r.optional(&s, "hint", values::hint);
    let id = r.optional(&s, "id", values::spiffe_id);
    if hint.is_some() && id.is_some() {
        r.mistake(s.mark_of("id"), s.key("id"), "stands beside `hint`; allowed: one of the two");
    }
    let choice = match (hint, id) {
        (Some(hint), _) => SvidChoice::Hint(hint),
        (None, Some(id)) => SvidChoice::Id(id),
        (None, None) => SvidChoice::First,
    };
    SpiffeIdentity { api, choice }
}

/// The Workload API that is written, or that the environment names.
fn workload_api(r: &mut Reader, s: &Section<'_>, around: &Surroundings) -> WorkloadApi {
    let socket = written_or_around(r, s, "socket", around.spiffe_socket.as_deref(), values::unix_socket);
    if socket.is_none() && s.get("socket").is_none() && around.spiffe_socket.is_none() {
        let what = "is missing; allowed: the path of the Workload API's socket, or the variable SPIFFE_ENDPOINT_SOCKET";
        r.mistake(s.mark, s.key("socket"), what);
    }
    WorkloadApi { socket: socket.unwrap_or_default() }
}

fn trusts(r: &mut Reader, top: &Section<'_>, around: &Surroundings) -> Named<Trust> {
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
        let roots = if section.get("spiffe").is_some() {
            Roots::Spiffe(spiffe_bundles(r, &section, around))
        } else {
            let roots =
                r.required(&section, "roots", "the path of a PEM file, or system; or `spiffe`", roots);
            roots.unwrap_or(Roots::System)
        };
        let revocation = Revocation {
            crls: r.optional(&section, "crls", values::path),
            unknown: r.or(&section, "crl_unknown", OnDoubt::Refuse, values::on_doubt),
            expired: r.or(&section, "crl_expired", OnDoubt::Refuse, values::on_doubt),
        };
        for key in ["crl_unknown", "crl_expired"] {
            if section.get(key).is_some() && section.get("crls").is_none() {
                let what = "means nothing without `crls`; allowed: both, or none";
                r.mistake(section.mark_of(key), section.key(key), what);
            }
        }
        let peers = peers(r, &section);
        if matches!(roots, Roots::Spiffe(_)) && section.get("ids").is_none() {
            let what = "is missing: a bundle vouches for every workload of its trust domain; allowed: SPIFFE IDs such as \
                        spiffe://example.org/manager, or spiffe://example.org/* for all of them";
            r.mistake(section.mark, section.key("ids"), what);
        }
        let tls_min = r.or(&section, "tls_min", TlsVersion::default(), values::tls_version);
        all.push(Arc::clone(&name), section.mark, Trust { name, roots, revocation, peers, tls_min });
    }
    all
}

/// Where bundles come from.
fn spiffe_bundles(r: &mut Reader, section: &Section<'_>, around: &Surroundings) -> WorkloadApi {
    for (other, what) in [
        ("roots", "stands beside `spiffe`, which gives the roots; allowed: one of the two"),
        (
            "crls",
            "stands beside `spiffe`, which gives revocation lists with its bundles; allowed: with `roots`",
        ),
    ] {
        if section.get(other).is_some() {
            r.mistake(section.mark_of(other), section.key(other), what);
        }
    }
    let s = r.section(section, "spiffe", SPIFFE_TRUST);
    workload_api(r, &s, around)
}

/// Who is taken of those that the roots vouch for. Of a list that is empty nobody knows whether it means all or none.
fn peers(r: &mut Reader, section: &Section<'_>) -> Peers {
    let (mut ids, mut names) = (Vec::new(), Vec::new());
    for (index, node) in r.list(section, "ids").iter().enumerate() {
        ids.extend(r.item(node, &format!("{}[{index}]", section.key("ids")), values::id_pattern));
    }
    for (index, node) in r.list(section, "names").iter().enumerate() {
        names.extend(r.item(node, &format!("{}[{index}]", section.key("names")), peer_name));
    }
    for key in ["ids", "names"] {
        if matches!(section.get(key).map(|node| &node.kind), Some(yaml::Kind::List(items)) if items.is_empty())
        {
            let what = "is empty; allowed: one at least, or take it out";
            r.mistake(section.mark_of(key), section.key(key), what);
        }
    }
    Peers { ids, names }
}

fn peer_name(text: &str) -> Result<NamePattern, Wrong> {
    hosts::name_pattern(text).map_err(|_| {
        Wrong::not(
            text,
            "a name in a certificate",
            "a DNS name, or *.SUFFIX with two labels at least; SPIFFE IDs go under `ids`",
        )
    })
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
        trusts.push(SYSTEM.into(), mark, Trust::of_roots(SYSTEM.into(), Roots::System));
        trusts.find(SYSTEM).expect("it was just added")
    })
}

fn limits(r: &mut Reader, top: &Section<'_>, capture: &Capture) -> Limits {
    let s = r.section(top, "limits", LIMITS);
    let connections = r.or(&s, "connections", defaults::CONNECTIONS, values::count(1, 1_000_000));
    Limits {
        connections,
        head_bytes: r.or(&s, "head_bytes", defaults::HEAD_BYTES, values::size(1024, 1024 * 1024)),
        buffer_bytes: r.or(&s, "buffer_bytes", defaults::BUFFER_BYTES, values::size(4096, 16 * 1024 * 1024)),
        per_workload: per_workload(r, &s, connections, capture.connections_per_pod),
    }
}

fn per_workload(r: &mut Reader, limits: &Section<'_>, all: usize, captured: u32) -> PerWorkload {
    let s = r.section(limits, "per_workload", PER_WORKLOAD);
    let connections =
        r.or(&s, "connections", defaults::per_workload(all, captured), values::count(1, 1_000_000));
    if s.get("connections").is_some() && connections >= all.max(2) {
        let what = format!(
            "is not below limits.connections, {all}: one workload alone could take them all; allowed: less than that"
        );
        r.mistake(s.mark_of("connections"), s.key("connections"), what);
    }
    let per_second = |n: usize| NonZeroU64::new(n as u64);
    let new = r.optional(&s, "new_connections_per_second", values::count(1, 1_000_000));
    let handshakes = r.optional(&s, "handshakes_per_second", values::count(1, 1_000_000));
    let bytes = r.optional(&s, "bytes_per_second", values::size(64 * 1024, 1 << 40));
    PerWorkload {
        connections,
        new_connections_per_second: new.and_then(per_second),
        handshakes_per_second: handshakes.and_then(per_second).unwrap_or(defaults::HANDSHAKES),
        bytes_per_second: bytes.and_then(per_second),
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
    let daemonset = written_or_around(r, &s, "daemonset", around.daemonset.as_deref(), values::daemonset);
    let relied_on = [
        ("startup_taint", matches!(written, Some(Some(_)))),
        ("daemonset", s.get("daemonset").is_some() && matches!(daemonset, Some(Some(_)))),
    ];
    for (relying, _) in relied_on.into_iter().filter(|(_, relied_on)| *relied_on) {
        // Somebody relies on the agent to look after it: what that takes must be there.
        for (key, known, variable) in [
            ("api", api.is_some(), "KUBERNETES_SERVICE_HOST"),
            ("node_name", node_name.is_some(), "NODE_NAME"),
        ] {
            if !known && s.get(key).is_none() {
                let what = format!(
                    "is missing, and {relying} needs it; allowed: a value, or the variable {variable}"
                );
                r.mistake(s.mark_of(relying), s.key(key), what);
            }
        }
    }
    let startup_taint = written.unwrap_or_else(|| Some(defaults::STARTUP_TAINT.into()));
    let daemonset = daemonset.flatten();
    Some(Kubernetes { api: api?, service_account, node_name: node_name?, startup_taint, daemonset })
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
        return Admin { listen: None, page: false };
    }
    let s = r.section(top, "admin", ADMIN);
    let listen = r.or(&s, "listen", Some(defaults::ADMIN_LISTEN), values::listen);
    if listen.is_some_and(|addr| addr.port() == capture_port) {
        let what =
            format!("port {capture_port} is the one connections are captured on; allowed: another port");
        r.mistake(s.mark_of("listen"), s.key("listen"), what);
    }
    // On the node's own loopback whoever asks is on the node, or may forward ports to it.
    let on_loopback = listen.is_some_and(|addr| addr.ip().is_loopback());
    Admin { listen, page: r.or(&s, "page", on_loopback, values::boolean) }
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
