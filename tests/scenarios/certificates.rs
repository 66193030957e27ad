//! What `hnp-agent certs` makes is taken by whoever speaks TLS, and what others make is taken by it; both are refused
//! where they should be.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use hnp_tests::agent::{self, Agent, Config, Route};
use hnp_tests::client::{self, RawCase};
use hnp_tests::nginx::Nginx;
use hnp_tests::pki::{self, Files};
use hnp_tests::poll::eventually;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::tls_peers::{Client, Server, Side, pair};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4};
use serde_json::Value;

#[test]
fn two_commands_replace_the_vendors_recipe() {
    let scene = Scene::for_test();
    let [ours, strangers] = ["ours", "strangers"].map(|name| scene.path(name));
    for dir in [&ours, &strangers] {
        fs::create_dir(dir).expect("the world's directory is ours");
        certs(dir, &["init-ca"]);
        certs(dir, &["issue", "client"]);
        assert_eq!(
            listed(dir),
            ["ca.crt 0644", "ca.key 0600", "client.crt 0644", "client.key 0600"],
            "no more and no less than the recipe's results"
        );
    }
    let nginx = Nginx::start(&scene, 80, &scene.server, &ours.join("ca.crt"));
    let answer = presented(&scene, &pair(&ours, "client"));
    assert!(answer.starts_with("SUCCESS|") && answer.contains("CN=client"), "{answer}");
    // The control: nginx does look.
    let answer = presented(&scene, &pair(&strangers, "client"));
    assert!(answer.contains("SSL certificate error"), "{answer}");
    let seen = nginx.requests(2);
    assert!(seen[0].starts_with("SUCCESS|") && seen[1].starts_with("FAILED"), "{seen:?}");
}

/// A CA whose key openssl has encrypted issues and renews with its passphrase, and a server that looks takes the result.
#[test]
fn a_ca_behind_a_passphrase_issues_for_a_server_that_looks() {
    let scene = Scene::for_test();
    let dir = scene.path("encrypted");
    fs::create_dir(&dir).expect("the world's directory is ours");
    certs(&dir, &["init-ca"]);
    fs::write(dir.join("passphrase"), "correct horse\n").expect("our own directory");
    let encrypt = |name: &str| {
        let (plain, key) = (format!("{name}.plain"), format!("{name}.key"));
        fs::rename(dir.join(&key), dir.join(&plain)).expect("our own directory");
        let options = ["pkcs8", "-topk8", "-passout", "file:passphrase", "-in", &plain, "-out", &key];
        tools::run(&dir, "openssl", &options);
        fs::remove_file(dir.join(&plain)).expect("our own directory");
    };
    encrypt("ca");
    // The control, and what to do.
    let without = refused(&dir, &["issue", "client"]);
    assert!(without.contains("is encrypted") && without.contains("--passphrase-file"), "{without}");
    fs::write(dir.join("another"), "battery staple\n").expect("our own directory");
    let wrong = refused(&dir, &["issue", "client", "--passphrase-file", "another"]);
    assert!(wrong.contains("does not open the key") && !wrong.contains("battery"), "{wrong}");
    assert!(!dir.join("client.crt").exists() && !dir.join("client.key").exists());
    let open = ["--passphrase-file", "passphrase"];
    certs(&dir, &[&["issue", "client"], &open[..]].concat());
    let nginx = Nginx::start(&scene, 80, &scene.server, &dir.join("ca.crt"));
    let first = presented(&scene, &pair(&dir, "client"));
    certs(&dir, &[&["renew", "client.crt"], &open[..]].concat());
    certs(&dir, &[&["renew", "ca.crt"], &open[..]].concat());
    let second = presented(&scene, &pair(&dir, "client"));
    assert!(first.starts_with("SUCCESS|") && second.starts_with("SUCCESS|"), "{first} {second}");
    assert_eq!(nginx.requests(2).len(), 2);
    // The leaf's own key.
    encrypt("client");
    let key = fs::read(dir.join("client.key")).expect("written by openssl");
    certs(&dir, &[&["verify", "client.crt", "--key", "client.key"], &open[..]].concat());
    certs(&dir, &[&["inspect", "client.crt", "client.key"], &open[..]].concat());
    fs::rename(dir.join("ca.key"), dir.join("root.key")).expect("our own directory");
    let renewed = ["renew", "client.crt", "--new-key", "--ca-key", "root.key"];
    let refusal = refused(&dir, &[&renewed[..], &open[..]].concat());
    assert!(refusal.contains("without a passphrase"), "{refusal}");
    assert_eq!(fs::read(dir.join("client.key")).expect("it is there"), key, "as it was");
}

#[test]
fn nothing_is_overwritten_unasked() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    certs(dir, &["init-ca"]);
    certs(dir, &["issue", "client"]);
    let all = || {
        listed(dir)
            .iter()
            .map(|line| fs::read(dir.join(&line[..line.len() - 5])).expect("it is there"))
            .collect::<Vec<_>>()
    };
    let before = all();
    for again in [&["init-ca"][..], &["issue", "client"]] {
        let refused = refused(dir, again);
        assert!(refused.contains("exists already") && refused.contains("--force"), "{refused}");
    }
    fs::remove_file(dir.join("client.key")).expect("it is there");
    assert!(
        refused(dir, &["issue", "client"]).contains("client.crt: exists already"),
        "half a pair is one, too"
    );
    assert!(!dir.join("client.key").exists());
    certs(dir, &["issue", "client", "--force"]);
    let after = all();
    assert_eq!(
        (&after[..2], listed(dir).len()),
        (&before[..2], 4),
        "the CA is as it was, and nothing lies beside"
    );
    assert!(after[2] != before[2] && after[3] != before[3]);
    // Many at a time: one has its pair, the others say so.
    let racing: Vec<_> = (0..8)
        .map(|_| command(dir, &["init-ca", "--out-name", "raced"]).spawn().expect("the agent starts"))
        .collect();
    let ended: Vec<_> = racing.into_iter().map(|one| one.wait_with_output().expect("it ends")).collect();
    assert_eq!(ended.iter().filter(|one| one.status.success()).count(), 1, "{ended:?}");
    certs(dir, &["verify", "raced.crt", "--key", "raced.key", "--ca", "raced.crt"]);
    assert_eq!(listed(dir).len(), 6);
}

#[test]
fn others_take_them_on_both_sides_of_mutual_tls() {
    let scene = Scene::for_test();
    let [ours, strangers] = ["ours", "strangers"].map(|name| scene.path(name));
    for dir in [&ours, &strangers] {
        fs::create_dir(dir).expect("the world's directory is ours");
        certs(dir, &["init-ca"]);
        certs(dir, &["issue", "intermediate", "--permit-dns", "hnp.test"]);
    }
    let below = ["--ca", "intermediate.crt", "--ca-key", "intermediate.key"];
    // Ed25519 is for who offers it; curl and OpenSSL's tools do, and so do all of these.
    for (index, key) in ["p256", "rsa2048", "p384", "ed25519"].into_iter().enumerate() {
        let server = Server::ALL[index];
        let name = ["--key-type", key, "--out-name", key];
        certs(&ours, &[&["issue", "server", "--name", MANAGER_NAME], &below[..], &name].concat());
        let name = ["--key-type", key, "--out-name", &format!("{key}-client")];
        for dir in [&ours, &strangers] {
            certs(dir, &[&["issue", "client"], &below[..], &name].concat());
        }
        let root = ours.join("ca.crt");
        let port = 9000 + u16::try_from(index).expect("a few");
        let _serving = server.start(&scene, port, &Side { files: pair(&ours, key), roots: root.clone() });
        let place = scene.manager_side();
        let client_files = pair(&ours, &format!("{key}-client"));
        let good = Side { files: client_files.clone(), roots: root };
        let foreign = Side { files: pair(&strangers, &format!("{key}-client")), ..good.clone() };
        let deceived = Side { roots: strangers.join("ca.crt"), ..good.clone() };
        for client in Client::ALL {
            let answer = client.ask(&place, port, &good);
            assert!(answer.is_ok(), "{client:?} to {server:?} with {key}: {}", answer.unwrap_err());
            // The controls: the server asks whose client it is, and the client whose server.
            assert!(
                client.ask(&place, port, &foreign).is_err(),
                "{server:?} lets {client:?} in from elsewhere"
            );
            assert!(client.ask(&place, port, &deceived).is_err(), "{client:?} takes {server:?} for another");
        }
    }
}

#[test]
fn the_vendors_own_files_are_examined_and_made_better() {
    let scene = Scene::for_test();
    let dir = scene.path("vendor");
    fs::create_dir(&dir).expect("the world's directory is ours");
    let files = pki::vendor_recipe(&dir);
    let shown = json(&dir, &["inspect", "client.crt", "client.key", "ca.crt"]);
    let leaf = &shown["items"][0];
    assert_eq!((&leaf["version"], &leaf["subject"]), (&1.into(), &"CN=Client,O=Example ORG".into()));
    assert_eq!((&leaf["key_in"][0], &leaf["issuer_in"][0]), (&"client.key:1".into(), &"ca.crt:1".into()));
    let answer = json(&dir, &["verify", "client.crt", "--key", "client.key"]);
    assert_eq!(
        (&answer["ok"], &answer["checks"][0]["state"]),
        (&true.into(), &"warning".into()),
        "{answer:#}"
    );
    // Another CA of the same name is another CA.
    let other = scene.path("other");
    fs::create_dir(&other).expect("the world's directory is ours");
    pki::vendor_recipe(&other);
    let root = other.join("ca.crt");
    let answer = json(&dir, &["verify", "client.crt", "--ca", &root.to_string_lossy()]);
    let chain = answer["checks"].as_array().and_then(|all| all.iter().find(|one| one["check"] == "chain"));
    assert_eq!(chain.map(|one| &one["reason"]), Some(&"pod_certificate_unknown_ca".into()), "{answer:#}");

    // Strict verifiers take neither the version nor a CA without keyUsage.
    certs(&dir, &["issue", "server", "--name", MANAGER_NAME]);
    let side = |name: &str| Side { files: pair(&dir, name), roots: dir.join("ca.crt") };
    let place = scene.manager_side();
    let serving = Server::Openssl.start(&scene, 9000, &side("server"));
    assert!(Client::Python.ask(&place, 9000, &side("client")).is_err());
    drop(serving);
    let key = fs::read(&files.key).expect("the recipe made it");
    for file in ["client.crt", "ca.crt"] {
        certs(&dir, &["renew", file]);
    }
    assert_eq!(fs::read(&files.key).expect("it is there"), key, "the key is the same");
    let _serving = Server::Openssl.start(&scene, 9001, &side("server"));
    let answer = Client::Python.ask(&place, 9001, &side("client"));
    assert!(answer.is_ok(), "{}", answer.unwrap_err());
    let text = tools::run(&dir, "openssl", &["x509", "-in", "client.crt", "-noout", "-text"]);
    assert!(text.contains("Version: 3 ") && text.contains("O = Example ORG, CN = Client"), "{text}");
}

/// What OpenSSL makes: three CAs, and leaves of them with and without mistakes.
const OPENSSL: &str = r#"set -e
openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj /DC=corp/DC=example/CN=RSA -keyout rsa.key -out rsa.crt
openssl ecparam -name secp521r1 -genkey -noout -out p521.key
openssl req -x509 -key p521.key -days 9 -subj /CN=P-521 -out p521.crt
openssl genrsa -traditional -out pkcs1.key 2048
openssl req -x509 -key pkcs1.key -days 9 -subj /CN=RSA -out pkcs1.crt
leaf() { # name, CA, extensions
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$1.csr"
    printf '%b' "$3" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 5 -extfile "$1.ext" -out "$1.crt"
}
leaf client rsa 'extendedKeyUsage=clientAuth\nsubjectAltName=DNS:c.test\n'
leaf server rsa 'extendedKeyUsage=serverAuth\nsubjectAltName=DNS:*.s.test,IP:10.0.0.1\n'
leaf plain p521 'subjectKeyIdentifier=hash\n'
leaf deciphers rsa 'keyUsage=critical,keyEncipherment\nextendedKeyUsage=clientAuth\n'
openssl pkey -in rsa.key -aes128 -passout pass:secret -out encrypted.key
"#;

#[test]
fn openssls_certificates_are_judged_as_openssl_judges_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    tools::need("openssl");
    tools::run(dir, "sh", &["-c", OPENSSL]);
    let (mut good, mut bad) = (0, 0);
    for leaf in ["client", "server", "plain", "deciphers"] {
        for ca in ["rsa", "p521", "pkcs1"] {
            for (purpose, usage) in [("sslclient", "client"), ("sslserver", "server")] {
                // A server is asked for by a name, which is looked at elsewhere; one without is none.
                if usage == "server" && leaf == "plain" {
                    continue;
                }
                let files = [format!("{leaf}.crt"), format!("{ca}.crt")];
                let theirs = Command::new(tools::need("openssl"))
                    .args(["verify", "-purpose", purpose, "-CAfile", &files[1], &files[0]])
                    .current_dir(dir)
                    .output()
                    .expect("openssl starts");
                let ours = output(dir, &["verify", &files[0], "--ca", &files[1], "--usage", usage]);
                // OpenSSL looks at keyUsage for a purpose; the handshake would look for hnp.
                let said = String::from_utf8_lossy(&ours.stdout).into_owned();
                assert_eq!(
                    ours.status.success(),
                    theirs.status.success(),
                    "{leaf} by {ca} as {usage}: {said}{theirs:?}"
                );
                *(if ours.status.success() { &mut good } else { &mut bad }) += 1;
            }
        }
    }
    assert!(good >= 3 && bad >= 10, "both ways: {good} good, {bad} bad");
    for (name, expected) in [("x.s.test", true), ("10.0.0.1", true), ("s.test", false), ("10.0.0.2", false)] {
        let ours = output(dir, &["verify", "server.crt", "--ca", "rsa.crt", "--name", name]);
        assert_eq!(ours.status.success(), expected, "{name}: {ours:?}");
    }
    // Their CAs issue by our hand, whatever form their key has, and OpenSSL takes it.
    for ca in ["rsa", "p521", "pkcs1"] {
        let [crt, key] = ["crt", "key"].map(|suffix| format!("{ca}.{suffix}"));
        certs(dir, &["issue", "client", "--ca", &crt, "--ca-key", &key, "--out-name", "issued", "--force"]);
        tools::run(dir, "openssl", &["verify", "-purpose", "sslclient", "-CAfile", &crt, "issued.crt"]);
    }
    let said = refused(
        dir,
        &["issue", "client", "--ca", "rsa.crt", "--ca-key", "encrypted.key", "--out-name", "no"],
    );
    assert!(said.contains("is encrypted") && said.contains("openssl pkey"), "{said}");
    let said =
        refused(dir, &["issue", "client", "--ca", "rsa.crt", "--ca-key", "pkcs1.key", "--out-name", "no"]);
    assert!(said.contains("is not the key of any certificate in rsa.crt"), "{said}");
    assert!(!dir.join("no.crt").exists() && !dir.join("no.key").exists());
}

#[test]
fn a_pair_is_renewed_under_an_agent_that_serves() {
    let scene = Scene::for_test();
    let dir = scene.path("own");
    fs::create_dir(&dir).expect("the world's directory is ours");
    certs(&dir, &["init-ca"]);
    certs(&dir, &["issue", "client", "--subject", "/O=Example ORG/CN=Renewed"]);
    let nginx = Nginx::start(&scene, 80, &scene.server, &dir.join("ca.crt"));
    let files = pair(&dir, "client");
    let agent = Agent::start(&scene, &config(&scene, &files));
    let (mut asked, mut serials) = (0, vec![pki::serial_of(&files.certificate)]);
    for new_key in [true, false, true] {
        let key = fs::read(&files.key).expect("it is there");
        certs(&dir, if new_key { &["renew", "client.crt", "--new-key"] } else { &["renew", "client.crt"] });
        assert_eq!(fs::read(&files.key).expect("it is there") != key, new_key);
        let serial = pki::serial_of(&files.certificate);
        eventually(Duration::from_secs(20), "the new certificate is presented", || {
            asked += 1;
            let answer = ask(&scene);
            assert!(
                answer.starts_with("SUCCESS|") && answer.contains("CN=Renewed"),
                "{answer}\n{}",
                agent.log()
            );
            answer.to_ascii_lowercase().contains(&serial)
        });
        serials.push(serial);
    }
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 4, "each has a serial of its own");
    nginx.requests(asked);
    assert!(!agent.log().contains("ERROR"), "{}", agent.log());
    // The control: a pair that does not belong together is not taken, and is said.
    certs(&dir, &["issue", "client", "--out-name", "other"]);
    fs::copy(dir.join("other.key"), &files.key).expect("our own file");
    agent.log_line("is not the one of the first certificate");
    assert!(ask(&scene).starts_with("SUCCESS|"));
}

#[test]
fn json_and_exit_codes_are_there_for_machines() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let made = json(dir, &["init-ca"]);
    assert_eq!(
        (&made["ok"], &made["files"][0]["path"], &made["files"][0]["mode"]),
        (&true.into(), &"ca.key".into(), &"0600".into())
    );
    let made = json(dir, &["issue", "server", "--name", "a.test", "--lifetime", "1h"]);
    assert_eq!((&made["certificate"]["names"][0], &made["chain_length"]), (&"DNS:a.test".into(), &1.into()));
    let renewed = json(dir, &["renew", "server.crt"]);
    assert_ne!(renewed["certificate"]["serial"], made["certificate"]["serial"]);
    for (code, arguments) in [
        (0, &["verify", "server.crt", "--name", "a.test"][..]),
        (1, &["verify", "server.crt", "--name", "b.test"]),
        (1, &["verify", "server.crt", "--at", "+2h"]),
        (0, &["inspect", "server.crt"]),
        (1, &["inspect", "nothing.crt"]),
        (1, &["issue", "server", "--name", "a.test"]),
        (1, &["renew", "ca.crt", "--new-key"]),
    ] {
        let ended = output(dir, &[arguments, &["--json"]].concat());
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {ended:?}");
        let said: Value =
            serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        assert_eq!(said["ok"], code == 0, "{arguments:?}");
    }
    for wrong in [
        &["issue", "server", "--name", "a b"][..],
        &["issue", "client", "--lifetime", "soon"],
        &["issue"],
        &["verify"],
    ] {
        assert_eq!(output(dir, wrong).status.code(), Some(2), "{wrong:?}");
    }
}

/// Runs `hnp-agent certs` in a folder, which works.
#[track_caller]
fn certs(dir: &Path, arguments: &[&str]) -> String {
    let ended = output(dir, arguments);
    assert!(ended.status.success(), "{arguments:?}: {ended:?}");
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

/// The same, which is refused; what it says.
#[track_caller]
fn refused(dir: &Path, arguments: &[&str]) -> String {
    let ended = output(dir, arguments);
    assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {ended:?}");
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

/// The same with `--json`, whatever comes of it.
#[track_caller]
fn json(dir: &Path, arguments: &[&str]) -> Value {
    let ended = output(dir, &[arguments, &["--json"]].concat());
    serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {ended:?}"))
}

fn output(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().expect("the agent starts")
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(agent::binary());
    command.arg("certs").args(arguments).current_dir(dir).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Names and modes of a folder's files, in order.
fn listed(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry"));
    let mut all: Vec<_> = entries
        .map(|entry| {
            let mode = entry.metadata().expect("it is there").mode() & 0o7777;
            format!("{} {mode:04o}", entry.file_name().to_string_lossy())
        })
        .collect();
    all.sort();
    all
}

fn config(scene: &Scene, files: &Files) -> Config {
    let route = Route::strict("manager", DESTINATIONS, UPSTREAM).with(IDENTITY, TRUST);
    Config::new(scene).identity(IDENTITY, files).trust(TRUST, &scene.roots).route(route)
}

/// What nginx answers to an agent that presents these.
#[track_caller]
fn presented(scene: &Scene, files: &Files) -> String {
    let agent = Agent::start(scene, &config(scene, files));
    let answer = ask(scene);
    agent.stop(Duration::from_secs(10));
    Agent::clean_up(scene).ok();
    answer
}

#[track_caller]
fn ask(scene: &Scene) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
    let text = client::raw(&scene.pod(), (MANAGER4, 80), vec![RawCase::new(request)]).remove(0).text();
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or(text)
}
