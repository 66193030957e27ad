//! The manager is behind a corporate proxy: squid, over HTTP and over TLS, with and without credentials,
//! restarted under requests; and proxies that misbehave, each way with its own reason. The upstream's TLS is
//! end to end in all of it, and the password is nowhere.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, RawAnswer, RawCase};
use hnp_tests::corporate::{
    BadProxy, Corporate, INSIDE_NAME, INSIDE4, PROXY_NAME, PROXY4, Squid, SquidSetup,
};
use hnp_tests::manager::Manager;
use hnp_tests::pki::Ca;
use hnp_tests::poll::{eventually, patience};
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, NODE4, Pod};

/// Every byte of it would have to be encoded in a URL.
const PASSWORD: &str = "p@ss:w/rd%20?#geheim";
const PASSWORD_ENCODED: &str = "p%40ss%3Aw%2Frd%2520%3F%23geheim";
const USER: &str = "node";
/// What the manager sees as its peer when the proxy dials it.
const PROXY_INSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 1));

#[test]
fn what_the_node_cannot_reach_is_reached_through_the_proxy_end_to_end() {
    let case = Case::new();
    let squid = case.squid(3128, &SquidSetup::default());
    // The control: the node alone has neither the name nor a way to the address.
    let mut agent = case.agent(&case.config("", INSIDE, None));
    let reason = case.reason();
    assert!(["upstream_name_not_found", "upstream_dns_failed"].contains(&&*reason), "{reason}");
    agent = case.again(agent, &case.config("", &format!("https://{INSIDE4}:80"), None));
    assert_eq!(case.reason(), "upstream_unreachable");
    assert_eq!(case.manager.request_count(), 0);

    let proxies = format!("corp: {{url: \"http://{PROXY_NAME}:3128\"}}");
    agent = case.again(agent, &case.config(&proxies, INSIDE, Some("corp")));
    for token in ["first", "second"] {
        case.served(token);
        let request = case.manager.request(token);
        assert_eq!(
            request.client_serial(),
            case.scene.client_serial,
            "the strict manager sees our certificate"
        );
        assert_eq!(request.tls.as_ref().and_then(|tls| tls.server_name.as_deref()), Some(INSIDE_NAME));
        assert_eq!(request.peer.ip(), PROXY_INSIDE);
        assert!(request.head.header("proxy-authorization").is_none());
    }
    let line = agent.access_line("through the proxy", |line| line["upstream_proxy"] == "corp");
    assert_eq!((&line["reason"], &line["upstream_addr"]), (&"ok".into(), &format!("{PROXY4}:3128").into()));
    agent.access_line("the second one uses the tunnel of the first", |line| {
        line["reused"] == true && line["upstream_proxy"] == "corp"
    });
    agent.stop(Duration::from_secs(20));
    eventually(Duration::from_secs(10), "squid wrote of the tunnel", || !squid.tunnels().is_empty());
    let tunnels = squid.tunnels();
    assert!(
        tunnels.len() == 1 && tunnels[0].contains(&format!("{INSIDE_NAME}:80")),
        "the name goes in: {tunnels:?}"
    );
}

#[test]
fn a_proxy_over_tls_is_verified_by_a_trust_of_its_own() {
    let case = Case::new();
    let (corporate, others) = (Ca::new("corporate CA"), Ca::new("somebody else"));
    let leaf = corporate.server(&[PROXY_NAME]);
    let squid = case.squid(3129, &SquidSetup { tls: Some(&leaf), ..SquidSetup::default() });
    let config = |trust: &PathBuf| {
        let proxies = format!("corp: {{url: \"https://{PROXY_NAME}:3129\", trust: corporate}}");
        case.config(&proxies, INSIDE, Some("corp")).trust("corporate", trust)
    };
    let wrong = others.write(case.scene.dir(), "others");
    let agent = case.agent(&config(&wrong));
    assert_eq!(case.reason(), "proxy_tls_failed");
    let line = agent.access_line_with("proxy_tls_failed");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("UnknownIssuer")), "{line}");
    assert_eq!(case.manager.request_count(), 0);
    assert!(squid.tunnels().is_empty(), "nothing was asked of it: {:?}", squid.tunnels());

    let right = corporate.write(case.scene.dir(), "corporate");
    let agent = case.again(agent, &config(&right));
    for token in ["first", "second"] {
        case.served(token);
        let request = case.manager.request(token);
        assert_eq!((request.client_serial(), request.peer.ip()), (&*case.scene.client_serial, PROXY_INSIDE));
    }
    agent.access_line("TLS in TLS is pooled, too", |line| line["reused"] == true);
    // A proxy that is spoken to without TLS and wants it closes, or says what nobody understands.
    let plain = format!("corp: {{url: \"http://{PROXY_NAME}:3129\"}}");
    let _agent = case.again(agent, &case.config(&plain, INSIDE, Some("corp")));
    let reason = case.reason();
    assert!(["proxy_closed", "proxy_bad_response", "proxy_refused"].contains(&&*reason), "{reason}");
}

#[test]
fn credentials_are_checked_by_the_proxy_and_written_nowhere() {
    let case = Case::new();
    let _squid =
        case.squid(3128, &SquidSetup { credentials: Some((USER, PASSWORD)), ..SquidSetup::default() });
    let file = case.scene.path("proxy-user");
    let in_file = format!("corp: {{url: \"http://{PROXY_NAME}:3128\", credentials: {}}}", file.display());
    let in_url = format!("corp: {{url: \"http://{USER}:{PASSWORD_ENCODED}@{PROXY_NAME}:3128\"}}");
    let mut said = String::new();

    let without = format!("corp: {{url: \"http://{PROXY_NAME}:3128\"}}");
    let agent = case.agent(&case.config(&without, INSIDE, Some("corp")));
    assert_eq!(case.reason(), "proxy_authentication_required");
    // Beside the file: what was wrong in it is right without a reload.
    fs::write(&file, format!("{USER}:not-{PASSWORD}\n")).expect("the world's directory is ours");
    let config = case.config(&in_file, INSIDE, Some("corp"));
    let agent = case.again_and(agent, &config, &mut said);
    let answer = case.ask("wrong");
    assert_eq!(reason_of(&answer), "proxy_authentication_required");
    said.push_str(&answer.text());
    assert!(answer.text().contains("check the credentials; it takes Basic"), "{}", answer.text());
    assert_eq!(case.manager.request_count(), 0);
    fs::remove_file(&file).expect("it is there");
    let answer = case.ask("missing");
    assert_eq!((reason_of(&answer).as_str(), answer.status()), ("proxy_credentials_unavailable", Some(503)));
    fs::write(&file, format!("{USER}:{PASSWORD}\n")).expect("the world's directory is ours");
    case.served("file");
    said.push_str(&check(&case, &config));

    let config = case.config(&in_url, INSIDE, Some("corp"));
    let agent = case.again_and(agent, &config, &mut said);
    case.served("url");
    said.push_str(&check(&case, &config));
    // A mistake beside the password.
    let broken = in_url.replace(":3128", "");
    said.push_str(&check(&case, &case.config(&broken, INSIDE, Some("corp"))));
    assert!(said.contains("has no port"), "{said}");
    agent.replace_config(&case.config(&broken, INSIDE, Some("corp")).to_yaml());
    agent.log_line("has no port");
    said.push_str(&agent.get("/metrics").expect("the agent answers").1);
    case.said_until_stopped(agent, &mut said);

    assert!(said.contains("proxy_authentication_required") && said.contains("\"upstream_proxy\":\"corp\""));
    let encoded = base64(format!("{USER}:{PASSWORD}").as_bytes());
    for secret in [PASSWORD, PASSWORD_ENCODED, "geheim", &*encoded, "Proxy-Authorization"] {
        assert!(!said.contains(secret), "{secret} is in\n{said}");
    }
    for token in ["file", "url"] {
        let head = String::from_utf8_lossy(&case.manager.request(token).head.raw).into_owned();
        assert!(!head.to_ascii_lowercase().contains("proxy-authorization"), "{head}");
    }
}

#[test]
fn no_proxy_goes_direct_by_name_suffix_and_range() {
    let case = Case::new();
    let squid = case.squid(3128, &SquidSetup::default());
    let by_name = format!("https://{MANAGER_NAME}:80");
    let by_address = format!("https://{MANAGER4}:80");
    let mut agent: Option<Agent> = None;
    let mut start = |upstream: &str, no_proxy: &str| {
        let proxies = format!("corp: {{url: \"http://{PROXY_NAME}:3128\", no_proxy: [{no_proxy}]}}");
        let config = case.config(&proxies, upstream, Some("corp"));
        agent = Some(match agent.take() {
            Some(agent) => case.again(agent, &config),
            None => case.agent(&config),
        });
    };
    for (token, upstream, no_proxy) in [
        ("name", &by_name, MANAGER_NAME),
        ("parent", &by_name, "hnp.test"),
        ("dotted", &by_name, ".hnp.test"),
        ("star", &by_name, "'*.hnp.test'"),
        ("range", &by_address, "198.18.0.0/15"),
        ("address", &by_address, "other.test, 198.18.0.9"),
        ("all", &by_name, "'*'"),
    ] {
        start(upstream, no_proxy);
        case.served(token);
        assert_eq!(case.manager.request(token).peer.ip(), IpAddr::V4(NODE4), "{token}: directly");
    }
    // The controls: names and ranges that are others'.
    for (token, upstream, no_proxy) in [
        ("other-name", &by_name, "'*.manager.hnp.test', nager.hnp.test"),
        ("other-range", &by_address, "198.19.0.0/16"),
    ] {
        start(upstream, no_proxy);
        case.served(token);
        assert_eq!(case.manager.request(token).peer.ip(), PROXY_INSIDE, "{token}: through the proxy");
    }
    agent.take().expect("it was started").stop(Duration::from_secs(20));
    eventually(Duration::from_secs(10), "squid wrote of both", || squid.tunnels().len() >= 2);
    assert_eq!(squid.tunnels().len(), 2, "of the others it saw nothing: {:?}", squid.tunnels());
}

#[test]
fn a_proxy_that_restarts_loses_no_request() {
    let case = Case::new();
    let within = |seconds: u64| {
        let all = patience(Duration::from_secs(seconds)).as_secs();
        let proxies = format!("corp: {{url: \"http://{PROXY_NAME}:3128\", timeouts: {{connect: {all}s}}}}");
        case.config(&proxies, INSIDE, Some("corp"))
    };
    let mut squid = case.squid(3128, &SquidSetup::default());
    let agent = case.agent(&within(60));
    case.served("before");
    let failed = || agent.metrics().sum("hnp_upstream_dials", &[("reason", "proxy_unreachable")]);
    for round in 0..3 {
        squid.kill();
        let (before, case) = (failed(), &case);
        squid = std::thread::scope(|scope| {
            let post = |request| case.post(&format!("r{round}-{request}"));
            let asked: Vec<_> = (0..4).map(|request| scope.spawn(move || post(request))).collect();
            // The control: it was on the way, and was not there.
            eventually(Duration::from_secs(20), "it is dialled again and again", || failed() >= before + 4.0);
            let squid = case.squid(3128, &SquidSetup::default());
            for answer in asked {
                let answer = answer.join().expect("it asks and no more");
                assert_eq!(answer.status(), Some(200), "{}", answer.text());
            }
            squid
        });
    }
    assert_eq!(case.manager.request_count(), 1 + 3 * 4, "none was lost, none came twice");
    agent.access_line("how long it was waited for", |line| {
        line["reason"] == "ok" && line["outage_ms"].as_f64() > Some(50.0)
    });
    // The control: nobody waits for ever.
    let agent = case.again(agent, &within(1));
    squid.kill();
    assert_eq!(case.reason(), "proxy_unreachable");
    let line = agent.access_line_with("proxy_unreachable");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains(" attempts in ")), "{line}");
}

#[test]
fn each_way_in_which_a_proxy_fails_has_its_reason() {
    let case = Case::new();
    let ok = b"HTTP/1.1 200 Connection established\r\n\r\n";
    let early = [ok.as_slice(), b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"].concat();
    let huge = [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'x'; 64 * 1024]].concat();
    let mut agent: Option<Agent> = None;
    for (index, (answer, close, reason, status, repeated)) in [
        (&b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno"[..], false, "proxy_refused", 502, false),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", true, "proxy_refused", 502, true),
        (
            b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\n\r\n",
            false,
            "proxy_authentication_required",
            502,
            false,
        ),
        (&early, false, "proxy_bad_response", 502, false),
        (&huge, false, "proxy_bad_response", 502, false),
        (b"SSH-2.0-OpenSSH\r\n", false, "proxy_bad_response", 502, false),
        (b"HTTP/1.1 200 OK\r\n", true, "proxy_bad_response", 502, false),
        (b"HTTP/1.1 200 OK\r\n", false, "proxy_timeout", 504, false),
        (b"", false, "proxy_timeout", 504, false),
        (b"", true, "proxy_closed", 502, true),
        // Opens what is no tunnel: from there on it is the upstream that fails.
        (ok, true, "upstream_tls_failed", 502, true),
        (ok, false, "upstream_tls_timeout", 504, false),
    ]
    .into_iter()
    .enumerate()
    {
        let port = 4000 + u16::try_from(index).expect("a few");
        let proxy = BadProxy::start(&case.corporate, port, answer, close);
        let config = case.config(&short("http", port), INSIDE, Some("corp"));
        let current = match agent.take() {
            Some(agent) => case.again(agent, &config),
            None => case.agent(&config),
        };
        let answered = case.ask("x");
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
        assert_eq!((reason_of(&answered).as_str(), answered.status()), (reason, Some(status)), "{shown:?}");
        let line = current.access_line(reason, |line| {
            line["reason"] == reason && line["upstream_addr"] == format!("{PROXY4}:{port}")
        });
        assert_eq!(line["upstream_proxy"], "corp", "{line}");
        // What may be a restart is tried again while there is time, and nothing else is.
        assert_eq!(proxy.asked() > 1, repeated, "asked {} times: {shown:?}", proxy.asked());
        agent = Some(current);
    }
    // A proxy that accepts and never speaks TLS; one that is not there.
    let _mute = BadProxy::start(&case.corporate, 4100, b"", false);
    let agent =
        case.again(agent.take().expect("it runs"), &case.config(&short("https", 4100), INSIDE, Some("corp")));
    assert_eq!(case.reason(), "proxy_timeout");
    let _agent = case.again(agent, &case.config(&short("http", 4101), INSIDE, Some("corp")));
    assert_eq!(case.reason(), "proxy_unreachable");
    assert_eq!(case.manager.request_count(), 0);
}

#[test]
fn opaque_bytes_go_through_a_tunnel_too() {
    use hnp_tests::manager::{Mode, Service, Setup};
    let case = Case::new();
    let _squid = case.squid(3128, &SquidSetup::default());
    let leaf = case.scene.servers.server(&[INSIDE_NAME]);
    let echo = Setup::new("echo", 81).tls(Mode::Strict, &leaf, &case.scene.clients).service(Service::Echo);
    let echo = Manager::start(&case.scene, echo);
    let upstream = format!("https://{INSIDE_NAME}:81");
    let route = |proxied: bool| {
        let route = Route::opaque("manager", DESTINATIONS, &upstream).with(IDENTITY, TRUST);
        if proxied { route.set("upstream_proxy", "corp") } else { route }
    };
    let mut config = case.scene.config();
    config.upstream_proxies = format!("corp: {{url: \"http://{PROXY_NAME}:3128\"}}");
    let agent = case.agent(&config.clone().route(route(true)));
    let hello = RawCase { quiet_ms: 20_000, ..RawCase::new("hello\n".to_owned()) };
    let answer =
        client::raw(&case.pod, (MANAGER4, 80), vec![RawCase { half_close: true, ..hello.clone() }]).remove(0);
    assert_eq!(answer.text(), "220 ready\r\nhello\nbye 6\r\n", "half-closed, which squid does not carry");
    let tls = echo.connections().remove(0).tls.expect("mutual TLS");
    assert_eq!(tls.client.expect("our certificate").serial, case.scene.client_serial);
    // The control.
    let _agent = case.again(agent, &config.route(route(false)));
    let answer = client::raw(&case.pod, (MANAGER4, 80), vec![hello]).remove(0);
    assert!(!answer.text().contains("hello"), "{}", answer.text());
}

#[test]
fn a_pods_own_tls_goes_through_a_proxy_that_is_spoken_to_over_tls() {
    let case = Case::new();
    let proxy_ca = Ca::new("proxies");
    let setup = SquidSetup { tls: Some(&proxy_ca.server(&[PROXY_NAME])), ..SquidSetup::default() };
    let _squid = case.squid(3129, &setup);
    let pod_client = case.scene.clients.client().write(case.scene.dir(), "pod");
    let curl = || {
        let (resolve, url) =
            (format!("{INSIDE_NAME}:80:{MANAGER4}"), format!("https://{INSIDE_NAME}:80/hello"));
        let command = case.pod.command("curl").args(["-sS", "--resolve", &resolve, &url, "--cacert"]);
        let command = command.arg(&case.scene.roots).arg("--cert").arg(&pod_client.certificate);
        command.arg("--key").arg(&pod_client.key).run()
    };
    let config = |proxied: bool| {
        let route = Route::tunnel("manager", DESTINATIONS, INSIDE);
        let route = if proxied { route.set("upstream_proxy", "corp") } else { route };
        let roots = proxy_ca.write(case.scene.dir(), "proxies");
        let mut config = case.scene.config().route(route).trust("proxies", &roots);
        config.upstream_proxies = format!("corp: {{url: \"https://{PROXY_NAME}:3129\", trust: proxies}}");
        config
    };
    let agent = case.agent(&config(true));
    assert!(curl().ok().contains("\"manager\""));
    let seen = case.manager.last_request().expect("one came");
    assert_eq!(seen.client_serial(), hnp_tests::pki::serial_of(&pod_client.certificate), "the pod's own");
    assert_eq!(seen.peer.ip(), PROXY_INSIDE);
    let line = agent.access_line("the tunnel", |line| line["mode"] == "tunnel");
    // Whatever its end is called: curl leaves with a reset where the server still has something to say.
    assert_eq!(line["upstream_proxy"], "corp", "{line}");
    // The control.
    let _agent = case.again(agent, &config(false));
    let refused = curl();
    assert!(!refused.status.success(), "{refused}");
}

#[test]
fn a_connection_made_ahead_of_use_goes_through_the_proxy() {
    let case = Case::new();
    let _squid = case.squid(3128, &SquidSetup::default());
    let proxies = format!("corp: {{url: \"http://{PROXY_NAME}:3128\"}}");
    let config = |warm: usize| {
        let route = Route::strict("manager", DESTINATIONS, INSIDE).with(IDENTITY, TRUST);
        let route = route.set("upstream_proxy", "corp").set("pool_warm", &warm.to_string());
        let mut config = case.scene.config().route(route);
        config.upstream_proxies.clone_from(&proxies);
        config.workers = 1;
        config
    };
    // The control.
    let agent = case.agent(&config(0));
    case.served("cold");
    let first = |agent: &Agent| agent.access_line("the first", |line| line["upstream_proxy"] == "corp");
    assert_eq!(first(&agent)["reused"], false);
    let agent = case.again(agent, &config(1));
    eventually(Duration::from_secs(20), "it is there", || agent.metrics().sum("hnp_pool_idle", &[]) == 1.0);
    case.served("warm");
    assert_eq!(first(&agent)["reused"], true);
    assert_eq!(case.manager.request("warm").peer.ip(), PROXY_INSIDE);
}

/// The upstream that only the proxy knows.
const INSIDE: &str = "https://inside.hnp.test:80";

/// Proxies with deadlines of a second, where the machine is as quick as others.
fn short(scheme: &str, port: u16) -> String {
    let all = patience(Duration::from_secs(1)).as_secs();
    format!(
        "corp: {{url: \"{scheme}://{PROXY_NAME}:{port}\", timeouts: {{connect: {all}s, tls: {all}s, answer: {all}s}}}}"
    )
}

struct Case {
    pod: Pod,
    manager: Manager,
    corporate: Corporate,
    scene: Scene,
}

impl Case {
    #[track_caller]
    fn new() -> Self {
        let scene = Scene::for_test();
        let corporate = Corporate::lay(&scene);
        let leaf = scene.servers.server(&[MANAGER_NAME, INSIDE_NAME]);
        let manager = Manager::strict(&scene, "manager", 80, &leaf, &scene.clients);
        Self { pod: scene.pod(), manager, corporate, scene }
    }

    #[track_caller]
    fn squid(&self, port: u16, setup: &SquidSetup<'_>) -> Squid {
        Squid::start(&self.scene, &self.corporate, port, setup)
    }

    fn config(&self, proxies: &str, upstream: &str, proxy: Option<&str>) -> Config {
        let seconds = patience(Duration::from_secs(1)).as_secs();
        let mut route = Route::strict("manager", DESTINATIONS, upstream)
            .with(IDENTITY, TRUST)
            .set("timeouts", &format!("{{connect: {}s, tls: {seconds}s}}", 5 * seconds));
        if upstream.contains("198.18.") {
            route = route.set("server_name", MANAGER_NAME);
        }
        if let Some(proxy) = proxy {
            route = route.set("upstream_proxy", proxy);
        }
        let mut config = self.scene.config().route(route);
        config.upstream_proxies = proxies.to_owned();
        // One pool, so that reuse is no matter of luck.
        config.workers = 1;
        config
    }

    #[track_caller]
    fn agent(&self, config: &Config) -> Agent {
        Agent::start(&self.scene, config)
    }

    /// Another agent in its place.
    #[track_caller]
    fn again(&self, agent: Agent, config: &Config) -> Agent {
        agent.stop(Duration::from_secs(20));
        self.agent(config)
    }

    /// The same, and what the former one has written.
    #[track_caller]
    fn again_and(&self, agent: Agent, config: &Config, said: &mut String) -> Agent {
        self.said_until_stopped(agent, said);
        self.agent(config)
    }

    #[track_caller]
    fn said_until_stopped(&self, agent: Agent, said: &mut String) {
        let finished = agent.stop(Duration::from_secs(20));
        said.push_str(&finished.text());
        said.push_str(&finished.stderr);
    }

    fn post(&self, token: &str) -> RawAnswer {
        let post = format!(
            "POST /hello?token={token} HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\ncontent-length: 4\r\n\r\nonce"
        );
        let case = RawCase { quiet_ms: 20_000, ..RawCase::new(post) };
        client::raw(&self.pod, (MANAGER4, 80), vec![case]).remove(0)
    }

    fn ask(&self, token: &str) -> RawAnswer {
        let get =
            format!("GET /hello?token={token} HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
        let case = RawCase { quiet_ms: 20_000, ..RawCase::new(get) };
        client::raw(&self.pod, (MANAGER4, 80), vec![case]).remove(0)
    }

    #[track_caller]
    fn served(&self, token: &str) {
        let answer = self.ask(token);
        assert_eq!(answer.status(), Some(200), "{token}: {}", answer.text());
    }

    #[track_caller]
    fn reason(&self) -> String {
        reason_of(&self.ask("refused"))
    }
}

#[track_caller]
fn reason_of(answer: &RawAnswer) -> String {
    let text = answer.text();
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let body: serde_json::Value = serde_json::from_str(body)
        .unwrap_or_else(|error| panic!("{error}: an answer of our own is JSON: {text}"));
    body["reason"].as_str().unwrap_or_default().to_owned()
}

/// All that `check` writes, in both forms.
#[track_caller]
fn check(case: &Case, config: &Config) -> String {
    let finished = Agent::check(&case.scene.agent_place(), config);
    let json = {
        let path = case.scene.path("checked.yaml");
        fs::write(&path, config.to_yaml()).expect("the world's directory is ours");
        Agent::tool(&case.scene, &["check", "--json", "--config", &path.to_string_lossy()])
    };
    [finished.text(), finished.stderr, json.text(), json.stderr].concat()
}

/// As the header has it (RFC 4648 section 4), apart from the agent's own code.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = usize::try_from(bits >> (18 - 6 * digit) & 63).expect("six bits");
            text.push(if digit <= chunk.len() { char::from(DIGITS[index]) } else { '=' });
        }
    }
    text
}
