//! One cell of the matrix: what is started for it, how its client asks, and what must come of it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use hnp_tests::agent::{Agent, Config, Route};
use hnp_tests::manager::{self, Http2, Manager, Service, Setup};
use hnp_tests::pattern::{self, Pattern};
use hnp_tests::pki::{self, Ca, Files, Spec};
use hnp_tests::poll::eventually;
use hnp_tests::process::{Finished, Place};
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER4, OTHER4, Pod};
use serde_json::Value;

use crate::gateway::{node_of, start, uncaptured};

/// What is dialled, by pods and by the agent: without hnp the same request reaches the same port.
const PORT: u16 = 8443;
/// The client of opaque cells.
const OPAQUE: &str = include_str!("../../clients/opaque.py");
/// What each request carries, as a [`Pattern`]: more than one buffer, more than one frame.
const BODY: (u64, u64) = (36, 100_000);

/// How a route carries bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    /// The pod's TLS ends at the agent, and its certificate is asked for.
    EndToEnd,
    /// The pod knows nothing of TLS.
    ReverseProxy,
    /// The pod's TLS ends at the manager.
    Tunnel,
}

/// How bytes come to the agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// By the kernel: the pod dials the manager.
    Captured,
    /// By the gateway of an agent that captures nothing.
    Explicit,
}

/// What the pod speaks, and its program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Client {
    /// curl.
    Http1,
    /// curl, by ALPN where it speaks TLS, with prior knowledge in the clear.
    Http2,
    /// Python's sockets.
    Opaque,
}

/// One cell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    pub(super) mode: Mode,
    pub(super) way: Way,
    pub(super) client: Client,
}

/// How a request is put. The word of a gateway's form is the access line's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    /// To the manager's name.
    Straight,
    Absolute,
    Connect,
    Origin,
}

impl Form {
    fn word(self) -> Value {
        match self {
            Self::Straight => Value::Null,
            Self::Absolute => "absolute".into(),
            Self::Connect => "connect".into(),
            Self::Origin => "origin".into(),
        }
    }
}

impl Cell {
    /// The promise of this cell.
    #[track_caller]
    pub(super) fn judge(self) {
        let stage = Stage::set(self);
        // The control, before there is an agent: the managers are what they are called.
        for side in &stage.sides {
            let straight = stage.ask(stage.pod.outside_cgroup(), side, Form::Straight, true, None);
            stage.as_the_manager_decides(side, &straight);
            side.manager.forget();
        }
        let agent = stage.agent();
        for side in &stage.sides {
            for form in self.forms() {
                stage.carried(&agent, side, *form);
            }
            if self.mode != Mode::ReverseProxy {
                stage.without_a_certificate(&agent, side);
            }
        }
    }

    /// A client that has no TLS of its own may leave it to the gateway where it goes.
    fn forms(self) -> &'static [Form] {
        match (self.way, self.mode, self.client) {
            (Way::Captured, _, _) => &[Form::Straight],
            (Way::Explicit, Mode::ReverseProxy, Client::Http1) => {
                &[Form::Absolute, Form::Connect, Form::Origin]
            }
            (Way::Explicit, Mode::ReverseProxy, Client::Http2) => &[Form::Connect, Form::Origin],
            (Way::Explicit, _, _) => &[Form::Connect],
        }
    }

    fn speaks_tls(self) -> bool {
        self.mode != Mode::ReverseProxy
    }
}

/// A manager, and its name.
struct Side {
    mode: manager::Mode,
    /// Also of its route.
    name: &'static str,
    host: &'static str,
    manager: Manager,
}

struct Stage {
    cell: Cell,
    pod: Pod,
    sides: [Side; 2],
    /// The certificate that the pod holds, where it speaks TLS.
    own: Files,
    /// The CA of pods' certificates where their TLS ends at the agent.
    pods: Ca,
    body: PathBuf,
    scene: Scene,
}

impl Stage {
    fn set(cell: Cell) -> Self {
        let scene = Scene::for_test();
        let side = |mode, name, host, addr: Ipv4Addr| {
            scene.add_host(host, &[addr.into()]);
            let setup = Setup::new(name, PORT).on(&[addr.into()]);
            let setup = setup.tls(mode, &scene.servers.server(&[host]), &scene.clients);
            let setup = match cell.client {
                Client::Http1 => setup,
                Client::Http2 => setup.http2(Http2::default()),
                Client::Opaque => setup.service(Service::Echo),
            };
            Side { mode, name, host, manager: Manager::start(&scene, setup) }
        };
        let sides = [
            side(manager::Mode::Strict, "strict", "strict.hnp.test", MANAGER4),
            side(manager::Mode::Loose, "loose", "loose.hnp.test", OTHER4),
        ];
        let pods = Ca::new("hnp test pods");
        // No manager takes what only the agent knows.
        let issuer = if cell.mode == Mode::EndToEnd { &pods } else { &scene.clients };
        let own = issuer.issue(&Spec::client("runner").named()).write(scene.dir(), "pod");
        let body = scene.path("body");
        let mut pattern = Pattern::new(BODY.0, BODY.1);
        let mut bytes = Vec::new();
        while let Some(block) = pattern.next_block() {
            bytes.extend_from_slice(block);
        }
        fs::write(&body, bytes).expect("the world's directory is ours");
        Self { cell, pod: scene.pod(), sides, own, pods, body, scene }
    }

    fn agent(&self) -> Agent {
        let scene = &self.scene;
        let names = self.sides.each_ref().map(|side| side.host);
        let serving = scene.servers.server(&names).write(scene.dir(), "serving");
        let config = scene.config().identity("serving", &serving);
        let config = config.trust("pods", &self.pods.write(scene.dir(), "pods"));
        let config = self.sides.iter().fold(config, |config: Config, side| config.route(self.route(side)));
        match self.cell.way {
            Way::Captured => Agent::start(scene, &config),
            Way::Explicit => start(scene, &uncaptured(config)),
        }
    }

    fn route(&self, side: &Side) -> Route {
        let (destination, upstream) =
            (format!("{}:{PORT}", side.host), format!("https://{}:{PORT}", side.host));
        let destinations = &[destination.as_str()];
        if self.cell.mode == Mode::Tunnel {
            return Route::tunnel(side.name, destinations, &upstream);
        }
        let route = match self.cell.client {
            Client::Http1 | Client::Http2 => Route::strict(side.name, destinations, &upstream),
            Client::Opaque => Route::opaque(side.name, destinations, &upstream),
        };
        let route = route.with(IDENTITY, TRUST);
        if self.cell.mode == Mode::ReverseProxy {
            return route;
        }
        route.set("mode", "end-to-end").set("end_to_end", "{serving: [serving], client_trust: pods}")
    }

    /// One request, with a certificate or without.
    fn ask(&self, place: &Place, side: &Side, form: Form, tls: bool, own: Option<&Files>) -> Finished {
        let gateway = format!("{}:7777", node_of(&self.pod));
        let authority = format!("{}:{PORT}", side.host);
        let mut command = if self.cell.client == Client::Opaque {
            let body = fs::read(&self.body).expect("we wrote it");
            let command = place.command(tools::python()).args(["-c", OPAQUE, side.host, &PORT.to_string()]);
            if form == Form::Connect { command.args(["--proxy", &gateway]) } else { command }.stdin(body)
        } else {
            let version = match (self.cell.client, tls) {
                (Client::Http2, true) => "--http2",
                (Client::Http2, false) => "--http2-prior-knowledge",
                _ => "--http1.1",
            };
            let token = format!("X-Token: {}", token(side, form, own));
            let command = place.command("curl").args(["-sS", "--fail", version, "-H", &token]);
            let command = command.args(["-w", "%{http_version}", "--data-binary"]);
            let command = command.arg(format!("@{}", self.body.display()));
            let scheme = if tls { "https" } else { "http" };
            let url = format!("{scheme}://{authority}/hello");
            match form {
                Form::Straight => command.arg(&url),
                Form::Absolute => command.args(["--proxy", &gateway, &url]),
                Form::Connect => command.args(["--proxytunnel", "--proxy", &gateway, &url]),
                Form::Origin => {
                    let (host, url) = (format!("Host: {authority}"), format!("http://{gateway}/hello"));
                    command.args(["-H", &host, &url])
                }
            }
        };
        if tls {
            command = command.arg("--cacert").arg(&self.scene.roots);
        }
        if let Some(files) = own {
            command = command.arg("--cert").arg(&files.certificate).arg("--key").arg(&files.key);
        }
        command.run()
    }

    /// The manager is asked, in TLS without a certificate.
    #[track_caller]
    fn as_the_manager_decides(&self, side: &Side, answer: &Finished) {
        if side.mode == manager::Mode::Loose {
            assert_eq!(self.serial_in(side, answer), None, "{}: nobody lent it one", side.name);
        } else {
            assert!(!answer.status.success(), "{}: {answer}", side.name);
            // Whether the client reads the alert, or a reset overtakes it, is a race; what the manager did is not.
            eventually(Duration::from_secs(5), "the manager refuses for lack of a certificate", || {
                let last = side.manager.connections().pop();
                last.and_then(|last| last.error).is_some_and(|error| error.contains("no certificates"))
            });
        }
    }

    /// What hnp is there for.
    #[track_caller]
    fn carried(&self, agent: &Agent, side: &Side, form: Form) {
        let (cell, what) = (self.cell, format!("{} {form:?}", side.name));
        let own = cell.speaks_tls().then_some(&self.own);
        let answer = self.ask(&self.pod, side, form, cell.speaks_tls(), own);
        let (pods, agents) = (pki::serial_of(&self.own.certificate), &self.scene.client_serial);
        let expected = if cell.mode == Mode::Tunnel { &pods } else { agents };
        assert_eq!(self.serial_in(side, &answer).as_ref(), Some(expected), "{what}");
        if cell.client != Client::Opaque {
            let seen = side.manager.request(&token(side, form, own));
            assert_eq!((seen.client_serial(), seen.target.as_str()), (expected.as_str(), "/hello"), "{what}");
            assert_eq!(seen.body_sha256.as_deref(), Some(&*sent()), "{what}");
            let version = if cell.client == Client::Http2 { " HTTP/2.0" } else { " HTTP/1.1" };
            assert!(seen.head.start_line.ends_with(version), "{what}: {}", seen.head.start_line);
        }

        // curl does not wait for the manager's own end, and what comes after its own is answered with a reset: where
        // hnp cannot see that the answer was whole, that is a client who left.
        let unread = cell.mode == Mode::Tunnel && cell.client != Client::Opaque;
        let line = agent.access_line(&what, |line| {
            let reason = &line["reason"];
            let ended = reason == "ok" || unread && reason == "client_gone";
            line["route"] == side.name && line["gateway"] == form.word() && ended
        });
        let mode = match (cell.mode, cell.client) {
            (Mode::EndToEnd, _) => "end-to-end",
            (Mode::ReverseProxy, Client::Opaque) => "opaque",
            (Mode::ReverseProxy, _) => "reverse-proxy",
            (Mode::Tunnel, _) => "tunnel",
        };
        let onward = match (cell.mode, cell.client) {
            (Mode::Tunnel, _) | (_, Client::Opaque) => Value::Null,
            (_, Client::Http1) => "http/1.1".into(),
            (_, Client::Http2) => "h2".into(),
        };
        assert_eq!((&line["mode"], &line["upstream_protocol"]), (&mode.into(), &onward), "{line}");
        // The managers speak what the clients do.
        assert_eq!(line["client_protocol"], onward, "{line}");
        let verified = if cell.mode == Mode::EndToEnd { pods.into() } else { Value::Null };
        assert_eq!(line["client_serial"], verified, "{line}");
        assert!(line["bytes_up"].as_u64() >= Some(BODY.1), "{line}");
        let pod = match cell.way {
            Way::Captured => self.pod.uid.as_str().into(),
            // Its address is all that is known of it.
            Way::Explicit => Value::Null,
        };
        assert_eq!(line["pod_uid"], pod, "{line}");
        let client = line["client"].as_str().unwrap_or_default();
        assert!(client.starts_with(&format!("{}:", self.pod.addr4)), "{line}");
    }

    /// The same without a certificate of the pod's: refused by the agent where the TLS ends there, also in front of
    /// a loose manager; in a tunnel the manager decides, as if there were no hnp.
    #[track_caller]
    fn without_a_certificate(&self, agent: &Agent, side: &Side) {
        let form = if self.cell.way == Way::Captured { Form::Straight } else { Form::Connect };
        let answer = self.ask(&self.pod, side, form, true, None);
        if self.cell.mode == Mode::Tunnel {
            return self.as_the_manager_decides(side, &answer);
        }
        assert!(!answer.status.success(), "{}: {answer}", side.name);
        agent.access_line("the refused one", |line| {
            line["route"] == side.name && line["reason"] == "pod_certificate_missing"
        });
        let carried = side.manager.connections().into_iter().filter_map(|connection| connection.tls);
        let serials: Vec<_> = carried.filter_map(|tls| tls.client).map(|client| client.serial).collect();
        assert_eq!(serials, [self.scene.client_serial.as_str()], "{}: one that was carried", side.name);
    }

    /// The serial of the certificate that the manager was shown, after a look at what came back to the client.
    #[track_caller]
    fn serial_in(&self, side: &Side, answer: &Finished) -> Option<String> {
        let text = answer.ok();
        if self.cell.client == Client::Opaque {
            assert_eq!(text, format!("220 ready\n{}\nbye {}\n", sent(), BODY.1), "{}", side.name);
            let last = side.manager.connections().pop().expect("it was answered");
            assert_eq!(last.received, BODY.1, "{}", side.name);
            return last.tls.expect("TLS alone").client.map(|client| client.serial);
        }
        let (json, version) = text.rsplit_once('\n').expect("the version stands behind the body's last line");
        assert_eq!(version, if self.cell.client == Client::Http2 { "2" } else { "1.1" }, "{}", side.name);
        let seen: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert_eq!((&seen["manager"], &seen["body_sha256"]), (&side.name.into(), &sent().into()), "{seen}");
        seen["client_serial"].as_str().map(str::to_owned)
    }
}

/// Of each request its own.
fn token(side: &Side, form: Form, own: Option<&Files>) -> String {
    let certificate = if own.is_some() { "with" } else { "without" };
    format!("{}-{form:?}-{certificate}", side.name)
}

fn sent() -> String {
    pattern::sha256_of(BODY.0, BODY.1)
}
