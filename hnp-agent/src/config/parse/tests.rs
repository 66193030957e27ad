//! The configuration's reader as an operator meets it: what is read, and every message.

use std::num::NonZeroU64;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::end_to_end::ClientAuth;
use crate::config::parse_with_warnings;
use crate::config::plan::{
    DaemonSet, Enforcement, Guard, PerWorkload, PodTraits, PossibleEnforcement, Protocol, RuntimeSocket,
    Timeouts, Unreadable, UpstreamWay, Workloads,
};
use crate::config::selector::Labels;
use crate::config::upstream_proxy::{ProxyCredentials, ProxyTimeouts};

const FULL: &str = r#"
capture: {cgroup: /sys/fs/cgroup/kubepods, bpffs: /sys/fs/bpf/hnp, vips4: 169.254.78.0/24, vips6: fd00:78::/64, port: 15002, connections_per_pod: 100, guard: off}
identities:
  manager-client: {certificate: /etc/mtls/client.crt, key: /etc/mtls/client.key}
trusts:
  manager: {roots: /etc/hnp/ca.crt}
  corporate: {roots: /etc/hnp/proxy.crt}
upstream_proxies:
  corp: {url: "https://proxy.test:3128", credentials: /etc/hnp/proxy, trust: corporate, no_proxy: [.svc, 10.0.0.0/8], timeouts: {connect: 1s, tls: 2s, answer: 3s}}
routes:
  - name: manager
    destinations: ["manager.hnp.test:80", "198.18.0.9:80", "[fd00::9]:80"]
    upstream: https://manager.hnp.test:8443/base/
    server_name: other.hnp.test
    protocol: opaque
    mode: reverse-proxy
    enforcement: strict
    identity: manager-client
    trust: manager
    upstream_proxy: corp
    timeouts: {head: 1s, idle: 2s, connect: 3s, tls: 4s, response: 5s, ping: 6s}
    pool_idle: 0
limits: {connections: 10, head_bytes: 8KiB, buffer_bytes: 1MiB, per_workload: {connections: 3, new_connections_per_second: 2, handshakes_per_second: 7, bytes_per_second: 64KiB}}
workloads: {runtime: /run/cri.sock, deadline: 700ms}
resolver: {resolv_conf: /a, hosts: /b, grace: 1m, min_ttl: 1s, max_ttl: 2s}
kubernetes: {api: "https://[fd00::1]:6443/", service_account: /sa, node_name: n1, startup_taint: example.org/wait, daemonset: hnp/agent}
admin: {listen: "0.0.0.0:9090", page: true}
log: {format: text, level: debug, access: false}
run_dir: /run/other
drain: {deadline: 7s}
workers: 3
"#;

const SMALL: &str = "
identities:
  c: {certificate: /c.crt, key: /c.key}
routes:
  - name: m
    destinations: [m.test:80]
    upstream: https://m.test
    identity: c
";

/// A machine that belongs to no cluster.
fn alone(workers: usize) -> Surroundings {
    Surroundings { workers, ..Surroundings::default() }
}

/// A pod of a cluster.
fn in_a_cluster() -> Surroundings {
    Surroundings { node_name: Some("worker-1".into()), api: Some("https://10.96.0.1:443".into()), ..alone(1) }
}

fn read(text: &str) -> Plan {
    plan(text, Path::new("hnp.yaml"), &alone(5))
        .map(|(plan, _)| plan)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn mistakes(text: &str) -> String {
    plan(text, Path::new("hnp.yaml"), &alone(5)).expect_err("it has mistakes").to_string()
}

#[test]
fn every_key_is_read() {
    let plan = read(FULL);
    assert_eq!(plan.capture.cgroup.as_deref(), Some(Path::new("/sys/fs/cgroup/kubepods")));
    assert_eq!(plan.capture.vips4.to_string(), "169.254.78.0/24");
    assert_eq!(plan.capture.vips6.to_string(), "fd00:78::/64");
    assert_eq!((plan.capture.port, plan.capture.connections_per_pod), (15_002, 100));
    assert_eq!(plan.capture.guard, Guard::Off);
    let route = &plan.routes[0];
    assert_eq!(&*route.name, "manager");
    let shown: Vec<String> = route.destinations.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["manager.hnp.test:80", "198.18.0.9:80", "[fd00::9]:80"]);
    assert_eq!(route.upstream.authority, "manager.hnp.test:8443");
    assert_eq!(route.upstream.base_path, "/base");
    assert_eq!(route.upstream.server_name.to_str(), "other.hnp.test");
    assert_eq!(route.upstream.pool_idle, 0);
    let mode = route.reverse_proxy().expect("not a tunnel");
    assert_eq!((mode.protocol, route.enforcement), (Protocol::Opaque, Enforcement::Strict));
    let files = plan.identities[mode.identity].source.files().unwrap();
    let IdentityPlace::Pair { key, .. } = &files.place else { panic!() };
    assert_eq!(key, Path::new("/etc/mtls/client.key"));
    assert_eq!(plan.trusts[mode.trust].roots, Roots::File("/etc/hnp/ca.crt".into()));
    let seconds = Duration::from_secs;
    let through = route.through().expect("a proxy");
    assert!(Arc::ptr_eq(&through.proxy, &plan.upstream_proxies[0]));
    assert_eq!(&*plan.trusts[through.trust.unwrap()].name, "corporate");
    assert_eq!(through.proxy.to_string(), "https://proxy.test:3128");
    assert_eq!(through.proxy.credentials, ProxyCredentials::File("/etc/hnp/proxy".into()));
    assert_eq!(through.proxy.no_proxy.len(), 2);
    let timeouts = ProxyTimeouts { connect: seconds(1), tls: seconds(2), answer: seconds(3) };
    assert_eq!(through.proxy.timeouts, timeouts);
    let timeouts = Timeouts {
        head: seconds(1),
        idle: seconds(2),
        connect: seconds(3),
        tls: seconds(4),
        response: seconds(5),
        ping: seconds(6),
    };
    assert_eq!(route.timeouts, timeouts);
    let per_workload = PerWorkload {
        connections: 3,
        new_connections_per_second: NonZeroU64::new(2),
        handshakes_per_second: NonZeroU64::new(7).unwrap(),
        bytes_per_second: NonZeroU64::new(65_536),
    };
    assert_eq!(
        plan.limits,
        Limits { connections: 10, head_bytes: 8192, buffer_bytes: 1 << 20, per_workload }
    );
    assert_eq!(
        (plan.resolver.grace, plan.resolver.min_ttl, plan.resolver.max_ttl),
        (seconds(60), seconds(1), seconds(2))
    );
    let runtime = RuntimeSocket::Path("/run/cri.sock".into());
    assert_eq!(plan.workloads, Workloads { runtime, deadline: Duration::from_millis(700) });
    let kubernetes = Kubernetes {
        api: "https://[fd00::1]:6443".into(),
        service_account: "/sa".into(),
        node_name: "n1".into(),
        startup_taint: Some("example.org/wait".into()),
        daemonset: Some(DaemonSet { namespace: "hnp".into(), name: "agent".into() }),
    };
    assert_eq!(plan.kubernetes, Some(kubernetes));
    assert_eq!((plan.admin.listen, plan.admin.page), (Some("0.0.0.0:9090".parse().unwrap()), true));
    assert_eq!((plan.log.level.as_str(), plan.log.access), ("debug", false));
    assert_eq!((plan.drain_deadline, plan.workers), (seconds(7), 3));
    assert_eq!(plan.run_dir, Path::new("/run/other"));
}

#[test]
fn a_small_configuration_gets_the_defaults() {
    let plan = read(SMALL);
    assert_eq!(plan.capture.cgroup, None);
    assert_eq!(plan.capture.port, defaults::PORT);
    let route = &plan.routes[0];
    let mode = route.reverse_proxy().expect("not a tunnel");
    assert_eq!((mode.protocol, route.enforcement), (Protocol::Http, Enforcement::Loose));
    assert_eq!(route.upstream.authority, "m.test", "443 is not written");
    assert_eq!(route.upstream.server_name.to_str(), "m.test");
    assert_eq!(plan.trusts[mode.trust].roots, Roots::System);
    assert_eq!(plan.admin.listen, Some(defaults::ADMIN_LISTEN));
    assert_eq!(plan.workers, 5);
    assert_eq!(plan.run_dir, Path::new("/run/hnp"));
    assert_eq!(plan.kubernetes, None);
}

#[test]
fn the_startup_taint_is_on_where_the_cluster_and_the_node_are_known() {
    let read = |text: &str, around: &Surroundings| {
        let (plan, warnings) = plan(text, Path::new("x"), around).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(warnings, []);
        plan.kubernetes
    };
    let found = read(SMALL, &in_a_cluster()).unwrap();
    assert_eq!((&*found.node_name, found.api.as_str()), ("worker-1", "https://10.96.0.1:443"));
    assert_eq!(found.startup_taint.as_deref(), Some(defaults::STARTUP_TAINT));
    assert_eq!(found.service_account, Path::new(defaults::SERVICE_ACCOUNT));

    let off = read(&format!("{SMALL}kubernetes: {{startup_taint: off}}\n"), &in_a_cluster()).unwrap();
    assert_eq!(off.startup_taint, None);
    // A machine may have such a variable for reasons of its own.
    let node_only = Surroundings { api: None, ..in_a_cluster() };
    assert_eq!(read(SMALL, &node_only), None);
    assert_eq!(read(&format!("{SMALL}kubernetes: {{startup_taint: off}}\n"), &alone(1)), None);

    let asked = format!("{SMALL}kubernetes: {{startup_taint: hnp.dev/x}}\n");
    let errors = plan(&asked, Path::new("x"), &alone(1)).unwrap_err().to_string();
    assert!(
        errors.contains("kubernetes.api: is missing") && errors.contains("variable NODE_NAME"),
        "{errors}"
    );
    let odd = Surroundings { node_name: Some("Not A Node".into()), ..in_a_cluster() };
    let errors = plan(SMALL, Path::new("x"), &odd).unwrap_err().to_string();
    assert!(errors.contains("kubernetes.node_name: from the environment: \"Not A Node\""), "{errors}");
}

#[test]
fn the_daemonset_is_what_is_written_or_what_the_pod_says() {
    let of = |text: &str, around: &Surroundings| {
        plan(text, Path::new("x"), around)
            .map(|(plan, _)| plan.kubernetes.and_then(|cluster| cluster.daemonset))
    };
    let said = Surroundings { daemonset: Some("hnp/hnp-agent".into()), ..in_a_cluster() };
    let shown = |found: Option<DaemonSet>| found.map(|daemonset| daemonset.to_string());
    assert_eq!(shown(of(SMALL, &said).unwrap()).as_deref(), Some("hnp/hnp-agent"));
    assert_eq!(of(SMALL, &in_a_cluster()).unwrap(), None);
    let with = |value: &str| format!("{SMALL}kubernetes: {{daemonset: {value}}}\n");
    assert_eq!(shown(of(&with("a/b.c"), &said).unwrap()).as_deref(), Some("a/b.c"));
    assert_eq!(of(&with("off"), &said).unwrap(), None);
    for wrong in ["hnp", "a.b/c", "A/b", "a/", "a/b/c"] {
        let errors = of(&with(wrong), &said).unwrap_err().to_string();
        assert!(errors.contains("kubernetes.daemonset") && errors.contains("NAMESPACE/NAME"), "{errors}");
    }
    // Somebody relies on it, and nobody could be asked.
    let errors = of(&with("a/b"), &alone(1)).unwrap_err().to_string();
    assert!(errors.contains("kubernetes.api: is missing, and daemonset needs it"), "{errors}");
}

#[test]
fn overrides_name_namespaces_labels_or_both() {
    let with = |more: &str| format!("{SMALL}    overrides: [{more}]\n");
    let text = with(
        "{namespaces: [a, b], enforcement: observe}, {selector: '!trusted', enforcement: strict}, \
         {namespaces: [c], selector: 'x in (1, 2)', enforcement: observe}",
    );
    let (read, _) = plan(&text, Path::new("x"), &in_a_cluster()).unwrap_or_else(|errors| panic!("{errors}"));
    let route = &read.routes[0];
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let (none, trusted, one) =
        (labels(&[]), labels(&[("trusted", "")]), labels(&[("trusted", ""), ("x", "1")]));
    use Enforcement::{Loose, Observe, Strict};
    for (namespace, labels, weakest, strictest) in [
        // All is known.
        (Some("b"), Some(&none), Observe, Observe),
        (Some("c"), Some(&none), Strict, Strict),
        (Some("c"), Some(&one), Observe, Observe),
        (Some("c"), Some(&trusted), Loose, Loose),
        (Some("d"), Some(&one), Loose, Loose),
        // What is known is enough.
        (Some("a"), None, Observe, Observe),
        // It is not: the strictest holds.
        (Some("c"), None, Observe, Strict),
        (Some("d"), None, Loose, Strict),
        (None, Some(&trusted), Observe, Loose),
        (None, None, Observe, Strict),
    ] {
        let found = route.enforcement_for(PodTraits { namespace, labels });
        assert_eq!(found, PossibleEnforcement { weakest, strictest }, "{namespace:?} {labels:?}");
    }
    assert_eq!((route.weakest_enforcement(), route.strictest_enforcement()), (Observe, Strict));

    for (more, error) in [
        ("{enforcement: strict}", "overrides[0].namespaces: names no pods"),
        ("{selector: 'a b', enforcement: strict}", "\"a b\" is not a label selector"),
    ] {
        let errors = plan(&with(more), Path::new("x"), &in_a_cluster()).unwrap_err().to_string();
        assert!(errors.contains(error), "{errors}");
    }
    let errors = plan(&text, Path::new("x"), &alone(1)).unwrap_err().to_string();
    assert!(
        errors.contains("overrides[1].selector: asks for labels") && errors.contains("NODE_NAME"),
        "{errors}"
    );
}

#[test]
fn names_that_pass_are_read_and_those_that_cannot_are_mistakes() {
    let with = |more: &str| format!("{SMALL}    enforcement: strict\n    {more}\n");
    let plan = read(&with("passthrough: [docs.test, \"*.cdn.test\"]"));
    let shown: Vec<String> = plan.routes[0].passthrough.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["docs.test", "*.cdn.test"]);
    assert!(read(SMALL).routes[0].passthrough.is_empty());
    for (more, what) in [
        (
            "passthrough: [M.test]",
            "hnp.yaml:10:19: routes[0].passthrough[0]: m.test is a destination of this route (m.test:80); allowed: other names",
        ),
        (
            "passthrough: [a.test, a.test]",
            "hnp.yaml:10:27: routes[0].passthrough[1]: a.test is already listed; allowed: once",
        ),
        (
            "passthrough: [198.18.0.9]",
            "hnp.yaml:10:19: routes[0].passthrough[0]: \"198.18.0.9\" is not a name that can be let through; allowed: a DNS name such as docs.example, or *.SUFFIX with two labels at least",
        ),
        ("passthrough: a.test", "hnp.yaml:10:18: routes[0].passthrough: is a single value; allowed: a list"),
    ] {
        assert_eq!(mistakes(&with(more)), what);
    }
    let opaque = mistakes(&with("passthrough: [a.test]\n    protocol: opaque"));
    assert!(opaque.contains("routes[0].passthrough: needs names"), "{opaque}");
}

#[test]
fn a_proxy_is_on_the_way_unless_it_is_not_for_the_upstream() {
    let way = |upstream: &str, no_proxy: &str| {
        let text = SMALL.replace("https://m.test", &format!("{upstream}\n    upstream_proxy: p"));
        let proxies =
            format!("upstream_proxies: {{p: {{url: 'http://p.test:1', no_proxy: [{no_proxy}]}}}}\n");
        read(&format!("{text}{proxies}")).routes[0].way.clone()
    };
    for (upstream, no_proxy, exempt) in [
        ("https://m.test", "", false),
        ("https://m.test", "m.test", true),
        ("https://m.test", "test", true),
        ("https://m.test", ".test", true),
        ("https://m.test", "'*.test'", true),
        ("https://m.test", "'*.m.test'", false),
        ("https://m.test", "'*'", true),
        ("https://m.test", "other, 10.0.0.0/8", false),
        ("https://10.1.2.3", "10.0.0.0/8", true),
        ("https://[fd00::1]", "'fd00::/64'", true),
        ("https://11.1.2.3", "10.0.0.0/8", false),
    ] {
        match way(upstream, no_proxy) {
            UpstreamWay::Exempt(proxy) => assert!(exempt && *proxy == *"p", "{upstream} {no_proxy}"),
            UpstreamWay::Through(through) => {
                assert!(!exempt && through.trust.is_none(), "{upstream} {no_proxy}")
            }
            UpstreamWay::Direct => panic!("a proxy is named"),
        }
    }
    assert_eq!(read(SMALL).routes[0].way, UpstreamWay::Direct);
}

#[test]
fn mistakes_about_proxies_never_quote_a_password() {
    let shown = mistakes(&format!(
        "{SMALL}    upstream_proxy: crop
upstream_proxies:
  corp: {{url: 'https://u:geheim@proxy.test', trust: nobody}}
  both: {{url: 'http://u:geheim@proxy.test:1', credentials: /c, trust: system}}
  bad: {{url: 'http://u:ge/heim@proxy.test:1', no_proxy: ['m.test:443', 10.0.0.1/8]}}
  worse: {{url: ['http://u:geheim@proxy.test:1']}}
  none: {{credentials: u:geheim}}
"
    ));
    for line in [
        "routes[0].upstream_proxy: \"crop\" is not under `upstream_proxies`; ",
        "upstream_proxies.corp.url: \"https://***@proxy.test\" has no port; allowed: http://[USER",
        "upstream_proxies.corp.trust: \"nobody\" is not under `trusts`; allowed: system",
        "upstream_proxies.both.credentials: stands beside a user in the url; ",
        "upstream_proxies.both.trust: verifies a proxy that is spoken to over TLS; ",
        "upstream_proxies.bad.url: \"http://***@proxy.test:1\" has bytes before its host that must be",
        "upstream_proxies.bad.no_proxy[0]: \"m.test:443\" is not an upstream to leave the proxy out for; ",
        "upstream_proxies.bad.no_proxy[1]: \"10.0.0.1/8\" has bits set after its prefix; allowed: 10.0.0.0/8",
        "upstream_proxies.worse.url: is a list; ",
        "upstream_proxies.none.url: is missing; ",
        "upstream_proxies.none.credentials: is not an absolute path",
    ] {
        assert!(shown.contains(line), "{line}\nis not in\n{shown}");
    }
    assert!(!shown.contains("geheim") && !shown.contains("heim"), "{shown}");
}

#[test]
fn all_mistakes_of_a_bad_configuration_are_reported_at_once() {
    let text = "
capture: {prot: 15001, vips4: 169.254.77.1/24}
identities:
  client: {certificate: client.crt, key: /c.key}
  spare: {certificate: /s.crt}
routes:
  - name: manager
    destinations: [manager, '[::ffff:10.0.0.1]:80', '169.254.77.5:80', 'a.test:0', 'b.test:80', 'B.test.:80']
    upstream: http://manager:8080
    enforcment: strict
    identity: cleint
    timeouts: {head: 10, idle: [1s]}
  - name: manager
    destinations: b.test:80
    upstream: https://169.254.77.9/
    protocol: grpc
    identity: client
    trust: corporate
  - {}
limits: {head_bytes: 64k}
limits: {connections: 0}
workers: many
";
    assert_eq!(
        mistakes(text),
        "\
hnp.yaml:2:11: capture.prot: is not a key; did you mean `port`?
hnp.yaml:2:31: capture.vips4: \"169.254.77.1/24\" has bits set after its prefix; allowed: 169.254.77.0/24
hnp.yaml:4:25: identities.client.certificate: \"client.crt\" is not an absolute path; allowed: a path that begins with /
hnp.yaml:5:10: identities.spare.key: is missing; allowed: the path of a PEM file, or `directory` instead of both
hnp.yaml:8:20: routes[0].destinations[0]: \"manager\" has no port; allowed: HOST:PORT, IPv4[/PREFIX]:PORT or [IPv6[/PREFIX]]:PORT, such as manager.example:80
hnp.yaml:8:29: routes[0].destinations[1]: \"[::ffff:10.0.0.1]\" is an IPv4 address in IPv6's clothes; allowed: 10.0.0.1
hnp.yaml:8:53: routes[0].destinations[2]: \"169.254.77.5:80\" lies in the VIP range 169.254.77.0/24; allowed: what pods dial
hnp.yaml:8:72: routes[0].destinations[3]: \"0\" is not a port; allowed: 1 to 65535
hnp.yaml:8:97: routes[0].destinations[5]: b.test:80 is already routes[0].destinations[4] in line 8; allowed: once
hnp.yaml:9:15: routes[0].upstream: \"http://manager:8080\" would leave the node in cleartext; allowed: https://HOST[:PORT][/BASE], such as https://manager.example:8443
hnp.yaml:10:5: routes[0].enforcment: is not a key; did you mean `enforcement`?
hnp.yaml:11:15: routes[0].identity: \"cleint\" is not under `identities`; did you mean \"client\"?
hnp.yaml:12:22: routes[0].timeouts.head: \"10\" is not a duration; allowed: a number with a unit, such as 500ms, 10s, 2m or 1h; at most 24h
hnp.yaml:12:32: routes[0].timeouts.idle: is a list; allowed: a single value
hnp.yaml:13:11: routes[1].name: \"manager\" is the name of the route in line 7 too; allowed: a name of its own
hnp.yaml:14:19: routes[1].destinations: is a single value; allowed: a list
hnp.yaml:15:15: routes[1].upstream: \"169.254.77.9\" lies in the VIP range 169.254.77.0/24; allowed: the manager's address
hnp.yaml:16:15: routes[1].protocol: \"grpc\" is unknown; allowed: http or opaque
hnp.yaml:18:12: routes[1].trust: \"corporate\" is not under `trusts`; allowed: system
hnp.yaml:19:5: routes[2].name: is missing; allowed: a name, unique among the routes
hnp.yaml:19:5: routes[2].destinations: has no destination; allowed: a list of HOST:PORT, IPv4[/PREFIX]:PORT or [IPv6[/PREFIX]]:PORT
hnp.yaml:19:5: routes[2].upstream: is missing; allowed: https://HOST[:PORT][/BASE]
hnp.yaml:19:5: routes[2].identity: is missing; allowed: a name under `identities`
hnp.yaml:20:22: limits.head_bytes: \"64k\" is not a size; allowed: bytes from 1KiB to 1MiB, such as 65536, 64KiB or 1MiB
hnp.yaml:21:1: limits: is written twice; allowed: once
hnp.yaml:22:10: workers: \"many\" is not such a number; allowed: a whole number from 1 to 256"
    );
}

#[test]
fn an_empty_file_says_what_a_configuration_needs() {
    assert_eq!(mistakes(""), "hnp.yaml:1:1: routes: has no route; allowed: a list with at least one");
    assert_eq!(
        mistakes("- a\n"),
        "hnp.yaml:1:1: is a list; allowed: a mapping\nhnp.yaml:1:1: routes: has no route; allowed: a list with at least one"
    );
    assert!(mistakes("routes: [}").starts_with("hnp.yaml:1:"), "{}", mistakes("routes: [}"));
}

#[test]
fn names_that_share_an_address_may_belong_to_different_routes() {
    let two = format!(
        "{SMALL}  - name: n\n    destinations: [n.test:80]\n    upstream: https://n.test\n    identity: c\n"
    );
    let plan = read(&two);
    assert_eq!(plan.routes.len(), 2);
    assert_eq!(plan.trusts.len(), 1, "the system's roots are one trust");
    let same = two.replace("n.test:80", "m.test:80");
    assert!(mistakes(&same).contains("m.test:80 is already routes[0].destinations[0]"));
}

#[test]
fn a_route_that_ends_pods_tls() {
    let route = |more: &str| {
        format!(
            "identities: {{c: {{certificate: /c, key: /k}}, s: {{certificate: /s, key: /t}}}}\ntrusts: {{p: {{roots: /p}}}}\n\
             routes:\n  - {{name: e, destinations: ['m.test:443'], upstream: 'https://m.test', identity: c, \
             mode: end-to-end, end_to_end: {{{more}}}}}\n"
        )
    };
    let plan = read(&route(
        "serving: [s, c], client_trust: p, client_names: [a.test, '*.b.test', 'spiffe://t/x', 'spiffe://t/ns/*']",
    ));
    let mode = plan.routes[0].end_to_end().expect("it ends TLS");
    assert_eq!(mode.tls.serving.iter().map(|at| &*plan.identities[*at].name).collect::<Vec<_>>(), ["s", "c"]);
    let ClientAuth::Required { trust, names } = &mode.tls.client_auth else { panic!("{mode:?}") };
    assert_eq!(&*plan.trusts[*trust].name, "p");
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a.test", "*.b.test", "spiffe://t/x", "spiffe://t/ns/*"]);
    let plan = read(&route("serving: [s], client_auth: none"));
    assert_eq!(plan.routes[0].end_to_end().expect("it ends TLS").tls.client_auth, ClientAuth::None);
    for (more, mistake) in [
        ("client_trust: p", "routes[0].end_to_end.serving: is missing"),
        ("serving: [x], client_trust: p", "routes[0].end_to_end.serving[0]: \"x\" is not under `identities`"),
        ("serving: [s]", "routes[0].end_to_end.client_trust: is missing"),
        ("serving: [s], client_trust: system", "routes[0].end_to_end.client_trust"),
        (
            "serving: [s], client_auth: none, client_trust: p",
            "means nothing in this route's mode; allowed: with client_auth: required",
        ),
        (
            "serving: [s], client_trust: p, client_names: ['spiffe://t/*x']",
            "client_names[0]: \"spiffe://t/*x\" is not",
        ),
        ("serving: [s], client_trust: p, client_names: ['spiffe://*']", "client_names[0]"),
        ("serving: [s], client_trust: p, client_names: ['*']", "client_names[0]"),
        ("serving: [s], client_auth: optional", "end_to_end.client_auth"),
    ] {
        let found = mistakes(&route(more));
        assert!(found.contains(mistake), "{more}: {found}");
    }
    let plain = route("serving: [s], client_trust: p").replace("end-to-end,", "reverse-proxy,");
    assert!(mistakes(&plain).contains("routes[0].end_to_end: means nothing in this route's mode"));
}

#[test]
fn a_tunnel_carries_the_names_that_are_meant() {
    let route = |more: &str| {
        format!(
            "routes:\n  - name: t\n    destinations: [m.test:443, 198.18.0.9:443]\n    \
             upstream: https://n.test:8443\n    mode: tunnel\n{more}"
        )
    };
    let names = |more: &str| {
        let plan = read(&route(more));
        let tunnel = plan.routes[0].tunnel().expect("a tunnel").clone();
        let names: Vec<_> = tunnel.names.iter().map(ToString::to_string).collect();
        (names.join(" "), tunnel.nameless, tunnel.encrypted_hello)
    };
    let (refuse, tunnel) = (Unreadable::Refuse, Unreadable::Tunnel);
    assert_eq!(names(""), ("m.test n.test".into(), refuse, refuse));
    let all = "    tunnel: {names: [a.test, '*.b.test'], nameless: tunnel, encrypted_hello: tunnel}\n";
    assert_eq!(names(all), ("a.test *.b.test".into(), tunnel, tunnel));
    // What belongs to the other mode, and what there is none of.
    let wrong = route("    identity: c\n    protocol: http\n    pool_idle: 1\n").replace("8443", "8443/base");
    assert_eq!(
        mistakes(&wrong),
        "\
hnp.yaml:4:15: routes[0].upstream: has a path, and a tunnel reads no requests; allowed: https://HOST[:PORT]
hnp.yaml:6:15: routes[0].identity: means nothing in this route's mode; allowed: with mode: reverse-proxy or end-to-end
hnp.yaml:7:15: routes[0].protocol: means nothing in this route's mode; allowed: with mode: reverse-proxy or end-to-end
hnp.yaml:8:16: routes[0].pool_idle: means nothing in this route's mode; allowed: with mode: reverse-proxy or end-to-end"
    );
    let nameless = route("").replace("m.test:443, ", "").replace("n.test", "198.18.0.10");
    assert!(mistakes(&nameless).contains("routes[0].tunnel.names: is missing"), "{}", mistakes(&nameless));
    let tunnelled = format!("{SMALL}    tunnel: {{nameless: tunnel}}\n");
    assert!(mistakes(&tunnelled).contains("routes[0].tunnel: means nothing"), "{}", mistakes(&tunnelled));
}

#[test]
fn what_no_route_uses_is_a_warning() {
    let text = SMALL
        .replace("routes:", "  d: {certificate: /d.crt, key: /d.key}\ntrusts: {t: {roots: system}}\nroutes:");
    let (_, warnings) = parse_with_warnings(&text, Path::new("hnp.yaml")).unwrap();
    let shown: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["4:6: identities.d: no route uses it", "5:13: trusts.t: no route uses it"]);
}

#[test]
fn what_a_policy_cannot_go_by_is_a_warning() {
    let warned = |around: &Surroundings, more: &str| {
        let text = SMALL.replace("    identity: c", &format!("    identity: c\n{more}"));
        let (_, warnings) =
            plan(&text, Path::new("hnp.yaml"), around).unwrap_or_else(|error| panic!("{error}"));
        warnings.iter().map(|warning| (warning.key.clone(), warning.what.clone())).collect::<Vec<_>>()
    };
    let policy = "    policy: {default: deny, allow: [{selector: app=a}, {service_accounts: [a/b]}]}";
    let [(first, labels), (second, accounts)] = &warned(&alone(1), policy)[..] else { panic!() };
    assert_eq!(first, "routes[0].policy.allow[0].selector");
    assert!(labels.contains("from the pod's creation"), "{labels}");
    assert_eq!(second, "routes[0].policy.allow[1].service_accounts");
    assert!(accounts.contains("only the API server knows"), "{accounts}");
    let off = warned(&alone(1), &format!("{policy}\nworkloads: {{runtime: off}}"));
    assert!(off[0].1.contains("nobody is allowed by this rule"), "{off:?}");
    // What goes past the route goes past its policy.
    let passing = warned(&in_a_cluster(), &format!("{policy}\n    passthrough: [other.test]"));
    let [(key, what)] = &passing[..] else { panic!("{passing:?}") };
    assert!(key == "routes[0].passthrough" && what.contains("the policy does not hold for it"), "{what}");
    assert_eq!(warned(&in_a_cluster(), policy), []);
}

#[test]
fn relations_between_keys_are_checked() {
    let with = |more: &str| format!("{SMALL}{more}\n");
    for (more, key) in [
        ("admin: {listen: '127.0.0.1:15001'}", "admin.listen"),
        ("resolver: {min_ttl: 10m}", "resolver.min_ttl"),
        ("trusts: {system: {roots: /x}}", "trusts.system"),
        ("capture: {vips4: fd00::/64}", "capture.vips4"),
        ("limits: {connections: 9, per_workload: {connections: 9}}", "limits.per_workload.connections"),
        ("limits: {per_workload: {connections: 20000}}", "limits.per_workload.connections"),
        ("limits: {per_workload: {bytes_per_second: 1KiB}}", "limits.per_workload.bytes_per_second"),
        (
            "limits: {per_workload: {new_connections_per_second: 0}}",
            "limits.per_workload.new_connections_per_second",
        ),
        ("limits: {per_workload: {handshakes_per_second: 0}}", "limits.per_workload.handshakes_per_second"),
        ("workloads: {deadline: 9ms}", "workloads.deadline"),
        ("workloads: {deadline: 61s}", "workloads.deadline"),
        ("log: {level: inof}", "log.level"),
        ("log: {access: yes}", "log.access"),
        ("admin: {listen: '127.0.0.1:0'}", "admin.listen"),
    ] {
        let shown = mistakes(&with(more));
        assert!(shown.contains(&format!(": {key}: ")) && shown.lines().count() == 1, "{more}: {shown}");
    }
    assert_eq!(read(&with("admin: off")).admin.listen, None);
    assert!(read(&with("admin: {listen: '[::1]:1'}")).admin.page, "on loopback");
    assert!(!read(&with("admin: {listen: '10.0.0.1:1'}")).admin.page, "where others hear it");
    assert_eq!(read(&with("admin: {listen: off}")).admin.listen, None);
    assert_eq!(read(&with("limits:\nresolver: null")).limits.connections, defaults::CONNECTIONS);
    for (limits, most) in
        [("", 4096), ("connections: 9", 4), ("connections: 1", 1), ("per_workload: {connections: 9}", 9)]
    {
        assert_eq!(
            read(&with(&format!("limits: {{{limits}}}"))).limits.per_workload.connections,
            most,
            "{limits}"
        );
    }
}

#[test]
fn the_documentation_knows_every_key() {
    let doc = include_str!("../../../../docs/configuration.md");
    for key in all_keys() {
        let row = format!("| `{key}` |");
        assert!(doc.contains(&row), "docs/configuration.md lacks a row {row}");
    }
}

#[test]
fn the_examples_in_the_documentation_are_configurations() {
    let doc = include_str!("../../../../docs/configuration.md");
    let examples: Vec<&str> =
        doc.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(examples.len() >= 2);
    for example in examples {
        read(example);
    }
}

/// Lines and fragments of configurations, shuffled: nearer to what people write than random text.
fn shuffled() -> impl Strategy<Value = String> {
    let fragments: Vec<String> = FULL
        .lines()
        .map(|line| format!("{line}\n"))
        .chain(
            [
                "- ", "{", "}", "[", "]", ": ", "  ", "\t", "\"", "'", "&a ", "*a", "!x ", "|\n", ">\n",
                "---\n", "? ", "#", "\0", "é", "0x", "null\n",
            ]
            .map(String::from),
        )
        .collect();
    proptest::collection::vec(proptest::sample::select(fragments), 0..40).prop_map(|parts| parts.concat())
}

/// A good configuration with a few bytes changed.
fn damaged() -> impl Strategy<Value = String> {
    proptest::collection::vec((0..FULL.len(), any::<u8>()), 0..8).prop_map(|changes| {
        let mut bytes = FULL.as_bytes().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_the_reader_panic(text in prop_oneof![any::<String>(), shuffled(), damaged()]) {
        match plan(&text, Path::new("x"), &alone(1)) {
            Ok((plan, _)) => {
                prop_assert!(!plan.routes.is_empty());
                for route in &plan.routes {
                    if let Some(mode) = route.reverse_proxy() {
                        prop_assert!(mode.identity < plan.identities.len() && mode.trust < plan.trusts.len());
                    }
                    prop_assert!(!route.destinations.is_empty());
                }
            }
            Err(errors) => {
                prop_assert!(!errors.mistakes.is_empty());
                prop_assert!(errors.mistakes.iter().all(|mistake| mistake.line >= 1 && mistake.column >= 1));
            }
        }
    }
}

#[test]
fn the_configuration_to_start_from_is_one() {
    let text = include_str!("../../../../deploy/hnp.yaml");
    let (plan, warnings) = plan(text, Path::new("deploy/hnp.yaml"), &alone(2)).expect("no mistakes");
    assert_eq!(warnings, []);
    assert_eq!(plan.routes.len(), 1);
}

#[test]
fn what_is_deployed_agrees_with_the_defaults() {
    let deployed = include_str!("../../../../deploy/manifests/hnp.yaml");
    for (what, times) in [
        ("name: NODE_NAME".into(), 1),
        ("name: DAEMONSET".into(), 1),
        (format!("status, --run-dir, \"{}\", --probe", defaults::RUN_DIR), 2),
        (format!("name: run, mountPath: {}}}", defaults::RUN_DIR), 1),
        (format!("startup_taint: {}", defaults::STARTUP_TAINT), 1),
    ] {
        assert_eq!(deployed.matches(&what).count(), times, "{what}");
    }
    let grace = deployed.split("terminationGracePeriodSeconds: ").nth(1).unwrap().lines().next().unwrap();
    assert!(grace.parse::<u64>().unwrap() > defaults::DRAIN_DEADLINE.as_secs());
    let bpffs = Path::new(defaults::BPFFS).parent().unwrap().display().to_string();
    assert!(deployed.contains(&format!("name: bpffs, mountPath: {bpffs},")));
    let doc = include_str!("../../../../docs/startup.md");
    assert!(doc.contains(&format!("{{key: {}, effect: NoSchedule}}", defaults::STARTUP_TAINT)));
}

#[test]
fn an_identity_is_two_files_or_a_directory() {
    let with = |identity: &str| {
        let text = format!(
            "identities: {{i: {{{identity}}}}}\nroutes:\n- {{name: a, destinations: ['a.test:80'], upstream: 'https://a.test', \
             identity: i}}\n"
        );
        crate::config::parse(&text, Path::new("hnp.yaml")).map(|plan| {
            let files = plan.identities[0].source.files().unwrap();
            files.clone()
        })
    };
    let files = with("directory: /d, passphrase_file: /p").unwrap();
    assert_eq!(files.place, IdentityPlace::Directory("/d".into()));
    assert_eq!(files.passphrase_file.as_deref(), Some(Path::new("/p")));
    for (written, expected) in [
        ("directory: /d, key: /k", "identities.i.key: stands beside `directory`, which says where it is"),
        ("directory: d", "identities.i.directory: \"d\" is not an absolute path"),
        ("key: /k", "identities.i.certificate: is missing; allowed: the path of a PEM file, or `directory`"),
    ] {
        let shown = with(written).unwrap_err().to_string();
        assert!(shown.contains(expected) && !shown.contains('\n'), "{written}: {shown}");
    }
}

#[test]
fn an_identity_of_the_workload_api_is_a_socket_and_which_of_several() {
    let with = |identity: &str, socket: Option<&str>| {
        let text = format!(
            "identities: {{i: {{{identity}}}}}\nroutes:\n- {{name: a, destinations: ['a.test:80'], upstream: 'https://a.test', \
             identity: i}}\n"
        );
        let around = Surroundings { spiffe_socket: socket.map(Into::into), ..alone(1) };
        let read = plan(&text, Path::new("hnp.yaml"), &around).map_err(|errors| errors.to_string());
        read.map(|(plan, _)| {
            let IdentitySource::Spiffe(spiffe) = &plan.identities[0].source else { panic!() };
            (spiffe.api.socket.display().to_string(), spiffe.choice.to_string())
        })
    };
    let read = |identity: &str| with(identity, None).unwrap();
    assert_eq!(read("spiffe: {socket: /s}"), ("/s".into(), "the first SVID".into()));
    assert_eq!(
        read("spiffe: {socket: 'unix:///run/s', hint: internal}"),
        ("/run/s".into(), "the SVID with the hint internal".into())
    );
    assert_eq!(read("spiffe: {socket: /s, id: 'spiffe://A.test/b'}").1, "the SVID spiffe://a.test/b");
    let around = with("spiffe: {hint: x}", Some("unix:///run/around")).unwrap();
    assert_eq!(around.0, "/run/around");
    assert_eq!(with("spiffe: {socket: /s}", Some("unix:///run/around")).unwrap().0, "/s");
    let long = format!("spiffe: {{socket: /{}}}", "s".repeat(107));
    for (written, socket, expected) in [
        (
            "spiffe: {}",
            None,
            "identities.i.spiffe.socket: is missing; allowed: the path of the Workload API's socket",
        ),
        (
            "spiffe: {}",
            Some("tcp://127.0.0.1:1"),
            "identities.i.spiffe.socket: from the environment: \"tcp://",
        ),
        (
            "spiffe: {socket: 'tcp://127.0.0.1:1'}",
            None,
            "is no UNIX socket, and others are not asked for keys",
        ),
        ("spiffe: {socket: s}", None, "\"s\" is not a UNIX socket"),
        (&long, None, "is too long for a socket"),
        (
            "spiffe: {socket: /s, hint: a, id: 'spiffe://a/b'}",
            None,
            "identities.i.spiffe.id: stands beside `hint`",
        ),
        ("spiffe: {socket: /s, id: 'spiffe://a'}", None, "is no SPIFFE ID: it has no path"),
        ("spiffe: {socket: /s}, key: /k", None, "identities.i.key: stands beside `spiffe`"),
    ] {
        let shown = with(written, socket).unwrap_err();
        assert!(shown.contains(expected) && !shown.contains('\n'), "{written}: {shown}");
    }
}

#[test]
fn a_trust_says_whose_roots_who_is_taken_and_how_old_tls_may_be() {
    let with = |trust: &str| {
        let text = format!(
            "identities: {{i: {{directory: /d}}}}\ntrusts: {{t: {{{trust}}}}}\nroutes:\n- {{name: a, destinations: \
             ['a.test:80'], upstream: 'https://a.test', identity: i, trust: t}}\n"
        );
        plan(&text, Path::new("hnp.yaml"), &alone(1))
            .map(|(plan, _)| (*plan.trusts[0]).clone())
            .map_err(|errors| errors.to_string())
    };
    let plain = with("roots: /r").unwrap();
    assert_eq!((plain.peers, plain.tls_min), (Peers::default(), TlsVersion::V1_2));
    let spiffe =
        with("spiffe: {socket: 'unix:///s'}, ids: ['spiffe://a.test/m', 'spiffe://b.test/*'], tls_min: 1.3")
            .unwrap();
    assert_eq!(spiffe.roots.to_string(), "the SPIFFE bundles of /s");
    assert_eq!(spiffe.tls_min, TlsVersion::V1_3);
    let ids: Vec<String> = spiffe.peers.ids.iter().map(ToString::to_string).collect();
    assert_eq!(ids, ["spiffe://a.test/m", "spiffe://b.test/*"]);
    let names = with("roots: /r, names: [m.test, '*.m.test']").unwrap().peers.names;
    assert_eq!(names, [NamePattern::Exact("m.test".into()), NamePattern::Below("m.test".into())]);
    for (written, expected) in [
        (
            "spiffe: {socket: /s}",
            "trusts.t.ids: is missing: a bundle vouches for every workload of its trust domain",
        ),
        ("spiffe: {socket: /s}, ids: []", "trusts.t.ids: is empty"),
        (
            "spiffe: {socket: /s}, ids: ['spiffe://a'], names: [m.test]",
            "trusts.t.ids[0]: \"spiffe://a\" is no SPIFFE ID",
        ),
        ("spiffe: {socket: /s}, ids: ['*']", "is no SPIFFE ID: it does not begin with spiffe://"),
        ("spiffe: {socket: /s}, ids: ['spiffe://a/*'], roots: /r", "trusts.t.roots: stands beside `spiffe`"),
        ("spiffe: {socket: /s}, ids: ['spiffe://a/*'], crls: /c", "trusts.t.crls: stands beside `spiffe`"),
        ("spiffe: {sockets: /s}, ids: ['spiffe://a/*']", "did you mean `socket`?"),
        (
            "ids: ['spiffe://a/*']",
            "trusts.t.roots: is missing; allowed: the path of a PEM file, or system; or `spiffe`",
        ),
        ("roots: /r, names: ['spiffe://a/b']", "SPIFFE IDs go under `ids`"),
        ("roots: /r, names: []", "trusts.t.names: is empty"),
        (
            "roots: /r, tls_min: 1.1",
            "trusts.t.tls_min: \"1.1\" is not a version of TLS that is spoken; allowed: 1.2 or 1.3",
        ),
    ] {
        let shown = with(written).unwrap_err();
        assert!(shown.contains(expected), "{written}: {shown}");
    }
}

#[test]
fn revocation_is_closed_unless_the_trust_says_otherwise() {
    let with = |trust: &str| {
        let text = format!(
            "identities: {{i: {{directory: /d}}}}\ntrusts: {{t: {{roots: /r{trust}}}}}\nroutes:\n- {{name: a, destinations: \
             ['a.test:80'], upstream: 'https://a.test', identity: i, trust: t}}\n"
        );
        crate::config::parse(&text, Path::new("hnp.yaml")).map(|plan| plan.trusts[0].revocation.clone())
    };
    assert_eq!(with("").unwrap(), Revocation::default());
    let closed = with(", crls: /c").unwrap();
    assert_eq!((closed.unknown, closed.expired), (OnDoubt::Refuse, OnDoubt::Refuse));
    let half = with(", crls: /c, crl_expired: allow").unwrap();
    assert_eq!((half.unknown, half.expired), (OnDoubt::Refuse, OnDoubt::Allow));
    for (written, expected) in [
        (", crl_unknown: allow", "trusts.t.crl_unknown: means nothing without `crls`"),
        (
            ", crls: /c, crl_expired: off",
            "trusts.t.crl_expired: \"off\" is no such decision; allowed: refuse or allow",
        ),
    ] {
        let shown = with(written).unwrap_err().to_string();
        assert!(shown.contains(expected), "{written}: {shown}");
    }
}

#[test]
fn an_issuer_needs_a_cluster_capture_and_a_trust_domain() {
    let text = |before: &str, identity: &str, route: &str| {
        format!(
            "{before}identities: {{w: {{{identity}}}, c: {{directory: /c}}}}\ntrusts: {{t: {{roots: /r}}}}\nroutes:\n\
             - {{name: a, destinations: ['a.test:80'], upstream: 'https://a.test', identity: w{route}}}\n\
             - {{name: b, destinations: ['b.test:80'], upstream: 'https://b.test', identity: c}}\n"
        )
    };
    let with = |before: &str, identity: &str, route: &str, around: &Surroundings| {
        plan(&text(before, identity, route), Path::new("hnp.yaml"), around).map(|(plan, _)| plan)
    };
    let good = "issuer: {certificate: /i.crt, key: /i.key, trust_domain: prod.example}";
    let read = with("", good, "", &in_a_cluster()).unwrap();
    let source = &read.identities[0].source;
    let issuer = source.issuer().unwrap();
    assert_eq!((&*issuer.trust_domain, issuer.lifetime), ("prod.example", Duration::from_secs(3600)));
    assert_eq!((issuer.pod_uid, issuer.max_identities), (false, 4096));
    let place = IdentityPlace::Pair { certificate: "/i.crt".into(), key: "/i.key".into() };
    assert_eq!(source.files(), Some(&IdentityFiles { place, passphrase_file: None }));
    let all = "issuer: {directory: /i, passphrase_file: /p, trust_domain: t, lifetime: 10m, pod_uid: true, max_identities: 5}";
    let read = with("", all, "", &in_a_cluster()).unwrap();
    let issuer = read.identities[0].source.issuer().unwrap();
    assert_eq!((issuer.pod_uid, issuer.max_identities, issuer.lifetime.as_secs()), (true, 5, 600));
    let tls = "gateway: {tls: {serving: [w], client_auth: none}}\n";
    let off = "capture: off\ngateway: {sources: [10.0.0.0/8]}\n";
    for (before, identity, route, around, expected) in [
        ("", good, "", alone(1), "routes[0].identity: asks for pods' service accounts"),
        (off, good, "", in_a_cluster(), "routes[0].identity: issues only for pods that were captured"),
        ("", good, ", pool_warm: 1", in_a_cluster(), "routes[0].pool_warm: would make connections before"),
        (
            tls,
            good,
            "",
            in_a_cluster(),
            "gateway.tls.serving[0]: \"w\" issues certificates for the names of a route",
        ),
        ("", &format!("key: /k, {good}"), "", in_a_cluster(), "identities.w.key: stands beside `issuer`"),
        ("", "issuer: {directory: /i}", "", in_a_cluster(), "identities.w.issuer.trust_domain: is missing"),
        ("", "issuer: {trust_domain: t}", "", in_a_cluster(), "identities.w.issuer.certificate: is missing"),
        (
            "",
            "issuer: {directory: /i, trust_domain: A/b, lifetime: 5s}",
            "",
            in_a_cluster(),
            "identities.w.issuer.lifetime: is too short to be renewed in time; allowed: at least 6s",
        ),
        (
            "",
            "issuer: {directory: /i, trust_domain: 'spiffe://a'}",
            "",
            in_a_cluster(),
            "identities.w.issuer.trust_domain: \"spiffe://a\" is not a trust domain",
        ),
    ] {
        let shown = with(before, identity, route, &around).unwrap_err().to_string();
        assert!(shown.contains(expected), "{identity}{route}: {shown}");
    }
}
