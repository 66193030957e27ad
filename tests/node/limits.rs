//! The agent within the limits of its deployment: a tenth of a processor and 128 MiB.

use std::time::Duration;

use hnp_tests::aloud::say;
use hnp_tests::client::{Job, Met, Report, Target};
use hnp_tests::kernel;
use hnp_tests::node::{AgentPod, Limits, Node, Spec, Usage};
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};

use super::first_act::post;
use super::manifest;

const THOUSANDTHS: u64 = 100;
const MEMORY: u64 = 128 << 20;
/// How many pods it carries in these limits, one after the other.
const PODS: usize = 5;

/// Requests a second, of this many pods: half of them on connections that are kept, half of them on a new one each.
const RATE: u64 = 200;
const CALLERS: u64 = 4;
const SECONDS: u64 = 20;
/// Far too little, and for how long that is tried.
const STARVED: u64 = 10;
const STARVED_SECONDS: u64 = 5;

#[test]
fn a_tenth_of_a_processor_and_128_mebibytes_are_enough_to_start_and_to_serve() {
    let scene = Scene::for_test();
    let node = Node::start(&scene);
    let manager = scene.strict_manager();
    let agent = AgentPod::start(&node, &scene, &manifest().limit("cpu", "100m").limit("memory", "128Mi"));
    let limits = limits(&agent);
    for number in 0..PODS {
        let name = format!("job-{number}");
        let (_, ended) = node.run(&post(&name, &name)).expect("a pod runs");
        assert!(ended.output.contains("HTTP/1.1 200 "), "{ended:?}");
        assert_eq!(manager.request(&name).client_serial(), scene.client_serial);
    }
    if let Some(limits) = limits {
        let Usage { processor, periods, peak } = limits.usage();
        say(&format!(
            "the agent in 100m and 128 MiB, after {PODS} pods: {processor:?} of a processor, throttled in {} of {} periods, at \
             most {} bytes",
            periods.1,
            periods.0,
            peak.map_or("?".to_owned(), |bytes| bytes.to_string())
        ));
        assert_not_killed(&limits);
    }
}

/// Of the released image alone: xtask leaves it out where another build is in the image.
#[test]
fn two_hundred_requests_a_second_are_carried_in_them_and_none_is_lost() {
    if kernel::in_a_guest() {
        say(
            "200 requests a second in 100m: left to the host, an emulated processor says nothing about rates",
        );
        return;
    }
    let scene = Scene::for_test();
    let node = Node::start(&scene);
    let manager = scene.strict_manager();
    let agent = AgentPod::start(&node, &scene, &manifest().limit("cpu", "100m").limit("memory", "128Mi"));
    let Some(limits) = limits(&agent) else { return };

    let before = limits.usage();
    let enough = Outcome::of(&load(&node, "enough", SECONDS));
    let after = limits.usage();
    assert_eq!(enough.failed, 0, "{enough:?}");
    let requests = manager.requests();
    assert_eq!(requests.len(), enough.carried, "{enough:?}");
    assert!(requests.iter().all(|request| request.client_serial() == scene.client_serial));
    assert_not_killed(&limits);
    let used = after.processor.saturating_sub(before.processor);
    let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    say(&format!(
        "the agent in 100m and 128 MiB at {:.0} requests/s for {:.0} s: {} carried, none lost; {:.0} % of the 100m used, throttled in \
         {:.1} % of the periods, {:.1} MiB at most; p50 and p99 {:.2} and {:.2} ms on kept connections, {:.2} and {:.2} ms on new ones",
        enough.carried as f64 / enough.seconds,
        enough.seconds,
        enough.carried,
        1000.0 * used.as_secs_f64() / enough.seconds,
        share(after.periods.1 - before.periods.1, after.periods.0 - before.periods.0),
        after.peak.unwrap_or(0) as f64 / f64::from(1 << 20),
        enough.kept.0,
        enough.kept.1,
        enough.new.0,
        enough.new.1,
    ));

    // The control: the limit is what holds it, and the load is one.
    limits.allow(STARVED);
    let starved = Outcome::of(&load(&node, "starved", STARVED_SECONDS));
    limits.allow(THOUSANDTHS);
    say(&format!(
        "the same in {STARVED}m: {} carried and {} failed in {:.0} s",
        starved.carried, starved.failed, starved.seconds
    ));
    let rate = |outcome: &Outcome| outcome.carried as f64 / outcome.seconds;
    assert!(rate(&starved) < rate(&enough) / 2.0, "{STARVED}m are as good as {THOUSANDTHS}m: {starved:?}");
}

/// What became of a load; times in milliseconds, p50 and p99, of the worst pod.
#[derive(Debug, Default)]
struct Outcome {
    carried: usize,
    failed: usize,
    seconds: f64,
    kept: (f64, f64),
    new: (f64, f64),
}

impl Outcome {
    fn of(reports: &[Report]) -> Self {
        let mut outcome = Self::default();
        let count = |number: u64| usize::try_from(number).expect("it fits into memory");
        let worse = |one: (f64, f64), two: (f64, f64)| (one.0.max(two.0), one.1.max(two.1));
        for report in reports {
            let carried = report.dials.iter().filter(|dial| dial.met == Met::Carried).count();
            outcome.carried += count(report.ok) + carried;
            outcome.failed += count(report.failed) + report.dials.len() - carried;
            outcome.seconds = outcome.seconds.max(report.seconds);
            outcome.kept = worse(outcome.kept, (report.p50_ms, report.p99_ms));
            let mut took: Vec<u64> = report.dials.iter().map(|dial| dial.took_us).collect();
            took.sort_unstable();
            let at = |percent: usize| took.get(took.len() * percent / 100).map_or(0.0, |us| *us as f64 / 1e3);
            outcome.new = worse(outcome.new, (at(50), at(99)));
        }
        outcome
    }
}

fn limits(agent: &AgentPod<'_>) -> Option<Limits> {
    let limits = Limits::of(agent, THOUSANDTHS, MEMORY);
    if limits.is_none() {
        assert!(!kernel::in_a_guest(), "a guest's cgroup2 has controllers for both");
        say(
            "THE LIMITS WERE NOT IN FORCE: this machine's cgroup2 lacks the controllers cpu and memory, and there is no \
             cgroup v1 with them; they are with cargo xtask test --tier node --kernel lts",
        );
    }
    limits
}

/// Killed for want of memory, the container would have been started anew by nobody.
#[track_caller]
fn assert_not_killed(limits: &Limits) {
    let events = limits.memory_events();
    assert!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
}

/// The rate, from several pods at a time.
fn load(node: &Node<'_>, name: &str, seconds: u64) -> Vec<Report> {
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
    let (rate, seconds) = (RATE / CALLERS, Duration::from_secs(seconds).as_secs_f64());
    let jobs = (0..CALLERS).map(|number| match number % 2 {
        0 => Job::Steady { target: target.clone(), rate, connections: 4, seconds },
        _ => Job::Storm { target: target.clone(), rate, at_most: 64, seconds },
    });
    std::thread::scope(|scope| {
        let running: Vec<_> = jobs
            .enumerate()
            .map(|(number, job)| {
                let spec = Spec::load("shop", &format!("{name}-{number}"), &job);
                scope.spawn(move || node.run(&spec).expect("a pod runs").1)
            })
            .collect();
        let ended = running.into_iter().map(|pod| pod.join().expect("no panic in it"));
        ended
            .map(|ended| {
                serde_json::from_str(&ended.output).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
            })
            .collect()
    })
}
