//! The worlds themselves keep their promises: without the agent, a pod reaches the strict manager
//! directly and is refused there for lacking a certificate. Every other scenario stands on this.

use std::net::SocketAddr;
use std::time::Duration;

use hnp_tests::cgroup::{Driver, Qos};
use hnp_tests::client::{self, End, Job, RawCase, Target};
use hnp_tests::dns::Dns;
use hnp_tests::manager::{Manager, Service, Setup};
use hnp_tests::nginx::Nginx;
use hnp_tests::openssl_peer::{OpensslPeer, Version};
use hnp_tests::pki;
use hnp_tests::poll::eventually;
use hnp_tests::scene::Scene;
use hnp_tests::tools;
use hnp_tests::topology::{self, BLACK_HOLE4, MANAGER_NAME, MANAGER4, MANAGER6, OTHER4, Topology};

#[test]
fn without_the_agent_the_strict_manager_refuses_a_pod_over_both_families() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let pod = scene.pod();

    for family in ["-4", "-6"] {
        let answer = pod
            .command("curl")
            .args(["-s", family, "-w", " status=%{http_code}", &format!("http://{MANAGER_NAME}/hello")])
            .run()
            .ok();
        assert!(answer.contains("client certificate required") && answer.ends_with("status=400"), "{answer}");
    }
    let requests = manager.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.tls.is_none() && request.target == "/hello"));
    assert_eq!(requests[0].peer.ip(), pod.addr4, "the node routes, it does not translate");
    assert_eq!(requests[1].peer.ip(), pod.addr6);
}

#[test]
fn with_a_certificate_the_strict_manager_serves_and_says_what_it_saw() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let url = format!("https://{MANAGER_NAME}:80/hello?token=t1");
    let curl = |extra: &[&str]| {
        let base = ["-s", "--cacert", scene.roots.to_str().expect("ascii"), &url];
        scene.pod().command("curl").args(base).args(extra).run()
    };
    let (certificate, key) = (scene.client.certificate.to_str(), scene.client.key.to_str());
    let with = curl(&["--cert", certificate.expect("ascii"), "--key", key.expect("ascii")]);
    let seen: serde_json::Value = with.json();
    assert_eq!(seen["client_serial"], scene.client_serial.as_str());
    assert_eq!(manager.request("t1").client_serial(), scene.client_serial);

    let without = curl(&[]);
    assert!(!without.status.success(), "{without}");
    assert_eq!(manager.request_count(), 1, "no request without a certificate");
}

#[test]
fn a_process_is_in_its_pods_cgroup_and_outside_it_only_on_demand() {
    for driver in [Driver::Cgroupfs, Driver::Systemd] {
        let topology = Topology::for_test_with(driver);
        for qos in [Qos::BestEffort, Qos::Burstable, Qos::Guaranteed] {
            let pod = topology.pod_with(qos);
            let inside = pod.command("cat").arg("/proc/self/cgroup").run().ok();
            assert!(inside.contains(driver.kubepods()) && inside.contains(&pod.container), "{inside}");
            let outside = pod.outside_cgroup().command("cat").arg("/proc/self/cgroup").run().ok();
            assert!(!outside.contains("kubepods"), "{outside}");
            let address = |place: &hnp_tests::process::Place| {
                place.command("ip").args(["-br", "addr", "show", "eth0"]).run().ok()
            };
            assert!(address(&pod).contains(&pod.addr4.to_string()));
            assert_eq!(address(&pod), address(pod.outside_cgroup()), "the same network namespace");
        }
    }
}

#[test]
fn bounded_capabilities_are_exactly_those_asked_for() {
    let topology = Topology::for_test();
    let status = topology
        .agent_place()
        .command("grep")
        .args(["-E", "Cap(Prm|Eff|Bnd)", "/proc/self/status"])
        .capabilities(hnp_tests::agent::CAPABILITIES)
        .run()
        .ok();
    let expected = format!("{:016x}", 1_u64 << 12 | 1 << 39);
    assert_eq!(status.matches(&expected).count(), 3, "{status}");
}

#[test]
fn nothing_is_left_of_a_world_even_when_its_programs_still_run() {
    let topology = Topology::for_test();
    let name = topology.name().to_owned();
    let pod = topology.pod();
    let sleeper = pod.command("sleep").arg("1000").spawn();
    let pid = sleeper.pid();
    assert!(!topology::leftovers(&name).is_empty(), "the control: there is something to remove");
    // The world goes first here, with the program still in it.
    topology::remove(&name).expect("all of it can be removed");
    assert_eq!(topology::leftovers(&name), Vec::<String>::new());
    eventually(Duration::from_secs(5), "the program was killed with its cgroup", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
}

#[test]
fn the_load_client_tells_good_answers_from_foreign_ones() {
    let scene = Scene::for_test();
    let (one, two) =
        (Setup::new("one", 80).on(&[MANAGER4.into()]), Setup::new("two", 80).on(&[OTHER4.into()]));
    let (one, two) = (Manager::start(&scene, one), Manager::start(&scene, two));
    let pod = scene.pod();
    let targets =
        vec![Target::new((MANAGER4, 80), "one.test", "one"), Target::new((OTHER4, 80), "two.test", "two")];
    let short = Job::Short { targets: targets.clone(), total: 200, concurrency: 20 };
    client::run(&pod, &short).assert_all_ok(200);
    assert_eq!((one.request_count(), two.request_count()), (100, 100));
    client::run(&pod, &Job::Held { targets: targets.clone(), connections: 50 }).assert_all_ok(50);
    let target = targets[0].clone();
    let steady = Job::Steady { target: target.clone(), rate: 100, connections: 4, seconds: 0.5 };
    client::run(&pod, &steady).assert_all_ok(50);

    // The control: an answer by another manager, and one with another token, are found.
    let astray = Target { expect: "two".to_owned(), ..target.clone() };
    assert_eq!(client::run(&pod, &Job::Held { targets: vec![astray], connections: 3 }).misrouted, 3);
    let shared = target.path("/fault/unsolicited");
    let mixed = Job::Steady { target: shared, rate: 50, connections: 1, seconds: 0.2 };
    assert!(client::run(&pod, &mixed).failed > 0);
}

#[test]
fn bulk_bodies_are_hashed_on_both_sides() {
    let scene = Scene::for_test();
    let manager = Manager::start(&scene, Setup::new("plain", 80));
    let pod = scene.pod();
    let target = Target::new((MANAGER6, 80), MANAGER_NAME, "plain");
    for chunked in [false, true] {
        let target = target.clone().path("/sink");
        let report = client::run(&pod, &Job::Upload { target, bytes: 3_000_001, seed: 7, chunked });
        assert_eq!(report.sha256, hnp_tests::pattern::sha256_of(7, 3_000_001));
        let seen = manager.last_request().expect("one came");
        assert_eq!(seen.body_sha256.as_deref(), Some(&*report.sha256));
    }
    for query in ["seed=9", "seed=9&chunked"] {
        let target = target.clone().path(&format!("/bytes/2000001?{query}"));
        let report = client::run(&pod, &Job::Download { target });
        assert_eq!((report.bytes, report.sha256), (2_000_001, hnp_tests::pattern::sha256_of(9, 2_000_001)));
    }
}

#[test]
fn raw_bytes_arrive_as_sent_and_ends_are_told_apart() {
    let scene = Scene::for_test();
    let manager = Manager::start(&scene, Setup::new("plain", 80));
    let _silent = Manager::start(&scene, Setup::new("silent", 81).service(Service::Silent));
    let pod = scene.pod();
    let odd =
        "GET /a%2Fb/../c?x=%00&y=\u{e9} HTTP/1.1\r\nHoSt: h\r\nX-Token: raw\r\nConnection: close\r\n\r\n";
    let answers = client::raw(&pod, (MANAGER4, 80), vec![RawCase::new(odd)]);
    assert_eq!((answers[0].status(), &answers[0].end), (Some(200), &End::Eof));
    assert_eq!(manager.request("raw").head.raw, odd.as_bytes());

    let quiet = RawCase { quiet_ms: 100, ..RawCase::new("hello?") };
    assert_eq!(client::raw(&pod, (MANAGER4, 81), vec![quiet.clone()])[0].end, End::Quiet);
    let refused = client::raw(&pod, (MANAGER4, 82), vec![quiet.clone()]).remove(0).end;
    assert!(matches!(&refused, End::NotConnected(why) if why.contains("refused")), "{refused:?}");
    let lost = client::raw(&pod, (BLACK_HOLE4, 80), vec![quiet]).remove(0).end;
    assert_eq!(lost, End::NotConnected("timed out".to_owned()), "swallowed, not refused");
}

#[test]
fn the_name_server_answers_changes_its_mind_and_fails_on_demand() {
    use hnp_tests::dns::Answer;
    let topology = Topology::for_test();
    let dns = Dns::start(&topology);
    let pod = topology.pod();
    let look_up = || pod.command("getent").args(["ahostsv4", "moving.hnp.test"]).run();
    assert!(!look_up().status.success(), "not set yet");
    dns.set_addresses("moving.hnp.test", &[MANAGER4.into()], 30);
    assert!(look_up().ok().contains("198.18.0.9"));
    dns.set_addresses("moving.hnp.test", &[OTHER4.into(), MANAGER6.into()], 30);
    assert!(look_up().ok().contains("198.18.0.10"));
    for failure in [Answer::Failure, Answer::Silence] {
        dns.set("moving.hnp.test", failure);
        assert!(!look_up().status.success());
    }
    assert!(dns.queries("moving.hnp.test") >= 5);
}

#[test]
fn the_vendors_recipe_gives_version_one_and_nginx_accepts_it() {
    let scene = Scene::for_test();
    let dir = scene.path("vendor");
    std::fs::create_dir(&dir).expect("the world's directory is ours");
    let files = pki::vendor_recipe(&dir);
    let nginx = Nginx::start(&scene, 443, &scene.server, &dir.join("ca.crt"));
    let place = scene.pod();
    let url = format!("https://{MANAGER_NAME}/hello");
    let curl = |extra: &[&std::ffi::OsStr]| {
        place.command("curl").args(["-s", &url, "--cacert"]).arg(&scene.roots).args(extra).run().ok()
    };
    let with = curl(&["--cert".as_ref(), files.certificate.as_ref(), "--key".as_ref(), files.key.as_ref()]);
    assert!(with.starts_with("SUCCESS|") && with.contains("CN=Client"), "{with}");
    assert!(curl(&[]).contains("400 No required SSL certificate was sent"));
    nginx.requests(2);
    let version = tools::run(&dir, "openssl", &["x509", "-in", "client.crt", "-noout", "-text"]);
    assert!(version.contains("Version: 1 "), "{version}");
}

#[test]
fn openssl_refuses_a_clients_certificate_after_the_handshake_of_tls_13() {
    let scene = Scene::for_test();
    let peer = OpensslPeer::start(&scene, 443, Version::Tls13, &scene.server, &scene.clients);
    let foreign = pki::Ca::new("another CA").client().write(scene.dir(), "foreign");
    let pod = scene.pod();
    let curl = |files: &pki::Files| {
        let url = format!("https://{MANAGER_NAME}/hello");
        let command = pod.command("curl").args(["-sv", "-4", &url, "--cacert"]).arg(&scene.roots);
        command.arg("--cert").arg(&files.certificate).arg("--key").arg(&files.key).run()
    };
    let refused = curl(&foreign);
    // Whether curl reads the alert, or a reset overtakes it, is a race; what the server did is not.
    assert!(!refused.status.success(), "{refused}");
    assert_eq!(curl(&scene.client).ok(), "ok\n");
    eventually(Duration::from_secs(5), "both connections are told", || peer.connections().len() == 2);
    let seen = peer.connections();
    assert_eq!(
        (seen[0]["bytes"].as_u64(), seen[1]["version"].as_str()),
        (Some(0), Some("TLSv1.3")),
        "{seen:?}"
    );
}

#[test]
fn getpeername_shows_the_dialled_address() {
    let scene = Scene::for_test();
    let _manager = Manager::start(&scene, Setup::new("plain", 80));
    let addr = SocketAddr::from((MANAGER4, 80));
    let report = client::run(&scene.pod(), &Job::Peer { addr });
    assert_eq!(report.peer, Some(addr));
}
