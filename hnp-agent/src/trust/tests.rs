//! Real handshakes in memory: which reason each way of failing has, and what a file of roots may hold.

use hnp_common::Reason;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, RootCertStore, ServerConfig,
    ServerConnection,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;

use super::*;
use crate::config::plan::{OnDoubt, Revocation, TlsVersion};
use crate::files::reload::SETTLE;
use crate::files::testpki::{Ca, EXPIRED, NOT_YET, VALID};
use crate::workload::Directory;
use load::Loaded;

type Pair = (String, String);

struct RootsFile {
    dir: TempDir,
}

impl RootsFile {
    fn with(pem: impl AsRef<[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), pem).unwrap();
        Self { dir }
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::new(Trust::of_roots("t".into(), Roots::File(self.dir.path().join("ca.crt"))))
    }

    fn load(&self) -> Result<Loaded, String> {
        load::load(&self.trust())
            .map_err(|error| error.to_string().replace(self.dir.path().to_str().unwrap(), ""))
    }
}

/// A handshake in memory between a client that trusts `roots` and a server that presents `server`;
/// with `clients`, the server wants a certificate of that CA and the client presents that pair.
fn handshake(roots: &Ca, server: &Pair, clients: Option<(&Ca, Pair)>) -> Result<(), (rustls::Error, Reason)> {
    let (client_config, server_config) = configs(roots, server, clients);
    shake_hands(client_config, server_config)
}

fn shake_hands(
    client_config: ClientConfig,
    server_config: ServerConfig,
) -> Result<(), (rustls::Error, Reason)> {
    let name = ServerName::try_from("manager.test").unwrap();
    let mut client = ClientConnection::new(Arc::new(client_config), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server_config)).unwrap();
    for _ in 0..20 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            // What the server thinks of it, it tells the client in an alert.
            let _ = server.process_new_packets();
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(|error| {
                let reason = reason_of(&error);
                (error, reason)
            })?;
        }
        let done = !client.is_handshaking() && !server.is_handshaking();
        if done && !client.wants_write() && !server.wants_write() {
            return Ok(());
        }
    }
    panic!("the handshake goes on for ever");
}

fn configs(roots: &Ca, server: &Pair, clients: Option<(&Ca, Pair)>) -> (ClientConfig, ServerConfig) {
    let client = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(RootsFile::with(roots.pem()).load().unwrap().verifier);
    let (client, wants) = match clients {
        Some((ca, ours)) => {
            let mut store = RootCertStore::empty();
            store.add(chain(&ca.pem()).remove(0)).unwrap();
            let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key(&ours.1)).unwrap();
            let presented = SingleCertAndKey::from(CertifiedKey::new(chain(&ours.0), signing));
            let wants = WebPkiClientVerifier::builder(Arc::new(store)).build().unwrap();
            (client.with_client_cert_resolver(Arc::new(presented)), wants)
        }
        None => (client.with_no_client_auth(), WebPkiClientVerifier::no_client_auth()),
    };
    let server = ServerConfig::builder()
        .with_client_cert_verifier(wants)
        .with_single_cert(chain(&server.0), key(&server.1))
        .unwrap();
    (client, server)
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

fn key(pem: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn a_good_server_is_accepted() {
    let ca = Ca::new("CA");
    let server = ca.issue("manager.test", VALID);
    handshake(&ca, &server, None).unwrap();
    handshake(&ca, &server, Some((&ca, ca.issue("client", VALID)))).unwrap();
}

#[test]
fn each_bad_server_certificate_has_its_own_reason() {
    let (ca, other) = (Ca::new("CA"), Ca::new("other CA"));
    for (what, server, reason) in [
        ("expired", ca.issue("manager.test", EXPIRED), Reason::UpstreamCertificateExpired),
        ("not valid yet", ca.issue("manager.test", NOT_YET), Reason::UpstreamCertificateExpired),
        ("wrong name", ca.issue("elsewhere.test", VALID), Reason::UpstreamCertificateName),
        ("unknown CA", other.issue("manager.test", VALID), Reason::UpstreamCertificateUnknownCa),
    ] {
        let (error, found) = handshake(&ca, &server, None).unwrap_err();
        assert_eq!(found, reason, "{what}: {error}");
    }
}

#[test]
fn a_ca_of_the_same_name_with_another_key_is_not_trusted() {
    let (ca, twin) = (Ca::new("CA"), Ca::new("CA"));
    let (error, reason) = handshake(&ca, &twin.issue("manager.test", VALID), None).unwrap_err();
    assert_eq!(reason, Reason::UpstreamCertificateUnknownCa, "{error}");
}

#[test]
fn a_server_that_refuses_our_certificate_says_so_in_an_alert() {
    let (ca, other) = (Ca::new("CA"), Ca::new("other CA"));
    let server = ca.issue("manager.test", VALID);
    for (what, ours) in
        [("unknown CA", other.issue("client", VALID)), ("expired", ca.issue("client", EXPIRED))]
    {
        let (error, reason) = handshake(&ca, &server, Some((&ca, ours))).unwrap_err();
        assert!(matches!(error, rustls::Error::AlertReceived(_)), "{what}: {error}");
        assert_eq!(reason, Reason::ClientCertificateRefused, "{what}: {error}");
    }
}

#[test]
fn alerts_and_errors_have_the_reason_of_the_table() {
    use AlertDescription as Alert;
    for alert in [
        Alert::CertificateRequired,
        Alert::BadCertificate,
        Alert::UnknownCA,
        Alert::CertificateExpired,
        Alert::CertificateRevoked,
        Alert::CertificateUnknown,
        Alert::UnsupportedCertificate,
        Alert::AccessDenied,
        Alert::DecryptError,
        Alert::NoCertificate,
        Alert::CertificateUnobtainable,
    ] {
        assert_eq!(
            reason_of(&rustls::Error::AlertReceived(alert)),
            Reason::ClientCertificateRefused,
            "{alert:?}"
        );
    }
    for alert in [
        Alert::HandshakeFailure,
        Alert::ProtocolVersion,
        Alert::InternalError,
        Alert::UnrecognisedName,
        Alert::CloseNotify,
        Alert::Unknown(200),
    ] {
        assert_eq!(reason_of(&rustls::Error::AlertReceived(alert)), Reason::UpstreamTlsFailed, "{alert:?}");
    }
    for (error, reason) in [
        (CertificateError::Revoked, Reason::UpstreamCertificateRevoked),
        (CertificateError::UnknownRevocationStatus, Reason::UpstreamRevocationUnknown),
        (CertificateError::ExpiredRevocationList, Reason::UpstreamRevocationUnknown),
    ] {
        assert_eq!(reason_of(&rustls::Error::InvalidCertificate(error)), reason);
    }
    for error in [CertificateError::BadEncoding, CertificateError::InvalidPurpose] {
        let error = rustls::Error::InvalidCertificate(error);
        assert_eq!(reason_of(&error), Reason::UpstreamCertificateBad, "{error}");
        let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        assert_eq!(reason_of_io(&wrapped), Reason::UpstreamCertificateBad);
    }
    assert_eq!(reason_of(&rustls::Error::NoCertificatesPresented), Reason::UpstreamCertificateBad);
    assert_eq!(reason_of(&rustls::Error::DecryptError), Reason::UpstreamTlsFailed);
    assert_eq!(reason_of_io(&std::io::ErrorKind::ConnectionReset.into()), Reason::UpstreamTlsFailed);
}

#[test]
fn all_roots_of_a_file_are_taken_and_bad_ones_are_named() {
    let (a, b) = (Ca::new("A"), Ca::new("B"));
    let bad = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let loaded = RootsFile::with(format!("# ours\n{}{bad}{}", a.pem(), b.pem())).load().unwrap();
    assert_eq!((loaded.roots, loaded.warnings.len()), (2, 1));
    let line = a.pem().lines().count() + 2;
    assert!(loaded.warnings[0].contains(&format!("line {line} cannot be a root")), "{}", loaded.warnings[0]);
    for (pem, expected) in [
        ("", "/ca.crt: expected at least one CERTIFICATE block, found no PEM block"),
        (bad, "/ca.crt: none of its certificates can be a root: "),
        ("-----BEGIN CERTIFICATE-----\nMAA=\n", "/ca.crt: the CERTIFICATE block in line 1 has no END line"),
    ] {
        let error = RootsFile::with(pem).load().unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn broken_roots_keep_the_old_ones() {
    let roots = RootsFile::with(Ca::new("first").pem());
    let readiness = Readiness::new();
    let mut source = Files::open(Publisher::new(roots.trust(), None, &readiness));
    assert!(readiness.is_ready());
    let (shared, now) = (source.publisher.published().shared, Instant::now());
    std::fs::write(roots.dir.path().join("ca.crt"), "nothing").unwrap();
    source.look(now);
    source.look(now + SETTLE);
    assert!(source.publisher.published().status.is_failing());
    assert_eq!(shared.load().as_ref().unwrap().generation, 1);
    std::fs::write(roots.dir.path().join("ca.crt"), Ca::new("second").pem()).unwrap();
    source.look(now + SETTLE * 2);
    assert!(!source.publisher.published().status.is_failing());
    assert_eq!(shared.load().as_ref().unwrap().generation, 2);
}

fn all<S>(one: Published<S>) -> AllPublished<S> {
    Arc::new(arc_swap::ArcSwap::from_pointee(vec![one]))
}

#[test]
fn metrics_of_identities_and_trusts_are_written() {
    let plan = crate::config::parse(
        "identities: {c: {certificate: /no/c, key: /no/k}}\n\
         routes: [{name: m, destinations: ['m.test:80'], upstream: 'https://m.test', identity: c}]",
        std::path::Path::new("x"),
    )
    .unwrap();
    let telemetry = crate::telemetry::Telemetry::writing_to(&plan, Box::new(std::io::sink()));
    let roots = RootsFile::with(Ca::new("first").pem());
    telemetry.register(metrics(all(Source::open(roots.trust(), None, &Readiness::new()).published())));
    let missing =
        crate::identity::Source::open(&plan.identities[0], None, &Readiness::new(), &Directory::default());
    telemetry.register(crate::identity::metrics(all(missing.published())));
    let text = telemetry.metrics_text();
    for line in [
        "hnp_trust_generation{trust=\"t\"} 1",
        "hnp_trust_roots{trust=\"t\"} 1",
        "hnp_trust_reload_failing{trust=\"t\"} 0",
        "hnp_identity_generation{identity=\"c\"} 0",
        "hnp_identity_reload_failures_total{identity=\"c\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("hnp_identity_not_after_seconds{"), "nothing was loaded");
}

#[test]
fn a_trust_says_how_old_tls_may_be() {
    let ca = Ca::new("CA");
    let server = ca.issue("manager.test", VALID);
    for (speaks, least, comes_about) in [
        (&[&rustls::version::TLS12][..], TlsVersion::V1_2, true),
        (&[&rustls::version::TLS12], TlsVersion::V1_3, false),
        (&[&rustls::version::TLS12, &rustls::version::TLS13], TlsVersion::V1_3, true),
    ] {
        let roots = RootsFile::with(ca.pem());
        let loaded = load::load(&Trust { tls_min: least, ..(*roots.trust()).clone() }).unwrap();
        let client = ClientConfig::builder_with_provider(crate::crypto::provider())
            .with_protocol_versions(crate::crypto::versions(loaded.snapshot("t".into(), 1).tls_min))
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(roots.load().unwrap().verifier)
            .with_no_client_auth();
        let serving = ServerConfig::builder_with_provider(crate::crypto::provider())
            .with_protocol_versions(speaks)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain(&server.0), PrivateKeyDer::from_pem_slice(server.1.as_bytes()).unwrap())
            .unwrap();
        let done = shake_hands(client, serving);
        match comes_about {
            true => done.unwrap(),
            false => assert_eq!(done.unwrap_err().1, Reason::UpstreamTlsFailed),
        }
    }
}

/// A trust in CA "CA" with revocation lists in a directory.
struct Listed {
    roots: RootsFile,
}

impl Listed {
    fn of(ca: &Ca, lists: &[(&str, &[u8])]) -> Self {
        let roots = RootsFile::with(ca.pem());
        std::fs::create_dir(roots.dir.path().join("crls")).unwrap();
        for (name, bytes) in lists {
            std::fs::write(roots.dir.path().join("crls").join(name), bytes).unwrap();
        }
        Self { roots }
    }

    fn load(&self, unknown: OnDoubt, expired: OnDoubt) -> Result<Loaded, String> {
        let crls = Some(self.roots.dir.path().join("crls"));
        let trust =
            Trust { revocation: Revocation { crls, unknown, expired }, ..(*self.roots.trust()).clone() };
        load::load(&trust)
            .map_err(|error| error.to_string().replace(self.roots.dir.path().to_str().unwrap(), ""))
    }

    /// Which reason a server has that is refused.
    fn refuses(&self, server: &Pair, (unknown, expired): (OnDoubt, OnDoubt)) -> Option<Reason> {
        let verifier = self.load(unknown, expired).unwrap().verifier;
        let name = ServerName::try_from("manager.test").unwrap();
        let now = rustls_pki_types::UnixTime::now();
        let chain = chain(&server.0);
        verifier.verify_server_cert(&chain[0], &[], &name, &[], now).err().map(|error| reason_of(&error))
    }
}

const CLOSED: (OnDoubt, OnDoubt) = (OnDoubt::Refuse, OnDoubt::Refuse);

#[test]
fn what_a_list_names_is_refused_and_what_no_list_speaks_of_is_the_trusts_decision() {
    let ca = Ca::new("CA");
    let [good, revoked] = [0, 1].map(|_| ca.issue("manager.test", VALID));
    let (current, stale) = (ca.crl(&[&revoked.0], VALID), ca.crl(&[], (2015, 2016)));
    // Both are there; the newer one counts, whatever the files are called.
    for names in [["a", "b"], ["b", "a"]] {
        let listed = Listed::of(&ca, &[(names[0], current.as_bytes()), (names[1], stale.as_bytes())]);
        assert_eq!(listed.refuses(&good, CLOSED), None);
        let either = (OnDoubt::Allow, OnDoubt::Allow);
        for policy in [CLOSED, either] {
            assert_eq!(listed.refuses(&revoked, policy), Some(Reason::UpstreamCertificateRevoked));
        }
    }
}

#[test]
fn unknown_and_late_lists_refuse_unless_allowed() {
    let ca = Ca::new("CA");
    let server = ca.issue("manager.test", VALID);
    let (allow, refuse) = (OnDoubt::Allow, OnDoubt::Refuse);
    let late = ca.crl(&[], (2001, 2002));
    let listed = Listed::of(&ca, &[("list", late.as_bytes())]);
    assert_eq!(listed.refuses(&server, CLOSED), Some(Reason::UpstreamRevocationUnknown));
    assert_eq!(listed.refuses(&server, (allow, refuse)), Some(Reason::UpstreamRevocationUnknown));
    assert_eq!(listed.refuses(&server, (refuse, allow)), None);
    let warnings = listed.load(refuse, refuse).unwrap().warnings;
    assert!(
        warnings[0].contains("crls/list:1: the revocation list of CN=CA should have been renewed"),
        "{warnings:?}"
    );

    let strangers = Ca::new("other CA").crl(&[], VALID);
    let listed = Listed::of(&ca, &[("list", strangers.as_bytes())]);
    assert_eq!(listed.refuses(&server, CLOSED), Some(Reason::UpstreamRevocationUnknown));
    assert_eq!(listed.refuses(&server, (refuse, allow)), Some(Reason::UpstreamRevocationUnknown));
    assert_eq!(listed.refuses(&server, (allow, refuse)), None);

    // Of the same name, and not by the same key: nobody may clear a certificate that way, whatever is allowed.
    let forged = Ca::new("CA").crl(&[], VALID);
    let listed = Listed::of(&ca, &[("list", forged.as_bytes())]);
    for policy in [CLOSED, (allow, allow)] {
        assert_eq!(listed.refuses(&server, policy), Some(Reason::UpstreamRevocationUnknown));
    }
}

#[test]
fn lists_are_read_as_pem_and_as_der_and_bad_ones_are_named() {
    let ca = Ca::new("CA");
    let pem = ca.crl(&[], VALID);
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let both =
        Listed::of(&ca, &[("a.pem", pem.as_bytes()), ("b.der", &block.contents), (".hidden", b"no list")]);
    assert_eq!(both.load(OnDoubt::Refuse, OnDoubt::Refuse).unwrap().lists.count(), 2);
    for (files, expected) in [
        (&[][..], "/crls: holds no revocation list;"),
        (
            &[("x", &b"text"[..])],
            "/crls/x: is no revocation list that can be used: expected an X509 CRL block or DER, found no",
        ),
        (&[("x", &b"\x30\x03\x02\x01\x01"[..])], "/crls/x: is no revocation list that can be used: "),
        (
            &[("x", ca.pem().as_bytes())],
            "/crls/x: is no revocation list that can be used: expected an X509 CRL",
        ),
        (
            &[("x", &pem.as_bytes()[..pem.len() - 20])],
            "/crls/x: the X509 CRL block in line 1 has no END line",
        ),
    ] {
        let error = Listed::of(&ca, files).load(OnDoubt::Refuse, OnDoubt::Refuse).map(|_| ()).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_directory_of_roots_is_read_as_etc_ssl_certs_is() {
    let (a, b) = (Ca::new("A"), Ca::new("B"));
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let trust = Trust { roots: Roots::File(dir.path().to_owned()), ..(*RootsFile::with("").trust()).clone() };
    let error = load::load(&trust).unwrap_err().to_string();
    assert!(error.ends_with("expected at least one CERTIFICATE block, found no file with one"), "{error}");
    write("a.pem", &a.pem());
    write("bundle.crt", &format!("{}{}", a.pem(), b.pem()));
    write("README", "these are roots");
    write("half.pem", &a.pem()[..100]);
    write(".hidden", &Ca::new("C").pem());
    std::os::unix::fs::symlink("a.pem", dir.path().join("0a1b2c3d.0")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("gone.pem")).unwrap();
    std::fs::create_dir(dir.path().join("java")).unwrap();
    let loaded = load::load(&trust).unwrap();
    assert_eq!((loaded.roots, loaded.dates.len()), (2, 2), "each once");
    let mut warned = loaded.warnings.iter();
    assert!(warned.next().unwrap().contains("gone.pem: cannot be read"), "{:?}", loaded.warnings);
    assert!(warned.next().unwrap().contains("half.pem: the CERTIFICATE block in line 1 has no END"));
    assert_eq!(warned.next(), None);
}
