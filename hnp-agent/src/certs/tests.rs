//! Certificates made, renewed, examined and judged, each thing with what must behave the other way.

mod passphrase;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use super::inspect::{What, inspect};
use super::key::KeyType;
use super::names::{self, Name};
use super::store::{self, Existing};
use super::verify::{Answer, Question, Role, State};
use super::when::{self, Until};
use super::*;
use crate::config::plan::Roots;
use crate::identity::files::load::certificates;
use crate::x509;

/// A folder with a CA in it.
struct Scene(TempDir);

impl Scene {
    fn new(subject: Option<&str>) -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        scene.root("ca", subject);
        scene
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn root(&self, name: &str, subject: Option<&str>) {
        let subject = subject.map(|text| text.parse().unwrap());
        let until = Until::For(when::CA);
        self.write(name, &init_ca(subject, KeyType::P256, until, SystemTime::now()).unwrap());
    }

    fn authority(&self, name: &str) -> Result<Authority, CertsError> {
        self.authority_at(name, SystemTime::now())
    }

    fn authority_at(&self, name: &str, now: SystemTime) -> Result<Authority, CertsError> {
        Authority::load(&self.path(&format!("{name}.crt")), &self.path(&format!("{name}.key")), None, now)
    }

    fn issue(&self, ca: &str, name: &str, request: Request) -> Result<Issued, CertsError> {
        let issued = self.authority(ca)?.issue(&request, SystemTime::now())?;
        self.write(name, &issued);
        Ok(issued)
    }

    fn write(&self, name: &str, issued: &Issued) {
        let [certificate, key] = ["crt", "key"].map(|suffix| self.path(&format!("{name}.{suffix}")));
        store::write(&issued.files(&certificate, &key), Existing::Replace).unwrap();
    }

    fn chain(&self, name: &str) -> Vec<CertificateDer<'static>> {
        let path = self.path(&format!("{name}.crt"));
        certificates(&path, &std::fs::read(&path).unwrap()).unwrap()
    }

    fn renew(&self, name: &str, how: Renewal) -> Result<Issued, CertsError> {
        renew(&self.path(name), &self.chain(name), &self.authority("ca")?, how, SystemTime::now())
    }

    /// Asks about a certificate, by the roots in `ca.crt`.
    fn question(&self, name: &str) -> Question {
        Question {
            certificate: self.path(&format!("{name}.crt")),
            key: Some(self.path(&format!("{name}.key"))),
            passphrase_file: None,
            roots: Roots::File(self.path("ca.crt")),
            name: None,
            usage: None,
            at: SystemTime::now(),
        }
    }
}

fn leaf(client: bool, server: bool, names: &[&str]) -> Request {
    let names =
        names.iter().map(|name| names::ip(name).or_else(|_| names::uri(name)).or_else(|_| names::dns(name)));
    let purpose = Purpose::Leaf { client, server, names: names.collect::<Result<_, _>>().unwrap() };
    Request { subject: None, purpose, key: KeyType::P256, until: Until::For(when::CLIENT) }
}

fn intermediate(permitted: &[&str]) -> Request {
    let permitted = permitted.iter().map(|name| names::permit_dns(name).unwrap()).collect();
    Request {
        purpose: Purpose::Intermediate { permitted },
        until: Until::For(when::INTERMEDIATE),
        ..leaf(true, false, &[])
    }
}

const SAME: Renewal = Renewal { new_key: false, until: None };
const NEW_KEY: Renewal = Renewal { new_key: true, until: None };

/// The extensions of a certificate: identifier, criticality, content.
fn extensions(certificate: &X509Certificate<'_>) -> Vec<(String, bool, Vec<u8>)> {
    assert!(certificate.extensions_map().is_ok(), "no extension stands there twice");
    let all = certificate.extensions().iter();
    let mut all: Vec<_> = all.map(|one| (one.oid.to_id_string(), one.critical, one.value.to_vec())).collect();
    all.sort();
    all
}

fn key_ids(certificate: &X509Certificate<'_>) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let (mut own, mut issuers) = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                issuers = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    (own, issuers)
}

#[test]
fn each_kind_of_certificate_has_what_the_standard_asks_for() {
    let scene = Scene::new(None);
    scene.issue("ca", "intermediate", intermediate(&["pods.test"])).unwrap();
    scene.issue("ca", "client", leaf(true, false, &[])).unwrap();
    scene.issue("ca", "server", leaf(false, true, &["a.test", "*.b.test", "10.0.0.1", "fd00::1"])).unwrap();
    scene.issue("ca", "both", leaf(true, true, &["a.test", "spiffe://e.test/ns/a"])).unwrap();
    let of_root = scene.chain("ca").remove(0);
    let root_id = key_ids(&x509::parse(&of_root).unwrap()).0.unwrap();
    let usage = |facts: &facts::CertificateFacts| {
        [facts.key_usage.join(" "), facts.extended_key_usage.join(" ")].join("|")
    };
    for (name, expected, ca, names) in [
        ("ca", "keyCertSign cRLSign|", Some(None), ""),
        ("intermediate", "keyCertSign cRLSign|", Some(Some(0)), ""),
        ("client", "digitalSignature|clientAuth", None, ""),
        ("server", "digitalSignature|serverAuth", None, "DNS:a.test DNS:*.b.test IP:10.0.0.1 IP:fd00::1"),
        ("both", "digitalSignature|clientAuth serverAuth", None, "DNS:a.test URI:spiffe://e.test/ns/a"),
    ] {
        let chain = scene.chain(name);
        assert_eq!(chain.len(), 1, "{name}: the root stays out of the file");
        let parsed = x509::parse(&chain[0]).unwrap();
        let facts = facts::CertificateFacts::of(&chain[0], SystemTime::now()).unwrap();
        assert_eq!((usage(&facts).as_str(), facts.version), (expected, 3), "{name}");
        assert_eq!((facts.ca, facts.path_length), (ca.is_some(), ca.flatten()), "{name}");
        assert_eq!(facts.names.join(" "), names, "{name}");
        assert!(facts.notes.is_empty(), "{name}: {:?}", facts.notes);
        let critical: Vec<_> = extensions(&parsed).into_iter().filter(|(_, critical, _)| *critical).collect();
        let critical: Vec<_> = critical.iter().map(|(oid, ..)| oid.as_str()).collect();
        let constrained = if name == "intermediate" { vec!["2.5.29.30"] } else { vec![] };
        assert_eq!(critical, [vec!["2.5.29.15", "2.5.29.19"], constrained].concat(), "{name}");
        let (own, issuers) = key_ids(&parsed);
        assert_eq!(own.map(|id| id.len()), Some(20), "{name}");
        assert_eq!(issuers, (name != "ca").then(|| root_id.clone()), "{name}");
        let serial = parsed.raw_serial();
        assert!(serial.len() == 16 && (0x40..0x80).contains(&serial[0]), "{name}: {serial:02x?}");
        let before = x509::moment(parsed.validity().not_before);
        let early = SystemTime::now().duration_since(before).unwrap();
        assert!((when::BACKDATED..when::BACKDATED * 2).contains(&early), "{name}: {early:?}");
    }
    let constraints =
        facts::CertificateFacts::of(&scene.chain("intermediate")[0], SystemTime::now()).unwrap();
    assert_eq!(constraints.name_constraints, ["permitted DNS:pods.test"]);
    let serials: std::collections::HashSet<_> = (0..50)
        .map(|_| {
            x509::serial(
                &x509::parse(&scene.issue("ca", "x", leaf(true, false, &[])).unwrap().chain[0]).unwrap(),
            )
        })
        .collect();
    assert_eq!(serials.len(), 50);
}

#[test]
fn every_kind_of_key_works_on_both_sides_of_a_signature() {
    let scene = Scene(tempfile::tempdir().unwrap());
    for (ca, word) in [
        (KeyType::P256, "P-256"),
        (KeyType::P384, "P-384"),
        (KeyType::Ed25519, "Ed25519"),
        (KeyType::Rsa2048, "RSA 2048 bits"),
        (KeyType::Rsa3072, "RSA 3072 bits"),
        (KeyType::Rsa4096, "RSA 4096 bits"),
    ] {
        let made = init_ca(None, ca, Until::For(when::CA), SystemTime::now()).unwrap();
        scene.write("ca", &made);
        // Judged by webpki before it is written.
        let request = Request { key: ca, ..leaf(true, true, &["a.test"]) };
        let chain = scene.issue("ca", "leaf", request).unwrap().chain;
        let facts = facts::CertificateFacts::of(&chain[0], SystemTime::now()).unwrap();
        assert_eq!(facts.key, word);
        assert_eq!(facts.key_usage.contains(&"keyEncipherment"), word.starts_with("RSA"));
        let renewed = scene.renew("leaf", NEW_KEY).unwrap();
        let facts = facts::CertificateFacts::of(&renewed.chain[0], SystemTime::now()).unwrap();
        assert_eq!(facts.key, word, "a new key is of the kind it was");
        assert!(scene.question("leaf").answer().ok, "{word}");
    }
}

#[test]
fn what_is_issued_below_an_intermediate_brings_it_along_and_keeps_to_its_constraints() {
    let scene = Scene::new(None);
    scene.issue("ca", "intermediate", intermediate(&["pods.test"])).unwrap();
    let issued = scene.issue("intermediate", "good", leaf(true, true, &["a.pods.test"])).unwrap();
    assert_eq!(issued.chain[1..], scene.chain("intermediate")[..]);
    assert!(scene.question("good").answer().ok);
    for refused in [leaf(true, false, &["a.other.test"]), leaf(false, true, &["a.other.test"])] {
        let error = scene.issue("intermediate", "bad", refused).unwrap_err();
        assert!(matches!(error, CertsError::Refused { .. }), "{error}");
    }
    assert!(!scene.path("bad.crt").exists() && !scene.path("bad.key").exists());
    let error = scene.issue("intermediate", "bad", intermediate(&[])).unwrap_err();
    assert!(error.to_string().contains("path length 0"), "{error}");
    // The root in the CA's file, in whatever order, is not sent.
    let text = |name: &str| std::fs::read_to_string(scene.path(name)).unwrap();
    std::fs::write(scene.path("both.crt"), text("ca.crt") + &text("intermediate.crt")).unwrap();
    std::fs::copy(scene.path("intermediate.key"), scene.path("both.key")).unwrap();
    let issued = scene.issue("both", "good", leaf(true, false, &[])).unwrap();
    assert_eq!(issued.chain[1..], scene.chain("intermediate")[..]);
}

#[test]
fn names_are_taken_over_byte_for_byte() {
    let subject = "CN=Issuing,OU=a,OU=b,DC=corp,DC=example";
    let scene = Scene::new(Some(subject));
    let own = "CN=x+UID=7,OU=c,OU=d,DC=corp,DC=example";
    let request = Request { subject: Some(own.parse().unwrap()), ..leaf(true, true, &["a.test"]) };
    scene.issue("ca", "leaf", request).unwrap();
    for chain in [scene.chain("leaf"), scene.renew("leaf", SAME).unwrap().chain] {
        let parsed = x509::parse(&chain[0]).unwrap();
        assert_eq!(x509::distinguished_name(parsed.issuer()), subject);
        assert_eq!(x509::distinguished_name(parsed.subject()), own);
        let ca = scene.chain("ca");
        assert_eq!(parsed.issuer().as_raw(), x509::parse(&ca[0]).unwrap().subject().as_raw());
    }
}

#[test]
fn a_renewed_certificate_says_what_it_said() {
    let scene = Scene::new(None);
    let request = Request { key: KeyType::P384, ..leaf(false, true, &["a.test", "10.0.0.1", "urn:x:y"]) };
    scene.issue("ca", "leaf", request).unwrap();
    let old = scene.chain("leaf");
    let old = x509::parse(&old[0]).unwrap();
    let of_key = |(oid, ..): &(String, bool, Vec<u8>)| oid == "2.5.29.14";
    let said = |certificate: &X509Certificate<'_>| -> Vec<_> {
        extensions(certificate).into_iter().filter(|one| !of_key(one)).collect()
    };
    for (how, keeps_key) in [(SAME, true), (NEW_KEY, false)] {
        let issued = scene.renew("leaf", how).unwrap();
        let new = x509::parse(&issued.chain[0]).unwrap();
        assert_eq!(said(&new), said(&old));
        assert_eq!(new.subject().as_raw(), old.subject().as_raw());
        assert_eq!(new.public_key().raw == old.public_key().raw, keeps_key);
        assert_eq!(issued.key_pem.is_none(), keeps_key);
        assert_eq!(key_ids(&new).0 == key_ids(&old).0, keeps_key);
        assert_ne!(new.raw_serial(), old.raw_serial());
        let length = |one: &X509Certificate<'_>| {
            one.validity().not_after.timestamp() - one.validity().not_before.timestamp()
        };
        assert_eq!(length(&new), length(&old), "the lifetime does not grow from one renewal to the next");
    }
    let for_longer = Renewal { new_key: false, until: Some(Until::For("200d".parse().unwrap())) };
    let issued = scene.renew("leaf", for_longer).unwrap();
    let facts = facts::CertificateFacts::of(&issued.chain[0], SystemTime::now()).unwrap();
    assert_eq!(facts.remaining_seconds / 86_400, 199);
}

#[test]
fn a_root_is_renewed_with_its_key_and_what_it_has_issued_stays_good() {
    let scene = Scene::new(None);
    scene.issue("ca", "leaf", leaf(true, false, &[])).unwrap();
    let error = scene.renew("ca", NEW_KEY).unwrap_err();
    assert!(error.to_string().contains("another CA"), "{error}");
    let renewed = scene.renew("ca", SAME).unwrap();
    let old = scene.chain("ca");
    assert_eq!(key_ids(&x509::parse(&renewed.chain[0]).unwrap()), key_ids(&x509::parse(&old[0]).unwrap()));
    assert_ne!(renewed.chain, old);
    scene.write("ca", &Issued { key_pem: None, ..renewed });
    assert!(scene.question("leaf").answer().ok);
    // An expired one, too; and nothing else by it.
    let later = SystemTime::now() + Duration::from_secs(4000 * 86_400);
    assert!(matches!(scene.authority_at("ca", later), Err(CertsError::CannotIssue { .. })));
    let [certificate, key] = ["ca.crt", "ca.key"].map(|file| scene.path(file));
    let to_renew = Authority::load_to_renew(&certificate, &key, None).unwrap();
    assert!(renew(&certificate, &scene.chain("ca"), &to_renew, SAME, later).is_ok());
    assert!(renew(&certificate, &scene.chain("leaf"), &to_renew, SAME, later).is_err());
}

#[test]
fn who_cannot_issue_says_why() {
    let scene = Scene::new(Some("twins"));
    scene.root("twin", Some("twins"));
    scene.issue("ca", "leaf", leaf(true, false, &[])).unwrap();
    let said = |result: Result<Authority, CertsError>| result.unwrap_err().to_string();
    assert!(said(scene.authority("leaf")).contains("no CA's certificate"));
    assert!(said(scene.authority("nobody")).contains("certs init-ca"));
    let (crt, key) = (scene.path("ca.crt"), scene.path("twin.key"));
    assert!(said(Authority::load(&crt, &key, None, SystemTime::now())).contains("is not the key of any"));
    let now = SystemTime::now();
    assert!(
        said(scene.authority_at("ca", now + Duration::from_secs(11 * 365 * 86_400))).contains("has expired")
    );
    assert!(said(scene.authority_at("ca", now - Duration::from_secs(86_400))).contains("clock right"));
    // A CA of the same name has not issued it.
    let (path, old) = (scene.path("leaf.crt"), scene.chain("leaf"));
    let error = renew(&path, &old, &scene.authority("twin").unwrap(), SAME, now).unwrap_err();
    assert!(error.to_string().contains("has another key"), "{error}");
    let unnamed = scene.issue("ca", "x", leaf(false, true, &[])).unwrap_err();
    assert!(unnamed.to_string().contains("--name"), "{unnamed}");
    // Nothing outlives its CA.
    let long = Request { until: Until::For("20y".parse().unwrap()), ..leaf(true, false, &[]) };
    let issued = scene.issue("ca", "long", long).unwrap();
    assert!(issued.notes[0].contains("ends with its CA"), "{:?}", issued.notes);
    let end = |der: &[u8]| x509::parse(der).unwrap().validity().not_after.timestamp();
    assert_eq!(end(&issued.chain[0]), end(&scene.chain("ca")[0]));
}

/// The checks that failed, with their reasons.
fn failed(answer: &Answer) -> Vec<(&'static str, Option<&'static str>)> {
    assert_eq!(answer.ok, answer.checks.iter().all(|check| check.state != State::Failed));
    let failed = answer.checks.iter().filter(|check| check.state == State::Failed);
    failed
        .inspect(|check| assert!(check.fix.is_some(), "{check:?}"))
        .map(|check| (check.check, check.reason))
        .collect()
}

#[test]
fn each_mistake_is_found_by_itself_and_the_other_side_refuses_it() {
    let scene = Scene::new(Some("twins"));
    scene.root("twin", Some("twins"));
    scene.root("stranger", None);
    scene.issue("ca", "client", leaf(true, false, &["c.test", "spiffe://e.test/a"])).unwrap();
    scene.issue("ca", "server", leaf(false, true, &["*.s.test"])).unwrap();
    for ca in ["twin", "stranger"] {
        scene.issue(ca, ca, leaf(false, true, &["a.s.test"])).unwrap();
    }
    std::fs::rename(scene.path("twin.crt"), scene.path("of-twin.crt")).unwrap();
    let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
    let client = || scene.question("client");
    let server = || scene.question("server");
    let named = |name: &str| Some(names::dns(name).unwrap());
    let by_spiffe = |id: &str| Some(Name::Uri(id.to_owned()));
    let good = [
        client(),
        server(),
        Question { name: named("c.test"), ..client() },
        Question { name: by_spiffe("spiffe://e.test/a"), ..client() },
        Question { name: named("b.s.test"), ..server() },
        Question { at: now + day * 89, ..client() },
        Question { usage: Some(Role::Server), ..server() },
    ];
    for question in good {
        let answer = question.answer();
        assert_eq!(failed(&answer), [], "{question:?}: {answer:?}");
        let verdict = answer.checks.last().unwrap();
        assert!(verdict.state == State::Ok && verdict.what.starts_with("accepts it"), "{verdict:?}");
    }
    const SERVER: &str = "what a server says";
    const CLIENT: &str = "what a client says";
    let of = |file: &str, question: Question| Question { certificate: scene.path(file), ..question };
    let unchecked = |question: Question| Question { key: None, ..question };
    let [expired, name, bad, unknown] = ["expired", "name", "bad", "unknown_ca"].map(|end| {
        [
            format!("pod_certificate_{end}").leak() as &str,
            format!("upstream_certificate_{end}").leak() as &str,
        ]
    });
    for (question, expected) in [
        (Question { key: Some(scene.path("server.key")), ..client() }, vec![("key", "identity_unavailable")]),
        (Question { at: now + day * 91, ..client() }, vec![("dates", expired[0]), (SERVER, expired[0])]),
        (Question { at: now - day, ..server() }, vec![("dates", expired[1]), (CLIENT, expired[1])]),
        (Question { name: named("d.test"), ..client() }, vec![("name", name[0]), (SERVER, name[0])]),
        (
            Question { name: by_spiffe("spiffe://e.test/b"), ..client() },
            vec![("name", name[0]), (SERVER, name[0])],
        ),
        (Question { name: named("a.b.s.test"), ..server() }, vec![("name", name[1]), (CLIENT, name[1])]),
        (Question { usage: Some(Role::Server), ..client() }, vec![("usage", bad[1]), (CLIENT, bad[1])]),
        (Question { usage: Some(Role::Client), ..server() }, vec![("usage", bad[0]), (SERVER, bad[0])]),
        (
            Question { roots: Roots::File(scene.path("stranger.crt")), ..client() },
            vec![("chain", unknown[0]), (SERVER, unknown[0])],
        ),
        (unchecked(of("of-twin.crt", server())), vec![("chain", unknown[1]), (CLIENT, unknown[1])]),
    ] {
        let answer = question.answer();
        let expected: Vec<_> = expected.into_iter().map(|(check, reason)| (check, Some(reason))).collect();
        assert_eq!(failed(&answer), expected, "{question:?}: {answer:#?}");
        assert!(
            expected
                .iter()
                .all(|(_, reason)| hnp_common::Reason::ALL.iter().any(|known| Some(known.code()) == *reason))
        );
    }
    // An encrypted key is said to be one; files that are not there have their names said.
    std::fs::write(
        scene.path("enc.key"),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    let answer = Question { key: Some(scene.path("enc.key")), ..client() }.answer();
    assert!(
        answer.checks[1].what.contains("encrypted")
            && answer.checks[1].fix.as_deref().unwrap().contains("--passphrase-file")
    );
    for nothing in ["nothing", "ca.key"] {
        assert_eq!(failed(&of(nothing, client()).answer()), [("file", None)]);
    }
    assert_eq!(
        failed(&Question { roots: Roots::File(scene.path("no")), ..client() }.answer()),
        [("chain", None)]
    );
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(scene.path("client.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(client().answer().checks[1].state, State::Warning);
}

#[test]
fn a_ca_is_judged_as_one() {
    let scene = Scene::new(None);
    scene.root("stranger", None);
    scene.issue("ca", "intermediate", intermediate(&[])).unwrap();
    for name in ["ca", "intermediate"] {
        assert_eq!(failed(&scene.question(name).answer()), []);
    }
    assert_eq!(failed(&scene.question("stranger").answer()), [("chain", None)]);
    // An expired root is found, though webpki does not look at its dates.
    scene.issue("ca", "leaf", leaf(true, false, &[])).unwrap();
    let in_an_hour = Renewal { new_key: false, until: Some(Until::For("1h".parse().unwrap())) };
    let renewed = scene.renew("ca", in_an_hour).unwrap();
    scene.write("ca", &renewed);
    for (minutes, expected) in [(50, vec![]), (70, vec![("dates", Some("pod_certificate_expired"))])] {
        let at = SystemTime::now() + Duration::from_secs(minutes * 60);
        assert_eq!(failed(&Question { at, ..scene.question("leaf") }.answer()), expected);
    }
}

#[test]
fn files_are_shown_with_what_belongs_together_and_without_a_byte_of_a_key() {
    let scene = Scene::new(None);
    let client = scene.issue("ca", "client", leaf(true, false, &["spiffe://e.test/a"])).unwrap();
    let other = scene.issue("ca", "other", leaf(true, false, &[])).unwrap();
    std::fs::write(scene.path("der.crt"), &other.chain[0]).unwrap();
    std::fs::write(
        scene.path("broken.pem"),
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    std::fs::write(
        scene.path("mixed.pem"),
        format!(
            "words\n{}-----BEGIN DH PARAMETERS-----\nMAA=\n-----END DH PARAMETERS-----\n",
            std::fs::read_to_string(scene.path("other.key")).unwrap()
        ),
    )
    .unwrap();
    let files = ["client.crt", "ca.crt", "client.key", "der.crt", "broken.pem", "mixed.pem", "none"]
        .map(|file| scene.path(file));
    let items = inspect(&files, None, SystemTime::now()).unwrap();
    let short = |places: &[String]| {
        places.iter().map(|place| place.replace(scene.0.path().to_str().unwrap(), "")).collect::<Vec<_>>()
    };
    let said: Vec<String> = items
        .iter()
        .map(|item| {
            let what = match &item.what {
                What::Certificate(facts) => {
                    format!("certificate key {:?} issuer {:?}", short(&facts.key_in), short(&facts.issuer_in))
                }
                What::PrivateKey(facts) => format!("key of {:?}", short(&facts.belongs_to)),
                What::Other { label } => label.clone(),
                What::Broken { why } => format!("broken: {}", why.split([':', ' ']).next().unwrap()),
                other => format!("{other:?}"),
            };
            format!("{}: {what}", short(&[inspect::place(item)])[0])
        })
        .collect();
    assert_eq!(
        said,
        [
            r#"/client.crt:1: certificate key ["/client.key:1"] issuer ["/ca.crt:1"]"#,
            r#"/ca.crt:1: certificate key [] issuer []"#,
            r#"/client.key:1: key of ["/client.crt:1"]"#,
            r#"/der.crt: certificate key ["/mixed.pem:2"] issuer ["/ca.crt:1"]"#,
            "/broken.pem:1: broken: Parsing",
            r#"/mixed.pem:2: key of ["/der.crt"]"#,
            "/mixed.pem:7: DH PARAMETERS",
            "/none: broken: cannot",
        ]
    );
    let (at, there) = (scene.path("x.crt"), scene.path("x.key"));
    let made = format!("{client:?}{:?}{:?}", client.files(&at, &there), scene.authority("ca"));
    let everything = format!("{}{items:?}{made}", serde_json::to_string(&items).unwrap());
    let key = std::fs::read_to_string(scene.path("client.key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(key.contains(secret) && secret.len() == 64 && !everything.contains(secret));
    let json = serde_json::to_value(&items).unwrap();
    assert_eq!((&json[0]["kind"], &json[0]["state"]), (&"certificate".into(), &"valid".into()));
    assert_eq!((&json[2]["kind"], &json[2]["key"]), (&"private-key".into(), &"P-256".into()));
}

fn read_all(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::write(&path, bytes).unwrap();
    let _ = inspect(std::slice::from_ref(&path), None, SystemTime::now());
    let roots = Roots::File(path.clone());
    let at = SystemTime::now();
    let passphrase_file = None;
    let question =
        Question { certificate: path, key: None, passphrase_file, roots, name: None, usage: None, at };
    let _ = question.answer();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
    #[test]
    fn no_bytes_panic(at in 0..2000usize, to in proptest::prelude::any::<u8>(), cut in 0..200usize) {
        static DER: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let made = init_ca(None, KeyType::P256, Until::For(when::CA), SystemTime::now()).unwrap();
            made.chain[0].to_vec()
        });
        let mut der = DER.clone();
        let at = at % der.len();
        der[at] = to;
        der.truncate(der.len() - cut % der.len());
        read_all(&der);
        read_all(key::pem("CERTIFICATE", &der).as_bytes());
    }

    #[test]
    fn no_subject_panics(text in "\\PC{0,40}") {
        if let Ok(subject) = text.parse::<Subject>() {
            proptest::prop_assert!(x509_parser::prelude::X509Name::from_der(subject.der()).is_ok());
        }
    }
}
