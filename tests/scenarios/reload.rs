//! The configuration is taken while the agent runs: on a rename, on the symlink swap of a Kubernetes
//! config map, and on SIGHUP. What runs is not touched, what begins then is served by the new one, and
//! a configuration that cannot be used changes nothing and says so once.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use hnp_tests::agent::{self, Agent, Config, Route};
use hnp_tests::client::{self, Job, RawAnswer, RawCase, Report, Target};
use hnp_tests::manager::{Manager, Mode, Service, Setup};
use hnp_tests::pattern::sha256_of;
use hnp_tests::poll::{eventually, patience};
use hnp_tests::process::Place;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, OTHER4};
use serde_json::Value;

/// Generous, so that a loaded machine does not fail it.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn an_added_destination_is_captured_and_a_removed_one_is_direct_again() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    let ask = || client::raw(&pod, (OTHER4, 80), vec![RawCase::new(request(MANAGER_NAME))]).remove(0);
    // The control: without a destination the pod reaches the manager itself, and is refused there.
    assert_eq!(ask().status(), Some(400), "{}", ask().text());
    let both: Vec<&str> = DESTINATIONS.iter().copied().chain(["198.18.0.10:80"]).collect();
    let route = Route::strict("manager", &both, UPSTREAM).with(IDENTITY, TRUST);
    agent.reload(&scene.config().route(route));
    eventually(SOON, "the new destination is captured", || ask().status() == Some(200));
    assert_eq!(manager.last_request().expect("one came").client_serial(), scene.client_serial);
    let line = agent.log_line("configuration reloaded");
    assert!(line.contains("\"routes_changed\":\"manager (destinations)\""), "{line}");
    agent.reload(&scene.config().route(scene.route()));
    eventually(SOON, "the removed destination is direct again", || ask().status() == Some(400));
    served(&pod, 10);
}

#[test]
fn a_signal_has_it_read_and_is_answered_when_nothing_changed() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let (mut agent, pod) = (scene.agent(), scene.pod());
    assert!(!agent.log().contains("SIGHUP"), "the control: nobody has asked yet");
    agent.hang_up();
    agent.log_line("SIGHUP: the configuration has not changed");
    let mut config = scene.config().route(scene.route());
    config.drain = "3s".to_owned();
    fs::write(agent.config_file(), config.to_yaml()).expect("the world's directory is ours");
    agent.hang_up();
    let line = agent.log_line("configuration reloaded");
    assert!(line.contains("\"settings_changed\":\"drain.deadline\""), "{line}");
    // Broken, and asked: an answer at once, and one for each time that it is asked.
    agent.replace_config("routes: nonsense\n");
    agent.hang_up();
    let refusals = || agent.log().matches("the old one stays in force").count();
    eventually(SOON, "the refusal", || refusals() >= 1);
    agent.hang_up();
    eventually(SOON, "the refusal, again", || refusals() >= 2);
    served(&pod, 3);
    assert!(agent.is_alive(), "SIGHUP ends nothing");
}

#[test]
fn by_the_symlink_swap_of_a_config_map() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let pod = scene.pod();
    let volume = scene.path("config-map");
    fs::create_dir(&volume).expect("the world's directory is ours");
    let config = scene.config().route(scene.route());
    mount_config_map(&volume, "..1", &config);
    symlink("..data/hnp.yaml", volume.join("hnp.yaml")).expect("the world's directory is ours");
    let place = scene.agent_place();
    let mut agent = Agent::spawn_on(place, &volume.join("hnp.yaml"), &config, agent::CAPABILITIES);
    agent.wait_until_ready();
    served(&pod, 1);
    assert_eq!(manager.last_request().expect("one came").client_serial(), scene.client_serial);

    // The identity's path changes with it, and so does what is presented.
    let next = scene.clients.client();
    let files = next.write(scene.dir(), "next");
    let moved =
        Config::new(&scene).identity(IDENTITY, &files).trust(TRUST, &scene.roots).route(scene.route());
    mount_config_map(&volume, "..2", &moved);
    eventually(SOON, "the new certificate is presented", || {
        served(&pod, 1);
        manager.last_request().expect("one came").client_serial() == next.serial
    });
    assert_eq!(agent.metrics().sum("hnp_config_reloads", &[]), 1.0);
    let line = agent.log_line("configuration reloaded");
    assert!(line.contains(&format!("\"settings_changed\":\"identities.{IDENTITY}\"")), "{line}");
}

#[test]
fn enforcement_changes_at_the_next_request_of_a_kept_connection() {
    let scene = Scene::for_test();
    let _original = Manager::start(&scene, Setup::new("original", 80));
    let route = |enforcement: fn(&str, &[&str], &str) -> Route| {
        let upstream = format!("https://{MANAGER_NAME}:443");
        scene
            .config()
            .route(enforcement("manager", &["manager.hnp.test:80"], &upstream).with(IDENTITY, TRUST))
    };
    let agent = Agent::start(&scene, &route(Route::loose));
    let pod = scene.pod();
    let target = Target::new((MANAGER4, 80), "elsewhere.test", "original");
    let steady = Job::Steady { target: target.clone(), rate: 100, connections: 2, seconds: 8.0 };
    let running = client::load(&pod, &steady).spawn();
    let passed = |line: &Value| line["reason"] == "passthrough";
    agent.access_line("passed through while loose", passed);

    agent.reload(&route(Route::strict));
    let refused = |line: &Value| line["reason"] == "host_refused";
    agent.access_line("a very connection that passed before is refused", |line| {
        let before = |other: &Value| passed(other) && other["flow"] == line["flow"];
        refused(line) && agent.access_lines().iter().any(before)
    });
    let line = agent.log_line("configuration reloaded");
    assert!(line.contains("\"routes_changed\":\"manager (enforcement loose -> strict)\""), "{line}");
    // From the first refusal on nothing passes any more, on whatever connection.
    eventually(SOON, "the load has gone on", || {
        agent.access_lines().iter().filter(|line| refused(line)).count() > 20
    });
    let lines = agent.access_lines();
    // Lines of two workers come in blocks, so their order is by time.
    let first = lines.iter().filter(|line| refused(line)).filter_map(|line| line["ts"].as_str()).min();
    let late = lines.iter().filter(|line| passed(line) && line["ts"].as_str() > first).count();
    // Two workers notice within the same moment, not within the same millisecond.
    assert!(late <= 4, "{late} requests passed after the first was refused");

    // The control: loose again, and it passes again.
    agent.reload(&route(Route::loose));
    let report = client::run(&pod, &Job::Short { targets: vec![target], total: 10, concurrency: 2 });
    report.assert_all_ok(10);
    drop(running);
}

#[test]
fn ten_reloads_at_load_cost_no_request_and_no_byte() {
    const RATE: u64 = 300;
    const SECONDS: f64 = 12.0;
    const LENGTH: u64 = 48 << 20;
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let echo = Setup::new("echo", 9000).service(Service::Echo);
    let _echo = Manager::start(&scene, echo.tls(Mode::Strict, &scene.server, &scene.clients));
    let config = |number: usize| {
        let files = scene.clients.client().write(scene.dir(), &format!("client-{number}"));
        let (strict, timeout) = (number.is_multiple_of(2), format!("{{idle: {}s}}", 60 + number));
        let all: &[&str] = if strict { DESTINATIONS } else { &["manager.hnp.test:80", "198.18.0.9:80"] };
        let route = if strict { Route::strict } else { Route::loose };
        let route = route("manager", all, UPSTREAM).with(IDENTITY, TRUST).set("timeouts", &timeout);
        // A new certificate at every other reload; its pool must not take anybody's request along.
        let files = if number.is_multiple_of(3) { &files } else { &scene.client };
        let base = Config::new(&scene).identity(IDENTITY, files).trust(TRUST, &scene.roots);
        let extra = Route::loose("extra", &["198.18.0.10:8080"], UPSTREAM).with(IDENTITY, TRUST);
        let wire = Route::opaque("wire", &["198.18.0.9:9000"], "https://manager.hnp.test:9000");
        match number {
            0..5 => base.route(wire.with(IDENTITY, TRUST)).route(route),
            5..8 => base.route(route).route(extra).route(wire.with(IDENTITY, TRUST)),
            // The stream's own route goes while it runs.
            _ => base.route(extra).route(route),
        }
    };
    let agent = Agent::start(&scene, &config(0));
    let pod = scene.pod();
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
    let steady = Job::Steady { target, rate: RATE, connections: 20, seconds: SECONDS };
    let load = client::load(&pod, &steady).spawn();
    let url = format!("http://{MANAGER_NAME}/bytes/{LENGTH}?seed=5");
    let download = format!("curl -sS4 --limit-rate 5M '{url}' | sha256sum");
    let slow = pod.command("sh").args(["-c", &download]).deadline(Duration::from_secs(120)).spawn();
    let parts: Vec<Vec<u8>> = (0..100).map(|number| format!("part {number}\n").into_bytes()).collect();
    let stream = RawCase { parts: parts.clone(), pause_ms: 100, half_close: true, quiet_ms: 10_000 };
    let stream = Job::Raw { addr: (MANAGER4, 9000).into(), cases: vec![stream] };
    let long = client::load(&pod, &stream).spawn();
    eventually(SOON, "all of it runs", || {
        manager.request_count() > 50 && agent.metrics().sum("hnp_connections_open", &[]) >= 22.0
    });

    for number in 1..=10 {
        agent.reload(&config(number));
        let seen = manager.request_count();
        eventually(SOON, "requests go on", || manager.request_count() > seen + 20);
    }
    // The controls: the stream's route is gone for whoever comes now, so nobody carries him.
    let direct = || client::raw(&pod, (MANAGER4, 9000), vec![RawCase::new("hello")]).remove(0).text();
    eventually(SOON, "the removed route is direct", || direct().is_empty());
    assert!(agent.metrics().sum("hnp_connections_open", &[]) >= 22.0, "and the old one is still carried");

    let report: Report = load.wait(Duration::from_secs(60)).json();
    eprintln!("{} requests, the slowest {:.1} ms", report.ok, report.slowest_ms);
    report.assert_all_ok((RATE as f64 * SECONDS) as u64);
    let hash = slow.wait(Duration::from_secs(120)).ok();
    assert_eq!(hash.split(' ').next(), Some(&*sha256_of(5, LENGTH)));
    let answer: RawAnswer = long.wait(Duration::from_secs(120)).json::<Report>().answers.remove(0);
    let sent = parts.concat();
    let expected = [b"220 ready\r\n", &*sent, format!("bye {}\r\n", sent.len()).as_bytes()].concat();
    assert_eq!(String::from_utf8_lossy(&answer.bytes), String::from_utf8_lossy(&expected));
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("hnp_config_generation", &[]), 11.0);
    // Counters of routes that stayed, moved or went have lost nothing.
    assert_eq!(
        metrics.sum("hnp_requests", &[("route", "manager"), ("reason", "ok")]),
        report.ok as f64 + 1.0
    );
    assert_eq!(metrics.sum("hnp_connections", &[("route", "wire"), ("reason", "ok")]), 1.0);
}

#[test]
fn a_destination_that_comes_and_goes_at_load_fails_nobody() {
    let scene = Scene::for_test();
    // Loose: it serves who comes by himself as well, so that every request must go well either way.
    let manager = scene.loose_manager("manager", 80);
    // And so is the route: a strict one has the guard reset what was direct a moment ago.
    let route = |all: &[&str]| Route::loose("manager", all, UPSTREAM).with(IDENTITY, TRUST);
    let (with, without) =
        (scene.config().route(route(DESTINATIONS)), scene.config().route(route(&["198.18.0.10:80"])));
    let (agent, pod) = (Agent::start(&scene, &with), scene.pod());
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
    // A tenth of it where the processor is emulated.
    let total = 4000 / patience(Duration::from_secs(1)).as_secs();
    let mut load = client::load(&pod, &Job::Short { targets: vec![target], total, concurrency: 16 }).spawn();
    let direct = || manager.last_request().is_some_and(|request| request.tls.is_none());
    let carried = || manager.last_request().is_some_and(|request| request.tls.is_some());
    let mut turns = 0;
    let finished = loop {
        if let Some(finished) = load.wait_up_to(Duration::from_millis(1)) {
            break finished;
        }
        agent.reload(if turns % 2 == 0 { &without } else { &with });
        turns += 1;
    };
    let report: Report = finished.json();
    eprintln!("{turns} reloads in {:.1} s, the slowest request {:.1} ms", report.seconds, report.slowest_ms);
    report.assert_all_ok(total);
    assert!(turns > 1, "reloaded while it ran");
    // The controls: each way is really taken.
    agent.reload(if turns % 2 == 0 { &without } else { &with });
    for (config, way) in [(&without, &direct as &dyn Fn() -> bool), (&with, &carried), (&without, &direct)] {
        agent.replace_config(&config.to_yaml());
        eventually(SOON, "the other way is taken", || {
            served(&pod, 1);
            way()
        });
    }
    assert_eq!(agent.access_lines().iter().filter(|line| line["reason"] != "ok").count(), 0);
}

#[test]
fn a_connection_that_waits_to_be_accepted_is_served_although_its_destination_has_left() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    // One listener for each family holds a permit while it waits, so one connection is served at a time.
    let config = |route: Route| {
        let mut config = scene.config().route(route);
        (config.workers, config.limits) = (1, "connections: 2".to_owned());
        config.capture = "connections_per_pod: 100".to_owned();
        config
    };
    let (agent, pod) = (Agent::start(&scene, &config(scene.route())), scene.pod());
    let slow = request(MANAGER_NAME).replace("/hello", "/drip?parts=30&ms=100");
    let slow = Job::Raw { addr: (MANAGER4, 80).into(), cases: vec![RawCase::new(slow)] };
    let slow = client::load(&pod, &slow).spawn();
    eventually(SOON, "the only place is taken", || manager.request_count() == 1);
    let waiting = client::load(&pod, &short(1)).spawn();
    let in_queue = || agent.metrics().sum("hnp_flows", &[]) > 0.0;
    eventually(SOON, "the next one waits", in_queue);

    agent.reload(&config(Route::strict("manager", &["198.18.0.10:80"], UPSTREAM).with(IDENTITY, TRUST)));
    eventually(SOON, "its destination is gone", || agent.metrics().sum("hnp_destinations", &[]) == 1.0);
    // The controls: it waited over the change, and whoever dials now is direct, and refused there.
    assert!(in_queue(), "it still waits");
    let now = client::raw(&pod, (MANAGER4, 80), vec![RawCase::new(request(MANAGER_NAME))]).remove(0);
    assert_eq!(now.status(), Some(400), "{}", now.text());
    slow.wait(Duration::from_secs(60)).json::<Report>();
    waiting.wait(Duration::from_secs(60)).json::<Report>().assert_all_ok(1);
    assert_eq!(manager.last_request().expect("it came").client_serial(), scene.client_serial);
}

#[test]
fn what_a_reload_leaves_alone_stays_warm() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let mut config = scene.config().route(scene.route());
    config.workers = 1;
    let (agent, pod) = (Agent::start(&scene, &config), scene.pod());
    served(&pod, 5);
    let before = manager.connections().len();
    for number in 1..=5 {
        config.drain = format!("{number}s");
        agent.reload(&config);
        served(&pod, 5);
    }
    assert_eq!(manager.connections().len(), before, "no new connection, no new handshake");
    // The control: another name to verify is another connection.
    let route = scene.route().set("server_name", "other.hnp.test");
    let mut other = scene.config().route(route);
    other.workers = 1;
    agent.reload(&other);
    let report = client::run(&pod, &short(1));
    assert!(report.failures[0].contains("upstream_certificate_name"), "{:?}", report.failures);
}

#[test]
fn a_configuration_that_cannot_be_used_changes_nothing_and_says_so_once() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    let mut good = scene.config().route(scene.route());
    let failing = || agent.metrics().sum("hnp_config_reload_failing", &[]);
    let refusals = || agent.log().matches("the old one stays in force").count();
    assert_eq!((failing(), refusals()), (0.0, 0));
    let yaml = good.to_yaml();
    let cases = [
        yaml.replace("enforcement: strict", "enforcement: sharp").replace("drain:", "drian:"),
        format!("{yaml}: : ["),
        yaml.replace("client.crt", "missing.crt").replace("ca.crt", "missing-ca.crt"),
    ];
    for (number, broken) in cases.iter().enumerate() {
        assert_ne!(*broken, yaml, "it is broken");
        agent.replace_config(broken);
        eventually(SOON, "the refusal", || failing() == 1.0 && refusals() == number + 1);
        // All that `check` says, in one line.
        let check = scene.agent_place().command(agent::binary());
        let check = check.args(["check", "--config"]).arg(agent.config_file()).run();
        assert!(!check.status.success(), "{check}");
        let log = agent.log();
        let line = log.lines().rfind(|line| line.contains("the old one stays in force")).expect("counted");
        let said: Value = serde_json::from_str(line).expect("a line of JSON");
        let said = said["mistakes"].as_str().expect("text");
        let mistakes: Vec<&str> = check.stderr.lines().filter(|line| !line.ends_with("(warning)")).collect();
        assert_eq!(said.split(" | ").collect::<Vec<_>>(), mistakes);
        assert_eq!(agent.get("/readyz").expect("it answers").0, 200, "readiness is not touched");
        served(&pod, 3);
    }
    assert_eq!(agent.metrics().sum("hnp_config_generation", &[]), 1.0);
    assert_eq!(refusals(), cases.len(), "each content once");
    // The control: the good one again, and then one that is good and new.
    agent.replace_config(&yaml);
    eventually(SOON, "the alarm is over", || failing() == 0.0);
    good.drain = "3s".to_owned();
    agent.reload(&good);
    served(&pod, 3);
}

#[test]
fn keys_that_wait_for_a_restart_are_named_and_the_rest_is_taken() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    let waiting = || agent.metrics().sum("hnp_config_restart_needed", &[]);
    let mut config = scene.config().route(scene.route());
    config.drain = "3s".to_owned();
    agent.reload(&config);
    // The control: all of that could be taken.
    assert!(!agent.log().contains("wait for a restart"));
    config.workers = 3;
    config.admin.set_port(15091);
    config.capture = "port: 15002, connections_per_pod: 9".to_owned();
    config.drain = "4s".to_owned();
    agent.reload(&config);
    let line = agent.log_line("wait for a restart");
    let keys = "\"keys\":\"capture.port, capture.connections_per_pod, admin.listen, workers\"";
    assert!(line.contains(keys), "{line}");
    assert!(agent.log_line("\"generation\":3").contains("drain.deadline"));
    assert_eq!((waiting(), agent.metrics().sum("hnp_workers", &[])), (4.0, 2.0));
    served(&pod, 10);
    // And what is taken back waits no more.
    let mut back = scene.config().route(scene.route());
    back.drain = "4s".to_owned();
    agent.replace_config(&back.to_yaml());
    eventually(SOON, "nothing waits", || waiting() == 0.0);
}

fn request(host: &str) -> String {
    format!("GET /hello HTTP/1.1\r\nhost: {host}\r\nx-token: t\r\nconnection: close\r\n\r\n")
}

fn short(total: u64) -> Job {
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
    Job::Short { targets: vec![target], total, concurrency: 1 }
}

/// Requests that are carried, each on a connection of its own.
#[track_caller]
fn served(pod: &Place, total: u64) {
    client::run(pod, &short(total)).assert_all_ok(total);
}

/// What the kubelet does with a config map: a directory per version, and one rename of a symbolic link.
fn mount_config_map(volume: &Path, version: &str, config: &Config) {
    let dir = volume.join(version);
    fs::create_dir(&dir).expect("the world's directory is ours");
    fs::write(dir.join("hnp.yaml"), config.to_yaml()).expect("the world's directory is ours");
    let previous = fs::read_link(volume.join("..data")).ok();
    symlink(version, volume.join("..data_tmp")).expect("the world's directory is ours");
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("the world's directory is ours");
    if let Some(previous) = previous {
        fs::remove_dir_all(volume.join(previous)).expect("the world's directory is ours");
    }
}
