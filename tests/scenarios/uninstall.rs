//! A restart keeps strict destinations refused, an uninstall leaves nothing: the agent tells them apart by its own
//! DaemonSet. Where it cannot, it is a restart, and the log says what to type.

use std::time::Duration;

use hnp_tests::agent::{self, Agent, Config};
use hnp_tests::api_server::{ApiServer, Behaviour, Cluster, DAEMONSET};
use hnp_tests::client::{self, End, Job, RawCase, Target};
use hnp_tests::poll::eventually;
use hnp_tests::process::Place;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};
use serde_json::json;

/// Pauses between attempts, a drain, and a loaded machine.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_restart_keeps_what_is_strict_and_an_uninstall_leaves_nothing() {
    let scene = Scene::for_test();
    let cluster = Cluster::new(&scene);
    let (_manager, pod) = (scene.strict_manager(), scene.pod());
    let api = cluster.start(json!([]));
    api.install();

    // The control: the DaemonSet is there, so somebody comes back.
    let agent = start(&scene, &cluster, &api);
    serves(&pod);
    assert!(agent.stop(SOON).status.success());
    refused(&pod);
    assert_ne!(agent::remains(&scene), Vec::<String>::new());

    // It goes first and its pods after it, as by default; the permission to ask goes with it.
    let agent = start(&scene, &cluster, &api);
    serves(&pod);
    api.uninstall();
    agent.log_line("is being deleted");
    api.behave(Behaviour::Unauthorized);
    agent.ask_to_stop();
    ends_uninstalled(&scene, agent);
    direct(&pod);

    // Its pods go first.
    api.behave(Behaviour::Well);
    api.install();
    let agent = start(&scene, &cluster, &api);
    serves(&pod);
    api.begin_to_delete();
    ends_uninstalled(&scene, stopped(agent));
    direct(&pod);
}

#[test]
fn who_was_deleted_and_made_anew_is_restarted() {
    let scene = Scene::for_test();
    let cluster = Cluster::new(&scene);
    let (_manager, pod) = (scene.strict_manager(), scene.pod());
    let api = cluster.start(json!([]));
    api.install();
    let agent = start(&scene, &cluster, &api);
    api.uninstall();
    agent.log_line("is being deleted");
    api.install();
    assert!(agent.stop(SOON).status.success());
    refused(&pod);
    cleans_up(&scene, &pod);
}

#[test]
fn an_api_server_that_does_not_answer_makes_it_a_restart() {
    let scene = Scene::for_test();
    let cluster = Cluster::new(&scene);
    let (_manager, pod) = (scene.strict_manager(), scene.pod());
    for behaviour in [Behaviour::Broken, Behaviour::Silent, Behaviour::Unauthorized] {
        let api = cluster.start(json!([]));
        api.install();
        let mut agent = start(&scene, &cluster, &api);
        serves(&pod);
        // Nor does it tell by what was open: the uninstall is one, and nobody here hears of it.
        api.behave(behaviour);
        api.cut_watches();
        api.uninstall();
        agent.ask_to_stop();
        let ended = agent.wait(SOON);
        assert!(ended.status.success(), "{behaviour:?}: {ended}");
        assert!(
            agent.log().contains("cannot ask whether this is an uninstall"),
            "{behaviour:?}: {}",
            agent.log()
        );
        assert!(agent.log().contains("run `hnp-agent cleanup` on this node"), "{behaviour:?}");
        refused(&pod);
    }
    cleans_up(&scene, &pod);
}

#[test]
fn a_name_that_no_daemonset_has_is_said_and_never_an_uninstall() {
    let scene = Scene::for_test();
    let cluster = Cluster::new(&scene);
    let (_manager, pod) = (scene.strict_manager(), scene.pod());
    let api = cluster.start(json!([]));
    let agent = Agent::start(&scene, &config(&scene, &cluster));
    let said = agent.log_line("cannot follow the agent's own DaemonSet");
    assert!(said.contains(DAEMONSET), "{said}");
    assert!(agent.stop(SOON).status.success());
    refused(&pod);
    drop(api);
    cleans_up(&scene, &pod);
}

fn config(scene: &Scene, cluster: &Cluster<'_>) -> Config {
    let mut config = cluster.config_of_a_daemonset(scene.config().route(scene.route()));
    config.kubernetes += ", startup_taint: off";
    config
}

/// Serving, and following its DaemonSet.
fn start(scene: &Scene, cluster: &Cluster<'_>, api: &ApiServer) -> Agent {
    let before = api.count("GET", 200);
    let agent = Agent::start(scene, &config(scene, cluster));
    eventually(SOON, "a look and a watch", || api.count("GET", 200) >= before + 2);
    agent
}

fn stopped(agent: Agent) -> Agent {
    agent.log_line("is being deleted");
    agent.ask_to_stop();
    agent
}

fn ends_uninstalled(scene: &Scene, mut agent: Agent) {
    let ended = agent.wait(SOON);
    assert!(ended.status.success(), "{ended}");
    agent.log_line("uninstalled: programs, pins and routes are off this node");
    assert_eq!(agent::remains(scene), Vec::<String>::new());
    let again = Agent::clean_up(scene);
    assert!(!String::from_utf8_lossy(&again.stdout).contains("removed"), "{again}");
}

/// What an operator does by hand.
fn cleans_up(scene: &Scene, pod: &Place) {
    let cleaned = Agent::clean_up(scene);
    let said = String::from_utf8_lossy(&cleaned.stdout).into_owned();
    assert!(cleaned.status.success() && said.contains("nothing of hnp is left"), "{cleaned}");
    assert_eq!(agent::remains(scene), Vec::<String>::new());
    direct(pod);
}

/// Over the agent.
#[track_caller]
fn serves(pod: &Place) {
    let targets = vec![Target::new((MANAGER4, 80), MANAGER_NAME, "manager")];
    client::run(pod, &Job::Short { targets, total: 2, concurrency: 1 }).assert_all_ok(2);
}

/// By the kernel.
#[track_caller]
fn refused(pod: &Place) {
    let end = dial(pod);
    assert!(matches!(&end, End::NotConnected(why) if why.contains("refused")), "{end:?}");
}

/// To the manager itself, which speaks TLS and makes nothing of plaintext.
#[track_caller]
fn direct(pod: &Place) {
    let end = dial(pod);
    assert!(!matches!(end, End::NotConnected(_)), "{end:?}");
}

fn dial(pod: &Place) -> End {
    let text = format!("GET / HTTP/1.1\r\nhost: {MANAGER_NAME}\r\n\r\n");
    client::raw(pod, std::net::SocketAddr::from((MANAGER4, 80)), vec![RawCase::new(text)]).remove(0).end
}
