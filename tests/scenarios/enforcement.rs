//! What holds for a pod is decided in the kernel: by the route's enforcement, the pod's namespace, and
//! whether an agent answers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hnp_tests::agent::{Agent, CAPABILITIES, Config, Route};
use hnp_tests::api_server::Cluster;
use hnp_tests::client::{self, End, RawAnswer, RawCase};
use hnp_tests::dns::{Answer, Dns};
use hnp_tests::poll::eventually;
use hnp_tests::process::Place;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, MANAGER6, OTHER4, Pod};
use serde_json::json;

/// Ten times the heartbeat's limit.
const STALE: Duration = Duration::from_secs(20);

/// What a pod's plaintext request met.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Met {
    /// The agent, which carried it on over mutual TLS.
    Agent,
    /// The manager itself.
    Manager,
    /// ECONNREFUSED.
    Refused,
    /// Silence: somebody accepted and does not read.
    Nothing,
}

#[test]
fn observe_counts_and_lists_and_redirects_nothing() {
    let scene = Scene::for_test();
    let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    name(&scene, &pod, "payments", "worker-0");
    let agent = Agent::start(&scene, &config(&scene, Route::observe("manager", DESTINATIONS, UPSTREAM)));
    assert_eq!(dial(&pod), Met::Manager);
    assert!(manager.last_request().expect("it came").tls.is_none(), "in plaintext, as before hnp");
    dial(&pod);
    eventually(Duration::from_secs(10), "the pod is listed", || {
        observed(&agent).iter().any(|row| {
            row["pod_uid"] == pod.uid.as_str()
                && row["namespace"] == "payments"
                && row["pod"] == "worker-0"
                && row["connects"] == 2
                && row["destination"] == "198.18.0.9:80"
        })
    });
    let dir = scene.run_dir();
    let listed = Agent::tool(&scene, &["observed", "--run-dir", &dir.to_string_lossy()]);
    assert!(listed.ok().contains("payments/worker-0"), "{listed}");
    let by_port = Agent::tool(&scene, &["observed", "--admin", "127.0.0.1:15090"]);
    assert_eq!(by_port.ok(), listed.ok());
    let metrics = agent.metrics();
    assert_eq!(metrics.sum("hnp_kernel_verdicts", &[("verdict", "observed")]), 2.0);
    assert_eq!(metrics.sum("hnp_kernel_verdicts", &[("verdict", "redirected")]), 0.0);
    drop(agent);

    // The control: the same under loose is redirected.
    let _agent = scene.agent_with(Route::loose("manager", DESTINATIONS, UPSTREAM));
    assert_eq!(dial(&pod), Met::Agent);
}

#[test]
fn what_was_counted_of_a_destination_that_is_gone_is_none_of_another_ones() {
    let scene = Scene::for_test();
    let (_manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    let with = |destinations: &[&str]| config(&scene, Route::observe("manager", destinations, UPSTREAM));
    let observed = |agent: &Agent| {
        let rows = observed(agent);
        rows.iter().map(|row| row["destination"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let agent = Agent::start(&scene, &with(&["198.18.0.9:81"]));
    agent.reload(&with(&["198.18.0.9:81", "198.18.0.9:80"]));
    eventually(STALE, "the newest destination is dialled", || {
        dial(&pod);
        observed(&agent) == ["198.18.0.9:80"]
    });
    agent.reload(&with(&["198.18.0.9:81"]));
    agent.kill();
    // The next agent numbers on from those that are there.
    let agent = Agent::start(&scene, &with(&["198.18.0.9:81", "198.18.0.9:82"]));
    client::raw(&pod, (MANAGER4, 81), vec![RawCase::new("nobody listens")]);
    // The control: what is dialled is listed; what was not dialled has not been.
    eventually(STALE, "one is dialled", || observed(&agent).contains(&"198.18.0.9:81".to_owned()));
    assert_eq!(observed(&agent), ["198.18.0.9:81"]);
}

#[test]
fn loose_goes_direct_only_while_no_agent_answers() {
    let scene = Scene::for_test();
    let (_manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    let config = config(&scene, Route::loose("manager", DESTINATIONS, UPSTREAM));
    let agent = Agent::start(&scene, &config);
    assert_eq!(dial(&pod), Met::Agent);
    agent.kill();
    let killed = Instant::now();
    eventually(STALE, "direct once the heartbeat is stale", || dial(&pod) == Met::Manager);
    eprintln!("direct {:.1} s after the agent was killed", killed.elapsed().as_secs_f64());
    let agent = Agent::start(&scene, &config);
    assert_eq!(dial(&pod), Met::Agent, "captured again");
    // A worker that hangs is as bad as none: the agent is stopped as a whole here, which no worker survives.
    agent.signal(nix::sys::signal::Signal::SIGSTOP);
    eventually(STALE, "direct while it hangs", || dial(&pod) == Met::Manager);
    agent.signal(nix::sys::signal::Signal::SIGCONT);
    eventually(STALE, "captured when it goes on", || dial(&pod) == Met::Agent);
}

#[test]
fn loose_never_goes_direct_because_the_upstream_or_a_certificate_failed() {
    let scene = Scene::for_test();
    let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    // Nobody listens there; the manager on the destination would take plaintext gladly.
    let dead =
        Route::loose("manager", DESTINATIONS, "https://manager.hnp.test:81").set("timeouts", "{connect: 1s}");
    let agent = Agent::start(&scene, &config(&scene, dead));
    let answer = raw(&pod);
    assert_eq!(answer.status(), Some(502), "{}", answer.text());
    assert_eq!(manager.request_count(), 0);
    drop(agent);
    // The control: with a good upstream it is carried.
    let _agent = Agent::start(&scene, &config(&scene, Route::loose("manager", DESTINATIONS, UPSTREAM)));
    assert_eq!(dial(&pod), Met::Agent);
}

#[test]
fn strict_is_refused_at_once_while_no_agent_answers() {
    let scene = Scene::for_test();
    let (manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    let config = config(&scene, Route::strict("manager", DESTINATIONS, UPSTREAM));
    let agent = Agent::start(&scene, &config);
    assert_eq!(dial(&pod), Met::Agent);
    agent.kill();
    let before = manager.request_count();
    let deadline = Instant::now() + Duration::from_secs(4);
    let mut slowest = Duration::ZERO;
    // Over the heartbeat's limit: first a closed port refuses, then the kernel.
    while Instant::now() < deadline {
        let started = Instant::now();
        assert_eq!(dial(&pod), Met::Refused);
        slowest = slowest.max(started.elapsed());
    }
    eprintln!("refused within {slowest:?}, process start included");
    assert_eq!(manager.request_count(), before);
    let agent = Agent::start(&scene, &config);
    assert_eq!(dial(&pod), Met::Agent);
    assert!(
        agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "agent_stale")]) > 0.0,
        "the kernel refused"
    );
}

#[test]
fn a_namespace_may_have_another_enforcement_and_unknown_pods_get_the_strictest() {
    let scene = Scene::for_test();
    let _manager = scene.loose_manager("manager", 80);
    let (strict, staging, unknown) = (scene.pod(), scene.pod(), scene.pod());
    name(&scene, &strict, "production", "a");
    name(&scene, &staging, "staging", "b");
    let route = Route::loose("manager", DESTINATIONS, UPSTREAM).set(
        "overrides",
        "[{namespaces: [production], enforcement: strict}, {namespaces: [staging], enforcement: observe}]",
    );
    let agent = Agent::start(&scene, &config(&scene, route));
    eventually(Duration::from_secs(10), "staging is let off", || dial(&staging) == Met::Manager);
    assert_eq!((dial(&strict), dial(&unknown)), (Met::Agent, Met::Agent));
    agent.kill();
    eventually(STALE, "the kernel decides by pod", || {
        (dial(&strict), dial(&staging), dial(&unknown)) == (Met::Refused, Met::Manager, Met::Refused)
    });
    // The control: the pod that nothing was known of is let go direct once its namespace is.
    name(&scene, &unknown, "other", "c");
    let route = Route::loose("manager", DESTINATIONS, UPSTREAM)
        .set("overrides", "[{namespaces: [production], enforcement: strict}]");
    let agent = Agent::start(&scene, &config(&scene, route));
    eventually(Duration::from_secs(10), "it was looked for", || dial(&unknown) == Met::Agent);
    let listed = || agent.get("/readyz").is_ok_and(|(status, _)| status == 200);
    assert!(listed());
    agent.kill();
    eventually(STALE, "loose for other namespaces", || {
        (dial(&strict), dial(&unknown)) == (Met::Refused, Met::Manager)
    });
}

#[test]
fn whom_a_former_agent_let_off_stays_so_while_names_do_not_resolve() {
    const NAME: &str = "late.hnp.test";
    let scene = Scene::for_test();
    let (_manager, dns) = (scene.loose_manager("manager", 80), Dns::start(&scene));
    let (staging, other) = (scene.pod(), scene.pod());
    name(&scene, &staging, "staging", "a");
    name(&scene, &other, "other", "b");
    dns.set_addresses(NAME, &[MANAGER4.into()], 60);
    let route = Route::strict("manager", &[&format!("{NAME}:80")], UPSTREAM)
        .set("overrides", "[{namespaces: [staging], enforcement: observe}]");
    let config = config(&scene, route);
    let agent = Agent::start(&scene, &config);
    eventually(Duration::from_secs(10), "staging is let off", || dial(&staging) == Met::Manager);
    agent.kill();
    dns.set(NAME, Answer::Silence);
    let agent = Agent::spawn(scene.agent_place(), &config, CAPABILITIES);
    eventually(Duration::from_secs(10), "the next one waits for the name", || {
        agent.get("/readyz").is_ok_and(|(status, body)| status == 503 && body.contains(NAME))
    });
    // Many times as long as it takes until the kernel was told of the pods.
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert_eq!(dial(&staging), Met::Manager);
        // The control: nobody else is let off by that.
        assert!(!raw(&other).text().contains("\"tls\":null"));
    }
}

#[test]
fn pods_are_selected_by_their_labels_and_what_is_known_outlasts_the_api_server() {
    const SOON: Duration = Duration::from_secs(20);
    let scene = Scene::for_test();
    let _manager = scene.loose_manager("manager", 80);
    let cluster = Cluster::new(&scene);
    let api = cluster.start(json!([]));
    let (trusted, prod, plain, unknown) = (scene.pod(), scene.pod(), scene.pod(), scene.pod());
    for (pod, letter) in [(&trusted, "a"), (&prod, "b"), (&plain, "c"), (&unknown, "d")] {
        name(&scene, pod, "default", letter);
    }
    api.apply_pod("a", &trusted.uid, json!({"role": "trusted"}));
    api.apply_pod("b", &prod.uid, json!({"tier": "prod"}));
    api.apply_pod("c", &plain.uid, json!({}));
    // The control for the watch being this node's alone.
    api.apply_pod_elsewhere("d", &unknown.uid, json!({"role": "trusted"}));
    let route = Route::loose("manager", DESTINATIONS, UPSTREAM).set(
        "overrides",
        "[{selector: role=trusted, enforcement: observe}, {selector: 'tier in (prod)', enforcement: strict}]",
    );
    let config = cluster.config(config(&scene, route));
    let agent = Agent::start(&scene, &config);
    let (a_moment, met) = (Duration::from_secs(10), |pods: [&Pod; 4]| pods.map(|pod| dial(pod)));
    let all = [&trusted, &prod, &plain, &unknown];
    eventually(a_moment, "labels are known", || dial(&trusted) == Met::Manager);
    assert_eq!(met(all), [Met::Manager, Met::Agent, Met::Agent, Met::Agent]);

    // Labels change, and a server that has forgotten what came since is asked for all of it.
    api.apply_pod("c", &plain.uid, json!({"role": "trusted"}));
    eventually(SOON, "a label more", || dial(&plain) == Met::Manager);
    api.forget();
    api.apply_pod("c", &plain.uid, json!({"role": "other"}));
    eventually(SOON, "a label less", || dial(&plain) == Met::Agent);

    // Nobody tells labels any more, and then nobody answers.
    drop(api);
    let behind = || agent.metrics().sum("hnp_pod_labels_in_step", &[]) == 0.0;
    eventually(SOON, "the agent knows that it is behind", behind);
    assert_eq!(met(all), [Met::Manager, Met::Agent, Met::Agent, Met::Agent]);
    agent.kill();
    let left = [Met::Manager, Met::Refused, Met::Manager, Met::Refused];
    eventually(STALE, "the kernel decides by pod", || met(all) == left);

    // A new agent does not know what the one before it knew, and leaves it as it is.
    let agent = Agent::start(&scene, &config);
    let said = agent.log_line("cannot follow pods' labels");
    assert!(said.contains("unreachable"), "{said}");
    assert_eq!(met(all), [Met::Manager, Met::Agent, Met::Agent, Met::Agent]);
    agent.kill();
    eventually(STALE, "the same as before", || met(all) == left);

    // The control: once it is told otherwise, it is otherwise.
    let api = cluster.start(json!([]));
    for (pod, letter) in all.into_iter().zip(["a", "b", "c", "d"]) {
        api.apply_pod(letter, &pod.uid, json!({"tier": "prod"}));
    }
    let agent = Agent::start(&scene, &config);
    eventually(SOON, "nobody is let off", || dial(&trusted) == Met::Agent);
    api.delete_pod(&plain.uid);
    agent.kill();
    eventually(STALE, "strict for all", || met(all).iter().all(|met| *met == Met::Refused));
    drop(api);
}

#[test]
fn ranges_are_destinations_and_the_narrowest_holds() {
    let scene = Scene::for_test();
    scene.set_hosts(&[(MANAGER_NAME, MANAGER4.into()), ("other.hnp.test", OTHER4.into())]);
    let (_manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    let wide =
        Route::strict("wide", &["198.18.0.0/24:80", "[fd00:9::/64]:80"], UPSTREAM).with(IDENTITY, TRUST);
    let narrow =
        Route::loose("narrow", &["198.18.0.9:80"], "https://manager.hnp.test:81").with(IDENTITY, TRUST);
    let agent = Agent::start(&scene, &scene.config().route(wide).route(narrow));
    for (addr, route) in [
        (SocketAddr::from((OTHER4, 80)), "wide"),
        ((MANAGER6, 80).into(), "wide"),
        ((MANAGER4, 80).into(), "narrow"),
    ] {
        let text = format!("GET /at/{route}/{addr} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
        let _ = client::raw(&pod, addr, vec![RawCase::new(text)]);
        let line = agent.access_line("the dial", |line| line["destination"] == addr.to_string().as_str());
        assert_eq!(line["route"], route, "{line}");
    }
    // The control: another port of the same addresses is nobody's.
    let missed = client::raw(&pod, (OTHER4, 82), vec![RawCase::new("x")]).remove(0);
    assert!(matches!(missed.end, End::NotConnected(_)), "{missed:?}");
    assert_eq!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "redirected")]), 3.0);
}

#[test]
fn before_the_first_agent_strict_addresses_are_refused_by_the_early_unit() {
    let scene = Scene::for_test();
    let (_manager, pod) = (scene.loose_manager("manager", 80), scene.pod());
    assert_eq!(dial(&pod), Met::Manager, "the control: nothing is enforced after a boot");
    let config = config(&scene, Route::strict("manager", DESTINATIONS, UPSTREAM));
    let enforced = Agent::enforce(&scene.agent_place(), &config);
    assert!(enforced.status.success(), "{enforced}");
    for words in ["198.18.0.9:80 is refused until an agent runs", "manager.hnp.test:80 is a name, and open"] {
        assert!(enforced.text().contains(words), "{words}: {enforced}");
    }
    assert_eq!(dial(&pod), Met::Refused);
    let agent = Agent::start(&scene, &config);
    assert_eq!(dial(&pod), Met::Agent, "the agent takes over from what was left");
    let again = Agent::enforce(&scene.agent_place(), &config);
    assert!(again.status.success() && again.text().contains("an agent is running"), "{again}");
    assert_eq!(dial(&pod), Met::Agent);
    drop(agent);
}

/// One route, and pods' names.
pub(super) fn config(scene: &Scene, route: Route) -> Config {
    let mut config = scene.config().route(route.with(IDENTITY, TRUST));
    config.capture = format!("pod_logs: {}", logs(scene).display());
    config
}

pub(super) fn logs(scene: &Scene) -> std::path::PathBuf {
    let dir = scene.path("pod-logs");
    std::fs::create_dir_all(&dir).expect("the world's directory is ours");
    dir
}

/// What kubelet does before it starts a pod's first container.
pub(super) fn name(scene: &Scene, pod: &Pod, namespace: &str, name: &str) {
    std::fs::create_dir_all(logs(scene).join(format!("{namespace}_{name}_{}", pod.uid))).expect("made");
}

/// The rows of `/observed`.
fn observed(agent: &Agent) -> Vec<serde_json::Value> {
    serde_json::from_str(&agent.get("/observed").expect("it answers").1).expect("a list")
}

fn raw(place: &Place) -> RawAnswer {
    let text = format!("GET /hello HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
    client::raw(place, (MANAGER4, 80), vec![RawCase::new(text)]).remove(0)
}

/// Says what a plaintext request met: whoever speaks TLS for the pod is the agent.
#[track_caller]
pub(super) fn dial(place: &Place) -> Met {
    let answer = raw(place);
    match &answer.end {
        End::NotConnected(why) if why.contains("refused") => Met::Refused,
        End::Quiet if answer.bytes.is_empty() => Met::Nothing,
        _ if answer.text().contains("\"tls\":null") => Met::Manager,
        _ if answer.status() == Some(200) => Met::Agent,
        _ => panic!("neither: {answer:?}\n{}", answer.text()),
    }
}
