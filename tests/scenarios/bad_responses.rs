//! Whatever the manager answers, nobody ever sees a byte of another's answer. Every answer of the
//! manager carries the token of the request that caused it, faults included, so a foreign byte is
//! told by its mark.

use hnp_tests::agent::Agent;
use hnp_tests::client::{self, Job, RawAnswer, RawCase, Report};
use hnp_tests::manager::FAULTS;
use hnp_tests::poll::eventually;
use hnp_tests::process::Running;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};
use std::time::Duration;

/// What a pod may get for each fault: the reasons of an answer of our own, or a cut answer.
const REASONS: &[(&str, &[&str])] = &[
    ("truncated", &["upstream_truncated"]),
    ("truncated-chunk", &["upstream_truncated"]),
    ("bad-chunk", &["upstream_bad_response"]),
    ("two-lengths", &["upstream_bad_response"]),
    ("length-and-chunked", &["upstream_bad_response"]),
    ("bad-length", &["upstream_bad_response"]),
    ("garbage", &["upstream_bad_response"]),
    ("bad-header", &["upstream_bad_response"]),
    ("folded-header", &["upstream_bad_response"]),
    ("huge-head", &["upstream_bad_response"]),
    ("half-head", &["upstream_truncated"]),
    ("close-after-request", &["upstream_closed"]),
    ("reset", &["upstream_reset", "upstream_closed"]),
    ("reset-in-body", &["upstream_reset", "upstream_truncated"]),
    ("early", &["ok"]),
    ("unsolicited", &["ok"]),
    ("unsolicited-late", &["ok"]),
    ("too-long", &["ok"]),
];

#[test]
fn each_fault_has_its_reason_and_spares_the_next_request() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    for (number, fault) in FAULTS.iter().enumerate() {
        let (_, reasons) = REASONS.iter().find(|(name, _)| name == fault).expect("every fault is listed");
        let answer = post(&pod, &format!("/fault/{fault}?x=1"), &format!("faulty-{number}"));
        let line = agent.access_line(fault, |line| line["path"] == format!("/fault/{fault}"));
        let reason = line["reason"].as_str().unwrap_or_default();
        assert!(reasons.contains(&reason), "{fault}: {line}\n{}", answer.text());
        match reason {
            "ok" => assert_eq!(answer.status(), Some(200), "{fault}"),
            // Cut in the middle of a body, where no status can be given any more; or an answer of ours.
            _ if answer.status() == Some(200) => assert!(is_cut(&answer), "{fault}: {}", answer.text()),
            _ => assert_eq!(answer.status(), Some(502), "{fault}: {}", answer.text()),
        }
        assert!(!answer.text().contains("unsolicited"), "{fault}: {}", answer.text());
        // The next one, likely on a pooled connection if there is one, gets its own answer.
        for again in 0..3 {
            let token = format!("after-{fault}-{number}-{again}");
            let next = post(&pod, "/hello", &token);
            assert_eq!(next.status(), Some(200), "{fault}: {}", next.text());
            assert!(next.text().contains(&format!("\"token\":\"{token}\"")), "{fault}: {}", next.text());
        }
    }
    assert_eq!(
        manager.requests().iter().filter(|request| request.target == "/hello").count(),
        FAULTS.len() * 3
    );
}

#[test]
fn sixty_four_pods_never_see_each_others_bytes() {
    let _alone = hnp_tests::topology::alone();
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let agent: Agent = scene.agent();
    let pods: Vec<Pod> = (0..64).map(|_| scene.pod()).collect();

    // Every pod mixes faults and good requests, all at the same time and over one pool.
    let running: Vec<Running> = pods
        .iter()
        .enumerate()
        .map(|(number, pod)| {
            client::load(pod, &Job::Raw { addr: (MANAGER4, 80).into(), cases: cases(number) }).spawn()
        })
        .collect();
    let (mut good, mut faulty) = (0, 0);
    for (number, running) in running.into_iter().enumerate() {
        let report: Report = running.wait(Duration::from_secs(120)).json();
        for (index, answer) in report.answers.iter().enumerate() {
            let text = answer.text();
            for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
                let foreign = word.starts_with("pod-") && !word.starts_with(&token(number, index));
                assert!(!foreign, "pod {number}, request {index} saw {word}: {text}");
            }
            if index % 2 == 0 {
                assert_eq!(answer.status(), Some(200), "pod {number}, request {index}: {text}");
                assert!(text.contains(&format!("\"token\":\"{}\"", token(number, index))), "{text}");
                good += 1;
            } else {
                faulty += 1;
            }
        }
    }
    assert_eq!((good, faulty), (64 * storm().len(), 64 * storm().len()));
    // The control: the marks are there to be seen. The manager did get all of them, over a pool.
    let requests = manager.requests();
    assert!(requests.len() >= good + faulty);
    assert!(agent.metrics().sum("hnp_pool_hits", &[]) > 0.0, "connections were shared");
}

#[test]
fn unsolicited_bytes_on_an_idle_connection_end_it() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let mut config = scene.config().route(scene.route());
    // One worker, so one pool: what is idle is what the next request gets.
    config.workers = 1;
    let (agent, pod) = (Agent::start(&scene, &config), scene.pod());
    let idle = || agent.metrics().sum("hnp_pool_idle", &[]);
    for round in 0..3 {
        for good in 0..2 {
            let token = format!("good-{round}-{good}");
            let answer = post(&pod, "/hello", &token);
            assert!(answer.text().contains(&format!("\"token\":\"{token}\"")), "{}", answer.text());
        }
        eventually(Duration::from_secs(5), "the control: one good connection is kept", || idle() == 1.0);
        assert_eq!(post(&pod, "/fault/unsolicited-late", "late").status(), Some(200));
        eventually(Duration::from_secs(5), "a connection with unsolicited bytes is let go", || idle() == 0.0);
    }
}

/// The faults of the storm: all but the one whose bytes come some time after a whole answer. Where
/// they arrive behind the next request they cannot be told from its answer: HTTP/1.1 has no numbers.
fn storm() -> Vec<&'static str> {
    FAULTS.iter().copied().filter(|fault| *fault != "unsolicited-late").collect()
}

/// A good request, then a faulty one, for each fault; each pod begins at another fault.
fn cases(pod: usize) -> Vec<RawCase> {
    let faults = storm();
    let mut cases = Vec::new();
    for number in 0..faults.len() {
        let fault = faults[(number + pod) % faults.len()];
        cases.push(RawCase::new(request("/hello", &token(pod, cases.len()))));
        cases.push(RawCase::new(request(&format!("/fault/{fault}"), &token(pod, cases.len()))));
    }
    cases
}

fn token(pod: usize, index: usize) -> String {
    format!("pod-{pod}-{index}-x")
}

fn post(pod: &Pod, path: &str, token: &str) -> RawAnswer {
    let case = RawCase { quiet_ms: 5000, ..RawCase::new(request(path, token)) };
    client::raw(pod, (MANAGER4, 80), vec![case]).remove(0)
}

fn request(path: &str, token: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nx-token: {token}\r\nconnection: close\r\n\
         content-length: 4\r\n\r\nbody"
    )
}

/// Whether an answer that began well is visibly not whole: fewer bytes than announced, no last chunk,
/// or a reset.
fn is_cut(answer: &RawAnswer) -> bool {
    let text = answer.text();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    match length.and_then(|length| length.trim().parse::<usize>().ok()) {
        Some(length) => body.len() < length,
        None => head.contains("chunked") && !body.ends_with("0\r\n\r\n"),
    }
}

/// So that the list above cannot lag behind the kit's.
#[test]
fn every_fault_has_an_expectation() {
    let listed: Vec<&str> = REASONS.iter().map(|(name, _)| *name).collect();
    assert!(FAULTS.iter().all(|fault| listed.contains(fault)), "{FAULTS:?} vs {listed:?}");
    assert_eq!(listed.len(), FAULTS.len());
}
