//! Every way in which the upstream fails has its own reason, in the answer, in the log and in the
//! metric, within the deadline that the route configures; and a server that was not verified gets no
//! byte of the request.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use hnp_tests::agent::{Agent, Route};
use hnp_tests::client::{self, RawAnswer, RawCase};
use hnp_tests::dns::{Answer, Dns};
use hnp_tests::manager::{Manager, Mode, Service, Setup};
use hnp_tests::nginx::Nginx;
use hnp_tests::openssl_peer::{OpensslPeer, Version};
use hnp_tests::pki::{Ca, Spec};
use hnp_tests::poll::{eventually, patience};
use hnp_tests::scene::{DESTINATIONS, Scene, UPSTREAM};
use hnp_tests::topology::{BLACK_HOLE4, MANAGER_NAME, MANAGER4, Pod};

/// Every deadline of the routes here: a second, where the machine is as quick as others.
fn deadline() -> Duration {
    patience(Duration::from_secs(1))
}
/// A loaded machine is slow; a deadline that is not kept is slower.
const GRACE: u32 = 10;

#[test]
fn refused() {
    let scene = Scene::for_test();
    fails(&scene, "https://manager.hnp.test:4444", "upstream_refused", 502);
}

#[test]
fn black_holed() {
    let scene = Scene::for_test();
    let took = fails(&scene, &format!("https://{BLACK_HOLE4}:443"), "upstream_connect_timeout", 504);
    assert!(took >= deadline(), "the deadline was waited for: {took:?}");
}

#[test]
fn a_dead_address_beside_a_living_one_does_not_use_up_the_deadline() {
    let scene = Scene::for_test();
    scene.add_host("both.hnp.test", &[BLACK_HOLE4.into(), MANAGER4.into()]);
    let leaf = scene.servers.server(&["both.hnp.test"]);
    let manager = Manager::strict(&scene, "both", 80, &leaf, &scene.clients);
    let long = deadline() * 100;
    let route = Route::strict("manager", DESTINATIONS, "https://both.hnp.test:80")
        .set("timeouts", &format!("{{connect: {}s}}", long.as_secs()));
    let case = Case { agent: scene.agent_with(route), pod: scene.pod() };
    let (answer, took) = case.ask();
    assert_eq!(answer.0.status(), Some(200), "{}", answer.0.text());
    assert!(took < long / 5, "half of the deadline would be the dead one's share: {took:?}");
    assert_eq!(manager.request_count(), 1);
    // The control: alone it uses all of a deadline, and is dead.
    case.agent.stop(Duration::from_secs(20));
    fails(&scene, &format!("https://{BLACK_HOLE4}:80"), "upstream_connect_timeout", 504);
}

#[test]
fn unreachable() {
    let scene = Scene::for_test();
    scene.node().netns().ip("route add unreachable 198.18.77.0/24").expect("a route");
    fails(&scene, "https://198.18.77.7:443", "upstream_unreachable", 502);
}

#[test]
fn name_not_found() {
    let scene = Scene::for_test();
    let _dns = Dns::start(&scene);
    fails(&scene, "https://nowhere.hnp.test:443", "upstream_name_not_found", 502);
}

#[test]
fn name_server_fails_or_is_silent() {
    let scene = Scene::for_test();
    let dns = Dns::start(&scene);
    dns.set("failing.hnp.test", Answer::Failure);
    fails(&scene, "https://failing.hnp.test:443", "upstream_dns_failed", 502);
    drop(dns);
    let scene = Scene::for_test();
    let dns = Dns::start(&scene);
    dns.set("silent.hnp.test", Answer::Silence);
    let case = Case::start(&scene, "https://silent.hnp.test:443");
    let (answer, took) = case.ask();
    // Whichever deadline is the first to end it, the resolver's or the route's.
    let reason = answer.reason();
    assert!(["upstream_dns_failed", "upstream_connect_timeout"].contains(&&*reason), "{reason}");
    assert!(took < deadline() * GRACE, "{took:?}");
}

#[test]
fn certificate_expired() {
    certificate("upstream_certificate_expired", |scene| {
        scene.servers.issue(&Spec::server(&[MANAGER_NAME]).expired())
    });
}

#[test]
fn certificate_for_another_name() {
    certificate("upstream_certificate_name", |scene| scene.servers.server(&["other.hnp.test"]));
}

#[test]
fn certificate_from_an_unknown_ca() {
    certificate("upstream_certificate_unknown_ca", |_| Ca::new("somebody else").server(&[MANAGER_NAME]));
}

#[test]
fn certificate_for_clients_only() {
    certificate("upstream_certificate_bad", |scene| scene.servers.issue(&Spec::client(MANAGER_NAME).named()));
}

#[test]
fn client_certificate_refused_by_an_alert_after_the_handshake() {
    client_certificate_refused(Version::Tls13);
}

#[test]
fn client_certificate_refused_within_the_handshake() {
    client_certificate_refused(Version::Tls12);
}

#[test]
fn client_certificate_refused_by_nginx_with_a_400_that_is_relayed() {
    let scene = Scene::for_test();
    let others = Ca::new("another clients' CA").write(scene.dir(), "others");
    let nginx = Nginx::start(&scene, 443, &scene.server, &others);
    let case = Case::start(&scene, "https://manager.hnp.test:443");
    let (answer, _) = case.ask();
    assert_eq!(answer.0.status(), Some(400), "{}", answer.0.text());
    assert!(answer.0.text().contains("SSL certificate error"), "nginx's own words: {}", answer.0.text());
    let line = case.agent.access_line_with("client_certificate_refused");
    assert_eq!(line["status"], 400, "{line}");
    nginx.requests(1);
}

#[test]
fn a_handshake_that_stalls() {
    let scene = Scene::for_test();
    let silent = Manager::start(&scene, Setup::new("silent", 80).service(Service::Silent));
    let took = fails(&scene, UPSTREAM, "upstream_tls_timeout", 504);
    assert!(took >= deadline(), "the deadline was waited for: {took:?}");
    assert_eq!(silent.connections().len(), 1, "it was dialled, and dialled once");
}

#[test]
fn an_upstream_that_speaks_no_tls() {
    let scene = Scene::for_test();
    // Answers the ClientHello like any HTTP server that waits for a line: with nothing, then a close.
    let plain = Manager::start(&scene, Setup::new("plain", 80));
    let case = Case::start(&scene, UPSTREAM);
    let (answer, took) = case.ask();
    let reason = answer.reason();
    assert!(["upstream_tls_failed", "upstream_tls_timeout"].contains(&&*reason), "{reason}");
    assert!(took < deadline() * GRACE, "{took:?}");
    assert_eq!(plain.request_count(), 0);
}

#[test]
fn an_answer_that_does_not_come() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let case = Case::start(&scene, UPSTREAM);
    let (answer, took) = case.ask_for("/slow?ms=60000");
    assert_eq!((answer.reason().as_str(), answer.0.status()), ("upstream_response_timeout", Some(504)));
    assert!((deadline()..deadline() * GRACE).contains(&took), "{took:?}");
    // The control: an answer within the deadline.
    assert_eq!(case.ask_for("/slow?ms=100").0.0.status(), Some(200));
    assert_eq!(manager.request_count(), 2, "a request that may have been served is not sent twice");
}

/// A manager whose certificate must not be accepted gets nothing; its twin with the right one does.
fn certificate(reason: &str, issue: impl Fn(&Scene) -> hnp_tests::pki::Leaf) {
    let scene = Scene::for_test();
    let wrong = issue(&scene);
    let tls = |name: &str, port, leaf| {
        Manager::start(&scene, Setup::new(name, port).tls(Mode::Loose, leaf, &scene.clients))
    };
    let impostor = tls("impostor", 80, &wrong);
    fails(&scene, UPSTREAM, reason, 502);
    assert_eq!(impostor.payload_received(), 0, "not one byte of the request");
    assert_eq!((impostor.request_count(), impostor.connections().len()), (0, 1), "dialled, and not again");
    drop(impostor);
    // Strict destinations stay refused without an agent.
    assert!(Agent::clean_up(&scene).status.success());
    let genuine = tls("genuine", 80, &scene.server);
    let answer = client::raw(&scene.pod(), (MANAGER4, 80), vec![RawCase::new(get("/x"))]).remove(0);
    assert_eq!(genuine.request_count(), 1, "the control, without the agent: {}", answer.text());
}

fn client_certificate_refused(version: Version) {
    let scene = Scene::for_test();
    let others = Ca::new("another clients' CA");
    let strict = OpensslPeer::start(&scene, 443, version, &scene.server, &others);
    let accepting = OpensslPeer::start(&scene, 444, version, &scene.server, &scene.clients);
    fails(&scene, "https://manager.hnp.test:443", "client_certificate_refused", 502);
    eventually(Duration::from_secs(5), "the server says why", || !strict.connections().is_empty());
    let seen = strict.connections().remove(0);
    assert_eq!(seen["bytes"], 0, "{seen}");
    // The control: the same server with our CA.
    let control = Case::start(&scene, "https://manager.hnp.test:444");
    assert_eq!(control.ask().0.0.status(), Some(200));
    eventually(Duration::from_secs(5), "the other server served", || {
        accepting.connections().iter().any(|seen| seen["bytes"].as_u64() > Some(0))
    });
}

/// The route fails with this reason and status, everywhere an operator would look; returns how long
/// the answer took.
#[track_caller]
fn fails(scene: &Scene, upstream: &str, reason: &str, status: u16) -> Duration {
    let case = Case::start(scene, upstream);
    let (answer, took) = case.ask();
    assert_eq!((answer.reason().as_str(), answer.0.status()), (reason, Some(status)), "{}", answer.0.text());
    let body = answer.body();
    assert_eq!(body["route"], "manager", "{body}");
    assert!(body["message"].as_str().is_some_and(|message| message.len() > 10), "{body}");
    assert!(body["flow"].is_number(), "{body}");
    assert!(took < deadline() * GRACE, "answered after {took:?}");
    let line = case.agent.access_line_with(reason);
    assert_eq!((&line["flow"], &line["status"]), (&body["flow"], &status.into()), "{line}");
    case.agent.wait_for_count("hnp_requests", &[("reason", reason), ("route", "manager")], 0.0, 1.0);
    // So that another one may be started in the scene.
    case.agent.stop(Duration::from_secs(20));
    took
}

struct Case {
    pod: Pod,
    agent: Agent,
}

impl Case {
    fn start(scene: &Scene, upstream: &str) -> Self {
        let all = deadline().as_secs();
        let timeouts = format!("{{connect: {all}s, tls: {all}s, response: {all}s}}");
        let route = Route::strict("manager", DESTINATIONS, upstream).set("timeouts", &timeouts);
        Self { agent: scene.agent_with(route), pod: scene.pod() }
    }

    fn ask(&self) -> (Answered, Duration) {
        self.ask_for("/hello?x-access-key=secret")
    }

    fn ask_for(&self, path: &str) -> (Answered, Duration) {
        let started = Instant::now();
        let case = RawCase { quiet_ms: 20_000, ..RawCase::new(get(path)) };
        let to: (Ipv4Addr, u16) = (MANAGER4, 80);
        (Answered(client::raw(&self.pod, to, vec![case]).remove(0)), started.elapsed())
    }
}

struct Answered(RawAnswer);

impl Answered {
    fn body(&self) -> serde_json::Value {
        let text = self.0.text();
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str(body)
            .unwrap_or_else(|error| panic!("{error}: an answer of our own is JSON: {text}"))
    }

    fn reason(&self) -> String {
        self.body()["reason"].as_str().unwrap_or_default().to_owned()
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n")
}
