//! An upstream that is not there for a while loses no request to which nothing was sent: whoever wants it waits as
//! long as the route's deadline for connecting says, and not one more dials for it than has to.

use std::thread;
use std::time::{Duration, Instant};

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, Job, Met, RawCase, Report, Target};
use hnp_tests::dns::{Answer, Dns};
use hnp_tests::manager::{Http2, Manager, Mode, Service, Setup};
use hnp_tests::poll::{eventually, patience};
use hnp_tests::process::Running;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};
use nix::sys::signal::Signal;

/// How long the manager is away.
const OUTAGE: Duration = Duration::from_secs(2);
/// New connections a second, each with one POST.
const RATE: u64 = 200;

#[test]
fn a_manager_that_is_away_for_two_seconds_loses_no_post() {
    away(|setup| setup);
}

#[test]
fn nor_does_one_that_speaks_http2() {
    away(|setup| setup.http2(Http2::default()));
}

#[test]
fn a_manager_that_flaps_loses_only_what_it_was_sent() {
    let scene = Scene::for_test();
    let agent = agent(&scene, Some(60), UPSTREAM);
    let pod = scene.pod();
    let load = storm(&pod, RATE / 2, 120.0);
    let failed = || dials(&agent, "upstream_refused");
    let mut served = 0;
    for _ in 0..4 {
        let before = failed();
        eventually(Duration::from_secs(20), "it is dialled in vain", || failed() >= before + 3.0);
        let manager = scene.strict_manager();
        eventually(Duration::from_secs(20), "it serves", || manager.request_count() > 50);
        served += manager.request_count();
        drop(manager);
    }
    let manager = scene.strict_manager();
    let report = ended(load, || manager.request_count() > 0);
    let lost: Vec<&str> =
        report.dials.iter().filter(|dial| dial.met != Met::Carried).map(|dial| &*dial.why).collect();
    eprintln!("{} requests, {} of them lost on the way", report.dials.len(), lost.len());
    for why in &lost {
        let sent = ["upstream_closed", "upstream_reset"].iter().any(|reason| why.contains(reason));
        assert!(sent, "to this one nothing was sent: {why}");
    }
    assert!(report.dials.len() - lost.len() >= served / 2, "{} of {}", lost.len(), report.dials.len());
}

#[test]
fn a_name_server_that_fails_for_a_while_loses_no_request() {
    let scene = Scene::for_test();
    let dns = Dns::start(&scene);
    dns.set("flaky.hnp.test", Answer::Failure);
    let leaf = scene.servers.server(&["flaky.hnp.test"]);
    let manager = Manager::strict(&scene, "manager", 80, &leaf, &scene.clients);
    // The control: a deadline that is shorter than that.
    let short = agent(&scene, Some(1), "https://flaky.hnp.test:80");
    let pod = scene.pod();
    assert_eq!(reason(&post(&pod)), "upstream_dns_failed");
    short.stop(Duration::from_secs(20));

    let patient = agent(&scene, Some(60), "https://flaky.hnp.test:80");
    let answer = thread::scope(|scope| {
        let asked = scope.spawn(|| post(&pod));
        eventually(Duration::from_secs(20), "it is asked for again", || {
            dials(&patient, "upstream_dns_failed") >= 3.0
        });
        assert_eq!(manager.request_count(), 0);
        dns.set_addresses("flaky.hnp.test", &[MANAGER4.into()], 60);
        asked.join().expect("it asks and no more")
    });
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    patient.stop(Duration::from_secs(20));

    // A name that does not exist is told at once, and once.
    let agent = agent(&scene, Some(60), "https://nowhere.hnp.test:80");
    assert_eq!(reason(&post(&pod)), "upstream_name_not_found");
    assert_eq!(dials(&agent, "upstream_name_not_found"), 1.0);
    let line = agent.access_line_with("upstream_name_not_found");
    assert!(line["outage_ms"].is_null(), "{line}");
}

#[test]
fn a_client_that_leaves_is_waited_for_no_longer() {
    let scene = Scene::for_test();
    let agent = agent(&scene, Some(300), UPSTREAM);
    let pod = scene.pod();
    let refused = |line: &serde_json::Value| line["reason"] == "upstream_refused";
    let answer = thread::scope(|scope| {
        // The control: one that stays.
        let stays = scope.spawn(|| post(&pod));
        eventually(Duration::from_secs(20), "it waits", || dials(&agent, "upstream_refused") >= 2.0);
        let leaves = RawCase { half_close: true, quiet_ms: 20_000, ..RawCase::new(POST) };
        client::raw(&pod, (MANAGER4, 80), vec![leaves]);
        let line = agent.access_line("the end of the one that left", refused);
        assert!(line["outage_ms"].as_f64() < Some(300e3), "{line}");
        assert!(!stays.is_finished(), "the other one waits on");
        let _manager = scene.strict_manager();
        stays.join().expect("it asks and no more")
    });
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(agent.access_lines().iter().filter(|line| refused(line)).count(), 1);
}

#[test]
fn a_stop_is_not_held_up_by_those_who_wait() {
    let scene = Scene::for_test();
    let mut config = config(&scene, Some(300), UPSTREAM);
    config.drain = "1s".into();
    let agent = Agent::start(&scene, &config);
    let pod = scene.pod();
    let load =
        client::load(&pod, &Job::Raw { addr: (MANAGER4, 80).into(), cases: vec![patient(POST)] }).spawn();
    eventually(Duration::from_secs(20), "it waits", || dials(&agent, "upstream_refused") >= 2.0);
    let finished = agent.stop(Duration::from_secs(20));
    assert!(finished.status.success(), "{finished}");
    let report: Report = load.wait(patience(Duration::from_secs(60))).json();
    assert!(report.answers[0].status() != Some(200), "{}", report.answers[0].text());
}

#[test]
fn opaque_bytes_wait_too() {
    let scene = Scene::for_test();
    let route = |seconds: u64| {
        let route = Route::opaque("manager", DESTINATIONS, UPSTREAM).with(IDENTITY, TRUST);
        let mut config = scene.config().route(route.set("timeouts", &connect(seconds)));
        config.workers = 1;
        config
    };
    let pod = scene.pod();
    // Open to the end: one that has closed its side is not waited for.
    let case = RawCase { quiet_ms: 10_000, ..RawCase::new("hello\n") };
    let hello = || client::raw(&pod, (MANAGER4, 80), vec![case.clone()]).remove(0).text();
    // The control.
    let short = Agent::start(&scene, &route(1));
    assert_eq!(hello(), "");
    short.stop(Duration::from_secs(20));
    let agent = Agent::start(&scene, &route(60));
    let answer = thread::scope(|scope| {
        let asked = scope.spawn(hello);
        eventually(Duration::from_secs(20), "it waits", || dials(&agent, "upstream_refused") >= 3.0);
        let echo = Setup::new("echo", 80).tls(Mode::Strict, &scene.server, &scene.clients);
        let _echo = Manager::start(&scene, echo.service(Service::Echo));
        eventually(Duration::from_secs(20), "it is carried", || dials(&agent, "ok") == 1.0);
        asked.join().expect("it asks and no more")
    });
    assert!(answer.contains("220 ready\r\nhello"), "{answer:?}");
}

/// Under a load of POSTs, with the deadline that holds when nobody says anything.
fn away(change: impl Fn(Setup) -> Setup) {
    let scene = Scene::for_test();
    let default = agent(&scene, None, UPSTREAM);
    let pod = scene.pod();
    let began = Instant::now();
    let load = storm(&pod, RATE, 120.0);
    eventually(Duration::from_secs(60), "the manager is away for a while", || began.elapsed() >= OUTAGE);
    let (tried, waiting) = (dials(&default, "upstream_refused"), default.metrics());
    let setup = Setup::new("manager", 80).tls(Mode::Strict, &scene.server, &scene.clients);
    let manager = Manager::start(&scene, change(setup));
    let report = ended(load, || manager.request_count() as u64 > 2 * RATE);
    let all = report.dials.len();
    let lost: Vec<_> = report.dials.iter().filter(|dial| dial.met != Met::Carried).collect();
    assert!(lost.is_empty(), "{} of {all}: {:#?}", lost.len(), &lost[..lost.len().min(5)]);
    let requests = manager.requests();
    assert_eq!(requests.len(), all, "none came twice");
    assert!(requests.iter().all(|request| request.head.start_line.starts_with("POST ")));
    let slowest = report.dials.iter().map(|dial| dial.took_us).max().unwrap_or_default() / 1000;
    let waited = default.metrics().sum("hnp_outage_waits", &[]);
    eprintln!(
        "{all} POSTs, {waited} of them waited, {tried} dials in {OUTAGE:?}, the slowest took {slowest} ms"
    );
    assert!(tried >= 3.0 && waited >= 10.0 * tried, "one tries for all: {tried} dials, {waited} waited");
    assert_eq!(waiting.sum("hnp_requests", &[]), 0.0, "nobody was answered in between");
    default.access_line("one that waited", |line| {
        line["outage_ms"].as_f64() > Some(500.0) && line["reason"] == "ok" && line["method"] == "POST"
    });
    default.stop(Duration::from_secs(20));

    // The control: a deadline that is shorter than the outage.
    drop(manager);
    let short = agent(&scene, Some(1), UPSTREAM);
    let report = client::run(&pod, &Job::Short { targets: vec![target()], total: 20, concurrency: 20 });
    assert_eq!((report.ok, report.failed), (0, 20));
    assert!(report.failures.iter().all(|why| why.contains("upstream_refused")), "{:?}", report.failures);
    drop(short);
}

fn target() -> Target {
    Target::new((MANAGER4, 80), MANAGER_NAME, "manager").post()
}

fn storm(pod: &Pod, rate: u64, seconds: f64) -> Running {
    client::load(pod, &Job::Storm { target: target(), rate, at_most: u64::MAX, seconds }).spawn()
}

/// The load's report, once what is awaited has come.
#[track_caller]
fn ended(load: Running, condition: impl FnMut() -> bool) -> Report {
    eventually(Duration::from_secs(60), "the manager serves", condition);
    load.signal(Signal::SIGTERM);
    load.wait(patience(Duration::from_secs(60))).json()
}

fn connect(seconds: u64) -> String {
    format!("{{connect: {}s}}", patience(Duration::from_secs(seconds)).as_secs())
}

/// One worker: its outages are its own.
fn config(scene: &Scene, seconds: Option<u64>, upstream: &str) -> Config {
    let mut route = Route::strict("manager", DESTINATIONS, upstream).with(IDENTITY, TRUST);
    if let Some(seconds) = seconds {
        route = route.set("timeouts", &connect(seconds));
    }
    let mut config = scene.config().route(route);
    config.workers = 1;
    config
}

#[track_caller]
fn agent(scene: &Scene, seconds: Option<u64>, upstream: &str) -> Agent {
    Agent::start(scene, &config(scene, seconds, upstream))
}

fn dials(agent: &Agent, reason: &str) -> f64 {
    agent.metrics().sum("hnp_upstream_dials", &[("reason", reason)])
}

const POST: &str =
    "POST /hello HTTP/1.1\r\nhost: manager.hnp.test\r\nconnection: close\r\ncontent-length: 4\r\n\r\nonce";

fn patient(bytes: &str) -> RawCase {
    RawCase { quiet_ms: 60_000, ..RawCase::new(bytes) }
}

fn post(pod: &Pod) -> String {
    client::raw(pod, (MANAGER4, 80), vec![patient(POST)]).remove(0).text()
}

#[track_caller]
fn reason(answer: &str) -> String {
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let body: serde_json::Value = serde_json::from_str(body)
        .unwrap_or_else(|error| panic!("{error}: an answer of our own is JSON: {answer}"));
    body["reason"].as_str().unwrap_or_default().to_owned()
}
