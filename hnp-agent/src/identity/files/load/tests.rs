//! What people really have: the vendor's recipe, every form of key, files with text in them; and
//! what they have by mistake.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier;
use rustls::sign::SingleCertAndKey;
use tempfile::TempDir;

use super::*;
use crate::config::plan::{Roots, Trust};
use crate::files::testpki::{Ca, EXPIRED, NOT_YET, VALID};

/// The vendor's page, "Create a CA certificate and a client certificate", word for word (the page's
/// line breaks were lost where a backslash stood).
const VENDOR_RECIPE: &str = r#"
openssl req -x509 -sha256 -nodes -days 9999 -newkey rsa:2048 \
  -subj "/O=Example ORG/CN=CA Cert" -keyout "ca.key" -out "ca.crt"
cat << EOF > "client.cnf"
[req]
default_bits = 2048
prompt = no
default_md = sha256
x509_extensions = v3_req
distinguished_name = dn
[dn]
O = Example ORG
CN = Client
[v3_req]
# empty
EOF
openssl req -new -config "client.cnf" -nodes -out "client.csr" -keyout "client.key"
openssl x509 -req -sha256 -days 9999 -extfile client.cnf -extensions v3_req \
  -CAcreateserial -CA "ca.crt" -CAkey "ca.key" \
  -in "client.csr" -out "client.crt"
"#;

struct Scene {
    dir: TempDir,
    certificate: PathBuf,
    key: PathBuf,
    files: IdentityFiles,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [certificate, key] = ["client.crt", "client.key"].map(|name| dir.path().join(name));
        let place = IdentityPlace::Pair { certificate: certificate.clone(), key: key.clone() };
        let files = IdentityFiles { place, passphrase_file: None };
        Self { dir, certificate, key, files }
    }

    fn with(certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        let scene = Self::new();
        std::fs::write(&scene.certificate, certificate).unwrap();
        std::fs::write(&scene.key, key).unwrap();
        scene.chmod(0o600);
        scene
    }

    /// Runs a script with the machine's openssl in the scene's directory.
    fn run(&self, script: &str) {
        let out =
            Command::new("sh").args(["-e", "-c", script]).current_dir(self.dir.path()).output().unwrap();
        assert!(out.status.success(), "{script}\n{}", String::from_utf8_lossy(&out.stderr));
        self.chmod(0o600);
    }

    fn chmod(&self, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&self.key, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn load(&self) -> Result<Loaded, IdentityError> {
        load(&self.files)
    }

    /// The error's words, with the scene's directory cut out of them.
    fn error(&self) -> String {
        let error = self.load().map(|loaded| loaded.leaf).unwrap_err();
        error.to_string().replace(self.dir.path().to_str().unwrap(), "")
    }
}

#[test]
fn the_vendors_recipe_makes_version_1_which_loads_with_one_warning() {
    let scene = Scene::new();
    scene.run(VENDOR_RECIPE);
    let loaded = scene.load().unwrap();
    assert_eq!(loaded.leaf.version, 1, "this openssl makes another version: the test proves nothing");
    assert_eq!(loaded.leaf.subject, "O=Example ORG, CN=Client");
    assert_eq!(loaded.leaf.issuer, "O=Example ORG, CN=CA Cert");
    assert!(loaded.leaf.is_valid_at(SystemTime::now()));
    let path = scene.certificate.clone();
    assert_eq!(loaded.warnings, [IdentityWarning::OldVersion { path, version: 1 }]);
    let shown = loaded.warnings[0].to_string();
    assert!(shown.contains("client.crt: is an X.509 version 1 certificate"), "{shown}");
    // The control: the usual way to load it refuses it.
    let refused = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_client_auth_cert(loaded.certified_key.cert.clone(), key_der(&scene.key));
    assert!(refused.is_err());
    let serial = Command::new("openssl")
        .args(["x509", "-noout", "-serial", "-in"])
        .arg(&scene.certificate)
        .output()
        .unwrap();
    let serial = String::from_utf8(serial.stdout).unwrap().trim().to_lowercase();
    assert_eq!(serial, format!("serial={}", loaded.leaf.serial));
}

fn key_der(path: &Path) -> PrivateKeyDer<'static> {
    rustls_pki_types::pem::PemObject::from_pem_file(path).unwrap()
}

#[test]
fn openssl_accepts_the_version_1_certificate_in_a_real_handshake() {
    let scene = Scene::new();
    scene.run(VENDOR_RECIPE);
    assert_eq!(reversed_by_strict_server(&scene, &scene.load().unwrap()).unwrap(), "olleh\n");
    // The control: a certificate of another CA is refused by the same server.
    let (certificate, key) = Ca::new("another").issue("client", VALID);
    let stranger = Scene::with(certificate, key).load().unwrap();
    let refused = reversed_by_strict_server(&scene, &stranger).unwrap_err();
    assert_eq!(
        crate::trust::reason_of_io(&refused),
        hnp_common::Reason::ClientCertificateRefused,
        "{refused}"
    );
}

/// Sends "hello" to `openssl s_server`, which demands a certificate of the scene's CA and answers
/// with the line reversed.
fn reversed_by_strict_server(scene: &Scene, client: &Loaded) -> io::Result<String> {
    let ca = Ca::new("server CA");
    let (certificate, key) = ca.issue("localhost", VALID);
    for (name, text) in [("server.crt", certificate), ("server.key", key), ("server-ca.crt", ca.pem())] {
        std::fs::write(scene.dir.path().join(name), text).unwrap();
    }
    let mut server = Command::new("openssl")
        .args(
            "s_server -accept 127.0.0.1:0 -cert server.crt -key server.key -CAfile ca.crt -Verify 1"
                .split(' '),
        )
        .args("-verify_return_error -naccept 1 -rev".split(' '))
        .current_dir(scene.dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = lines.find_map(|line| line.unwrap().strip_prefix("ACCEPT ").map(str::to_owned)).unwrap();

    let roots = Roots::File(scene.dir.path().join("server-ca.crt"));
    let verifier = crate::trust::load::load(&Trust::of_roots("t".into(), roots)).unwrap().verifier;
    let answer = exchange(&address, verifier, client);
    let _ = server.kill();
    let _ = server.wait();
    answer
}

fn exchange(address: &str, verifier: Arc<dyn ServerCertVerifier>, client: &Loaded) -> io::Result<String> {
    let presented = SingleCertAndKey::from(CertifiedKey::clone(&client.certified_key));
    let config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(presented));
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = rustls::StreamOwned::new(session, socket);
    stream.write_all(b"hello\n")?;
    let mut answer = [0; 6];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn every_form_of_key_loads() {
    for (what, make_key) in [
        ("RSA, PKCS#8", "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out client.key"),
        ("RSA, PKCS#1", "openssl genrsa -traditional -out client.key 2048"),
        ("P-256, SEC1 after EC PARAMETERS", "openssl ecparam -name prime256v1 -genkey -out client.key"),
        ("P-384, SEC1", "openssl ecparam -name secp384r1 -genkey -noout -out client.key"),
        ("P-256, PKCS#8", "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out client.key"),
        ("P-384, PKCS#8", "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out client.key"),
        ("P-521, PKCS#8", "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out client.key"),
        ("Ed25519", "openssl genpkey -algorithm ED25519 -out client.key"),
    ] {
        let scene = Scene::new();
        scene.run(&format!(
            "{make_key}; openssl req -x509 -key client.key -subj /CN=x -days 9 -out client.crt"
        ));
        let loaded = scene.load().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((loaded.leaf.version, loaded.warnings.len()), (3, 0), "{what}: {:?}", loaded.warnings);
    }
}

#[test]
fn text_carriage_returns_chains_and_other_blocks_are_no_hindrance() {
    let ca = Ca::new("CA");
    let (certificate, key) = ca.issue("client", VALID);
    let chain = format!("{certificate}{}", ca.pem());
    for (what, certificate, key, length) in [
        ("a chain", chain.clone(), key.clone(), 2),
        (
            "text around",
            format!("Certificate:\n  Data: 1\n{certificate}\nthe CA:\n{}end", ca.pem()),
            key.clone(),
            2,
        ),
        ("CRLF", chain.replace('\n', "\r\n"), key.replace('\n', "\r\n"), 2),
        ("no newline at the end", certificate.trim_end().into(), key.trim_end().into(), 1),
        ("both in one file", format!("{key}{chain}"), format!("{key}{chain}"), 2),
        (
            "a DH PARAMETERS block",
            format!("-----BEGIN DH PARAMETERS-----\nMAA=\n-----END DH PARAMETERS-----\n{certificate}"),
            key.clone(),
            1,
        ),
    ] {
        let loaded = Scene::with(certificate, key).load().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(loaded.certified_key.cert.len(), length, "{what}");
    }
}

#[test]
fn openssl_text_before_the_certificate_is_ignored() {
    let scene = Scene::new();
    scene.run(VENDOR_RECIPE);
    scene.run("openssl x509 -in client.crt -text -out with-text.crt; mv with-text.crt client.crt");
    assert!(std::fs::read_to_string(&scene.certificate).unwrap().starts_with("Certificate:"));
    assert_eq!(scene.load().unwrap().leaf.version, 1);
}

#[test]
fn mistakes_are_named_with_file_block_and_what_was_expected() {
    let ca = Ca::new("CA");
    let (certificate, key) = ca.issue("client", VALID);
    let (_, other_key) = ca.issue("other", VALID);
    let not_x509 = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let old_encrypted = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n\
                         MAA=\n-----END RSA PRIVATE KEY-----\n";
    let dsa = "-----BEGIN DSA PRIVATE KEY-----\nMAA=\n-----END DSA PRIVATE KEY-----\n";
    let broken_second = format!("{certificate}-----BEGIN CERTIFICATE-----\n***\n-----END CERTIFICATE-----\n");
    let second_line = certificate.lines().count() + 1;
    for (what, certificate, key, expected) in [
        (
            "swapped",
            key.as_str(),
            certificate.as_str(),
            "/client.crt: expected a CERTIFICATE block, found PRIVATE KEY (line 1)",
        ),
        ("empty", "", &key, "/client.crt: expected a CERTIFICATE block, found no PEM block"),
        (
            "no key",
            &certificate,
            &certificate,
            "/client.key: expected a PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY block, found CERTIFICATE (line 1)",
        ),
        (
            "another key",
            &certificate,
            &other_key,
            "/client.key: the key is not the one of the first certificate in /client.crt",
        ),
        (
            "the CA first",
            &format!("{}{certificate}", ca.pem()),
            &key,
            "/client.key: the key is not the one of the first certificate in /client.crt; it belongs to a later \
             one: put that one first",
        ),
        (
            "half a key",
            &certificate,
            &key[..key.len() - 30],
            "/client.key: the PRIVATE KEY block in line 1 has no END line: the file is incomplete",
        ),
        (
            "a broken second certificate",
            &broken_second,
            &key,
            &format!("/client.crt: the CERTIFICATE block in line {second_line} is not base64"),
        ),
        ("not X.509", not_x509, &key, "/client.crt: the certificate in line 1 is not X.509:"),
        (
            "an unknown key",
            &certificate,
            dsa,
            "/client.key: the DSA PRIVATE KEY in line 1 cannot be used; expected RSA (2048 to 8192 bits), EC \
             (P-256, P-384, P-521) or Ed25519",
        ),
        (
            "an old encrypted key",
            &certificate,
            old_encrypted,
            "/client.key: the key in line 1 is encrypted in the traditional way (Proc-Type: 4,ENCRYPTED)",
        ),
    ] {
        let shown = Scene::with(certificate, key).error();
        assert!(shown.starts_with(expected), "{what}: {shown}");
        for line in key.lines().chain(other_key.lines()) {
            let material = !line.contains("---") && !line.contains(": ") && line.len() > 8;
            assert!(!material || !shown.contains(line), "{what}: key material in {shown}");
        }
    }
}

#[test]
fn keys_that_openssl_makes_and_nobody_can_use_are_named() {
    for (script, expected) in [
        (
            "openssl genpkey -algorithm RSA -aes256 -pass pass:x -out client.key",
            "/client.key: the key in line 1 is encrypted;",
        ),
        (
            "openssl genrsa -traditional -aes128 -passout pass:x -out client.key 2048",
            "/client.key: the key in line 1 is encrypted in the traditional way",
        ),
        ("openssl genrsa -out client.key 1024", "/client.key: the PRIVATE KEY in line 1 cannot be used;"),
        (
            "openssl ecparam -name secp256k1 -genkey -noout -out client.key",
            "/client.key: the EC PRIVATE KEY in line 1 cannot be used;",
        ),
    ] {
        let (certificate, key) = Ca::new("CA").issue("client", VALID);
        let scene = Scene::with(certificate, key);
        scene.run(script);
        let shown = scene.error();
        assert!(shown.starts_with(expected), "{script}: {shown}");
    }
}

#[test]
fn unreadable_files_are_named() {
    let scene = Scene::new();
    assert!(scene.error().starts_with("/client.crt: cannot be read: No such file"), "{}", scene.error());
    std::fs::create_dir(&scene.certificate).unwrap();
    let shown = scene.error();
    assert_eq!(shown, "/client.crt: cannot be read: it is not a regular file");
}

#[test]
fn dates_and_odd_modes_are_warnings() {
    let ca = Ca::new("CA");
    let warnings = |years, mode| {
        let (certificate, key) = ca.issue("client", years);
        let scene = Scene::with(certificate, key);
        scene.chmod(mode);
        scene.load().unwrap().warnings
    };
    assert!(matches!(warnings(EXPIRED, 0o600)[..], [IdentityWarning::Expired { .. }]));
    assert!(matches!(warnings(NOT_YET, 0o600)[..], [IdentityWarning::NotYetValid { .. }]));
    assert!(matches!(warnings(VALID, 0o644)[..], [IdentityWarning::KeyForAll { mode: 0o644, .. }]));
    for quiet in [0o600, 0o400, 0o440, 0o620, 0o640] {
        assert_eq!(warnings(VALID, quiet), [], "{quiet:o}");
    }
}

const PASSPHRASE: &str = "correct horse";

impl Scene {
    /// The scene's key behind [`PASSPHRASE`], as a command of OpenSSL's writes it.
    fn encrypted(how: &str) -> Self {
        let (certificate, key) = Ca::new("CA").issue("client", VALID);
        let mut scene = Self::with(certificate, key);
        scene.run(&format!(
            "mv client.key plain.key; openssl {how} -in plain.key -passout 'pass:{PASSPHRASE}' -out client.key"
        ));
        scene.says(&format!("{PASSPHRASE}\n"));
        scene
    }

    /// What the passphrase file holds.
    fn says(&mut self, content: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.dir.path().join("passphrase");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        self.files.passphrase_file = Some(path);
    }
}

#[test]
fn keys_that_openssl_encrypts_are_opened_with_the_passphrase_of_a_file_and_no_other() {
    for how in [
        "pkey -aes256",
        "pkey -aes-128-cbc",
        "pkcs8 -topk8",
        "pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA512 -iter 100000",
        "pkcs8 -topk8 -v2 aes-192-cbc",
        "pkcs8 -topk8 -scrypt",
    ] {
        let mut scene = Scene::encrypted(how);
        assert!(std::fs::read_to_string(&scene.key).unwrap().starts_with("-----BEGIN ENCRYPTED PRIVATE KEY"));
        let loaded = scene.load().unwrap_or_else(|error| panic!("{how}: {error}"));
        assert_eq!((loaded.leaf.subject.as_str(), &loaded.warnings[..]), ("CN=client", &[][..]), "{how}");
        for wrong in ["correct horse \n", "Correct horse", "x"] {
            scene.says(wrong);
            let shown = scene.error();
            assert!(
                shown.starts_with(
                    "/client.key: the passphrase in /passphrase does not open the key in line 1;"
                ),
                "{how}: {shown}"
            );
            assert!(!shown.contains("orse"), "{shown}");
        }
        scene.files.passphrase_file = None;
        assert!(scene.error().contains("passphrase_file"), "{how}: {}", scene.error());
    }
}

#[test]
fn passphrases_that_cannot_be_and_ways_that_are_not_read_are_named() {
    let mut scene = Scene::encrypted("pkcs8 -topk8");
    scene.says("\n");
    assert_eq!(scene.error(), "/passphrase: is empty; expected the key's passphrase on one line");
    std::fs::remove_file(scene.dir.path().join("passphrase")).unwrap();
    assert!(scene.error().starts_with("/passphrase: cannot be read: No such file"), "{}", scene.error());
    for how in [
        "pkcs8 -topk8 -v1 PBE-SHA1-3DES",
        "pkcs8 -topk8 -v2 des3",
        "pkcs8 -topk8 -v2 aes-256-cbc -iter 20000000",
    ] {
        let shown = Scene::encrypted(how).error();
        assert!(
            shown.starts_with("/client.key: the key in line 1 is encrypted in a way that is not read: ")
                && shown.contains("openssl pkcs8 -topk8 -v2 aes-256-cbc"),
            "{how}: {shown}"
        );
    }
    let (certificate, key) = Ca::new("CA").issue("client", VALID);
    let mut scene = Scene::with(certificate, key);
    scene.says("not needed");
    let warnings = scene.load().unwrap().warnings;
    assert!(matches!(warnings[..], [IdentityWarning::NeedlessPassphrase { .. }]), "{warnings:?}");
    use std::os::unix::fs::PermissionsExt as _;
    let path = scene.dir.path().join("passphrase");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
    let shown = scene.load().unwrap().warnings[0].to_string();
    assert!(
        shown.contains("mode 0604 lets every user on this node read or change the key's passphrase"),
        "{shown}"
    );
}

#[test]
fn directories_are_known_by_the_names_that_others_give() {
    let ca = Ca::new("CA");
    let (certificate, key) = ca.issue("client", VALID);
    let directory = |files: &[(&str, &str)]| {
        let mut scene = Scene::new();
        let dir = scene.dir.path().join("d");
        std::fs::create_dir(&dir).unwrap();
        for (name, content) in files {
            std::fs::write(dir.join(name), content).unwrap();
        }
        scene.files.place = IdentityPlace::Directory(dir);
        scene
    };
    let chained = format!("{certificate}{}", ca.pem());
    let (other, _) = ca.issue("other", VALID);
    for (files, length) in [
        (&[("tls.crt", &*certificate), ("tls.key", &*key), ("ca.crt", "")][..], 1),
        (
            &[("fullchain.pem", &*chained), ("cert.pem", &*other), ("chain.pem", ""), ("privkey.pem", &*key)],
            2,
        ),
        (&[("cert.pem", &*certificate), ("privkey.pem", &*key)], 1),
        // A certificate alone is no second identity.
        (&[("cert.pem", &*certificate), ("tls.crt", &*certificate), ("tls.key", &*key)], 1),
    ] {
        let loaded = directory(files).load().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(loaded.certified_key.cert.len(), length);
    }
    for (files, expected) in [
        (
            &[("client.crt", &*certificate), ("client.key", &*key)][..],
            "/d: holds no identity: looked for tls.key with tls.crt (a Kubernetes TLS secret, cert-manager), or privkey.pem \
             with fullchain.pem or cert.pem (certbot, Vault Agent); name the files",
        ),
        (
            &[("tls.crt", &*certificate), ("tls.key", &*key), ("privkey.pem", &*key)],
            "/d: holds tls.key and privkey.pem, and either might be meant;",
        ),
        (&[("tls.key", &*key)], "/d/tls.crt: cannot be read: No such file"),
        (&[("privkey.pem", &*key)], "/d/fullchain.pem: cannot be read: No such file"),
    ] {
        let shown = directory(files).error();
        assert!(shown.starts_with(expected), "{shown}");
    }
}
