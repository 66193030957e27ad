//! `hnp-agent doctor --route` names the cause of each row of the usual table of failures of mutual TLS, under the
//! reason that the agent's own access line has for it, and finds nothing bad where nothing is; whom it cannot verify
//! it sends nothing.

mod rows;
mod steps;

use std::fs;
use std::time::Duration;

use hnp_tests::agent::{Agent, Build, CAPABILITIES, Config, Route};
use hnp_tests::client::{self, RawCase};
use hnp_tests::poll::eventually;
use hnp_tests::process::{Cmd, Finished};
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};
use serde_json::Value;

/// What the agent says of a pod's request, in its answer, its log and its metric, and what doctor says beside it:
/// the same reason. `cause`: words for it that the answer and the log have, too.
#[track_caller]
fn row(scene: &Scene, config: &Config, (reason, status): (&str, u16), cause: &str) -> Found {
    let pod = scene.pod();
    let ask = || {
        let case = RawCase { quiet_ms: 20_000, ..RawCase::new(get("/hello")) };
        let answer = client::raw(&pod, (MANAGER4, 80), vec![case]).remove(0);
        (answer.status(), answer.text())
    };
    let agent = if reason == "identity_unavailable" {
        // It is not ready, and carries what it can: nothing.
        let agent = Agent::spawn(scene.agent_place(), config, CAPABILITIES);
        eventually(Duration::from_secs(20), "the agent captures", || ask().0 == Some(status));
        agent
    } else {
        Agent::start(scene, config)
    };
    let (answered, text) = ask();
    assert!(answered == Some(status) && text.contains(reason) && text.contains(cause), "{cause}: {text}");
    assert_told(&agent, (reason, status), cause);
    let found = doctor(scene, config, &[]);
    assert_eq!(found.exit(), 1, "{found:?}");
    assert!(found.bad().iter().any(|(_, bad)| bad == reason), "{reason}: {found:?}");
    agent.stop(Duration::from_secs(20));
    found
}

/// The agent's log and metric name a reason and its cause.
#[track_caller]
fn assert_told(agent: &Agent, (reason, status): (&str, u16), cause: &str) {
    let line = agent.access_line_with(reason);
    assert_eq!((&line["route"], &line["status"]), (&"manager".into(), &status.into()), "{line}");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains(cause)), "{cause}: {line}");
    assert!(agent.metrics().sum("hnp_requests", &[("reason", reason), ("route", "manager")]) >= 1.0);
}

/// What was found.
#[derive(Debug)]
struct Found {
    json: Value,
    code: Option<i32>,
}

impl Found {
    fn exit(&self) -> i32 {
        self.code.unwrap_or(-1)
    }

    fn findings(&self) -> &[Value] {
        self.json["findings"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The first finding of an area whose subject contains this.
    #[track_caller]
    fn one(&self, area: &str, what: &str) -> &Value {
        let is = |one: &&Value| {
            one["area"] == area && one["what"].as_str().is_some_and(|text| text.contains(what))
        };
        self.findings().iter().find(is).unwrap_or_else(|| panic!("{area} {what}: {self:?}"))
    }

    #[track_caller]
    fn state(&self, area: &str, what: &str) -> String {
        self.one(area, what)["state"].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn detail(&self, area: &str, what: &str) -> String {
        self.one(area, what)["detail"].as_str().unwrap_or_default().to_owned()
    }

    /// Area and reason of all that is bad.
    fn bad(&self) -> Vec<(String, String)> {
        let word = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let bad = self.findings().iter().filter(|one| one["state"] == "bad");
        bad.map(|one| (word(one, "area"), word(one, "reason"))).collect()
    }
}

#[track_caller]
fn doctor(scene: &Scene, config: &Config, more: &[&str]) -> Found {
    doctor_of(Build::Ordinary, scene, config, more)
}

/// The same by a build's doctor, in the configuration's environment.
#[track_caller]
fn doctor_of(build: Build, scene: &Scene, config: &Config, more: &[&str]) -> Found {
    let arguments = [&["--route", "manager", "--json"], more].concat();
    let finished = run(build, scene, config, &arguments);
    let json = serde_json::from_str(&finished.text()).unwrap_or_else(|error| panic!("{error}: {finished}"));
    Found { json, code: finished.status.code() }
}

fn run(build: Build, scene: &Scene, config: &Config, arguments: &[&str]) -> Finished {
    let path = scene.path("doctor.yaml");
    fs::write(&path, config.to_yaml()).expect("the world's directory is ours");
    let command = scene.agent_place().command(build.binary()).args(["doctor", "--config"]).arg(&path);
    let set = |command: Cmd, (key, value): &(&'static str, String)| command.env(key, value);
    config.env.iter().fold(command.args(arguments), set).run()
}

fn plain(scene: &Scene) -> Config {
    scene.config().route(scene.route())
}

/// For an address, the name that the certificate has.
fn with_upstream(scene: &Scene, upstream: &str) -> Config {
    let mut route = Route::strict("manager", DESTINATIONS, upstream).with(IDENTITY, TRUST);
    if upstream.contains("198.18.") {
        route = route.set("server_name", MANAGER_NAME);
    }
    scene.config().route(route.set("timeouts", "{connect: 2s}"))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n")
}
