//! What passes no socket hook does not get to a strict destination either: the guard on pods' veths
//! resets or drops it, with the agent alive or dead, and touches nothing else.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::client::{self, Job, Target};
use hnp_tests::manager::{Manager, Setup};
use hnp_tests::poll::{eventually, patience};
use hnp_tests::process::{Cmd, Place};
use hnp_tests::scene::{DESTINATIONS, Scene, UPSTREAM};
use hnp_tests::tools::python;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, MANAGER6, OTHER4, OTHER6, Pod};

/// Time enough for any end.
const END: Duration = Duration::from_secs(20);
/// What a client must not have to wait for, ten times over.
const AT_ONCE: u64 = 1000;

const CRAFT: &str = include_str!("../clients/craft.py");
const FOREIGN: &str = include_str!("../clients/foreign.py");
const LENT: &str = include_str!("../clients/lent.py");
const OLDER: &str = include_str!("../clients/older.py");

const MANAGERS: [IpAddr; 2] = [IpAddr::V4(MANAGER4), IpAddr::V6(MANAGER6)];

#[test]
fn a_flow_that_is_older_than_the_agent_is_reset_and_connects_again_into_capture() {
    for address in MANAGERS {
        let scene = Scene::for_test();
        let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
        let said = with_an_older_flow(&scene, &pod, address, || scene.agent());
        let millis = said[2].strip_prefix("resting reset ").unwrap_or_else(|| panic!("{said:?}"));
        assert!(millis.parse::<u64>().expect("a number") < AT_ONCE, "{said:?}");
        eprintln!("{address}: reset after {millis} ms");
        assert_eq!(said[3..], ["HTTP/1.1 200 OK", "busy reset"], "{said:?}");
        assert!(manager.request("older").tls.is_none(), "before the agent it went in cleartext");
        assert_eq!(manager.request("again").client_serial(), scene.client_serial);
        assert!(manager.requests().iter().all(|request| !request.target.contains("late")));
    }
}

#[test]
fn a_loose_routes_older_flows_and_lent_sockets_are_untouched() {
    let scene = Scene::for_test();
    let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    let mut agent = None;
    let said = with_an_older_flow(&scene, &pod, MANAGER4.into(), || {
        let started = scene.agent_with(Route::loose("manager", DESTINATIONS, UPSTREAM));
        assert_eq!(interfaces(&started), 0.0);
        agent = Some(started);
    });
    assert_eq!(said[2..], ["resting answered", "busy answered"]);
    assert!(manager.request("late").tls.is_none());
    assert_eq!(dial(pod.outside_cgroup(), MANAGER4), "connected");
    let _ = scene.pod();
    let agent = agent.expect("it was started");
    assert_eq!((interfaces(&agent), counted(&agent, "guard_reset")), (0.0, 0.0));
    assert!(!scene.bpffs().join("guard").exists(), "nothing is attached where no strict route wants it");
}

#[test]
fn a_lent_socket_is_refused_at_once() {
    for address in MANAGERS {
        let scene = Scene::for_test();
        let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
        let socket = |name: &str| scene.path(name).display().to_string();
        let borrow = |at: &str| {
            let _lender = lent(pod.outside_cgroup(), address).args(["lend", at]).spawn();
            lent(&pod, address).args(["borrow", at]).run().ok().trim().to_owned()
        };
        assert_eq!(borrow(&socket("before")), "connected", "the control");
        let agent = scene.agent();
        refused_at_once(&borrow(&socket("after")));
        assert!(counted(&agent, "guard_reset") >= 1.0);
        assert_eq!(manager.requests().iter().filter(|request| request.target.contains("lent")).count(), 1);
        assert_captured(&pod, address);
    }
}

#[test]
fn a_socket_made_before_its_process_came_into_the_pod_is_refused_at_once() {
    for address in MANAGERS {
        let scene = Scene::for_test();
        let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
        let procs = pod.cgroup().join("cgroup.procs");
        let move_in = || {
            let moving = lent(pod.outside_cgroup(), address).arg("move").arg(&procs);
            moving.run().ok().trim().to_owned()
        };
        assert_eq!(move_in(), "connected", "the control");
        let _agent = scene.agent();
        refused_at_once(&move_in());
        assert_eq!(manager.requests().iter().filter(|request| request.target.contains("lent")).count(), 1);
    }
}

#[test]
fn segments_made_by_hand_are_refused_or_dropped() {
    let scene = Scene::for_test();
    let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    let ways = [("packet", "refused"), ("raw", "refused"), ("fragments", "nothing"), ("options", "nothing")];
    for address in MANAGERS {
        for (how, _) in ways {
            assert_eq!(craft(&pod, how, address, 80), "syn-ack", "the control: {how} to {address}");
        }
    }
    for address in MANAGERS {
        assert_eq!(craft(&pod, "tagged", address, 80), "syn-ack", "the control: tags, to {address}");
    }

    let agent = scene.agent();
    for address in MANAGERS {
        for (how, then) in ways {
            assert_eq!(craft(&pod, how, address, 80), then, "{how} to {address}");
        }
    }
    for address in MANAGERS {
        assert_eq!(craft(&pod, "tagged", address, 80), "nothing", "behind priority tags to {address}");
    }
    assert!(counted(&agent, "guard_reset") >= 4.0 && counted(&agent, "guard_dropped") >= 6.0);
    // What is not a destination's is not touched: another address, in every form.
    for (how, _) in ways {
        let to = if how == "options" { OTHER6.into() } else { IpAddr::from(OTHER4) };
        assert_eq!(craft(&pod, how, to, 80), "syn-ack", "{how} to {to}");
    }
    assert_captured(&pod, MANAGER4.into());
    assert!(manager.requests().iter().all(|request| request.tls.is_some()), "all came through capture");
}

#[test]
fn a_source_routed_packet_does_not_get_around_its_header() {
    let scene = Scene::for_test();
    let (_manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    // Nodes do not forward these unless told to.
    for place in [scene.node_netns(), scene.manager_netns()] {
        for which in ["all", "default", if place.name().ends_with("node") { "pod1" } else { "eth0" }] {
            place.sysctl(&format!("net/ipv4/conf/{which}/accept_source_route"), "1").expect("a sysctl");
        }
    }
    let before = craft(&pod, "source-route", MANAGER4.into(), 80);
    assert_eq!(before, "syn-ack", "the control");
    let _agent = scene.agent();
    assert_eq!(craft(&pod, "source-route", MANAGER4.into(), 80), "nothing");
}

#[test]
fn datagrams_to_a_strict_destination_are_dropped() {
    let scene = Scene::for_test();
    const ECHO: &str = "import socket, sys\n\
        s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.bind((sys.argv[1], int(sys.argv[2])))\n\
        while True:\n data, peer = s.recvfrom(2048); s.sendto(data, peer)";
    let echo = |address: IpAddr, port: &str| {
        scene.manager_side().command(python()).args(["-c", ECHO, &address.to_string(), port]).spawn()
    };
    let _echoes = MANAGERS.map(|address| [echo(address, "80"), echo(address, "90")]);
    let pod = scene.pod();
    let ask = |address: IpAddr, port| craft(&pod, "datagram", address, port);
    for address in MANAGERS {
        eventually(END, "the echo answers", || ask(address, 80) == "data" && ask(address, 90) == "data");
    }
    let _agent = scene.agent();
    for address in MANAGERS {
        assert_eq!(ask(address, 80), "nothing", "{address}");
        assert_eq!(ask(address, 90), "data", "{address}, another port");
    }
}

#[test]
fn a_pod_that_is_born_later_is_guarded_and_one_that_goes_is_forgotten() {
    let scene = Scene::for_test();
    let _manager = scene.loose_manager("manager", 80);
    let agent = scene.agent();
    assert_eq!(interfaces(&agent), 0.0, "the cable to the manager is an uplink");
    let (first, second) = (scene.pod(), scene.pod());
    for pod in [&first, &second] {
        wait_for(&agent, 2.0);
        refused_at_once(&dial(pod.outside_cgroup(), MANAGER4));
        assert_captured(pod, MANAGER4.into());
    }
    scene.node_netns().ip("link del pod1").expect("deleted");
    wait_for(&agent, 1.0);
    assert_eq!(pins(&scene).len(), 1, "{:?}", pins(&scene));
    refused_at_once(&dial(second.outside_cgroup(), MANAGER4));
    // The control: switched off, it attaches to nothing and lets them pass.
    assert!(agent.stop(END).status.success());
    let mut off = scene.config().route(scene.route());
    off.capture = "guard: off".to_owned();
    let _agent = Agent::start(&scene, &off);
    assert_eq!(dial(second.outside_cgroup(), MANAGER4), "connected");
    assert_captured(&second, MANAGER4.into());
}

#[test]
fn a_neighbour_whose_traffic_the_node_forwards_is_untouched() {
    // Two pods; what a strict route keeps from the first is open to a neighbour beyond the uplink.
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let (pod, server) = (scene.pod(), scene.pod());
    const SERVE: &str = "import http.server as h\n\
        class Any(h.BaseHTTPRequestHandler):\n\
        \x20def do_GET(self): self.send_response(200); self.end_headers()\n\
        h.HTTPServer(('', 8080), Any).serve_forever()";
    let _server = server.command(python()).args(["-c", SERVE]).spawn();
    let destination = format!("{}:8080", server.addr4);
    let dial = |place: &Place| {
        let dialling = place.command(python()).args(["-c", LENT, &server.addr4.to_string(), "8080", "here"]);
        dialling.run().ok().trim().to_owned()
    };
    let neighbour = scene.manager_side();
    eventually(END, "the server is up", || dial(&neighbour) == "connected");
    assert_eq!(dial(pod.outside_cgroup()), "connected", "the control");
    let agent = scene.agent_with(Route::strict("pod", &["198.18.0.9:80", &destination], UPSTREAM));
    refused_at_once(&dial(pod.outside_cgroup()));
    let before = counted(&agent, "guard_reset");
    for _ in 0..20 {
        assert_eq!(dial(&neighbour), "connected");
    }
    assert_eq!(counted(&agent, "guard_reset"), before);
}

#[test]
fn a_stream_past_the_guard_arrives_as_it_was_sent() {
    // What an emulated processor is spared of.
    let length = (256 << 20) / patience(Duration::from_secs(1)).as_secs();
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let other = Manager::start(&scene, Setup::new("other", 8080));
    let pod = scene.pod();
    let agent = scene.agent();
    // Past the guard in the one case by its address, in the other by its port.
    for (seed, address) in [(1, OTHER4), (2, MANAGER4)] {
        let target = Target::new((address, 8080), "other", "other").path("/sink");
        let job = Job::Upload { target, bytes: length, seed, chunked: false };
        let report: client::Report = client::load(&pod, &job).deadline(Duration::from_secs(120)).run().json();
        assert_eq!(report.sha256, hnp_tests::pattern::sha256_of(seed, length));
        eprintln!("{address}: {:.0} MB/s", length as f64 / report.seconds / 1e6);
    }
    assert_eq!(other.requests().len(), 2);
    assert_eq!((interfaces(&agent), counted(&agent, "guard_reset")), (1.0, 0.0));
    assert_eq!(counted(&agent, "guard_dropped"), 0.0);
}

#[test]
fn it_holds_without_an_agent_and_through_the_next_ones_start() {
    let scene = Scene::for_test();
    let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    assert_eq!(dial(pod.outside_cgroup(), MANAGER4), "connected", "the control");
    let first = scene.agent();
    // From here on and until the clean stop, somebody tries all the while.
    let (stop, stop4) = (scene.path("stop"), scene.path("stop"));
    let trying = |address: IpAddr, stop: &Path| {
        lent(pod.outside_cgroup(), address).arg("always").arg(stop).deadline(END * 3).spawn()
    };
    let tries = [trying(MANAGER4.into(), &stop4), trying(MANAGER6.into(), &stop)];
    let held = pins(&scene);
    assert_eq!(held.len(), 1);
    first.kill();
    assert_eq!(pins(&scene), held, "it outlives the agent");
    refused_at_once(&dial(pod.outside_cgroup(), MANAGER4));
    assert_eq!(craft(&pod, "packet", MANAGER4.into(), 80), "refused");
    let second = scene.agent();
    eventually(END, "the next agent has it", || interfaces(&second) == 1.0);
    refused_at_once(&dial(pod.outside_cgroup(), MANAGER6));
    assert_eq!(pins(&scene), held, "taken over in place");
    assert_captured(&pod, MANAGER4.into());
    assert!(counted(&second, "guard_reset") >= 1.0, "the next agent counts it");
    File::create(&stop).expect("made");
    for trying in tries {
        let said = trying.wait(END).ok();
        eprintln!("tries all the while: {}", said.trim());
        assert!(said.starts_with("{'ECONNREFUSED': "), "{said}");
    }
    let lent = manager.requests().into_iter().filter(|request| request.target.contains("lent")).count();
    assert_eq!(lent, 1, "the control's");

    let ended = second.stop(END);
    assert!(ended.status.success(), "{ended}");
    assert_eq!(pins(&scene), held, "a stop leaves it, too");
    let cleaned = Agent::clean_up(&scene);
    assert!(cleaned.status.success(), "{cleaned}");
    assert!(!scene.bpffs().exists(), "nothing is left");
    let qdiscs = scene.node().command("tc").args(["qdisc", "show", "dev", "pod1"]).run().ok();
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    assert_eq!(dial(pod.outside_cgroup(), MANAGER4), "connected");
}

#[test]
fn somebody_elses_classifier_stays_and_is_asked_after_the_guard() {
    let scene = Scene::for_test();
    let (_manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    let node = scene.node();
    let tc = |arguments: &str| node.command("tc").args(arguments.split(' ')).run();
    let pin = scene.path("bpffs/foreign");
    node.command(python()).args(["-c", FOREIGN]).arg(&pin).run().ok();
    tc("qdisc add dev pod1 clsact").ok();
    tc(&format!("filter add dev pod1 ingress prio 1 protocol all bpf da object-pinned {}", pin.display()))
        .ok();
    let foreign = || tc("filter show dev pod1 ingress").ok().contains("foreign");
    assert!(foreign());
    // It drops all IPv4. What the guard refuses it does not see; what the guard lets on, it does.
    let ends_in = |address: IpAddr, port: &str, how: &str| {
        let arguments = ["-c", LENT, &address.to_string(), port, "here"];
        let dialling = pod.outside_cgroup().command(python()).args(arguments).env("PATIENCE", "2");
        let said = dialling.run().ok();
        assert!(said.starts_with(how), "{address} port {port}: {said}");
    };
    ends_in(MANAGER4.into(), "80", "ETIMEDOUT");
    let agent = scene.agent();
    wait_for(&agent, 1.0);
    refused_at_once(&dial(pod.outside_cgroup(), MANAGER4));
    refused_at_once(&dial(pod.outside_cgroup(), MANAGER6));
    // Not the guard's business, and of the two the other's or nobody's.
    ends_in(MANAGER4.into(), "81", "ETIMEDOUT");
    ends_in(MANAGER6.into(), "81", "ECONNREFUSED");
    assert!(agent.stop(END).status.success());
    assert!(Agent::clean_up(&scene).status.success());
    assert!(foreign(), "it is there when the guard is gone");
    ends_in(MANAGER4.into(), "80", "ETIMEDOUT");
    assert_eq!(dial(pod.outside_cgroup(), MANAGER6), "connected");
}

/// Runs the client with old connections, starts an agent under it, and returns its lines.
fn with_an_older_flow<T>(
    scene: &Scene,
    pod: &Pod,
    address: IpAddr,
    start: impl FnOnce() -> T,
) -> Vec<String> {
    let go = scene.path("go");
    let client = pod
        .command(python())
        .args(["-c", OLDER, &address.to_string(), "80"])
        .arg(&go)
        .deadline(END * 3)
        .spawn();
    eventually(END, "the client's connections are open", || client.stdout().contains("open"));
    let _started = start();
    File::create(&go).expect("made");
    client.wait(END * 3).ok().lines().map(str::to_owned).collect()
}

fn lent(place: &Place, address: IpAddr) -> Cmd {
    // Many a second, and a slow processor is left to others as well.
    let pause = patience(Duration::from_millis(2)).as_secs_f64().to_string();
    place.command(python()).args(["-c", LENT, &address.to_string(), "80"]).env("PAUSE", &pause)
}

/// Dials the manager from a place: beside a pod's cgroup, that is what a lent socket does.
fn dial(place: &Place, address: impl Into<IpAddr>) -> String {
    lent(place, address.into()).arg("here").run().ok().trim().to_owned()
}

fn craft(pod: &Pod, how: &str, address: IpAddr, port: u16) -> String {
    let crafting = pod.command(python()).args(["-c", CRAFT, how, &address.to_string(), &port.to_string()]);
    crafting.run().ok().trim().to_owned()
}

#[track_caller]
fn refused_at_once(said: &str) {
    let millis = said.strip_prefix("ECONNREFUSED ").and_then(|millis| millis.parse::<u64>().ok());
    assert!(millis.is_some_and(|millis| millis < AT_ONCE), "{said}");
}

#[track_caller]
fn assert_captured(pod: &Pod, address: IpAddr) {
    let targets = vec![Target::new((address, 80), MANAGER_NAME, "manager")];
    client::run(pod, &Job::Short { targets, total: 3, concurrency: 1 }).assert_all_ok(3);
}

fn interfaces(agent: &Agent) -> f64 {
    assert_eq!(agent.metrics().sum("hnp_guard_failing", &[]), 0.0);
    agent.metrics().sum("hnp_guard_interfaces", &[])
}

fn wait_for(agent: &Agent, count: f64) {
    eventually(END, &format!("{count} interfaces are guarded"), || interfaces(agent) == count);
}

fn counted(agent: &Agent, verdict: &str) -> f64 {
    agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", verdict)])
}

fn pins(scene: &Scene) -> Vec<String> {
    let entries = std::fs::read_dir(scene.bpffs().join("guard")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}
