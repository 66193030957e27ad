//! The certificates that users really have: the vendor's recipe gives X.509 version 1 with OpenSSL
//! 3.0, and keys come in every PEM form. All are presented, and accepted by a manager on OpenSSL.

use std::fs;
use std::path::Path;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, RawCase};
use hnp_tests::nginx::Nginx;
use hnp_tests::pki::{self, Files, Spec};
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};

#[test]
fn the_recipe_word_for_word() {
    let scene = Scene::for_test();
    let dir = scene.path("vendor");
    fs::create_dir(&dir).expect("the world's directory is ours");
    let files = pki::vendor_recipe(&dir);
    let text = tools::run(&dir, "openssl", &["x509", "-in", "client.crt", "-noout", "-text"]);
    assert!(text.contains("Version: 1 "), "this machine's openssl makes something else: {text}");
    let (agent, answer, seen) = presented(&scene, &files, &dir.join("ca.crt"));
    assert!(answer.starts_with("SUCCESS|") && answer.contains("CN=Client"), "{answer}");
    assert!(seen[0].to_ascii_lowercase().contains(&pki::serial_of(&files.certificate)), "{seen:?}");
    let warnings: Vec<String> = agent
        .log()
        .lines()
        .filter(|line| line.contains("\"WARN\"") && line.contains("hnp_agent::identity"))
        .map(str::to_owned)
        .collect();
    assert_eq!(warnings.len(), 1, "one warning: {warnings:?}");
    assert!(warnings[0].contains("version 1") || warnings[0].contains("v1"), "{warnings:?}");
}

#[test]
fn nginx_refuses_a_certificate_of_another_ca() {
    // The control of this file: nginx does look.
    let scene = Scene::for_test();
    let other = pki::Ca::new("another CA").write(scene.dir(), "other");
    let (_, answer, seen) = presented(&scene, &scene.client, &other);
    assert!(answer.contains("SSL certificate error"), "{answer}");
    assert!(seen[0].starts_with("FAILED"), "{seen:?}");
}

#[test]
fn rsa_keys_in_pkcs1_and_pkcs8() {
    forms(true, &[("traditional", &["rsa", "-traditional"]), ("pkcs8", &["pkcs8", "-topk8", "-nocrypt"])]);
}

#[test]
fn ec_keys_in_sec1_and_pkcs8() {
    forms(false, &[("sec1", &["ec"]), ("pkcs8", &["pkcs8", "-topk8", "-nocrypt"])]);
}

#[test]
fn text_around_the_pem_and_odd_file_modes() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::for_test();
    let dir = scene.dir();
    let leaf = scene.clients.client();
    let files = leaf.write(dir, "odd");
    let dump = tools::run(dir, "openssl", &["x509", "-in", "odd.crt", "-text"]);
    let crlf = |text: &str| text.replace('\n', "\r\n");
    fs::write(&files.certificate, format!("Bag Attributes\n  friendlyName: x\n{dump}trailing words\n"))
        .expect("the world's directory is ours");
    fs::write(&files.key, crlf(&format!("some words before\n{}and after", leaf.key_pem)))
        .expect("the world's directory is ours");
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o620)).expect("our own file");
    accepted(&scene, &files);
}

#[test]
fn a_chain_with_an_intermediate() {
    let scene = Scene::for_test();
    let leaf = scene.clients.intermediate("an intermediate").issue(&Spec::client("below an intermediate"));
    assert_eq!(leaf.chain().len(), 2);
    accepted(&scene, &leaf.write(scene.dir(), "chain"));
    // The control: without the intermediate nginx cannot build the chain.
    let scene = Scene::for_test();
    let leaf = scene.clients.intermediate("an intermediate").issue(&Spec::client("below an intermediate"));
    let files = leaf.write(scene.dir(), "chain");
    let first_end = leaf.chain_pem.find("-----END CERTIFICATE-----").expect("a PEM block") + 26;
    fs::write(&files.certificate, &leaf.chain_pem[..first_end]).expect("the world's directory is ours");
    let ca = scene.clients.write(scene.dir(), "clients");
    let (_, answer, _) = presented(&scene, &files, &ca);
    assert!(answer.contains("SSL certificate error"), "{answer}");
}

#[test]
fn key_and_certificate_in_one_file() {
    let scene = Scene::for_test();
    let leaf = scene.clients.client();
    let both = scene.path("both.pem");
    fs::write(&both, format!("{}{}", leaf.key_pem, leaf.chain_pem)).expect("the world's directory is ours");
    accepted(&scene, &Files { certificate: both.clone(), key: both });
}

/// Keys of one kind, converted by openssl into each form.
fn forms(rsa: bool, forms: &[(&str, &[&str])]) {
    for (form, convert) in forms {
        let scene = Scene::for_test();
        let spec = Spec::client(pki::CLIENT_NAME);
        let leaf = scene.clients.issue(&if rsa { spec.rsa() } else { spec });
        let files = leaf.write(scene.dir(), "form");
        let converted = scene.path("converted.key");
        let arguments = [*convert, &["-in", "form.key", "-out", "converted.key"]].concat();
        tools::run(scene.dir(), "openssl", &arguments);
        let first = fs::read_to_string(&converted).expect("openssl wrote it");
        let expected = match *form {
            "traditional" => "-----BEGIN RSA PRIVATE KEY-----",
            "sec1" => "-----BEGIN EC PRIVATE KEY-----",
            _ => "-----BEGIN PRIVATE KEY-----",
        };
        assert!(first.starts_with(expected), "{form}: {first}");
        accepted(&scene, &Files { key: converted, ..files });
    }
}

/// nginx accepts what the agent presents.
#[track_caller]
fn accepted(scene: &Scene, files: &Files) {
    let ca = scene.clients.write(scene.dir(), "clients");
    let (_, answer, seen) = presented(scene, files, &ca);
    assert!(answer.starts_with("SUCCESS|"), "{answer}");
    assert!(seen[0].starts_with("SUCCESS|"), "{seen:?}");
}

/// Has an agent present files to nginx; returns the agent, nginx's answer and what nginx logged.
#[track_caller]
fn presented(scene: &Scene, files: &Files, clients_ca: &Path) -> (Agent, String, Vec<String>) {
    let nginx = Nginx::start(scene, 80, &scene.server, clients_ca);
    let route = Route::strict("manager", DESTINATIONS, UPSTREAM).with(IDENTITY, TRUST);
    let config = Config::new(scene).identity(IDENTITY, files).trust(TRUST, &scene.roots).route(route);
    let check = Agent::check(&scene.agent_place(), &config);
    assert!(check.status.success(), "{check}");
    let agent = Agent::start(scene, &config);
    let request = format!("GET / HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
    let text = client::raw(&scene.pod(), (MANAGER4, 80), vec![RawCase::new(request)]).remove(0).text();
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or(text);
    (agent, body, nginx.requests(1))
}
