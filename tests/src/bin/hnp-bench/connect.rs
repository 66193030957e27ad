//! What connect() and a packet cost with hnp, and without.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hnp_tests::agent::{Agent, CAP_PERFMON, CAPABILITIES, Config, Route};
use hnp_tests::cgroup::Driver;
use hnp_tests::poll::eventually;
use hnp_tests::process::Place;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{self, MANAGER4, OTHER4, Topology, World};
use nix::sys::signal::Signal;

use crate::figures::{Comparison, Report};
use crate::interrupt;

/// Worlds of this bench begin so.
const PREFIX: &str = "hnp-bench";
/// What pods dial on the manager's address.
const DESTINATION: u16 = 80;
/// A pod's own listener.
const OWN: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 8082);
/// No destinations: reads and drops; takes datagrams and reads none.
const READS: u16 = 83;
const DATAGRAMS: u16 = 84;
/// Any VIP: the agent listens on all of them.
const VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 77, 1), 15001);

/// Samples of one client in one round.
const BATCHES: u64 = 300;
const CONNECTS: u64 = 400;
/// Two clients' connections wait in the halted agent's queue.
const _: () = assert!(2 * CONNECTS < 4096);
const BULK: u64 = 300;

/// A client: what it does, with what, and how much of it.
type Client = (&'static str, SocketAddr, u64);
/// What was sampled without and with, round by round.
type Rounds = Vec<(Vec<f64>, Vec<f64>)>;

pub(crate) fn measure(rounds: usize, perfmon: bool) -> Result<Report> {
    topology::sweep(PREFIX);
    let scene = Scene::in_world(Topology::named(PREFIX, Driver::Cgroupfs)?);
    serve(&scene)?;
    let comparisons = measure_in(&scene, rounds, perfmon);
    drop(scene);
    topology::sweep(PREFIX);
    comparisons
}

fn measure_in(scene: &Scene, rounds: usize, perfmon: bool) -> Result<Report> {
    let pod = scene.pod();
    let loose = config(scene, Route::loose("manager", DESTINATIONS, UPSTREAM));
    let strict = config(scene, Route::strict("manager", DESTINATIONS, UPSTREAM));
    let start = || start(scene, &loose, perfmon);
    let agent = start();
    let vip = SocketAddr::from(VIP);
    let manager = |port| SocketAddr::from((MANAGER4, port));
    let mut udp = Rounds::new();
    let mut miss = Rounds::new();
    let mut hit = Rounds::new();
    // With and without the hooks is in and beside the pod's cgroup, in one network namespace.
    let (with, without) = (&*pod, pod.outside_cgroup());
    for round in 0..rounds {
        interrupt::check()?;
        progress("connect()", round, rounds);
        // Halted, so that it does not work on the clients' own processor: connect() waits for the kernel alone.
        let halted = Halted::new(&agent);
        for (client, address, count, samples) in [
            ("udp-connect", [manager(DATAGRAMS); 2], BATCHES, &mut udp),
            ("tcp-connect-own", [SocketAddr::from(OWN); 2], CONNECTS, &mut miss),
            // The same listener both times: what remains is what the hooks do.
            ("tcp-connect", [vip, manager(DESTINATION)], CONNECTS, &mut hit),
        ] {
            samples.push(in_turns(
                round,
                || run(without, (client, address[0], count)),
                || run(with, (client, address[1], count)),
            )?);
        }
        drop(halted);
        eventually(Duration::from_secs(20), "the agent has taken them all", || flows(&agent) == 0.0);
    }
    let elsewhere = |port| SocketAddr::from((OTHER4, port));
    // To an address that nobody guards, and to another port of one that is.
    let clients = [
        ("udp-send", elsewhere(DATAGRAMS), BATCHES),
        ("udp-send", manager(DATAGRAMS), BATCHES),
        ("bulk", elsewhere(READS), BULK),
        ("bulk", manager(READS), BULK),
    ];
    let (mut hooks, mut guards) = (clients.map(|_| Rounds::new()), clients.map(|_| Rounds::new()));
    let all = |place: &Place| clients.iter().map(|client| run(place, *client)).collect::<Result<Vec<_>>>();
    let mut agent = Some(agent);
    for round in 0..rounds {
        interrupt::check()?;
        progress("packets", round, rounds);
        // Nothing, then hooks without a guard, then with one.
        take_off(scene, agent.take())?;
        let bare = all(with)?;
        let running = start();
        let hooked = all(with)?;
        running.reload(&strict);
        eventually(Duration::from_secs(20), "the guard stands", || interfaces(&running) >= 1.0);
        let guarded = all(with)?;
        agent = Some(running);
        for (index, ((bare, hooked), guarded)) in bare.into_iter().zip(hooked).zip(guarded).enumerate() {
            hooks[index].push((bare, hooked.clone()));
            guards[index].push((hooked, guarded));
        }
    }
    let guard = agent.as_ref().map(way).unwrap_or_default();
    take_off(scene, agent)?;
    Ok(Report {
        kernel: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
        guard,
        perfmon,
        comparisons: vec![
            Comparison::of("connect(), no destination, UDP (the bare hook)", "ns", &udp),
            Comparison::of("connect(), no destination, TCP (a miss)", "ns", &miss),
            Comparison::of("connect(), destination, TCP (a hit)", "ns", &hit),
            Comparison::of("a datagram, hooks without a guard", "ns", &hooks[0]),
            Comparison::of("a datagram, the guard", "ns", &guards[0]),
            Comparison::of("  ... to another port of a guarded address", "ns", &guards[1]),
            Comparison::of("a TCP stream, hooks without a guard", "B/s", &hooks[2]),
            Comparison::of("a TCP stream, the guard", "B/s", &guards[2]),
            Comparison::of("  ... to another port of a guarded address", "B/s", &guards[3]),
        ],
    })
}

/// An agent that does nothing, until this is dropped.
struct Halted<'a>(&'a Agent);

impl<'a> Halted<'a> {
    fn new(agent: &'a Agent) -> Self {
        agent.signal(Signal::SIGSTOP);
        Self(agent)
    }
}

impl Drop for Halted<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGCONT);
    }
}

/// Each goes first every other time: what the machine does more and more, or less and less, cancels out.
fn in_turns(
    round: usize,
    without: impl Fn() -> Result<Vec<f64>>,
    with: impl Fn() -> Result<Vec<f64>>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    if round.is_multiple_of(2) {
        let first = without()?;
        Ok((first, with()?))
    } else {
        let first = with()?;
        Ok((without()?, first))
    }
}

fn run(place: &Place, (what, address, number): Client) -> Result<Vec<f64>> {
    let own = std::env::current_exe().context("where this program is")?;
    let arguments = ["client", what, &address.to_string(), &number.to_string()];
    let finished = place.command(own).args(arguments).run();
    anyhow::ensure!(finished.status.success(), "{what} to {address}: {finished}");
    serde_json::from_str(finished.text().trim()).with_context(|| format!("{what}: {}", finished.text()))
}

/// With what the agent needs; with CAP_PERFMON the verifier leaves out barriers against speculation.
fn start(scene: &Scene, config: &Config, perfmon: bool) -> Agent {
    let more: &[u8] = if perfmon { &[CAP_PERFMON] } else { &[] };
    let mut agent = Agent::spawn(scene.agent_place(), config, &[CAPABILITIES, more].concat());
    agent.wait_until_ready();
    agent
}

fn config(scene: &Scene, route: Route) -> Config {
    let mut config = scene.config().route(route.with(IDENTITY, TRUST));
    // It goes on for as long as the agent is halted.
    config.capture = "heartbeat: 5m".to_owned();
    config
}

/// Connections that wait to be accepted.
fn flows(agent: &Agent) -> f64 {
    agent.metrics().sum("hnp_flows", &[])
}

fn interfaces(agent: &Agent) -> f64 {
    agent.metrics().sum("hnp_guard_interfaces", &[])
}

fn way(agent: &Agent) -> String {
    let metrics = agent.metrics();
    let found =
        ["tcx", "clsact"].into_iter().find(|way| metrics.sum("hnp_guard_interfaces", &[("way", way)]) > 0.0);
    found.unwrap_or("nothing").to_owned()
}

pub(crate) fn take_off(scene: &Scene, agent: Option<Agent>) -> Result<()> {
    let Some(agent) = agent else { return Ok(()) };
    agent.stop(Duration::from_secs(20));
    let cleaned = Agent::clean_up(scene);
    anyhow::ensure!(cleaned.status.success(), "{cleaned}");
    Ok(())
}

/// What answers on the manager's side, until this process ends.
fn serve(world: &World) -> Result<()> {
    let reads = world.manager_netns().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, READS)));
    let reads = reads.context("listening")?;
    let datagrams = world.manager_netns().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DATAGRAMS)));
    let datagrams = datagrams.context("binding")?;
    thread::spawn(move || {
        let mut buffer = vec![0; 256 * 1024];
        for stream in reads.incoming().flatten() {
            let mut stream = stream;
            while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
        }
    });
    // Kept open and never read: the kernel drops what comes.
    std::mem::forget(datagrams);
    Ok(())
}

fn progress(what: &str, round: usize, rounds: usize) {
    eprint!("\r{what}: round {} of {rounds}   {}", round + 1, if round + 1 == rounds { "\n" } else { "" });
}
