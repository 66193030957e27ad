//! A Workload API on a real socket: what is published of its answers, and what is kept when there are none.

use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::config::spiffe::{SvidChoice, WorkloadApi};
use crate::files::testpki::{Ca, uri};
use crate::spiffe::testing::{Api, Say, until};
use crate::spiffe::wire::tests::svid as message_of;
use crate::telemetry::readiness::Readiness;

const ID: &str = "spiffe://t.test/ns/ci/sa/runner";

fn wanted(socket: &Path, choice: SvidChoice) -> SpiffeIdentity {
    SpiffeIdentity { api: WorkloadApi { socket: socket.to_owned() }, choice }
}

fn first() -> SpiffeIdentity {
    wanted(Path::new("/run/api.sock"), SvidChoice::First)
}

/// A message with one good SVID.
fn good(ca: &Ca) -> Vec<u8> {
    let (chain, key) = ca.svid(ID, |_| {});
    message_of(ID, &chain, &key, "")
}

fn read(message: &[u8], identity: &SpiffeIdentity) -> Result<Loaded, String> {
    svid::read(message, identity, crate::clock::now()).map_err(|error| error.to_string())
}

#[test]
fn of_several_the_first_is_taken_or_the_one_that_is_named() {
    let ca = Ca::new("CA");
    let all: Vec<_> = [("a", ""), ("b", "internal"), ("c", "external"), ("d", "internal")]
        .map(|(name, hint)| {
            let id = format!("spiffe://t.test/{name}");
            let (chain, key) = ca.svid(&id, |_| {});
            message_of(&id, &chain, &key, hint)
        })
        .concat();
    let taken =
        |choice| match read(&all, &wanted(Path::new("/s"), choice)).map(|loaded| loaded.origin.to_string()) {
            Ok(origin) => origin.replace("/s: the SVID spiffe://t.test/", ""),
            Err(error) => error,
        };
    assert_eq!(taken(SvidChoice::First), "a");
    assert_eq!(taken(SvidChoice::Hint("external".into())), "c");
    assert_eq!(taken(SvidChoice::Hint("internal".into())), "b", "the first of those with the same hint");
    assert_eq!(taken(SvidChoice::Id("spiffe://T.test/d".parse_id())), "d");
    let none = taken(SvidChoice::Hint("other".into()));
    assert!(
        none.contains("the hint other is not among") && none.contains("spiffe://t.test/c (hint external)"),
        "{none}"
    );
}

trait ParseId {
    fn parse_id(&self) -> crate::config::spiffe::SpiffeId;
}

impl ParseId for str {
    fn parse_id(&self) -> crate::config::spiffe::SpiffeId {
        crate::config::spiffe::SpiffeId::parse(self).unwrap()
    }
}

#[test]
fn what_is_no_svid_is_refused_and_says_why() {
    use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
    let ca = Ca::new("CA");
    let refused = |why: &str, change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let (chain, key) = ca.svid(ID, |params| change(params));
        let error = read(&message_of(ID, &chain, &key, ""), &first()).unwrap_err();
        assert!(
            error.starts_with("/run/api.sock: the SVID spiffe://") && error.contains(why),
            "{why}: {error}"
        );
    };
    refused("2 URIs", &|params| params.subject_alt_names.push(uri("spiffe://t.test/other")));
    refused("2 URIs", &|params| params.subject_alt_names.push(uri("https://t.test/")));
    refused("no URI", &|params| params.subject_alt_names.clear());
    refused("no SPIFFE ID", &|params| params.subject_alt_names = vec![uri("https://t.test/a")]);
    refused("no path", &|params| params.subject_alt_names = vec![uri("spiffe://t.test")]);
    refused("is for spiffe://t.test/x", &|params| params.subject_alt_names = vec![uri("spiffe://t.test/x")]);
    refused("is a CA's", &|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    refused("may sign", &|params| params.key_usages.push(KeyUsagePurpose::CrlSign));
    refused("digitalSignature", &|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    refused("clientAuth", &|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    refused("has expired at", &|params| params.not_after = params.not_before);
    refused("becomes valid only at", &|params| params.not_before = params.not_after);
    // Names of other kinds are allowed, and the control.
    let (chain, key) = ca.svid(ID, |params| {
        params.subject_alt_names.push(rcgen::SanType::DnsName("a.test".try_into().unwrap()));
        params.extended_key_usages.clear();
    });
    assert!(read(&message_of(ID, &chain, &key, ""), &first()).is_ok());

    let (_, other) = ca.svid(ID, |_| {});
    let error = read(&message_of(ID, &chain, &other, ""), &first()).unwrap_err();
    assert!(error.contains("its key is not the certificate's"), "{error}");
    let error = read(&message_of(ID, &chain, b"no key", ""), &first()).unwrap_err();
    assert!(error.contains("no PKCS#8"), "{error}");
    let error = read(&message_of(ID, &[&chain[..], b"rest"].concat(), &key, ""), &first()).unwrap_err();
    assert!(error.contains(&format!("at byte {}", chain.len())), "{error}");
    let error = read(b"\x0a\xff", &first()).unwrap_err();
    assert!(error.contains("cannot be read: it ends in the middle"), "{error}");
}

#[test]
fn a_chain_is_presented_whole_and_only_until_it_ends() {
    let ca = Ca::new("CA");
    let (leaf, key) = ca.svid(ID, |_| {});
    let message = message_of(ID, &[leaf.clone(), ca.der()].concat(), &key, "");
    let snapshot = read(&message, &first()).unwrap().snapshot("i".into(), 1);
    assert_eq!(snapshot.certified_key.cert, [leaf.into(), ca.der().into()]);
    assert!(snapshot.is_presentable());
    assert_eq!(snapshot.until, Some(snapshot.leaf.not_after));
    let over = IdentitySnapshot { until: Some(crate::clock::now() - Duration::from_millis(1)), ..snapshot };
    assert!(!over.is_presentable());
}

struct Scene {
    _dir: TempDir,
    socket: std::path::PathBuf,
    ca: Ca,
    readiness: Readiness,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            socket: dir.path().join("api.sock"),
            _dir: dir,
            ca: Ca::new("CA"),
            readiness: Readiness::new(),
        }
    }

    fn open(&self) -> Source {
        let publisher = Publisher::new("c".into(), None, &self.readiness);
        Source::open(wanted(&self.socket, SvidChoice::First), publisher)
    }
}

#[tokio::test]
async fn pushes_are_published_and_a_socket_that_goes_and_comes_back_is_followed() {
    let scene = Scene::new();
    let message = good(&scene.ca);
    let api = Api::serve(&scene.socket, Say::Message(message.clone()));
    let source = scene.open();
    assert!(scene.readiness.is_ready(), "one look was enough");
    let published = source.published();
    let generation = || published.shared.load().as_ref().map(|one| one.generation);
    assert_eq!(generation(), Some(1));
    let cancel = CancellationToken::new();
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(source.watch(cancel.clone()));

    api.say(Say::Message(good(&scene.ca)));
    until("the push is published", || generation() == Some(2)).await;
    // What cannot be used changes nothing, but is told.
    api.say(Say::Message(b"\x0a\xff".to_vec()));
    until("the failure is told", || published.status.is_failing()).await;
    assert_eq!(generation(), Some(2));
    let again = good(&scene.ca);
    api.say(Say::Message(again.clone()));
    until("what is good again is published", || generation() == Some(3)).await;
    assert!(!published.status.is_failing());

    drop(api);
    until("the socket is missed", || published.status.is_failing()).await;
    let error = published.status.error().unwrap();
    assert!(error.contains("there is no such socket; is a SPIRE agent running"), "{error}");
    assert_eq!(generation(), Some(3), "the last one is kept");

    let api = Api::serve(&scene.socket, Say::Message(again));
    until("it is found again", || !published.status.is_failing()).await;
    assert_eq!(generation(), Some(3), "it is the same certificate");
    api.say(Say::Message(good(&scene.ca)));
    until("and followed", || generation() == Some(4)).await;
    cancel.cancel();
    watching.join_next().await.unwrap().unwrap();
}

#[test]
fn without_an_answer_readiness_waits_and_says_what_to_do() {
    let scene = Scene::new();
    let why = |scene: &Scene| {
        let _source = scene.open();
        scene.readiness.conditions().pop().unwrap().1
    };
    assert!(why(&scene).contains("there is no such socket"));
    for (say, words) in [
        (
            Say::Status(7, "no identity issued"),
            "no identity is registered for this agent (PermissionDenied); register",
        ),
        (Say::Status(7, "no identity issued"), "(gRPC status 7: no identity issued)"),
        (
            Say::Status(3, "security header missing"),
            "(InvalidArgument); is that a SPIFFE Workload API's socket?",
        ),
        (Say::Status(12, ""), "(Unimplemented)"),
        (Say::Status(14, "starting"), "not available now (Unavailable)"),
        (Say::Status(0, ""), "it ended without an answer"),
        (Say::Raw(vec![1, 0, 0, 0, 0]), "it is compressed"),
        (Say::Raw(vec![0, 0xff, 0, 0, 0]), "bytes, and 4194304 are read"),
        (Say::Nothing, "no answer of a SPIFFE Workload API within 2s"),
    ] {
        let _api = Api::serve(&scene.socket, say);
        let why = why(&scene);
        assert!(why.contains(words), "{words}: {why}");
    }
    // A file that nobody listens at.
    drop(std::os::unix::net::UnixListener::bind(&scene.socket).unwrap());
    assert!(why(&scene).contains("nobody answers at the socket"));
    std::fs::remove_file(&scene.socket).unwrap();
    // Something else listens.
    let other = std::os::unix::net::UnixListener::bind(&scene.socket).unwrap();
    std::thread::spawn(move || {
        use std::io::Write as _;
        other.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    });
    assert!(why(&scene).contains("the conversation with the SPIFFE Workload API broke off"));
}

#[test]
fn one_that_is_early_is_taken_when_its_time_has_come_and_counts_once() {
    let scene = Scene::new();
    let (chain, key) =
        scene.ca.svid(ID, |params| params.not_before = params.not_after - Duration::from_secs(5));
    let message = message_of(ID, &chain, &key, "");
    let _api = Api::serve(&scene.socket, Say::Message(message));
    let mut source = scene.open();
    let published = source.published();
    assert!(published.shared.load().is_none());
    let now = crate::clock::now();
    source.tick(now);
    source.tick(now);
    assert_eq!(published.status.failures(), 1);
    source.tick(now + Duration::from_secs(3598));
    assert!(published.shared.load().is_some() && !published.status.is_failing());
}
