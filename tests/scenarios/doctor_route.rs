//! `hnp-agent doctor --route` names the cause of each row of the usual table of failures of mutual TLS, under the
//! reason that the agent's own access line has for it, and finds nothing bad where nothing is; whom it cannot verify
//! it sends nothing.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use hnp_tests::agent::{Agent, CAPABILITIES, Config, Route};
use hnp_tests::client::{self, RawCase};
use hnp_tests::corporate::{Corporate, INSIDE_NAME, PROXY_NAME, Squid, SquidSetup};
use hnp_tests::dns::Dns;
use hnp_tests::manager::{Http2, Manager, Mode, Service, Setup};
use hnp_tests::nginx::Nginx;
use hnp_tests::openssl_peer::{OpensslPeer, Version};
use hnp_tests::pki::{self, Ca, Leaf, Spec};
use hnp_tests::poll::eventually;
use hnp_tests::process::Finished;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST};
use hnp_tests::tools;
use hnp_tests::topology::{BLACK_HOLE4, MANAGER_NAME, MANAGER4, MANAGER6, OTHER4, Pod};
use serde_json::Value;

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
    let text = run(&scene, &plain(&scene), &["--route", "manager", "--path", "/hello?key=geheim"]);
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
fn refused_in_strict_because_there_is_no_certificate() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let healthy = doctor(&scene, &plain(&scene), &[]);
    assert_eq!(healthy.state("identity", IDENTITY), "ok", "the control");
    fs::write(&scene.client.key, "nothing\n").expect("our own file");
    let found = row(&scene, &plain(&scene), "identity_unavailable", 503);
    let identity = found.one("identity", IDENTITY);
    assert_eq!((&identity["state"], &identity["reason"]), (&"bad".into(), &"identity_unavailable".into()));
    assert!(identity["detail"].as_str().is_some_and(|detail| detail.contains("client.key")), "{identity}");
    assert!(identity["next"].as_str().is_some_and(|next| next.starts_with("hnp-agent certs inspect ")));
    assert_eq!(found.one("client-auth", "without a certificate")["facts"]["mode"], "strict");
    assert_eq!(found.state("client-auth", "our certificate"), "skipped");
    assert_eq!(found.state("request", "requests"), "skipped");
    let with = manager.requests().into_iter().filter(|request| request.tls.is_some());
    assert_eq!(with.count(), 1, "of the control");
}

#[test]
fn our_certificate_is_not_signed_by_a_ca_that_the_manager_trusts() {
    let scene = Scene::for_test();
    let others = Ca::new("another clients' CA");
    let path = others.write(scene.dir(), "others");
    let late = OpensslPeer::start(&scene, 80, Version::Tls13, &scene.server, &others);
    let found = row(&scene, &plain(&scene), "client_certificate_refused", 502);
    // Python's ssl does not say whose certificates it would take.
    refused_by_the_manager(&found, &["CN=hnp test clients"]);
    let seen = late.connections();
    assert!(seen.iter().all(|one| one["bytes"] == 0), "{seen:?}");
    let _nginx = Nginx::start(&scene, 443, &scene.server, &path);
    let found = doctor(&scene, &with_upstream(&scene, "https://manager.hnp.test:443"), &[]);
    refused_by_the_manager(&found, &["CN=another clients' CA", "CN=hnp test clients"]);
    assert_eq!(found.state("client-auth", "what is asked for"), "degraded");
}

/// The names that have to be compared are there.
#[track_caller]
fn refused_by_the_manager(found: &Found, names: &[&str]) {
    assert_eq!(found.exit(), 1, "{found:?}");
    let ours = found.one("client-auth", "our certificate");
    assert_eq!((&ours["state"], &ours["reason"]), (&"bad".into(), &"client_certificate_refused".into()));
    for name in names {
        assert!(ours["detail"].as_str().is_some_and(|detail| detail.contains(name)), "{name} in {ours}");
    }
    assert_eq!(found.one("client-auth", "without a certificate")["facts"]["mode"], "strict", "{found:?}");
    assert!(found.bad().iter().all(|(_, reason)| reason == "client_certificate_refused"), "{found:?}");
}

#[test]
fn the_managers_certificate_is_not_signed_by_a_trusted_ca() {
    let found = certificate("upstream_certificate_unknown_ca", |scene| {
        let leaf = Ca::new("somebody else").server(&[MANAGER_NAME]);
        assert_ne!(leaf.serial, scene.server.serial);
        leaf
    });
    let detail = found.detail("certificate", &MANAGER4.to_string());
    assert!(
        detail.contains("issuer \"O=Example ORG,CN=somebody else\""),
        "the root that is needed: {detail}"
    );
}

#[test]
fn an_intermediate_is_missing() {
    let scene = Scene::for_test();
    let whole = scene.servers.intermediate("middle").server(&[MANAGER_NAME]);
    let end = "-----END CERTIFICATE-----\n";
    let (leaf, _) = whole.chain_pem.split_once(end).expect("PEM");
    let alone = Leaf {
        chain_pem: format!("{leaf}{end}"),
        key_pem: whole.key_pem.clone(),
        serial: whole.serial.clone(),
    };
    let _whole = Manager::strict(&scene, "whole", 80, &whole, &scene.clients);
    let found = doctor(&scene, &plain(&scene), &[]);
    assert_eq!(found.bad(), Vec::new(), "the control: {found:?}");
    let certificate = found.one("certificate", &MANAGER4.to_string());
    assert_eq!(certificate["facts"]["certificates"].as_array().map(Vec::len), Some(2), "{certificate}");
    let _alone = Manager::strict(&scene, "alone", 81, &alone, &scene.clients);
    let found = doctor(&scene, &with_upstream(&scene, "https://manager.hnp.test:81"), &[]);
    let certificate = found.one("certificate", &MANAGER4.to_string());
    assert_eq!(certificate["reason"], "upstream_certificate_unknown_ca");
    let detail = certificate["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("CN=middle") && detail.contains("intermediate"), "{detail}");
}

#[test]
fn the_identity_does_not_match() {
    let found = certificate("upstream_certificate_name", |scene| {
        scene.servers.server(&["other.hnp.test", "third.hnp.test"])
    });
    let certificate = found.one("certificate", &MANAGER4.to_string());
    let detail = certificate["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("is for DNS:other.hnp.test, DNS:third.hnp.test, and manager.hnp.test is expected"),
        "{detail}"
    );
    assert!(certificate["next"].as_str().is_some_and(|next| next.contains("`server_name`")), "{certificate}");
}

#[test]
fn the_managers_certificate_has_expired() {
    let found = certificate("upstream_certificate_expired", |scene| {
        scene.servers.issue(&Spec::server(&[MANAGER_NAME]).expired())
    });
    let certificate = found.one("certificate", &MANAGER4.to_string());
    assert!(
        certificate["detail"].as_str().is_some_and(|detail| detail.contains("has expired, at 2021-01-01"))
    );
    assert_eq!(certificate["facts"]["certificates"][0]["state"], "expired");
    // Ours is valid now: the clock is the lesser suspect.
    assert_eq!(found.state("clock", "this node's"), "degraded");
}

#[test]
fn where_neither_certificate_is_valid_yet_the_clock_is_the_suspect() {
    let scene = Scene::for_test();
    scene.clients.issue(&Spec::client("from 2080 on").not_yet_valid()).write(scene.dir(), "client");
    let leaf = scene.servers.issue(&Spec::server(&[MANAGER_NAME]).not_yet_valid());
    let _manager = Manager::strict(&scene, "manager", 80, &leaf, &scene.clients);
    let found = doctor(&scene, &plain(&scene), &[]);
    assert_eq!(found.exit(), 1);
    assert!(found.detail("certificate", &MANAGER4.to_string()).contains("becomes valid only at 2080-01-01"));
    assert!(found.detail("identity", IDENTITY).contains("becomes valid only at 2080-01-01"));
    let clock = found.one("clock", "this node's");
    assert_eq!(clock["state"], "bad");
    assert!(clock["detail"].as_str().is_some_and(|detail| detail.contains("the clock is wrong")), "{clock}");
}

#[test]
fn our_certificate_has_expired() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    assert_eq!(doctor(&scene, &plain(&scene), &[]).bad(), Vec::new(), "the control");
    scene.clients.issue(&Spec::client("old").expired()).write(scene.dir(), "client");
    let found = row(&scene, &plain(&scene), "client_certificate_refused", 502);
    for (area, what) in [("identity", IDENTITY), ("client-auth", "our certificate")] {
        let one = found.one(area, what);
        assert_eq!((&one["state"], &one["reason"]), (&"bad".into(), &"client_certificate_refused".into()));
        assert!(
            one["detail"].as_str().is_some_and(|detail| detail.contains("has expired at 2021-01-01")),
            "{one}"
        );
    }
}

#[test]
fn our_certificate_is_not_for_clients() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    scene.clients.issue(&Spec::server(&["client.hnp.test"])).write(scene.dir(), "client");
    let found = row(&scene, &plain(&scene), "client_certificate_refused", 502);
    let bad = |one: &&Value| one["area"] == "identity" && one["state"] == "bad";
    let identity = found.findings().iter().find(bad).expect("a finding");
    let detail = identity["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("extendedKeyUsage does not have clientAuth"), "{identity}");
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
fn clocks_that_differ_are_told_by_the_date_of_an_answer() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    let at = |when: &str| {
        let date = tools::run(scene.dir(), "date", &["-u", "-d", when, "+%a,+%d+%b+%Y+%H:%M:%S+GMT"]);
        doctor(&scene, &plain(&scene), &["--path", &format!("/dated?date={}", date.trim())])
    };
    let clock = |found: &Found| found.one("clock", "this node's and the upstream's").clone();
    let now = clock(&at("now"));
    assert_eq!(now["state"], "ok", "the control: {now}");
    let (ahead, behind) = (clock(&at("2 hours")), clock(&at("2 hours ago")));
    assert_eq!((&ahead["state"], &behind["state"]), (&"degraded".into(), &"degraded".into()));
    assert!(
        ahead["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("is 119 min behind") || detail.contains("is 2 h behind")),
        "{ahead}"
    );
    assert!(behind["detail"].as_str().is_some_and(|detail| detail.contains("is 2 h ahead of")), "{behind}");
    // By a clock so wrong our certificate is not valid, which is why such a manager refuses it.
    let found = at("1970-01-02");
    let wrong = clock(&found);
    assert_eq!(
        (&wrong["state"], &wrong["reason"]),
        (&"bad".into(), &"client_certificate_refused".into()),
        "{wrong}"
    );
    assert_eq!(found.exit(), 1);
}

#[test]
fn one_pod_works_and_another_does_not() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let logs = scene.path("pod-logs");
    let (carried, other) = (scene.pod(), scene.pod());
    for (pod, namespace) in [(&carried, "production"), (&other, "legacy")] {
        // What kubelet does before it starts a pod's first container.
        fs::create_dir_all(logs.join(format!("{namespace}_a_{}", pod.uid)))
            .expect("the world's directory is ours");
    }
    let capture = |route: Route| {
        let mut config = scene.config().route(route);
        config.capture = format!("pod_logs: {}", logs.display());
        config
    };
    let found = doctor(&scene, &capture(scene.route()), &[]);
    assert_eq!(found.state("pods", "of every namespace"), "ok", "the control");
    manager.forget();

    let route = scene.route().set("overrides", "[{namespaces: [legacy], enforcement: observe}]");
    let config = capture(route);
    let _agent = Agent::start(&scene, &config);
    let ask = |pod: &Pod| {
        let case = RawCase { quiet_ms: 20_000, ..RawCase::new(get("/hello")) };
        client::raw(pod, (MANAGER4, 80), vec![case]).remove(0).status()
    };
    eventually(Duration::from_secs(20), "the kernel knows who is let off", || ask(&other) == Some(400));
    assert_eq!(ask(&carried), Some(200));
    let found = doctor(&scene, &config, &[]);
    let pods = found.one("pods", "not all of them");
    assert_eq!(pods["state"], "degraded");
    let detail = pods["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("namespaces legacy") && detail.contains("present no certificate"), "{detail}");
    assert!(pods["next"].as_str().is_some_and(|next| next.starts_with("hnp-agent observed")), "{pods}");
    assert_eq!(found.one("client-auth", "without a certificate")["facts"]["mode"], "strict");
    assert_eq!(
        (found.state("pods", "on this node"), found.exit()),
        ("ok".into(), 0),
        "the way itself is in order"
    );
}

#[test]
fn one_address_of_several_is_the_bad_one() {
    let scene = Scene::for_test();
    scene.add_host("both.hnp.test", &[MANAGER4.into(), OTHER4.into(), BLACK_HOLE4.into()]);
    let leaf = scene.servers.server(&["both.hnp.test"]);
    let old = scene.servers.issue(&Spec::server(&["both.hnp.test"]).expired());
    let on = |name: &str, addr: std::net::Ipv4Addr, leaf: &Leaf| {
        let setup = Setup::new(name, 81).on(&[addr.into()]);
        Manager::start(&scene, setup.tls(Mode::Strict, leaf, &scene.clients))
    };
    let (_good, _old) = (on("good", MANAGER4, &leaf), on("old", OTHER4, &old));
    let found = doctor(&scene, &with_upstream(&scene, "https://both.hnp.test:81"), &[]);
    assert_eq!(found.state("certificate", &MANAGER4.to_string()), "ok", "{found:?}");
    let old = found.one("certificate", &OTHER4.to_string());
    assert_eq!((&old["state"], &old["reason"]), (&"bad".into(), &"upstream_certificate_expired".into()));
    let silent = found.one("tcp", &BLACK_HOLE4.to_string());
    assert_eq!(
        (&silent["state"], &silent["reason"]),
        (&"degraded".into(), &"upstream_connect_timeout".into())
    );
}

#[test]
fn a_name_that_is_not_found_and_one_that_leads_back_to_hnp() {
    let scene = Scene::for_test();
    let _manager = scene.strict_manager();
    assert_eq!(doctor(&scene, &plain(&scene), &[]).state("resolve", MANAGER_NAME), "ok", "the control");
    let _dns = Dns::start(&scene);
    let config = with_upstream(&scene, "https://nowhere.hnp.test:443");
    let found = row(&scene, &config, "upstream_name_not_found", 502);
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
    let setup = SquidSetup { credentials: Some(("node", PASSWORD)), tls: None };
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
    let exit = |arguments: &[&str]| run(&scene, &config, arguments).status.code();
    let unknown = run(&scene, &config, &["--route", "nobody"]);
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

/// A manager whose certificate must not be accepted gets nothing, neither a request nor our certificate; doctor and
/// the access line have the same reason; its twin with the right one is in order.
#[track_caller]
fn certificate(reason: &str, issue: impl Fn(&Scene) -> Leaf) -> Found {
    let scene = Scene::for_test();
    let good = scene.strict_manager();
    let found = doctor(&scene, &plain(&scene), &[]);
    assert_eq!((found.bad(), found.exit()), (Vec::new(), 0), "the control: {found:?}");
    drop(good);
    let setup = Setup::new("impostor", 80).tls(Mode::Loose, &issue(&scene), &scene.clients);
    let impostor = Manager::start(&scene, setup);
    let found = row(&scene, &plain(&scene), reason, 502);
    let certificate = found.one("certificate", &MANAGER4.to_string());
    assert_eq!((&certificate["state"], &certificate["reason"]), (&"bad".into(), &reason.into()), "{found:?}");
    assert!(found.bad().iter().all(|(_, bad)| bad == reason), "nothing else is wrong: {found:?}");
    assert_eq!(
        (found.state("client-auth", ""), found.state("request", "")),
        ("skipped".into(), "skipped".into())
    );
    assert_eq!((impostor.request_count(), impostor.payload_received()), (0, 0));
    let handshakes = impostor.connections().into_iter().filter_map(|connection| connection.tls);
    assert_eq!(handshakes.filter(|tls| tls.client.is_some()).count(), 0, "our certificate was never shown");
    found
}

/// What the agent says of a pod's request, in its answer, its log and its metric, and what doctor says beside it:
/// the same reason.
#[track_caller]
fn row(scene: &Scene, config: &Config, reason: &str, status: u16) -> Found {
    let pod = scene.pod();
    let ask = || {
        let case = RawCase { quiet_ms: 20_000, ..RawCase::new(get("/hello")) };
        let answer = client::raw(&pod, (MANAGER4, 80), vec![case]).remove(0);
        (answer.status(), answer.text())
    };
    let agent = if reason == "identity_unavailable" {
        // It is not ready, and carries what it can: nothing.
        let agent = Agent::spawn(scene.agent_place(), config, CAPABILITIES);
        eventually(Duration::from_secs(20), "the agent captures", || ask().0 == Some(status));
        agent
    } else {
        Agent::start(scene, config)
    };
    let (answered, text) = ask();
    assert!(answered == Some(status) && text.contains(reason), "{text}");
    let line = agent.access_line_with(reason);
    assert_eq!((&line["route"], &line["status"]), (&"manager".into(), &status.into()), "{line}");
    assert!(agent.metrics().sum("hnp_requests", &[("reason", reason), ("route", "manager")]) >= 1.0);
    let found = doctor(scene, config, &[]);
    assert_eq!(found.exit(), 1, "{found:?}");
    assert!(found.bad().iter().any(|(_, bad)| bad == reason), "{reason}: {found:?}");
    agent.stop(Duration::from_secs(20));
    found
}

/// What was found.
#[derive(Debug)]
struct Found {
    json: Value,
    code: Option<i32>,
}

impl Found {
    fn exit(&self) -> i32 {
        self.code.unwrap_or(-1)
    }

    fn findings(&self) -> &[Value] {
        self.json["findings"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The first finding of an area whose subject contains this.
    #[track_caller]
    fn one(&self, area: &str, what: &str) -> &Value {
        let is = |one: &&Value| {
            one["area"] == area && one["what"].as_str().is_some_and(|text| text.contains(what))
        };
        self.findings().iter().find(is).unwrap_or_else(|| panic!("{area} {what}: {self:?}"))
    }

    #[track_caller]
    fn state(&self, area: &str, what: &str) -> String {
        self.one(area, what)["state"].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn detail(&self, area: &str, what: &str) -> String {
        self.one(area, what)["detail"].as_str().unwrap_or_default().to_owned()
    }

    /// Area and reason of all that is bad.
    fn bad(&self) -> Vec<(String, String)> {
        let word = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let bad = self.findings().iter().filter(|one| one["state"] == "bad");
        bad.map(|one| (word(one, "area"), word(one, "reason"))).collect()
    }
}

#[track_caller]
fn doctor(scene: &Scene, config: &Config, more: &[&str]) -> Found {
    let arguments = [&["--route", "manager", "--json"], more].concat();
    let finished = run(scene, config, &arguments);
    let json = serde_json::from_str(&finished.text()).unwrap_or_else(|error| panic!("{error}: {finished}"));
    Found { json, code: finished.status.code() }
}

fn run(scene: &Scene, config: &Config, arguments: &[&str]) -> Finished {
    let path = scene.path("doctor.yaml");
    fs::write(&path, config.to_yaml()).expect("the world's directory is ours");
    let file = path.to_string_lossy();
    Agent::tool(scene, &[&["doctor", "--config", &*file], arguments].concat())
}

fn plain(scene: &Scene) -> Config {
    scene.config().route(scene.route())
}

/// For an address, the name that the certificate has.
fn with_upstream(scene: &Scene, upstream: &str) -> Config {
    let mut route = Route::strict("manager", DESTINATIONS, upstream).with(IDENTITY, TRUST);
    if upstream.contains("198.18.") {
        route = route.set("server_name", MANAGER_NAME);
    }
    scene.config().route(route.set("timeouts", "{connect: 2s}"))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n")
}
