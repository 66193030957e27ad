//! Each step by itself, with what it tells when all is well; modes, exit codes, and what is not shown.

use std::fs;
use std::net::IpAddr;

use hnp_tests::agent::{Build, Config, Route};
use hnp_tests::corporate::{Corporate, INSIDE_NAME, PROXY_NAME, Squid, SquidSetup};
use hnp_tests::dns::Dns;
use hnp_tests::manager::{Http2, Manager, Mode, Service, Setup};
use hnp_tests::nginx::Nginx;
use hnp_tests::openssl_peer::{OpensslPeer, Version};
use hnp_tests::pki::{self, Ca};
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, MANAGER6};
use serde_json::Value;

use super::{doctor, plain, row, run, with_upstream};

#[test]
fn where_all_is_well_nothing_is_bad_and_everything_is_told() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let agent = scene.agent();
    let found = doctor(&scene, &plain(&scene), &["--path", "/hello?key=geheim", "--path", "/status/204"]);
    assert!(found.exit() == 0 && found.json["healthy"] == true, "{found:?}");
    assert_eq!((&found.json["route"], found.bad()), (&"manager".into(), Vec::new()));
    // Its shape is what scripts hold on to.
    for finding in found.findings() {
        for key in ["area", "what", "state", "detail"] {
            assert!(finding[key].is_string(), "{key} in {finding}");
        }
    }
    let resolved = found.one("resolve", MANAGER_NAME);
    assert!(resolved["facts"]["addresses"].as_array().is_some_and(|all| all.len() == 2), "{resolved}");
    for addr in [IpAddr::from(MANAGER4), MANAGER6.into()] {
        assert_eq!(found.state("tcp", &addr.to_string()), "ok");
    }
    let tls = found.one("tls", &MANAGER4.to_string());
    assert_eq!((&tls["state"], &tls["facts"]["version"]), (&"ok".into(), &"TLSv1.3".into()), "{tls}");
    assert_eq!(tls["facts"]["key_exchange"], "X25519MLKEM768", "{tls}");
    let certificate = found.one("certificate", &MANAGER4.to_string());
    let leaf = &certificate["facts"]["certificates"][0];
    assert_eq!(leaf["serial"], scene.server.serial, "{certificate}");
    assert_eq!(leaf["names"][0], format!("DNS:{MANAGER_NAME}"));
    assert_eq!(found.one("client-auth", "without a certificate")["facts"]["mode"], "strict");
    assert_eq!(found.state("client-auth", "our certificate"), "ok");
    assert!(found.detail("client-auth", "what is asked for").contains("hnp test clients"));
    assert_eq!(found.one("request", "/status/204")["facts"]["status"], 204);
    assert_eq!(found.state("pods", "on this node"), "ok");

    // The manager saw each path once, with our certificate, and nobody without one.
    let targets: Vec<String> = manager.requests().iter().map(|request| request.target.clone()).collect();
    assert_eq!(targets, ["/hello?key=geheim", "/status/204"]);
    assert!(manager.requests().iter().all(|request| request.client_serial() == scene.client_serial));
    assert!(agent.access_lines().is_empty(), "it is no access");
    // What may be a secret is sent and not shown.
    let text =
        run(Build::Ordinary, &scene, &plain(&scene), &["--route", "manager", "--path", "/hello?key=geheim"]);
    let said = format!("{}{}{}", text.ok(), text.stderr, found.json);
    assert!(!said.contains("geheim") && said.contains("/hello?..."), "{said}");
    assert!(text.text().contains("ok        tls          198.18.0.9:80: TLSv1.3, X25519MLKEM768"), "{text}");
    assert!(text.text().contains(&format!("serial {}", scene.server.serial)), "{text}");
}

#[test]
fn loose_and_strict_are_told_apart_however_a_server_refuses() {
    let scene = Scene::for_test();
    let mode = |upstream: &str| {
        let found = doctor(&scene, &with_upstream(&scene, upstream), &[]);
        assert_eq!(found.exit(), 0, "{found:?}");
        assert_eq!(found.state("client-auth", "our certificate"), "ok", "{found:?}");
        let one = found.one("client-auth", "without a certificate");
        (
            one["facts"]["mode"].as_str().unwrap_or_default().to_owned(),
            one["state"].as_str().map(str::to_owned),
        )
    };
    let told = |mode: &str, state: &str| (mode.to_owned(), Some(state.to_owned()));
    let manager = scene.loose_manager("loose", 81);
    assert_eq!(mode("https://manager.hnp.test:81"), told("loose", "degraded"));
    let with: Vec<bool> = manager
        .requests()
        .iter()
        .map(|request| request.tls.as_ref().is_some_and(|tls| tls.client.is_some()))
        .collect();
    assert_eq!(with, [false, true], "one came without a certificate and one with ours");
    // An alert after the handshake, one within it, and a page with 400.
    let _late = OpensslPeer::start(&scene, 82, Version::Tls13, &scene.server, &scene.clients);
    assert_eq!(mode("https://198.18.0.9:82"), told("strict", "ok"));
    let _early = OpensslPeer::start(&scene, 83, Version::Tls12, &scene.server, &scene.clients);
    assert_eq!(mode("https://198.18.0.9:83"), told("strict", "ok"));
    let clients = scene.clients.write(scene.dir(), "clients");
    let _nginx = Nginx::start(&scene, 84, &scene.server, &clients);
    assert_eq!(mode("https://manager.hnp.test:84"), told("strict", "ok"));
    let http2 = Setup::new("http2", 85).tls(Mode::Strict, &scene.server, &scene.clients);
    let _http2 = Manager::start(&scene, http2.http2(Http2::default()));
    assert_eq!(mode("https://manager.hnp.test:85"), told("strict", "ok"));
}

#[test]
fn a_manager_that_asks_nobody_is_told_as_such() {
    let scene = Scene::for_test();
    let _strict = scene.strict_manager();
    assert_eq!(
        doctor(&scene, &plain(&scene), &[]).state("client-auth", "what is asked for"),
        "ok",
        "the control"
    );
    let manager = Manager::start(&scene, Setup::new("anybody's", 81).tls_for_anybody(&scene.server));
    let found = doctor(&scene, &with_upstream(&scene, "https://manager.hnp.test:81"), &["--path", "/hello"]);
    assert_eq!(
        (found.state("client-auth", "what is asked for"), found.exit()),
        ("degraded".into(), 0),
        "{found:?}"
    );
    assert_eq!(found.one("client-auth", "without a certificate")["facts"]["mode"], "none");
    assert_eq!(found.state("client-auth", "our certificate"), "skipped");
    assert_eq!(manager.request_count(), 2, "without, and as a pod's would go");
    // Whoever closes on everybody is not taken for STRICT.
    let found = doctor(&scene, &plain(&scene), &["--path", "/fault/close-after-request"]);
    assert_eq!(found.one("request", "/fault/")["reason"], "upstream_closed", "{found:?}");
    let loose = scene.loose_manager("loose", 82);
    let config = with_upstream(&scene, "https://manager.hnp.test:82");
    let found = doctor(&scene, &config, &["--path", "/fault/close-after-request"]);
    assert_eq!(found.one("client-auth", "without a certificate")["facts"]["mode"], "unknown", "{found:?}");
    assert!(loose.request_count() >= 2);
}

#[test]
fn the_vendors_certificate_is_accepted_and_its_version_said() {
    let scene = Scene::for_test();
    let dir = scene.path("vendor");
    fs::create_dir(&dir).expect("the world's directory is ours");
    let files = pki::vendor_recipe(&dir);
    let _nginx = Nginx::start(&scene, 80, &scene.server, &dir.join("ca.crt"));
    let config = Config::new(&scene).identity(IDENTITY, &files).trust(TRUST, &scene.roots);
    let found = doctor(&scene, &config.route(scene.route()), &[]);
    assert_eq!(
        (found.bad(), found.state("client-auth", "our certificate")),
        (Vec::new(), "ok".into()),
        "{found:?}"
    );
    let version =
        |one: &&Value| one["detail"].as_str().is_some_and(|detail| detail.contains("X.509 version 1"));
    let said = found.findings().iter().find(version).expect("its version");
    assert_eq!((&said["area"], &said["state"]), (&"identity".into(), &"degraded".into()), "{said}");
    assert_eq!(found.state("clock", ""), "ok", "nginx writes a Date");
}

#[test]
fn a_route_that_ends_pods_tls_is_looked_at_from_there_on() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let serving = scene.servers.server(&[MANAGER_NAME]).write(scene.dir(), "serving");
    let route =
        scene.route().set("mode", "end-to-end").set("end_to_end", "{serving: [serving], client_auth: none}");
    let found =
        doctor(&scene, &scene.config().identity("serving", &serving).route(route), &["--path", "/hello"]);
    assert_eq!((found.bad(), found.exit()), (Vec::new(), 0), "{found:?}");
    let request = manager.last_request().expect("one");
    assert_eq!((request.target.as_str(), request.client_serial()), ("/hello", &*scene.client_serial));
}

#[test]
fn a_name_that_is_not_found_and_one_that_leads_back_to_hnp() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    assert_eq!(doctor(&scene, &plain(&scene), &[]).state("resolve", MANAGER_NAME), "ok", "the control");
    let _dns = Dns::start(&scene);
    let config = with_upstream(&scene, "https://nowhere.hnp.test:443");
    let found = row(&scene, &config, ("upstream_name_not_found", 502), "has no address");
    let resolve = found.one("resolve", "nowhere.hnp.test");
    assert_eq!(
        (&resolve["reason"], &resolve["next"]),
        (&"upstream_name_not_found".into(), &"getent ahosts nowhere.hnp.test".into())
    );
    for area in ["tcp", "tls", "certificate", "client-auth", "request"] {
        assert_eq!(found.state(area, ""), "skipped", "{area}");
    }
    scene.add_host("loop.hnp.test", &[IpAddr::from([169, 254, 77, 5])]);
    let found = doctor(&scene, &with_upstream(&scene, "https://loop.hnp.test:443"), &[]);
    assert_eq!(found.one("resolve", "loop.hnp.test")["reason"], "upstream_unreachable");
    assert!(found.detail("resolve", "loop.hnp.test").contains("169.254.77.5 lies in the range"), "{found:?}");
}

#[test]
fn nobody_listens_and_somebody_who_speaks_no_tls() {
    let scene = Scene::for_test();
    let found = doctor(&scene, &with_upstream(&scene, "https://manager.hnp.test:4444"), &[]);
    assert_eq!(found.one("tcp", &MANAGER4.to_string())["reason"], "upstream_refused");
    assert_eq!((found.state("tls", ""), found.exit()), ("skipped".into(), 1));
    let silent = Manager::start(&scene, Setup::new("silent", 81).service(Service::Silent));
    let route = Route::strict("manager", DESTINATIONS, "https://198.18.0.9:81").with(IDENTITY, TRUST);
    let config = scene.config().route(route.set("timeouts", "{connect: 1s, tls: 1s}"));
    let found = doctor(&scene, &config, &[]);
    assert_eq!(found.one("tls", &MANAGER4.to_string())["reason"], "upstream_tls_timeout", "{found:?}");
    assert!(!silent.connections().is_empty());
}

#[test]
fn a_corporate_proxy_that_opens_tunnels_and_one_that_does_not() {
    const PASSWORD: &str = "geheim";
    let scene = Scene::for_test();
    let corporate = Corporate::lay(&scene);
    let leaf = scene.servers.server(&[MANAGER_NAME, INSIDE_NAME]);
    let manager = Manager::strict(&scene, "manager", 80, &leaf, &scene.clients);
    let setup = SquidSetup { credentials: Some(("node", PASSWORD)), ..SquidSetup::default() };
    let _squid = Squid::start(&scene, &corporate, 3128, &setup);
    let through = |url: &str| {
        let route =
            Route::strict("manager", DESTINATIONS, "https://inside.hnp.test:80").with(IDENTITY, TRUST);
        let mut config = scene.config().route(route.set("upstream_proxy", "corp"));
        config.upstream_proxies = format!("corp: {{url: \"{url}\"}}");
        let found = doctor(&scene, &config, &["--path", "/hello"]);
        assert!(!format!("{found:?}").contains(PASSWORD), "{found:?}");
        found
    };
    let found = through(&format!("http://node:{PASSWORD}@{PROXY_NAME}:3128"));
    assert_eq!((found.bad(), found.state("proxy", PROXY_NAME)), (Vec::new(), "ok".into()), "{found:?}");
    assert_eq!(found.one("request", "GET /hello")["facts"]["status"], 200);
    assert_eq!(manager.request_count(), 1);
    let found = through(&format!("http://node:not-{PASSWORD}@{PROXY_NAME}:3128"));
    assert_eq!(found.bad(), [("proxy".to_owned(), "proxy_authentication_required".to_owned())]);
    assert_eq!(found.state("request", ""), "skipped");
    let found = through(&format!("http://{PROXY_NAME}:3999"));
    assert_eq!(found.bad(), [("proxy".to_owned(), "proxy_unreachable".to_owned())]);
    assert_eq!((found.exit(), manager.request_count()), (1, 1));
}

#[test]
fn opaque_routes_and_tunnels_are_looked_at_as_far_as_they_go() {
    let scene = Scene::for_test();
    let echo = |name: &str, port, clients: &Ca| {
        let setup = Setup::new(name, port).service(Service::Echo);
        Manager::start(&scene, setup.tls(Mode::Strict, &scene.server, clients))
    };
    let (taking, refusing) =
        (echo("taking", 9000, &scene.clients), echo("refusing", 9001, &Ca::new("others")));
    let opaque = |port: u16| {
        let upstream = format!("https://manager.hnp.test:{port}");
        let route = Route::opaque("manager", &["198.18.0.9:9000"], &upstream).with(IDENTITY, TRUST);
        doctor(&scene, &scene.config().route(route), &[])
    };
    let found = opaque(9000);
    assert_eq!((found.bad(), found.state("request", "a connection")), (Vec::new(), "ok".into()), "{found:?}");
    assert_eq!(found.one("client-auth", "without a certificate")["facts"]["mode"], "strict", "{found:?}");
    let found = opaque(9001);
    assert_eq!(
        found.one("client-auth", "our certificate")["reason"],
        "client_certificate_refused",
        "{found:?}"
    );
    assert_eq!(
        (taking.payload_received(), refusing.payload_received()),
        (0, 0),
        "opaque bytes are pods' to send"
    );

    let tunnel = |name: &str| {
        let route = Route::tunnel("manager", DESTINATIONS, "https://manager.hnp.test:9000");
        let route = route.set("tunnel", &format!("{{names: [{name}]}}"));
        doctor(&scene, &scene.config().route(route), &[])
    };
    let found = tunnel(MANAGER_NAME);
    assert_eq!(
        (found.bad(), found.state("certificate", &MANAGER4.to_string())),
        (Vec::new(), "ok".into()),
        "{found:?}"
    );
    assert!(found.findings().iter().all(|one| one["area"] != "identity" && one["area"] != "request"));
    assert_eq!(tunnel("other.hnp.test").state("certificate", &MANAGER4.to_string()), "degraded");
}

#[test]
fn a_wrong_command_line_is_told_from_a_bad_route() {
    let scene = Scene::for_test();
    let config = plain(&scene);
    let exit = |arguments: &[&str]| run(Build::Ordinary, &scene, &config, arguments).status.code();
    let unknown = run(Build::Ordinary, &scene, &config, &["--route", "nobody"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown}");
    assert!(unknown.stderr.contains("there are manager"), "{unknown}");
    assert_eq!(exit(&["--path", "/"]), Some(2), "a path without a route");
    for path in ["hello", "/with blank", "/a\r\nx: y", "/#"] {
        assert_eq!(exit(&["--route", "manager", "--path", path]), Some(2), "{path:?}");
    }
    assert_eq!(exit(&["--route", "manager"]), Some(1), "there is no manager");
    let manager = scene.strict_manager();
    assert_eq!(exit(&["--route", "manager", "--head", "--path", "/hello"]), Some(0), "the control");
    assert_eq!(manager.last_request().map(|request| request.method), Some("HEAD".into()));
    let failing = doctor(&scene, &config, &["--path", "/status/500", "--path", "/status/403"]);
    assert_eq!((failing.state("request", "/status/500"), failing.exit()), ("bad".into(), 1));
    assert_eq!(failing.state("request", "/status/403"), "degraded");
}
