//! HTTP/1.1 as the pod wrote it reaches the manager, and the answer as the manager wrote it reaches
//! the pod; only Host and what belongs to one hop is changed. The control in each case is the twin
//! that goes straight to a plaintext manager: both must see the same.

use std::time::Instant;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::client::{self, End, RawAnswer, RawCase};
use hnp_tests::manager::{Manager, Request, Setup};
use hnp_tests::scene::{DESTINATIONS, Scene, UPSTREAM};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

#[test]
fn host_is_the_upstreams_and_all_else_stays_byte_for_byte() {
    let scene = Captured::new();
    let target = "/a%2Fb//./../c;p=1/%e9?q=%00&x=\"<>{}|^`'\u{e9}&token=odd";
    let sent = format!(
        "PUT {target} HTTP/1.1\r\nhOsT: manager.hnp.test\r\nX-Access-Key: k3y\r\nx-a:  spaced  out\t\r\n\
         X-A: again\r\nContent-Length: 3\r\nCookie: a=b; c=d\r\n\r\nabc"
    );
    assert_eq!(scene.send(&sent).status(), Some(200));
    let seen = scene.manager.request("odd");
    assert_eq!((seen.method.as_str(), seen.target.as_bytes()), ("PUT", target.as_bytes()));
    assert_eq!(seen.host(), "manager.hnp.test:80");
    let lines: Vec<&[u8]> = seen.head.raw.split(|byte| *byte == b'\n').collect();
    for line in ["X-Access-Key: k3y\r", "x-a:  spaced  out\t\r", "X-A: again\r", "Cookie: a=b; c=d\r"] {
        assert!(
            lines.contains(&line.as_bytes()),
            "{line:?} in {:?}",
            String::from_utf8_lossy(&seen.head.raw)
        );
    }
    assert_eq!(seen.body_bytes, Some(3));
}

#[test]
fn the_base_path_stands_before_every_path() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let _agent = scene.agent_with(Route::strict("manager", DESTINATIONS, &format!("{UPSTREAM}/base")));
    let pod = scene.pod();
    for (path, expected) in
        [("/echo%2F?x=1", "/base/echo%2F?x=1"), ("/", "/base/"), ("/base/x", "/base/base/x")]
    {
        manager.forget();
        let answer = client::raw(&pod, (MANAGER4, 80), vec![RawCase::new(get(path))]).remove(0);
        assert_eq!(answer.status(), Some(200), "{}", answer.text());
        assert_eq!(manager.last_request().expect("one came").target, expected);
    }
}

#[test]
fn the_host_is_the_clients_where_the_route_says_so() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let route = scene.route().set("authority", "original");
    let _agent = Agent::start(&scene, &scene.config().route(route));
    let pod = scene.pod();
    let send = |text: &str| client::raw(&pod, (MANAGER4, 80), vec![RawCase::new(text)]).remove(0);
    for (request, host) in [
        ("GET /hello?token=a HTTP/1.1\r\nHost: Manager.HNP.test:80", "Manager.HNP.test:80"),
        (
            "GET http://manager.hnp.test:81/hello?token=b HTTP/1.1\r\nHost: manager.hnp.test",
            "manager.hnp.test:81",
        ),
        ("GET /hello?token=c HTTP/1.0", "manager.hnp.test:80"),
    ] {
        let answer = send(&format!("{request}\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status(), Some(200), "{}", answer.text());
        let token = request.split("token=").nth(1).and_then(|rest| rest.get(..1)).expect("a token");
        assert_eq!(manager.request(token).host(), host, "{request}");
    }
}

#[test]
fn server_name_is_verified_and_announced_apart_from_the_host() {
    let scene = Scene::for_test();
    let server = scene.servers.server(&["certified.hnp.test"]);
    let manager = Manager::strict(&scene, "manager", 80, &server, &scene.clients);
    let route = Route::strict("manager", DESTINATIONS, UPSTREAM).set("server_name", "certified.hnp.test");
    let _agent = scene.agent_with(route);
    let answer = client::raw(&scene.pod(), (MANAGER4, 80), vec![RawCase::new(get("/x"))]).remove(0);
    assert_eq!(answer.status(), Some(200), "{}", answer.text());
    let seen = manager.last_request().expect("one came");
    assert_eq!(seen.host(), "manager.hnp.test:80");
    assert_eq!(seen.tls.and_then(|tls| tls.server_name).as_deref(), Some("certified.hnp.test"));
}

#[test]
fn a_connection_is_kept_alive_and_pipelined_requests_are_answered_in_order() {
    let scene = Captured::new();
    let request =
        |n| format!("GET /hello HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nx-token: k{n}\r\n\r\n").into_bytes();
    let (one, two, three) = (request(1), request(2), request(3));
    let apart = RawCase::in_parts(&[&one, &two, &three], 100);
    let together = RawCase::new([one, two, three].concat());
    for case in [apart, together] {
        let answer = scene.raw(case);
        let text = answer.text();
        let tokens: Vec<_> = text.lines().filter_map(token_line).collect();
        assert_eq!(tokens, ["k1", "k2", "k3"], "{text}");
        assert_eq!(answer.end, End::Quiet, "still open");
    }
}

#[test]
fn chunked_bodies_pass_in_both_directions() {
    let scene = Captured::new();
    let sent = format!(
        "POST /echo HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nx-token: up\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n4\r\nWiki\r\n6;ext=1\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\n\r\n"
    );
    let answer = scene.send(&sent);
    assert!(answer.text().ends_with("Wikipedia in \r\n\r\nchunks."), "{}", answer.text());
    assert_eq!(scene.manager.request("up").body_bytes, Some(24));

    let answer = scene.send(&get("/drip?parts=3&ms=1&token=down"));
    assert!(answer.text().to_ascii_lowercase().contains("transfer-encoding: chunked"), "{}", answer.text());
    assert_eq!(answer.text().matches("down\n").count(), 3, "{}", answer.text());
    assert!(answer.text().ends_with("0\r\n\r\n"), "{}", answer.text());
}

#[test]
fn chunks_reach_the_pod_as_the_manager_sends_them() {
    let scene = Captured::new();
    // Were the body buffered, the first byte would come with the last, a second later.
    let url = format!("http://{MANAGER_NAME}/drip?parts=10&ms=100&token=t");
    let timing = scene
        .pod
        .command("curl")
        .args(["-sN", "-o", "/dev/null", "-w", "%{time_starttransfer} %{time_total}", &url])
        .run()
        .ok();
    let (first, total) = timing.split_once(' ').expect("two numbers");
    let (first, total): (f64, f64) = (first.parse().expect("a number"), total.parse().expect("a number"));
    assert!(total - first > 0.8, "first byte after {first} s, last after {total} s");
}

#[test]
fn a_hundred_continue_is_waited_for_and_passed_on() {
    let scene = Captured::new();
    let head = format!(
        "POST /sink HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nx-token: c\r\nexpect: 100-continue\r\n\
         content-length: 5\r\nconnection: close\r\n\r\n"
    );
    let answer = scene.raw(RawCase::in_parts(&[head.as_bytes(), b"hello"], 200));
    let text = answer.text();
    assert!(text.starts_with("HTTP/1.1 100 "), "{text}");
    assert!(text.contains("HTTP/1.1 200 "), "{text}");
    assert_eq!(scene.manager.request("c").body_bytes, Some(5));

    // A manager that refuses on the head alone is heard, and no body is sent to it.
    let refused = head.replace("/sink", "/continue/refuse").replace("x-token: c", "x-token: r");
    let answer = scene.raw(RawCase::new(refused));
    assert_eq!(answer.status(), Some(417), "{}", answer.text());
    assert_eq!(scene.manager.request("r").body_bytes, None);
}

#[test]
fn curl_uploads_with_expect_continue_without_waiting_in_vain() {
    let scene = Captured::new();
    let file = scene.scene.path("upload");
    std::fs::write(&file, vec![b'x'; 2_000_000]).expect("the world's directory is ours");
    let data = format!("@{}", file.display());
    let url = format!("http://{MANAGER_NAME}/sink?token=curl");
    let started = Instant::now();
    let arguments = ["-s", "-H", "Expect: 100-continue", "--data-binary", &data, &url];
    // One second unless told otherwise; so long that nobody takes it for slowness here.
    scene.pod.command("curl").args(["--expect100-timeout", "600"]).args(arguments).run().ok();
    eprintln!("uploaded in {:?}", started.elapsed());
    assert_eq!(scene.manager.request("curl").body_bytes, Some(2_000_000));
}

#[test]
fn answers_without_a_body_end_where_they_should() {
    let scene = Captured::new();
    let next = get("/hello?token=next");
    for (first, status, length) in [
        ("HEAD /bytes/1000?token=h", 200, Some("content-length: 1000")),
        ("GET /status/204?token=n", 204, None),
        ("GET /status/304?token=m", 304, None),
    ] {
        let first = format!("{first} HTTP/1.1\r\nhost: {MANAGER_NAME}\r\n\r\n");
        // The second answer begins right after the first one's head, or nothing would line up.
        let answer = scene.raw(RawCase::new([first.as_bytes(), next.as_bytes()].concat()));
        let text = answer.text();
        assert_eq!(answer.status(), Some(status), "{text}");
        let (head, rest) = text.split_once("\r\n\r\n").expect("a head");
        assert!(length.is_none_or(|length| head.to_ascii_lowercase().contains(length)), "{head}");
        assert!(rest.starts_with("HTTP/1.1 200 ") && rest.contains("\"token\":\"next\""), "{text}");
    }
}

#[test]
fn interim_answers_are_passed_on() {
    let scene = Captured::new();
    let text = scene.send(&get("/early-hints?token=e")).text();
    assert!(text.starts_with("HTTP/1.1 103 ") && text.contains("rel=preload"), "{text}");
    assert!(text.contains("HTTP/1.1 200 ") && text.contains("\"token\":\"e\""), "{text}");
}

#[test]
fn an_upgraded_connection_carries_bytes_both_ways() {
    let scene = Captured::new();
    let head = format!(
        "GET /upgrade HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: Upgrade\r\nupgrade: echo\r\nx-token: up\r\n\r\n"
    );
    let parts: [&[u8]; 3] = [head.as_bytes(), b"\x00\x01first", b"second\xff"];
    let answer = scene.raw(RawCase::in_parts(&parts, 100));
    assert_eq!(answer.status(), Some(101), "{}", answer.text());
    assert!(answer.bytes.ends_with(b"\x00\x01firstsecond\xff"), "{:?}", answer.text());
    let seen = scene.manager.request("up");
    assert_eq!(seen.head.header("upgrade"), Some("echo"));
    assert!(seen.head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
}

#[test]
fn http_1_0_clients_are_served() {
    let scene = Captured::new();
    let answer = scene.send("GET /hello?token=old HTTP/1.0\r\n\r\n");
    assert_eq!(answer.status(), Some(200), "{}", answer.text());
    assert_eq!(answer.end, End::Eof, "a client of HTTP/1.0 takes the end of the stream for the end");
    assert_eq!(scene.manager.request("old").host(), "manager.hnp.test:80");
    // It could not read chunks, so it gets none.
    let text = scene.send("GET /drip?parts=2&ms=1&token=d HTTP/1.0\r\n\r\n").text();
    assert!(text.ends_with("\r\n\r\nd\nd\n"), "{text}");
}

#[test]
fn what_belongs_to_one_hop_ends_there() {
    let scene = Captured::new();
    let sent = format!(
        "GET /hello HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nx-token: hop\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Authorization: Basic x\r\nX-Forwarded-Client-Cert: Hash=forged\r\n\
         x_forwarded_client_cert: Hash=forged\r\nTE: trailers\r\nX-Kept: 1\r\n\r\n"
    );
    assert_eq!(scene.send(&sent).status(), Some(200));
    let seen: Request = scene.manager.request("hop");
    let text = String::from_utf8_lossy(&seen.head.raw).to_ascii_lowercase();
    for gone in ["x-mine", "keep-alive", "proxy-authorization", "client-cert", "client_cert", "te:"] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
    assert_eq!(seen.head.header("x-kept"), Some("1"));
}

#[test]
fn a_pod_that_speaks_tls_is_told_so() {
    let scene = Captured::new();
    let url = format!("https://{MANAGER_NAME}:80/hello");
    let refused = scene.pod.command("curl").args(["-sSk", "-m", "5", &url]).run();
    assert!(!refused.status.success() && refused.stderr.contains("alert"), "{refused}");
    scene.agent.access_line_with("tls_from_client");
    assert_eq!(scene.manager.request_count(), 0);
}

/// A strict manager, an agent in front of it, a pod; and a plaintext manager on port 81 that is no
/// destination, for the twin that goes straight.
struct Captured {
    pod: Pod,
    agent: Agent,
    manager: Manager,
    straight: Manager,
    scene: Scene,
}

impl Captured {
    fn new() -> Self {
        let scene = Scene::for_test();
        let manager = scene.strict_manager();
        let straight = Manager::start(&scene, Setup::new("straight", 81));
        let (agent, pod) = (scene.agent(), scene.pod());
        Self { pod, agent, manager, straight, scene }
    }

    /// Sends a case through capture, and straight; what the manager says must not differ in status
    /// nor in how the connection ends.
    fn raw(&self, case: RawCase) -> RawAnswer {
        let captured = client::raw(&self.pod, (MANAGER4, 80), vec![case.clone()]).remove(0);
        let straight = client::raw(&self.pod, (MANAGER4, 81), vec![case]).remove(0);
        assert_eq!(
            (captured.status(), &captured.end),
            (straight.status(), &straight.end),
            "captured: {}\nstraight: {}",
            captured.text(),
            straight.text()
        );
        assert!(self.straight.request_count() > 0);
        captured
    }

    fn send(&self, request: &str) -> RawAnswer {
        self.raw(RawCase::new(request))
    }
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n")
}

fn token_line(line: &str) -> Option<&str> {
    line.to_ascii_lowercase().starts_with("x-token:").then(|| line[8..].trim())
}
