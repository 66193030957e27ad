//! Who is taken by SPIFFE bundles, by IDs and by names; each refusal beside what is taken.

use hnp_common::Reason;
use rcgen::{CertificateParams, SanType};
use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::end_to_end::ClientName;
use crate::config::plan::{NamePattern, Peers};
use crate::config::spiffe::{IdPattern, WorkloadApi};
use crate::files::testpki::{Ca, VALID, uri};
use crate::spiffe::error::Trouble;
use crate::spiffe::testing::{Api, Say, until};
use crate::spiffe::wire::tests::field;

const OURS: &str = "spiffe://ours.test/manager";
const THEIRS: &str = "spiffe://theirs.test/manager";

fn trust(ids: &[&str]) -> Trust {
    let api = WorkloadApi { socket: "/api.sock".into() };
    let ids = ids.iter().map(|id| IdPattern::parse(id).unwrap()).collect();
    Trust { peers: Peers { ids, names: Vec::new() }, ..Trust::of_roots("t".into(), Roots::Spiffe(api)) }
}

/// A message with these bundles and revocation lists.
fn message(bundles: &[(&str, &[u8])], crls: &[Vec<u8>]) -> Vec<u8> {
    let mut all: Vec<u8> = crls.iter().flat_map(|crl| field(1, crl)).collect();
    for (domain, der) in bundles {
        all.extend(field(2, &[field(1, domain.as_bytes()), field(2, der)].concat()));
    }
    all
}

fn of(message: &[u8], ids: &[&str]) -> load::Loaded {
    domains::read(message, &trust(ids)).unwrap_or_else(|error: Trouble| panic!("{error}"))
}

/// What a verifier says of a leaf that a server shows.
fn verdict(loaded: &load::Loaded, leaf: &[u8]) -> Result<(), (Reason, String)> {
    let name = ServerName::try_from("whatever.test").unwrap();
    let leaf = CertificateDer::from(leaf.to_vec());
    match loaded.verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now()) {
        Ok(_) => Ok(()),
        Err(error) => Err((reason_of(&error), peer::words(&error))),
    }
}

fn refusal(loaded: &load::Loaded, leaf: &[u8]) -> (Reason, String) {
    verdict(loaded, leaf).unwrap_err()
}

#[test]
fn each_trust_domain_vouches_for_its_own_and_for_nobody_else() {
    let (ours, theirs, strangers) = (Ca::new("ours"), Ca::new("theirs"), Ca::new("strangers"));
    let both = message(&[("spiffe://ours.test", &ours.der()), ("spiffe://theirs.test", &theirs.der())], &[]);
    let loaded = of(&both, &["spiffe://ours.test/*", "spiffe://theirs.test/*"]);
    assert_eq!((loaded.roots, loaded.dates.len()), (2, 2));
    let leaf = |ca: &Ca, id: &str| ca.svid(id, |_| {}).0;
    assert_eq!(verdict(&loaded, &leaf(&ours, OURS)), Ok(()));
    assert_eq!(verdict(&loaded, &leaf(&theirs, THEIRS)), Ok(()));
    // A CA of one domain signs IDs of the other: it is there, it is trusted, and not for that.
    for (ca, id) in [(&ours, THEIRS), (&theirs, OURS), (&strangers, OURS)] {
        assert_eq!(refusal(&loaded, &leaf(ca, id)).0, Reason::UpstreamCertificateUnknownCa, "{id}");
    }
    let (reason, words) = refusal(&loaded, &leaf(&strangers, "spiffe://else.test/manager"));
    assert_eq!(reason, Reason::UpstreamCertificateUnknownCa);
    assert!(words.contains("trust domain else.test: there are bundles of ours.test, theirs.test"), "{words}");
}

#[test]
fn a_peer_is_an_svid_of_an_id_that_is_taken() {
    let ca = Ca::new("ours");
    let loaded =
        of(&message(&[("spiffe://ours.test", &ca.der())], &[]), &[OURS, "spiffe://ours.test/ns/a/*"]);
    let shown = |id: &str, change: &dyn Fn(&mut CertificateParams)| {
        verdict(&loaded, &ca.svid(id, |params| change(params)).0)
    };
    assert_eq!(shown(OURS, &|_| {}), Ok(()));
    assert_eq!(shown("spiffe://ours.test/ns/a/sa/b", &|_| {}), Ok(()));
    assert_eq!(
        shown(OURS, &|params| params.subject_alt_names.push(SanType::DnsName("a.test".try_into().unwrap()))),
        Ok(())
    );
    let (reason, words) = shown("spiffe://ours.test/other", &|_| {}).unwrap_err();
    assert_eq!(reason, Reason::UpstreamCertificateName);
    assert_eq!(
        words,
        format!(
            "its certificate is for spiffe://ours.test/other, and the trust takes {OURS}, spiffe://ours.test/ns/a/*"
        )
    );
    let no_svid = |why: &str, change: &dyn Fn(&mut CertificateParams)| {
        let (reason, words) = shown(OURS, change).unwrap_err();
        assert_eq!(reason, Reason::UpstreamCertificateBad);
        assert!(words.starts_with("its certificate is no X509-SVID: ") && words.contains(why), "{words}");
    };
    no_svid("2 URIs", &|params| params.subject_alt_names.push(uri("spiffe://ours.test/b")));
    no_svid("no URI", &|params| params.subject_alt_names.clear());
    no_svid("no SPIFFE ID", &|params| params.subject_alt_names = vec![uri("https://ours.test/manager")]);
    no_svid("may sign", &|params| params.key_usages.push(rcgen::KeyUsagePurpose::KeyCertSign));
    let (reason, _) = shown(OURS, &|params| params.not_after = params.not_before).unwrap_err();
    assert_eq!(reason, Reason::UpstreamCertificateExpired);
}

#[test]
fn lists_that_come_with_the_bundles_are_obeyed() {
    let (ca, other) = (Ca::new("ours"), Ca::new("theirs"));
    let leaves = [ca.svid(OURS, |_| {}).0, ca.svid(OURS, |_| {}).0, other.svid(THEIRS, |_| {}).0];
    let pem = |der: &[u8]| rustls_pki_types_pem(der);
    let crl = |years| {
        let text = ca.crl(&[&pem(&leaves[0])], years);
        x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap().1.contents
    };
    let bundles: [(&str, &[u8]); 2] =
        [("spiffe://ours.test", &ca.der()), ("spiffe://theirs.test", &other.der())];
    let ids = ["spiffe://ours.test/*", "spiffe://theirs.test/*"];
    let loaded = of(&message(&bundles, &[crl(VALID)]), &ids);
    assert_eq!(refusal(&loaded, &leaves[0]).0, Reason::UpstreamCertificateRevoked);
    assert_eq!(verdict(&loaded, &leaves[1]), Ok(()));
    assert_eq!(verdict(&loaded, &leaves[2]), Ok(()), "its domain has no list");
    let late = of(&message(&bundles, &[crl((2001, 2002))]), &ids);
    assert_eq!(refusal(&late, &leaves[1]).0, Reason::UpstreamRevocationUnknown);
    let bad =
        domains::read(&message(&bundles, &[b"no list".to_vec()]), &trust(&ids)).unwrap_err().to_string();
    assert!(bad.contains("a revocation list: list 1"), "{bad}");
}

/// As rcgen's list takes them.
fn rustls_pki_types_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

#[test]
fn a_message_is_taken_whole_or_not_at_all() {
    let ca = Ca::new("ours");
    let error = |bundles: &[(&str, &[u8])]| {
        domains::read(&message(bundles, &[]), &trust(&["spiffe://ours.test/*"])).unwrap_err().to_string()
    };
    let good = ca.der();
    assert!(
        error(&[("ours.test", &good)]).contains("the bundle of ours.test cannot be used: it does not begin")
    );
    assert!(error(&[("spiffe://ours.test/a", &good)]).contains("it has a path"));
    let half = error(&[("spiffe://ours.test", &good), ("spiffe://theirs.test", &good[..40])]);
    assert!(
        half.contains("the bundle of spiffe://theirs.test cannot be used: the certificate at byte 0"),
        "{half}"
    );
    assert!(error(&[("spiffe://ours.test", &[])]).contains("no bundle in it has a certificate"));
    assert!(error(&[]).contains("it has no bundle"));
    // A domain without certificates beside one that has some.
    let two = [&good[..], &Ca::new("next").der()].concat();
    let loaded = of(&message(&[("spiffe://ours.test", &two), ("spiffe://jwt.test", &[])], &[]), &[OURS]);
    assert_eq!(loaded.roots, 2);
}

#[test]
fn pods_are_judged_by_their_domain_too() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let both = message(&[("spiffe://ours.test", &ours.der()), ("spiffe://theirs.test", &theirs.der())], &[]);
    let snapshot = of(&both, &["spiffe://ours.test/*"]).snapshot("t".into(), 1);
    let verifier = |names| crate::serving::verifier_by(&snapshot, names).unwrap();
    let judge = |names: &[&str], ca: &Ca, id: &str| {
        let names = names.iter().map(|name| ClientName::Uri((*name).into())).collect();
        let leaf = CertificateDer::from(ca.svid(id, |_| {}).0);
        let verdict = verifier(names).verify_client_cert(&leaf, &[], UnixTime::now());
        verdict.map(drop).map_err(|error| crate::serving::reason::of(&error).0)
    };
    assert_eq!(judge(&[], &ours, OURS), Ok(()));
    assert_eq!(judge(&[], &theirs, OURS), Err(Reason::PodCertificateUnknownCa));
    assert_eq!(judge(&[], &theirs, THEIRS), Err(Reason::PodCertificateName), "the trust does not list it");
    assert_eq!(judge(&[OURS], &ours, OURS), Ok(()));
    assert_eq!(judge(&["spiffe://ours.test/x"], &ours, OURS), Err(Reason::PodCertificateName));
}

#[test]
fn roots_of_files_take_only_the_names_that_are_listed() {
    let ca = Ca::new("CA");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.crt");
    std::fs::write(&file, ca.pem()).unwrap();
    let by = |ids: &[&str], names: &[NamePattern]| {
        let ids = ids.iter().map(|id| IdPattern::parse(id).unwrap()).collect();
        let peers = Peers { ids, names: names.to_vec() };
        load::load(&Trust { peers, ..Trust::of_roots("t".into(), Roots::File(file.clone())) }).unwrap()
    };
    let leaf = |id: &str, names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap())).collect();
        ca.svid(id, |params| params.subject_alt_names.extend(names)).0
    };
    let both = leaf(OURS, &["whatever.test", "m1.example.test"]);
    let below = NamePattern::Below("example.test".into());
    assert_eq!(verdict(&by(&[], &[]), &both), Ok(()));
    assert_eq!(verdict(&by(&[], std::slice::from_ref(&below)), &both), Ok(()));
    assert_eq!(verdict(&by(&[OURS], std::slice::from_ref(&below)), &both), Ok(()));
    let (reason, words) = refusal(&by(&[], &[NamePattern::Exact("other.test".into())]), &both);
    assert_eq!(reason, Reason::UpstreamCertificateName);
    assert_eq!(
        words,
        "its certificate is for whatever.test, m1.example.test, and the trust takes other.test"
    );
    assert_eq!(
        refusal(&by(&[THEIRS], std::slice::from_ref(&below)), &both).0,
        Reason::UpstreamCertificateName
    );
    // The host's name is looked at all the same.
    let elsewhere = refusal(&by(&[OURS], &[below]), &leaf(OURS, &["m1.example.test"]));
    assert_eq!(elsewhere.0, Reason::UpstreamCertificateName);
    assert!(elsewhere.1.contains("not valid for name \"whatever.test\""), "{}", elsewhere.1);
}

#[test]
fn refusals_survive_rustls_as_they_are() {
    let refused = peer::Refused::NoSvid("it has no URI".into());
    let error = refused.clone().into_error();
    let rustls::Error::InvalidCertificate(inner) = &error else { panic!() };
    assert_eq!(peer::Refused::within(inner), Some(&refused));
    assert_eq!(peer::words(&error), "its certificate is no X509-SVID: it has no URI");
    assert!(error.to_string().contains("it has no URI"), "{error}");
    assert_eq!(peer::Refused::within(&CertificateError::Revoked), None);
}

#[tokio::test]
async fn pushed_bundles_replace_those_before_whole_and_stay_while_the_socket_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let (ours, theirs) = (Ca::new("ours").der(), Ca::new("theirs").der());
    let both = message(&[("spiffe://ours.test", &ours), ("spiffe://theirs.test", &theirs)], &[]);
    let turned = message(&[("spiffe://theirs.test", &theirs), ("spiffe://ours.test", &ours)], &[]);
    let api = Api::serve(&socket, Say::Message(both));
    let roots = Roots::Spiffe(WorkloadApi { socket: socket.clone() });
    let trust = Arc::new(Trust { roots, ..trust(&["spiffe://ours.test/*"]) });
    let readiness = Readiness::new();
    let source = Source::open(trust, None, &readiness);
    assert!(readiness.is_ready());
    let published = source.published();
    let now = || published.shared.load().as_ref().map(|one| (one.generation, one.roots));
    assert_eq!(now(), Some((1, 2)));
    let cancel = CancellationToken::new();
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(source.watch(cancel.clone()));
    // The order of a map says nothing.
    api.say(Say::Message(turned));
    api.say(Say::Message(b"\x0a\xff".to_vec()));
    until("what cannot be read is told", || published.status.is_failing()).await;
    assert_eq!(now(), Some((1, 2)));
    api.say(Say::Message(message(&[("spiffe://ours.test", &ours)], &[])));
    until("a domain is not trusted any more", || now() == Some((2, 1))).await;
    drop(api);
    until("the socket is missed", || published.status.is_failing()).await;
    assert_eq!(now(), Some((2, 1)));
    let _api = Api::serve(&socket, Say::Message(message(&[("spiffe://ours.test", &ours)], &[])));
    until("it is found again", || !published.status.is_failing()).await;
    assert_eq!(now(), Some((2, 1)), "nothing is new");
    cancel.cancel();
    watching.join_next().await.unwrap().unwrap();
}
