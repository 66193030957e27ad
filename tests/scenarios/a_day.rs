//! A day of certificates that live for an hour, renewed as cert-manager does, by a clock that agent and manager share and
//! that goes faster than the wall's: none that is over is ever shown, to either side, and no request fails.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hnp_tests::agent::{Agent, Build, Config};
use hnp_tests::client::{self, Job, Report, Target};
use hnp_tests::clock::FastClock;
use hnp_tests::manager::{Connection, Manager, Setup, Shown};
use hnp_tests::pki::{CLIENT_NAME, Leaf, Spec};
use hnp_tests::poll::{patience, pause};
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{self, MANAGER_NAME, MANAGER4, Pod};

/// An hour is under four seconds, and a certificate that is renewed has one and a quarter left.
const RATE: u32 = 960;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const LIFETIME: Duration = HOUR;
/// As cert-manager does unless told otherwise: after two thirds.
const RENEWED_AFTER: Duration = Duration::from_secs(2400);
/// Requests a second, each on a connection of its own to the manager.
const REQUESTS: u64 = 20;
const SOON: Duration = Duration::from_secs(20);

#[test]
fn of_short_certificates_shows_none_that_is_over_and_fails_no_request() {
    let _alone = topology::alone();
    let mut day = Day::start();
    let seconds = day.clock.on_the_wall(DAY).as_secs_f64();
    let steady = Job::Steady { target: target(), rate: REQUESTS, connections: 4, seconds };
    let (load, evening) = (client::load(&day.pod, &steady).spawn(), day.clock.now() + DAY);
    day.renewing("the day", patience(DAY / RATE + SOON), |day| {
        day.looks_well();
        day.clock.now() > evening
    });
    // Its last requests are answered while certificates are renewed, too.
    let tally = std::thread::spawn(move || load.wait(SOON).json::<Report>());
    day.renewing("the load's end", SOON, |_| tally.is_finished());
    let report = tally.join().expect("the load ends");
    report.assert_all_ok((REQUESTS as f64 * seconds) as u64);

    let connections = day.manager.connections();
    let shown = day.all_shown_in_time(&connections);
    eprintln!(
        "{} requests over {} handshakes with {} certificates of ours; the slowest took {:.1} ms",
        report.ok,
        connections.len(),
        shown.len(),
        report.slowest_ms
    );
    assert!(shown.len() > 20, "renewed {} times", shown.len());
    let metrics = day.agent.metrics();
    assert!(metrics.sum("hnp_identity_generation", &[("identity", IDENTITY)]) >= shown.len() as f64);
    assert_eq!(metrics.sum("hnp_identity_reload_failures", &[("identity", IDENTITY)]), 0.0);
    // What is renewed after two thirds has had its half, and nothing later.
    assert!(day.agent.log().contains("half of its lifetime is over"), "{}", day.agent.log());
    for never in ["three quarters", "nine tenths", "it has expired"] {
        assert!(!day.agent.log().contains(never), "{never} is said of none that is renewed in time");
    }

    day.resume_sessions();
    // The control: nobody renews ours any more.
    day.client.stopped = true;
    day.fails_with("client_certificate_refused");
    let refused = |one: &Connection| one.error.as_ref().is_some_and(|error| error.contains("expired"));
    assert!(day.manager.connections().iter().any(refused), "it is the manager that refuses it");
    day.renewing("the log says so", SOON, |day| day.agent.log().contains("it has expired"));
    assert!(day.not_after() < day.clock.now());
    day.client.stopped = false;
    day.renewing("the next one is taken", SOON, |day| day.ask().failures.is_empty());
    // And nobody the manager's; no session of the time before hides that, either.
    day.server.stopped = true;
    day.fails_with("upstream_certificate_expired");
    day.server.stopped = false;
    day.renewing("the manager's next one is taken", SOON, |day| day.ask().failures.is_empty());
}

/// The same variable moves the clock of the one build and not that of the other, which does not know its name.
#[test]
fn the_build_that_ships_has_no_clock_that_can_be_set() {
    let scene = Scene::for_test();
    let now = SystemTime::now();
    let leaf = scene.clients.issue(&Spec::client(CLIENT_NAME).valid(now - HOUR, now + DAY));
    let file = leaf.write(scene.dir(), "short").certificate;
    let (name, value) = FastClock::at(now + 2 * DAY, 1).env();
    let state = |build: Build| {
        let command = scene.agent_place().command(build.binary()).args(["certs", "inspect", "--json"]);
        let json: serde_json::Value = command.arg(&file).env(name, &value).run().json();
        json.to_string()
    };
    let knows = |build: Build| {
        let bytes = fs::read(build.binary()).expect("it was built");
        bytes.windows(name.len()).any(|piece| piece == name.as_bytes())
    };
    let (ordinary, other) = (state(Build::Ordinary), state(Build::OtherClock));
    assert!(ordinary.contains("\"valid\"") && !ordinary.contains("\"expired\""), "{ordinary}");
    assert!(other.contains("\"expired\""), "the control: {other}");
    assert!(!knows(Build::Ordinary) && knows(Build::OtherClock));
}

/// The node, the manager and who renews for both of them.
struct Day {
    clock: FastClock,
    client: Renewed,
    server: Renewed,
    shown: Arc<Shown>,
    volume: PathBuf,
    agent: Agent,
    manager: Manager,
    pod: Pod,
    scene: Scene,
}

/// A certificate that is renewed.
struct Renewed {
    due: SystemTime,
    number: u32,
    /// Nobody does it any more.
    stopped: bool,
}

impl Day {
    fn start() -> Self {
        let scene = Scene::for_test();
        let volume = scene.path("secret");
        fs::create_dir(&volume).expect("the world's directory is ours");
        let clock = FastClock::at(SystemTime::now(), RATE);
        let (mut client, mut server) = (Renewed::due_at(clock.now()), Renewed::due_at(clock.now()));
        let shown = Shown::new(&server.issue(clock, |dates| dates.server(&scene)));
        client.issue(clock, |dates| dates.client(&scene)).mount(&volume, "..1");
        let setup = Setup::new("manager", 80).tls_by(clock, &shown, &scene.clients);
        let manager = Manager::start(&scene, setup.resuming_none());
        let keys = format!("directory: {}", volume.display());
        let route = scene.route().set("pool_idle", "0").set("upstream_protocol", "http/1.1");
        let config = Config::new(&scene);
        let mut config = config.identity_with(IDENTITY, &keys).trust(TRUST, &scene.roots).route(route);
        config.env.push(clock.env());
        let agent = Agent::spawn_build(Build::OtherClock, scene.agent_place(), &config, false);
        let pod = scene.pod();
        let mut day = Self { clock, client, server, shown, volume, agent, manager, pod, scene };
        day.renewing("the agent is ready", SOON, |day| {
            matches!(day.agent.get("/readyz"), Ok((200, _))) && day.ask().failures.is_empty()
        });
        day.manager.forget();
        day
    }

    /// The manager is another one from now on, which resumes sessions, and does.
    #[track_caller]
    fn resume_sessions(&mut self) {
        let setup = Setup::new("manager", 80).tls_by(self.clock, &self.shown, &self.scene.clients);
        // The former's port first.
        self.manager = Manager::start(&self.scene, Setup::new("nobody", 81));
        self.manager = Manager::start(&self.scene, setup);
        let resumed = |one: &Connection| one.tls.as_ref().is_some_and(|tls| tls.resumed);
        self.renewing("sessions are resumed", SOON, |day| {
            day.ask().assert_all_ok(1);
            day.manager.connections().iter().any(resumed)
        });
    }

    /// Renews what is due, until something holds.
    #[track_caller]
    fn renewing(&mut self, what: &str, deadline: Duration, mut holds: impl FnMut(&Self) -> bool) {
        let (began, deadline) = (Instant::now(), patience(deadline));
        // What is looked at takes longer than what has to be in time.
        let mut looked = began;
        loop {
            self.renew();
            if looked.elapsed() >= Duration::from_millis(200) || looked == began {
                if holds(self) {
                    return;
                }
                looked = Instant::now();
            }
            assert!(began.elapsed() < deadline, "not within {deadline:?}: {what}");
            pause();
        }
    }

    fn renew(&mut self) {
        let now = self.clock.now();
        if self.client.is_due(now) {
            let leaf = self.client.issue(self.clock, |dates| dates.client(&self.scene));
            leaf.mount(&self.volume, &format!("..{}", self.client.number));
        }
        if self.server.is_due(now) {
            self.shown.replace(&self.server.issue(self.clock, |dates| dates.server(&self.scene)));
        }
    }

    /// What the agent presents is not over, and it says until when.
    #[track_caller]
    fn looks_well(&self) {
        let now = self.clock.now();
        assert!(self.not_after() >= now, "it presents what is over: {}", self.agent.log());
    }

    fn not_after(&self) -> SystemTime {
        let seconds = self.agent.metrics().sum("hnp_identity_not_after_seconds", &[("identity", IDENTITY)]);
        SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)
    }

    /// All handshakes came about, each with a certificate that was valid at that moment by the manager's clock;
    /// returns their serials.
    #[track_caller]
    fn all_shown_in_time(&self, connections: &[Connection]) -> BTreeSet<String> {
        let mut serials = BTreeSet::new();
        for connection in connections {
            let (tls, client) = connection
                .tls
                .as_ref()
                .and_then(|tls| Some((tls, tls.client.as_ref()?)))
                .unwrap_or_else(|| panic!("no handshake with a certificate: {connection:?}"));
            // Certificates' dates are whole seconds, and so is what they are compared with.
            let late = tls.at.duration_since(client.not_after).unwrap_or_default();
            assert!(client.not_before <= tls.at && late < Duration::from_secs(1), "{connection:?}");
            serials.insert(client.serial.clone());
        }
        serials
    }

    /// Requests begin to fail, for this reason, which the access line has, too.
    #[track_caller]
    fn fails_with(&mut self, reason: &str) {
        self.renewing(reason, SOON, |day| {
            let failures = day.ask().failures;
            assert!(failures.iter().all(|failure| failure.contains(reason)), "{failures:?}");
            !failures.is_empty()
        });
        let line = self.agent.access_line_with(reason);
        let detail = line["detail"].as_str().unwrap_or_default();
        assert!(detail.to_ascii_lowercase().contains("expired"), "{line}");
    }

    fn ask(&self) -> Report {
        client::run(&self.pod, &Job::Short { targets: vec![target()], total: 1, concurrency: 1 })
    }
}

impl Renewed {
    fn due_at(due: SystemTime) -> Self {
        Self { due, number: 0, stopped: false }
    }

    fn is_due(&self, now: SystemTime) -> bool {
        !self.stopped && now >= self.due
    }

    fn issue(&mut self, clock: FastClock, leaf: impl FnOnce(Dates) -> Leaf) -> Leaf {
        let now = clock.now();
        self.number += 1;
        self.due = now + RENEWED_AFTER;
        leaf(Dates(now, now + LIFETIME))
    }
}

/// From when until when.
struct Dates(SystemTime, SystemTime);

impl Dates {
    fn client(self, scene: &Scene) -> Leaf {
        scene.clients.issue(&Spec::client(CLIENT_NAME).valid(self.0, self.1))
    }

    fn server(self, scene: &Scene) -> Leaf {
        scene.servers.issue(&Spec::server(&[MANAGER_NAME]).valid(self.0, self.1))
    }
}

fn target() -> Target {
    Target::new((MANAGER4, 80), MANAGER_NAME, "manager")
}
