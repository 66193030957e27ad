//! The stage of a trial: a world with managers and a pod, a sniffer, an agent that comes and goes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::expect::{Outcome, Phase};
use super::trial::{Scenery, Trial, request};
use super::{Attack, Attempt, ELSEWHERE_PORT, Ending, Technique};
use crate::agent::{Agent, CAPABILITIES, Config, Route};
use crate::manager::{Manager, Mode, Setup};
use crate::netns::Netns;
use crate::poll::{eventually, patience, until};
use crate::process::{Cmd, Place, Running};
use crate::scene::{DESTINATIONS, IDENTITY, Scene, TRUST, UPSTREAM};
use crate::sniffer::{Sniffer, Watch};
use crate::topology::{MANAGER_NAME, MANAGER4, MANAGER6, NODE4, OTHER4, Pod};

/// Ten times what anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// How many attempts the phase of restarts must have seen.
const ATTEMPTS: usize = 10;

/// The node's address towards the manager, over IPv6.
const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);

/// A world with managers and a pod.
pub(super) struct Stage {
    manager: Manager,
    _others: Vec<Manager>,
    pod: Pod,
    place: Place,
    attack: Attack,
    config: Config,
    scene: Scene,
}

impl Stage {
    pub(super) fn set(trial: &Trial) -> Self {
        let scene = Scene::for_test();
        let manager = match trial.scenery {
            Scenery::Node => {
                scene.set_hosts(&[(MANAGER_NAME, NODE4.into())]);
                let setup = Setup::new("manager", 80).tls(Mode::Strict, &scene.server, &scene.clients);
                Manager::start_in(scene.node_netns(), setup)
            }
            _ => scene.strict_manager(),
        };
        let destinations: &[&str] = match trial.scenery {
            Scenery::Network | Scenery::AgentsPort | Scenery::Loopback => DESTINATIONS,
            Scenery::ByName => &["manager.hnp.test:80"],
            Scenery::Node => &["198.18.0.1:80", "[fd00:9::1]:80"],
        };
        let mut others = vec![Manager::start(&scene, Setup::new("elsewhere", ELSEWHERE_PORT))];
        let route = Route::strict("manager", destinations, UPSTREAM).with(IDENTITY, TRUST);
        let config = scene.config().route(route);
        let pod = scene.pod();
        if trial.scenery == Scenery::Loopback {
            others.push(Manager::start_in(pod.netns(), Setup::new("stand-in", trial.target.port())));
        }
        let place = (trial.from)(&scene, &pod);
        let mut attack = Attack::new(trial.technique, trial.target, "");
        (trial.arrange)(&scene, &pod, &mut attack);
        Self { manager, _others: others, pod, place, attack, config, scene }
    }

    /// Without an agent; what makes it impossible, if it is.
    #[track_caller]
    pub(super) fn control(&self, trial: &Trial) -> Option<(String, String)> {
        let _stand_in = (trial.scenery == Scenery::AgentsPort).then(|| self.stand_in(trial));
        let sniffer = match trial.scenery {
            Scenery::AgentsPort => self.sniff_at(self.scene.node_netns(), trial),
            Scenery::Loopback => self.sniff_at(self.pod.netns(), trial),
            _ => self.sniff(trial),
        };
        let marker = self.marker("control");
        let attacker = self.attacker(trial, &marker, "control").spawn();
        if trial.technique.waits() {
            self.let_go(&attacker, "control");
        }
        if trial.technique == Technique::TakePort {
            self.feed_the_thief(trial, &attacker, &marker);
        }
        let attempts = attempts(&attacker.wait(DEADLINE).ok());
        eprintln!("control: {attempts:?}");
        for attempt in &attempts {
            if let Ending::Impossible { call, errno } = &attempt.end {
                assert!(!sniffer.saw(marker.as_bytes()), "impossible, and yet it was seen");
                return Some((call.clone(), errno.clone()));
            }
        }
        if trial.technique == Technique::Vsock {
            assert!(!sniffer.saw(marker.as_bytes()), "vsock is no way to an address");
            return None;
        }
        eventually(DEADLINE, &format!("the control reaches the manager: {attempts:?}"), || {
            sniffer.saw(marker.as_bytes())
        });
        assert_ne!(sniffer.leaks(&[marker]), Vec::<String>::new(), "and the judge calls that a leak");
        self.manager.forget();
        None
    }

    /// Somebody on the agent's port, and the way to it; the way is gone with it.
    fn stand_in(&self, trial: &Trial) -> Option<(Manager, LocalRoute<'_>)> {
        // A thief listens there himself.
        if trial.technique == Technique::TakePort {
            return None;
        }
        let route = LocalRoute::add(self.scene.node_netns());
        let setup = Setup::new("stand-in", trial.target.port());
        Some((Manager::start_in(self.scene.node_netns(), setup), route))
    }

    /// Connections to the thief, until he has one.
    #[track_caller]
    fn feed_the_thief(&self, trial: &Trial, thief: &Running, marker: &str) {
        let to = SocketAddr::from((NODE4, trial.target.port()));
        let bait = Attack::new(Technique::Connect, to, request(marker));
        eventually(DEADLINE, "the thief has a connection", || {
            bait.command(&self.pod).run();
            thief.stdout().contains(marker)
        });
    }

    #[track_caller]
    pub(super) fn trial(&self, trial: &Trial) {
        let phases = [Phase::Alive, Phase::Killed, Phase::Restarting];
        let [alive, killed, restarting] = phases.map(|phase| self.marker(phase.name()));
        // What is to be older than the agent is made now.
        let mut older = phases.map(|phase| {
            let name = phase.name();
            let start = || self.attacker_in(trial, phase, &self.marker(name), name).spawn();
            trial.technique.waits().then(start)
        });
        for attacker in older.iter().flatten() {
            wait_until_waiting(attacker);
        }
        let sniffer = self.sniff(trial);
        let mut begin = |phase: Phase, marker: &str| {
            let name = phase.name();
            let Some(attacker) = older[phase as usize].take() else {
                return self.attacker_in(trial, phase, marker, name).spawn();
            };
            self.let_go(&attacker, name);
            attacker
        };

        let agent = Agent::start(&self.scene, &self.config);
        let attempts_alive = attempts(&begin(Phase::Alive, &alive).wait(DEADLINE).ok());
        agent.kill();
        let attempts_killed = attempts(&begin(Phase::Killed, &killed).wait(DEADLINE).ok());
        let attacker = begin(Phase::Restarting, &restarting);
        let (agent, attempts_restarting) = self.restart(trial, attacker);
        self.fence(trial, &sniffer);

        let markers = [alive.clone(), killed, restarting];
        let leaks = sniffer.leaks(&markers);
        let shown = &leaks[..leaks.len().min(10)];
        let said = format!("alive {attempts_alive:?}, killed {attempts_killed:?}");
        assert!(leaks.is_empty(), "{} leaks: {shown:#?}\n{said}", leaks.len());
        eprintln!("{said}, restarting {} attempts", attempts_restarting.len());
        eprintln!("{} frames seen, {} TLS connections", sniffer.frame_count(), sniffer.tls_connections());
        let outcome = Outcome {
            technique: trial.technique,
            alive: last(&attempts_alive),
            killed: last(&attempts_killed),
            restarting: &attempts_restarting,
            requests: self.manager.requests().into_iter().filter(|request| request.token == alive).collect(),
            client_serial: &self.scene.client_serial,
            tls_connections: sniffer.tls_connections(),
        };
        trial.expect.compare(&outcome);
        drop(agent);
    }

    /// Kills and starts the agent while the attacker goes on; the last agent and all attempts.
    #[track_caller]
    fn restart(&self, trial: &Trial, mut attacker: Running) -> (Agent, Vec<Attempt>) {
        let spawn = || Agent::spawn(self.scene.agent_place(), &self.config, CAPABILITIES);
        // An emulated processor takes most of its time for starts.
        let rounds: &[bool] = if patience(DEADLINE) > DEADLINE { &[false] } else { &[true, false] };
        for &ready in rounds {
            let mut agent = spawn();
            if ready {
                agent.wait_until_ready();
            } else {
                // In the midst of its start.
                eventually(DEADLINE, "the agent begins to start", || !agent.log().is_empty());
            }
            agent.kill();
        }
        let mut agent = spawn();
        agent.wait_until_ready();
        eventually(DEADLINE, "enough attempts", || attempts(&attacker.stdout()).len() >= ATTEMPTS);
        assert!(trial.technique.waits() || attacker.is_alive(), "it ended: {}", attacker.stderr());
        let all = attempts(&attacker.stdout());
        drop(attacker);
        (agent, all)
    }

    fn sniff(&self, trial: &Trial) -> Sniffer {
        if trial.scenery == Scenery::Node {
            let local: [IpAddr; 2] = [NODE4.into(), NODE6.into()];
            let watch = Watch { addrs: local.to_vec(), port: 80, clients: local.to_vec() };
            return Sniffer::start(self.scene.node_netns(), watch);
        }
        let watch = Watch {
            addrs: vec![MANAGER4.into(), MANAGER6.into()],
            port: 80,
            clients: vec![NODE4.into(), NODE6.into()],
        };
        Sniffer::start(self.scene.manager_netns(), watch)
    }

    /// Whatever comes to the target's port in a namespace.
    fn sniff_at(&self, netns: &Netns, trial: &Trial) -> Sniffer {
        let local: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let addrs = [&local[..], &[trial.target.ip(), NODE4.into()]].concat();
        Sniffer::start(netns, Watch { addrs, port: trial.target.port(), clients: Vec::new() })
    }

    /// Whatever was sent before has been seen after this.
    #[track_caller]
    fn fence(&self, trial: &Trial, sniffer: &Sniffer) {
        const NOBODY: u16 = 9;
        let bytes = self.marker("fence");
        // Not a port that is watched: the fence itself is no leak.
        let to = match trial.scenery {
            Scenery::Node => SocketAddr::from((NODE4, NOBODY)),
            _ => SocketAddr::from((OTHER4, NOBODY)),
        };
        let socket = self.scene.node_netns().run(|| UdpSocket::bind("0.0.0.0:0")).expect("a free port");
        sniffer.fence(bytes.as_bytes(), || {
            // An error is of an earlier one that nobody took.
            let _ = socket.send_to(bytes.as_bytes(), to);
        });
    }

    fn attacker_in(&self, trial: &Trial, phase: Phase, marker: &str, name: &str) -> Cmd {
        let mut attack = self.attack_with(trial, marker, name);
        attack.repeat = phase == Phase::Restarting;
        attack.command(&self.place)
    }

    fn attacker(&self, trial: &Trial, marker: &str, name: &str) -> Cmd {
        self.attack_with(trial, marker, name).command(&self.place)
    }

    fn attack_with(&self, trial: &Trial, marker: &str, name: &str) -> Attack {
        let mut attack = self.attack.clone();
        attack.bytes = (trial.bytes)(marker);
        attack.go = Some(self.scene.path(&format!("go-{name}")));
        attack
    }

    fn let_go(&self, attacker: &Running, name: &str) {
        wait_until_waiting(attacker);
        std::fs::write(self.scene.path(&format!("go-{name}")), "").expect("the world's directory is ours");
    }

    /// A word that is nowhere else: the pod's uid is random.
    fn marker(&self, name: &str) -> String {
        format!("marker-{}-{name}", self.pod.uid)
    }
}

/// The range of the VIPs, made local as the agent does it.
struct LocalRoute<'a>(&'a Netns);

const LOCAL_ROUTE: &str = "local 169.254.77.0/24 dev lo";

impl<'a> LocalRoute<'a> {
    fn add(node: &'a Netns) -> Self {
        node.ip(&format!("route add {LOCAL_ROUTE}")).expect("a route");
        Self(node)
    }
}

impl Drop for LocalRoute<'_> {
    fn drop(&mut self) {
        // The node's namespace goes with the world in any case.
        let _ = self.0.ip(&format!("route del {LOCAL_ROUTE}"));
    }
}

#[track_caller]
fn wait_until_waiting(attacker: &Running) {
    let came = || attempts(&attacker.stdout()).into_iter().find(|attempt| attempt.end == Ending::Waiting);
    until(DEADLINE, "the attacker is where it waits", came);
}

fn attempts(stdout: &str) -> Vec<Attempt> {
    stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn last(attempts: &[Attempt]) -> &Ending {
    &attempts.last().expect("one attempt").end
}
