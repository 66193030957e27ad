//! The gateway as an open proxy: whoever is served and wants to go where no route leads.

use hnp_tests::client::{self, RawCase};
use hnp_tests::manager::{Manager, Setup};
use hnp_tests::topology::{MANAGER4, OTHER4};

use super::{Gateway, node_of, reason, strict, uncaptured};

/// Hosts that stand for the node, for hnp itself and for what a node alone reaches; with ports.
fn forbidden(node: &str) -> Vec<String> {
    let ports = [80, 443, 7777, 15090, 15001];
    let hosts = [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "0.0.0.0",
        "[::]",
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "169.254.77.1",
        "[fd00:77::1]",
        "[fe80::1]",
        "2130706433",
        "0x7f000001",
        "127.1",
        node,
    ];
    let all = hosts.iter().flat_map(|host| ports.map(|port| format!("{host}:{port}")));
    let more = [
        "manager.hnp.test:443",
        "manager.hnp.test:81",
        "198.18.0.9:81",
        "198.18.0.10:80",
        "elsewhere.hnp.test:80",
    ];
    all.chain(more.map(str::to_owned)).collect()
}

#[test]
fn nobody_is_carried_to_what_no_route_lists() {
    let case = Gateway::new();
    // Somebody who would answer: on another port of the manager, and on the node itself.
    let other = Manager::start(&case.scene, Setup::new("other", 81));
    let admin = case.agent.get("/healthz").expect("the admin port answers on the node");
    assert_eq!(admin.0, 200, "the control: there is something to be reached");
    let straight = client::raw(
        &case.pod,
        (MANAGER4, 81),
        vec![RawCase::new("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")],
    );
    assert_eq!(straight[0].status(), Some(200), "the control: the pod itself reaches it");
    let before = other.requests().len();

    let wanted = forbidden(&node_of(&case.pod));
    let connects = wanted.iter().map(|wanted| format!("CONNECT {wanted} HTTP/1.1\r\nHost: {wanted}\r\n\r\n"));
    let absolute = wanted.iter().map(|wanted| {
        format!(
            "GET http://{wanted}/latest/meta-data/ HTTP/1.1\r\nHost: {wanted}\r\nConnection: close\r\n\r\n"
        )
    });
    let requests: Vec<String> = connects.chain(absolute).collect();
    let requests: Vec<&str> = requests.iter().map(String::as_str).collect();
    for (request, answer) in requests.iter().zip(case.raw(&requests)) {
        assert_eq!(
            (reason(&answer).as_str(), answer.status()),
            ("destination_refused", Some(403)),
            "{request}"
        );
    }
    assert_eq!((other.requests().len(), case.manager.request_count()), (before, 0), "nobody was dialled");
    assert_eq!(case.manager.connections().len(), 0);
    let line = case.agent.access_line("the metadata service", |line| line["asked"] == "169.254.169.254:80");
    assert_eq!((&line["reason"], &line["status"]), (&"destination_refused".into(), &403.into()), "{line}");
    // The control: what is listed, in the same two forms, in IPv6's clothes too.
    let listed = [
        "CONNECT manager.hnp.test:80 HTTP/1.1\r\n\r\n",
        "CONNECT [::ffff:198.18.0.9]:80 HTTP/1.1\r\n\r\n",
        "GET http://[::ffff:198.18.0.9]/ HTTP/1.1\r\nHost: [::ffff:198.18.0.9]\r\nConnection: close\r\n\r\n",
    ];
    for (request, answer) in listed.iter().zip(case.raw(&listed)) {
        assert_eq!(answer.status(), Some(200), "{request}: {}", answer.text());
    }
}

#[test]
fn every_request_on_a_connection_is_judged_anew() {
    let case = Gateway::new();
    let get =
        |target: &str, host: &str, end: &str| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{end}\r\n");
    let first = get("http://manager.hnp.test/first", "manager.hnp.test", "");
    let second = [
        get("http://127.0.0.1:15090/metrics", "127.0.0.1:15090", ""),
        get("http://elsewhere.hnp.test/", "elsewhere.hnp.test", ""),
        "CONNECT 127.0.0.1:15090 HTTP/1.1\r\n\r\n".to_owned(),
    ];
    for second in &second {
        let answer = case.raw(&[&format!("{first}{second}")]).remove(0);
        assert_eq!(
            (answer.status(), reason(&answer).as_str()),
            (Some(200), "destination_refused"),
            "{second}"
        );
    }
    // The control: two that are listed, and a third in another form.
    let third = "CONNECT manager.hnp.test:80 HTTP/1.1\r\n\r\n";
    let both = get("http://198.18.0.9/second", "198.18.0.9", "");
    let last = get("/third", "manager.hnp.test", "Connection: close\r\n");
    let answer = case.raw(&[&format!("{first}{both}{third}{last}")]).remove(0);
    assert_eq!(answer.text().matches("HTTP/1.1 200").count(), 4, "{}", answer.text());
    let targets: Vec<String> = case.manager.requests().iter().map(|seen| seen.target.clone()).collect();
    assert_eq!(targets, ["/first", "/first", "/first", "/first", "/second", "/third"]);
}

#[test]
fn what_cannot_be_understood_or_served_here_says_so() {
    let case = Gateway::new();
    let tls = [&b"\x16\x03\x01\x00\x05hello"[..]].concat();
    let node: std::net::IpAddr = node_of(&case.pod).parse().expect("an address");
    let alert = client::raw(&case.pod, (node, 7777), vec![RawCase::new(tls)]).remove(0);
    assert_eq!(alert.bytes.first(), Some(&21), "an alert: {alert:?}");
    case.agent.access_line_with("gateway_protocol");
    for (request, wanted, status) in [
        ("GET https://manager.hnp.test/ HTTP/1.1\r\nHost: manager.hnp.test\r\n\r\n", "connect_required", 400),
        ("GET http://manager.hnp.test/ HTTP/1.1\r\nHost: other\r\n\r\n", "bad_request", 400),
        ("GET ftp://manager.hnp.test/ HTTP/1.1\r\nHost: manager.hnp.test\r\n\r\n", "bad_request", 400),
        ("GET http://user@manager.hnp.test/ HTTP/1.1\r\nHost: manager.hnp.test\r\n\r\n", "bad_request", 400),
        ("CONNECT manager.hnp.test HTTP/1.1\r\n\r\n", "bad_request", 400),
        ("CONNECT http://manager.hnp.test:80 HTTP/1.1\r\n\r\n", "bad_request", 400),
        ("CONNECT manager.hnp.test:80 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "ambiguous_framing", 400),
        (
            "CONNECT manager.hnp.test:80 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "ambiguous_framing",
            400,
        ),
        ("CONNECT manager.hnp.test:80 HTTP/1.1\nHost: x\n\n", "bad_request", 400),
        (
            "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "ambiguous_framing",
            400,
        ),
    ] {
        let answer = case.raw(&[request]).remove(0);
        assert_eq!((reason(&answer).as_str(), answer.status()), (wanted, Some(status)), "{request}");
    }
    assert_eq!(case.manager.request_count(), 0);
    // TLS inside a CONNECT to a strict reverse proxy is refused as on a captured connection.
    let answer = case.raw(&["CONNECT manager.hnp.test:80 HTTP/1.1\r\n\r\n\x16\x03\x01\0\x05hello"]).remove(0);
    let after = answer.text().find("\r\n\r\n").map(|at| answer.bytes[at + 4]);
    assert_eq!(after, Some(21), "200, then an alert: {}", answer.text());
}

#[test]
fn whoever_names_no_destination_has_a_route_or_is_told_what_to_set() {
    let two = |scene: &hnp_tests::scene::Scene| {
        let routes = scene.config().route(strict("one", &["one.hnp.test:80"]));
        routes.route(strict("two", &["two.hnp.test:80"]).set("server_name", "manager.hnp.test"))
    };
    let case = Gateway::with(two);
    let ask = |case: &Gateway, host: &str| {
        let request = format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        case.raw(&[&request]).remove(0)
    };
    let refused = ask(&case, "node:7777");
    assert_eq!((reason(&refused).as_str(), refused.status()), ("no_default_route", Some(421)));
    assert!(refused.text().contains("gateway.route"), "{}", refused.text());
    assert_eq!(ask(&case, "two.hnp.test").status(), Some(200));
    case.agent.access_line("by its Host", |line| line["route"] == "two");
    assert_eq!(case.manager.request_count(), 1);
    // The control: with a default, and taken without a restart.
    let mut config = uncaptured(two(&case.scene));
    config.gateway = "sources: [10.244.0.0/16], route: one".to_owned();
    case.agent.reload(&config);
    assert_eq!(ask(&case, "node:7777").status(), Some(200));
    case.agent.access_line("the default", |line| line["route"] == "one");
}

#[test]
fn a_name_that_is_let_through_is_never_followed_to_the_node_itself() {
    let case = Gateway::with(|scene| {
        scene.add_host("docs.hnp.test", &[OTHER4.into()]);
        let route = strict("manager", &["manager.hnp.test:80", "manager.hnp.test:8080"]);
        scene.config().route(route.set("passthrough", "[docs.hnp.test, '*.evil.test']"))
    });
    let docs = Manager::start(&case.scene, Setup::new("docs", 8080).on(&[OTHER4.into()]));
    let get = |host: &str| {
        format!(
            "GET http://{host}:8080/x HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic geheim\r\nConnection: close\r\n\r\n"
        )
    };
    let connect = |host: &str| {
        format!(
            "CONNECT {host}:8080 HTTP/1.1\r\n\r\nGET /inside HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )
    };
    let answers = case.raw(&[&get("docs.hnp.test"), &connect("docs.hnp.test")]);
    for answer in &answers {
        assert!(answer.text().contains("\"manager\":\"docs\""), "{}", answer.text());
    }
    let requests = docs.requests();
    assert_eq!(
        requests.iter().map(|seen| &*seen.target).collect::<Vec<_>>(),
        ["/x", "/inside"],
        "origin-form, as a server wants it"
    );
    assert!(requests.iter().all(|seen| seen.tls.is_none()), "nothing was lent");
    assert!(!String::from_utf8_lossy(&requests[0].head.raw).contains("geheim"));
    case.agent
        .access_line("let through", |line| line["mode"] == "passthrough" && line["gateway"] == "connect");

    for (number, addr) in [
        "127.0.0.1",
        "169.254.169.254",
        "169.254.77.1",
        "::1",
        "::ffff:127.0.0.1",
        "fe80::1",
        "fd00:ec2::254",
    ]
    .map(|addr| addr.parse().expect("an address"))
    .into_iter()
    .enumerate()
    {
        let name = format!("n{number}.evil.test");
        case.scene.add_host(&name, &[addr]);
        // The file is looked at once a second.
        hnp_tests::poll::eventually(std::time::Duration::from_secs(20), "the name is known", || {
            let answers = case.raw(&[&get(&name), &connect(&name)]);
            assert!(answers.iter().all(|answer| answer.status() != Some(200)), "{name} ({addr})");
            answers.iter().all(|answer| reason(answer) == "address_refused")
        });
    }
    let other_port = case.raw(&["CONNECT docs.hnp.test:7777 HTTP/1.1\r\n\r\n"]).remove(0);
    assert_eq!(reason(&other_port), "destination_refused", "no destination has that port");
}
