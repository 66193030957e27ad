//! Trusts of any roots take only who is listed, and speak no older TLS than they say.

use hnp_tests::agent::{Agent, Config};
use hnp_tests::openssl_peer::{OpensslPeer, Version};
use hnp_tests::pki::{Files, Spec};
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::MANAGER_NAME;

use super::{ask, was_refused};

fn config(scene: &Scene, files: &Files, keys: &str) -> Config {
    let keys = format!("roots: {}, {keys}", scene.roots.display());
    Config::new(scene).identity(IDENTITY, files).trust_with(TRUST, &keys).route(scene.route())
}

#[test]
fn only_a_manager_of_a_listed_name_or_id_is_taken() {
    let scene = Scene::for_test();
    // By its host's name it would be taken; by the name behind it, it is told from another.
    let leaf = scene.servers.issue(&Spec::server(&[MANAGER_NAME, "blue.hnp.test"]));
    let manager = hnp_tests::manager::Manager::strict(&scene, "manager", 80, &leaf, &scene.clients);
    let pod = scene.pod();
    for (keys, taken) in [
        ("names: [blue.hnp.test]", true),
        ("names: ['*.hnp.test']", true),
        ("names: [green.hnp.test]", false),
        ("ids: ['spiffe://ours.test/manager']", false),
    ] {
        let before = manager.request_count();
        let agent = Agent::start(&scene, &config(&scene, &scene.client, keys));
        let report = ask(&pod);
        if taken {
            report.assert_all_ok(1);
        } else {
            assert_eq!(manager.request_count(), before, "{keys}: nothing was sent");
            let reason = if keys.starts_with("ids") {
                "upstream_certificate_bad"
            } else {
                "upstream_certificate_name"
            };
            assert!(was_refused(&report, reason), "{keys}: {:?}", report.failures);
            let line = agent.access_line_with(reason);
            let words = line["detail"].as_str().expect("words");
            let expected = if keys.starts_with("ids") {
                "it has no URI among its names"
            } else {
                "is for manager.hnp.test, blue.hnp.test, and the trust takes green.hnp.test"
            };
            assert!(words.contains(expected), "{words}");
        }
        agent.stop(super::SOON);
    }
}

#[test]
fn a_manager_of_tls_1_2_is_refused_where_1_3_is_asked_for() {
    for (speaks, keys, taken) in [
        (Version::Tls12, "tls_min: 1.2", true),
        (Version::Tls12, "tls_min: 1.3", false),
        (Version::Tls13, "tls_min: 1.3", true),
    ] {
        let scene = Scene::for_test();
        let pod = scene.pod();
        let _peer = OpensslPeer::start(&scene, 80, speaks, &scene.server, &scene.clients);
        let agent = Agent::start(&scene, &config(&scene, &scene.client, keys));
        let answer = pod.command("curl").args(["-s", "-w", " %{http_code}", "http://198.18.0.9/"]).run();
        let shown = String::from_utf8_lossy(&answer.stdout);
        if taken {
            assert!(shown.contains("ok"), "{speaks:?}, {keys}: {answer}");
        } else {
            assert!(shown.contains("upstream_tls_failed") && shown.ends_with("502"), "{answer}");
            let line = agent.access_line_with("upstream_tls_failed");
            assert!(line["detail"].as_str().is_some_and(|words| words.contains("ProtocolVersion")), "{line}");
        }
        agent.stop(super::SOON);
    }
}
