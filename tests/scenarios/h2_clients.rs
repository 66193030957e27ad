//! Clients that speak HTTP/2: with prior knowledge in the clear, and by ALPN where their TLS ends at the agent. The
//! rules are those of HTTP/1.1, and so are the answers.

use std::fs;
use std::time::Duration;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::client::{self, RawAnswer, RawCase};
use hnp_tests::manager::{Manager, Mode, Setup};
use hnp_tests::poll::eventually;
use hnp_tests::process::{Finished, Place};
use hnp_tests::scene::{IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

#[test]
fn prior_knowledge_is_carried_to_a_strict_manager() {
    let case = Case::new(Mode::Strict);
    let answer = case.curl(&case.pod, &["-w", " %{http_version} %{http_code}", &case.url("/hello")]);
    assert!(answer.ok().contains("\"manager\":\"manager\"") && answer.text().ends_with(" 2 200"), "{answer}");
    assert_eq!(case.manager.last_request().expect("one came").client_serial(), case.scene.client_serial);
    let line =
        case.agent.access_line("the request", |line| line["path"] == "/hello" && line["reason"] == "ok");
    assert_eq!(line["client_protocol"], "h2", "{line}");
    // The control: outside of the pod nobody carries it, and the manager speaks TLS alone.
    assert!(!case.curl(case.pod.outside_cgroup(), &[&case.url("/hello")]).status.success());
    assert_eq!(case.manager.request_count(), 1);
}

#[test]
fn a_loose_manager_gets_the_same_request() {
    let case = Case::new(Mode::Loose);
    assert!(case.curl(&case.pod, &[&case.url("/hello")]).status.success());
    assert_eq!(case.manager.last_request().expect("one came").client_serial(), case.scene.client_serial);
}

#[test]
fn bodies_arrive_whole_in_both_directions() {
    let case = Case::new(Mode::Strict);
    let (up, down) = (case.scene.path("up"), case.scene.path("down"));
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&up, &bytes).expect("the world's directory is ours");
    let sum = |path: &std::path::Path| {
        let text = tools::run(case.scene.dir(), "sha256sum", &[&path.to_string_lossy()]);
        text.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let file = format!("@{}", up.display());
    // With a length, and without.
    for more in [&[][..], &["-H", "content-length:"]] {
        let url = case.url("/hello");
        let mut arguments = vec!["--data-binary", &file, &url];
        arguments.extend(more);
        let answer = case.curl(&case.pod, &arguments);
        assert!(answer.ok().contains(&sum(&up)), "{answer}");
    }
    for query in ["?seed=7", "?seed=7&chunked"] {
        let url = case.url(&format!("/bytes/5000000{query}"));
        let taken = ["-o", &*down.to_string_lossy(), &url].map(str::to_owned);
        assert!(case.curl(&case.pod, &taken.each_ref().map(String::as_str)).status.success());
        let over_h2 = sum(&down);
        // The control: the same over HTTP/1.1.
        let command = case.pod.command("curl").args(["-sS", "--http1.1"]).args(&taken);
        assert!(command.run().status.success());
        assert_eq!((fs::metadata(&down).expect("it was written").len(), sum(&down)), (5_000_000, over_h2));
    }
}

#[test]
fn a_forged_authority_is_no_way_round() {
    let case = Case::new(Mode::Strict);
    let status = ["-w", " %{http_code}"];
    let ask = |more: &[&str]| {
        let url = case.url("/hello");
        case.curl(&case.pod, &[&status, more, &[url.as_str()]].concat()).ok()
    };
    let forged = ask(&["-H", "Host: elsewhere.hnp.test"]);
    assert!(forged.contains("host_refused") && forged.ends_with(" 421"), "{forged}");
    assert_eq!(case.manager.request_count(), 0);
    // The control.
    assert!(ask(&[]).ends_with(" 200"));
}

#[test]
fn alpn_offers_it_where_tls_ends_here() {
    let case = Case::ending_tls();
    // The control: whoever does not offer it gets HTTP/1.1.
    for (offer, version) in [("--http2", " 2 200"), ("--http1.1", " 1.1 200")] {
        let answer = case.curl_tls(&[offer, "-w", " %{http_version} %{http_code}", &case.tls_url("")]);
        assert!(answer.ok().ends_with(version), "{answer}");
    }
}

#[test]
fn many_requests_at_a_time_share_the_clients_connection() {
    let case = Case::ending_tls();
    let urls: Vec<String> = (0..40).map(|number| case.tls_url(&format!("?token=t{number}"))).collect();
    let flows = |offer: &str| {
        let mut arguments = vec![offer, "--parallel", "--parallel-max", "40", "-w", "\n%{http_code}\n"];
        arguments.extend(urls.iter().map(String::as_str));
        let before = case.lines().len();
        let text = case.curl_tls(&arguments).ok();
        assert_eq!(text.lines().filter(|line| *line == "200").count(), 40, "{text}");
        for number in 0..40 {
            assert!(text.contains(&format!("\"token\":\"t{number}\"")), "{number}: {text}");
        }
        eventually(Duration::from_secs(20), "a line for each", || case.lines().len() == before + 40);
        let mut flows = case.lines().split_off(before);
        flows.sort_by_key(ToString::to_string);
        flows.dedup();
        flows.len()
    };
    assert_eq!(flows("--http2"), 1);
    // The control.
    assert!(flows("--http1.1") > 1);
}

#[test]
fn a_flood_of_resets_and_nonsense_end_their_connection_alone() {
    let case = Case::new(Mode::Strict);
    let mut flood = Frames::new();
    for stream in 0..3_000 {
        flood.request(2 * stream + 1, "/hello");
        flood.frame(3, 0, 2 * stream + 1, &[0, 0, 0, 8]);
    }
    let answer = case.raw(flood.0);
    // GOAWAY with ENHANCE_YOUR_CALM (RFC 9113 section 7).
    assert_eq!(goaway(&answer.bytes), Some(11), "{:?}", answer.end);
    let mut nonsense = Frames::new();
    nonsense.frame(1, 4, 2, b"\xff\xff\xff\xff");
    let answer = case.raw(nonsense.0);
    assert!(goaway(&answer.bytes).is_some(), "{:?}", answer.bytes);
    let line = case.agent.access_line_with("bad_request");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.starts_with("HTTP/2: ")), "{line}");
    // The controls: one reset is nobody's end, and others are served on.
    let mut one = Frames::new();
    one.request(1, "/hello");
    one.frame(3, 0, 1, &[0, 0, 0, 8]);
    one.request(3, "/hello");
    assert_eq!(goaway(&case.raw(one.0).bytes), None);
    assert!(case.curl(&case.pod, &[&case.url("/hello")]).status.success());
}

#[test]
fn requests_are_bounded_as_connections_are() {
    let scene = Scene::for_test();
    let manager =
        Manager::start(&scene, Setup::new("manager", 80).tls(Mode::Strict, &scene.server, &scene.clients));
    let route = Route::strict("manager", &["manager.hnp.test:80"], UPSTREAM).with(IDENTITY, TRUST);
    let mut config = scene.config().route(route);
    (config.workers, config.limits) = (1, "connections: 10".to_owned());
    let agent = Agent::start(&scene, &config);
    let case = Case { pod: scene.pod(), agent, manager, scene };
    let refused = |requests: u32| {
        let mut frames = Frames::new();
        for stream in 0..requests {
            frames.request(2 * stream + 1, "/slow?ms=1000");
        }
        let answer = case.raw(frames.0);
        frames_of(&answer.bytes)
            .iter()
            .filter(|(kind, payload)| *kind == 3 && *payload == [0, 0, 0, 7])
            .count()
    };
    // REFUSED_STREAM: whoever sent it may send it again.
    assert_eq!(refused(30), 20);
    // The control, and those that were served are no burden on the next.
    assert_eq!(refused(10), 0);
    assert_eq!(case.manager.request_count(), 20);
}

/// The code of the last GOAWAY among the frames.
fn goaway(bytes: &[u8]) -> Option<u32> {
    let code = |payload: &[u8]| payload.get(4..8)?.try_into().ok().map(u32::from_be_bytes);
    frames_of(bytes)
        .iter()
        .filter(|(kind, _)| *kind == 7)
        .filter_map(|(_, payload)| code(payload))
        .next_back()
}

/// Type and payload of each frame.
fn frames_of(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some(payload) = rest.get(..length) else { break };
        frames.push((head[3], payload));
        bytes = &rest[length..];
    }
    frames
}

/// What a client writes, by hand.
struct Frames(Vec<u8>);

impl Frames {
    fn new() -> Self {
        let mut frames = Self(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec());
        frames.frame(4, 0, 0, &[]);
        frames
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
        self.0.extend_from_slice(&length[1..]);
        self.0.extend_from_slice(&[kind, flags]);
        self.0.extend_from_slice(&stream.to_be_bytes());
        self.0.extend_from_slice(payload);
    }

    /// GET in one frame, by HPACK's static table and literals.
    fn request(&mut self, stream: u32, path: &str) {
        let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).expect("it is short")];
        block.extend_from_slice(path.as_bytes());
        block.extend_from_slice(&[0x01, u8::try_from(MANAGER_NAME.len()).expect("it is short")]);
        block.extend_from_slice(MANAGER_NAME.as_bytes());
        self.frame(1, 5, stream, &block);
    }
}

struct Case {
    pod: Pod,
    agent: Agent,
    manager: Manager,
    scene: Scene,
}

impl Case {
    #[track_caller]
    fn new(mode: Mode) -> Self {
        let scene = Scene::for_test();
        let manager =
            Manager::start(&scene, Setup::new("manager", 80).tls(mode, &scene.server, &scene.clients));
        // By name alone: an address takes every name.
        let route = Route::strict("manager", &["manager.hnp.test:80"], UPSTREAM).with(IDENTITY, TRUST);
        let agent = Agent::start(&scene, &scene.config().route(route));
        Self { pod: scene.pod(), agent, manager, scene }
    }

    /// One whose TLS ends at the agent, and asks for no certificate.
    #[track_caller]
    fn ending_tls() -> Self {
        let scene = Scene::for_test();
        let manager = Setup::new("manager", 8443).tls(Mode::Strict, &scene.server, &scene.clients);
        let manager = Manager::start(&scene, manager);
        let serving = scene.servers.server(&[MANAGER_NAME]).write(scene.dir(), "serving");
        let route = Route::strict("tls", &["manager.hnp.test:443"], "https://manager.hnp.test:8443")
            .with(IDENTITY, TRUST)
            .set("mode", "end-to-end")
            .set("end_to_end", "{serving: [serving], client_auth: none}");
        let agent = Agent::start(&scene, &scene.config().identity("serving", &serving).route(route));
        Self { pod: scene.pod(), agent, manager, scene }
    }

    fn tls_url(&self, query: &str) -> String {
        format!("https://{MANAGER_NAME}/hello{query}")
    }

    fn curl_tls(&self, arguments: &[&str]) -> Finished {
        let command = self.pod.command("curl").args(["-sS", "--cacert"]).arg(&self.scene.roots);
        command.args(arguments).run()
    }

    /// The connections of the requests so far.
    fn lines(&self) -> Vec<serde_json::Value> {
        let lines = self.agent.access_lines().into_iter();
        lines.filter(|line| line["path"] == "/hello").map(|line| line["flow"].clone()).collect()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{MANAGER_NAME}{path}")
    }

    fn curl(&self, place: &Place, arguments: &[&str]) -> Finished {
        place.command("curl").args(["-sS", "--http2-prior-knowledge"]).args(arguments).run()
    }

    fn raw(&self, bytes: Vec<u8>) -> RawAnswer {
        client::raw(&self.pod, (MANAGER4, 80), vec![RawCase::new(bytes)]).remove(0)
    }
}
