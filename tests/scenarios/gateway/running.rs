//! The gateway while it runs: reloads, upgrades and the drain.

use std::time::Duration;

use hnp_tests::agent::{Agent, CAPABILITIES};
use hnp_tests::client::{self, Job, Target};
use hnp_tests::scene::Scene;
use hnp_tests::topology::MANAGER_NAME;

use super::{Gateway, node_of, reason, strict, uncaptured};

#[test]
fn what_a_reload_takes_out_is_refused_on_kept_connections_too() {
    let case = Gateway::with(|scene| {
        let config = scene.config().route(strict("one", &["one.hnp.test:80"]));
        config.route(strict("two", &["two.hnp.test:80"]))
    });
    let ask = |host: &str| {
        case.raw(&[&format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")])
            .remove(0)
    };
    assert_eq!((ask("one.hnp.test").status(), ask("two.hnp.test").status()), (Some(200), Some(200)));
    // A connection that is kept over the reload: its first request is answered before, its second comes after.
    let script = format!(
        "import http.client, sys\n\
         c = http.client.HTTPConnection('{}', 7777, timeout=60)\n\
         def get():\n\
        \x20 c.request('GET', 'http://two.hnp.test/', headers={{'Host': 'two.hnp.test'}})\n\
        \x20 r = c.getresponse(); r.read(); print(r.status, flush=True)\n\
         get()\n\
         import os, time\n\
         while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n\
         get()",
        node_of(&case.pod)
    );
    let go = case.scene.path("go");
    let kept = case.pod.command(hnp_tests::tools::python()).args(["-c", &script]).arg(&go).spawn();
    hnp_tests::poll::eventually(Duration::from_secs(20), "the first answer", || {
        kept.stdout().contains("200")
    });
    case.agent.reload(&uncaptured(case.scene.config().route(strict("one", &["one.hnp.test:80"]))));
    std::fs::write(&go, "").expect("the world's directory is ours");
    let said = kept.wait(Duration::from_secs(30)).ok();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["200", "403"], "judged by what holds now");
    assert_eq!(reason(&ask("two.hnp.test")), "destination_refused");
    assert_eq!(ask("one.hnp.test").status(), Some(200), "the control");
    // Where it listens waits for a restart, and says so.
    let mut moved = uncaptured(case.scene.config().route(strict("one", &["one.hnp.test:80"])));
    moved.gateway = "listen: ['0.0.0.0:8888'], sources: [10.244.0.0/16]".to_owned();
    case.agent.reload_waiting(&moved, "gateway.listen");
    assert_eq!(ask("one.hnp.test").status(), Some(200));
}

#[test]
fn an_upgrade_hands_the_gateway_over_and_no_connection_fails() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let mut config = scene.config().route(scene.route());
    config.gateway = "sources: [10.244.0.0/16]".to_owned();
    let mut first = Agent::spawn(scene.agent_place(), &config, CAPABILITIES);
    first.wait_until_ready();
    let pod = scene.pod();
    let node: std::net::IpAddr = node_of(&pod).parse().expect("an address");
    let target = Target::new((node, 7777), MANAGER_NAME, "manager");
    let load = client::load(&pod, &Job::Short { targets: vec![target], total: 3000, concurrency: 4 }).spawn();
    hnp_tests::poll::eventually(Duration::from_secs(20), "the load runs", || manager.request_count() > 100);
    let mut second = Agent::take_over(scene.agent_place(), &config);
    let ended = first.wait(Duration::from_secs(30));
    assert!(ended.status.success(), "{ended}");
    second.wait_until_ready();
    let report: client::Report = load.wait(Duration::from_secs(120)).json();
    report.assert_all_ok(3000);
    second.access_line("requests of the load", |line| line["gateway"] == "origin");
    // The control: one that is stopped, and not taken over from, leaves nobody there.
    second.stop(Duration::from_secs(30));
    let after =
        client::raw(&pod, (node, 7777), vec![client::RawCase::new("GET / HTTP/1.1\r\nHost: x\r\n\r\n")]);
    assert!(matches!(after[0].end, client::End::NotConnected(_)), "{:?}", after[0]);
}

#[test]
fn without_capture_there_is_no_take_over_and_a_drain_finishes_what_runs() {
    let case = Gateway::new();
    let config = uncaptured(case.scene.config().route(case.scene.route()));
    let mut second = Agent::take_over(case.scene.agent_place(), &config);
    let refused = second.wait(Duration::from_secs(20));
    assert!(!refused.status.success() && refused.stderr.contains("capture: off"), "{refused}");
    let mut beside = Agent::spawn(case.scene.agent_place(), &config, &[]);
    let refused = beside.wait(Duration::from_secs(20));
    assert!(!refused.status.success() && refused.stderr.contains("gateway.listen"), "{refused}");

    let slow = format!("{}/slow?ms=1500", case.url());
    let running = case.pod.command("curl").args(["-sS", "--fail", &slow]).spawn();
    hnp_tests::poll::eventually(Duration::from_secs(20), "the request is under way", || {
        case.manager.request_count() == 1
    });
    let ended = case.agent.stop(Duration::from_secs(20));
    assert!(ended.status.success(), "{ended}");
    let answer = running.wait(Duration::from_secs(20));
    assert!(answer.ok().contains("\"manager\":\"manager\""), "{answer}");
}
