//! Reloads on real files, looked at when the test says so.

use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::files::reload::SETTLE;
use crate::files::testpki::{Ca, EXPIRED, VALID};

struct Scene {
    dir: TempDir,
    ca: Ca,
    reloader: Reloader,
    readiness: Readiness,
    tasks: Tasks,
    now: Instant,
}

impl Scene {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("CA");
        write_pair(&dir, "first", &ca.issue("first", VALID));
        std::fs::write(dir.path().join("ca.crt"), ca.pem()).unwrap();
        std::fs::write(dir.path().join("hnp.yaml"), text(&dir, "")).unwrap();
        let file = ConfigFile::read(&dir.path().join("hnp.yaml")).unwrap();
        let plan = config::parse(&file.text, file.path.as_deref().unwrap()).unwrap();
        let telemetry = Telemetry::writing_to(&plan, Box::new(std::io::sink()));
        let (readiness, tasks) = (Readiness::new(), Tasks::default());
        let reloader = Reloader::start(
            &file,
            plan,
            Diagnostics::for_test(),
            Directory::default(),
            &readiness,
            &telemetry,
            &tasks,
        );
        Self { dir, ca, reloader, readiness, tasks, now: Instant::now() }
    }

    fn write(&self, text: &str) {
        std::fs::write(self.dir.path().join("hnp.yaml"), text).unwrap();
    }

    /// Looks until nothing more is to be looked at.
    fn look(&mut self) {
        for _ in 0..3 {
            self.now += SETTLE;
            self.reloader.look(self.now, Cause::Watch);
        }
    }

    fn generation(&self) -> Arc<Generation> {
        self.reloader.generations.borrow().clone()
    }

    fn failing(&self) -> Option<String> {
        self.reloader.status.reload.error()
    }

    async fn end(self) {
        self.tasks.end().await;
    }
}

fn text(dir: &TempDir, more: &str) -> String {
    let dir = dir.path().display();
    format!(
        "identities: {{c: {{certificate: {dir}/first.crt, key: {dir}/first.key}}}}\n\
         trusts: {{t: {{roots: {dir}/ca.crt}}}}\n\
         routes:\n- {{name: m, destinations: ['m.test:80'], upstream: 'https://m.test', identity: c, trust: t}}\n{more}"
    )
}

fn write_pair(dir: &TempDir, name: &str, (certificate, key): &(String, String)) {
    std::fs::write(dir.path().join(format!("{name}.crt")), certificate).unwrap();
    std::fs::write(dir.path().join(format!("{name}.key")), key).unwrap();
}

#[tokio::test]
async fn a_changed_file_becomes_the_next_generation_and_what_is_the_same_stays() {
    let mut scene = Scene::start();
    let first = scene.generation();
    scene.look();
    assert!(Arc::ptr_eq(&first, &scene.generation()), "nothing changed");
    scene.write(&text(&scene.dir, "drain: {deadline: 3s}\n"));
    scene.look();
    let second = scene.generation();
    assert_eq!((second.number, second.plan.drain_deadline), (2, Duration::from_secs(3)));
    assert!(Arc::ptr_eq(&first.identities[0], &second.identities[0]), "warm connections stay warm");
    assert!(Arc::ptr_eq(&first.trusts[0], &second.trusts[0]));
    scene.write(&text(&scene.dir, "# only a comment\ndrain: {deadline: 3s}\n"));
    scene.look();
    assert!(Arc::ptr_eq(&second, &scene.generation()), "what changes nothing is no new generation");
    assert_eq!(scene.reloader.status.taken.load(Relaxed), 2);
    scene.end().await;
}

#[tokio::test]
async fn an_issuer_needs_a_cluster_that_is_in_force_already() {
    let mut scene = Scene::start();
    let dir = scene.dir.path().display().to_string();
    std::fs::write(scene.dir.path().join("root.key"), scene.ca.key_pem()).unwrap();
    let plain = text(&scene.dir, "kubernetes: {api: 'https://10.96.0.1:443', node_name: n1}\n");
    let issuer =
        format!("{{issuer: {{certificate: {dir}/ca.crt, key: {dir}/root.key, trust_domain: a.test}}}}");
    let at = plain.find("c: {").unwrap() + 3;
    let end = at + plain[at..].find('}').unwrap() + 1;
    scene.write(&format!("{}{issuer}{}", &plain[..at], &plain[end..]));
    scene.look();
    let error = scene.failing().unwrap();
    assert!(
        error.contains("identity: issues for workloads: that needs `kubernetes`")
            && error.contains("restart"),
        "{error}"
    );
    // The control: without the issuer the rest is taken, and the cluster waits.
    scene.write(&plain);
    scene.look();
    assert_eq!(scene.failing(), None);
    scene.end().await;
}

#[tokio::test]
async fn all_mistakes_are_said_as_check_does_and_the_old_one_stays_in_force() {
    let mut scene = Scene::start();
    scene.write(&text(&scene.dir, "workers: none\nadmins: off\n"));
    scene.look();
    let error = scene.failing().unwrap();
    let path = scene.reloader.path.display();
    assert!(error.contains(&format!("{path}:5:10: workers: ")), "{error}");
    assert!(error.contains(&format!(" | {path}:6:1: admins: ")), "{error}");
    assert!(!error.contains('\n'));
    assert_eq!(scene.generation().number, 1);
    assert!(scene.readiness.is_ready());
    assert_eq!(scene.reloader.status.reload.failures(), 1, "counted once, however often it is looked at");
    scene.write(&text(&scene.dir, ""));
    scene.look();
    assert_eq!((scene.failing(), scene.generation().number), (None, 1));
    std::fs::remove_file(&scene.reloader.path).unwrap();
    scene.look();
    assert!(scene.failing().unwrap().contains("cannot be read"));
    scene.end().await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_keeps_all_of_the_old_one_until_it_can() {
    let mut scene = Scene::start();
    let other = text(&scene.dir, "drain: {deadline: 3s}\n").replace("first", "second");
    scene.write(&other);
    scene.look();
    let error = scene.failing().unwrap();
    assert!(error.contains(": identities.c: ") && error.contains("second.crt"), "{error}");
    assert_eq!(scene.generation().plan.drain_deadline, config::defaults::DRAIN_DEADLINE);
    assert!(scene.readiness.is_ready());
    // One that has expired is no better than one that is not there, while the old one is good.
    write_pair(&scene.dir, "second", &scene.ca.issue("second", EXPIRED));
    scene.look();
    assert_eq!(scene.generation().number, 1);
    // The file of the configuration stays as it is; only what it names changes.
    write_pair(&scene.dir, "second", &scene.ca.issue("second", VALID));
    scene.look();
    let generation = scene.generation();
    assert_eq!((generation.number, scene.failing()), (2, None));
    let identity = generation.identities[0].load_full().unwrap();
    assert!(identity.leaf.subject.ends_with("CN=second"));
    assert_eq!(identity.generation, 2, "counted on under the same name");
    scene.end().await;
}

#[tokio::test]
async fn what_waits_for_a_restart_does_not_hold_up_the_rest() {
    let mut scene = Scene::start();
    scene.write(&text(&scene.dir, "workers: 7\ndrain: {deadline: 3s}\n"));
    scene.look();
    let generation = scene.generation();
    assert_eq!(generation.plan.drain_deadline, Duration::from_secs(3));
    assert_ne!(generation.plan.workers, 7);
    assert_eq!(scene.reloader.status.waiting.load(Relaxed), 1);
    // An address in the range that is in force would be hnp itself, whatever the file says of ranges.
    let moved =
        text(&scene.dir, "capture: {vips4: 169.254.99.0/24}\n").replace("m.test:80", "169.254.77.9:80");
    scene.write(&moved);
    scene.look();
    assert!(
        scene.failing().unwrap().contains(": routes[0].destinations[0]: 169.254.77.9 lies in the VIP range")
    );
    assert_eq!(scene.generation().number, 2);
    scene.end().await;
}

#[tokio::test]
async fn a_signal_is_answered_at_once() {
    let mut scene = Scene::start();
    scene.write("routes: nonsense\n");
    scene.reloader.look(scene.now, Cause::Signal);
    assert!(scene.failing().is_some(), "without waiting for the file to settle");
    scene.write(&text(&scene.dir, "drain: {deadline: 3s}\n"));
    scene.reloader.look(scene.now, Cause::Signal);
    assert_eq!((scene.failing(), scene.generation().number), (None, 2));
    scene.end().await;
}

#[tokio::test]
async fn a_strict_route_that_the_kernel_cannot_keep_is_refused_until_it_can() {
    let mut scene = Scene::start();
    let module = Arc::new(AtomicU64::new(0));
    let loaded = Arc::clone(&module);
    scene.reloader = scene.reloader.asking(move |strict| {
        (!strict.is_empty() && loaded.load(Relaxed) == 0).then(|| format!("no way for {strict:?}"))
    });
    let loose = text(&scene.dir, "drain: {deadline: 3s}\n");
    scene.write(&loose.replace("name: m,", "name: m, enforcement: loose,"));
    scene.look();
    assert_eq!((scene.failing(), scene.generation().number), (None, 2), "the control");
    scene.write(&loose.replace("name: m,", "name: m, enforcement: strict,"));
    scene.look();
    let error = scene.failing().unwrap();
    assert!(error.contains(r#": routes: no way for ["m"]"#), "{error}");
    assert_eq!(scene.generation().number, 2);
    // The file stays as it is; only the kernel changes.
    module.store(1, Relaxed);
    scene.look();
    assert_eq!((scene.failing(), scene.generation().number), (None, 3));
    scene.end().await;
}
