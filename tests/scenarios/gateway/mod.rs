//! The explicit gateway: pods that were told of a proxy, in every form, against a strict manager; and what
//! becomes of those who want to go elsewhere with it, or have no business there.

mod attacks;
mod callers;
mod clients;
mod environment;
mod node;
mod running;
mod tls;
mod tunnels_over_http2;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, RawAnswer, RawCase};
use hnp_tests::manager::{Manager, Mode, Service, Setup};
use hnp_tests::process::Place;
use hnp_tests::scene::Scene;
use hnp_tests::topology::Pod;

/// Where the agent is, as a pod knows it: the node's address on the pod's own cable.
pub(crate) fn node_of(pod: &Pod) -> String {
    let [a, b, c, _] = pod.addr4.octets();
    format!("{a}.{b}.{c}.1")
}

/// A gateway without capture, for the pods' ranges, in front of a strict manager.
struct Gateway {
    pod: Pod,
    agent: Agent,
    manager: Manager,
    scene: Scene,
}

impl Gateway {
    /// With the usual strict route.
    fn new() -> Self {
        Self::with(|scene| scene.config().route(scene.route()))
    }

    fn with(config: impl FnOnce(&Scene) -> Config) -> Self {
        let scene = Scene::for_test();
        let manager = scene.strict_manager();
        let agent = start(&scene, &uncaptured(config(&scene)));
        Self { pod: scene.pod(), agent, manager, scene }
    }

    /// What to tell a client of a proxy.
    fn url(&self) -> String {
        format!("http://{}:7777", node_of(&self.pod))
    }

    /// Sends exact bytes to the gateway, each case on a connection of its own.
    fn raw(&self, cases: &[&str]) -> Vec<RawAnswer> {
        self.raw_from(&self.pod, cases)
    }

    fn raw_from(&self, place: &Place, cases: &[&str]) -> Vec<RawAnswer> {
        let addr: std::net::IpAddr = node_of(&self.pod).parse().expect("an address");
        client::raw(place, (addr, 7777), cases.iter().map(|bytes| RawCase::new(*bytes)).collect())
    }
}

pub(crate) fn uncaptured(mut config: Config) -> Config {
    config.capture = "off".to_owned();
    if config.gateway.is_empty() {
        config.gateway = "sources: [10.244.0.0/16, 'fd00:244::/32']".to_owned();
    }
    config
}

/// Without a single capability.
#[track_caller]
pub(crate) fn start(scene: &Scene, config: &Config) -> Agent {
    let mut agent = Agent::spawn(scene.agent_place(), config, &[]);
    agent.wait_until_ready();
    agent
}

/// The reason in hnp's own answer; what was answered, where it is none of hnp's.
fn reason(answer: &RawAnswer) -> String {
    let text = answer.text();
    let body = text.split("\r\n\r\n").last().unwrap_or_default();
    let parsed: Option<serde_json::Value> = serde_json::from_str(body).ok();
    parsed.and_then(|json| Some(json.get("reason")?.as_str()?.to_owned())).unwrap_or(text)
}

/// A gateway without capture and an opaque route behind it, to a strict manager that sends back what it gets.
#[track_caller]
fn echoing(scene: &Scene) -> (Manager, Agent) {
    use hnp_tests::scene::{IDENTITY, TRUST};
    let setup = Setup::new("echo", 81).tls(Mode::Strict, &scene.server, &scene.clients);
    let manager = Manager::start(scene, setup.service(Service::Echo));
    let upstream = "https://manager.hnp.test:81";
    let route = Route::opaque("echo", &["manager.hnp.test:81"], upstream).with(IDENTITY, TRUST);
    (manager, start(scene, &uncaptured(scene.config().route(route))))
}

fn strict(name: &str, destinations: &[&str]) -> Route {
    use hnp_tests::scene::{IDENTITY, TRUST, UPSTREAM};
    Route::strict(name, destinations, UPSTREAM).with(IDENTITY, TRUST)
}
