//! An upstream that speaks HTTP/2 gets all pods' HTTP/1.1 requests over few connections, and the pods notice
//! nothing of it. The control in each case is HTTP/1.1: another route, another manager, or what falls back to it.

use std::fs;
use std::time::Duration;

use hnp_tests::agent::{Agent, Config};
use hnp_tests::client::{self, Job, RawAnswer, RawCase, Target};
use hnp_tests::manager::{Http2, Manager, Mode, Setup};
use hnp_tests::nginx::Nginx;
use hnp_tests::pattern::sha256_of;
use hnp_tests::pki::Ca;
use hnp_tests::poll::eventually;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

/// Generous, so that a loaded machine does not fail it.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn many_pods_share_few_connections() {
    let shared = connections_of_a_burst("auto");
    let alone = connections_of_a_burst("http/1.1");
    eprintln!("connections for 100 requests at a time: {shared} over HTTP/2, {alone} over HTTP/1.1");
    // Two workers; a third and fourth where chance deals one of them more than a connection carries.
    assert!(shared <= 4, "{shared}");
    assert!(alone >= 40, "the control: {alone}");
}

/// 300 requests, 100 at a time, each on a connection of its own to the agent.
fn connections_of_a_burst(upstream_protocol: &str) -> usize {
    let scene = Captured::with(Http2::default(), |scene| {
        scene.config().route(scene.route().set("upstream_protocol", upstream_protocol))
    });
    // Both workers know what the upstream speaks.
    let target = scene.target().path("/slow?ms=300");
    let job = |total, concurrency| Job::Short { targets: vec![target.clone()], total, concurrency };
    client::run(&scene.pod, &job(24, 4)).assert_all_ok(24);
    client::run(&scene.pod, &job(300, 100)).assert_all_ok(300);
    let requests = scene.manager.requests();
    assert!(requests.iter().all(|request| request.client_serial() == scene.scene.client_serial));
    let spoken = if upstream_protocol == "auto" { ("HTTP/2.0", "h2") } else { ("HTTP/1.1", "http/1.1") };
    assert!(requests.iter().all(|request| request.head.start_line.ends_with(spoken.0)));
    let line = scene.agent.access_line("a request on a shared connection", |line| line["reused"] == true);
    assert_eq!(line["upstream_protocol"], spoken.1);
    let open = || scene.agent.metrics().sum("hnp_upstream_shared", &[("route", "manager")]);
    eventually(SOON, "the gauge tells", || (open() > 0.0) == (spoken.1 == "h2"));
    scene.manager.connections().len()
}

#[test]
fn a_burst_waits_for_one_handshake() {
    // The first connection is over, and what the upstream speaks is known.
    let scene = Captured::with(Http2 { requests: 50, ..Http2::default() }, one_worker);
    let target = scene.target().path("/slow?ms=300");
    let first = Job::Steady { target: scene.target(), rate: 500, connections: 1, seconds: 0.1 };
    client::run(&scene.pod, &first).assert_all_ok(50);
    assert_eq!(scene.manager.connections().len(), 1);
    let burst = Job::Short { targets: vec![target], total: 49, concurrency: 49 };
    client::run(&scene.pod, &burst).assert_all_ok(49);
    assert_eq!(scene.manager.connections().len(), 2, "all on the next one");
    // That requests do make connections of their own where they cannot share, `many_pods_share_few_connections` shows.
    scene.assert_only_http2();
}

#[test]
fn bodies_pass_in_both_directions() {
    let scene = Captured::new();
    for chunked in [false, true] {
        let target = scene.target().path("/sink");
        let up = client::run(&scene.pod, &Job::Upload { target, bytes: 20_000_001, seed: 7, chunked });
        assert_eq!(up.sha256, sha256_of(7, 20_000_001));
        assert_eq!(scene.manager.last_request().expect("one came").body_sha256, Some(up.sha256));
        let query = if chunked { "seed=9&chunked" } else { "seed=9" };
        let target = scene.target().path(&format!("/bytes/20000001?{query}"));
        let down = client::run(&scene.pod, &Job::Download { target });
        assert_eq!((down.bytes, down.sha256), (20_000_001, sha256_of(9, 20_000_001)));
    }
    scene.assert_only_http2();
}

#[test]
fn a_body_that_is_streamed_arrives_piece_by_piece() {
    let scene = Captured::new();
    let go = scene.scene.path("go");
    let script = format!(
        "import os, socket, time\n\
         s = socket.create_connection(('{MANAGER4}', 80))\n\
         s.sendall(b'PUT /stream?token=pieces HTTP/1.1\\r\\nHost: m\\r\\nConnection: close\\r\\nContent-Length: 3000\\r\\n\\r\\n')\n\
         for piece in range(3):\n\
         \x20   while not os.path.exists('{go}%d' % piece): time.sleep(0.01)\n\
         \x20   s.sendall(b'x' * 1000)\n\
         print(s.recv(12).decode())\n",
        go = go.display(),
    );
    let mut put = scene.pod.command("python3").args(["-c", &script]).spawn();
    for piece in 0..3_u64 {
        // The next one is not even written before this one has arrived.
        fs::write(format!("{}{piece}", go.display()), "").expect("the world's directory is ours");
        eventually(SOON, "the piece arrives", || scene.manager.payload_received() >= (piece + 1) * 1000);
        assert_eq!(scene.manager.payload_received(), (piece + 1) * 1000);
    }
    let finished = put.wait_up_to(SOON).expect("it is answered");
    assert_eq!(finished.ok().trim(), "HTTP/1.1 200");
    scene.assert_only_http2();
}

#[test]
fn a_slow_reader_does_not_stop_a_quick_one_on_the_same_connection() {
    let scene = Captured::with(Http2::default(), one_worker);
    let go = scene.scene.path("go");
    let script = format!(
        "import hashlib, os, socket, time\n\
         s = socket.create_connection(('{MANAGER4}', 80))\n\
         s.sendall(b'GET /bytes/60000000?seed=5 HTTP/1.1\\r\\nHost: m\\r\\nConnection: close\\r\\n\\r\\n')\n\
         print(s.recv(12).decode(), flush=True)\n\
         while not os.path.exists('{}'): time.sleep(0.01)\n\
         f = s.makefile('rb')\n\
         while f.readline().strip(): pass\n\
         print(hashlib.sha256(f.read()).hexdigest())\n",
        go.display(),
    );
    let slow: Vec<_> = (0..4).map(|_| scene.pod.command("python3").args(["-c", &script]).spawn()).collect();
    eventually(SOON, "all are answered", || scene.manager.request_count() == 4);
    let target = scene.target().path("/bytes/30000000?seed=6");
    let quick = client::run(&scene.pod, &Job::Download { target });
    assert_eq!(quick.sha256, sha256_of(6, 30_000_000));
    let lines = scene.agent.access_lines();
    assert!(lines.iter().all(|line| line["path"] != "/bytes/60000000"), "the control: theirs wait");
    assert_eq!(scene.manager.connections().len(), 1, "all on one connection");
    fs::write(&go, "").expect("the world's directory is ours");
    for mut reader in slow {
        let finished = reader.wait_up_to(SOON * 3).expect("it ends once it reads on");
        assert!(finished.ok().contains(&sha256_of(5, 60_000_000)));
    }
}

#[test]
fn nothing_is_lost_when_the_upstream_goes_away_again_and_again() {
    let scene = Captured::with(Http2 { requests: 40, ..Http2::default() }, one_worker);
    let target = scene.target();
    let steady = Job::Steady { target, rate: 200, connections: 10, seconds: 3.0 };
    client::run(&scene.pod, &steady).assert_all_ok(600);
    let connections = scene.manager.connections().len();
    assert!(connections >= 10, "the control: it went away: {connections} connections");
    scene.assert_only_http2();
}

#[test]
fn what_was_refused_is_sent_again_and_what_was_begun_is_not() {
    let scene = Captured::with(Http2 { refuse_every: 3, ..Http2::default() }, one_worker);
    for n in 0..12 {
        let answer = scene.send(&format!("POST /x?token=r{n} HTTP/1.1\r\nContent-Length: 3\r\n"), "abc");
        assert_eq!(answer.status(), Some(200), "{}", answer.text());
        assert_eq!(scene.manager.request(&format!("r{n}")).body_bytes, Some(3));
    }
    assert!(scene.agent.metrics().sum("hnp_retries", &[]) >= 4.0);

    // It goes on refusing: it is not asked for ever.
    let scene = Captured::new();
    let answer = scene.send("POST /fault/refuse?token=never HTTP/1.1\r\nContent-Length: 3\r\n", "abc");
    assert_eq!((answer.status(), reason_of(&answer)), (Some(502), "upstream_reset".into()));
    assert_eq!(scene.manager.request_count(), 3);
    // The control: a request that the upstream may have carried out is sent once.
    let answer = scene.send("POST /fault/reset?token=once HTTP/1.1\r\nContent-Length: 3\r\n", "abc");
    assert_eq!((answer.status(), reason_of(&answer)), (Some(502), "upstream_reset".into()));
    assert_eq!(scene.manager.request_count(), 4);
}

#[test]
fn what_http2_cannot_do_goes_over_http1() {
    let scene = Captured::new();
    let upgrade = "GET /upgrade?token=ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: echo\r\n";
    let case = RawCase {
        quiet_ms: 300,
        ..RawCase::in_parts(&[format!("{upgrade}Host: m\r\n\r\n").as_bytes(), b"ping"], 200)
    };
    let answer = client::raw(&scene.pod, (MANAGER4, 80), vec![case]).remove(0);
    assert!(answer.status() == Some(101) && answer.text().ends_with("ping"), "{}", answer.text());
    assert!(scene.manager.request("ws").head.start_line.ends_with("HTTP/1.1"));

    let odd = "/odd/<a>?q=\"b\"&token=odd";
    assert_eq!(scene.send(&format!("GET {odd} HTTP/1.1\r\n"), "").status(), Some(200));
    let seen = scene.manager.request("odd");
    assert_eq!((seen.target.as_str(), seen.head.start_line.ends_with("HTTP/1.1")), (odd, true));

    // The upstream may ask for it, too. There the path means nothing.
    let answer = scene.send("POST /fault/required?token=asked HTTP/1.1\r\nContent-Length: 3\r\n", "abc");
    assert!(answer.text().contains("unknown fault required"), "{}", answer.text());
    let line = scene.agent.access_line("it went over HTTP/1.1", |line| line["path"] == "/fault/required");
    assert_eq!(line["upstream_protocol"], "http/1.1");

    // The control: what it can do goes over HTTP/2, byte for byte.
    let plain = "/a%2Fb//./../c;p=1/%e9?q=%00&x={}|^[]&token=plain";
    assert_eq!(scene.send(&format!("GET {plain} HTTP/1.1\r\n"), "").status(), Some(200));
    let seen = scene.manager.request("plain");
    assert_eq!((seen.target.as_str(), seen.host()), (plain, "manager.hnp.test:80"));
    assert!(seen.head.start_line.ends_with("HTTP/2.0"));
}

#[test]
fn trailers_and_interim_answers_and_answers_without_a_body() {
    let scene = Captured::new();
    let chunks = "4\r\nWiki\r\n6;ext=1\r\npedia \r\n0\r\nX-Sum: 10\r\n\r\n";
    let answer = scene.send("POST /echo?token=tr HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", chunks);
    let text = answer.text();
    assert!(text.contains("Wikipedia ") && text.ends_with("0\r\nx-sum: 10\r\n\r\n"), "{text}");
    assert_eq!(scene.manager.request("tr").body_bytes, Some(10));

    let answer = scene.send("GET /early-hints HTTP/1.1\r\n", "");
    let text = answer.text();
    assert!(text.starts_with("HTTP/1.1 103 ") && text.contains("\r\n\r\nHTTP/1.1 200 OK\r\n"), "{text}");

    let empty = |text: &str| text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.is_empty());
    for (request, status) in [("HEAD /hello", 200), ("GET /status/204", 204), ("GET /status/304", 304)] {
        // Two on one connection: the first one ends exactly.
        let both = format!(
            "{request} HTTP/1.1\r\nHost: m\r\n\r\n{request} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n"
        );
        let answer = client::raw(&scene.pod, (MANAGER4, 80), vec![RawCase::new(both)]).remove(0);
        let text = answer.text();
        assert_eq!(text.matches(&format!("HTTP/1.1 {status} ")).count(), 2, "{text}");
        let second = &text[text.rfind("HTTP/1.1").expect("two")..];
        assert!(empty(second), "{second}");
    }
    let with_body = scene.send("GET /status/500 HTTP/1.1\r\n", "");
    assert!(!empty(&with_body.text()), "the control");
    scene.assert_only_http2();
}

#[test]
fn answers_that_are_none_have_their_reason() {
    let scene = Captured::new();
    let answer = scene.send("GET /fault/huge-head HTTP/1.1\r\n", "");
    assert_eq!((answer.status(), reason_of(&answer)), (Some(502), "upstream_bad_response".into()));
    for (path, reason) in
        [("/fault/too-short", "upstream_bad_response"), ("/fault/reset-in-body", "upstream_reset")]
    {
        let answer = scene.send(&format!("GET {path} HTTP/1.1\r\n"), "");
        assert!(!answer.text().contains("\r\n\r\n") || answer.text().len() < 1000, "cut: {}", answer.text());
        let line = scene.agent.access_line(path, |line| line["path"] == path);
        assert_eq!((&line["reason"], &line["upstream_protocol"]), (&reason.into(), &"h2".into()));
    }
    // The control, on the same connection where there still is one.
    assert_eq!(scene.send("GET /hello HTTP/1.1\r\n", "").status(), Some(200));
}

#[test]
fn a_client_certificate_that_is_refused_after_the_handshake_is_told() {
    let scene = Scene::for_test();
    let others = Ca::new("another CA");
    let setup = Setup::new("manager", 80).tls(Mode::Strict, &scene.server, &others).http2(Http2::default());
    let manager = Manager::start(&scene, setup);
    let agent = scene.agent();
    let request = RawCase::new("GET /x HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n");
    let answer = client::raw(&scene.pod(), (MANAGER4, 80), vec![request]).remove(0);
    assert_eq!(
        (answer.status(), reason_of(&answer)),
        (Some(502), "client_certificate_refused".into()),
        "{}",
        answer.text()
    );
    agent.access_line_with("client_certificate_refused");
    assert_eq!(manager.request_count(), 0);
}

#[test]
fn a_new_identity_is_presented_on_a_new_connection() {
    let scene = Captured::with(Http2::default(), one_worker);
    let ask = |token: &str| {
        assert_eq!(scene.send(&format!("GET /x?token={token} HTTP/1.1\r\n"), "").status(), Some(200));
        scene.manager.request(token)
    };
    let (first, again) = (ask("first"), ask("again"));
    assert_eq!(first.connection, again.connection, "the control: as long as nothing changes");
    assert_eq!(first.client_serial(), scene.scene.client_serial);
    let next = scene.scene.clients.client();
    let staged = next.write(scene.scene.dir(), "staged");
    fs::rename(&staged.certificate, &scene.scene.client.certificate).expect("the world's directory is ours");
    fs::rename(&staged.key, &scene.scene.client.key).expect("the world's directory is ours");
    let mut n = 0;
    eventually(SOON, "the new one is presented", || {
        n += 1;
        let seen = ask(&format!("n{n}"));
        assert_eq!(seen.connection == first.connection, seen.client_serial() == scene.scene.client_serial);
        seen.client_serial() == next.serial
    });
    let open = || scene.agent.metrics().sum("hnp_upstream_shared", &[("route", "manager")]);
    eventually(SOON, "the old connection is closed", || open() == 1.0);
}

#[test]
fn nginx_is_such_an_upstream_too() {
    let scene = Scene::for_test();
    let clients_ca = scene.clients.write(scene.dir(), "clients-ca");
    let nginx = Nginx::start_http2(&scene, 80, &scene.server, &clients_ca);
    let mut config = scene.config().route(scene.route());
    config.workers = 1;
    let agent = Agent::start(&scene, &config);
    let pod = scene.pod();
    let raw = |request: &str| client::raw(&pod, (MANAGER4, 80), vec![RawCase::new(request)]).remove(0);
    // It ends a connection after a hundred requests, with GOAWAY.
    let one = "GET /x HTTP/1.1\r\nHost: m\r\n\r\n";
    for _ in 0..5 {
        let many = one.repeat(49)
            + "POST /x HTTP/1.1\r\nHost: m\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
        let answer = raw(&many);
        assert_eq!(answer.text().matches("HTTP/1.1 200").count(), 50, "{}", answer.text());
    }
    let lines = nginx.requests(250);
    assert!(lines.iter().all(|line| line.starts_with("SUCCESS|") && line.contains("|200|HTTP/2.0|")));
    let mut connections: Vec<_> = lines.iter().filter_map(|line| line.rsplit('|').next()).collect();
    connections.sort_unstable();
    connections.dedup();
    assert!((2..=4).contains(&connections.len()), "{connections:?}");
    let answer = raw("HEAD /x HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.status(), Some(200));
    agent.access_line("a HEAD", |line| line["method"] == "HEAD" && line["upstream_protocol"] == "h2");
}

/// A strict manager that prefers HTTP/2, and an agent before it.
struct Captured {
    agent: Agent,
    pod: Pod,
    manager: Manager,
    scene: Scene,
}

fn one_worker(scene: &Scene) -> Config {
    let mut config = scene.config().route(scene.route());
    config.workers = 1;
    config
}

impl Captured {
    fn new() -> Self {
        Self::with(Http2::default(), one_worker)
    }

    fn with(settings: Http2, config: impl FnOnce(&Scene) -> Config) -> Self {
        let scene = Scene::for_test();
        let setup =
            Setup::new("manager", 80).tls(Mode::Strict, &scene.server, &scene.clients).http2(settings);
        let manager = Manager::start(&scene, setup);
        let agent = Agent::start(&scene, &config(&scene));
        Self { agent, pod: scene.pod(), manager, scene }
    }

    fn target(&self) -> Target {
        Target::new((MANAGER4, 80), MANAGER_NAME, "manager")
    }

    /// One request on a connection of its own; `head` without Host and the empty line.
    fn send(&self, head: &str, body: &str) -> RawAnswer {
        let request = format!("{head}Host: {MANAGER_NAME}\r\nConnection: close\r\n\r\n{body}");
        client::raw(&self.pod, (MANAGER4, 80), vec![RawCase::new(request)]).remove(0)
    }

    fn assert_only_http2(&self) {
        let requests = self.manager.requests();
        assert!(!requests.is_empty() && requests.iter().all(|one| one.head.start_line.ends_with("HTTP/2.0")));
    }
}

/// The reason in an answer of the agent's own.
#[track_caller]
fn reason_of(answer: &RawAnswer) -> String {
    let text = answer.text();
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let body: serde_json::Value = serde_json::from_str(body)
        .unwrap_or_else(|error| panic!("{error}: not an answer of our own: {text}"));
    body["reason"].as_str().unwrap_or_default().to_owned()
}
