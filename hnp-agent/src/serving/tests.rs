//! Handshakes in memory: who is let in, by which certificate, and what is said of him.

use hnp_common::Reason;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::*;
use crate::config::end_to_end::ClientName;
use crate::files::testpki::{Ca, EXPIRED, VALID};

type Pair = (String, String);

const NAME: &str = "manager.test";

fn snapshot(pair: &Pair) -> Arc<IdentitySnapshot> {
    let leaf = crate::identity::snapshot::LeafInfo {
        subject: String::new(),
        issuer: String::new(),
        serial: String::new(),
        not_before: std::time::UNIX_EPOCH,
        not_after: std::time::UNIX_EPOCH,
        version: 3,
    };
    Arc::new(IdentitySnapshot {
        name: "i".into(),
        generation: 1,
        certified_key: certified(pair),
        leaf,
        holder: crate::identity::snapshot::Holder::Agent,
        until: None,
    })
}

fn certified(pair: &Pair) -> Arc<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(pair.0.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.1.as_bytes()).unwrap();
    Arc::new(CertifiedKey::new(chain, crate::crypto::provider().key_provider.load_private_key(key).unwrap()))
}

fn roots(ca: &Ca) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
    Arc::new(roots)
}

fn trust(ca: &Ca) -> Arc<TrustSnapshot> {
    Arc::new(TrustSnapshot::of_roots(roots(ca)))
}

struct World {
    servers: Ca,
    pods: Ca,
    server: Pair,
}

impl World {
    fn new() -> Self {
        let servers = Ca::new("servers");
        let server = servers.issue(NAME, VALID);
        Self { servers, pods: Ca::new("pods"), server }
    }

    fn terms(&self, names: &[ClientName]) -> Terms {
        let client_auth = ClientAuth::Required { trust: 0, names: names.to_vec() };
        let mode = PodTls { serving: vec![0], client_auth };
        Terms::new(
            &mode,
            Protocol::Http,
            vec![snapshot(&self.server)],
            Some(trust(&self.pods)),
            Names::default(),
        )
        .unwrap()
    }

    fn client(&self, pair: Option<&Pair>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(crate::crypto::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots(&self.servers));
        Arc::new(match pair {
            Some(pair) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified(pair))))
            }
            None => builder.with_no_client_auth(),
        })
    }

    /// Whether a pod with this certificate is let in; else why not.
    fn admits(&self, names: &[ClientName], pair: Option<&Pair>) -> Result<ClientTls, Reason> {
        let terms = self.terms(names);
        let session = handshake(&terms, &self.client(pair)).map_err(|error| reason::of(&error).0)?;
        terms.readmits(&session).map_err(|error| reason::of(&error).0)
    }
}

/// The server's side of a finished handshake. Tickets have arrived when it returns.
fn handshake(terms: &Terms, client: &Arc<ClientConfig>) -> Result<ServerConnection, rustls::Error> {
    let name = ServerName::try_from(NAME).unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(&terms.config)).unwrap();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    Ok(server)
}

/// A certificate with its version and its extensions taken out, signed anew: what OpenSSL 3.0 makes of a recipe
/// without extensions.
fn version1(pair: &Pair, signer: &Ca) -> Pair {
    let der = CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap();
    let parts = children(children(&der)[0]);
    let kept: Vec<u8> =
        parts.iter().filter(|part| !matches!(part[0], 0xa0 | 0xa3)).flat_map(|part| part.to_vec()).collect();
    let signed = tlv(0x30, &kept);
    let mut signature = vec![0];
    signature.extend(signer.sign(&signed));
    let all = [signed, children(&der)[1].to_vec(), tlv(3, &signature)].concat();
    (pem("CERTIFICATE", &tlv(0x30, &all)), pair.1.clone())
}

/// The elements in a constructed one, each with its tag and length.
fn children(der: &[u8]) -> Vec<&[u8]> {
    let inside = |der: &[u8]| match der[1] {
        short @ ..=0x7f => (2, usize::from(short)),
        0x81 => (3, usize::from(der[2])),
        _ => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
    };
    let (start, length) = inside(der);
    let mut rest = &der[start..start + length];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (start, length) = inside(rest);
        let (one, after) = rest.split_at(start + length);
        all.push(one);
        rest = after;
    }
    all
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    match length {
        0..0x80 => out.push(length as u8),
        0x80..0x100 => out.extend([0x81, length as u8]),
        _ => out.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    out.extend_from_slice(content);
    out
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::prelude::BASE64_STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

#[test]
fn a_pod_is_let_in_by_its_certificate_alone() {
    let world = World::new();
    let tls = world.admits(&[], Some(&world.pods.issue("pod.test", VALID))).unwrap();
    let certificate = tls.certificate.unwrap();
    assert_eq!((certificate.subject.as_str(), certificate.dns[0].as_str()), ("CN=pod.test", "pod.test"));
    assert!(certificate.forwarded.starts_with("Hash=") && certificate.forwarded.ends_with(";DNS=pod.test"));
    for (pair, reason) in [
        (None, Reason::PodCertificateMissing),
        (Some(world.pods.issue("pod.test", EXPIRED)), Reason::PodCertificateExpired),
        (Some(Ca::new("others").issue("pod.test", VALID)), Reason::PodCertificateUnknownCa),
        // A CA of the same name with another key.
        (Some(Ca::new("pods").issue("pod.test", VALID)), Reason::PodCertificateUnknownCa),
        (Some(world.servers.issue("pod.test", VALID)), Reason::PodCertificateUnknownCa),
    ] {
        assert_eq!(world.admits(&[], pair.as_ref()).unwrap_err(), reason);
    }
}

#[test]
fn names_decide_among_those_that_are_vouched_for() {
    let world = World::new();
    let names = [ClientName::Dns(NamePattern::Below("pods.test".into()))];
    assert!(world.admits(&names, Some(&world.pods.issue("a.pods.test", VALID))).is_ok());
    let other = world.pods.issue("a.other.test", VALID);
    assert_eq!(world.admits(&names, Some(&other)).unwrap_err(), Reason::PodCertificateName);
}

#[test]
fn version_1_is_verified_like_others() {
    let world = World::new();
    let good = world.pods.issue("pod.test", VALID);
    let tls = world.admits(&[], Some(&version1(&good, &world.pods))).unwrap();
    assert_eq!(tls.certificate.unwrap().subject, "CN=pod.test");
    // Its common name is the only one it has.
    let names = [ClientName::Dns(NamePattern::Exact("pod.test".into()))];
    assert!(world.admits(&names, Some(&version1(&good, &world.pods))).is_ok());
    let others = [ClientName::Dns(NamePattern::Exact("other.test".into()))];
    let refused = world.admits(&others, Some(&version1(&good, &world.pods)));
    assert_eq!(refused.unwrap_err(), Reason::PodCertificateName);

    let expired = version1(&world.pods.issue("pod.test", EXPIRED), &world.pods);
    assert_eq!(world.admits(&[], Some(&expired)).unwrap_err(), Reason::PodCertificateExpired);
    for signer in [Ca::new("pods"), Ca::new("others")] {
        let forged = version1(&good, &signer);
        assert_eq!(world.admits(&[], Some(&forged)).unwrap_err(), Reason::PodCertificateUnknownCa);
    }
    let foreign = Ca::new("others");
    let foreign = version1(&foreign.issue("pod.test", VALID), &foreign);
    assert_eq!(world.admits(&[], Some(&foreign)).unwrap_err(), Reason::PodCertificateUnknownCa);
}

#[test]
fn version_1_in_tls_1_2() {
    let world = World::new();
    let pair = version1(&world.pods.issue("pod.test", VALID), &world.pods);
    let client = |pair: &Pair| {
        let builder = ClientConfig::builder_with_provider(crate::crypto::provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots(&world.servers));
        Arc::new(builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified(pair)))))
    };
    let terms = world.terms(&[]);
    let session = handshake(&terms, &client(&pair)).unwrap();
    assert_eq!(terms.readmits(&session).unwrap().version, "TLSv1.2");
    // The certificate of one and the key of another: the handshake's signature is looked at too.
    let stolen = (pair.0, world.pods.issue("pod.test", VALID).1);
    assert!(handshake(&terms, &client(&stolen)).is_err());
}

#[test]
fn a_stolen_version_1_certificate_is_of_no_use_without_its_key() {
    let world = World::new();
    let pair = version1(&world.pods.issue("pod.test", VALID), &world.pods);
    let stolen = (pair.0, world.pods.issue("pod.test", VALID).1);
    assert!(world.admits(&[], Some(&stolen)).is_err());
}

#[test]
fn a_resumed_session_is_judged_again() {
    let world = World::new();
    let terms = world.terms(&[]);
    let client = world.client(Some(&world.pods.issue("pod.test", VALID)));
    let first = handshake(&terms, &client).unwrap();
    assert!(!terms.readmits(&first).unwrap().resumed);
    let again = handshake(&terms, &client).unwrap();
    assert_eq!(again.handshake_kind(), Some(HandshakeKind::Resumed));
    let tls = terms.readmits(&again).unwrap();
    assert!(tls.resumed && tls.certificate.is_some());
    // The year 2091: the certificate, good when the session began, has expired since.
    let later = UnixTime::since_unix_epoch(std::time::Duration::from_secs(121 * 31_557_600));
    let error = terms.readmits_at(&again, later).unwrap_err();
    assert_eq!(reason::of(&error).0, Reason::PodCertificateExpired);
}

/// The same terms with these lists of the pods' CA, and what they make of a certificate.
fn admits_with(world: &World, lists: &str, pair: &Pair) -> Result<(), Reason> {
    let dir = tempfile::tempdir().unwrap();
    let [roots, crls] = ["ca.crt", "ca.crl"].map(|name| dir.path().join(name));
    std::fs::write(&roots, world.pods.pem()).unwrap();
    std::fs::write(&crls, lists).unwrap();
    let revocation = crate::config::plan::Revocation { crls: Some(crls), ..Default::default() };
    let roots = crate::config::plan::Roots::File(roots);
    let trust =
        crate::config::plan::Trust { revocation, ..crate::config::plan::Trust::of_roots("t".into(), roots) };
    let loaded = crate::trust::load::load(&trust).unwrap();
    let verifier = PodVerifier::of(loaded.anchors, loaded.lists, Vec::new()).unwrap();
    let leaf = CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap();
    verifier.verify_client_cert(&leaf, &[], UnixTime::now()).map(drop).map_err(|error| reason::of(&error).0)
}

#[test]
fn revoked_pods_are_refused_of_version_3_and_of_version_1() {
    let world = World::new();
    let [good, revoked] = [0, 1].map(|_| world.pods.issue("pod.test", VALID));
    let current = world.pods.crl(&[&revoked.0], VALID);
    let twin = Ca::new("pods").crl(&[], VALID);
    for form in [|pair: &Pair, _: &Ca| pair.clone(), version1] {
        let [good, revoked] = [&good, &revoked].map(|pair| form(pair, &world.pods));
        assert_eq!(admits_with(&world, &current, &good), Ok(()));
        assert_eq!(admits_with(&world, &current, &revoked), Err(Reason::PodCertificateRevoked));
        for doubtful in [&world.pods.crl(&[], (2001, 2002)), &Ca::new("others").crl(&[], VALID), &twin] {
            assert_eq!(admits_with(&world, doubtful, &good), Err(Reason::PodRevocationUnknown));
        }
    }
}

#[test]
fn terms_are_kept_while_nothing_changes_and_sessions_end_with_them() {
    let world = World::new();
    let text = "identities: {i: {certificate: /c, key: /k}, j: {certificate: /c, key: /k}}\ntrusts: {t: {roots: /r}}\n\
                routes: [{name: r, destinations: [\"a.test:1\"], upstream: \"https://u.test\", identity: i, \
                mode: end-to-end, end_to_end: {serving: [j], client_trust: t}}]\n";
    let plan = Arc::new(crate::config::parse(text, std::path::Path::new("t.yaml")).unwrap());
    let mode = plan.routes[0].end_to_end().unwrap().tls.clone();
    let place = Place::Route(0, Protocol::Http);
    let shared = |pair: &Pair| Arc::new(arc_swap::ArcSwapOption::new(Some(snapshot(pair))));
    let identities = vec![shared(&world.server), shared(&world.server)];
    let roots = Arc::new(arc_swap::ArcSwapOption::new(Some(trust(&world.pods))));
    let trusts = vec![Arc::clone(&roots), Arc::clone(&roots)];
    let serving = Serving::new(1);
    let terms = || serving.terms(&plan, place, &mode, &identities, &trusts).unwrap();
    let before = terms();
    assert!(Arc::ptr_eq(&before, &terms()));
    let client = world.client(Some(&world.pods.issue("pod.test", VALID)));
    handshake(&before, &client).unwrap();

    identities[mode.serving[0]].store(Some(snapshot(&world.servers.issue(NAME, VALID))));
    let renewed = terms();
    assert!(!Arc::ptr_eq(&before, &renewed) && renewed.admits_as(&before), "only what is shown has changed");
    assert_eq!(handshake(&renewed, &client).unwrap().handshake_kind(), Some(HandshakeKind::Full));

    // What may not be presented any more is not shown, and what was made with it is not used on.
    let over = snapshot(&world.server);
    let over = IdentitySnapshot { until: Some(std::time::UNIX_EPOCH), ..Arc::into_inner(over).unwrap() };
    let good = identities[mode.serving[0]].swap(Some(Arc::new(over)));
    let error = serving.terms(&plan, place, &mode, &identities, &trusts).unwrap_err();
    assert!(matches!(&error, Unavailable::Expired(name) if name == "j"), "{error}");
    assert_eq!(error.reason(), Reason::IdentityExpired);
    identities[mode.serving[0]].store(good);
    assert!(terms().admits_as(&before));

    roots.store(Some(trust(&Ca::new("new pods"))));
    assert!(!terms().admits_as(&before), "other roots are other terms");
    assert!(handshake(&terms(), &client).is_err());
    roots.store(None);
    assert!(matches!(
        serving.terms(&plan, place, &mode, &identities, &trusts),
        Err(Unavailable::NotLoaded(name)) if name == "trust `t`"
    ));
}

#[test]
fn what_is_shown_follows_the_name_that_is_asked_for() {
    let ca = Ca::new("servers");
    let all = ["a.test", "*.wild.test"].map(|name| snapshot(&ca.issue(name, VALID)));
    let by_sni = BySni::new(&all, &Names::default());
    let chosen = |name: Option<&str>| {
        let key = by_sni.choose(name).unwrap();
        all.iter().position(|one| Arc::ptr_eq(&one.certified_key, &key)).unwrap()
    };
    for (name, index) in [
        (Some("a.test"), 0),
        (Some("x.wild.test"), 1),
        (Some("X.Wild.Test."), 1),
        (Some("x.y.wild.test"), 0),
        (Some("other.test"), 0),
        (None, 0),
    ] {
        assert_eq!(chosen(name), index, "{name:?}");
    }
}
