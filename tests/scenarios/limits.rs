//! One workload has no more than `limits.per_workload` gives it, and what it is refused is nobody else's loss.

use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, End, Job, RawAnswer, RawCase, Report, Target, Transfer, TransferEnd};
use hnp_tests::manager::{Manager, Service, Setup};
use hnp_tests::poll::eventually;
use hnp_tests::scene::{IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Polled for; ten times what it should take.
const SOON: Duration = Duration::from_secs(10);
const GET: &str = "GET /limited HTTP/1.1\r\nHost: manager.hnp.test\r\nConnection: close\r\n\r\n";

#[test]
fn a_workload_has_no_more_connections_than_it_may() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let agent = Agent::start(&scene, &with(&scene, "per_workload: {connections: 20}"));
    let (greedy, modest) = (scene.pod(), scene.pod());
    let report = client::run(&greedy, &held(50));
    assert_eq!((report.ok, report.failed), (20, 30), "{:?}", report.failures);
    assert!(connections(&agent, "workload_connections") >= 30.0);
    let line = agent.access_line_with("workload_connections");
    assert_eq!(
        (&line["pod_uid"], &line["status"]),
        (&greedy.uid.as_str().into(), &Value::from(429)),
        "{line}"
    );
    let spoken = agent.log_line("a workload's connections are refused");
    assert!(spoken.contains(&greedy.uid), "{spoken}");
    // The controls: another pod is not affected, what was closed may be opened again, and without the limit all are served.
    client::run(&modest, &held(20)).assert_all_ok(20);
    client::run(&greedy, &held(20)).assert_all_ok(20);
    agent.reload(&with(&scene, "per_workload: {connections: 50}"));
    client::run(&greedy, &held(50)).assert_all_ok(50);
}

#[test]
fn a_workload_begins_connections_no_faster_than_it_may() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    // One in a second at most; the agent's clock is this machine's, and raw clients come faster than that.
    let agent = Agent::start(&scene, &with(&scene, "per_workload: {new_connections_per_second: 1}"));
    let (hasty, calm) = (scene.pod(), scene.pod());
    let answers = ask(&hasty, 10);
    assert_eq!(answers[0].status(), Some(200), "{}", answers[0].text());
    let refused = answers.iter().find(|answer| answer.status() == Some(429)).expect("faster than it may");
    let text = refused.text();
    assert!(
        text.contains("\r\nRetry-After: 1\r\n") && text.contains(r#""reason":"workload_rate""#),
        "{text}"
    );
    assert_eq!(refused.end, End::Eof, "an answer, and no reset");
    assert!(connections(&agent, "workload_rate") >= 1.0);
    // The controls: another pod has its own, and without the limit nobody is refused.
    assert_eq!(ask(&calm, 1)[0].status(), Some(200));
    agent.reload(&with(&scene, "per_workload: {connections: 100}"));
    assert!(ask(&hasty, 10).iter().all(|answer| answer.status() == Some(200)));
}

#[test]
fn a_workload_that_speaks_tls_or_anything_is_told_in_its_words() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let _echo = Manager::start(
        &scene,
        Setup::new("echo", 9000)
            .tls(hnp_tests::manager::Mode::Strict, &scene.server, &scene.clients)
            .service(Service::Echo),
    );
    let opaque = Route::opaque("lines", &["198.18.0.9:9000"], "https://manager.hnp.test:9000");
    let config = |limits: &str| {
        let mut config: Config =
            scene.config().route(scene.route()).route(opaque.clone().with(IDENTITY, TRUST));
        config.limits = limits.to_owned();
        config
    };
    let agent = Agent::start(&scene, &config("per_workload: {connections: 1}"));
    let pod = scene.pod();
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
    let holder = client::load(&pod, &Job::Idle { target, connections: 1, opaque: false }).spawn();
    eventually(SOON, "the one it may have stands", || {
        agent.metrics().sum("hnp_connections_open", &[]) == 1.0
    });
    let line =
        || client::raw(&pod, (MANAGER4, 9000), vec![RawCase::new("anybody?\n").then_half_close()]).remove(0);
    // A hello's first bytes; the alert comes before the rest is asked for.
    let hello = RawCase::new(&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..]);
    let refused = line();
    // The reset may come before the client looks whether it is connected.
    let reset = matches!(&refused.end, End::Broken(how) | End::NotConnected(how) if how.contains("reset"));
    assert!(refused.bytes.is_empty() && reset, "{refused:?}");
    let alert = client::raw(&pod, (MANAGER4, 80), vec![hello]).remove(0);
    assert_eq!(alert.bytes, [21, 3, 1, 0, 2, 2, 40], "{alert:?}");
    // The control: what was held is given back.
    drop(holder);
    eventually(SOON, "it is carried again", || line().text().contains("anybody?\n"));
}

#[test]
fn what_goes_on_to_where_it_was_going_is_counted_too() {
    let scene = Scene::for_test();
    // It takes TLS, as the upstream, and plaintext, where the pod was going.
    let manager = scene.loose_manager("manager", 80);
    let route = Route::loose("manager", &["manager.hnp.test:80"], UPSTREAM).with(IDENTITY, TRUST);
    let mut config = scene.config().route(route);
    config.limits = "per_workload: {connections: 1}".to_owned();
    let agent = Agent::start(&scene, &config);
    let (greedy, modest) = (scene.pod(), scene.pod());
    let elsewhere = Target::new((MANAGER4, 80), "elsewhere.test", "manager");
    let holder =
        client::load(&greedy, &Job::Idle { target: elsewhere, connections: 1, opaque: false }).spawn();
    eventually(SOON, "the one it may have was answered", || manager.request_count() == 1);
    let ask = |pod: &Pod| {
        let request = "GET /hello HTTP/1.1\r\nHost: elsewhere.test\r\nConnection: close\r\n\r\n";
        client::raw(pod, (MANAGER4, 80), vec![RawCase::new(request)]).remove(0)
    };
    let refused = ask(&greedy);
    assert_eq!(refused.status(), Some(429), "{}", refused.text());
    assert!(refused.text().contains(r#""reason":"workload_connections""#), "{}", refused.text());
    // The controls: another pod has its own, and what was held is given back.
    assert_eq!(ask(&modest).status(), Some(200));
    drop(holder);
    eventually(SOON, "it is carried again", || ask(&greedy).status() == Some(200));
    assert_eq!(agent.access_line_with("passthrough")["mode"], "passthrough");
    assert!(manager.requests().iter().all(|request| request.tls.is_none()), "none of it was the agent's TLS");
}

#[test]
fn a_workload_moves_bytes_no_faster_than_it_may_and_all_of_them() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let agent = Agent::start(&scene, &with(&scene, "per_workload: {bytes_per_second: 1MiB}"));
    let waits = || agent.metrics().sum("hnp_workload_waits_total", &[]);
    let (first, second) = (scene.pod(), scene.pod());
    // What a second is worth goes at once; one who moved nothing waits for nobody else's bytes.
    transfer(&first, 3 << 20, |seconds| assert!(seconds >= 1.9, "3 MiB at 1 MiB/s in {seconds} s"));
    let before = waits();
    assert!(before > 0.0);
    transfer(&second, 1 << 19, |seconds| println!("512 KiB of another pod in {seconds:.3} s"));
    assert_eq!(waits(), before, "what a second is worth waits for nothing");
    let both = client::load(&first, &download(2 << 20)).spawn();
    upload(&first, 2 << 20, |seconds| assert!(seconds >= 1.9, "4 MiB both ways together in {seconds} s"));
    drop(both);
    // The control: without a limit nothing waits.
    agent.reload(&with(&scene, ""));
    let before = waits();
    transfer(&first, 3 << 20, |seconds| println!("3 MiB without a limit in {seconds:.3} s"));
    assert_eq!(waits(), before);
}

#[test]
fn a_changed_rate_holds_for_connections_that_there_are() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let agent = Agent::start(&scene, &with(&scene, ""));
    let (pod, sum) = (scene.pod(), |name: &str| agent.metrics().sum(name, &[]));
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
    // 25 MiB in four seconds, up and down; at the rate that comes it would be a quarter of an hour.
    let job = Job::Transfers { target, at_a_time: 2, blocks: 400, pause_ms: 10 };
    let moving = client::load(&pod, &job).deadline(6 * SOON).spawn();
    eventually(SOON, "both are under way", || sum("hnp_connections_open") == 2.0);
    assert_eq!(sum("hnp_workload_waits_total"), 0.0, "the control: nothing waits without a limit");
    agent.reload(&with(&scene, "per_workload: {bytes_per_second: 64KiB}"));
    eventually(SOON, "they wait", || sum("hnp_workload_waits_total") >= 2.0);
    assert_eq!(sum("hnp_connections_total"), 0.0, "no connection has ended since: these are the former ones");
    agent.reload(&with(&scene, ""));
    moving.signal(Signal::SIGTERM);
    let report: Report = moving.wait(6 * SOON).json();
    let broken = |one: &&Transfer| !matches!(one.end, TransferEnd::Whole);
    assert!(report.transfers.len() >= 2 && report.transfers.iter().find(broken).is_none(), "{report:?}");
}

fn with(scene: &Scene, limits: &str) -> Config {
    let mut config = scene.config().route(scene.route());
    config.limits = limits.to_owned();
    config
}

fn transfer(pod: &Pod, bytes: u64, took: impl Fn(f64)) {
    let report = client::run(pod, &download(bytes));
    assert_eq!((report.bytes, report.sha256), (bytes, hnp_tests::pattern::sha256_of(9, bytes)));
    took(report.seconds);
}

fn upload(pod: &Pod, bytes: u64, took: impl Fn(f64)) {
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager").path("/sink");
    let report = client::run(pod, &Job::Upload { target, bytes, seed: 7, chunked: false });
    assert_eq!(report.sha256, hnp_tests::pattern::sha256_of(7, bytes));
    took(report.seconds);
}

fn download(bytes: u64) -> Job {
    let path = format!("/bytes/{bytes}?seed=9");
    Job::Download { target: Target::new((MANAGER4, 80), MANAGER_NAME, "manager").path(&path) }
}

fn held(connections: u64) -> Job {
    Job::Held { targets: vec![Target::new((MANAGER4, 80), MANAGER_NAME, "manager")], connections }
}

fn ask(pod: &Pod, times: usize) -> Vec<RawAnswer> {
    client::raw(pod, (MANAGER4, 80), vec![RawCase::new(GET); times])
}

fn connections(agent: &Agent, reason: &str) -> f64 {
    agent.metrics().sum("hnp_connections_total", &[("reason", reason)])
}
