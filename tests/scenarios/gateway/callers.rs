//! The gateway lends the node's identity: who is served is told by the address he comes from.

use std::net::IpAddr;

use hnp_tests::agent::Agent;
use hnp_tests::api_server::{Cluster, NODE};
use hnp_tests::client::{self, RawCase};
use hnp_tests::process::Place;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER4, NODE4};
use serde_json::json;

use super::{Gateway, node_of, reason, uncaptured};

const GET: &str = "GET /x HTTP/1.1\r\nHost: node\r\nX-Forwarded-For: 10.244.1.2\r\nForwarded: for=10.244.1.2\r\nConnection: close\r\n\r\n";
const CONNECT: &str = "CONNECT manager.hnp.test:80 HTTP/1.1\r\n\r\n";

#[test]
fn whoever_comes_from_elsewhere_is_refused_whatever_he_says() {
    let case = Gateway::new();
    let served = case.raw(&[GET, CONNECT]);
    assert!(served.iter().all(|answer| answer.status() == Some(200)), "the control: {served:?}");
    let count = case.manager.request_count();
    // A neighbour on the network, and the node itself.
    for place in [case.scene.manager_side(), case.scene.node()] {
        for answer in ask(&place, NODE4.into(), &[GET, CONNECT]) {
            assert_eq!((reason(&answer).as_str(), answer.status()), ("caller_refused", Some(403)));
        }
    }
    assert_eq!(case.manager.request_count(), count);
    let line = case.agent.access_line_with("caller_refused");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("gateway.sources")), "{line}");
    // Narrowed without a restart.
    let mut narrowed = uncaptured(case.scene.config().route(case.scene.route()));
    narrowed.gateway = format!("sources: [{}]", case.scene.pod().addr4);
    case.agent.reload(&narrowed);
    assert_eq!(reason(&case.raw(&[GET])[0]), "caller_refused");
}

#[test]
fn strangers_who_hold_connections_keep_nobody_out() {
    // Connects as often as it is told and says nothing; prints a line when all stand. Who is turned away may be reset at once.
    const HOLD: &str = "import socket, sys, time\n\
        held = []\n\
        for _ in range(int(sys.argv[2])):\n\
        \x20 s = socket.socket(); s.settimeout(5); held.append(s)\n\
        \x20 try: s.connect((sys.argv[1], 7777))\n\
        \x20 except ConnectionResetError: pass\n\
        print('held', flush=True)\n\
        time.sleep(60)";
    let case = Gateway::with(|scene| {
        let mut config = scene.config().route(scene.route());
        // A worker has room for 300, of whom at most 256 may be strangers.
        config.limits = "connections: 600".to_owned();
        config
    });
    let hold = |place: &Place, addr: String, count: &str| {
        let holding = place.command(hnp_tests::tools::python()).args(["-c", HOLD, &addr, count]).spawn();
        hnp_tests::poll::eventually(std::time::Duration::from_secs(30), "they stand", || {
            holding.stdout().contains("held")
        });
        holding
    };
    let _strangers = hold(&case.scene.manager_side(), NODE4.to_string(), "800");
    let ask = || case.pod.command("curl").args(["-sS", "--max-time", "5", &case.url()]).run();
    for _ in 0..20 {
        assert!(ask().ok().contains("\"manager\":\"manager\""), "served beside 800 strangers");
    }
    case.agent.access_line_with("caller_refused");
    // The control: as many who are served, and hold their connections, do take all there are. One alone has half.
    let others = [case.scene.pod(), case.scene.pod()];
    let _held = others.each_ref().map(|pod| hold(pod, node_of(pod), "400"));
    assert!(!ask().status.success(), "{}", ask());
}

#[test]
fn with_capture_only_pods_of_this_node_are_served() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let cluster = Cluster::new(&scene);
    let api = cluster.start(json!([]));
    let mut config = cluster.config(scene.config().route(scene.route()));
    config.gateway = "timeouts: {caller: 20s}".to_owned();
    let agent = Agent::start(&scene, &config);
    let (known, unknown) = (scene.pod(), scene.pod());
    api.apply_running_pod(&known.uid, NODE, false, &[known.addr4.into(), known.addr6.into()]);
    let node = |pod: &hnp_tests::topology::Pod| node_of(pod).parse::<IpAddr>().expect("an address");

    for answer in ask(&known, node(&known), &[GET, CONNECT]) {
        assert_eq!(answer.status(), Some(200), "{}", answer.text());
    }
    let line = agent.access_line("the pod's request", |line| line["gateway"] == "origin");
    assert_eq!((&line["pod_uid"], &line["reason"]), (&known.uid.clone().into(), &"ok".into()), "{line}");
    // Captured as ever, beside it.
    let captured = ask_port(
        &known,
        (MANAGER4, 80).into(),
        &["GET / HTTP/1.1\r\nHost: manager.hnp.test\r\nConnection: close\r\n\r\n"],
    );
    assert_eq!(captured[0].status(), Some(200));
    let line = agent.access_line("captured", |line| line["path"] == "/");
    assert!(line["gateway"].is_null() && line["destination"] == "198.18.0.9:80", "{line}");

    // A pod whose address comes to the API server after its first connection is waited for.
    let (late, uid) = (unknown.clone(), unknown.uid.clone());
    let asking = std::thread::spawn(move || ask(&late, node(&late), &[GET]).remove(0));
    hnp_tests::poll::eventually(std::time::Duration::from_secs(20), "the connection is there", || {
        agent.metrics().sum("hnp_connections_open", &[]) >= 1.0
    });
    api.apply_running_pod(&uid, NODE, false, &[unknown.addr4.into()]);
    assert_eq!(asking.join().expect("it asks").status(), Some(200));

    // Not served: a pod that is gone, one of another node, one with the node's own address, a neighbour, the node.
    config.gateway = "timeouts: {caller: 100ms}".to_owned();
    agent.reload(&config);
    api.delete_pod(&uid);
    let host_network = scene.host_network_pod();
    api.apply_running_pod("host-network", NODE, true, &[NODE4.into()]);
    api.apply_running_pod("elsewhere", "another-node", false, &[MANAGER4.into()]);
    let served = manager.request_count();
    let gone = || reason(&ask(&unknown, node(&unknown), &[GET])[0]) == "caller_refused";
    hnp_tests::poll::eventually(std::time::Duration::from_secs(20), "the pod that is gone is refused", gone);
    let after = manager.request_count();
    for place in [host_network, scene.manager_side(), scene.node()] {
        let answer = ask(&place, NODE4.into(), &[GET]).remove(0);
        assert_eq!((reason(&answer).as_str(), answer.status()), ("caller_refused", Some(403)));
    }
    assert!(after - served <= 1 && manager.request_count() == after, "nobody's request went on");
    assert_eq!(ask(&known, node(&known), &[GET])[0].status(), Some(200), "the control");
    assert_eq!(agent.metrics().sum("hnp_pod_addresses_in_step", &[]), 1.0);
    // Sources narrow it further.
    config.gateway = format!("sources: [{}]", unknown.addr4);
    agent.reload(&config);
    let line = ask(&known, node(&known), &[GET]).remove(0);
    assert!(line.text().contains("gateway.sources"), "{}", line.text());
}

fn ask(place: &Place, node: IpAddr, requests: &[&str]) -> Vec<client::RawAnswer> {
    ask_port(place, (node, 7777).into(), requests)
}

fn ask_port(place: &Place, addr: std::net::SocketAddr, requests: &[&str]) -> Vec<client::RawAnswer> {
    let cases = requests.iter().map(|request| RawCase {
        quiet_ms: 20_000,
        half_close: true,
        ..RawCase::new(*request)
    });
    client::raw(place, addr, cases.collect())
}
