//! Rotation on real files, as a kubelet, a certificate agent and a careless person do it.

use std::path::Path;
use std::time::Duration;

use rcgen::KeyPair;
use tempfile::TempDir;

use super::*;
use crate::files::reload::SETTLE;
use crate::files::testpki::{Ca, EXPIRED, NOT_YET, VALID};
use crate::identity::snapshot::SharedIdentity;
use crate::telemetry::readiness::Readiness;

struct Scene {
    dir: TempDir,
    ca: Ca,
    source: Source,
    readiness: Readiness,
    start: Instant,
}

impl Scene {
    /// A source with a good pair in its files, already published.
    fn serving() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("CA");
        write(dir.path(), &ca.issue("first", VALID));
        let readiness = Readiness::new();
        let source = open(dir.path(), &readiness);
        let scene = Self { dir, ca, source, readiness, start: Instant::now() };
        assert_eq!(scene.serves(), served(1, "first"));
        scene
    }

    fn look(&mut self, millis: u64) -> Option<Instant> {
        self.source.look(self.start + Duration::from_millis(millis))
    }

    fn serves(&self) -> Option<(u64, String)> {
        serves(&self.source.published().shared)
    }
}

fn serves(shared: &SharedIdentity) -> Option<(u64, String)> {
    let snapshot = shared.load_full()?;
    let common_name = snapshot.leaf.subject.rsplit("CN=").next().unwrap();
    Some((snapshot.generation, common_name.to_owned()))
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with what serves() says")]
fn served(generation: u64, name: &str) -> Option<(u64, String)> {
    Some((generation, name.to_owned()))
}

fn open(dir: &Path, readiness: &Readiness) -> Source {
    Source::open(files(dir), Publisher::new("c".into(), None, readiness))
}

fn files(dir: &Path) -> IdentityFiles {
    let place = IdentityPlace::Pair { certificate: dir.join("tls.crt"), key: dir.join("tls.key") };
    IdentityFiles { place, passphrase_file: None }
}

fn write(dir: &Path, (certificate, key): &(String, String)) {
    std::fs::write(dir.join("tls.crt"), certificate).unwrap();
    std::fs::write(dir.join("tls.key"), key).unwrap();
}

#[test]
fn a_pair_written_file_by_file_is_published_when_it_fits() {
    let mut scene = Scene::serving();
    let (certificate, key) = scene.ca.issue("second", VALID);
    std::fs::write(scene.dir.path().join("tls.crt"), certificate).unwrap();
    assert!(scene.look(0).is_some(), "the key is still the old one: wait");
    assert_eq!(scene.serves(), served(1, "first"));
    std::fs::write(scene.dir.path().join("tls.key"), key).unwrap();
    scene.look(50);
    assert_eq!(scene.serves(), served(2, "second"));
    assert_eq!(scene.source.published().status.failures(), 0);
}

#[test]
fn a_broken_pair_keeps_the_old_and_raises_the_alarm_until_it_is_repaired() {
    let mut scene = Scene::serving();
    std::fs::write(scene.dir.path().join("tls.crt"), "not a certificate").unwrap();
    scene.look(0);
    scene.look(300);
    let status = scene.source.published().status;
    assert_eq!((status.failures(), status.is_failing()), (1, true));
    assert!(status.error().unwrap().contains("tls.crt: expected a CERTIFICATE block"));
    for second in 1..20 {
        scene.look(1000 * second);
    }
    assert_eq!(status.failures(), 1, "counted once per change");
    assert_eq!(scene.serves(), served(1, "first"));
    assert!(scene.readiness.is_ready(), "the old one serves");
    write(scene.dir.path(), &scene.ca.issue("second", VALID));
    scene.look(30_000);
    assert_eq!((scene.serves(), status.is_failing()), (served(2, "second"), false));
}

#[test]
fn a_deleted_file_keeps_the_old() {
    let mut scene = Scene::serving();
    std::fs::remove_file(scene.dir.path().join("tls.key")).unwrap();
    scene.look(0);
    scene.look(400);
    assert!(scene.source.published().status.is_failing());
    assert_eq!(scene.serves(), served(1, "first"));
}

#[test]
fn an_expired_or_early_pair_does_not_replace_a_valid_one() {
    for years in [EXPIRED, NOT_YET] {
        let mut scene = Scene::serving();
        write(scene.dir.path(), &scene.ca.issue("second", years));
        scene.look(0);
        scene.look(400);
        assert_eq!(scene.serves(), served(1, "first"));
        let error = scene.source.published().status.error().unwrap();
        assert!(error.ends_with("the certificate that is presented is still valid and stays"), "{error}");
    }
}

#[test]
fn an_expired_pair_is_presented_at_start_and_replaced_by_any() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new("CA");
    write(dir.path(), &ca.issue("old", EXPIRED));
    let readiness = Readiness::new();
    let mut source = open(dir.path(), &readiness);
    assert_eq!(serves(&source.published().shared), served(1, "old"));
    assert!(readiness.is_ready());
    write(dir.path(), &ca.issue("older", EXPIRED));
    source.look(Instant::now());
    assert_eq!(serves(&source.published().shared), served(2, "older"));
}

#[test]
fn a_source_without_files_holds_readiness_down_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let readiness = Readiness::new();
    let mut source = open(dir.path(), &readiness);
    assert!(!readiness.is_ready());
    source.look(Instant::now() + SETTLE);
    let (name, why) = readiness.conditions().remove(0);
    assert_eq!(name, "identity c");
    assert!(why.contains("tls.crt: cannot be read: No such file"), "{why}");
    write(dir.path(), &Ca::new("CA").issue("first", VALID));
    source.look(Instant::now() + SETTLE);
    assert!(readiness.is_ready());
    assert_eq!(serves(&source.published().shared), served(1, "first"));
}

#[test]
fn a_renewed_certificate_with_the_same_key_is_a_new_generation() {
    let mut scene = Scene::serving();
    let key = KeyPair::generate().unwrap();
    write(scene.dir.path(), &scene.ca.issue_with("second", VALID, &key));
    scene.look(0);
    write(scene.dir.path(), &scene.ca.issue_with("third", VALID, &key));
    scene.look(10);
    assert_eq!(scene.serves(), served(3, "third"));
}

/// Waits until the watcher serves `expected`; how long that took.
async fn until_served(shared: &SharedIdentity, generation: u64, name: &str) -> Duration {
    let begin = Instant::now();
    while serves(shared) != served(generation, name) {
        assert!(begin.elapsed() < Duration::from_secs(10), "serves {:?}, not {name}", serves(shared));
        tokio::task::yield_now().await;
    }
    begin.elapsed()
}

#[tokio::test]
async fn renames_and_the_kubernetes_symlink_swap_are_followed_within_two_seconds() {
    // given a mounted secret: tls.crt -> ..data/tls.crt, ..data -> a directory with a time for name
    let dir = tempfile::tempdir().unwrap();
    let (root, ca) = (dir.path(), Ca::new("CA"));
    std::fs::create_dir(root.join("..1")).unwrap();
    write(&root.join("..1"), &ca.issue("first", VALID));
    std::os::unix::fs::symlink("..1", root.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), root.join(file)).unwrap();
    }
    let source = open(root, &Readiness::new());
    let (shared, status, cancel) =
        (source.published().shared, source.published().status, CancellationToken::new());
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(source.watch(cancel.clone()));
    until_served(&shared, 1, "first").await;

    // when the kubelet swaps the link
    std::fs::create_dir(root.join("..2")).unwrap();
    write(&root.join("..2"), &ca.issue("second", VALID));
    std::os::unix::fs::symlink("..2", root.join("..data_tmp")).unwrap();
    std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    let swap = until_served(&shared, 2, "second").await;

    // and when somebody renames files over the links
    write(&root.join("..1"), &ca.issue("third", VALID));
    for file in ["tls.crt", "tls.key"] {
        std::fs::rename(root.join("..1").join(file), root.join(file)).unwrap();
    }
    let rename = until_served(&shared, 3, "third").await;

    // then both took well under two seconds, and no alarm was raised
    assert!(
        swap < Duration::from_millis(1500) && rename < Duration::from_millis(1500),
        "{swap:?} {rename:?}"
    );
    assert_eq!(status.failures(), 0);
    cancel.cancel();
    watching.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_change_behind_a_link_that_inotify_does_not_see_is_polled() {
    let (dir, elsewhere, ca) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Ca::new("CA"));
    write(elsewhere.path(), &ca.issue("first", VALID));
    for file in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(elsewhere.path().join(file), dir.path().join(file)).unwrap();
    }
    let source = open(dir.path(), &Readiness::new());
    let (shared, cancel) = (source.published().shared, CancellationToken::new());
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(source.watch(cancel.clone()));
    write(elsewhere.path(), &ca.issue("second", VALID));
    assert!(until_served(&shared, 2, "second").await < Duration::from_secs(2));
    cancel.cancel();
    watching.join_next().await.unwrap().unwrap();
}
