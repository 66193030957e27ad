//! What fuzzers drive: every reader of bytes that others write, each behind a function that takes any bytes.
//!
//! Each says with a panic what must never be: a head that is rewritten into another one, a body that ends
//! elsewhere when it comes in pieces, a key's bytes in an error. Built with the feature `fuzzing` and in unit
//! tests, which run what is committed of the corpus.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _};

use crate::config::plan::{OnDoubt, Revocation, Roots, Trust};
use crate::config::spiffe::{SpiffeIdentity, SvidChoice, WorkloadApi};
use crate::proxy::hello::HelloReader;
use crate::proxy::http1::body::{Decoder, Framing};
use crate::proxy::http1::head::find_end;
use crate::proxy::http1::request::Request;
use crate::proxy::http1::response::{Asked, Response};
use crate::serving::certificate::ClientCertificate;
use crate::spiffe::SpiffeError;
use crate::trust::revocation::Lists;
use crate::{config, identity, serving, spiffe, trust, x509};

/// A target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 11] = [
    ("certificates", certificates),
    ("keys", keys),
    ("der", der),
    ("crls", crls),
    ("request", request),
    ("response", response),
    ("body", body),
    ("hello", hello),
    ("config", configuration),
    ("svids", svids),
    ("bundles", bundles),
];

/// As large as a head may be by default.
const HEAD_LIMIT: usize = 64 * 1024;

/// A file of certificates, in PEM.
fn certificates(bytes: &[u8]) {
    match identity::files::load::certificates(Path::new("fuzz.crt"), bytes) {
        Ok(chain) => chain.iter().for_each(|certificate| der(certificate)),
        Err(error) => names_its_file(&error.to_string(), "fuzz.crt"),
    }
}

/// A file of private keys, in PEM.
fn keys(bytes: &[u8]) {
    match identity::files::load::private_keys(Path::new("fuzz.key"), bytes, None) {
        Ok(keys) => assert!(!keys.is_empty()),
        Err(error) => {
            let words = error.to_string();
            names_its_file(&words, "fuzz.key");
            assert!(!quotes(&words, bytes), "an error quotes the file: {words}");
        }
    }
}

/// A certificate that a peer sent.
fn der(bytes: &[u8]) {
    if let Ok(certificate) = x509::parse(bytes) {
        assert!(!x509::serial(&certificate).is_empty());
        let _ = x509::distinguished_name(certificate.subject());
        let _ = x509::moment(certificate.validity().not_after);
    }
    if let Ok(client) = ClientCertificate::of(bytes) {
        // It goes into a header.
        assert!(client.forwarded.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{:?}", client.forwarded);
    }
    let _ = serving::is_for(&CertificateDer::from(bytes), "a.test");
}

/// A file of revocation lists, in PEM or DER, and the question whether a certificate is on one.
fn crls(bytes: &[u8]) {
    static ANCHORS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let mut store = RootCertStore::empty();
        let root = include_bytes!("../../tests/fuzz/corpus/der/ec.der");
        store.add(CertificateDer::from(&root[..])).expect("a certificate of ours");
        Arc::new(store)
    });
    let path = PathBuf::from("fuzz.crl");
    let revocation =
        Revocation { crls: Some(path.clone()), unknown: OnDoubt::Refuse, ..Revocation::default() };
    match Lists::of(&revocation, Some(Ok(vec![(path, Ok(bytes.to_vec()))])), &ANCHORS) {
        Ok((lists, _)) => {
            assert!(lists.count() > 0, "a trust without the lists that were asked for");
            let _ = lists.next_update();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(2_000_000_000));
            let issuer =
                CertificateRevocationList::from_der(bytes).map(|(_, list)| list.issuer().as_raw().to_vec());
            let _ = lists.check(&issuer.unwrap_or_default(), b"\x0a", now, |_| Ok(()));
        }
        Err(error) => names_its_file(&error.to_string(), "fuzz.crl"),
    }
}

/// A client's head, and what is made of it for an upstream.
fn request(bytes: &[u8]) {
    let Ok(Some(len)) = find_end(bytes, &mut 0, HEAD_LIMIT) else { return };
    let head = &bytes[..len];
    let Ok(request) = Request::parse(head) else { return };
    let mut out = Vec::new();
    request.write_for_upstream(head, b"up.test:8443", "/base", None, &mut out);
    let end = find_end(&out, &mut 0, 2 * HEAD_LIMIT).expect("our own head is one");
    assert_eq!(end, Some(out.len()), "one head became more");
    let again = Request::parse(&out).expect("our own head can be read");
    assert_eq!(again.framing, request.framing, "a body would end elsewhere");
    assert_eq!(again.host.as_deref(), Some("up.test"));
    assert_eq!(again.method_of(&out), request.method_of(head));
}

/// An upstream's head, and what is made of it for a client.
fn response(bytes: &[u8]) {
    let Ok(Some(len)) = find_end(bytes, &mut 0, HEAD_LIMIT) else { return };
    let head = &bytes[..len];
    let asked = Asked { head: false, upgrade: false, http10: false };
    let Ok(response) = Response::parse(head, asked) else { return };
    let mut out = Vec::new();
    response.write_for_client(head, asked, false, &mut out);
    let end = find_end(&out, &mut 0, 2 * HEAD_LIMIT).expect("our own head is one");
    assert_eq!(end, Some(out.len()), "one head became more");
    let again = Response::parse(&out, asked).expect("our own head can be read");
    assert_eq!((again.status, again.framing), (response.status, response.framing));
}

/// A chunked body, whole and in pieces.
fn body(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let whole = decoded(rest, rest.len().max(1));
    let pieces = decoded(rest, usize::from(*first) % 16 + 1);
    assert_eq!(whole, pieces, "in pieces it ends elsewhere");
}

/// The payload, how much of the input was the body, and whether it ended; `None`: it broke a rule.
fn decoded(bytes: &[u8], piece: usize) -> Option<(Vec<u8>, usize, bool)> {
    let mut decoder = Decoder::new(Framing::Chunked);
    let (mut payload, mut wire) = (Vec::new(), 0);
    for piece in bytes.chunks(piece) {
        let mut at = 0;
        while at < piece.len() && !decoder.is_done() {
            let step = decoder.step(&piece[at..]).ok()?;
            assert!(step.payload <= step.wire && step.wire > 0);
            at += step.wire;
            payload.extend_from_slice(&piece[at - step.payload..at]);
        }
        wire += at;
    }
    Some((payload, wire, decoder.is_done()))
}

/// What a client sends first, where TLS may begin.
fn hello(bytes: &[u8]) {
    let _ = HelloReader::default().look(bytes);
    let mut reader = HelloReader::default();
    let _ = (0..bytes.len().min(64)).chain([bytes.len()]).find_map(|end| reader.look(&bytes[..end]));
}

/// A configuration.
fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(errors) = config::parse_with_warnings(text, Path::new("fuzz.yaml")) {
        names_its_file(&errors.to_string(), "fuzz.yaml");
    }
}

/// What a Workload API answers with SVIDs and keys in it.
fn svids(bytes: &[u8]) {
    for choice in [SvidChoice::First, SvidChoice::Hint("internal".into())] {
        let wanted = SpiffeIdentity { api: api(), choice };
        match identity::spiffe::svid::read(bytes, &wanted, SystemTime::UNIX_EPOCH + NOW) {
            Ok(loaded) => {
                let leaf = loaded.certified_key.cert.first().expect("never empty");
                let id = spiffe::id_of_leaf(leaf).expect("an SVID is one");
                assert!(loaded.origin.to_string().ends_with(&id.to_string()));
                assert!(
                    loaded.leaf.is_valid_at(SystemTime::UNIX_EPOCH + NOW),
                    "it is presented out of its time"
                );
            }
            Err(error) => one_line_of_the_socket(&error.to_string()),
        }
    }
    let _ = spiffe::id_of_leaf(bytes);
}

/// What a Workload API answers with bundles in it.
fn bundles(bytes: &[u8]) {
    let trust = Trust::of_roots("t".into(), Roots::Spiffe(api()));
    match trust::domains::read(bytes, &trust) {
        Ok(loaded) => assert!(loaded.roots > 0 && loaded.anchors.is_empty(), "roots for whoever asks"),
        Err(what) => {
            let socket = api().socket;
            one_line_of_the_socket(&SpiffeError { socket, what }.to_string());
        }
    }
}

/// A moment at which what is committed of the corpus is valid.
const NOW: Duration = Duration::from_secs(1_800_000_000);

fn api() -> WorkloadApi {
    WorkloadApi { socket: "/fuzz.sock".into() }
}

fn one_line_of_the_socket(words: &str) {
    names_its_file(words, "/fuzz.sock");
    assert!(!words.chars().any(char::is_control), "more than a line: {words:?}");
}

fn names_its_file(words: &str, file: &str) {
    assert!(words.contains(file), "{words}");
}

/// Whether words hold a piece of a file's base64 that is long enough to be of a key.
fn quotes(words: &str, file: &[u8]) -> bool {
    // What may stand there, a block's label, is shorter.
    const TELLING: usize = 33;
    let is_base64 =
        |piece: &[u8]| piece.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte));
    file.windows(TELLING)
        .filter(|piece| is_base64(piece))
        .filter_map(|piece| std::str::from_utf8(piece).ok())
        .any(|piece| words.contains(piece))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Whatever a fuzzer has found goes into the corpus, and is tried here from then on.
    #[test]
    fn the_corpus_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        for (name, target) in TARGETS {
            let files = fs::read_dir(corpus.join(name)).expect(name);
            let inputs: Vec<Vec<u8>> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
            assert!(!inputs.is_empty(), "{name} has no corpus");
            inputs.iter().for_each(|input| target(input));
        }
    }

    #[test]
    fn an_error_that_quotes_its_file_would_be_found() {
        let file = b"-----BEGIN\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw\n-----END";
        assert!(quotes("line 2: MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw is no key", file));
        assert!(!quotes("the block in line 1 is not base64", file));
    }
}
