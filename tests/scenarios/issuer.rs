//! Each workload has an identity of its own, although no pod holds a key: the manager tells pods apart by their
//! SPIFFE IDs, and none ever has another's, or one that nobody vouches for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::api_server::{ApiServer, Cluster};
use hnp_tests::client::{self, Job, RawCase, Report, Target};

use hnp_tests::manager::{Http2, Manager, Mode, Request, Setup};
use hnp_tests::pki::{Files, certificate_of};
use hnp_tests::poll::eventually;
use hnp_tests::process::{Place, Running};
use hnp_tests::scene::{DESTINATIONS, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{self, MANAGER_NAME, MANAGER4, Pod};
use serde_json::json;

const WORKLOADS: &str = "workloads";
const DOMAIN: &str = "prod.hnp.test";
/// Generous; figures are printed.
const SOON: Duration = Duration::from_secs(30);
const GET: &str = "GET /x HTTP/1.1\r\nHost: manager.hnp.test\r\nConnection: close\r\n\r\n";

/// How many workloads there are.
const MANY: usize = 500;
/// How many of them send at a time.
const AT_A_TIME: usize = 8;
/// Requests of each, every one on a connection of its own to the agent.
const EACH: u64 = 4;

#[test]
fn five_hundred_workloads_are_told_apart_under_churn() {
    let _alone = topology::alone();
    // Nothing is pooled: each request is a handshake, most of them with a resumed session.
    let world = Issued::start(|route| route.set("upstream_protocol", "http/1.1").set("pool_idle", "0"));
    five_hundred(&world);
    let handshakes = |resumed| world.agent.metrics().sum("hnp_upstream_handshakes", &[("resumed", resumed)]);
    eprintln!("{} full handshakes, {} resumed", handshakes("false"), handshakes("true"));
    assert!(handshakes("true") > 0.0, "sessions are resumed, and none of another's");
}

#[test]
fn five_hundred_workloads_over_http2_share_no_connection_and_hold_few() {
    let _alone = topology::alone();
    let world = Issued::with_manager(
        |scene| {
            let setup = Setup::new("manager", 80).tls(Mode::Strict, &scene.server, &scene.clients);
            Manager::start(scene, setup.http2(Http2::default()))
        },
        |route| route.set("pool_idle", "8"),
    );
    five_hundred(&world);
    let by_connection = world.manager.requests().into_iter().fold(BTreeMap::new(), |mut all, request| {
        let (connection, id) = (request.connection, spiffe_id(&request));
        all.entry(connection).or_insert_with(BTreeSet::new).insert(id);
        all
    });
    assert!(by_connection.values().all(|ids| ids.len() == 1), "one connection, one identity");
    // Two workers, eight each.
    let idle = || world.agent.metrics().sum("hnp_pool_idle", &[]);
    eventually(SOON, "few connections wait", || idle() <= 16.0);
}

/// All workloads send, have the addresses of others, end and are replaced; the manager knows each for what it is.
fn five_hundred(world: &Issued) {
    let first = world.scene.pod();
    let mut pods = VecDeque::new();
    let mut running: VecDeque<(Pod, Running)> = VecDeque::new();
    let mut ids = BTreeSet::new();
    for number in 0..MANY {
        if running.len() == AT_A_TIME {
            pods.push_back(finish(running.pop_front()));
        }
        // Every third one ends while others send, and somebody else gets its address.
        if number % 3 == 2
            && let Some(pod) = pods.pop_front()
        {
            world.end(pod);
        }
        let pod = world.scene.successor(&first);
        let (namespace, account) = (format!("team-{}", number % 7), format!("runner-{number}"));
        let id = format!("spiffe://{DOMAIN}/ns/{namespace}/sa/{account}");
        let load = client::load(&pod, &requests_of(&id, EACH)).spawn();
        // The API server tells of some before they dial, and of others after.
        world.api.apply_pod_as(&namespace, &format!("pod-{number}"), &pod.uid, &account);
        ids.insert(id);
        running.push_back((pod, load));
    }
    while let Some(one) = running.pop_front() {
        pods.push_back(finish(Some(one)));
    }
    let requests = world.manager.requests();
    assert_eq!(requests.len() as u64, MANY as u64 * EACH);
    let seen: BTreeSet<String> = requests.iter().map(spiffe_id).collect();
    let missing: Vec<_> = ids.difference(&seen).take(3).collect();
    assert_eq!((seen.len(), missing), (MANY, Vec::new()), "as many SPIFFE IDs as workloads");
    requests.iter().for_each(assert_is_the_callers);
    // The control: they could not be told apart by their addresses.
    let lines = world.access_lines(MANY * usize::try_from(EACH).expect("few"));
    let addresses: BTreeSet<_> = lines.iter().map(|line| address_of(line["client"].as_str())).collect();
    assert_eq!(addresses.len(), 1, "{addresses:?}");
    for line in &lines {
        let path = line["path"].as_str().unwrap_or_default();
        assert_eq!(format!("/is/{}", line["spiffe_id"].as_str().unwrap_or_default()), path, "{line}");
    }
    // What has gone is not kept.
    let cached = || world.agent.metrics().sum("hnp_issued_cached", &[("identity", WORKLOADS)]);
    eventually(SOON, "those that are there are kept", || cached() == pods.len() as f64);
    let metrics = world.agent.metrics();
    let [minted, cpu, failures] = ["hnp_issued_certificates", "hnp_issue_cpu_seconds", "hnp_issue_failures"]
        .map(|name| metrics.sum(name, &[]));
    assert_eq!((minted, failures), (MANY as f64, 0.0), "one certificate each");
    eprintln!(
        "{minted} certificates at {:.0} us of CPU each; {} KiB resident",
        cpu / minted * 1e6,
        world.agent.resident_bytes() / 1024
    );
    for pod in pods {
        world.end(pod);
    }
    eventually(SOON, "the last ones have gone", || {
        cached() == 0.0 && world.agent.metrics().sum("hnp_pool_idle", &[]) == 0.0
    });
}

#[test]
fn nobody_gets_an_identity_that_the_api_server_has_not_confirmed() {
    let world = Issued::start(|route| route.set("timeouts", "{connect: 1s}"));
    // The control.
    let known = world.scene.pod();
    world.api.apply_pod_as("team-a", "known", &known.uid, "runner");
    ask(&known, "/is/spiffe://prod.hnp.test/ns/team-a/sa/runner").assert_all_ok(1);
    assert_is_the_callers(&world.manager.last_request().expect("it came"));
    let served = world.manager.request_count();

    // A pod of which the API server knows nothing, one that runs elsewhere, a static one, and its mirror's claim.
    let unknown = world.scene.pod();
    refused(&world, &unknown, "service_account_unconfirmed", 503);
    let fixed = world.scene.pod();
    let hash = json!({"kubernetes.io/config.hash": fixed.uid, "kubernetes.io/config.mirror": fixed.uid});
    world.api.apply_pod_annotated("kube-system", "static", "mirror-uid", "admin", hash);
    refused(&world, &fixed, "service_account_unconfirmed", 503);
    // Who is refused once is refused at once, and served as soon as the server knows him.
    let started = std::time::Instant::now();
    refused(&world, &unknown, "service_account_unconfirmed", 503);
    eprintln!("refused again after {:?}", started.elapsed());
    world.api.apply_pod_as("team-b", "late", &unknown.uid, "runner");
    eventually(SOON, "the late one is served", || {
        ask(&unknown, "/is/spiffe://prod.hnp.test/ns/team-b/sa/runner").failed == 0
    });
    // What the server knows only after the request has come is waited for.
    let waited = world.scene.pod();
    let refusals = world.agent.metrics().sum("hnp_requests", &[("reason", "service_account_unconfirmed")]);
    let running =
        client::load(&waited, &requests_of("spiffe://prod.hnp.test/ns/team-c/sa/runner", 1)).spawn();
    eventually(SOON, "its connection is there", || {
        world.agent.metrics().sum("hnp_connections_open", &[]) > 0.0
    });
    world.api.apply_pod_as("team-c", "waited", &waited.uid, "runner");
    running.wait(SOON).json::<Report>().assert_all_ok(1);
    let after = world.agent.metrics().sum("hnp_requests", &[("reason", "service_account_unconfirmed")]);
    assert_eq!(refusals, after);
    world.manager.requests()[served..].iter().for_each(assert_is_the_callers);
    // A pod that has gone is nobody any more, even if something of it still runs.
    world.api.delete_pod(&known.uid);
    eventually(SOON, "the one that is gone is refused", || ask(&known, "/gone").failed == 1);
    refused(&world, &known, "service_account_unconfirmed", 503);
}

#[test]
fn who_asks_the_gateway_is_known_by_an_address_which_proves_nothing() {
    let world = Issued::with(|config| config.gateway = "timeouts: {caller: 20s}".to_owned(), |route| route);
    let pod = world.scene.pod();
    let (namespace, account) = ("team-a", "runner");
    world.api.apply_pod_as(namespace, "a", &pod.uid, account);
    ask(&pod, "/is/spiffe://prod.hnp.test/ns/team-a/sa/runner").assert_all_ok(1);
    // Its address is known to the API server as well, which does for routes whose identity is the node's.
    world.api.apply_running_pod(&pod.uid, hnp_tests::api_server::NODE, false, &[pod.addr4.into()]);
    let node = std::net::Ipv4Addr::new(10, 244, pod.addr4.octets()[2], 1);
    let answer = raw(&pod, (node, 7777).into());
    assert_eq!(answer.status(), Some(403), "{}", answer.text());
    assert!(answer.text().contains("workload_unknown"), "{}", answer.text());
    let line = world.agent.access_line_with("workload_unknown");
    assert!(line["spiffe_id"].is_null() && line["gateway"] == "origin", "{line}");
    // A pod with the node's network is captured like any other, and known by its cgroup.
    let host_network = world.scene.host_network_pod();
    let uid = uid_of(&host_network);
    world.api.apply_pod_as("kube-system", "agent", &uid, "daemon");
    ask(&host_network, "/is/spiffe://prod.hnp.test/ns/kube-system/sa/daemon").assert_all_ok(1);
    assert_is_the_callers(&world.manager.last_request().expect("it came"));
}

/// Also while the API server is gone, and by another intermediate.
#[test]
fn certificates_of_seconds_are_renewed_under_load_and_whoever_issues_them() {
    let _alone = topology::alone();
    const RATE: u64 = 100;
    const SECONDS: f64 = 24.0;
    let Issued { intermediate, agent, api, manager, scene } =
        Issued::with(|_| {}, |route| route.set("upstream_protocol", "http/1.1"));
    let pods: Vec<(Pod, String)> = (0..3)
        .map(|number| {
            let pod = scene.pod();
            api.apply_pod_as("team-a", &format!("pod-{number}"), &pod.uid, &format!("runner-{number}"));
            (pod, format!("spiffe://{DOMAIN}/ns/team-a/sa/runner-{number}"))
        })
        .collect();
    let steady = |id: &str| {
        let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager").path(&format!("/is/{id}"));
        Job::Steady { target, rate: RATE, connections: 5, seconds: SECONDS }
    };
    let loads: Vec<Running> = pods.iter().map(|(pod, id)| client::load(pod, &steady(id)).spawn()).collect();
    let serials = |issuer: &str| {
        let mut serials: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for request in manager.requests() {
            let client = request.client().expect("strict").clone();
            if client.issuer.contains(issuer) {
                serials.entry(spiffe_id(&request)).or_default().insert(client.serial);
            }
        }
        serials
    };
    let renewed = |issuer: &str| {
        let serials = serials(issuer);
        serials.len() == pods.len() && serials.values().all(|serials| serials.len() >= 2)
    };
    eventually(SOON, "each was renewed", || renewed("node-1"));
    // Those that are known go on without the API server; a new one is nobody.
    drop(api);
    let in_step = || agent.metrics().sum("hnp_pod_labels_in_step", &[]);
    eventually(SOON, "it is noticed that the API server has gone", || in_step() == 0.0);
    let late = scene.pod();
    assert!(ask(&late, "/is/nobody").failures[0].contains("service_account_unconfirmed"));
    let next = scene.clients.for_node("node-2").write(scene.dir(), "staged");
    let before = manager.request_count();
    fs::rename(&next.certificate, &intermediate.certificate).expect("the world's directory is ours");
    fs::rename(&next.key, &intermediate.key).expect("the world's directory is ours");
    eventually(SOON, "all that is presented is of the other intermediate", || {
        let requests = manager.requests();
        let last = &requests[before.max(requests.len().saturating_sub(30))..];
        last.len() == 30 && last.iter().all(|one| one.client().expect("strict").issuer.contains("node-2"))
    });
    for load in loads {
        let report: Report = load.wait(Duration::from_secs(120)).json();
        eprintln!("{} requests, the slowest {:.1} ms", report.ok, report.slowest_ms);
        report.assert_all_ok((RATE as f64 * SECONDS) as u64);
    }
    let requests = manager.requests();
    for request in &requests {
        assert_is_the_callers(request);
        let late = request.at.duration_since(request.client().expect("strict").not_after).unwrap_or_default();
        assert!(late < Duration::from_secs(1), "a certificate was used {late:?} after its end");
    }
    let minted = agent.metrics().sum("hnp_issued_certificates", &[("identity", WORKLOADS)]);
    eprintln!("{minted} certificates for {} requests of {} workloads", requests.len(), pods.len());
    assert!(minted < requests.len() as f64 / 10.0, "made off the requests' way");
}

/// With nothing but the tools: an intermediate as the documentation makes it, `check` on it, and what doctor finds.
#[test]
fn an_intermediate_by_the_book_is_found_good_and_used_for_whom_one_names() {
    let scene = Scene::for_test();
    let place = scene.agent_place();
    let dir = scene.path("by-the-book");
    fs::create_dir(&dir).expect("the world's directory is ours");
    let file = |name: &str| dir.join(name).display().to_string();
    let certs = |arguments: &[&str]| {
        let certs = place.command(hnp_tests::agent::binary()).arg("certs").args(arguments);
        certs.args(["--out-dir", &dir.display().to_string()]).run().ok()
    };
    certs(&["init-ca"]);
    let ca = ["--ca", &file("ca.crt"), "--ca-key", &file("ca.key")];
    certs(&[&["issue", "intermediate", "--out-name", "node-1", "--lifetime", "90d"], &ca[..]].concat());
    let issuer = format!(
        "issuer: {{certificate: {}, key: {}, trust_domain: {DOMAIN}}}",
        file("node-1.crt"),
        file("node-1.key")
    );
    let clients = certificate_of(&dir.join("ca.crt"));
    let setup = Setup::new("manager", 80).tls_of(Mode::Strict, &scene.server, clients);
    let manager = Manager::start(&scene, setup);
    let roots = scene.servers.write(scene.dir(), "servers");
    let cluster = Cluster::new(&scene);
    let _api = cluster.start(json!([]));
    let route = Route::strict("manager", DESTINATIONS, UPSTREAM).with(WORKLOADS, TRUST);
    let config = Config::new(&scene).identity_with(WORKLOADS, &issuer).trust(TRUST, &roots).route(route);
    let mut config = cluster.config(config);
    config.kubernetes += &format!(", api: \"https://{}\", node_name: worker-1", ApiServer::address());
    config.gateway = "route: manager".to_owned();
    let checked = Agent::check(&place, &config);
    let said = format!("{}{}", checked.ok(), checked.stderr);
    assert!(said.contains("spiffe://prod.hnp.test/ns/NAMESPACE/sa/SERVICE-ACCOUNT"), "{said}");
    assert!(said.contains("clients of the gateway are refused there"), "{said}");
    assert!(!said.contains("path length") && !said.contains("is a root"), "{said}");

    let written = scene.path("hnp.yaml");
    fs::write(&written, config.to_yaml()).expect("the world's directory is ours");
    let doctor = |more: &[&str]| {
        let file = written.display().to_string();
        let doctor = place
            .command(hnp_tests::agent::binary())
            .args(["doctor", "--route", "manager", "--config", &file]);
        doctor.args(more).run()
    };
    let unnamed = doctor(&[]);
    assert!(unnamed.status.success(), "{unnamed}");
    assert!(unnamed.text().contains("issues spiffe://prod.hnp.test/ns/"), "{unnamed}");
    assert!(unnamed.text().contains("none was named: --as NAMESPACE/SERVICE-ACCOUNT"), "{unnamed}");
    assert_eq!(manager.request_count(), 0, "nobody's certificate was presented");
    let named = doctor(&["--as", "team-a/runner"]);
    assert!(named.status.success(), "{named}");
    let request = manager.last_request().expect("it asked");
    assert_eq!(spiffe_id(&request), "spiffe://prod.hnp.test/ns/team-a/sa/runner");
    assert_eq!(doctor(&["--as", "nobody"]).status.code(), Some(2));
}

/// An agent that issues, a strict manager and an API server.
struct Issued {
    intermediate: Files,
    agent: Agent,
    api: ApiServer,
    manager: Manager,
    scene: Scene,
}

impl Issued {
    fn start(route: impl FnOnce(Route) -> Route) -> Self {
        Self::build(Scene::strict_manager, ", lifetime: 1h", |_| {}, route)
    }

    fn with_manager(manager: impl FnOnce(&Scene) -> Manager, route: impl FnOnce(Route) -> Route) -> Self {
        Self::build(manager, ", lifetime: 1h", |_| {}, route)
    }

    /// With certificates of seconds.
    fn with(config: impl FnOnce(&mut Config), route: impl FnOnce(Route) -> Route) -> Self {
        Self::build(Scene::strict_manager, ", lifetime: 6s", config, route)
    }

    fn build(
        manager: impl FnOnce(&Scene) -> Manager,
        keys: &str,
        change: impl FnOnce(&mut Config),
        route: impl FnOnce(Route) -> Route,
    ) -> Self {
        let scene = Scene::for_test();
        let manager = manager(&scene);
        let intermediate = scene.clients.for_node("node-1").write(scene.dir(), "node");
        let (certificate, key) = (intermediate.certificate.display(), intermediate.key.display());
        let issuer =
            format!("issuer: {{certificate: {certificate}, key: {key}, trust_domain: {DOMAIN}{keys}}}");
        let cluster = Cluster::new(&scene);
        let api = cluster.start(json!([]));
        let to_manager = Route::strict("manager", DESTINATIONS, UPSTREAM).with(WORKLOADS, TRUST);
        let config = Config::new(&scene)
            .identity_with(WORKLOADS, &issuer)
            .trust(TRUST, &scene.roots)
            .route(route(to_manager));
        let mut config = cluster.config(config);
        change(&mut config);
        let agent = Agent::start(&scene, &config);
        drop(cluster);
        Self { intermediate, agent, api, manager, scene }
    }

    /// A pod ends: its processes and cgroup, and then its object in the API.
    fn end(&self, pod: Pod) {
        let uid = pod.uid.clone();
        self.scene.end(pod);
        self.api.delete_pod(&uid);
    }

    /// The lines of requests, once so many are written.
    fn access_lines(&self, count: usize) -> Vec<serde_json::Value> {
        let mut lines = Vec::new();
        eventually(SOON, "all access lines are written", || {
            lines = self.agent.access_lines();
            lines.retain(|line| line["path"].as_str().is_some_and(|path| path.starts_with("/is/")));
            lines.len() >= count
        });
        lines
    }
}

/// Requests whose path says who sends them.
fn requests_of(id: &str, total: u64) -> Job {
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager").path(&format!("/is/{id}"));
    Job::Short { targets: vec![target], total, concurrency: 1 }
}

fn finish(one: Option<(Pod, Running)>) -> Pod {
    let (pod, load) = one.expect("one runs");
    load.wait(Duration::from_secs(120)).json::<Report>().assert_all_ok(EACH);
    pod
}

fn ask(place: &Place, path: &str) -> Report {
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager").path(path);
    client::run(place, &Job::Short { targets: vec![target], total: 1, concurrency: 1 })
}

fn raw(place: &Place, addr: std::net::SocketAddr) -> client::RawAnswer {
    let case = RawCase { quiet_ms: 20_000, half_close: true, ..RawCase::new(GET) };
    client::raw(place, addr, vec![case]).remove(0)
}

/// The request is answered with the reason, and nothing of it reaches the manager.
#[track_caller]
fn refused(world: &Issued, pod: &Place, reason: &str, status: u16) {
    let before = world.manager.connections().len();
    let answer = raw(pod, (MANAGER4, 80).into());
    assert_eq!(answer.status(), Some(status), "{}", answer.text());
    assert!(answer.text().contains(reason), "{}", answer.text());
    world.agent.access_line_with(reason);
    assert_eq!(world.manager.connections().len(), before, "the manager was dialled");
}

fn spiffe_id(request: &Request) -> String {
    let uris = &request.client().expect("the manager is strict").uris;
    assert_eq!(uris.len(), 1, "exactly one URI: {uris:?}");
    uris[0].clone()
}

/// The certificate is that of whoever the path says.
#[track_caller]
fn assert_is_the_callers(request: &Request) {
    let path = request.target.split('?').next().unwrap_or_default();
    assert_eq!(path, format!("/is/{}", spiffe_id(request)));
}

/// Without the port.
fn address_of(client: Option<&str>) -> String {
    client.and_then(|client| client.rsplit_once(':')).map(|(addr, _)| addr.to_owned()).unwrap_or_default()
}

/// From its cgroup.
fn uid_of(place: &Place) -> String {
    let pod = place
        .cgroup()
        .parent()
        .and_then(|pod| pod.file_name())
        .expect("a container's cgroup is in its pod's");
    pod.to_str().and_then(|name| name.strip_prefix("pod")).expect("pod<uid>").to_owned()
}
