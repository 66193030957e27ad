//! hnp beside HAProxy, nginx and stunnel: the same manager, the same load, one worker each, in one run.
//!
//! Loads go round the proxies in turns, and who is first changes from round to round. A ratio is one within a
//! round; absolute numbers belong to the machine and the hour. It reports and judges no build: a missed aim
//! is printed, and a failure is only what did not work.

mod plot;
mod proxies;
mod report;
mod text;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hnp_tests::cgroup::Driver;
use hnp_tests::poll;
use hnp_tests::process::{Cmd, Place, Running};
use hnp_tests::scene::Scene;
use hnp_tests::topology::{self, MANAGER_NAME, MANAGER4, Topology};

use self::proxies::{Key, Kind, LARGE, MANAGER, Program, Proxy, SMALL, Stage};
use self::report::{Aim, HNP, OWN_TLS, Report, Row};
use crate::interrupt;
use crate::load::{self, Job, Outcome};

/// Worlds of this bench begin so.
const PREFIX: &str = "hnp-peers";
/// At a time, where many pods talk.
const CONNECTIONS: usize = 32;
/// At a time, where each moves as much as goes through.
const STREAMS: usize = 4;
/// Requests a second that every proxy carries at a fraction of its CPU.
const RATE: u32 = 2000;
/// Before memory is looked at: what the first connections load once is no part of a connection.
const FIRST: usize = 50;
const KIB: f64 = 1024.0;

/// How long all of it takes.
pub(crate) struct Extent {
    /// How often everything but memory is measured.
    pub(crate) rounds: usize,
    /// How long a figure's window is.
    pub(crate) window: Duration,
    /// Connections that are held idle.
    pub(crate) idle: usize,
}

/// A load, and the figures it gives.
struct Load {
    what: &'static str,
    how: load::Kind,
    path: &'static str,
    connections: usize,
    keys: &'static [Key],
    /// Towards the manager hnp speaks HTTP/2, and the others what they speak.
    http2: bool,
    /// Windows as long.
    windows: u32,
    figures: &'static [Figure],
}

struct Figure {
    what: &'static str,
    unit: &'static str,
    aim: Option<Aim>,
    of: fn(&Outcome) -> f64,
}

const PER_REQUEST: fn(&Outcome) -> f64 = |outcome| outcome.cpu_seconds * 1e6 / outcome.requests as f64;

const LOADS: [Load; 5] = [
    Load {
        what: "keep-alive",
        how: load::Kind::KeepAlive,
        path: SMALL,
        connections: CONNECTIONS,
        keys: &[Key::Rsa],
        http2: false,
        windows: 1,
        figures: &[Figure {
            what: "CPU per request",
            unit: "us",
            aim: Some(Aim::Ratio(0.8)),
            of: PER_REQUEST,
        }],
    },
    Load {
        what: "keep-alive, HTTP/2 upstream",
        how: load::Kind::KeepAlive,
        path: SMALL,
        connections: CONNECTIONS,
        keys: &[Key::Rsa],
        http2: true,
        windows: 1,
        figures: &[Figure {
            what: "CPU per request",
            unit: "us",
            aim: Some(Aim::Ratio(0.65)),
            of: PER_REQUEST,
        }],
    },
    Load {
        what: "a connection per request",
        how: load::Kind::New,
        path: SMALL,
        connections: CONNECTIONS,
        keys: &[Key::Rsa, Key::P256],
        http2: false,
        windows: 1,
        figures: &[Figure {
            what: "CPU per request",
            unit: "us",
            aim: Some(Aim::Ratio(0.8)),
            of: PER_REQUEST,
        }],
    },
    Load {
        what: "bulk",
        how: load::Kind::KeepAlive,
        path: LARGE,
        connections: STREAMS,
        keys: &[Key::Rsa],
        http2: false,
        windows: 1,
        figures: &[Figure {
            what: "CPU per GB",
            unit: "s",
            aim: Some(Aim::Ratio(0.7)),
            of: |outcome| outcome.cpu_seconds * 1e9 / outcome.bytes as f64,
        }],
    },
    Load {
        what: "2000 requests/s",
        how: load::Kind::Steady(RATE),
        path: SMALL,
        connections: CONNECTIONS,
        keys: &[Key::Rsa],
        // The hundredth part of the samples is to be more than a handful.
        http2: false,
        windows: 2,
        figures: &[
            Figure { what: "p50", unit: "us", aim: None, of: |outcome| outcome.p50 },
            Figure { what: "p99", unit: "us", aim: Some(Aim::Ratio(0.9)), of: |outcome| outcome.p99 },
        ],
    },
];

pub(crate) fn measure(extent: &Extent) -> Result<Report> {
    topology::sweep(PREFIX);
    let began = Instant::now();
    let stage = Stage::new(Scene::in_world(Topology::named(PREFIX, Driver::Cgroupfs)?))?;
    let mut bench = Bench { stage, extent, report: Report::new() };
    let outcome = bench.measure();
    let Bench { stage, mut report, .. } = bench;
    report.machine =
        format!("Linux {}, {}", nix::sys::utsname::uname()?.release().to_string_lossy(), stage.division());
    drop(stage);
    topology::sweep(PREFIX);
    outcome?;
    report.rounds = extent.rounds;
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

/// Writes the figures as JSON, and a plot of the ratios beside it.
pub(crate) fn write(report: &Report, json: &Path) -> Result<()> {
    let svg = json.with_extension("svg");
    fs::write(json, serde_json::to_string_pretty(report)?).with_context(|| json.display().to_string())?;
    fs::write(&svg, plot::svg(report)).with_context(|| svg.display().to_string())?;
    eprintln!("written: {} and {}", json.display(), svg.display());
    Ok(())
}

struct Bench<'a> {
    stage: Stage,
    extent: &'a Extent,
    report: Report,
}

impl Bench<'_> {
    fn measure(&mut self) -> Result<()> {
        let _manager = self.stage.manager()?;
        for kind in [Kind::Http, Kind::Opaque] {
            for &program in kind.programs() {
                progress(&format!("memory: {program:?} {kind:?}, {} idle connections", self.extent.idle));
                let proxy = self.stage.start(program, kind)?;
                let outcome = self.memory(&proxy, kind);
                explained(outcome, &proxy, kind)?;
                proxy.stop(&self.stage.scene)?;
            }
        }
        // hnp serves both kinds in one process, as it is deployed.
        let hnp = self.stage.start(Program::Hnp, Kind::Http)?;
        let mut proxies = Vec::new();
        for kind in [Kind::Http, Kind::Opaque] {
            for &program in kind.programs().iter().filter(|program| **program != Program::Hnp) {
                proxies.push((kind, self.stage.start(program, kind)?));
            }
        }
        for round in 0..self.extent.rounds {
            for kind in [Kind::Http, Kind::Opaque] {
                let mut all: Vec<&Proxy> =
                    proxies.iter().filter(|(of, _)| *of == kind).map(|(_, proxy)| proxy).collect();
                all.push(&hnp);
                let turns = round % all.len();
                all.rotate_left(turns);
                for load in LOADS.iter().filter(|load| kind == Kind::Http || !load.http2) {
                    progress(&format!(
                        "round {} of {}: {kind:?}, {}",
                        round + 1,
                        self.extent.rounds,
                        load.what
                    ));
                    self.in_turns(load, kind, &all)?;
                }
            }
            progress(&format!("round {} of {}: own TLS", round + 1, self.extent.rounds));
            self.own_tls(&hnp)?;
        }
        eprintln!();
        drop(proxies);
        hnp.stop(&self.stage.scene)
    }

    fn in_turns(&mut self, load: &Load, kind: Kind, proxies: &[&Proxy]) -> Result<()> {
        for &key in load.keys {
            for proxy in proxies {
                let to = match proxy.program {
                    Program::Hnp if load.http2 => Stage::http2(),
                    program => Stage::address(program, kind, key),
                };
                let mut job = job(load.how, to, self.extent.window);
                job.milliseconds *= u64::from(load.windows);
                job.path = load.path.to_owned();
                job.connections = load.connections;
                job.proxy = Some(proxy.pid());
                let outcome = explained(self.run(&self.stage.pod, &job), proxy, kind)?;
                ensure!(outcome.cpu_seconds > 0.0, "{:?} took no CPU: it did not carry this", proxy.program);
                for figure in load.figures {
                    let row = Row::new(kind, format!("{}, {}", load.what, figure.what), figure.unit)
                        .with(Some(key), figure.aim);
                    let value = (figure.of)(&outcome);
                    ensure!(
                        value.is_finite(),
                        "{:?}: {}: no request was answered",
                        proxy.program,
                        row.name()
                    );
                    self.report.add(row, proxy.program.name(), value);
                }
            }
        }
        Ok(())
    }

    /// A pod that does mutual TLS itself on each of its connections, one after the other, and one that dials
    /// plain HTTP and is captured.
    fn own_tls(&mut self, hnp: &Proxy) -> Result<()> {
        for key in [Key::Rsa, Key::P256] {
            let files = self.stage.identity(key);
            let files = [&files.certificate, &files.key, self.stage.roots()];
            let mut own = job(load::Kind::New, (MANAGER4, MANAGER).into(), self.extent.window);
            own.tls = Some(files.map(|file| file.display().to_string()));
            let plain =
                job(load::Kind::New, Stage::address(Program::Hnp, Kind::Http, key), self.extent.window);
            for (column, job) in [(OWN_TLS, own), (HNP, plain)] {
                let outcome = explained(self.run(&self.stage.pod, &job), hnp, Kind::Http)?;
                ensure!(outcome.requests > 0, "{column}: no request was answered");
                let row = Row::new(Kind::Http, "a connection per request, time".to_owned(), "us")
                    .with(Some(key), Some(Aim::Ratio(0.2)));
                self.report.add(row, column, outcome.seconds * 1e6 / outcome.requests as f64);
            }
        }
        Ok(())
    }

    fn memory(&mut self, proxy: &Proxy, kind: Kind) -> Result<()> {
        let column = proxy.program.name();
        let row = Row::new(kind, "resident at rest".to_owned(), "MiB").with(None, Some(Aim::AtMost(20.0)));
        self.report.add(row, column, proxy.resident()? / KIB / KIB);
        let mut job = job(load::Kind::Idle, Stage::address(proxy.program, kind, Key::P256), Duration::ZERO);
        job.connections = FIRST;
        drop(self.hold(&job)?);
        let before = settled(proxy)?;
        job.connections = self.extent.idle;
        let held = self.hold(&job)?;
        let more = settled(proxy)? - before;
        drop(held);
        let row = Row::new(kind, "an idle connection".to_owned(), "KiB").with(None, Some(Aim::AtMost(8.0)));
        self.report.add(row, column, more / KIB / self.extent.idle as f64);
        Ok(())
    }

    /// Holds connections until it is dropped.
    fn hold(&self, job: &Job) -> Result<Running> {
        let mut client = self.stage.spawn_beside(client(&self.stage.pod, job)?)?;
        let until = Instant::now() + Duration::from_secs(60);
        while client.stdout().is_empty() {
            interrupt::check()?;
            ensure!(client.is_alive(), "the client ended: {}", client.stderr());
            ensure!(Instant::now() < until, "{} connections were not made within a minute", job.connections);
            poll::pause();
        }
        Ok(client)
    }

    fn run(&self, place: &Place, job: &Job) -> Result<Outcome> {
        let mut client = self.stage.spawn_beside(client(place, job)?)?;
        let until = Instant::now() + Duration::from_secs(60);
        let finished = loop {
            if let Some(finished) = client.wait_up_to(Duration::from_millis(200)) {
                break finished;
            }
            interrupt::check()?;
            ensure!(Instant::now() < until, "the client is not done after a minute");
        };
        interrupt::check()?;
        ensure!(finished.status.success(), "{finished}");
        serde_json::from_str(finished.text().trim()).with_context(|| finished.text())
    }
}

fn job(kind: load::Kind, to: SocketAddr, window: Duration) -> Job {
    Job {
        kind,
        to,
        host: MANAGER_NAME.to_owned(),
        path: SMALL.to_owned(),
        connections: 1,
        opens_ns: None,
        milliseconds: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
        proxy: None,
        tls: None,
        samples: false,
    }
}

fn client(place: &Place, job: &Job) -> Result<Cmd> {
    let own = std::env::current_exe().context("where this program is")?;
    Ok(place.command(own).args(["load", &serde_json::to_string(job)?]))
}

/// Resident bytes, once they no longer change.
fn settled(proxy: &Proxy) -> Result<f64> {
    let mut last = proxy.resident()?;
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(200));
        let now = proxy.resident()?;
        if (now - last).abs() < 64.0 * KIB {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

fn explained<T>(outcome: Result<T>, proxy: &Proxy, kind: Kind) -> Result<T> {
    outcome.with_context(|| {
        format!("{:?} ({kind:?}) did not carry it; its last words: {}", proxy.program, proxy.words())
    })
}

fn progress(what: &str) {
    eprint!("\r{what:<70}");
}
