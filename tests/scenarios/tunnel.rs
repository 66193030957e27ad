//! A tunnel carries the pod's own TLS to the upstream, end to end, for the names it lists and no others; it
//! reads the hello and changes nothing. Plaintext goes nowhere.

use std::sync::Arc;

use hnp_tests::agent::{Agent, Route};
use hnp_tests::client::{self, RawAnswer, RawCase};
use hnp_tests::manager::{Manager, Mode, Setup};
use hnp_tests::pki::Files;
use hnp_tests::process::{Finished, Place};
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs;

/// What pods dial, and where the upstream is: nobody listens on the destination's own port.
const DESTINATIONS: &[&str] = &["manager.hnp.test:443", "198.18.0.9:443"];
const UPSTREAM: &str = "https://manager.hnp.test:8443";

#[test]
fn the_pods_own_certificate_reaches_a_strict_manager() {
    let scene = Tunnelled::new(Mode::Strict, "");
    let answer = scene.curl(&scene.pod, MANAGER_NAME, true);
    assert!(answer.ok().contains("\"manager\":\"manager\""), "{answer}");
    let seen = scene.manager.last_request().expect("one came").tls.expect("TLS");
    assert_eq!(seen.client.expect("the pod's").serial, scene.serial, "not the node's: end to end");
    let line = scene.agent.access_line("the tunnel", |line| line["mode"] == "tunnel");
    assert_eq!((&line["route"], &line["tls"]), (&"tls".into(), &serde_json::Value::Null), "{line}");
    assert!(line["bytes_up"].as_u64() > Some(500) && line["bytes_down"].as_u64() > Some(500), "{line}");
    // The controls: without a certificate the manager refuses, so nobody lent one; and outside of the pod nobody
    // carries it, for nobody listens there.
    let refused = scene.curl(&scene.pod, MANAGER_NAME, false);
    assert!(!refused.status.success() && refused.stderr.contains("certificate required"), "{refused}");
    let outside = scene.curl(scene.pod.outside_cgroup(), MANAGER_NAME, true);
    assert!(!outside.status.success(), "{outside}");
    assert_eq!(scene.manager.request_count(), 1);
}

#[test]
fn a_loose_manager_takes_a_pod_without_a_certificate() {
    let scene = Tunnelled::new(Mode::Loose, "");
    let answer = scene.curl(&scene.pod, MANAGER_NAME, false);
    assert!(answer.ok().contains("\"manager\":\"manager\""), "{answer}");
    assert!(scene.manager.last_request().expect("one came").tls.expect("TLS").client.is_none());
}

#[test]
fn a_name_that_is_not_listed_is_refused() {
    let scene = Tunnelled::new(Mode::Loose, "");
    let refused = scene.curl(&scene.pod, "elsewhere.hnp.test", false);
    assert!(!refused.status.success() && refused.stderr.contains("unrecognized name"), "{refused}");
    scene.agent.access_line_with("sni_refused");
    assert_eq!(scene.manager.connections().len(), 0, "nobody was dialled for it");
    // The control: the same name, listed.
    let listed = Tunnelled::new(Mode::Loose, "names: [elsewhere.hnp.test]");
    assert!(listed.curl(&listed.pod, "elsewhere.hnp.test", false).status.success());
    let refused = listed.curl(&listed.pod, MANAGER_NAME, false);
    assert!(!refused.status.success(), "names that are written replace those that are meant: {refused}");
}

#[test]
fn what_does_not_say_whom_it_is_for_is_a_decision_of_the_route() {
    for (hello, key, reason) in [
        (Hello::nameless(), "nameless", "tls_without_name"),
        (Hello::encrypted(), "encrypted_hello", "encrypted_hello"),
    ] {
        let refusing = Tunnelled::new(Mode::Loose, "");
        let answer = refusing.raw(&hello.0);
        assert_eq!(answer.bytes.first(), Some(&21), "an alert: {answer:?}");
        let line = refusing.agent.access_line_with(reason);
        assert_eq!(line["route"], "tls", "{line}");
        assert_eq!(refusing.manager.connections().len(), 0, "nobody was dialled for it");
        // The control: the route lets it.
        let carrying = Tunnelled::new(Mode::Loose, &format!("{key}: tunnel"));
        let answer = carrying.raw(&hello.0);
        assert_eq!(answer.bytes.first(), Some(&22), "a server's hello: {answer:?}");
    }
    // A hello that is neither goes either way.
    let scene = Tunnelled::new(Mode::Loose, "");
    assert_eq!(scene.raw(&Hello::plain().0).bytes.first(), Some(&22));
}

#[test]
fn plaintext_goes_nowhere() {
    let scene = Tunnelled::new(Mode::Loose, "");
    let request = format!("GET /hello HTTP/1.1\r\nhost: {MANAGER_NAME}\r\n\r\n");
    let answer = scene.raw(request.as_bytes());
    assert_eq!(answer.status(), Some(421), "{}", answer.text());
    assert!(answer.text().contains("\"reason\":\"tls_expected\""), "{}", answer.text());
    scene.agent.access_line_with("tls_expected");
    let answer = scene.raw(b"\0\x01\x02 nor this");
    assert_eq!(answer.text(), "", "{answer:?}");
    scene.agent.access_line_with("protocol_refused");
    assert_eq!(scene.manager.payload_received(), 0);
    // The control: the manager takes plaintext from whoever reaches it.
    let straight = client::raw(
        scene.pod.outside_cgroup(),
        (MANAGER4, 8443),
        vec![RawCase::new(request.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"))],
    );
    assert_eq!(straight[0].status(), Some(200), "{}", straight[0].text());
}

#[test]
fn a_route_beside_it_serves_plaintext_on_the_same_address() {
    let scene = Scene::for_test();
    let server = scene.servers.server(&["a.hnp.test", "b.hnp.test"]);
    for name in ["a.hnp.test", "b.hnp.test"] {
        scene.add_host(name, &[MANAGER4.into()]);
    }
    let start =
        |name, port| Manager::start(&scene, Setup::new(name, port).tls(Mode::Loose, &server, &scene.clients));
    let (a, b) = (start("a", 8443), start("b", 8444));
    let tunnel = Route::tunnel("tls", &["a.hnp.test:80"], "https://a.hnp.test:8443");
    let proxy = Route::strict("http", &["b.hnp.test:80"], "https://b.hnp.test:8444")
        .with(hnp_tests::scene::IDENTITY, hnp_tests::scene::TRUST);
    let _agent = Agent::start(&scene, &scene.config().route(tunnel).route(proxy));
    let pod = scene.pod();
    let curl = |scheme: &str, name: &str| {
        let (resolve, url) = (format!("{name}:80:{MANAGER4}"), format!("{scheme}://{name}:80/hello"));
        let command = pod.command("curl").args(["-sS", "--fail", "--resolve", &resolve, &url, "--cacert"]);
        command.arg(&scene.roots).run()
    };
    assert!(curl("https", "a.hnp.test").ok().contains("\"manager\":\"a\""));
    assert!(curl("http", "b.hnp.test").ok().contains("\"manager\":\"b\""));
    assert!(!curl("http", "a.hnp.test").status.success());
    assert!(!curl("https", "b.hnp.test").status.success());
    assert_eq!((a.request_count(), b.request_count()), (1, 1));
}

/// A manager behind a strict tunnel, and a pod with a certificate of its own.
struct Tunnelled {
    pod: Pod,
    agent: Agent,
    manager: Manager,
    client: Files,
    serial: String,
    scene: Scene,
}

impl Tunnelled {
    /// `settings` go into the route's `tunnel`.
    fn new(mode: Mode, settings: &str) -> Self {
        let scene = Scene::for_test();
        let server = scene.servers.server(&[MANAGER_NAME, "elsewhere.hnp.test"]);
        let manager = Manager::start(&scene, Setup::new("manager", 8443).tls(mode, &server, &scene.clients));
        let route = Route::tunnel("tls", DESTINATIONS, UPSTREAM).set("tunnel", &format!("{{{settings}}}"));
        let agent = Agent::start(&scene, &scene.config().route(route));
        let client = scene.clients.client().write(scene.dir(), "pod");
        let serial = hnp_tests::pki::serial_of(&client.certificate);
        Self { pod: scene.pod(), agent, manager, client, serial, scene }
    }

    /// A GET over TLS of the client's own, with this name as SNI and Host.
    fn curl(&self, place: &Place, name: &str, own_certificate: bool) -> Finished {
        let (resolve, url) = (format!("{name}:443:{MANAGER4}"), format!("https://{name}/hello"));
        let command = place.command("curl").args(["-sS", "--resolve", &resolve, &url, "--cacert"]);
        let mut command = command.arg(&self.scene.roots);
        if own_certificate {
            command = command.arg("--cert").arg(&self.client.certificate).arg("--key").arg(&self.client.key);
        }
        command.run()
    }

    fn raw(&self, bytes: &[u8]) -> RawAnswer {
        client::raw(&self.pod, (MANAGER4, 443), vec![RawCase::in_parts(&[bytes], 0)]).remove(0)
    }
}

/// What a TLS client sends first.
struct Hello(Vec<u8>);

impl Hello {
    fn plain() -> Self {
        Self::of(|_| {}, None)
    }

    fn nameless() -> Self {
        Self::of(|config| config.enable_sni = false, None)
    }

    /// Of a client that pretends (GREASE, RFC 9849 section 6.2): it looks like one that does not.
    fn encrypted() -> Self {
        let suite = aws_lc_rs::hpke::ALL_SUPPORTED_SUITES[0];
        let (key, _) = suite.generate_key_pair().expect("a key");
        Self::of(|_| {}, Some(EchMode::from(EchGreaseConfig::new(suite, key))))
    }

    fn of(change: impl FnOnce(&mut rustls::ClientConfig), encrypted: Option<EchMode>) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = match encrypted {
            Some(mode) => builder.with_ech(mode).expect("TLS 1.3"),
            None => builder.with_safe_default_protocol_versions().expect("the provider has them"),
        };
        let mut config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        change(&mut config);
        let name = MANAGER_NAME.try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("memory");
        Self(bytes)
    }
}
