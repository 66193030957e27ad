//! Node without a package, in each form it has for a gateway. The control of each is its `fetch`, to the manager itself.

use hnp_tests::pki::{self, Files};
use hnp_tests::process::Finished;
use hnp_tests::tools;
use serde_json::Value;

use super::clients::tunnelled;
use super::{Gateway, node_of};

const PROGRAM: &str = include_str!("../../clients/gateway.js");
const URL: &str = "http://plain.hnp.test/hello";

#[test]
fn fetch_to_the_gateways_own_address() {
    carried("fetch", "origin");
}

#[test]
fn http2_to_the_gateways_own_address() {
    carried("h2c", "origin");
}

#[test]
fn a_request_with_a_url_as_target() {
    carried("absolute", "absolute");
}

#[test]
fn an_agent_that_makes_its_connections_by_connect() {
    let (case, client) = tunnelled();
    let url = "https://manager.hnp.test/hello";
    let roots = &case.scene.roots;
    let answer = node(&case, "connect", url, &[roots, &client.certificate, &client.key]);
    served(&answer);
    let seen = case.manager.request("connect");
    assert_eq!(seen.client_serial(), pki::serial_of(&client.certificate), "end to end, not the node's");
    let line = case.agent.access_line("the tunnel", |line| line["gateway"] == "connect");
    assert_eq!((&line["mode"], &line["route"]), (&"tunnel".into(), &"tls".into()), "{line}");
    // The controls: a CA that did not sign, and nobody listens where the pod dials.
    let Files { certificate, key } = &client;
    let other = pki::Ca::new("other").write(case.scene.dir(), "other");
    let refused = node(&case, "connect", url, &[&other, certificate, key]);
    assert!(!refused.status.success() && refused.stderr.contains("certificate"), "{refused}");
    assert!(!node(&case, "straight", url, &[]).status.success());
    assert_eq!(case.manager.request_count(), 1);
}

/// In the clear to the agent, and on with its certificate.
#[track_caller]
fn carried(form: &str, word: &str) {
    let (case, _) = tunnelled();
    served(&node(&case, form, URL, &[]));
    let seen = case.manager.request(form);
    assert_eq!((seen.client_serial(), seen.body_bytes), (&*case.scene.client_serial, Some(100_000)));
    let line = case.agent.access_line("the request", |line| line["gateway"] == word);
    assert_eq!((&line["route"], &line["reason"]), (&"manager".into(), &"ok".into()), "{line}");
    let straight: Value = node(&case, "straight", URL, &[]).json();
    assert_eq!(straight["status"], 400, "{straight}");
    assert!(case.manager.request("straight").tls.is_none());
}

#[track_caller]
fn served(answer: &Finished) {
    let answer: Value = answer.json();
    assert_eq!(answer["status"], 200, "{answer}");
    let body = answer["body"].as_str().unwrap_or_default();
    assert!(body.contains("\"manager\":\"manager\"") && body.contains("\"body_bytes\":100000"), "{answer}");
}

fn node(case: &Gateway, form: &str, url: &str, files: &[&std::path::PathBuf]) -> Finished {
    let gateway = format!("{}:7777", node_of(&case.pod));
    let command = case.pod.command(tools::need("node")).args(["-e", PROGRAM, "--", form, &gateway, url]);
    command.args(files).run()
}
