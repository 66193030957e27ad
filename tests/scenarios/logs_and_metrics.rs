//! One access line per request, one set of counters from the same record, and never a secret in
//! either.

use std::collections::BTreeMap;

use hnp_tests::client::{self, RawCase};
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, MANAGER6, OTHER4};

#[test]
fn an_access_line_says_who_where_how_and_why() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    let url = format!("http://{MANAGER_NAME}/a/path?x-access-key=SECRET");
    // One connection, so one worker, so one pool.
    pod.command("curl").args(["-s4", &url, &url]).run().ok();
    let is_ours = |line: &serde_json::Value| line["path"] == "/a/path" && line["reused"] == true;
    let line = agent.access_line("the second request's, on a pooled connection", is_ours);
    let text = |key: &str| line[key].as_str().unwrap_or_default();
    assert_eq!((text("route"), text("mode"), text("reason")), ("manager", "reverse-proxy", "ok"), "{line}");
    assert_eq!((text("pod_uid"), text("container")), (&*pod.uid, &*pod.container), "{line}");
    assert!(text("cgroup").ends_with(&pod.container), "{line}");
    assert!(text("client").starts_with(&format!("{}:", pod.addr4)), "{line}");
    assert_eq!(text("destination"), format!("{MANAGER4}:80"), "{line}");
    assert_eq!(text("upstream"), "manager.hnp.test:80", "{line}");
    let addrs = [format!("{MANAGER4}:80"), format!("[{MANAGER6}]:80")];
    assert!(addrs.iter().any(|addr| addr == text("upstream_addr")), "{line}");
    assert_eq!((text("method"), text("tls"), text("kx")), ("GET", "TLSv1.3", "X25519MLKEM768"), "{line}");
    assert_eq!(
        (line["status"].as_u64(), line["identity_generation"].as_u64()),
        (Some(200), Some(1)),
        "{line}"
    );
    assert!(line["bytes_up"].as_u64() > Some(50) && line["bytes_down"].as_u64() > Some(100), "{line}");
    assert!(line["flow"].is_number() && line["duration_ms"].is_number(), "{line}");
}

#[test]
fn reasons_in_the_log_and_in_the_metric_agree() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    let good = format!("GET /hello HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
    let bad = "GET /hello HTTP/1.1\r\nbad name: x\r\n\r\n";
    let ambiguous = format!(
        "POST / HTTP/1.1\r\nhost: {MANAGER_NAME}\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let cut = good.replace("/hello", "/fault/truncated");
    let mut cases: Vec<RawCase> = Vec::new();
    for (text, count) in [(good.as_str(), 5), (bad, 3), (&ambiguous, 2), (&cut, 4)] {
        cases.extend((0..count).map(|_| RawCase::new(text)));
    }
    let expected: BTreeMap<String, u64> =
        [("ok", 5), ("bad_request", 3), ("ambiguous_framing", 2), ("upstream_truncated", 4)]
            .map(|(reason, count)| (reason.to_owned(), count))
            .into();
    client::raw(&pod, (MANAGER4, 80), cases);
    agent.access_line("the last", |_| agent.access_lines().len() >= 14);
    let mut logged = BTreeMap::new();
    for line in agent.access_lines() {
        *logged.entry(line["reason"].as_str().unwrap_or_default().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(logged, expected);
    for (reason, count) in expected {
        agent.wait_for_count("hnp_requests", &[("reason", &reason)], 0.0, count as f64);
        assert_eq!(agent.metrics().sum("hnp_requests", &[("reason", &reason)]), count as f64, "{reason}");
    }
}

#[test]
fn secrets_never_reach_a_log() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    let secrets = ["QUERYSECRET", "KEYSECRET", "BEARERSECRET", "COOKIESECRET", "BODYSECRET", "HARNESSSECRET"];
    let head = |path: &str, extra: &str| {
        format!(
            "POST {path}?accountId=QUERYSECRET HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nX-Access-Key: KEYSECRET\r\n\
             Authorization: Bearer BEARERSECRET\r\nCookie: s=COOKIESECRET\r\nX-Harness-Token: HARNESSSECRET\r\n\
             {extra}connection: close\r\ncontent-length: 10\r\n\r\nBODYSECRET"
        )
    };
    // Well served, refused by us, and broken by the manager: each has its own way into a log.
    let cases = [
        head("/hello", ""),
        head("/hello", "X-Bad : BODYSECRET\r\n"),
        head("/hello", "content-length: 11\r\n"),
        head("/fault/garbage", ""),
        head("/fault/truncated", ""),
        head("http://other.test/", ""),
        head("/hello", "X-Fold: a\r\n KEYSECRET\r\n"),
    ];
    let count = cases.len();
    client::raw(&pod, (MANAGER4, 80), cases.into_iter().map(RawCase::new).collect());
    client::raw(&pod, (OTHER4, 80), vec![RawCase::new(head("/hello", ""))]);
    agent.access_line("the last", |_| agent.access_lines().len() >= count);
    // The control: they were sent, and the manager has them.
    let received = String::from_utf8_lossy(&manager.requests()[0].head.raw).into_owned();
    assert!(secrets[..4].iter().all(|secret| received.contains(secret)), "{received}");
    let metrics = agent.get("/metrics").expect("it runs").1;
    for secret in secrets {
        for (place, text) in
            [("access log", agent.access_log()), ("diagnostics", agent.log()), ("metrics", metrics.clone())]
        {
            let found = text.lines().find(|line| line.contains(secret));
            assert_eq!(found, None, "{secret} in the {place}");
        }
    }
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let agent = scene.agent();
    let (status, text) = agent.get("/metrics").expect("it runs");
    assert_eq!(status, 200);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(
            ["hnp_", "process_"].iter().any(|prefix| series.starts_with(prefix))
                && series.matches('{').count() == series.matches('}').count(),
            "{line}"
        );
    }
    let metrics = agent.metrics();
    for (name, value) in
        [("hnp_ready", 1.0), ("hnp_workers", 2.0), ("hnp_destinations", 2.0), ("hnp_flows", 0.0)]
    {
        assert!(metrics.has(name, &[]), "{name}");
        assert_eq!(metrics.sum(name, &[]), value, "{name}");
    }
    assert_eq!(agent.get("/healthz").expect("it runs").0, 200);
    assert_eq!(agent.get("/nowhere").expect("it runs").0, 404);
}
