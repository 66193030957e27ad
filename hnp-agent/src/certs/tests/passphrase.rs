//! Keys that openssl has encrypted: a CA's issues, a leaf's is compared and shown, with the passphrase and not without.

use std::path::Path;
use std::process::Command;

use super::*;

const PASSPHRASE: &str = "correct horse";

/// As a person would, in place.
fn encrypt(key: &Path, passphrase: &str) {
    let plain = key.with_extension("plain");
    std::fs::rename(key, &plain).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["pkcs8", "-topk8", "-passout"]).arg(format!("pass:{passphrase}"));
    let outcome = openssl.arg("-in").arg(plain).arg("-out").arg(key).output().unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
}

#[test]
fn an_encrypted_ca_issues_with_its_passphrase_only() {
    let scene = Scene::new(None);
    let [certificate, key, passphrase] = ["ca.crt", "ca.key", "passphrase"].map(|file| scene.path(file));
    encrypt(&key, PASSPHRASE);
    let now = SystemTime::now();
    let load = |passphrase: Option<&Path>| Authority::load(&certificate, &key, passphrase, now);
    let said = |passphrase: Option<&Path>| load(passphrase).unwrap_err().to_string();
    let without = said(None);
    assert!(without.contains("ca.key: the key in line 1 is encrypted"), "{without}");
    assert!(without.contains("--passphrase-file"), "{without}");
    // A file that is missing is no missing CA.
    assert!(said(Some(&passphrase)).contains("passphrase: cannot be read"));
    for (content, expected) in [("", "is empty"), ("another\n", "does not open the key")] {
        std::fs::write(&passphrase, content).unwrap();
        let wrong = said(Some(&passphrase));
        assert!(wrong.contains(expected) && !wrong.contains("another"), "{wrong}");
    }
    std::fs::write(&passphrase, format!("{PASSPHRASE}\n")).unwrap();
    let ca = load(Some(&passphrase)).unwrap();
    let issued = ca.issue(&leaf(true, false, &[]), now).unwrap();
    scene.write("client", &issued);
    assert!(scene.question("client").answer().ok);
    // It renews itself, and its key stays as it is.
    let root = Authority::load_to_renew(&certificate, &key, Some(&passphrase)).unwrap();
    let renewed = renew(&certificate, &scene.chain("ca"), &root, SAME, now).unwrap();
    assert!(renewed.key_pem.is_none());
    assert!(!format!("{ca:?}").contains(PASSPHRASE));
}

#[test]
fn an_encrypted_key_is_compared_and_shown_with_its_passphrase_only() {
    let scene = Scene::new(None);
    scene.issue("ca", "client", leaf(true, false, &[])).unwrap();
    let [key, right, wrong] = ["client.key", "right", "wrong"].map(|file| scene.path(file));
    encrypt(&key, PASSPHRASE);
    std::fs::write(&right, PASSPHRASE).unwrap();
    std::fs::write(&wrong, "another").unwrap();
    let ask = |file: Option<&Path>| {
        Question { passphrase_file: file.map(Path::to_owned), ..scene.question("client") }.answer()
    };
    assert!(ask(Some(&right)).ok);
    for (file, fix) in [(None, "--passphrase-file FILE"), (Some(&*wrong), "this key's passphrase")] {
        let answer = ask(file);
        assert_eq!(failed(&answer), [("key", Some("identity_unavailable"))]);
        assert!(answer.checks[1].fix.as_deref().unwrap().contains(fix), "{:?}", answer.checks[1]);
    }
    let files = ["client.crt", "client.key"].map(|file| scene.path(file));
    let look = |file: Option<&Path>| inspect(&files, file, SystemTime::now()).unwrap().remove(1).what;
    let What::PrivateKey(facts) = look(Some(&right)) else { panic!("{:?}", look(Some(&right))) };
    assert_eq!((&*facts.key, facts.belongs_to.len()), ("P-256", 1));
    assert!(matches!(look(None), What::EncryptedPrivateKey), "the control");
    let What::Broken { why } = look(Some(&wrong)) else { panic!("{:?}", look(Some(&wrong))) };
    assert!(why.contains("does not open the key") && !why.contains("another"), "{why}");
}
