//! The dashboard and the alert rules in deploy/ ask for what the agent says: a real Prometheus scrapes a live run, and
//! each panel has data, each rule can be evaluated, and one fires when it must.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::client::{self, Job, Target};
use hnp_tests::poll::eventually;
use hnp_tests::prometheus::Prometheus;
use hnp_tests::scene::{IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, OTHER4};
use serde_json::Value;

/// Long enough for rates over a few scrapes.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn every_panel_has_data_and_every_rule_is_understood() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    // A second route's manager is not there: waiting, failing and dialling in vain are part of what is shown. A third
    // one keeps no connection, so that there are handshakes all the time.
    let route = |name, port, upstream| {
        Route::loose(name, &[&format!("{OTHER4}:{port}")], upstream).with(IDENTITY, TRUST)
    };
    let gone = route("gone", 80, "https://manager.hnp.test:9");
    let cold = route("cold", 81, UPSTREAM).set("pool_idle", "0");
    let agent = Agent::start(&scene, &scene.config().route(scene.route()).route(gone).route(cold));
    let pod = scene.pod();
    let other = OTHER4.to_string();
    let prometheus = Prometheus::start(&scene, 15090, &rules());
    let loads = [(MANAGER4, 80, MANAGER_NAME), (OTHER4, 80, &other), (OTHER4, 81, &other)].map(
        |(addr, port, host)| {
            let target = Target::new((addr, port), host, "manager");
            client::load(&pod, &Job::Steady { target, rate: 20, connections: 4, seconds: 90.0 }).spawn()
        },
    );
    let panels = panels();
    assert!(panels.len() > 20, "{}", panels.len());
    for (title, expression) in &panels {
        eventually(SOON, &format!("data for {title}: {expression}"), || {
            !prometheus.query(expression).is_empty()
        });
    }
    // The control: a metric that nobody has gives nothing.
    assert!(prometheus.query("sum(rate(hnp_no_such_metric_total[10s]))").is_empty());

    let unwell = || -> Vec<String> {
        let rules = prometheus.rules();
        assert_eq!(rules.len(), 12, "{rules:?}");
        rules.iter().filter(|rule| rule["health"] != "ok").map(Value::to_string).collect()
    };
    eventually(SOON, "all rules were evaluated", || unwell().is_empty());
    let state = |name: &str| {
        let rules = prometheus.rules();
        let rule = rules.iter().find(|rule| rule["name"] == name).cloned().expect("there is such a rule");
        rule["alerts"].as_array().map_or(0, Vec::len)
    };
    eventually(SOON, "the route whose manager is gone is noticed", || state("HnpRequestsFailing") == 1);
    // The control: what is well is not complained of, the route whose manager is there among it.
    for well in
        ["HnpNotReady", "HnpAgentDown", "HnpIdentityMissing", "HnpIdentityEndsSoon", "HnpGuardFailing"]
    {
        assert_eq!(state(well), 0, "{well}");
    }
    drop((loads, agent, manager));
}

#[test]
fn each_alert_fires_when_it_must_and_not_beside_it() {
    let scene = Scene::for_test();
    let tests = rules().with_file_name("rules_test.yaml");
    let node = scene.node();
    let run = |file: &Path| {
        node.command(tools::need("promtool"))
            .args(["test".as_ref(), "rules".as_ref(), file.as_os_str()])
            .run()
    };
    run(&tests).ok();
    // Each alert has a test, which the tool itself does not ask for.
    let text = std::fs::read_to_string(&tests).expect("it is part of the project");
    let all = std::fs::read_to_string(rules()).expect("it is part of the project");
    let alerts: Vec<&str> = all.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        assert!(
            text.contains(&format!("alertname: {alert}\n        exp_alerts:\n")),
            "{alert} has no test in which it fires"
        );
    }
    // The control: a rule that never fires fails its test.
    let broken = scene.path("rules.yaml");
    std::fs::write(&broken, all.replace("expr: hnp_ready == 0\n", "expr: hnp_ready == 2\n"))
        .expect("written");
    let copy = scene.path("rules_test.yaml");
    std::fs::write(&copy, &text).expect("written");
    let failed = run(&copy);
    assert!(!failed.status.success() && failed.stderr.contains("HnpNotReady"), "{failed}");
}

fn rules() -> PathBuf {
    deploy("prometheus/rules.yaml")
}

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

/// Title and query of each panel, as Grafana sends them where all nodes and routes are chosen.
fn panels() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(deploy("grafana/hnp.json")).expect("it is part of the project");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    panels
        .flat_map(|panel| {
            let title = panel["title"].as_str().expect("a title").to_owned();
            let targets = panel["targets"].as_array().cloned().unwrap_or_default();
            targets
                .into_iter()
                .map(move |target| (title.clone(), target["expr"].as_str().expect("a query").to_owned()))
        })
        .map(|(title, query)| {
            let query = query.replace("$instance", ".*").replace("$route", ".*");
            (title, query.replace("$__rate_interval", "10s").replace("[5m]", "[10s]"))
        })
        .collect()
}
