//! From no mutual TLS to strict and back, one namespace after the other, by changes of the configuration alone: what
//! the report says at each step is what the next one does.

use std::fs::File;
use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, Job, Met, Report, Target};
use hnp_tests::poll::eventually;
use hnp_tests::process::{Place, Running};
use hnp_tests::scene::{DESTINATIONS, Scene, UPSTREAM};
use hnp_tests::tools::python;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::enforcement::{self, Met as By, dial, name};

const RESTING: &str = include_str!("../clients/resting.py");
/// Time enough for whatever is to be seen.
const SOON: Duration = Duration::from_secs(30);
/// Longer than the scenario: the clients are told when it is over.
const WHOLE: f64 = 300.0;

#[test]
fn namespace_by_namespace_to_strict_and_back_loses_nobody_whom_the_report_has_not_named() {
    let scene = Scene::for_test();
    let _manager = scene.loose_manager("manager", 80);
    let [web, legacy, old, job] = std::array::from_fn(|_| scene.pod());
    name(&scene, &web, "staging", "web");
    name(&scene, &legacy, "staging", "legacy");
    name(&scene, &old, "staging", "old");
    name(&scene, &job, "production", "job");
    // Older than the agent, so no hook has seen it.
    let arguments = ["-c", RESTING, &MANAGER4.to_string(), "80"];
    let older = old.command(python()).args(arguments).arg(scene.path("go")).deadline(SOON * 20).spawn();
    eventually(SOON, "it is open", || older.stdout().contains("open"));

    let mut agent = Agent::start(&scene, &config(&scene, "observe", ""));
    let pid = agent.pid();
    let running = [storm(&web), storm(&job)];
    let tls = || {
        let roots = scene.roots.to_string_lossy();
        let url = format!("https://{MANAGER_NAME}:80/hello");
        let arguments =
            ["-s4", "--http1.1", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &roots, &url];
        legacy.command("curl").args(arguments).run().text()
    };

    // 1. Observed: everybody is listed, nobody is touched, and what they send is not known.
    assert_eq!(tls(), "200");
    let listed = |why: &str, who: &str| is_listed(&report(&scene, &[]).1, why, who);
    for who in ["staging/web", "staging/legacy", "production/job"] {
        eventually(SOON, &format!("{who} is observed"), || listed("observed", who));
    }
    let (code, seen) = report(&scene, &[]);
    assert_eq!((code, &seen["outlook"], &seen["routes"][0]["captured"]), (2, &"unknown".into(), &0.into()));
    assert!(!listed("uncaptured", "staging/old"), "it is as direct as all the others");

    // 2. One namespace is carried, the other one still observed.
    agent.reload(&config(&scene, "observe", "{namespaces: [staging], enforcement: loose}"));
    eventually(SOON, "staging is carried", || begun(&scene, "staging", "http1") > 0);
    assert_eq!(tls(), "200", "whoever keeps his own TLS is not disturbed");
    eventually(SOON, "it is named", || listed("own_tls", "staging/legacy"));
    let (code, seen) = report(&scene, &[]);
    assert_eq!((code, &seen["outlook"]), (2, &"cuts_off".into()));
    let named = row(&seen, "own_tls", "staging/legacy").expect("it is there");
    assert_eq!((&named["reason"], &named["under_strict"]), (&"tls_from_client".into(), &"refused".into()));
    let share = of_namespace(&seen, "staging")["tls_share"].as_f64().unwrap_or(-1.0);
    assert!(share > 0.0 && share < 1.0, "{seen}");
    assert!(
        is_listed(&seen, "observed", "production/job") && !is_listed(&seen, "observed", "staging/web"),
        "{seen}"
    );
    let uncaptured = row(&seen, "uncaptured", "staging/old").expect("the older one");
    assert_eq!(
        (&uncaptured["times"], &uncaptured["destination"], &uncaptured["under_strict"]),
        (&1.into(), &"198.18.0.9:80".into(), &"reset".into())
    );
    let words = seen["words"].as_str().unwrap_or_default();
    assert!(
        words.starts_with("strict would cut off: staging/legacy on manager (tls_from_client); not known"),
        "{words}"
    );
    assert_eq!(begun(&scene, "production", "http1"), 0, "the control: what is observed is not captured");

    // 3. All are carried: of production the report says that nobody would be cut off.
    agent.reload(&config(&scene, "loose", ""));
    eventually(SOON, "production is carried", || begun(&scene, "production", "http1") > 0);
    let (code, seen) = report(&scene, &["--namespace", "production"]);
    assert_eq!(
        (code, &seen["outlook"], &seen["workloads_matching"]),
        (0, &"clear".into(), &0.into()),
        "{seen}"
    );
    assert_eq!(report(&scene, &[]).0, 2, "the control: staging has one");
    let page = tool(&scene, &[]);
    eprintln!("{}", page.0);
    let last = page.0.lines().last().unwrap_or_default().to_owned();
    assert!(
        last.starts_with("strict would cut off: staging/legacy on manager (tls_from_client)"),
        "{}",
        page.0
    );

    // 4. One namespace is strict, the other one still loose.
    agent.reload(&config(&scene, "loose", "{namespaces: [production], enforcement: strict}"));
    let before = begun(&scene, "production", "http1");
    eventually(SOON, "production goes on", || begun(&scene, "production", "http1") > before + 10);
    assert_eq!(of_namespace(&report(&scene, &[]).1, "production")["enforcement"], "strict");
    assert_eq!(tls(), "200", "the control: staging is not");

    // 5. The door is closed: whom the report named is cut off, and nobody else.
    agent.reload(&config(&scene, "strict", ""));
    eventually(SOON, "whoever speaks TLS is cut off", || tls() == "000");
    File::create(scene.path("go")).expect("the world's directory is ours");
    let said = older.wait(SOON).ok();
    assert!(said.ends_with("ECONNRESET\n"), "{said}");
    let (code, seen) = report(&scene, &[]);
    assert_eq!((code, &seen["outlook"]), (2, &"cuts_off".into()));
    assert!(is_listed(&seen, "refused", "staging/legacy"), "{seen}");
    assert!(!is_listed(&seen, "uncaptured", "staging/old"), "{seen}");
    assert_eq!(seen["workloads_matching"], 1, "{seen}");
    let words = seen["words"].as_str().unwrap_or_default();
    assert!(words.starts_with("strict cuts off already: staging/legacy"), "{words}");

    // 6. And back: it is let through again, at once.
    agent.reload(&config(&scene, "loose", ""));
    eventually(SOON, "it is let through", || tls() == "200");
    let seen = report(&scene, &[]).1;
    assert!(
        is_listed(&seen, "own_tls", "staging/legacy") && !is_listed(&seen, "refused", "staging/legacy"),
        "{seen}"
    );

    // 7. As it began.
    agent.reload(&config(&scene, "observe", ""));
    eventually(SOON, "all are observed", || {
        let seen = report(&scene, &["--since", "10s"]).1;
        ["staging/web", "production/job"].iter().all(|who| is_listed(&seen, "observed", who))
    });
    assert!(agent.is_alive() && agent.pid() == pid);
    assert_eq!(agent.metrics().sum("hnp_config_generation", &[]), 7.0);
    assert_eq!(agent.metrics().sum("hnp_config_restart_needed", &[]), 0.0);
    for running in running {
        let Report { dials, .. } = ended(running);
        let count = |met: Met| dials.iter().filter(|dial| dial.met == met).count();
        let lost: Vec<_> =
            dials.iter().filter(|dial| ![Met::Carried, Met::Direct].contains(&dial.met)).collect();
        assert!(lost.is_empty(), "{lost:?}");
        assert!(count(Met::Direct) > 0 && count(Met::Carried) > 0, "{dials:?}");
        let last = dials.last().map(|dial| dial.met);
        assert_eq!((dials[0].met, last), (Met::Direct, Some(Met::Direct)));
    }
    // The control: somebody was captured by what each connection begins with, and by nothing else.
    let begun =
        |begins| agent.metrics().sum("hnp_connections_begun", &[("route", "manager"), ("begins", begins)]);
    assert!(begun("http1") > 0.0 && begun("tls") >= 3.0);
    assert_eq!(begun("http2") + begun("opaque"), 0.0);
}

#[test]
fn who_asks_for_another_name_is_named_and_whom_the_route_lets_through_is_not() {
    let scene = Scene::for_test();
    let _manager = scene.loose_manager("manager", 80);
    let pod = scene.pod();
    name(&scene, &pod, "staging", "web");
    let route =
        Route::loose("manager", &["manager.hnp.test:80"], UPSTREAM).set("passthrough", "[listed.hnp.test]");
    let _agent = Agent::start(&scene, &enforcement::config(&scene, route));
    let ask = |host: &str| {
        let target = Target::new((MANAGER4, 80), host, "manager");
        client::run(&pod, &Job::Short { targets: vec![target], total: 3, concurrency: 1 }).assert_all_ok(3);
    };
    ask("listed.hnp.test");
    eventually(SOON, "it is captured", || begun(&scene, "staging", "http1") == 3);
    let (code, seen) = report(&scene, &[]);
    assert_eq!(
        (code, &seen["workloads_matching"]),
        (0, &0.into()),
        "a strict route lets it through too: {seen}"
    );
    ask("other.hnp.test");
    let (code, seen) = report(&scene, &["--route", "manager"]);
    let row = row(&seen, "other_name", "staging/web").expect("it is named");
    assert_eq!((code, &row["reason"], &row["times"]), (2, &"host_refused".into(), &3.into()), "{seen}");
    // Whom somebody has mended since is left out.
    eventually(SOON, "it is long ago", || report(&scene, &["--since", "1s"]).0 == 0);
}

#[test]
fn who_went_direct_while_no_agent_answered_is_named_once_one_does() {
    let scene = Scene::for_test();
    let _manager = scene.loose_manager("manager", 80);
    let [web, calm, brief, nameless] = std::array::from_fn(|_| scene.pod());
    name(&scene, &web, "staging", "web");
    name(&scene, &calm, "staging", "calm");
    name(&scene, &brief, "staging", "brief");
    // By its name alone, which the next agent has yet to resolve when it reads what the kernel kept.
    let config = |route: fn(&str, &[&str], &str) -> Route| {
        enforcement::config(&scene, route("manager", &["manager.hnp.test:80"], UPSTREAM))
    };
    let agent = Agent::start(&scene, &config(Route::loose));
    assert_eq!((dial(&web), dial(&calm)), (By::Agent, By::Agent));

    // It hangs, and goes on.
    agent.signal(Signal::SIGSTOP);
    eventually(SOON, "direct while it hangs", || dial(&web) == By::Manager);
    agent.signal(Signal::SIGCONT);
    eventually(SOON, "captured when it goes on", || dial(&nameless) == By::Agent);
    let times = |who: &str| {
        row(&report(&scene, &[]).1, "loose_direct", who).map_or(0, |row| row["times"].as_u64().unwrap_or(0))
    };
    eventually(SOON, "it is named", || times("staging/web") == 1);

    // It dies, and another one comes; of two pods that went direct meanwhile one has gone by then.
    agent.kill();
    eventually(SOON, "direct once the heartbeat is stale", || dial(&web) == By::Manager);
    assert_eq!((dial(&brief), dial(&brief)), (By::Manager, By::Manager));
    let gone_uid = brief.uid.clone();
    scene.delete(brief);
    let agent = Agent::start(&scene, &config(Route::loose));
    assert_eq!(dial(&calm), By::Agent);
    eventually(SOON, "it is named", || times("staging/web") == 2);
    let (code, seen) = report(&scene, &[]);
    let rows = seen["workloads"].as_array().expect("rows");
    let gone =
        rows.iter().find(|row| row["pod_uid"].is_null()).unwrap_or_else(|| panic!("it is counted: {seen}"));
    assert_eq!((&gone["times"], &gone["destination"]), (&2.into(), &"198.18.0.9:80".into()), "{seen}");
    // Nobody has seen what it sent, and all that the kernel counted are somebody's.
    assert_eq!((&gone["under_strict"], code, &seen["outlook"]), (&"unknown".into(), 2, &"unknown".into()));
    let dials: u64 = rows.iter().filter_map(|row| row["times"].as_u64()).sum();
    assert_eq!(seen["loose_direct"], dials, "{seen}");
    let by_uid = |uid: &str| rows.iter().any(|row| row["pod_uid"] == uid);
    assert!(by_uid(&web.uid) && !by_uid(&gone_uid), "{seen}");
    let named = row(&seen, "loose_direct", "staging/web").expect("as above");
    assert_eq!((&named["under_strict"], &named["route"]), (&"unknown".into(), &"manager".into()), "{seen}");
    // Once it has been carried it is known what strict does to it.
    assert_eq!(dial(&web), By::Agent);
    let page = tool(&scene, &[]).0;
    assert!(page.contains("carried       loose_direct  2      staging/web"), "{page}");
    let last = page.lines().last().unwrap_or_default();
    assert!(last.starts_with("not known, because they went direct while no agent answered: "), "{page}");
    // The controls: who was carried all the time is not listed, and where the door is closed nobody can be.
    assert!(!is_listed(&seen, "loose_direct", "staging/calm"), "{seen}");
    agent.reload(&config(Route::strict));
    assert_eq!(report(&scene, &[]).1["workloads_matching"], 0);
}

fn config(scene: &Scene, enforcement: &str, overrides: &str) -> Config {
    let route = match enforcement {
        "observe" => Route::observe,
        "loose" => Route::loose,
        _ => Route::strict,
    };
    let mut route = route("manager", DESTINATIONS, UPSTREAM);
    if !overrides.is_empty() {
        route = route.set("overrides", &format!("[{overrides}]"));
    }
    enforcement::config(scene, route)
}

/// What the command prints, and its exit code.
#[track_caller]
fn tool(scene: &Scene, arguments: &[&str]) -> (String, i32) {
    let dir = scene.run_dir();
    let asked = ["migration", "--run-dir", &dir.to_string_lossy()];
    let finished = Agent::tool(scene, &[&asked[..], arguments].concat());
    (finished.text(), finished.status.code().unwrap_or(-1))
}

#[track_caller]
fn report(scene: &Scene, arguments: &[&str]) -> (i32, Value) {
    let (text, code) = tool(scene, &[&["--json"], arguments].concat());
    match serde_json::from_str(&text) {
        Ok(report) => (code, report),
        Err(error) => panic!("{error}: {text}"),
    }
}

fn row(report: &Value, why: &str, who: &str) -> Option<Value> {
    let rows = report["workloads"].as_array().into_iter().flatten();
    let is = |row: &&Value| {
        let of = |key: &str| row[key].as_str().unwrap_or_default();
        of("why") == why && format!("{}/{}", of("namespace"), of("pod")) == who
    };
    rows.into_iter().find(is).cloned()
}

fn is_listed(report: &Value, why: &str, who: &str) -> bool {
    row(report, why, who).is_some()
}

fn of_namespace(report: &Value, namespace: &str) -> Value {
    let rows = report["routes"][0]["namespaces"].as_array().into_iter().flatten();
    rows.into_iter().find(|row| row["namespace"] == namespace).cloned().unwrap_or_default()
}

/// How many captured connections of a namespace began so.
fn begun(scene: &Scene, namespace: &str, with: &str) -> u64 {
    of_namespace(&report(scene, &[]).1, namespace)["begins"][with].as_u64().unwrap_or(0)
}

/// New connections all the time.
fn storm(place: &Place) -> Running {
    let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
    client::load(place, &Job::Storm { target, rate: 20, at_most: 50, seconds: WHOLE }).spawn()
}

fn ended(running: Running) -> Report {
    running.signal(Signal::SIGTERM);
    running.wait(SOON).json()
}
