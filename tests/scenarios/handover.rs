//! An upgrade hands over the listeners: no connection attempt fails, no byte is lost. A successor that is
//! wrong, hangs or dies changes nothing, and who takes over does so explicitly.

use std::path::Path;
use std::time::{Duration, Instant};

use hnp_tests::agent::{self, Agent, CAPABILITIES, Config};
use hnp_tests::client::{self, Job, RawCase, Report, Target};
use hnp_tests::manager::Manager;
use hnp_tests::pattern::{BLOCK, sha256_of};
use hnp_tests::poll::{eventually, patience, until};
use hnp_tests::process::Running;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, MANAGER6, Pod};
use socket2::{Domain, SockAddr, Socket, Type};

/// Time enough for any end, and for a successor that waits for a name in vain.
const END: Duration = Duration::from_secs(60);
/// More connections than a load gets to before it is told to end.
const ENDLESS: u64 = 1 << 40;
/// How many long transfers run across a take-over.
const TRANSFERS: u64 = 20;

#[test]
fn no_connection_fails_and_no_byte_is_lost_with_any_number_of_workers() {
    let node = Node::new(|config| config.drain = "60s".into());
    let mut agent = node.start();
    let mut transfers = node.transfers();
    let load = node.load(ENDLESS);
    // Alternating between an agent's own container below kubepods and one beside it: the exemption of
    // the one before has to last while it drains.
    let mut former = Vec::new();
    for (workers, place) in [
        (4, node.scene.host_network_pod()),
        (1, node.scene.agent_place()),
        (3, node.scene.host_network_pod()),
    ] {
        node.until_served(200);
        let mut config = node.config.clone();
        config.workers = workers;
        let next = Agent::take_over(place, &config);
        says(&agent, "\"handed over to");
        let took_over = says(&next, "took over");
        eprintln!("{workers} workers: {took_over}");
        if former.is_empty() {
            assert!(transfers.iter_mut().any(|(_, transfer)| transfer.is_alive()), "across a take-over");
        }
        former.push(std::mem::replace(&mut agent, next));
        agent.wait_until_ready();
    }
    node.until_served(200);
    assert!(agent.metrics().sum("hnp_take_over_pause_seconds", &[]) > 0.0);
    let report = node.end(load);
    assert!(report.ok > 600, "{report:?}");
    assert_none_failed(&report);
    eprintln!("{} connections, the slowest {:.0} ms", report.ok, report.slowest_ms);
    node.assert_transfers(transfers);
    for mut agent in former {
        let ended = agent.wait(END);
        assert!(ended.status.success(), "{ended}");
        assert!(ended.stderr.contains("no connection was cut"), "{ended}");
    }
    says(&agent, "the agent before this one has ended");
    node.assert_serves();
    node.assert_ends_clean(agent);
}

#[test]
fn the_control_a_restart_under_the_same_load_loses_connections() {
    let node = Node::new(|_| {});
    let first = node.start();
    let load = node.load(ENDLESS);
    node.until_served(200);
    first.kill();
    let second = node.start();
    node.until_served(200);
    let report = node.end(load);
    assert!(report.failed > 0, "{report:?}");
    node.assert_ends_clean(second);
}

#[test]
fn who_does_not_ask_is_refused_and_told_who_runs() {
    let node = Node::new(|_| {});
    // With nobody there it is an ordinary start.
    let mut first = Agent::take_over(node.scene.host_network_pod(), &node.config);
    first.wait_until_ready();
    let mut second = Agent::take_over(node.scene.host_network_pod(), &node.config);
    says(&second, "took over");
    assert!(first.wait(END).status.success());
    second.wait_until_ready();
    // The lock is the one that the first took; the second is named all the same.
    let third = Agent::spawn(node.scene.host_network_pod(), &node.config, CAPABILITIES).wait(END);
    assert!(!third.status.success(), "{third}");
    for word in ["another agent is running", &format!("process {}", second.pid()), "--take-over"] {
        assert!(third.stderr.contains(word), "{word}: {third}");
    }
    node.assert_serves();
    // A second agent that dies leaves what any dead agent leaves.
    second.kill();
    let fourth = node.start();
    node.assert_serves();
    node.assert_ends_clean(fourth);
}

#[test]
fn a_successor_that_would_do_worse_is_refused() {
    let node = Node::new(|_| {});
    let first = node.start();
    let load = node.load(ENDLESS);
    node.until_served(50);
    let kept = agent::remains(&node.scene);
    let other = node.scene.servers.client().write(node.scene.dir(), "other");
    let mixed = hnp_tests::pki::Files { key: other.key, ..node.scene.client.clone() };
    let scene = &node.scene;
    let mut broken =
        Config::new(scene).identity(IDENTITY, &mixed).trust(TRUST, &scene.roots).route(scene.route());
    broken.drain.clone_from(&node.config.drain);
    let mut port = node.config.clone();
    port.capture = "port: 15002".into();
    let mut vips = node.config.clone();
    vips.capture = "vips4: 169.254.76.0/24".into();
    let mut elsewhere = node.config.clone();
    elsewhere.run_dir = scene.path("elsewhere");
    for (config, words) in [
        (&broken, "identity manager-client"),
        (&port, "`capture.port` 15001, this one 15002"),
        (&vips, "`capture.vips4` 169.254.77.0/24, this one 169.254.76.0/24"),
        (&elsewhere, "is `run_dir` the same directory"),
    ] {
        let ended = Agent::take_over(scene.agent_place(), config).wait(END);
        assert!(!ended.status.success() && ended.stderr.contains(words), "{words}: {ended}");
        assert_eq!(agent::remains(scene), kept);
    }
    assert!(!first.log().contains("accepts again"), "it was not even paused:\n{}", first.log());
    first.wait_for_count("hnp_handovers_failed", &[], 0.0, 3.0);
    node.until_served(50);
    let report = node.end(load);
    assert_eq!(report.failed, 0, "{report:?}");
    // The control: with nothing wrong it works.
    node.take_over_from(first);
}

#[test]
fn a_successor_that_dies_while_it_prepares_changes_nothing() {
    let node = Node::new(|_| {});
    let first = node.start();
    let load = node.load(ENDLESS);
    node.until_served(50);
    let kept = agent::remains(&node.scene);
    let waiting = Agent::take_over(node.scene.agent_place(), &node.config_that_waits());
    says(&waiting, "preparing to take over");
    says(&first, "a successor asks to take over");
    waiting.kill();
    says(&first, "the take-over did not come about");
    assert_eq!(agent::remains(&node.scene), kept);
    node.until_served(50);
    let report = node.end(load);
    assert_eq!(report.failed, 0, "{report:?}");
    node.take_over_from(first);
}

#[test]
fn a_successor_that_fails_after_the_pause_costs_only_the_pause() {
    let node = Node::new(|_| {});
    let first = node.start();
    let load = node.load(ENDLESS);
    node.until_served(50);
    // The last step of attaching fails: something is in the way where the running agent's pins go.
    let in_the_way = node.scene.bpffs().join("links-old");
    std::fs::create_dir(&in_the_way).expect("made");
    let tmpfs = Some("tmpfs");
    nix::mount::mount(tmpfs, &in_the_way, tmpfs, nix::mount::MsFlags::empty(), None::<&str>)
        .expect("mounted");
    let ended = Agent::take_over(node.scene.host_network_pod(), &node.config).wait(END);
    nix::mount::umount2(&in_the_way, nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
    std::fs::remove_dir(&in_the_way).expect("ours");
    assert!(!ended.status.success() && ended.stderr.contains("links-old"), "{ended}");
    says(&first, "this agent accepts again");
    node.until_served(50);
    let report = node.end(load);
    assert_eq!(report.failed, 0, "{report:?}");
    eprintln!("the slowest of {} connections took {:.0} ms", report.ok, report.slowest_ms);
    node.take_over_from(first);
}

#[test]
fn a_successor_that_hangs_or_dies_during_the_pause_does_not_hold_it() {
    let node = Node::new(|_| {});
    let first = node.start();
    let load = node.load(ENDLESS);
    node.until_served(50);
    // A successor of our own, which stops where a real one only passes.
    let dead = Successor::pauses(&node.scene.run_dir());
    let died = Instant::now();
    drop(dead);
    node.until_served(50);
    eprintln!("dead: 50 connections were served {:?} later", died.elapsed());

    let hung = Successor::pauses(&node.scene.run_dir());
    let refused = hung.recv();
    assert!(refused.contains("refused") && refused.contains("silent"), "{refused}");
    node.until_served(50);
    let report = node.end(load);
    assert_eq!(report.failed, 0, "{report:?}");
    // The control: it was indeed paused, for as long as is allowed.
    assert!(report.slowest_ms > 2000.0, "{report:?}");
    assert_eq!(first.log().matches("accepts again").count(), 2);
    assert_eq!(first.metrics().sum("hnp_handovers_failed", &[]), 2.0);

    let newer = Successor::connect(&node.scene.run_dir());
    newer.send_as(9, r#"{"say":"hello","agent":"9.9.9"}"#);
    let refused = newer.recv();
    for word in ["refused", "9.9.9", "version 9", "version 1"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    node.take_over_from(first);
}

#[test]
fn what_outlasts_the_drain_of_a_former_agent_is_cut_and_counted() {
    let node = Node::new(|config| config.drain = "1s".into());
    let mut first = node.start();
    let text = format!("GET /slow?ms=120000&token=stuck HTTP/1.1\r\nhost: {MANAGER_NAME}\r\n\r\n");
    let cases = vec![RawCase { quiet_ms: 60_000, ..RawCase::new(text) }];
    let stuck = client::load(&node.pod, &Job::Raw { addr: (MANAGER4, 80).into(), cases }).spawn();
    eventually(END, "the request is at the manager", || {
        node.manager.requests().iter().any(|request| request.token == "stuck")
    });
    let second = Agent::take_over(node.scene.agent_place(), &node.config);
    let ended = first.wait(END);
    assert!(ended.status.success(), "{ended}");
    assert!(
        ended.stderr.contains("still open at the drain's deadline") && ended.stderr.contains("\"cut\":1")
    );
    assert!(ended.text().contains("\"reason\":\"drained\""), "{}", ended.text());
    let cut: Report = stuck.wait(END).json();
    assert_ne!(cut.answers[0].status(), Some(200));
    node.assert_serves();
    node.assert_ends_clean(second);
}

#[test]
fn an_agent_that_is_told_to_stop_hands_over_first() {
    let node = Node::new(|config| config.drain = "60s".into());
    let mut first = node.start();
    let load = node.load(ENDLESS);
    let second = Agent::take_over(node.scene.agent_place(), &node.config_that_waits());
    says(&second, "preparing to take over");
    says(&first, "a successor asks to take over");
    first.ask_to_stop();
    says(&first, "that comes first");
    node.until_served(50);
    node.scene.add_host("late.hnp.test", &[MANAGER4.into()]);
    let ended = first.wait(END);
    assert!(ended.status.success() && ended.stderr.contains("handed over to"), "{ended}");
    node.until_served(50);
    let report = node.end(load);
    assert_none_failed(&report);
    node.assert_ends_clean(second);
}

#[test]
fn an_agent_that_is_to_stay_ends_when_it_is_told_to_or_its_successor_has() {
    let node = Node::new(|_| {});
    let start = || Agent::take_over_and_stay(node.scene.host_network_pod(), &node.config);
    let mut first = start();
    first.wait_until_ready();
    let load = node.load(ENDLESS);
    // One whose supervisor removes it afterwards: an upgrade.
    let mut second = start();
    says(&first, "waiting to be stopped");
    second.wait_until_ready();
    assert!(first.is_alive());
    let ended = first.stop(END);
    assert!(ended.status.success(), "{ended}");
    says(&second, "the agent before this one has ended");
    node.until_served(50);
    let report = node.end(load);
    assert_none_failed(&report);
    // One whose successor dies: it has to be restarted, and is.
    let third = start();
    says(&second, "waiting to be stopped");
    third.kill();
    let ended = second.wait(END);
    assert!(ended.status.success() && ended.stderr.contains("the successor has ended"), "{ended}");
    let mut again = start();
    again.wait_until_ready();
    node.assert_serves();
    node.assert_ends_clean(again);
}

#[test]
fn a_successor_of_an_agent_that_is_ending_waits_for_its_end() {
    let node = Node::new(|config| config.drain = "3s".into());
    let mut first = node.start();
    let held = client::load(
        &node.pod,
        &Job::Raw {
            addr: (MANAGER4, 80).into(),
            cases: vec![RawCase {
                quiet_ms: 60_000,
                ..RawCase::new(format!(
                    "GET /slow?ms=120000&token=stuck HTTP/1.1\r\nhost: {MANAGER_NAME}\r\n\r\n"
                ))
            }],
        },
    )
    .spawn();
    eventually(END, "the request is at the manager", || {
        node.manager.requests().iter().any(|request| request.token == "stuck")
    });
    first.ask_to_stop();
    says(&first, "draining");
    let mut second = Agent::take_over(node.scene.agent_place(), &node.config);
    says(&second, "the running agent is ending");
    assert!(first.wait(END).status.success());
    second.wait_until_ready();
    drop(held);
    node.assert_serves();
    node.assert_ends_clean(second);
}

/// Waits for a line in an agent's diagnostics, and returns it.
#[track_caller]
fn says(agent: &Agent, what: &str) -> String {
    let find = || agent.log().lines().find(|line| line.contains(what)).map(str::to_owned);
    until(END, &format!("the agent says {what:?}"), find).0
}

/// Every connection came about and was answered, and saw the address that it had dialled.
#[track_caller]
fn assert_none_failed(report: &Report) {
    assert_eq!((report.failed, report.unmasked), (0, 0), "{report:?}");
}

struct Node {
    config: Config,
    pod: Pod,
    manager: Manager,
    scene: Scene,
}

impl Node {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let scene = Scene::for_test();
        let (manager, pod) = (scene.strict_manager(), scene.pod());
        let mut config = scene.config().route(scene.route());
        change(&mut config);
        Self { config, pod, manager, scene }
    }

    /// An agent in a DaemonSet's place: below kubepods, so it has to be exempt from capture.
    fn start(&self) -> Agent {
        let mut agent = Agent::spawn(self.scene.host_network_pod(), &self.config, CAPABILITIES);
        agent.wait_until_ready();
        agent
    }

    /// A configuration whose successor waits until `late.hnp.test` resolves.
    fn config_that_waits(&self) -> Config {
        let destinations = [DESTINATIONS, &["late.hnp.test:81"]].concat();
        let route = agent::Route::strict("manager", &destinations, UPSTREAM).with(IDENTITY, TRUST);
        let mut config = self.scene.config().route(route);
        config.drain.clone_from(&self.config.drain);
        config
    }

    /// Short connections to both of the manager's addresses, up to a number. One after the other where the
    /// processor is emulated: more only keep the agents from it.
    fn load(&self, total: u64) -> Running {
        let concurrency = 8_u64.div_ceil(patience(Duration::from_secs(1)).as_secs());
        let targets = [MANAGER4.into(), MANAGER6.into()]
            .map(|addr: std::net::IpAddr| Target::new((addr, 80), MANAGER_NAME, "manager"))
            .to_vec();
        client::load(&self.pod, &Job::Short { targets, total, concurrency }).spawn()
    }

    /// Ends a load without end; what it has begun it finishes.
    #[track_caller]
    fn end(&self, load: Running) -> Report {
        load.signal(nix::sys::signal::Signal::SIGTERM);
        load.wait(END).json()
    }

    /// Waits until the manager has answered so many requests more.
    #[track_caller]
    fn until_served(&self, more: usize) {
        let before = self.manager.request_count();
        eventually(END, "the load goes on", || self.manager.request_count() >= before + more);
    }

    /// Long downloads that last for some seconds each.
    fn transfers(&self) -> Vec<(u64, Running)> {
        let transfers = (0..TRANSFERS)
            .map(|seed| {
                let path = format!("/bytes/{LENGTH}?seed={seed}&ms=100");
                let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager").path(&path);
                (seed, client::load(&self.pod, &Job::Download { target }).spawn())
            })
            .collect();
        eventually(END, "all are under way", || self.manager.request_count() as u64 >= TRANSFERS);
        transfers
    }

    #[track_caller]
    fn assert_transfers(&self, transfers: Vec<(u64, Running)>) {
        for (seed, transfer) in transfers {
            let report: Report = transfer.wait(END).json();
            assert_eq!((report.bytes, report.sha256), (LENGTH, sha256_of(seed, LENGTH)));
        }
    }

    #[track_caller]
    fn assert_serves(&self) {
        let report: Report = self.load(8).wait(END).json();
        report.assert_all_ok(8);
    }

    /// The control after a take-over that failed: one with nothing wrong succeeds, and all ends clean.
    #[track_caller]
    fn take_over_from(&self, mut first: Agent) {
        let mut second = Agent::take_over(self.scene.host_network_pod(), &self.config);
        let ended = first.wait(END);
        assert!(ended.status.success() && ended.stderr.contains("handed over to"), "{ended}");
        second.wait_until_ready();
        self.assert_serves();
        self.assert_ends_clean(second);
    }

    #[track_caller]
    fn assert_ends_clean(&self, agent: Agent) {
        let ended = agent.stop(END);
        assert!(ended.status.success(), "{ended}");
        let cleaned = Agent::clean_up(&self.scene);
        assert!(cleaned.status.success(), "{cleaned}");
        eventually(END, "nothing is left", || agent::remains(&self.scene).is_empty());
    }
}

/// Some blocks, a tenth of a second apart: far longer than a take-over.
const LENGTH: u64 = 100 * BLOCK as u64;

/// One end of the conversation between agents, without an agent.
struct Successor {
    socket: Socket,
}

impl Successor {
    fn connect(run_dir: &Path) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        socket.set_read_timeout(Some(END)).expect("set");
        let path = SockAddr::unix(run_dir.join("agent.sock")).expect("a short path");
        socket.connect(&path).expect("the agent listens");
        Self { socket }
    }

    /// Goes as far as the pause.
    fn pauses(run_dir: &Path) -> Self {
        let successor = Self::connect(run_dir);
        successor.send(r#"{"say":"hello","agent":"0.0.0"}"#);
        while !successor.recv().contains("listeners") {}
        successor.send(r#"{"say":"pause"}"#);
        while !successor.recv().contains("paused") {}
        successor
    }

    fn send(&self, json: &str) {
        self.send_as(1, json);
    }

    fn send_as(&self, version: u16, json: &str) {
        let packet = [b"hnpH", &version.to_be_bytes()[..], json.as_bytes()].concat();
        self.socket.send(&packet).expect("the agent takes it");
    }

    /// The JSON of the next packet; descriptors that come with it are closed.
    fn recv(&self) -> String {
        use std::io::Read as _;
        let mut packet = vec![0; 65_536];
        let length = (&self.socket).read(&mut packet).expect("the agent answers");
        String::from_utf8_lossy(&packet[6.min(length)..length]).into_owned()
    }
}
