//! What an operator sees over the agent's own socket is what is: before and after things break, of this pod and
//! no other, and only if he may look.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hnp_tests::agent::{Agent, CAPABILITIES, Config, binary};
use hnp_tests::api_server::{Behaviour, Cluster};
use hnp_tests::poll::{eventually, until};
use hnp_tests::process::Finished;
use hnp_tests::scene::{IDENTITY, Scene};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod, Topology};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Time enough for whatever is to be seen.
const SOON: Duration = Duration::from_secs(50);
/// Of nobody's.
const NOBODY: u32 = 65_534;

/// One of the agent's commands, asking the agent of this world.
#[track_caller]
fn tool(world: &Topology, verb: &str, arguments: &[&str]) -> Finished {
    let dir = world.run_dir();
    let asked = [verb, "--run-dir", &dir.to_string_lossy()];
    Agent::tool(world, &[&asked[..], arguments].concat())
}

#[track_caller]
fn status(world: &Topology) -> Value {
    let finished = tool(world, "status", &["--json"]);
    match serde_json::from_str(&finished.text()) {
        Ok(status) => status,
        Err(error) => panic!("{error}: {finished}"),
    }
}

#[track_caller]
fn flows(world: &Topology, arguments: &[&str]) -> Value {
    tool(world, "flows", &[&["--json"], arguments].concat()).json()
}

fn rows<'a>(found: &'a Value, kind: &str) -> &'a [Value] {
    found[kind].as_array().map_or(&[], Vec::as_slice)
}

#[track_caller]
fn doctor(world: &Topology, config: &Config) -> Value {
    let path = world.path("doctor.yaml");
    fs::write(&path, config.to_yaml()).expect("the world's directory is ours");
    let command = world.agent_place().command(binary()).args(["doctor", "--json", "--config"]).arg(&path);
    let finished = config.env.iter().fold(command, |command, (key, value)| command.env(key, value)).run();
    match serde_json::from_str(&finished.text()) {
        Ok(found) => found,
        Err(error) => panic!("{error}: {finished}"),
    }
}

#[track_caller]
fn find(found: &Value, area: &str, what: &str) -> Value {
    let is =
        |one: &&Value| one["area"] == area && one["what"].as_str().is_some_and(|text| text.starts_with(what));
    match rows(found, "findings").iter().find(is) {
        Some(one) => one.clone(),
        None => panic!("{area} {what} in {found}"),
    }
}

/// A request's status, as the pod sees it; 000 for none.
fn get(pod: &Pod, path: &str) -> String {
    let url = format!("http://{MANAGER_NAME}{path}");
    pod.command("curl").args(["-s4", "-o", "/dev/null", "-w", "%{http_code}", &url]).run().text()
}

#[test]
fn status_tells_the_truth_before_and_after_things_break() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    let seen = status(&scene);
    assert_eq!(
        (&seen["ready"], &seen["schema"], &seen["capture_mode"]),
        (&true.into(), &1.into(), &"on".into())
    );
    assert_eq!(seen["pid"], agent.pid());
    let capture = &seen["capture"];
    let hooks = rows(capture, "hooks");
    assert!(hooks.len() > 5 && hooks.iter().all(|hook| hook["attached"] == true), "{capture}");
    assert!(capture["heartbeat_age_ms"].as_u64() <= capture["heartbeat_limit_ms"].as_u64(), "{capture}");
    let destination = rows(capture, "destinations").iter().find(|one| one["at"] == format!("{MANAGER4}:80"));
    let destination = destination.expect("it is captured");
    assert!(destination["vip"].as_str().is_some_and(|vip| vip.starts_with("169.254.77.")), "{destination}");
    assert_eq!(
        (&destination["enforcement"], &destination["routes"][0]),
        (&"strict".into(), &"manager".into())
    );
    let name = &rows(&seen, "names")[0];
    assert_eq!((&name["name"], &name["failures"]), (&MANAGER_NAME.into(), &0.into()), "{name}");
    assert!(rows(name, "addresses").contains(&MANAGER4.to_string().into()), "{name}");
    assert_eq!(seen["routes"][0]["health"]["state"], "unused", "nobody has dialled it");

    assert_eq!(get(&pod, "/hello"), "200");
    let seen = status(&scene);
    let health = &seen["routes"][0]["health"];
    assert!(health["state"] == "ok" && health["last_success"].is_string(), "{health}");
    assert!(rows(&seen, "reasons").iter().any(|row| row["reason"] == "ok"), "{seen}");

    // A certificate that is replaced by nonsense: the one before serves on, and that is said.
    let identity = || status(&scene)["identities"][0].clone();
    let good = identity();
    assert_eq!(
        (&good["name"], &good["state"], &good["error"]),
        (&IDENTITY.into(), &"ok".into(), &Value::Null)
    );
    let over = good["dates"]["lifetime_over"].as_f64().unwrap_or(-1.0);
    assert!((0.0..1.0).contains(&over), "{good}");
    let certificate = fs::read(&scene.client.certificate).expect("it is there");
    fs::write(&scene.client.certificate, "nonsense").expect("it is ours");
    eventually(SOON, "the broken certificate is seen", || identity()["state"] == "failing");
    let broken = identity();
    assert_eq!((&broken["generation"], &broken["serial"]), (&good["generation"], &good["serial"]));
    let words = broken["error"].as_str().unwrap_or_default();
    assert!(words.contains(&*scene.client.certificate.to_string_lossy()), "{broken}");
    let page = tool(&scene, "status", &[]);
    assert!(page.status.success() && page.text().contains("failing"), "it is ready all the same: {page}");
    fs::write(&scene.client.certificate, certificate).expect("it is ours");
    eventually(SOON, "the certificate is good again", || identity()["state"] == "ok");

    // The manager goes.
    drop(manager);
    assert_eq!(get(&pod, "/hello").chars().next(), Some('5'));
    let seen = status(&scene);
    let health = &seen["routes"][0]["health"];
    assert_eq!(
        (&health["state"], &health["last_failure_reason"]),
        (&"failing".into(), &"upstream_refused".into())
    );
    let page = tool(&scene, "status", &[]).text();
    assert!(page.contains("upstream_refused at "), "{page}");
    // And comes back.
    let _manager = scene.strict_manager();
    assert_eq!(get(&pod, "/hello"), "200");
    let seen = status(&scene);
    let health = &seen["routes"][0]["health"];
    assert!(health["state"] == "ok" && health["last_failure"].is_string(), "{health}");
}

#[test]
fn the_exit_code_says_whether_the_agent_is_there_and_ready() {
    let scene = Scene::for_test();
    let nobody = tool(&scene, "status", &[]);
    assert_eq!(nobody.status.code(), Some(1), "{nobody}");
    assert!(nobody.stderr.contains("does not answer") && nobody.stderr.contains("doctor"), "{nobody}");
    let probe = |what: &str| tool(&scene, "status", &["--probe", what]);
    assert_eq!((probe("alive").status.code(), probe("ready").status.code()), (Some(1), Some(1)));

    let certificate = fs::read(&scene.client.certificate).expect("it is there");
    fs::remove_file(&scene.client.certificate).expect("it is ours");
    let agent = Agent::spawn(scene.agent_place(), &scene.config().route(scene.route()), CAPABILITIES);
    eventually(SOON, "it is not ready", || tool(&scene, "status", &[]).status.code() == Some(2));
    assert_eq!((probe("alive").status.code(), probe("ready").status.code()), (Some(0), Some(2)));
    assert!(probe("ready").text().contains(&format!("waits for identity {IDENTITY}")), "{}", probe("ready"));
    let seen = status(&scene);
    let waits = rows(&seen, "pending").iter().find(|one| one["name"] == format!("identity {IDENTITY}"));
    assert!(waits.is_some_and(|one| one["why"].as_str().is_some_and(|why| !why.is_empty())), "{seen}");
    assert_eq!(seen["identities"][0]["state"], "missing");
    let page = tool(&scene, "status", &[]).text();
    assert!(page.contains("NOT READY") && page.contains(&format!("waits for identity {IDENTITY}")), "{page}");

    fs::write(&scene.client.certificate, certificate).expect("it is ours");
    eventually(SOON, "it is ready", || tool(&scene, "status", &[]).status.code() == Some(0));
    assert_eq!((probe("alive").status.code(), probe("ready").status.code()), (Some(0), Some(0)));
    drop(agent);
}

#[test]
fn a_slow_request_is_live_with_its_pod_and_then_recent_with_its_reason() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let (_agent, pod, other) = (scene.agent(), scene.pod(), scene.pod());
    let url = format!("http://{MANAGER_NAME}/slow?ms=8000&key=QUERYSECRET");
    let slow = pod.command("curl").args([
        "-s4",
        "-o",
        "/dev/null",
        "-H",
        "Authorization: Bearer HEADERSECRET",
        &url,
    ]);
    let slow = slow.spawn();
    let of_pod: &[&str] = &["--live", "--pod", &pod.uid];
    let (found, _) = until(SOON, "the request is live", || {
        let found = flows(&scene, of_pod);
        rows(&found, "live").iter().any(|row| row["upstream_addr"].is_string()).then_some(found)
    });
    let row = &rows(&found, "live")[0];
    for (key, value) in [
        ("pod_uid", &*pod.uid),
        ("container", &pod.container),
        ("route", "manager"),
        ("state", "busy"),
        ("path", "/slow"),
    ] {
        assert_eq!(row[key], value, "{row}");
    }
    assert_eq!((rows(&found, "live").len(), rows(&found, "recent").len()), (1, 0), "{found}");
    assert!(row["reason"].is_null() && row["age_ms"].is_u64(), "{row}");
    // Both ways: another pod's, another route's, and without a filter.
    assert_eq!(rows(&flows(&scene, &["--live", "--pod", &other.uid]), "live").len(), 0);
    assert_eq!(rows(&flows(&scene, &["--live", "--route", "another"]), "live").len(), 0);
    assert_eq!(rows(&flows(&scene, &["--live", "--route", "manager"]), "live").len(), 1);
    let page = tool(&scene, "flows", of_pod).ok();
    assert!(page.contains("1 live") && page.contains("GET /slow") && page.contains(&pod.uid), "{page}");

    assert!(slow.wait(SOON).status.success());
    assert_eq!(get(&other, "/status/404"), "404");
    let (found, _) = until(SOON, "it is recent", || {
        let found = flows(&scene, &["--pod", &pod.uid]);
        (rows(&found, "recent").len() == 1).then_some(found)
    });
    let row = &rows(&found, "recent")[0];
    let reason = (&row["reason"], &row["status"], &row["path"], &row["pod_uid"]);
    assert_eq!(reason, (&"ok".into(), &200.into(), &"/slow".into(), &pod.uid.as_str().into()));
    assert!(row["duration_ms"].as_f64() >= Some(8000.0) && row["bytes_down"].as_u64() > Some(0), "{row}");
    eventually(SOON, "it is live no more", || rows(&flows(&scene, of_pod), "live").is_empty());
    let count = |arguments: &[&str]| rows(&flows(&scene, arguments), "recent").len();
    assert_eq!(count(&["--recent", "--reason", "ok"]), 2);
    assert_eq!(count(&["--recent", "--reason", "upstream_refused"]), 0);
    assert_eq!(count(&["--recent", "--pod", &other.uid]), 1);
    assert_eq!(count(&["--recent", "--limit", "1"]), 1);
    let unknown = tool(&scene, "flows", &["--reason", "nonsense"]);
    assert!(unknown.status.code() == Some(1) && unknown.stderr.contains("explain"), "{unknown}");
    let everything = flows(&scene, &[]).to_string() + &status(&scene).to_string();
    assert!(!everything.contains("SECRET"), "{everything}");
}

#[test]
fn watching_is_for_terminals_and_for_lines_of_json() {
    let scene = Scene::for_test();
    let _agent = scene.agent();
    let refused = tool(&scene, "flows", &["--watch"]);
    assert_eq!(refused.status.code(), Some(2), "{refused}");
    assert!(refused.stderr.contains("--json") && refused.stdout.is_empty(), "{refused}");
    let dir = scene.run_dir();
    let arguments = ["flows", "--watch", "--json", "--run-dir", &dir.to_string_lossy()];
    let watching = scene.agent_place().command(binary()).args(arguments).spawn();
    eventually(SOON, "a second line comes", || watching.stdout().lines().count() >= 2);
    watching.signal(Signal::SIGINT);
    let ended = watching.wait(SOON);
    assert!(ended.status.success(), "{ended}");
    assert!(ended.text().lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{ended}");
}

#[test]
fn only_root_and_the_agents_group_may_ask() {
    let scene = Scene::for_test();
    let agent = scene.agent();
    let dir = scene.run_dir();
    // The socket's own mode decides, not that of the directory around it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&dir, open).expect("it is ours");
    let group = nix::unistd::getegid().as_raw();
    let answered = |uid, gid| ask_as(&dir, uid, gid).map(|answer| answer.contains("\"schema\":1"));
    assert!(answered(0, 0).expect("root may"));
    assert!(answered(NOBODY, group).expect("the agent's group may"));
    let refused = answered(NOBODY, NOBODY).expect_err("nobody else may");
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "{refused}");
    // The port, which whoever is on the node can reach, does not say it under a name of anybody's choice.
    assert_eq!(agent.get("/flows").expect("it answers").0, 421);
    assert_eq!(agent.get("/readyz").expect("it answers").0, 200);
}

#[test]
fn after_a_take_over_the_successor_answers_in_the_same_place() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let pod = scene.pod();
    let config = scene.config().route(scene.route());
    let mut first = Agent::start(&scene, &config);
    assert_eq!(status(&scene)["pid"], first.pid());
    let mut second = Agent::take_over(scene.host_network_pod(), &config);
    assert!(first.wait(SOON).status.success());
    second.wait_until_ready();
    let seen = status(&scene);
    assert_eq!((&seen["pid"], &seen["ready"]), (&second.pid().into(), &true.into()));
    assert_eq!(get(&pod, "/hello"), "200");
    assert_eq!(rows(&flows(&scene, &["--recent"]), "recent").len(), 1, "of its own time");
    assert!(second.stop(SOON).status.success());
    assert!(!scene.run_dir().join("admin.sock").exists(), "who ends takes it away");
}

#[test]
fn doctor_asks_the_api_server_what_the_agent_would_and_changes_nothing() {
    let scene = Scene::for_test();
    let cluster = Cluster::new(&scene);
    let api = cluster.start(json!([{"key": "hnp.dev/agent-not-ready", "effect": "NoSchedule"}]));
    let config = cluster.config(scene.config().route(scene.route()));
    let node = || find(&doctor(&scene, &config), "kubernetes", "own node");
    let before = api.node();
    let good = node();
    assert_eq!(good["state"], "ok", "{good}");
    assert!(good["detail"].as_str().is_some_and(|text| text.contains("still on it")), "{good}");
    assert_eq!((api.node(), api.count("PATCH", 200)), (before, 0), "it only looks");
    api.behave(Behaviour::Unauthorized);
    let bad = node();
    assert!(
        bad["state"] == "bad" && bad["next"].as_str().is_some_and(|next| next.contains("service account")),
        "{bad}"
    );
    drop(api);
    let gone = node();
    assert!(
        gone["state"] == "bad" && gone["next"].as_str().is_some_and(|next| next.contains("reach")),
        "{gone}"
    );
}

/// Asks for `/status` as another user, whose way to the directory is open already.
fn ask_as(dir: &Path, uid: u32, gid: u32) -> std::io::Result<String> {
    let ask = || -> std::io::Result<String> {
        // Of this thread alone, as its user is: the C library would change those of all.
        unshare(CloneFlags::CLONE_FS)?;
        std::env::set_current_dir(dir)?;
        let none: *const libc::gid_t = std::ptr::null();
        // SAFETY: plain numbers, and an empty list of groups; the kernel changes this thread's credentials only.
        let changed = unsafe {
            libc::syscall(libc::SYS_setgroups, 0, none) == 0
                && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
        };
        if !changed {
            panic!("cannot become user {uid}: {}", std::io::Error::last_os_error());
        }
        let mut stream = UnixStream::connect("admin.sock")?;
        stream.write_all(b"GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    std::thread::scope(|scope| scope.spawn(ask).join().expect("it does not panic"))
}

#[test]
fn doctor_sees_the_node_as_it_is() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let config = scene.config().route(scene.route());
    let doctor = || doctor(&scene, &config);
    // The control: where no agent runs, nothing is redirected and nothing is tried.
    let before = doctor();
    assert_eq!(find(&before, "agent", "status")["state"], "degraded");
    assert_eq!(find(&before, "redirect", "self-test")["state"], "skipped");

    let (agent, pod) = (scene.agent(), scene.pod());
    let found = doctor();
    assert_eq!(found["healthy"], true, "{found}");
    for (area, what) in [("vips", "route of 169.254.77."), ("agent", "ready"), ("redirect", "self-test")] {
        assert_eq!(find(&found, area, what)["state"], "ok", "{found}");
    }
    let detail = find(&found, "redirect", "self-test")["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.contains("/hnp-doctor-") && detail.contains("meets the agent"), "{detail}");
    assert_eq!(manager.connections().len(), 0, "the self-test disturbs nobody");
    let left = fs::read_dir(scene.kubepods()).expect("it is there").flatten();
    assert!(!left.into_iter().any(|one| one.file_name().to_string_lossy().starts_with("hnp-doctor")));

    // A certificate that is broken, and a manager that is gone: each with what to do next.
    fs::write(&scene.client.certificate, "nonsense").expect("it is ours");
    eventually(SOON, "the broken certificate is seen", || {
        status(&scene)["identities"][0]["state"] == "failing"
    });
    drop(manager);
    get(&pod, "/hello");
    let found = doctor();
    let identity = find(&found, "identity", IDENTITY);
    assert!(
        identity["next"].as_str().is_some_and(|next| next.starts_with("hnp-agent certs inspect /")),
        "{identity}"
    );
    let upstream = find(&found, "upstream", "manager");
    assert_eq!((&upstream["state"], &upstream["reason"]), (&"degraded".into(), &"upstream_refused".into()));
    assert!(upstream["next"].as_str().is_some_and(|next| next.ends_with("--route manager")), "{upstream}");

    // Without the route of the VIPs, what is redirected meets nobody.
    let route = ["route", "del", "table", "local", "169.254.77.0/24"];
    let removed = scene.node().command("ip").args(route).run();
    assert!(removed.status.success(), "{removed}");
    let found = doctor();
    assert_eq!(found["healthy"], false, "{found}");
    assert_eq!(find(&found, "vips", "route of 169.254.77.")["state"], "bad");
    assert_eq!(find(&found, "redirect", "self-test")["state"], "bad", "{found}");
    drop(agent);
}
