//! What one hostile pod does to twenty quiet ones on the same node.
//!
//! In turns: the quiet pods alone, beside a pod that is hostile to another agent of the same machine, with a manager of its own, and
//! beside one that is hostile to theirs. The second tells what the machine does to them from what sharing an agent does.

use std::fmt;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::cgroup::Driver;
use hnp_tests::clock::monotonic_ns;
use hnp_tests::manager::Manager;
use hnp_tests::process::Running;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{self, MANAGER_NAME, MANAGER4, Pod, Topology};
use serde::Serialize;

use crate::figures::{median, quantile};
use crate::{hostile, interrupt, load};

/// Worlds of this bench begin so.
const PREFIX: &str = "hnp-neighbours";
const QUIET: usize = 20;
/// Requests a second of each quiet pod.
const RATE: u32 = 20;
/// What pods dial on the manager's address.
const HTTP: u16 = 80;
const OPAQUE: u16 = 81;
const PATIENCE: Duration = Duration::from_secs(60);
/// What it takes until all quiet pods' programs run and are warm: they would be each other's noise.
const START: Duration = Duration::from_secs(2);
const MIB: f64 = 1024.0 * 1024.0;

/// What a hostile pod may do, one thing at a time and all together.
const ATTACKS: [(&str, Attack); 10] = [
    ("10,000 silent connections", Attack { silent: 10_000, ..NOTHING }),
    ("500 slow readers", Attack { slow: 500, ..NOTHING }),
    ("300 new connections a second", Attack { new: 300, ..NOTHING }),
    ("300 times a second garbage", Attack { garbage: 300, ..NOTHING }),
    ("50 handshakes a second", Attack { handshakes: 50, ..NOTHING }),
    ("50 at once, each second", Attack { at_once: 50, ..NOTHING }),
    ("all of it", ALL),
    ("bursts, by default", Attack { limits: DEFAULT, at_once: 50, ..NOTHING }),
    // With more it would have taken the places of its own attacks.
    ("all of it and bursts, by default", Attack { limits: DEFAULT, silent: 2500, at_once: 50, ..ALL }),
    ("all of it and bursts, over its limits", Attack { limits: LIMITS, at_once: 50, ..ALL }),
];
const NOTHING: Attack =
    Attack { silent: 0, slow: 0, new: 0, garbage: 0, handshakes: 0, at_once: 0, limits: NO_LIMITS };
const ALL: Attack = Attack { silent: 9500, slow: 500, new: 300, garbage: 300, handshakes: 50, ..NOTHING };

/// Nothing is turned away: what the agent's carrying does to the neighbours.
const NO_LIMITS: &str =
    "connections: 20000, per_workload: {connections: 15000, handshakes_per_second: 1000000}";
/// What holds where nobody has said anything.
const DEFAULT: &str = "";
/// What a pod might be given that lives for a minute.
const LIMITS: &str = "per_workload: {connections: 1000, new_connections_per_second: 20}";

struct Attack {
    silent: usize,
    slow: usize,
    new: u32,
    garbage: u32,
    handshakes: u32,
    at_once: u32,
    /// What the agent's configuration says to it.
    limits: &'static str,
}

/// One attack's rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// What the hostile pod did.
    pub(crate) what: &'static str,
    /// Medians of the rounds: the quiet pods' p50 and p99 in microseconds alone, beside the attack elsewhere, beside it here.
    pub(crate) p50: [f64; 3],
    pub(crate) p99: [f64; 3],
    /// The median of the rounds' ratios, of the quiet pods' p99 here to alone, and here to elsewhere.
    pub(crate) to_alone: f64,
    pub(crate) to_elsewhere: f64,
    /// Lower and upper quartile of the latter.
    pub(crate) quartiles: (f64, f64),
    /// What the agent took of one processor beside the attack here: the median of rounds.
    pub(crate) cpu: f64,
    /// Connections a second that it was done with meanwhile, the median of rounds: the attack that was asked for took place.
    pub(crate) ended: f64,
    /// The most that the agent held: descriptors, and resident MiB.
    pub(crate) descriptors: usize,
    pub(crate) resident_mib: f64,
}

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) rounds: usize,
    pub(crate) rows: Vec<Row>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{QUIET} quiet pods, {RATE} requests a second each, {} rounds; p99 in us, medians of rounds; the quartiles of the last",
            self.rounds
        )?;
        writeln!(
            f,
            "{:<30} {:>7} {:>9} {:>8} {:>8} {:>14}",
            "beside a pod with", "alone", "elsewhere", "here", "to alone", "to elsewhere"
        )?;
        for row in &self.rows {
            let ([alone, elsewhere, here], (low, high)) = (row.p99, row.quartiles);
            writeln!(
                f,
                "{:<30} {alone:>7.0} {elsewhere:>9.0} {here:>8.0} x {:>6.2} x {:>4.2} ({low:.2} to {high:.2})  \
                 agent: {:.0} % CPU, {:.0} connections/s, {} descriptors, {:.0} MiB",
                row.what,
                row.to_alone,
                row.to_elsewhere,
                row.cpu * 100.0,
                row.ended,
                row.descriptors,
                row.resident_mib
            )?;
        }
        Ok(())
    }
}

/// `only`: the attack whose words contain it.
pub(crate) fn measure(rounds: usize, window: Duration, only: Option<&str>) -> Result<Report> {
    let attacks: Vec<_> =
        ATTACKS.iter().filter(|(what, _)| only.is_none_or(|only| what.contains(only))).collect();
    let names: Vec<_> = ATTACKS.iter().map(|(what, _)| *what).collect();
    ensure!(!attacks.is_empty(), "--only: there is {}", names.join(", "));
    topology::sweep(PREFIX);
    let node = || Ok::<_, anyhow::Error>(Scene::in_world(Topology::named(PREFIX, Driver::Cgroupfs)?));
    let (scene, elsewhere) = (node()?, node()?);
    let all =
        attacks.into_iter().map(|(what, attack)| row([&elsewhere, &scene], what, attack, rounds, window));
    let rows: Result<Vec<Row>> = all.collect();
    drop((scene, elsewhere));
    topology::sweep(PREFIX);
    Ok(Report { rounds, rows: rows? })
}

/// Managers, agents and pods of its own: nothing is left of the attack before. The quiet pods are in the second scene.
fn row(
    scenes: [&Scene; 2],
    what: &'static str,
    attack: &Attack,
    rounds: usize,
    window: Duration,
) -> Result<Row> {
    // What a manager does is on other machines: those that only the hostile pod asks give way, as it does. The one that the
    // quiet pods ask cannot, so what the attack asks of it counts against the agent.
    let _asked = manager(scenes[1], HTTP);
    let _attacked: Vec<_> = [(scenes[0], HTTP), (scenes[0], OPAQUE), (scenes[1], OPAQUE)]
        .into_iter()
        .map(|(scene, port)| {
            thread::scope(|scope| {
                let started = scope.spawn(|| hostile::give_way().map(|()| manager(scene, port)));
                started.join().map_err(|_| anyhow!("a manager did not start"))?
            })
        })
        .collect::<Result<_>>()?;
    let agents = scenes.map(|scene| Agent::start(scene, &config(scene, attack.limits)));
    let attackers = scenes.map(|scene| scene.pod());
    let pods: Vec<Pod> = (0..QUIET).map(|_| scenes[1].pod()).collect();
    let agent = &agents[1];
    let (mut p50, mut p99) = (<[Vec<f64>; 3]>::default(), <[Vec<f64>; 3]>::default());
    let (mut descriptors, mut resident, mut cpu, mut ended) = (0, 0, Vec::new(), Vec::new());
    let so_far = || agent.metrics().sum("hnp_connections_total", &[]);
    // Pools are filled, and what grows with first use has grown.
    quiet(&pods, window)?;
    for round in 0..rounds {
        // Who is first changes.
        for turn in 0..3 {
            interrupt::check()?;
            let way = (round + turn) % 3;
            eprint!("\r{what}: round {} of {rounds}, {:<40}", round + 1, ["alone", "elsewhere", "here"][way]);
            let hostile = if way == 0 { None } else { Some(hostile(&attackers[way - 1], attack)?) };
            let (began, spent, before) = (Instant::now(), load::cpu_seconds(agent.pid())?, so_far());
            let took = quiet(&pods, window)?;
            let seconds = began.elapsed().as_secs_f64();
            let spent = (load::cpu_seconds(agent.pid())? - spent) / seconds;
            p50[way].push(quantile(&took, 0.5));
            p99[way].push(quantile(&took, 0.99));
            if way == 2 {
                cpu.push(spent);
                ended.push((so_far() - before) / seconds);
                descriptors = descriptors.max(agent.open_files());
                resident = resident.max(agent.resident_bytes());
            }
            drop(hostile);
            agents.iter().try_for_each(settle)?;
        }
    }
    eprintln!();
    let ratios =
        |to: usize| -> Vec<f64> { p99[2].iter().zip(&p99[to]).map(|(here, to)| here / to).collect() };
    let to_elsewhere = ratios(1);
    Ok(Row {
        what,
        to_alone: median(&ratios(0)),
        to_elsewhere: median(&to_elsewhere),
        quartiles: (quantile(&to_elsewhere, 0.25), quantile(&to_elsewhere, 0.75)),
        p50: p50.map(|rounds| median(&rounds)),
        p99: p99.map(|rounds| median(&rounds)),
        cpu: median(&cpu),
        ended: median(&ended),
        descriptors,
        resident_mib: resident as f64 / MIB,
    })
}

/// On a thread of its own.
fn manager(scene: &Scene, port: u16) -> Manager {
    Manager::strict(scene, "manager", port, &scene.server, &scene.clients)
}

fn config(scene: &Scene, limits: &str) -> Config {
    let [opaque, upstream] =
        [MANAGER4.to_string(), format!("https://{MANAGER_NAME}")].map(|host| format!("{host}:{OPAQUE}"));
    let opaque = Route::opaque("opaque", &[&opaque], &upstream).with(IDENTITY, TRUST);
    let mut config =
        scene.config().route(scene.route().set("timeouts", "{head: 120s, idle: 120s}")).route(opaque);
    if limits != DEFAULT {
        config.capture = "connections_per_pod: 100000".to_owned();
        config.limits = limits.to_owned();
    }
    config
}

/// Microseconds of each request of all quiet pods.
fn quiet(pods: &[Pod], window: Duration) -> Result<Vec<f64>> {
    let own = std::env::current_exe().context("where this program is")?;
    let job = load::Job {
        kind: load::Kind::Steady(RATE),
        to: (MANAGER4, HTTP).into(),
        host: MANAGER_NAME.to_owned(),
        path: "/hello".to_owned(),
        connections: 1,
        opens_ns: Some(monotonic_ns() + u64::try_from(START.as_nanos())?),
        milliseconds: u64::try_from(window.as_millis())?,
        proxy: None,
        tls: None,
        samples: true,
    };
    let job = serde_json::to_string(&job)?;
    let running: Vec<Running> =
        pods.iter().map(|pod| pod.command(&own).args(["load", &job]).spawn()).collect();
    let mut took = Vec::new();
    for one in running {
        let finished = one.wait(PATIENCE);
        ensure!(finished.status.success(), "a quiet pod was not served: {finished}");
        took.extend(serde_json::from_str::<load::Outcome>(finished.text().trim())?.samples);
    }
    Ok(took)
}

/// Once it holds what it is to hold.
fn hostile(pod: &Pod, attack: &Attack) -> Result<Running> {
    let own = std::env::current_exe().context("where this program is")?;
    let to = |port| SocketAddr::from((MANAGER4, port));
    let &Attack { silent, slow, new, garbage, handshakes, at_once, limits: _ } = attack;
    let (host, opaque) = (MANAGER_NAME.to_owned(), to(OPAQUE));
    let job = hostile::Job { to: to(HTTP), opaque, host, silent, slow, new, garbage, handshakes, at_once };
    let mut running =
        pod.command(own).args(["hostile", &serde_json::to_string(&job)?]).deadline(2 * PATIENCE).spawn();
    let until = Instant::now() + PATIENCE;
    while running.stdout().is_empty() {
        ensure!(running.is_alive(), "the hostile pod ended: {}", running.stderr());
        ensure!(Instant::now() < until, "the hostile pod does not hold what it wants after {PATIENCE:?}");
        hnp_tests::poll::pause();
    }
    Ok(running)
}

/// The agent has let go of what was the hostile pod's.
fn settle(agent: &Agent) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while agent.metrics().sum("hnp_connections_open", &[]) > QUIET as f64 {
        ensure!(Instant::now() < until, "the agent still holds connections after {PATIENCE:?}");
        hnp_tests::poll::pause();
    }
    Ok(())
}
