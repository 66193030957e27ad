//! Who was it: every access line names the pod that called, from its first connection on, and never another one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::api_server::Cluster;
use hnp_tests::cgroup::{Driver, Qos};
use hnp_tests::client::{self, RawCase};
use hnp_tests::cri::Runtime;
use hnp_tests::poll::eventually;
use hnp_tests::process::Place;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod, Topology};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Generous; figures are printed.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn pods_that_make_one_request_are_named_also_those_that_the_runtime_is_slow_to_tell_of() {
    const EACH: usize = 20;
    const PAUSE: Duration = Duration::from_secs(2);
    let scene = Scene::for_test();
    let (_manager, runtime) = (scene.strict_manager(), Runtime::start(&scene.path("cri.sock")));
    let agent = Agent::start(&scene, &config(&scene));
    let first = scene.pod();
    let transient = |number: usize| {
        let pod = scene.successor(&first);
        runtime.run_pod(&pod.uid, &format!("team-{}", number % 3), &format!("job-{number}"));
        let began = Instant::now();
        assert_eq!(ask(&pod, &format!("/job-{number}")), Some(200));
        let (uid, took) = (pod.uid.clone(), began.elapsed());
        scene.end(pod);
        (uid, took)
    };
    let before: Vec<_> = (0..EACH).map(transient).collect();
    runtime.pause(true);
    let paused = Instant::now();
    let meanwhile: Vec<_> = (EACH..2 * EACH).map(transient).collect();
    // None of them waited for the runtime, which has answered nothing yet.
    let line = |number: usize| {
        agent.access_lines().into_iter().find(|line| line["path"] == format!("/job-{number}").as_str())
    };
    eventually(SOON, "the pause is long enough", || paused.elapsed() >= PAUSE);
    runtime.pause(false);
    let after: Vec<_> = (2 * EACH..3 * EACH).map(transient).collect();
    let slowest = |served: &[(String, Duration)]| served.iter().map(|(_, took)| *took).max();
    eprintln!(
        "the slowest, its process' start included: {:?}, {:?} while the runtime was silent, {:?} after",
        slowest(&before),
        slowest(&meanwhile),
        slowest(&after)
    );
    for (number, (uid, _)) in before.iter().chain(&meanwhile).chain(&after).enumerate() {
        eventually(SOON, "its line is written", || line(number).is_some());
        let line = line(number).expect("just seen");
        let named = (&line["namespace"], &line["pod"], &line["pod_uid"]);
        let (namespace, pod) = (format!("team-{}", number % 3), format!("job-{number}"));
        assert_eq!(named, (&json!(namespace), &json!(pod), &json!(uid)), "{line}");
    }
    assert_eq!(runtime.questions(), 3 * EACH, "one question for each pod");
    assert_eq!(agent.metrics().sum("hnp_runtime_failures", &[]), 0.0);
    // The control: their addresses do not tell them apart.
    let address = |line: &Value| line["client"].as_str().and_then(|addr| addr.parse::<SocketAddr>().ok());
    let addresses: BTreeSet<_> =
        agent.access_lines().iter().map(|line| address(line).map(|a| a.ip())).collect();
    assert_eq!(addresses.len(), 1, "{addresses:?}");
}

#[test]
fn what_is_known_outlasts_the_runtime_and_who_is_not_goes_by_uid() {
    let scene = Scene::for_test();
    let (_manager, socket) = (scene.strict_manager(), scene.path("cri.sock"));
    let runtime = Runtime::start(&socket);
    let (known, unknown) = (scene.pod(), scene.pod());
    runtime.run_pod(&known.uid, "team-a", "known");
    let agent = Agent::start(&scene, &config(&scene));
    let connected = || agent.metrics().sum("hnp_runtime_connected", &[]);
    eventually(SOON, "the runtime is asked", || connected() == 1.0);
    assert_eq!(names_of(&agent, &known, "/1"), (json!("team-a"), json!("known"), json!(known.uid)));

    drop(runtime);
    eventually(SOON, "it is noticed that it has gone", || connected() == 0.0);
    assert_eq!(names_of(&agent, &known, "/2"), (json!("team-a"), json!("known"), json!(known.uid)));
    let began = Instant::now();
    assert_eq!(names_of(&agent, &unknown, "/3"), (Value::Null, Value::Null, json!(unknown.uid)));
    eprintln!("the line of a pod that nobody knows was written after {:?}", began.elapsed());
    // The runtime may come back in a moment: that was waited for, and is not for ever.
    let (began, another) = (Instant::now(), scene.pod());
    assert_eq!(names_of(&agent, &another, "/another").2, json!(another.uid));
    eprintln!("the next one's after {:?}", began.elapsed());
    assert!(agent.metrics().sum("hnp_runtime_failures", &[("cause", "unreachable")]) > 0.0);
    assert!(agent.log().contains("the container runtime does not answer"), "{}", agent.log());

    // The control: it comes back, and tells of all that there are.
    let runtime = Runtime::start(&socket);
    runtime.run_pod(&unknown.uid, "team-b", "unknown");
    eventually(SOON, "the runtime is asked again", || {
        connected() == 1.0 && names_of(&agent, &unknown, "/4").1 == json!("unknown")
    });
    let doctor = Agent::doctor(&scene, &config(&scene));
    assert!(doctor.text().contains("test-runtime v9.9.9"), "{}", doctor.text());
    drop(runtime);
    let doctor = Agent::doctor(&scene, &config(&scene));
    assert!(doctor.text().contains("the container runtime cannot be asked"), "{}", doctor.text());
}

#[test]
fn neither_an_address_nor_a_uid_that_comes_back_makes_a_pod_of_another_one() {
    let scene = Scene::for_test();
    let (_manager, runtime) = (scene.strict_manager(), Runtime::start(&scene.path("cri.sock")));
    let agent = Agent::start(&scene, &config(&scene));
    let (pod, next) = (scene.pod(), scene.pod());
    let next = scene.successor(&next);
    let uid = pod.uid.clone();
    runtime.run_pod(&uid, "team-a", "first");
    assert_eq!(names_of(&agent, &pod, "/first"), (json!("team-a"), json!("first"), json!(uid)));

    // Another pod gets the address, and nobody tells of it.
    let stranger = scene.successor(&pod);
    let netns = pod.netns().clone();
    scene.end(pod);
    assert_eq!(names_of(&agent, &stranger, "/stranger"), (Value::Null, Value::Null, json!(stranger.uid)));

    // Another pod gets the UID, which no API server does.
    runtime.remove_pod(&uid);
    runtime.run_pod(&uid, "team-b", "second");
    let path = Driver::Cgroupfs.container(Qos::Burstable, &uid, &"e".repeat(64));
    let again = scene.place_in(&netns, path.to_str().expect("ascii"));
    assert_eq!(names_of(&agent, &again, "/second"), (json!("team-b"), json!("second"), json!(uid)));

    // It has gone, and who has its UID now is nobody's.
    runtime.remove_pod(&uid);
    let path = Driver::Cgroupfs.container(Qos::Guaranteed, &uid, &"f".repeat(64));
    let third = scene.place_in(&netns, path.to_str().expect("ascii"));
    let line = line_of(&agent, &third, "/third");
    assert_eq!(line["pod_uid"], json!(uid));
    runtime.run_pod(&next.uid, "team-c", "next");
    assert_eq!(names_of(&agent, &next, "/next").1, json!("next"), "the control: it goes on");
}

#[test]
fn the_api_server_is_believed_before_the_runtime() {
    let scene = Scene::for_test();
    let (_manager, runtime) = (scene.strict_manager(), Runtime::start(&scene.path("cri.sock")));
    let cluster = Cluster::new(&scene);
    let api = cluster.start(json!([]));
    let (pod, other) = (scene.pod(), scene.pod());
    runtime.run_pod(&pod.uid, "team-a", "as-the-runtime-says");
    runtime.run_pod(&other.uid, "team-a", "other");
    api.apply_pod_as("team-a", "as-the-api-says", &pod.uid, "runner");
    let route = scene.route().set("overrides", "[{selector: role=none, enforcement: observe}]");
    let mut config = cluster.config(config_with(&scene, route));
    config.capture = pod_logs(&scene);
    let agent = Agent::start(&scene, &config);
    eventually(SOON, "both tell", || {
        let metrics = agent.metrics();
        ["hnp_pod_labels_in_step", "hnp_runtime_connected"].map(|name| metrics.sum(name, &[])) == [1.0, 1.0]
    });
    let line = line_of(&agent, &pod, "/1");
    assert_eq!(
        (&line["pod"], &line["service_account"]),
        (&json!("as-the-api-says"), &json!("runner")),
        "{line}"
    );
    // Nobody but the API server knows service accounts.
    let line = line_of(&agent, &other, "/2");
    assert_eq!((&line["pod"], &line["service_account"]), (&json!("other"), &Value::Null), "{line}");
    // Its word outlasts it.
    drop(api);
    eventually(SOON, "it is noticed that the API server has gone", || {
        agent.metrics().sum("hnp_pod_labels_in_step", &[]) == 0.0
    });
    let line = line_of(&agent, &pod, "/3");
    assert_eq!(
        (&line["pod"], &line["service_account"]),
        (&json!("as-the-api-says"), &json!("runner")),
        "{line}"
    );
    // The control: the next one has another.
    let api = cluster.start(json!([]));
    api.apply_pod_as("team-a", "renamed", &pod.uid, "walker");
    let mut number = 3;
    eventually(SOON, "the new word", || {
        number += 1;
        line_of(&agent, &pod, &format!("/{number}"))["service_account"] == json!("walker")
    });
}

#[test]
fn pods_of_every_class_and_those_on_the_nodes_network_are_named_by_kubelets_directories_too() {
    let scene = Scene::in_world(Topology::for_test_with(Driver::Systemd));
    let _manager = scene.strict_manager();
    let mut config = scene.config().route(scene.route());
    config.capture = pod_logs(&scene);
    let agent = Agent::start(&scene, &config);
    let host_network = scene.host_network_pod();
    let pods = [Qos::BestEffort, Qos::Burstable, Qos::Guaranteed].map(|qos| scene.pod_with(qos));
    let places = pods.iter().map(|pod| (&**pod, pod.uid.clone()));
    let all: Vec<_> = places.chain([(&host_network, uid_of(&host_network))]).collect();
    for (number, (place, uid)) in all.iter().enumerate() {
        name(&scene, uid, "team-a", &format!("pod-{number}"));
        let expected = (json!("team-a"), json!(format!("pod-{number}")), json!(uid));
        assert_eq!(names_of(&agent, place, &format!("/{number}")), expected);
    }
    // The control: nobody names this one.
    let unknown = scene.pod();
    assert_eq!(names_of(&agent, &unknown, "/unknown"), (Value::Null, Value::Null, json!(unknown.uid)));
    assert!(!agent.metrics().has("hnp_runtime_connected", &[]), "no runtime is asked");
}

#[test]
fn a_pod_that_has_gone_before_its_connection_is_looked_at_is_who_it_was() {
    // Whoever makes a connection goes elsewhere with it, so that nothing is left of its pod.
    const LEAVE: &str = "import os, socket, sys\n\
        s = socket.create_connection(('198.18.0.9', 80))\n\
        s.sendall(('GET %s HTTP/1.1\\r\\nHost: manager.hnp.test\\r\\nConnection: close\\r\\n\\r\\n' % sys.argv[1]).encode())\n\
        open(sys.argv[2], 'w').write(str(os.getpid()))\n\
        print('left', flush=True)\n\
        while s.recv(4096): pass";
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let mut config = scene.config().route(scene.route());
    // The agent stands still for longer than it usually may.
    config.capture = format!("{}, heartbeat: 5m", pod_logs(&scene));
    let agent = Agent::start(&scene, &config);
    let (home, elsewhere) = (scene.pod(), scene.node());
    let procs = elsewhere.cgroup().join("cgroup.procs").display().to_string();
    let noted = || agent.metrics().sum("hnp_cgroups_noted", &[]);
    let leave = |pod: Pod, path: &str| {
        let python = hnp_tests::tools::python();
        let mut leaving = pod.command(python).args(["-c", LEAVE, path, &procs]).spawn();
        eventually(SOON, "it has dialled and left", || leaving.stdout().contains("left"));
        let uid = pod.uid.clone();
        scene.end(pod);
        agent.signal(Signal::SIGCONT);
        let line = || agent.access_lines().into_iter().rfind(|line| line["path"] == path);
        eventually(SOON, "its line is written", || line().is_some());
        eventually(SOON, "it was answered", || !leaving.is_alive());
        (line().expect("just seen"), uid)
    };
    let before = noted();
    let pod = scene.successor(&home);
    name(&scene, &pod.uid, "team-a", "brief");
    let container = pod.container.clone();
    eventually(SOON, "its cgroups are noted", || noted() >= before + 2.0);
    let stop = || {
        agent.signal(Signal::SIGSTOP);
        let tasks =
            || std::fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("it is there").flatten();
        let is_stopped = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        };
        eventually(SOON, "all of it stands still", || tasks().all(is_stopped));
    };
    stop();
    let (line, uid) = leave(pod, "/noted");
    assert_eq!((&line["pod_uid"], &line["container"]), (&json!(uid), &json!(container)), "{line}");
    assert_eq!((&line["namespace"], &line["pod"]), (&json!("team-a"), &json!("brief")), "{line}");
    // The control: one that comes and goes while the agent looks nowhere. It is nobody, and nobody else.
    stop();
    let (line, _) = leave(scene.successor(&home), "/not-noted");
    assert_eq!((&line["pod_uid"], &line["container"]), (&Value::Null, &Value::Null), "{line}");
}

fn config(scene: &Scene) -> Config {
    config_with(scene, scene.route())
}

fn config_with(scene: &Scene, route: Route) -> Config {
    let mut config = scene.config().route(route);
    config.workloads = format!("runtime: {}", scene.path("cri.sock").display());
    config
}

fn pod_logs(scene: &Scene) -> String {
    let dir = scene.path("pod-logs");
    std::fs::create_dir_all(&dir).expect("the world's directory is ours");
    format!("pod_logs: {}", dir.display())
}

/// What kubelet does before it starts a pod's first container.
fn name(scene: &Scene, uid: &str, namespace: &str, name: &str) {
    let dir = scene.path("pod-logs").join(format!("{namespace}_{name}_{uid}"));
    std::fs::create_dir_all(dir).expect("the world's directory is ours");
}

fn ask(place: &Place, path: &str) -> Option<u16> {
    let text = format!(
        "POST {path} HTTP/1.1\r\nHost: {MANAGER_NAME}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    client::raw(place, (MANAGER4, 80), vec![RawCase::new(text)]).remove(0).status()
}

/// The access line of a request that this makes.
#[track_caller]
fn line_of(agent: &Agent, place: &Place, path: &str) -> Value {
    assert_eq!(ask(place, path), Some(200));
    let line = || agent.access_lines().into_iter().rfind(|line| line["path"] == path);
    eventually(SOON, "its line is written", || line().is_some());
    line().expect("just seen")
}

/// Namespace, name and UID in the access line of a request that this makes.
#[track_caller]
fn names_of(agent: &Agent, place: &Place, path: &str) -> (Value, Value, Value) {
    let line = line_of(agent, place, path);
    (line["namespace"].clone(), line["pod"].clone(), line["pod_uid"].clone())
}

fn uid_of(place: &Place) -> String {
    let pod = place.cgroup().parent().and_then(|pod| pod.file_name()).and_then(|name| name.to_str());
    let uid = pod.and_then(|name| name.strip_suffix(".slice")).and_then(|name| name.rsplit_once("-pod"));
    uid.expect("a container's cgroup is in its pod's").1.replace('_', "-")
}
