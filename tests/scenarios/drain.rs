//! SIGTERM: readiness falls, nothing new is taken, what runs is finished until one deadline, and what
//! had to be cut is counted.

use std::time::{Duration, Instant};

use hnp_tests::agent::{self, Agent, Route};
use hnp_tests::client::{self, End, Job, RawCase, Report};
use hnp_tests::manager::Manager;
use hnp_tests::poll::{eventually, patience};
use hnp_tests::process::Running;
use hnp_tests::scene::{self, Scene};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

#[test]
fn what_runs_is_finished_and_nothing_new_is_taken() {
    let scene = Draining::start(&seconds(20));
    let slow = patience(Duration::from_secs(2)).as_millis();
    let in_flight = scene.request(&format!("/slow?ms={slow}&token=inflight"));
    scene.until_manager_has("inflight");
    scene.agent.ask_to_stop();
    eventually(Duration::from_secs(5), "readiness falls and says why", || {
        scene.agent.get("/readyz").is_ok_and(|(status, body)| status == 503 && body.contains("drain"))
    });
    let late: Report = scene.request("/hello?token=late").wait(Duration::from_secs(10)).json();
    assert!(matches!(&late.answers[0].end, End::NotConnected(_) | End::Broken(_)), "{:?}", late.answers[0]);

    let finished: Report = in_flight.wait(Duration::from_secs(10)).json();
    assert_eq!(finished.answers[0].status(), Some(200), "{}", finished.answers[0].text());
    let mut agent = scene.agent;
    let ended = agent.wait(Duration::from_secs(10));
    assert!(ended.status.success(), "{ended}");
    assert_eq!(scene.manager.requests().iter().filter(|request| request.token == "late").count(), 0);
}

#[test]
fn what_outlasts_the_deadline_is_cut_and_counted() {
    let scene = Draining::start("1s");
    let in_flight = scene.request("/slow?ms=60000&token=stuck");
    scene.until_manager_has("stuck");
    let asked = Instant::now();
    scene.agent.ask_to_stop();
    let mut agent = scene.agent;
    let ended = agent.wait(Duration::from_secs(15));
    let took = asked.elapsed();
    assert!(took >= Duration::from_secs(1), "the deadline was given: {took:?}");
    assert!(ended.text().contains("\"reason\":\"drained\""), "{}", ended.text());
    let cut: Report = in_flight.wait(Duration::from_secs(10)).json();
    assert_ne!(cut.answers[0].status(), Some(200));
}

#[test]
fn idle_connections_do_not_hold_it_up() {
    let scene = Draining::start(&seconds(20));
    // Kept alive after its first request, and one that never sent a byte.
    let kept = format!("GET /hello?token=kept HTTP/1.1\r\nhost: {MANAGER_NAME}\r\n\r\n");
    let idle = [
        RawCase { quiet_ms: 30_000, ..RawCase::new(kept) },
        RawCase { quiet_ms: 30_000, ..RawCase::new("") },
    ];
    let idle: Vec<Running> = idle
        .into_iter()
        .map(|case| {
            client::load(&scene.pod, &Job::Raw { addr: (MANAGER4, 80).into(), cases: vec![case] }).spawn()
        })
        .collect();
    scene.until_manager_has("kept");
    eventually(Duration::from_secs(5), "both are open", || {
        scene.agent.metrics().sum("hnp_connections_open", &[]) == 2.0
    });
    let asked = Instant::now();
    scene.agent.ask_to_stop();
    let mut agent = scene.agent;
    let ended = agent.wait(Duration::from_secs(15));
    assert!(ended.status.success(), "{ended}");
    eprintln!("drained in {:?}", asked.elapsed());
    assert!(asked.elapsed() < patience(Duration::from_secs(10)), "{:?}", asked.elapsed());
    drop(idle);
}

#[test]
fn after_a_stop_strict_destinations_are_refused_until_a_cleanup() {
    let scene = Draining::start("5s");
    let inside: Report = scene.request("/hello").wait(Duration::from_secs(10)).json();
    assert_eq!(inside.answers[0].status(), Some(200), "the control");
    let Draining { pod, agent, manager, scene } = scene;
    let ended = agent.stop(Duration::from_secs(15));
    assert!(ended.status.success(), "{ended}");
    assert!(ended.stderr.contains("hnp-agent cleanup"), "it says how to open them: {ended}");
    let before = manager.request_count();
    let after: Report = request(&pod, "/hello").wait(Duration::from_secs(10)).json();
    assert!(matches!(&after.answers[0].end, End::NotConnected(why) if why.contains("refused")), "{after:?}");
    assert_eq!(manager.request_count(), before);

    let cleaned = Agent::clean_up(&scene);
    assert!(cleaned.status.success() && cleaned.text().contains("removed program hnp_connect4"), "{cleaned}");
    assert!(cleaned.text().contains("nothing of hnp is left on this node"), "{cleaned}");
    assert_eq!(agent::remains(&scene), Vec::<String>::new());
    let after: Report = request(&pod, "/hello").wait(Duration::from_secs(10)).json();
    assert_eq!(after.answers[0].status(), Some(400), "refused by the manager itself, in plaintext");
    let again = Agent::clean_up(&scene);
    assert!(again.status.success() && !again.text().contains("removed"), "{again}");
}

#[test]
fn after_a_stop_loose_destinations_are_as_if_hnp_had_never_been() {
    let scene = Scene::for_test();
    let (_manager, pod) = (scene.strict_manager(), scene.pod());
    let agent = scene.agent_with(Route::loose("manager", scene::DESTINATIONS, scene::UPSTREAM));
    let inside: Report = request(&pod, "/hello").wait(Duration::from_secs(10)).json();
    assert_eq!(inside.answers[0].status(), Some(200), "the control");
    assert!(!agent::remains(&scene).is_empty());
    assert!(agent.stop(Duration::from_secs(15)).status.success());
    assert_eq!(agent::remains(&scene), Vec::<String>::new());
    let after: Report = request(&pod, "/hello").wait(Duration::from_secs(10)).json();
    assert_eq!(after.answers[0].status(), Some(400), "refused by the manager itself, in plaintext");
}

#[test]
fn a_cleanup_beside_a_running_agent_is_refused() {
    let scene = Draining::start("5s");
    let kept = agent::remains(&scene.scene);
    let cleaned = Agent::clean_up(&scene.scene);
    assert!(!cleaned.status.success() && cleaned.stderr.contains("another agent is running"), "{cleaned}");
    assert_eq!(agent::remains(&scene.scene), kept);
    let inside: Report = scene.request("/hello").wait(Duration::from_secs(10)).json();
    assert_eq!(inside.answers[0].status(), Some(200));
}

struct Draining {
    pod: Pod,
    agent: Agent,
    manager: Manager,
    scene: Scene,
}

impl Draining {
    fn start(deadline: &str) -> Self {
        let scene = Scene::for_test();
        let manager = scene.strict_manager();
        let mut config = scene.config().route(scene.route());
        config.drain = deadline.to_owned();
        let agent = Agent::start(&scene, &config);
        Self { pod: scene.pod(), agent, manager, scene }
    }

    fn request(&self, path: &str) -> Running {
        request(&self.pod, path)
    }

    fn until_manager_has(&self, token: &str) {
        eventually(Duration::from_secs(5), "the request is at the manager", || {
            self.manager.requests().iter().any(|request| request.token == token)
        });
    }
}

/// A drain deadline that this machine does not reach by being slow.
fn seconds(deadline: u64) -> String {
    format!("{}s", patience(Duration::from_secs(deadline)).as_secs())
}

fn request(pod: &Pod, path: &str) -> Running {
    let text = format!("GET {path} HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
    let cases = vec![RawCase { quiet_ms: 30_000, ..RawCase::new(text) }];
    client::load(pod, &Job::Raw { addr: (MANAGER4, 80).into(), cases }).spawn()
}
