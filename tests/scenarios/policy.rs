//! Who may use a route is decided by the route's policy, for requests and for bytes under way, and by what is known of the pod
//! at the time.

use std::time::{Duration, Instant};

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::api_server::Cluster;
use hnp_tests::client::{self, End, Job, RawAnswer, RawCase};
use hnp_tests::cri::Runtime;
use hnp_tests::manager::{Manager, Mode, Service, Setup};
use hnp_tests::poll::{eventually, until};
use hnp_tests::process::Running;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER4, Pod};
use serde_json::json;

use super::enforcement::{logs, name};

/// Polled for; the promise is a second.
const SOON: Duration = Duration::from_secs(10);
const GET: &str = "GET /policy HTTP/1.1\r\nHost: manager.hnp.test\r\nConnection: close\r\n\r\n";

#[test]
fn namespaces_are_let_in_and_kept_out() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let _echo = lines(&scene);
    let (payments, other, unknown) = (scene.pod(), scene.pod(), scene.pod());
    name(&scene, &payments, "payments", "a");
    name(&scene, &other, "other", "b");
    let agent = Agent::start(&scene, &config(&scene, "default: deny, allow: [{namespaces: [payments]}]"));
    assert_eq!(ask(&payments).status(), Some(200));
    let refused = ask(&other);
    assert_eq!(refused.status(), Some(403), "{}", refused.text());
    assert!(refused.text().contains(r#""reason":"policy_denied""#), "{}", refused.text());
    let line = agent.access_line_with("policy_denied");
    assert_eq!((&line["pod_uid"], &line["route"]), (&other.uid.as_str().into(), &"manager".into()), "{line}");
    assert!(line["upstream"].is_null(), "nobody was dialled: {line}");
    // Of whom nothing is known: the allow rule does not count.
    assert_eq!(ask(&unknown).status(), Some(403));
    // Other bytes are reset, and nothing of them goes anywhere.
    assert!(say(&payments).text().contains("anybody?"));
    let reset = say(&other);
    // It may come before the client has seen that it is connected.
    let is_reset = match &reset.end {
        End::NotConnected(why) => why.contains("reset"),
        end => matches!(end, End::Broken(..)),
    };
    assert!(reset.bytes.is_empty() && is_reset, "{reset:?}");
    assert!(decisions(&agent, "allow", "false") >= 2.0 && decisions(&agent, "deny", "false") >= 3.0);

    // The other way round: who was let in is kept out, and the other way; the unknown one may be meant.
    agent.reload(&config(&scene, "default: allow, deny: [{namespaces: [payments]}]"));
    assert_eq!((ask(&payments).status(), ask(&other).status()), (Some(403), Some(200)));
    assert_eq!(ask(&unknown).status(), Some(403));
    // Deny before allow.
    agent.reload(&config(
        &scene,
        "default: deny, allow: [{namespaces: [payments, other]}], deny: [{namespaces: [other]}]",
    ));
    assert_eq!((ask(&payments).status(), ask(&other).status()), (Some(200), Some(403)));
    // The control: without a policy all are served.
    agent.reload(&config(&scene, ""));
    assert_eq!([&payments, &other, &unknown].map(|pod| ask(pod).status()), [Some(200); 3]);
}

#[test]
fn labels_and_service_accounts_decide_by_the_api_servers_word_and_outlast_it() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let cluster = Cluster::new(&scene);
    let api = cluster.start(json!([]));
    let (worker, web, runner, unknown) = (scene.pod(), scene.pod(), scene.pod(), scene.pod());
    api.apply_pod("a", &worker.uid, json!({"app": "worker"}));
    api.apply_pod("b", &web.uid, json!({"app": "web"}));
    api.apply_pod_as("batch", "c", &runner.uid, "runner");
    let with = |policy: &str| cluster.config(config(&scene, policy));
    let rules = "default: deny, allow: [{selector: app=worker}, {service_accounts: [batch/runner]}]";
    let agent = Agent::start(&scene, &with(rules));
    let all = [&worker, &web, &runner, &unknown];
    let met = || all.map(|pod| ask(pod).status());
    assert_eq!(met(), [Some(200), Some(403), Some(200), Some(403)]);
    // Labels change; a server that has forgotten what came since is asked for all of it.
    api.forget();
    api.apply_pod("b", &web.uid, json!({"app": "worker"}));
    eventually(2 * SOON, "a label more", || ask(&web).status() == Some(200));
    // The other way round.
    agent.reload(&with("default: allow, deny: [{selector: app=worker}, {service_accounts: [batch/runner]}]"));
    assert_eq!(met(), [Some(403), Some(403), Some(403), Some(403)], "the unknown one may be meant");
    agent.reload(&with("default: deny, allow: [{namespaces: [default], selector: app=worker}]"));
    assert_eq!(met(), [Some(200), Some(200), Some(403), Some(403)]);
    agent.reload(&with("default: deny, allow: [{namespaces: [batch], selector: app=worker, match: any}]"));
    assert_eq!(met(), [Some(200), Some(200), Some(200), Some(403)]);
    // Nobody answers any more: what is known goes on.
    drop(api);
    let behind = || agent.metrics().sum("hnp_pod_labels_in_step", &[]) == 0.0;
    eventually(2 * SOON, "the agent knows that it is behind", behind);
    assert_eq!(met(), [Some(200), Some(200), Some(200), Some(403)]);
}

#[test]
fn a_pod_that_is_not_known_yet_is_held_until_it_is_or_until_the_deadline() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let cluster = Cluster::new(&scene);
    let api = cluster.start(json!([]));
    let with = |deadline: &str| {
        let mut config = config(&scene, "default: deny, allow: [{selector: app=worker}]");
        config.workloads = format!("runtime: off, deadline: {deadline}");
        cluster.config(config)
    };
    let agent = Agent::start(&scene, &with("1m"));
    let first_of = |late: &Pod, meanwhile: &dyn Fn()| {
        let asking = client::load(late, &raw_job()).spawn();
        eventually(SOON, "its connection is there", || {
            agent.metrics().sum("hnp_connections_open", &[]) >= 1.0
        });
        meanwhile();
        let report: client::Report = asking.wait(2 * SOON).json();
        report.answers[0].status()
    };
    // Its first request comes before the API server has heard of it.
    let (late, unknown) = (scene.pod(), scene.pod());
    let told = || api.apply_pod(&late.uid, &late.uid, json!({"app": "worker"}));
    assert_eq!(first_of(&late, &told), Some(200));
    // One of whom nobody tells gets no answer for as long; the control is who is known, who waits for nothing.
    assert_eq!((first_of(&unknown, &|| ()), ask(&late).status()), (None, Some(200)));
    // As soon as the deadline is shorter, that one is decided without.
    agent.reload(&with("10ms"));
    assert_eq!(ask(&unknown).status(), Some(403));
    // Nor is what is asked for later waited for.
    let late = scene.pod();
    assert_eq!(ask(&late).status(), Some(403));
    api.apply_pod(&late.uid, &late.uid, json!({"app": "worker"}));
    eventually(SOON, "it is known", || ask(&late).status() == Some(200));
    let check = Agent::check(&scene.agent_place(), &with("10ms")).text();
    assert!(check.contains("held for 10ms where a policy asks"), "{check}");
}

#[test]
fn a_watch_that_is_cut_goes_on_from_the_last_bookmark() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let cluster = Cluster::new(&scene);
    let api = cluster.start(json!([]));
    let pod = scene.pod();
    api.apply_pod("a", &pod.uid, json!({"app": "worker"}));
    let config = cluster.config(config(&scene, "default: deny, allow: [{selector: app=worker}]"));
    let _agent = Agent::start(&scene, &config);
    assert_eq!(ask(&pod).status(), Some(200));
    // Versions go on with what the node is not told of, then the server forgets what came before now, and the watch breaks. How
    // often all pods were listed before the next change was heard of.
    let cut = |bookmark: bool, label: &str, status: u16| {
        let (lists, bookmarks) = (api.lists_of_pods(), api.bookmarks());
        api.apply_pod_elsewhere("x", "elsewhere", json!({}));
        if bookmark {
            api.bookmark();
            eventually(SOON, "the bookmark was told", || api.bookmarks() > bookmarks);
        }
        api.forget_before();
        api.cut_pod_watches();
        api.apply_pod("a", &pod.uid, json!({"app": label}));
        eventually(2 * SOON, "the next change", || ask(&pod).status() == Some(status));
        api.lists_of_pods() - lists
    };
    assert_eq!(cut(true, "other", 403), 0);
    // The control: without a bookmark it is too late to go on (410), and all are listed.
    assert!(cut(false, "worker", 200) >= 1);
    assert_eq!(cut(true, "other", 403), 0, "and then it goes on as before");
}

#[test]
fn labels_are_the_runtimes_where_no_api_server_is_known_and_its_own_where_it_is() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let socket = scene.path("cri.sock");
    let runtime = Runtime::start(&socket);
    let (worker, web, late) = (scene.pod(), scene.pod(), scene.pod());
    // Each has its name as the label `app`.
    runtime.run_pod(&worker.uid, "default", "worker");
    runtime.run_pod(&web.uid, "default", "web");
    let with = |rules: &str| {
        let mut config = config(&scene, rules);
        config.workloads = format!("runtime: {}, deadline: 1m", socket.display());
        config
    };
    let rules = "default: deny, allow: [{selector: app=worker}]";
    let agent = Agent::start(&scene, &with(rules));
    assert_eq!([&worker, &web].map(|pod| ask(pod).status()), [Some(200), Some(403)]);
    // What the runtime is about to say is waited for.
    runtime.pause(true);
    let asking = client::load(&late, &raw_job()).spawn();
    let open = || agent.metrics().sum("hnp_connections_open", &[]) >= 1.0;
    eventually(SOON, "its connection is there", open);
    runtime.run_pod(&late.uid, "default", "worker");
    runtime.pause(false);
    let report: client::Report = asking.wait(2 * SOON).json();
    assert_eq!(report.answers[0].status(), Some(200));
    // Nobody knows service accounts, and nobody is asked for them.
    agent.reload(&with("default: deny, allow: [{service_accounts: [default/default]}]"));
    assert_eq!(ask(&worker).status(), Some(403));
    let check = Agent::check(&scene.agent_place(), &with(rules)).stderr;
    assert!(check.contains("goes by the labels that the container runtime has"), "{check}");
    // What is known of who is known outlasts the runtime.
    agent.reload(&with(rules));
    drop(runtime);
    let lost = || agent.metrics().sum("hnp_runtime_connected", &[]) == 0.0;
    eventually(SOON, "it is noticed that the runtime has gone", lost);
    assert_eq!([&worker, &web].map(|pod| ask(pod).status()), [Some(200), Some(403)]);
    drop(agent);

    // The control: an API server's word is the one that counts.
    let runtime = Runtime::start(&socket);
    runtime.run_pod(&worker.uid, "default", "worker");
    let cluster = Cluster::new(&scene);
    let api = cluster.start(json!([]));
    api.apply_pod("worker", &worker.uid, json!({"app": "other"}));
    api.apply_pod("web", &web.uid, json!({"app": "worker"}));
    let agent = Agent::start(&scene, &cluster.config(with(rules)));
    let in_step = || agent.metrics().sum("hnp_pod_labels_in_step", &[]) == 1.0;
    eventually(SOON, "the API server tells", in_step);
    assert_eq!([&worker, &web].map(|pod| ask(pod).status()), [Some(403), Some(200)]);
}

#[test]
fn what_is_under_way_ends_when_its_permission_does() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let _echo = lines(&scene);
    let cluster = Cluster::new(&scene);
    let api = cluster.start(json!([]));
    let (moved, stays) = (scene.pod(), scene.pod());
    for (pod, letter) in [(&moved, "a"), (&stays, "b")] {
        api.apply_pod(letter, &pod.uid, json!({"app": "worker"}));
    }
    let with = |policy: &str| cluster.config(config(&scene, policy));
    let agent = Agent::start(&scene, &with("default: deny, allow: [{selector: app=worker}]"));
    let flows = || {
        let before = requests(&agent);
        let flows = [&moved, &stays].map(|pod| [drip(pod), talk(pod)]);
        for flow in flows.iter().flatten() {
            eventually(SOON, "bytes have come back", || !flow.stdout().is_empty());
        }
        assert_eq!(requests(&agent), before, "none has ended");
        flows
    };
    // What is known of a pod changes.
    let [mut of_moved, mut of_stays] = flows();
    let since = Instant::now();
    api.apply_pod("a", &moved.uid, json!({"app": "other"}));
    ended(&mut of_moved);
    println!("a label changed: ended after {:?}", since.elapsed());
    let line = agent.access_line_with("policy_revoked");
    assert_eq!(line["pod_uid"], moved.uid.as_str(), "{line}");
    assert_eq!(decisions(&agent, "revoke", "false"), 2.0);
    assert_eq!((ask(&moved).status(), ask(&stays).status()), (Some(403), Some(200)));
    // The control: the other pod's go on.
    assert!(of_stays.iter_mut().all(Running::is_alive));

    // A policy changes; first one that is dry, which ends nothing.
    agent.reload(&with("default: deny, dry_run: true"));
    eventually(SOON, "it would", || decisions(&agent, "revoke", "true") == 2.0);
    assert!(of_stays.iter_mut().all(Running::is_alive));
    assert_eq!((ask(&moved).status(), ask(&stays).status()), (Some(200), Some(200)));
    assert!(decisions(&agent, "deny", "true") >= 2.0);
    agent.log_line("the policy would refuse this workload");
    let since = Instant::now();
    agent.reload(&with("default: allow, deny: [{namespaces: [default]}]"));
    ended(&mut of_stays);
    println!("a policy changed: ended after {:?}, the reload included", since.elapsed());
}

#[test]
fn what_waits_for_a_manager_ends_when_its_permission_does() {
    let scene = Scene::for_test();
    let pod = scene.pod();
    let agent = Agent::start(&scene, &config(&scene, "default: deny"));
    // Nobody is there, and then somebody who accepts and says nothing.
    for (nth, listens) in [1.0, 2.0].into_iter().zip([false, true]) {
        let silent = |port| Manager::start(&scene, Setup::new("silent", port).service(Service::Silent));
        let silent = listens.then(|| [80, 9000].map(silent));
        agent.reload(&config(&scene, "default: allow"));
        let mut waiting = [drip(&pod), talk(&pod)];
        eventually(SOON, "both are allowed", || decisions(&agent, "allow", "false") == 2.0 * nth);
        let dialled = || silent.iter().flatten().all(|manager| !manager.connections().is_empty());
        eventually(SOON, "both are dialled for", dialled);
        // The control: what only says what it would do ends nobody.
        agent.reload(&config(&scene, "default: deny, dry_run: true"));
        eventually(SOON, "it would", || decisions(&agent, "revoke", "true") == 2.0 * nth);
        assert!(waiting.iter_mut().all(Running::is_alive));
        assert_eq!(decisions(&agent, "revoke", "false"), 2.0 * (nth - 1.0));
        let since = Instant::now();
        agent.reload(&config(&scene, "default: deny"));
        ended(&mut waiting);
        println!("ended after {:?}, the reload included", since.elapsed());
        let revoked =
            || agent.access_lines().iter().filter(|line| line["reason"] == "policy_revoked").count() as f64;
        eventually(SOON, "their lines say why", || revoked() == 2.0 * nth);
        let said = waiting[0].stdout();
        assert!(said.contains("policy_revoked"), "{said}");
        drop(silent);
    }
    assert!(agent.metrics().sum("hnp_outage_waits_total", &[]) >= 2.0, "who is let go has waited, too");
}

#[test]
fn what_was_taken_back_between_two_requests_and_given_again_ends_none() {
    const ASK: &str = "import http.client, os, sys, time\n\
        c = http.client.HTTPConnection('198.18.0.9', 80)\n\
        c.connect()\n\
        c.auto_open = 0\n\
        for told in [None] + sys.argv[1:]:\n\
        \x20 while told and not os.path.exists(told): time.sleep(0.01)\n\
        \x20 c.request('GET', '/hello', headers={'Host': 'manager.hnp.test', 'X-Token': 'same'})\n\
        \x20 answer = c.getresponse()\n\
        \x20 answer.read()\n\
        \x20 print(answer.status, flush=True)";
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let (pod, other) = (scene.pod(), scene.pod());
    // All connections are looked at together.
    let with = |policy: &str| {
        let mut config = config(&scene, policy);
        config.workers = 1;
        config
    };
    let agent = Agent::start(&scene, &with("default: allow"));
    let signs = ["again", "not"].map(|name| scene.path(name));
    let mut client = pod.command(hnp_tests::tools::python()).args(["-c", ASK]).args(&signs).spawn();
    let mut hears = |what: &str, all: &str| {
        eventually(SOON, what, || client.stdout() == all || !client.is_alive());
        assert_eq!(client.stdout(), all, "{what}");
    };
    hears("the first answer", "200\n");
    agent.reload(&with("default: deny"));
    eventually(SOON, "it is taken back", || decisions(&agent, "revoke", "false") == 1.0);
    agent.reload(&with("default: allow"));
    let _drip = drip(&other);
    eventually(SOON, "another one is under way", || decisions(&agent, "allow", "false") == 2.0);
    agent.reload(&with("default: deny, dry_run: true"));
    eventually(SOON, "they were looked at", || decisions(&agent, "revoke", "true") >= 1.0);
    std::fs::write(&signs[0], "").expect("the world's directory is ours");
    hears("its next request", "200\n200\n");
    // The control: what is taken back in earnest, and stays so, ends it.
    agent.reload(&with("default: deny"));
    eventually(SOON, "both are told", || decisions(&agent, "revoke", "false") == 3.0);
    std::fs::write(&signs[1], "").expect("the world's directory is ours");
    hears("the last request", "200\n200\n403\n");
}

/// Routes to the manager and to one that speaks in lines, both with this policy.
fn config(scene: &Scene, policy: &str) -> Config {
    let opaque =
        Route::opaque("lines", &["198.18.0.9:9000"], "https://manager.hnp.test:9000").with(IDENTITY, TRUST);
    let with = |route: Route| match policy {
        "" => route,
        policy => route.set("policy", &format!("{{{policy}}}")),
    };
    // Longer than anything is waited for here.
    let with = |route: Route| with(route).set("timeouts", "{connect: 10m, tls: 10m}");
    let mut config = scene.config().route(with(scene.route())).route(with(opaque));
    config.capture = format!("pod_logs: {}", logs(scene).display());
    config
}

fn lines(scene: &Scene) -> Manager {
    let setup = Setup::new("echo", 9000).service(Service::Echo);
    Manager::start(scene, setup.tls(Mode::Strict, &scene.server, &scene.clients))
}

fn raw_job() -> Job {
    // Longer than a connection is held.
    let case = RawCase { quiet_ms: 5000, ..RawCase::new(GET) };
    Job::Raw { addr: (MANAGER4, 80).into(), cases: vec![case] }
}

fn ask(pod: &Pod) -> RawAnswer {
    client::run(pod, &raw_job()).answers.remove(0)
}

fn say(pod: &Pod) -> RawAnswer {
    let case = RawCase { quiet_ms: 5000, ..RawCase::new("anybody?\n").then_half_close() };
    client::raw(pod, (MANAGER4, 9000), vec![case]).remove(0)
}

/// An answer that takes ten minutes.
fn drip(pod: &Pod) -> Running {
    let url = "http://manager.hnp.test/drip?parts=6000&ms=100";
    pod.command("curl").args(["-sS", "--no-buffer", "--ipv4", url]).spawn()
}

/// A connection on which the manager has greeted, and nobody says anything more.
fn talk(pod: &Pod) -> Running {
    const TALK: &str = "import socket\n\
        s = socket.create_connection(('198.18.0.9', 9000))\n\
        while True:\n\
        \x20 got = s.recv(100)\n\
        \x20 if not got: break\n\
        \x20 print(got, flush=True)";
    pod.command(hnp_tests::tools::python()).args(["-c", TALK]).spawn()
}

fn ended(flows: &mut [Running; 2]) {
    for flow in flows {
        until(SOON, "it has ended", || (!flow.is_alive()).then_some(()));
    }
}

fn requests(agent: &Agent) -> f64 {
    agent.metrics().sum("hnp_requests_total", &[])
}

fn decisions(agent: &Agent, decision: &str, dry_run: &str) -> f64 {
    agent.metrics().sum("hnp_policy_decisions_total", &[("decision", decision), ("dry_run", dry_run)])
}
