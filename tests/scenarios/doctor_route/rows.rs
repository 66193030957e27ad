//! The rows of the table: a strict manager, a CA that is not trusted, names, dates and clocks, pods that are let off.

use std::fs;
use std::time::{Duration, SystemTime};

use hnp_tests::agent::{Agent, Build, Route};
use hnp_tests::client::{self, RawCase};
use hnp_tests::clock::FastClock;
use hnp_tests::manager::{Manager, Mode, Setup, Shown};
use hnp_tests::nginx::Nginx;
use hnp_tests::openssl_peer::{OpensslPeer, Version};
use hnp_tests::pki::{Ca, Leaf, Spec};
use hnp_tests::poll::eventually;
use hnp_tests::scene::{IDENTITY, Scene};
use hnp_tests::tools;
use hnp_tests::topology::{BLACK_HOLE4, MANAGER_NAME, MANAGER4, OTHER4, Pod};
use serde_json::Value;

use super::{Found, assert_told, doctor, doctor_of, get, plain, row, with_upstream};

#[test]
fn refused_in_strict_because_there_is_no_certificate() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let healthy = doctor(&scene, &plain(&scene), &[]);
    assert_eq!(healthy.state("identity", IDENTITY), "ok", "the control");
    fs::write(&scene.client.key, "nothing\n").expect("our own file");
    let found = row(
        &scene,
        &plain(&scene),
        ("identity_unavailable", 503),
        "identity `manager-client` could not be loaded",
    );
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
    let found = row(&scene, &plain(&scene), ("client_certificate_refused", 502), "UnknownCA");
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
    let found = certificate("upstream_certificate_unknown_ca", "UnknownIssuer", |scene| {
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
    let found = certificate("upstream_certificate_name", "other.hnp.test", |scene| {
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
    let found = certificate("upstream_certificate_expired", "expired", |scene| {
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
    let found = row(
        &scene,
        &plain(&scene),
        ("client_certificate_refused", 502),
        "our certificate is not valid: it has expired at 2021-01-01",
    );
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
    let found = row(&scene, &plain(&scene), ("client_certificate_refused", 502), "received fatal alert");
    let bad = |one: &&Value| one["area"] == "identity" && one["state"] == "bad";
    let identity = found.findings().iter().find(bad).expect("a finding");
    let detail = identity["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("extendedKeyUsage does not have clientAuth"), "{identity}");
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

/// A node whose clock is wrong: certificates that are valid are refused, by the agent and by the manager.
#[test]
fn a_clock_that_is_wrong_is_named_beside_the_reason() {
    let scene = Scene::for_test();
    let now = SystemTime::now();
    let (hour, years) = (Duration::from_secs(3600), Duration::from_secs(10 * 365 * 86_400));
    // Half an hour more, so that spans in whole hours do not depend on seconds.
    let ahead = FastClock::at(now + 3 * hour + hour / 2, 1);
    let shown = Shown::new(&scene.server);
    let setup = Setup::new("manager", 80).tls_by(FastClock::at(now, 1), &shown, &scene.clients);
    let manager = Manager::start(&scene, setup.resuming_none());
    let mut config = scene.config().route(scene.route().set("pool_idle", "0"));
    // Each remembers by itself what time it was elsewhere.
    config.workers = 1;
    config.env.push(ahead.env());
    let mut agent = Agent::spawn_build(Build::OtherClock, scene.agent_place(), &config, false);
    agent.wait_until_ready();
    let pod = scene.pod();
    let date = tools::run(scene.dir(), "date", &["-u", "+%a,+%d+%b+%Y+%H:%M:%S+GMT"]);
    let path = format!("/dated?date={}", date.trim());
    let ask = || {
        let case = RawCase { quiet_ms: 20_000, ..RawCase::new(get(&path)) };
        let answer = client::raw(&pod, (MANAGER4, 80), vec![case]).remove(0);
        (answer.status(), answer.text())
    };
    // The control: what is valid by both clocks.
    assert_eq!(ask().0, Some(200));
    let apart = "this node's clock is 3 h ahead of the upstream's";
    let healthy = doctor_of(Build::OtherClock, &scene, &config, &["--path", &path]);
    assert!(healthy.detail("clock", "this node's and").contains(apart), "{healthy:?}");

    shown.replace(&scene.servers.issue(&Spec::server(&[MANAGER_NAME]).valid(now - hour, now + hour)));
    let (status, text) = ask();
    assert!(
        status == Some(502) && text.contains("upstream_certificate_expired") && text.contains(apart),
        "{text}"
    );
    assert_told(&agent, ("upstream_certificate_expired", 502), apart);
    let found = doctor_of(Build::OtherClock, &scene, &config, &[]);
    assert!(found.bad().iter().any(|(_, bad)| bad == "upstream_certificate_expired"), "{found:?}");
    assert!(found.detail("clock", "this node's").contains("compare the clock"), "{found:?}");

    shown.replace(&scene.server);
    let ours = scene.clients.issue(&Spec::client("valid here").valid(now + 3 * hour, now + years));
    ours.write(scene.dir(), "client");
    eventually(Duration::from_secs(20), "the manager refuses ours", || {
        ask().1.contains("client_certificate_refused")
    });
    let theirs = "by its clock our certificate is not valid: it becomes valid only at";
    let text = ask().1;
    assert!(text.contains(apart) && text.contains(theirs), "{text}");
    assert_told(&agent, ("client_certificate_refused", 502), theirs);
    let found = doctor_of(Build::OtherClock, &scene, &config, &[]);
    assert!(found.bad().iter().any(|(_, bad)| bad == "client_certificate_refused"), "{found:?}");
    assert!(
        found.detail("client-auth", "our certificate").contains("one of the two clocks is wrong"),
        "{found:?}"
    );
    assert!(found.detail("clock", "this node's").contains("compare the clocks"), "{found:?}");
    assert!(manager.connections().iter().any(|one| one.error.is_some()), "it is the manager that refuses it");
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
    let agent = Agent::start(&scene, &config);
    let ask = |pod: &Pod| {
        let case = RawCase { quiet_ms: 20_000, ..RawCase::new(get("/hello")) };
        client::raw(pod, (MANAGER4, 80), vec![case]).remove(0).status()
    };
    eventually(Duration::from_secs(20), "the kernel knows who is let off", || ask(&other) == Some(400));
    assert_eq!(ask(&carried), Some(200));
    // Such a pod never reaches the agent, which says so all the same; its refusal is the manager's.
    let line = agent.log_line("only observed for it");
    for part in ["legacy", &other.uid, "198.18.0.9:80", "presents no certificate"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(
        !agent.log().lines().any(|line| line.contains("only observed for it") && line.contains(&carried.uid))
    );
    assert!(agent.metrics().sum("hnp_kernel_verdicts", &[("verdict", "observed")]) >= 1.0);
    let dir = scene.run_dir();
    let listed = Agent::tool(&scene, &["observed", "--run-dir", &dir.to_string_lossy()]).ok();
    assert!(listed.contains("legacy") && !listed.contains("production"), "{listed}");
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

/// A manager whose certificate must not be accepted gets nothing, neither a request nor our certificate; doctor and
/// the access line have the same reason; its twin with the right one is in order.
#[track_caller]
fn certificate(reason: &str, cause: &str, issue: impl Fn(&Scene) -> Leaf) -> Found {
    let scene = Scene::for_test();
    let good = scene.strict_manager();
    let found = doctor(&scene, &plain(&scene), &[]);
    assert_eq!((found.bad(), found.exit()), (Vec::new(), 0), "the control: {found:?}");
    drop(good);
    let setup = Setup::new("impostor", 80).tls(Mode::Loose, &issue(&scene), &scene.clients);
    let impostor = Manager::start(&scene, setup);
    let found = row(&scene, &plain(&scene), (reason, 502), cause);
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
