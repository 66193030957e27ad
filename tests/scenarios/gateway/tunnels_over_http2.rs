//! CONNECT over HTTP/2 (RFC 9113 section 8.5), by Node: a tunnel is one stream of a connection that others share, and
//! what follows is served as behind any CONNECT.

use std::path::Path;

use hnp_tests::agent::Route;
use hnp_tests::pki::{self, Files};
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};
use serde_json::{Value, json};

use super::{Gateway, echoing, node_of, start, uncaptured};

const CLIENT: &str = include_str!("../../clients/h2_tunnel.js");

/// What a client of a tunnel printed.
#[track_caller]
fn tunnel(pod: &Pod, gateway: &str, authority: &str, options: &Value) -> String {
    let node = tools::need("node");
    let command = pod.command(&node).args(["-e", CLIENT, "--", gateway, authority, &options.to_string()]);
    command.run().ok()
}

/// TLS within the tunnel, with the pod's certificate or without.
fn inner_tls(roots: &Path, own: Option<&Files>) -> Value {
    json!({
        "servername": MANAGER_NAME, "ca": roots,
        "cert": own.map(|files| &files.certificate), "key": own.map(|files| &files.key),
    })
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {MANAGER_NAME}\r\n{more}\r\n")
}

const CLOSE: &str = "Connection: close\r\n";

#[test]
fn plaintext_in_it_is_served_request_by_request() {
    let case = Gateway::new();
    // The second is sent once the first is answered: the stream waits in between as a connection does.
    let send = [get("/hello?token=one", ""), get("/hello?token=two", CLOSE)];
    let said = tunnel(&case.pod, &case.url(), "manager.hnp.test:80", &json!({ "send": send }));
    assert!(said.starts_with("status 200\n") && said.trim_end().ends_with("end"), "{said}");
    assert!(said.contains("\"token\":\"one\"") && said.contains("\"token\":\"two\""), "{said}");
    assert_eq!(case.manager.last_request().expect("one came").client_serial(), case.scene.client_serial);
    let line = case.agent.access_line("a request", |line| line["path"] == "/hello");
    assert_eq!(
        (&line["gateway"], &line["client_protocol"]),
        (&"connect".into(), &"http/1.1".into()),
        "{line}"
    );
    assert_eq!(line["asked"], "manager.hnp.test:80", "{line}");
    // The controls: what no route lists, what is no authority, and another name inside.
    for (authority, reason) in
        [("elsewhere.test:443", "destination_refused"), ("manager.hnp.test", "bad_request")]
    {
        let said = tunnel(&case.pod, &case.url(), authority, &json!({ "send": [] }));
        assert!(!said.starts_with("status 200") && said.contains(reason), "{authority}: {said}");
    }
    let send = [get("/hello", CLOSE).replace(MANAGER_NAME, "elsewhere.test")];
    let said = tunnel(&case.pod, &case.url(), "manager.hnp.test:80", &json!({ "send": send }));
    assert!(said.starts_with("status 200\n") && said.contains("host_refused"), "{said}");
    assert_eq!(case.manager.request_count(), 2);
}

#[test]
fn the_pods_own_tls_is_carried_to_the_manager() {
    let case = Gateway::with(|scene| {
        scene.config().route(Route::tunnel("tls", &["manager.hnp.test:443"], "https://manager.hnp.test:80"))
    });
    let own = case.scene.clients.client().write(case.scene.dir(), "pod");
    let ask = |own: Option<&Files>| {
        let options = json!({ "tls": inner_tls(&case.scene.roots, own), "send": [get("/hello", CLOSE)] });
        tunnel(&case.pod, &case.url(), "manager.hnp.test:443", &options)
    };
    let said = ask(Some(&own));
    assert!(said.contains("\"manager\":\"manager\""), "{said}");
    let seen = case.manager.last_request().expect("one came").tls.expect("TLS");
    assert_eq!(seen.client.expect("the pod's").serial, pki::serial_of(&own.certificate), "end to end");
    case.agent.access_line("the tunnel", |line| line["mode"] == "tunnel" && line["gateway"] == "connect");
    // The control: nobody lends a certificate in a tunnel.
    let said = ask(None);
    assert!(said.contains("certificate required"), "{said}");
    assert_eq!(case.manager.request_count(), 1);
}

#[test]
fn the_pods_tls_ends_in_it_and_in_tls_to_the_gateway() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let pod = scene.pod();
    let node = node_of(&pod);
    let serving = scene.servers.server(&[&node, MANAGER_NAME]).write(scene.dir(), "serving");
    let pods = scene.clients.write(scene.dir(), "pods");
    let route = Route::strict("tls", &["manager.hnp.test:443"], "https://manager.hnp.test:80")
        .with(IDENTITY, TRUST)
        .set("mode", "end-to-end")
        .set("end_to_end", "{serving: [serving], client_trust: pods}");
    let mut config = scene.config().identity("serving", &serving).trust("pods", &pods).route(route);
    config.gateway =
        "sources: [10.244.0.0/16, 'fd00:244::/32'], tls: {serving: [serving], client_auth: none}".into();
    let agent = start(&scene, &uncaptured(config));
    let own = scene.clients.client().write(scene.dir(), "pod");
    for scheme in ["http", "https"] {
        let ask = |own: Option<&Files>| {
            let tls = inner_tls(&scene.roots, own);
            let options = json!({ "ca": scene.roots, "tls": tls, "send": [get("/hello", CLOSE)] });
            tunnel(&pod, &format!("{scheme}://{node}:7777"), "manager.hnp.test:443", &options)
        };
        let before = manager.request_count();
        let said = ask(Some(&own));
        assert!(said.contains("\"manager\":\"manager\""), "{scheme}: {said}");
        assert_eq!(manager.last_request().expect("one came").client_serial(), scene.client_serial);
        // The control.
        let said = ask(None);
        assert!(said.contains("certificate required"), "{scheme}: {said}");
        assert_eq!(manager.request_count(), before + 1);
    }
    let serial = pki::serial_of(&own.certificate);
    agent.access_line("the request", |line| line["mode"] == "end-to-end" && line["client_serial"] == *serial);

    // The same TLS in TLS with CONNECT over HTTP/1.1.
    let url = format!("https://{MANAGER_NAME}/hello");
    let curl = |own: &[&Path]| {
        let command =
            pod.command("curl").args(["-sS", "--fail", "--proxy", &format!("https://{node}:7777"), &url]);
        let command = command.arg("--proxy-cacert").arg(&scene.roots).arg("--cacert").arg(&scene.roots);
        let flags = ["--cert", "--key"];
        own.iter().zip(flags).fold(command, |command, (path, flag)| command.arg(flag).arg(path)).run()
    };
    assert!(curl(&[&own.certificate, &own.key]).ok().contains("\"manager\":\"manager\""));
    assert!(!curl(&[]).status.success(), "the control");
}

#[test]
fn opaque_bytes_and_the_end_of_each_side() {
    let scene = Scene::for_test();
    let (echo, agent) = echoing(&scene);
    let pod = scene.pod();
    let gateway = format!("http://{}:7777", node_of(&pod));
    let ask = |options: Value| tunnel(&pod, &gateway, "manager.hnp.test:81", &options);
    // "bye" comes after the client's side has ended, and says how much came before.
    let said = ask(json!({ "send": ["hello\n", "again\n"] }));
    assert_eq!(said.trim_end(), "status 200\n220 ready\r\nhello\nagain\nbye 12\r\n\nend");
    let tls = echo.connections().remove(0).tls.expect("mutual TLS");
    assert_eq!(tls.client.expect("our certificate").serial, scene.client_serial);
    agent.access_line("the stream", |line| line["mode"] == "opaque" && line["bytes_up"] == 12);
    // Many at a time on one connection, beside one of which nothing is read.
    let said = ask(json!({ "send": ["hello\n"], "tunnels": 40, "stalled": 2_000_000 }));
    assert_eq!(said.matches("hello\nbye 6\r\n").count(), 40, "{}", &said[..said.len().min(2_000)]);
    // The control: the bytes themselves are no TLS with a certificate.
    let straight =
        hnp_tests::client::raw(&pod, (MANAGER4, 81), vec![hnp_tests::client::RawCase::new("hello\n")]);
    assert!(!straight[0].text().contains("hello"), "{}", straight[0].text());
}
