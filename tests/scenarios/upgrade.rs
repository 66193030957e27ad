//! From one build to another and back, again and again, under a thousand new connections a second and two
//! hundred long transfers: nothing is refused, no byte is lost, and what a drain cuts is counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hnp_tests::agent::{self, Agent, Build, Config, Route};
use hnp_tests::client::{self, Dial, Job, Met, Report, Target, Transfer, TransferEnd};
use hnp_tests::manager::{Manager, NOT_THE_PATTERN};
use hnp_tests::pinned::{self, BPF_LINK_UPDATE, PinnedMap};
use hnp_tests::poll::{eventually, until};
use hnp_tests::process::{Halted, Place, Running};
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{self, MANAGER_NAME, MANAGER4, MANAGER6, OTHER4, Pod};
use nix::sys::signal::Signal;

/// How often a successor takes over.
const UPGRADES: usize = 20;
/// What takes over, in turn: the same build, one with another shape, the rollback, and the same again there.
const BUILDS: [Build; 6] = [
    Build::Ordinary,
    Build::OtherShape,
    Build::Ordinary,
    Build::OtherShape,
    Build::OtherShape,
    Build::Ordinary,
];
/// New connections a second, half of them over each family.
const RATE: u64 = 1000;
/// How many of them may be open at a time and family; a machine that does not keep up gets fewer.
const OPEN: u64 = 100;
/// Transfers at a time that end within a drain, and transfers that outlast it.
const TRANSFERS: [u64; 2] = [160, 40];
/// How many blocks each has, and milliseconds between two.
const BLOCKS: [(u64, u64); 2] = [(4, 1000), (30, 2000)];
/// `drain.deadline`.
const DRAIN: Duration = Duration::from_secs(5);
/// Time enough for any end.
const END: Duration = Duration::from_secs(60);
/// Longer than any scenario here: a load is told to end.
const LONG: f64 = 3600.0;
/// The first port of destinations that come and go, a different one with each step.
const PASSING: u16 = 9000;

#[test]
fn twenty_upgrades_and_rollbacks_under_load_lose_nothing() {
    let _alone = topology::alone();
    let node = Node::new();
    let mut agent = node.start(Build::Ordinary);
    let mut load = node.load();
    let first = node.vips();
    let mut passing: BTreeMap<SocketAddr, IpAddr> = BTreeMap::new();
    let mut generations = Vec::new();
    let mut pauses = Vec::new();
    for (step, build) in BUILDS.into_iter().cycle().take(UPGRADES).enumerate() {
        node.until_served(800);
        let mut next = Agent::spawn_build(build, node.scene.host_network_pod(), &node.config_of(step), true);
        let took_over = says(&next, "took over");
        next.wait_until_ready();
        assert_eq!(node.shape(), Shape::of(build), "the programs of step {step} are in force");
        node.assert_vips(&first, &mut passing, step);
        assert_eq!(node.cleartext(), 0, "step {step}");
        pauses.push(number(&took_over, "pause_ms"));
        generations.push(std::mem::replace(&mut agent, next));
    }
    node.until_served(200);

    let dials = load.end_storm();
    // All have been accepted: no flow may be left, whichever build wrote it.
    eventually(END, "no flow is left", || PinnedMap::of(&node.scene, "FLOWS").entries().is_empty());
    for former in &mut generations {
        let ended = former.wait(END);
        assert!(ended.status.success(), "{ended}");
    }
    eventually(END, "the agent that runs is exempt, and no former one", || {
        PinnedMap::of(&node.scene, "EXEMPT").entries().len() == 1
    });
    load.begin_no_more();
    agent.ask_to_stop();
    assert!(agent.wait(END).status.success());
    generations.push(agent);
    let transfers = load.end_transfers();
    assert_dials(&dials, &pauses);
    assert_transfers(&transfers, &generations);
    assert_eq!(node.cleartext(), 0);
    let broken = node.manager.connections();
    let foreign = broken.iter().filter(|one| one.error.as_deref() == Some(NOT_THE_PATTERN)).count();
    assert_eq!(foreign, 0, "uploads with bytes that nobody sent there");
    node.assert_nothing_is_counted_open();
    node.assert_cleans_up();
}

#[test]
fn the_control_a_stop_and_a_start_under_the_same_load_refuse_connections() {
    let _alone = topology::alone();
    let node = Node::new();
    let first = node.start(Build::Ordinary);
    let mut load = node.load();
    node.until_served(200);
    let ended = first.stop(END);
    assert!(ended.status.success(), "{ended}");
    let second = node.start(Build::OtherShape);
    node.until_served(200);
    let dials = load.end_storm();
    let refused = dials.iter().filter(|dial| dial.met == Met::Refused).count();
    eprintln!("a stop and a start: {} dials, {refused} refused", dials.len());
    assert!(refused > 100, "{refused} refused");
    assert_eq!(node.cleartext(), 0);
    assert_eq!(node.shape(), Shape::of(Build::OtherShape));
    load.begin_no_more();
    assert!(second.stop(END).status.success());
    let transfers = load.end_transfers();
    let unconnected = |one: &&Transfer| matches!(one.end, TransferEnd::NotConnected(_));
    assert!(transfers.iter().filter(unconnected).count() > 0, "transfers were refused, too");
    node.assert_cleans_up();
}

/// The programs are replaced one by one. Between each two steps connections are made through programs of both
/// builds, which meet each other's state of sockets and flows; whoever takes them in the end knows all.
#[test]
fn in_the_middle_of_a_swap_programs_of_both_builds_work_together() {
    let _alone = topology::alone();
    let node = Node::new();
    let mut agent = node.start(Build::Ordinary);
    let storms = node.storms(200);
    for build in [Build::OtherShape, Build::Ordinary] {
        node.until_served(50);
        let late = format!("late-{build:?}.hnp.test").to_lowercase();
        let config = node.config_with(&[&format!("{late}:81")]);
        let next = Agent::spawn_build(build, node.scene.host_network_pod(), &config, true);
        says(&next, "preparing to take over");
        let mut halted = Halted::seize(next.pid());
        node.scene.add_host(&late, &[OTHER4.into()]);
        let served = node.manager.request_count();
        for program in 0..PROGRAMS {
            halted.until_it_calls(libc::SYS_bpf, BPF_LINK_UPDATE);
            let before = node.dialled();
            eventually(END, "connections are made between two steps", || node.dialled() >= before + 8);
            if program + 1 == PROGRAMS {
                // It was indeed a swap in which nobody accepts.
                let waiting = PinnedMap::of(&node.scene, "FLOWS").entries().len();
                eprintln!("{build:?}: {waiting} flows wait before the last program is replaced");
                assert!(waiting >= 8 * PROGRAMS, "only {waiting} flows wait");
            }
        }
        drop(halted);
        says(&next, "took over");
        eventually(END, "those that waited are served", || {
            node.manager.request_count() >= served + 8 * PROGRAMS
        });
        let mut former = std::mem::replace(&mut agent, next);
        agent.wait_until_ready();
        assert!(former.wait(END).status.success());
        assert_eq!(node.shape(), Shape::of(build));
    }
    node.until_served(50);
    let dials: Vec<Dial> = storms.into_iter().flat_map(end_storm).collect();
    assert_dials(&dials, &[]);
    // Each was known for what it was: who dialled, and that he had not dialled the VIP himself.
    let uids: BTreeSet<_> = node.pods.iter().map(|pod| pod.uid.as_str()).collect();
    for line in agent.access_lines() {
        assert!(uids.contains(line["pod_uid"].as_str().unwrap_or_default()), "{line}");
        assert_eq!(line["reason"], "ok", "{line}");
    }
    eventually(END, "no flow is left", || PinnedMap::of(&node.scene, "FLOWS").entries().is_empty());
    assert!(agent.stop(END).status.success());
    node.assert_nothing_is_counted_open();
    node.assert_cleans_up();
}

#[test]
fn maps_of_a_meaning_that_is_not_known_are_not_gone_on_with() {
    let node = Node::new();
    let first = node.start(Build::Ordinary);
    node.assert_serves();
    let vips = node.vips();
    let meta = PinnedMap::of(&node.scene, "META");
    let (key, known) = meta.entries().remove(0);
    let mut unknown = known.clone();
    unknown[4..8].copy_from_slice(&99_u32.to_le_bytes());
    meta.set(&key, &unknown);
    // Side by side with a running agent there would be no way back.
    let place = || node.scene.host_network_pod();
    let refused = Agent::spawn_build(Build::OtherShape, place(), &node.config, true).wait(END);
    assert!(!refused.status.success() && refused.stderr.contains("stop"), "{refused}");
    eprintln!("{}", refused.stderr.lines().last().unwrap_or_default());
    node.assert_serves();
    assert_eq!(node.shape(), Shape::of(Build::Ordinary));
    // Without one, all is replaced; what was captured keeps its VIP and stays refused until then.
    first.kill();
    let second = node.start(Build::OtherShape);
    says(&second, "\"in_place\":false");
    node.assert_serves();
    assert_eq!((node.shape(), node.vips()), (Shape::of(Build::OtherShape), vips));
    let now = PinnedMap::of(&node.scene, "META").entries().remove(0).1;
    assert_eq!(now[..8], known[..8], "the schema is this build's again");
    // The control: with a schema that is known, the same step needs no stop.
    let third = Agent::spawn_build(Build::Ordinary, place(), &node.config, true);
    says(&third, "took over");
    node.assert_serves();
    drop(second);
    assert!(third.stop(END).status.success());
    node.assert_cleans_up();
}

/// How many programs hang on the cgroup.
const PROGRAMS: usize = 9;

/// Bytes of a value of `DESTINATIONS`, which the builds differ in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Shape(usize);

impl Shape {
    fn of(build: Build) -> Self {
        match build {
            Build::Ordinary | Build::OtherClock => Self(24),
            Build::OtherShape => Self(32),
        }
    }
}

struct Node {
    config: Config,
    pods: [Pod; 2],
    manager: Manager,
    scene: Scene,
}

impl Node {
    fn new() -> Self {
        let scene = Scene::for_test();
        // It takes plaintext gladly: nothing but hnp keeps it away.
        let manager = scene.loose_manager("manager", 80);
        let pods = [scene.pod(), scene.pod()];
        let config = with_destinations(&scene, DESTINATIONS);
        Self { config, pods, manager, scene }
    }

    /// Also with destinations that come and go.
    fn config_with(&self, more: &[&str]) -> Config {
        with_destinations(&self.scene, &[DESTINATIONS, more].concat())
    }

    /// Each step has another destination beside the manager's; after some steps one comes back.
    fn config_of(&self, step: usize) -> Config {
        self.config_with(&[&passing(step).to_string()])
    }

    fn start(&self, build: Build) -> Agent {
        let mut agent = Agent::spawn_build(build, self.scene.host_network_pod(), &self.config, false);
        agent.wait_until_ready();
        agent
    }

    fn storms(&self, rate: u64) -> Vec<Running> {
        let addrs: [IpAddr; 2] = [MANAGER4.into(), MANAGER6.into()];
        let storm = |(pod, addr): (&Pod, IpAddr)| {
            let target = Target::new((addr, 80), MANAGER_NAME, "manager");
            client::load(pod, &Job::Storm { target, rate: rate / 2, at_most: OPEN, seconds: LONG }).spawn()
        };
        self.pods.iter().zip(addrs).map(storm).collect()
    }

    fn load(&self) -> Load {
        let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
        let transfers = |(at_a_time, (blocks, pause_ms)): (u64, (u64, u64))| {
            let job = Job::Transfers { target: target.clone(), at_a_time, blocks, pause_ms };
            client::load(&self.pods[0], &job).spawn()
        };
        let transfers = TRANSFERS.into_iter().zip(BLOCKS).map(transfers).collect();
        let under_way = usize::try_from(TRANSFERS.iter().sum::<u64>()).expect("few");
        eventually(END, "all transfers are under way", || self.manager.request_count() >= under_way);
        Load { storms: self.storms(RATE), transfers }
    }

    /// Waits until the manager has answered so many requests more.
    #[track_caller]
    fn until_served(&self, more: usize) {
        let before = self.manager.request_count();
        eventually(END, "the load goes on", || self.manager.request_count() >= before + more);
    }

    /// Connections of the manager's that carried anything before TLS.
    fn cleartext(&self) -> usize {
        let connections = self.manager.connections();
        connections.iter().filter(|one| one.tls.is_none() && one.received > 0).count()
    }

    fn shape(&self) -> Shape {
        Shape(PinnedMap::of(&self.scene, "DESTINATIONS").value_size())
    }

    fn vips(&self) -> BTreeMap<SocketAddr, IpAddr> {
        pinned::vips(&self.scene)
    }

    /// What stays keeps its VIP; what comes gets one that nothing else had, or its own again.
    #[track_caller]
    fn assert_vips(
        &self,
        first: &BTreeMap<SocketAddr, IpAddr>,
        passed: &mut BTreeMap<SocketAddr, IpAddr>,
        step: usize,
    ) {
        let mut now = self.vips();
        let new = passing(step);
        let vip = now.remove(&new).unwrap_or_else(|| panic!("{new} of step {step} is not captured"));
        assert_eq!(now, *first, "step {step}");
        assert!(first.values().all(|other| *other != vip), "{vip} stands for another destination");
        for (destination, other) in passed.iter() {
            assert_eq!(*destination == new, *other == vip, "{other} was that of {destination}, now {new}");
        }
        passed.insert(new, vip);
    }

    /// How many connections the pods have begun.
    fn dialled(&self) -> usize {
        self.pods.iter().map(|pod| active_opens(pod)).sum()
    }

    #[track_caller]
    fn assert_serves(&self) {
        let targets = [MANAGER4.into(), MANAGER6.into()]
            .map(|addr: IpAddr| Target::new((addr, 80), MANAGER_NAME, "manager"))
            .to_vec();
        let job = Job::Short { targets, total: 8, concurrency: 2 };
        client::run(&self.pods[0], &job).assert_all_ok(8);
    }

    /// Programs of all builds counted on the same sockets: what one counted, another one took off.
    #[track_caller]
    fn assert_nothing_is_counted_open(&self) {
        eventually(END, "no connection is counted as open", || {
            PinnedMap::of(&self.scene, "PODS").entries().iter().all(|(_, open)| word(open) == 0)
        });
    }

    #[track_caller]
    fn assert_cleans_up(&self) {
        let cleaned = Agent::clean_up(&self.scene);
        assert!(cleaned.status.success(), "{cleaned}");
        eventually(END, "nothing is left", || agent::remains(&self.scene).is_empty());
    }
}

fn with_destinations(scene: &Scene, destinations: &[&str]) -> Config {
    let route = Route::strict("manager", destinations, UPSTREAM).with(IDENTITY, TRUST);
    // Ten times the usual, here and with the heartbeat: a machine that stands still for some seconds is not what
    // this is about.
    let mut config = scene.config().route(route.set("timeouts", "{connect: 50s, tls: 50s}"));
    config.drain = format!("{}s", DRAIN.as_secs());
    config.capture = "heartbeat: 20s".to_owned();
    config
}

fn passing(step: usize) -> SocketAddr {
    SocketAddr::from((OTHER4, PASSING + u16::try_from(step % 7).expect("small")))
}

/// What runs across the upgrades.
struct Load {
    storms: Vec<Running>,
    transfers: Vec<Running>,
}

impl Load {
    /// Ends the new connections; what has begun is finished.
    fn end_storm(&mut self) -> Vec<Dial> {
        std::mem::take(&mut self.storms).into_iter().flat_map(end_storm).collect()
    }

    fn begin_no_more(&self) {
        self.transfers.iter().for_each(|one| one.signal(Signal::SIGTERM));
    }

    /// Waits for those that still run.
    fn end_transfers(self) -> Vec<Transfer> {
        let report = |one: Running| one.wait(END).json::<Report>().transfers;
        self.transfers.into_iter().flat_map(report).collect()
    }
}

fn end_storm(storm: Running) -> Vec<Dial> {
    storm.signal(Signal::SIGTERM);
    storm.wait(END).json::<Report>().dials
}

/// Every connection was made, carried, and answered by whom it had dialled.
#[track_caller]
fn assert_dials(dials: &[Dial], pauses: &[u64]) {
    let mut failed: BTreeMap<String, usize> = BTreeMap::new();
    for dial in dials.iter().filter(|dial| dial.met != Met::Carried) {
        // Without the flow's number, which is another one each time.
        let why = dial.why.split("\"flow\"").next().unwrap_or_default();
        *failed.entry(format!("{:?} {why}", dial.met)).or_default() += 1;
    }
    let (began, ended) =
        (dials.iter().map(|dial| dial.at_us).min(), dials.iter().map(|dial| dial.at_us).max());
    let seconds = (ended.unwrap_or(0) - began.unwrap_or(0)) as f64 / 1e6;
    let slowest = |of: fn(&Dial) -> u64| dials.iter().map(of).max().unwrap_or(0) as f64 / 1e3;
    eprintln!(
        "{} dials in {seconds:.1} s ({:.0} a second), not carried: {failed:?}; slowest connect() {:.1} ms, slowest \
         answer {:.0} ms; pauses {pauses:?} ms",
        dials.len(),
        dials.len() as f64 / seconds,
        slowest(|dial| dial.connect_us),
        slowest(|dial| dial.took_us),
    );
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Each came to its end whole, or was cut by a drain that was over: by which one the agents' access logs say.
#[track_caller]
fn assert_transfers(transfers: &[Transfer], agents: &[Agent]) {
    let mut drained: HashMap<String, usize> = HashMap::new();
    let mut counted = Vec::new();
    for (number_of, agent) in agents.iter().enumerate() {
        let before = drained.len();
        for line in agent.access_lines().iter().filter(|line| line["reason"] == "drained") {
            let path = line["path"].as_str().unwrap_or_default();
            let name = path.split('/').nth(2).unwrap_or_default().to_owned();
            assert_eq!(drained.insert(name, number_of), None, "twice: {line}");
        }
        let lines = (drained.len() - before) as u64;
        let told = "still open at the drain's deadline";
        let cut = agent.log().lines().find(|line| line.contains(told)).map_or(0, |line| number(line, "cut"));
        // It counts connections. One that has been served, and that the client has yet to close, lost nothing.
        assert!(cut >= lines, "agent {number_of} counted {cut} and wrote {lines} lines");
        counted.push((lines, cut));
    }
    let drains: Vec<u64> = agents.iter().map(|agent| time_of_day_us(&agent.log_line("draining"))).collect();
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let mut latest = 0;
    for transfer in transfers {
        let direction = if transfer.upload { "up" } else { "down" };
        match &transfer.end {
            TransferEnd::Whole => *ends.entry(format!("{direction}, whole")).or_default() += 1,
            TransferEnd::Cut(why) => {
                let why = why.trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ');
                *ends.entry(format!("{direction}, cut: {why}")).or_default() += 1;
                let by = drained.remove(&transfer.name);
                let by = by.unwrap_or_else(|| panic!("no agent says that it cut {transfer:?}"));
                let after = (transfer.ended_us % DAY_US + DAY_US - drains[by]) % DAY_US;
                let deadline = u64::try_from(DRAIN.as_micros()).expect("seconds");
                // The log's time is taken a moment before the clock of the drain starts, and never after.
                assert!(after >= deadline, "cut {after} us after the drain began: {transfer:?}");
                latest = latest.max(after - deadline);
            }
            wrong => panic!("{wrong:?}: {transfer:?}"),
        }
    }
    eprintln!(
        "{} transfers: {ends:#?}; cut by each agent (lines, connections) {counted:?}, at most {:.0} \
         ms after its deadline",
        transfers.len(),
        latest as f64 / 1e3
    );
    assert!(drained.is_empty(), "cut by an agent, and not for a client: {drained:?}");
    assert!(counted.iter().map(|(lines, _)| lines).sum::<u64>() > TRANSFERS[1], "{ends:?}");
}

const DAY_US: u64 = 86_400_000_000;

/// When a line was written, by its timestamp: `2026-11-21T09:20:59.123456Z`.
fn time_of_day_us(line: &str) -> u64 {
    let value: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
    let text = value["timestamp"].as_str().expect("each line has a time");
    let time = text.split('T').nth(1).and_then(|time| time.strip_suffix('Z')).expect("in UTC");
    let seconds = time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().expect("a number"));
    (seconds * 1e6) as u64
}

/// A number in a line of an agent's log.
#[track_caller]
fn number(line: &str, key: &str) -> u64 {
    let value: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
    let found = value.pointer(&format!("/fields/{key}")).or_else(|| value.get(key));
    found.and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("no {key} in {line}"))
}

/// Waits for a line in an agent's diagnostics, and returns it.
#[track_caller]
fn says(agent: &Agent, what: &str) -> String {
    let find = || agent.log().lines().find(|line| line.contains(what)).map(str::to_owned);
    until(END, &format!("the agent says {what:?}"), find).0
}

/// The kernel's count of connect() calls of TCP that sent a SYN, in a pod's network namespace.
fn active_opens(place: &Place) -> usize {
    let text = place.netns().run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
    let text = text.expect("every namespace has one");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let at = names.split(' ').position(|name| name == "ActiveOpens").expect("RFC 1213");
    values.split(' ').nth(at).and_then(|value| value.parse().ok()).expect("a number")
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}
