//! A certificate that grows old is spoken of before it ends, once for each stage, and the next one is counted anew. Once it
//! is over it is shown and refused: no session of the time before is resumed instead.

use std::time::{Duration, SystemTime};

use hnp_tests::agent::Agent;
use hnp_tests::client::{self, Job, Target};
use hnp_tests::manager::Connection;
use hnp_tests::pki::{CLIENT_NAME, Spec};
use hnp_tests::poll::eventually;
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};

const SOON: Duration = Duration::from_secs(20);
/// Long enough for an agent to start within the first half, on slow machines too.
const LIFETIME: Duration = Duration::from_secs(60);

#[test]
fn an_identity_is_spoken_of_at_each_stage_of_its_lifetime() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (pod, start) = (scene.pod(), SystemTime::now());
    // Two fifths are over when the agent starts.
    let from = start - LIFETIME * 2 / 5;
    let old = scene.clients.issue(&Spec::client(CLIENT_NAME).valid(from, from + LIFETIME));
    old.write(scene.dir(), "client");
    // The control: an identity that has years left, and a trust that does.
    let young = scene.clients.client().write(scene.dir(), "young");
    let config = scene.config().identity("young", &young).route(scene.route().set("pool_idle", "0"));
    let agent = Agent::start(&scene, &config);
    let ask = || {
        let target = Target::new((MANAGER4, 80), MANAGER_NAME, "manager");
        client::run(&pod, &Job::Short { targets: vec![target], total: 1, concurrency: 1 })
    };
    // More than there are workers, of which each has its sessions.
    for _ in 0..4 {
        ask().assert_all_ok(1);
    }
    let resumed = |one: &Connection| one.tls.as_ref().is_some_and(|tls| tls.resumed);
    assert!(manager.connections().iter().any(resumed), "the control: sessions are resumed while it is valid");
    let stages = [
        ("INFO", "half of its lifetime is over"),
        ("WARN", "three quarters of its lifetime are over"),
        ("WARN", "nine tenths of its lifetime are over"),
        ("WARN", "it has expired"),
    ];
    let said = |words: &str| -> Vec<String> {
        agent.log().lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    };
    for (level, words) in stages {
        eventually(LIFETIME + SOON, words, || !said(words).is_empty());
        let lines = said(words);
        assert_eq!(lines.len(), 1, "said once: {lines:?}");
        let line = &lines[0];
        assert!(line.contains(&format!("\"{level}\"")) && line.contains("client.crt"), "{line}");
        assert!(
            line.contains("hnp-agent certs renew") && line.contains(&format!("\"{IDENTITY}\"")),
            "{line}"
        );
    }
    assert!(!agent.log().contains("young.crt:") && !agent.log().contains("the root "), "{}", agent.log());
    let refused = || ask().failures.iter().any(|one| one.contains("client_certificate_refused"));
    // To the second: dates have no parts of one.
    eventually(SOON, "what has expired is refused", refused);
    assert!((0..4).all(|_| refused()), "no session of the time before lets it in");
    // `check` says it too, and what it says of the other is nothing.
    let checked = Agent::check(&scene.agent_place(), &config);
    assert!(checked.stderr.contains("client.crt: has expired"), "{checked}");
    assert!(!checked.stderr.contains("young.crt"), "{checked}");
    // The next one is presented, and its age is counted anew.
    let next = scene.clients.client();
    next.write(scene.dir(), "client");
    eventually(SOON, "the next one is presented", || {
        ask().failures.is_empty()
            && manager.last_request().is_some_and(|request| request.client_serial() == next.serial)
    });
    assert_eq!(said("lifetime").len(), 3, "{}", agent.log());
    let metrics = agent.metrics();
    let ends = metrics.sum("hnp_trust_root_not_after_seconds", &[("trust", TRUST)]);
    let begins = metrics.sum("hnp_trust_root_not_before_seconds", &[("trust", TRUST)]);
    assert!(begins < ends && ends > 2e9, "{begins} to {ends}");
}
