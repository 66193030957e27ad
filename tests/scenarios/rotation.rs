//! A new certificate is presented soon after its files change, however they change, and no request
//! fails on the way. A pair that is broken keeps the old one serving, and says so once.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::manager::Manager;
use hnp_tests::pki::{Files, Leaf};
use hnp_tests::poll::eventually;
use hnp_tests::process::Running;
use hnp_tests::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

const RATE: u64 = 500;
const SECONDS: f64 = 8.0;
/// Generous, so that a loaded machine does not fail it; the figure is printed. The promise is 2 s.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn by_rename_under_load() {
    let scene = Scene::for_test();
    let files = scene.client.clone();
    let rotated = Rotated::start(scene, &files);
    let load = rotated.load();
    for _ in 0..2 {
        let next = rotated.scene.clients.client();
        let staged = next.write(rotated.scene.dir(), "staged");
        // The certificate first: for a moment the pair does not belong together.
        fs::rename(&staged.certificate, &files.certificate).expect("the world's directory is ours");
        fs::rename(&staged.key, &files.key).expect("the world's directory is ours");
        rotated.assert_presented(&next);
    }
    rotated.assert_no_failure(load);
}

#[test]
fn by_the_symlink_swap_of_a_kubernetes_secret_under_load() {
    let scene = Scene::for_test();
    let volume = scene.path("secret");
    fs::create_dir(&volume).expect("the world's directory is ours");
    let first = scene.clients.client();
    first.mount(&volume, "..2026_01_01");
    let rotated = Rotated::start_with(scene, &format!("directory: {}", volume.display()));
    rotated.assert_presented_now(&first);
    let load = rotated.load();
    for version in ["..2026_01_02", "..2026_01_03"] {
        let next = rotated.scene.clients.client();
        next.mount(&volume, version);
        rotated.assert_presented(&next);
    }
    rotated.assert_no_failure(load);
}

/// As certbot does: what was issued lies in archive/, and live/ holds links that are made anew, one by one.
#[test]
fn by_the_links_of_certbot_and_behind_a_passphrase_under_load() {
    let scene = Scene::for_test();
    let [live, archive] = ["live", "archive"].map(|name| scene.path(name));
    for dir in [&live, &archive] {
        fs::create_dir(dir).expect("the world's directory is ours");
    }
    fs::write(scene.path("passphrase"), "correct horse\n").expect("the world's directory is ours");
    let issue = |scene: &Scene, number: u32| {
        let leaf = scene.clients.client();
        let files = leaf.write(scene.dir(), "plain");
        let to = |name: &str| archive.join(format!("{name}{number}.pem"));
        fs::rename(&files.certificate, to("fullchain")).expect("the world's directory is ours");
        let key = to("privkey").display().to_string();
        let options = ["-topk8", "-in", "plain.key", "-passout", "file:passphrase", "-out", &key];
        tools::run(scene.dir(), "openssl", &[&["pkcs8"], &options[..]].concat());
        for name in ["fullchain", "privkey"] {
            let link = live.join(format!("{name}.pem"));
            // certbot removes a link and makes another.
            let _ = fs::remove_file(&link);
            symlink(Path::new("../archive").join(format!("{name}{number}.pem")), link)
                .expect("our own directory");
        }
        leaf
    };
    let first = issue(&scene, 1);
    let passphrase = scene.path("passphrase");
    let keys = format!("directory: {}, passphrase_file: {}", live.display(), passphrase.display());
    let rotated = Rotated::start_with(scene, &keys);
    rotated.assert_presented_now(&first);
    let load = rotated.load();
    for number in [2, 3] {
        let next = issue(&rotated.scene, number);
        rotated.assert_presented(&next);
    }
    rotated.assert_no_failure(load);
    // The control: without the passphrase there is no key, and the old one serves on.
    let last = rotated.manager.last_request().expect("many came").client_serial().to_owned();
    replace(&passphrase, "another\n");
    let failing = || rotated.agent.metrics().sum("hnp_identity_reload_failing", &[("identity", IDENTITY)]);
    eventually(SOON, "the passphrase does not open the key", || failing() == 1.0);
    assert!(
        rotated.agent.log().contains("does not open the key")
            && !rotated.agent.log().contains("correct horse")
    );
    rotated.assert_serial(&last);
}

#[test]
fn a_broken_or_mismatched_pair_keeps_the_old_one() {
    let scene = Scene::for_test();
    let files = scene.client.clone();
    let old = fs::read_to_string(&files.certificate).expect("written by the scene");
    let rotated = Rotated::start(scene, &files);
    let failing = || rotated.agent.metrics().sum("hnp_identity_reload_failing", &[("identity", IDENTITY)]);
    let failures = || rotated.agent.metrics().sum("hnp_identity_reload_failures", &[("identity", IDENTITY)]);
    assert_eq!(failing(), 0.0);

    let other = rotated.scene.clients.client();
    for (number, (what, content)) in
        [("no PEM", "garbage\n"), ("of another key", &other.chain_pem), ("empty", "")].into_iter().enumerate()
    {
        let logged = warnings(&rotated.agent);
        replace(&files.certificate, content);
        eventually(SOON, &format!("a certificate that is {what} is noticed"), || {
            failing() == 1.0 && failures() >= number as f64 + 1.0
        });
        rotated.assert_serial(&rotated.scene.client_serial);
        assert_eq!(warnings(&rotated.agent), logged + 1, "said once: {}", rotated.agent.log());
    }
    // The control: the good pair again, and then a new one, is taken.
    replace(&files.certificate, &old);
    eventually(SOON, "the good certificate is noticed", || failing() == 0.0);
    replace(&files.key, &other.key_pem);
    replace(&files.certificate, &other.chain_pem);
    rotated.assert_presented(&other);
}

#[test]
fn new_roots_are_used_and_broken_ones_are_not() {
    let scene = Scene::for_test();
    let roots = scene.roots.clone();
    let next = hnp_tests::pki::Ca::new("the next CA");
    let files = scene.client.clone();
    let rotated = Rotated::start(scene, &files);
    rotated.assert_serial(&rotated.scene.client_serial);
    replace(&roots, "no roots at all\n");
    let failing = || rotated.agent.metrics().sum("hnp_trust_reload_failing", &[("trust", TRUST)]);
    eventually(SOON, "broken roots are noticed", || failing() == 1.0);
    rotated.assert_serial(&rotated.scene.client_serial);
    // Roots that do not include the manager's CA end what was trusted, pooled connections included.
    replace(&roots, &next.pem());
    eventually(SOON, "the manager is not trusted any more", || {
        let report = rotated.ask();
        report.failures.iter().any(|failure| failure.contains("upstream_certificate_unknown_ca"))
    });
}

/// A strict manager and an agent whose identity lies in files that the test changes.
struct Rotated {
    agent: Agent,
    pod: Pod,
    manager: Manager,
    scene: Scene,
}

impl Rotated {
    fn start(scene: Scene, files: &Files) -> Self {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        Self::start_with(scene, &format!("certificate: {certificate}, key: {key}"))
    }

    /// With these keys of the identity.
    fn start_with(scene: Scene, keys: &str) -> Self {
        let manager = scene.strict_manager();
        let route = Route::strict("manager", DESTINATIONS, UPSTREAM).with(IDENTITY, TRUST);
        let config =
            Config::new(&scene).identity_with(IDENTITY, keys).trust(TRUST, &scene.roots).route(route);
        let agent = Agent::start(&scene, &config);
        Self { agent, pod: scene.pod(), manager, scene }
    }

    fn target() -> Target {
        Target::new((MANAGER4, 80), MANAGER_NAME, "manager")
    }

    fn load(&self) -> Running {
        let steady = Job::Steady { target: Self::target(), rate: RATE, connections: 20, seconds: SECONDS };
        let running = client::load(&self.pod, &steady).spawn();
        let seen = self.manager.request_count();
        eventually(SOON, "the load runs", || self.manager.request_count() > seen + 100);
        running
    }

    fn ask(&self) -> Report {
        client::run(&self.pod, &Job::Short { targets: vec![Self::target()], total: 1, concurrency: 1 })
    }

    /// The manager sees the serial, on its next request or soon after.
    #[track_caller]
    fn assert_presented(&self, leaf: &Leaf) {
        let took = eventually(SOON, "the manager sees the new serial", || {
            if !self.ask().failures.is_empty() {
                return false;
            }
            self.manager.last_request().is_some_and(|request| request.client_serial() == leaf.serial)
        });
        eprintln!("presented after {:.2} s", took.as_secs_f64());
    }

    #[track_caller]
    fn assert_presented_now(&self, leaf: &Leaf) {
        self.assert_serial(&leaf.serial);
    }

    #[track_caller]
    fn assert_serial(&self, serial: &str) {
        self.ask().assert_all_ok(1);
        assert_eq!(self.manager.last_request().expect("one came").client_serial(), serial);
    }

    #[track_caller]
    fn assert_no_failure(&self, load: Running) {
        let report: Report = load.wait(Duration::from_secs(60)).json();
        eprintln!("{} requests, the slowest {:.1} ms", report.ok, report.slowest_ms);
        report.assert_all_ok((RATE as f64 * SECONDS) as u64);
        assert!(self.manager.requests().iter().all(|request| !request.client_serial().is_empty()));
    }
}

/// As an editor or `kubectl cp` would: a new file in the place of the old one.
fn replace(path: &Path, content: &str) {
    let staged = path.with_extension("staged");
    fs::write(&staged, content).expect("the world's directory is ours");
    fs::rename(&staged, path).expect("the world's directory is ours");
}

/// How many lines of the log are warnings or errors.
fn warnings(agent: &Agent) -> usize {
    agent.log().lines().filter(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\"")).count()
}
