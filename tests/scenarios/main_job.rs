//! What a pod dials in the clear leaves the node as mutual TLS; the program needs no setting of any
//! kind and is told that it talks to whom it dialled. The control is the same program in the same
//! network, outside the pod's cgroup: it reaches the same port and is refused there for lacking a
//! certificate.

use std::net::{IpAddr, SocketAddr};

use hnp_tests::client::{self, Job, Target};
use hnp_tests::process::{Cmd, Place};
use hnp_tests::scene::Scene;
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, MANAGER6};

#[test]
fn curl() {
    carried(|place, path| place.command("curl").args(["-si", &url(path)]));
}

#[test]
fn curl_over_ipv6() {
    carried(|place, path| place.command("curl").args(["-si6", &url(path)]));
}

#[test]
fn python_http_client() {
    const SCRIPT: &str = "import http.client, sys\n\
        c = http.client.HTTPConnection(sys.argv[1], timeout=10)\n\
        c.request('GET', sys.argv[2])\n\
        r = c.getresponse()\n\
        print('HTTP/1.1', r.status, r.read().decode())";
    let python = tools::python();
    carried(|place, path| place.command(&python).args(["-c", SCRIPT, MANAGER_NAME, path]));
}

#[test]
fn python_requests() {
    const SCRIPT: &str = "import requests, sys\n\
        r = requests.get(sys.argv[1], timeout=10)\n\
        print('HTTP/1.1', r.status_code, r.text)";
    let python = tools::python_with_requests();
    carried(|place, path| place.command(&python).args(["-c", SCRIPT, &url(path)]));
}

#[test]
fn node_fetch() {
    const SCRIPT: &str =
        "fetch(process.argv[1]).then(async r => console.log('HTTP/1.1', r.status, await r.text()))";
    let node = tools::need("node");
    carried(|place, path| place.command(&node).args(["-e", SCRIPT, &url(path)]));
}

#[test]
fn a_static_program_without_a_resolver() {
    for address in [IpAddr::from(MANAGER4), IpAddr::from(MANAGER6)] {
        let scene = Scene::for_test();
        let program = tools::compile_static("static_client.c", scene.dir());
        let address = address.to_string();
        let said = carried_in(&scene, |place, path| {
            place.command(&program).args([address.as_str(), "80", MANAGER_NAME, path])
        });
        assert!(said.starts_with(&format!("peer {address} 80\n")), "{said}");
    }
}

#[test]
fn getpeername_shows_what_was_dialled_also_for_v4_mapped_addresses() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let agent = scene.agent();
    let pod = scene.pod();
    let mapped = IpAddr::from(MANAGER4.to_ipv6_mapped());
    let dialled: Vec<SocketAddr> =
        [MANAGER4.into(), MANAGER6.into(), mapped].into_iter().map(|addr| (addr, 80).into()).collect();
    for &addr in &dialled {
        let report = client::run(&pod, &Job::Peer { addr });
        assert_eq!(report.peer, Some(addr));
        let local = report.local.expect("connected").ip().to_canonical();
        assert!(
            local == IpAddr::from(pod.addr4) || local == IpAddr::from(pod.addr6),
            "getsockname says {local}"
        );
    }
    // Used, and not only connected: each request is answered by the manager over mutual TLS.
    let targets = dialled.iter().map(|&addr| Target::new(addr, MANAGER_NAME, "manager")).collect();
    client::run(&pod, &Job::Short { targets, total: 9, concurrency: 3 }).assert_all_ok(9);
    assert!(manager.requests().iter().all(|request| request.client_serial() == scene.client_serial));
    let redirected = agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "redirected")]);
    assert_eq!(redirected, 12.0, "the hook sent every one of them: three peers and nine requests");
}

#[test]
fn what_is_no_destination_is_left_alone() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let other = hnp_tests::manager::Manager::start(&scene, hnp_tests::manager::Setup::new("other", 8080));
    let agent = scene.agent();
    let pod = scene.pod();
    let target = Target::new((MANAGER4, 8080), "other.test", "other");
    client::run(&pod, &Job::Short { targets: vec![target], total: 20, concurrency: 2 }).assert_all_ok(20);
    for request in other.requests() {
        assert_eq!(request.peer.ip(), IpAddr::from(pod.addr4), "straight from the pod, not from the node");
        assert!(request.tls.is_none());
    }
    assert_eq!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "redirected")]), 0.0);
    assert!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "missed")]) >= 20.0);
}

fn url(path: &str) -> String {
    format!("http://{MANAGER_NAME}{path}")
}

/// The promise, for one client program: its command takes a place and a path and prints the status
/// line and the body.
fn carried(command: impl Fn(&Place, &str) -> Cmd) {
    carried_in(&Scene::for_test(), command);
}

fn carried_in(scene: &Scene, command: impl Fn(&Place, &str) -> Cmd) -> String {
    // given a strict manager and an agent that captures its name and addresses
    let manager = scene.strict_manager();
    let pod = scene.pod();
    // and, as the control, what the program gets there without one
    let outside = command(pod.outside_cgroup(), "/hello?token=outside").run();
    let agent = scene.agent();

    // when the program runs in the pod
    let inside = command(&pod, "/hello?token=inside").run().ok();

    // then the one got its answer over mutual TLS, with our certificate and the upstream's name
    assert!(inside.contains("HTTP/1.1 200"), "{inside}");
    let seen = manager.request("inside");
    assert_eq!(seen.client_serial(), scene.client_serial);
    let tls = seen.tls.as_ref().expect("mutual TLS");
    assert_eq!(tls.server_name.as_deref(), Some(MANAGER_NAME));
    assert_eq!(
        (tls.version.as_str(), tls.key_exchange.as_str()),
        ("TLSv1_3", "X25519MLKEM768"),
        "the newest TLS and the hybrid key exchange"
    );
    assert_eq!((seen.host(), seen.target.as_str()), ("manager.hnp.test:80", "/hello?token=inside"));

    // where the control reached the same port and was refused there
    assert!(outside.text().contains("HTTP/1.1 400"), "{outside}");
    assert!(manager.request("outside").tls.is_none());

    // and the agent wrote down who it was
    let line = agent.access_line_with("ok");
    assert_eq!(line["pod_uid"], pod.uid.as_str(), "{line}");
    assert_eq!(line["container"], pod.container.as_str(), "{line}");
    assert_eq!((line["path"].as_str(), line["status"].as_u64()), (Some("/hello"), Some(200)), "{line}");
    inside
}
