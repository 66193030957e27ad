//! Only what a pod dials through capture is served. Whoever reaches the agent's listener otherwise
//! is refused, whatever the enforcement, and nobody under kubepods takes the agent's port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hnp_tests::agent::{Agent, CAPABILITIES};
use hnp_tests::client::{self, End, Job, RawAnswer, RawCase, Target};
use hnp_tests::kernel::{self, Feature};
use hnp_tests::poll::until;
use hnp_tests::process::Place;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, OTHER4, Pod};

/// The agent's port.
const PORT: u16 = 15001;

#[test]
fn a_neighbour_on_the_network_is_refused() {
    let (scene, agent, pod) = started();
    let vip = vip_of_manager(&scene, &pod);
    let neighbour = scene.manager_side();
    // A node forwards, so a neighbour that adds a route reaches the range: measured, not assumed.
    neighbour.netns().ip("route add 169.254.77.0/24 via 198.18.0.1").expect("a route");
    assert_refused(&dial(&neighbour, (vip, PORT)));
    assert_eq!(agent.access_line_with("no_flow")["route"], serde_json::Value::Null);
    assert_still_serves(&pod);
}

#[test]
fn a_process_on_the_node_outside_kubepods_is_refused() {
    let (scene, agent, pod) = started();
    let vip = vip_of_manager(&scene, &pod);
    assert_refused(&dial(&scene.node(), (vip, PORT)));
    assert_refused(&dial(pod.outside_cgroup(), (vip, PORT)));
    agent.access_line_with("no_flow");
    agent.wait_for_count("hnp_connections", &[("reason", "no_flow")], 0.0, 2.0);
    assert_still_serves(&pod);
}

#[test]
fn the_nodes_own_address_is_refused() {
    let (_scene, agent, pod) = started();
    assert_refused(&dial(&pod, (Ipv4Addr::new(10, 244, 1, 1), PORT)));
    agent.access_line_with("not_vip");
    assert_still_serves(&pod);
}

#[test]
fn a_pod_that_dials_the_vip_itself_is_served_and_marked() {
    let (scene, agent, pod) = started();
    let vip = vip_of_manager(&scene, &pod);
    let direct = || agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "direct")]);
    assert_eq!(direct(), 0.0);
    let answer = dial(&pod, (vip, PORT));
    assert_eq!(answer.status(), Some(200), "{}", answer.text());
    assert_eq!(direct(), 1.0);
    let line = agent.access_line("of the pod", |line| line["path"] == "/raw");
    assert_eq!((&line["pod_uid"], &line["reason"]), (&pod.uid.as_str().into(), &"ok".into()), "{line}");
}

#[test]
fn another_port_of_a_vip_is_refused_at_connect() {
    let (scene, agent, pod) = started();
    let vip = vip_of_manager(&scene, &pod);
    let answer = dial(&pod, (vip, 22));
    // Before Linux 5.18, too, where it is sent to a closed port.
    assert!(matches!(&answer.end, End::NotConnected(why) if why.contains("refused")), "{:?}", answer.end);
    assert_eq!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "vip_port")]), 1.0);
    assert_still_serves(&pod);
}

#[test]
fn the_agents_port_is_kept_from_others_under_kubepods() {
    let (scene, agent, pod) = started();
    // A pod with hostNetwork shares the node's netns; SO_REUSEPORT would give it a share of ours.
    let thief = scene.host_network_pod();
    let bind = |place: &Place, port: u16| {
        client::run(place, &Job::Bind { addr: SocketAddr::from(([0, 0, 0, 0], port)) })
    };
    let refused = bind(&thief, PORT);
    assert_eq!(refused.failed, 1, "{refused:?}");
    let words = kernel::refusal("in use");
    assert!(refused.failures[0].contains(words), "an errno that programs know: {refused:?}");
    assert_eq!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "bind_refused")]), 1.0);
    // The controls: another port there, and the same port outside kubepods.
    assert_eq!(bind(&thief, PORT + 1).ok, 1);
    let own = bind(&pod, PORT);
    assert_eq!(own.ok == 1, kernel::has(Feature::NetnsCookie), "a pod with a namespace of its own: {own:?}");
    assert_eq!(bind(&scene.node(), PORT).ok, 1, "the operator's own processes are not hnp's business");
}

#[test]
fn datagrams_to_a_destination_are_refused_and_others_are_not() {
    let (_scene, agent, pod) = started();
    let send =
        |place: &Place, addr: (Ipv4Addr, u16)| client::run(place, &Job::Datagram { addr: addr.into() });
    let refused = send(&pod, (MANAGER4, 80));
    assert_eq!(refused.failed, 1, "{refused:?}");
    assert!(refused.failures[0].contains(kernel::refusal("refused")), "{refused:?}");
    assert_eq!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "udp_refused")]), 1.0);
    assert_eq!(send(&pod, (MANAGER4, 81)).ok, 1, "another port");
    assert_eq!(send(&pod, (OTHER4, 80)).ok, 1, "another address");
    assert_eq!(send(pod.outside_cgroup(), (MANAGER4, 80)).ok, 1, "outside the pod");
}

#[test]
fn an_agent_inside_kubepods_does_not_capture_itself() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let config = scene.config().route(scene.route());
    let mut agent = Agent::spawn(scene.host_network_pod(), &config, CAPABILITIES);
    agent.wait_until_ready();
    let pod = scene.pod();
    assert_still_serves(&pod);
    assert_eq!(manager.request_count(), 5);
    assert!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "exempt")]) >= 1.0);
    // The control: a pod with hostNetwork in the same netns, also under kubepods, is captured.
    assert_still_serves(&scene.host_network_pod());
    assert!(manager.requests().iter().all(|request| request.client_serial() == scene.client_serial));
}

#[test]
fn a_socket_that_is_used_again_goes_where_it_says_now() {
    let (scene, agent, pod) = started();
    let _other = hnp_tests::manager::Manager::start(&scene, hnp_tests::manager::Setup::new("other", 8080));
    // AF_UNSPEC ends a connection and keeps the socket: what the first connect() left must not stick.
    const SCRIPT: &str = "import socket, sys, ctypes\n\
        s = socket.socket()\n\
        s.connect(('198.18.0.9', 80))\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        assert libc.connect(s.fileno(), (ctypes.c_char * 16)(), 16) == 0, ctypes.get_errno()\n\
        s.connect(('198.18.0.9', 8080))\n\
        print(s.getpeername())\n\
        s.sendall(b'GET /again HTTP/1.1\\r\\nhost: other\\r\\nconnection: close\\r\\n\\r\\n')\n\
        print(s.recv(4096).decode())";
    let said = pod.command(hnp_tests::tools::python()).args(["-c", SCRIPT]).run().ok();
    assert!(said.starts_with("('198.18.0.9', 8080)"), "{said}");
    assert!(said.contains("x-manager: other"), "{said}");
    let empty = || (agent.metrics().sum("hnp_flows", &[]) == 0.0).then_some(());
    until(Duration::from_secs(5), "the first connection's flow is gone", empty);
}

#[test]
fn a_pod_has_no_more_connections_than_it_may() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let mut config = scene.config().route(scene.route());
    config.capture = "connections_per_pod: 20".to_owned();
    let agent = Agent::start(&scene, &config);
    let (greedy, modest) = (scene.pod(), scene.pod());
    let held = |pod: &Pod, connections| {
        let targets = vec![Target::new((MANAGER4, 80), MANAGER_NAME, "manager")];
        client::run(pod, &Job::Held { targets, connections })
    };
    let report = held(&greedy, 50);
    assert_eq!((report.ok, report.failed), (20, 30), "{:?}", report.failures);
    assert!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "flow_limit")]) >= 30.0);
    // The controls: another pod is not affected, and what was closed may be opened again.
    held(&modest, 20).assert_all_ok(20);
    held(&greedy, 20).assert_all_ok(20);
}

fn started() -> (Running, Agent, Pod) {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    (Running { scene, _manager: manager }, agent, pod)
}

/// The scene and its manager, for as long as the test lasts.
struct Running {
    _manager: hnp_tests::manager::Manager,
    scene: Scene,
}

impl std::ops::Deref for Running {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

fn dial(place: &Place, addr: impl Into<SocketAddr>) -> RawAnswer {
    let request = format!("GET /raw HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
    client::raw(place, addr, vec![RawCase::new(request)]).remove(0)
}

#[track_caller]
fn assert_refused(answer: &RawAnswer) {
    assert_eq!(answer.text(), "", "not one byte for who did not come through capture");
    assert_ne!(answer.end, End::Quiet, "refused, not left waiting");
}

#[track_caller]
fn assert_still_serves(place: &Place) {
    let targets = vec![Target::new((MANAGER4, 80), MANAGER_NAME, "manager")];
    client::run(place, &Job::Short { targets, total: 5, concurrency: 1 }).assert_all_ok(5);
}

/// The VIP that stands for the manager's IPv4 address: the local address of a connection that the
/// node sees while the pod, which cannot know it, holds it open.
fn vip_of_manager(scene: &Scene, pod: &Pod) -> IpAddr {
    let held = RawCase { quiet_ms: 60_000, ..RawCase::new("") };
    let _connection = client::load(pod, &Job::Raw { addr: (MANAGER4, 80).into(), cases: vec![held] }).spawn();
    let look = || {
        let sockets = scene.node().command("ss").args(["-Htn", "sport", "=", ":15001"]).run().ok();
        let local = sockets.lines().find_map(|line| line.split_whitespace().nth(3))?.to_owned();
        let (addr, _) = local.rsplit_once(':')?;
        let addr: IpAddr = addr.trim_matches(['[', ']']).parse().ok()?;
        Some(addr.to_canonical())
    };
    until(Duration::from_secs(5), "the pod's connection on the node", look).0
}
