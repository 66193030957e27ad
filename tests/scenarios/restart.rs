//! An agent that dies leaves destinations refused rather than open, a start that fails changes nothing
//! of that, and the next one takes over, wherever its container's cgroup is. A running one notices when
//! the pods' cgroup is replaced under it.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use hnp_tests::agent::{self, Agent, CAPABILITIES, Config};
use hnp_tests::client::{self, End, Job, RawCase, Target};
use hnp_tests::manager::Manager;
use hnp_tests::pinned::PinnedMap;
use hnp_tests::poll::eventually;
use hnp_tests::process::Place;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, MANAGER6};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Time enough for any end.
const END: Duration = Duration::from_secs(20);

#[test]
fn an_agent_inside_kubepods_is_restarted_in_another_container() {
    let scene = Scene::for_test();
    let (manager, pod) = (scene.strict_manager(), scene.pod());
    let mut first = Agent::spawn(scene.host_network_pod(), &config(&scene), CAPABILITIES);
    first.wait_until_ready();
    assert_serves(&pod);
    first.kill();
    assert_refused_while_dead(&pod, &manager);

    // Every call of `host_network_pod` gives another cgroup.
    let mut second = Agent::spawn(scene.host_network_pod(), &config(&scene), CAPABILITIES);
    second.wait_until_ready();
    assert_serves(&pod);
    // The exemption is the agent's alone: the control that the port is still kept from others.
    let addr = ([0, 0, 0, 0], 15001).into();
    let thief = client::run(&scene.host_network_pod(), &Job::Bind { addr });
    assert_eq!(thief.failed, 1, "{thief:?}");
    assert_ends_clean(&scene, second);
}

#[test]
fn cgroups_of_agents_that_died_are_not_exempt_for_ever() {
    let scene = Scene::for_test();
    let (_manager, pod) = (scene.strict_manager(), scene.pod());
    let start = || {
        let mut agent = Agent::spawn(scene.host_network_pod(), &config(&scene), CAPABILITIES);
        agent.wait_until_ready();
        agent
    };
    start().kill();
    // What as many crashes leave as the map has room for: cgroups that are gone.
    let exempt = || PinnedMap::of(&scene, "EXEMPT");
    for gone in 1..16_u64 {
        exempt().set(&(u64::MAX - gone).to_le_bytes(), &[1]);
    }
    assert_eq!(exempt().entries().len(), 16);
    let second = start();
    assert_serves(&pod);
    assert_eq!(exempt().entries().len(), 1, "the agent's own");
    // The control: one that runs stays exempt, whoever else starts.
    let own = exempt().entries();
    let third = Agent::spawn(scene.host_network_pod(), &config(&scene), CAPABILITIES).wait(END);
    assert!(!third.status.success(), "{third}");
    assert_eq!(exempt().entries(), own);
    assert_ends_clean(&scene, second);
}

#[test]
fn a_start_that_fails_leaves_a_dead_agents_enforcement() {
    let scene = Scene::for_test();
    let (manager, pod) = (scene.strict_manager(), scene.pod());
    let first = Agent::start(&scene, &config(&scene));
    assert_serves(&pod);
    let kept = agent::remains(&scene);
    first.kill();

    // The port is taken by one outside kubepods, which no hook keeps from it.
    let taken = scene.node_netns().run(|| TcpListener::bind("0.0.0.0:15001")).expect("a free port");
    let early = Agent::spawn(scene.host_network_pod(), &config(&scene), CAPABILITIES).wait(END);
    assert!(!early.status.success() && early.stderr.contains("15001"), "{early}");
    drop(taken);
    assert_eq!(agent::remains(&scene), kept, "all of it is still there");
    assert_refused_while_dead(&pod, &manager);
    // The last step of a start, when all is attached: something is in the way of the pins.
    let in_the_way = scene.bpffs().join("links-new");
    std::fs::create_dir(&in_the_way).expect("made");
    mount(Some("tmpfs"), &in_the_way, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
    let late = Agent::spawn(scene.host_network_pod(), &config(&scene), CAPABILITIES).wait(END);
    assert!(!late.status.success() && late.stderr.contains("links-new"), "{late}");
    umount2(&in_the_way, MntFlags::MNT_DETACH).expect("unmounted");
    std::fs::remove_dir(&in_the_way).expect("ours");
    assert_eq!(agent::remains(&scene), kept);
    assert_refused_while_dead(&pod, &manager);

    let mut good = Agent::spawn(scene.host_network_pod(), &config(&scene), CAPABILITIES);
    good.wait_until_ready();
    assert_serves(&pod);
    assert_ends_clean(&scene, good);
}

#[test]
fn another_vip_range_after_a_restart_opens_nothing() {
    let scene = Scene::for_test();
    let (manager, pod) = (scene.strict_manager(), scene.pod());
    let first = Agent::start(&scene, &config(&scene));
    first.kill();
    assert_refused_while_dead(&pod, &manager);
    let mut other = config(&scene);
    other.capture = "vips4: 169.254.76.0/24, vips6: fd00:76::/64".to_owned();
    let second = Agent::start(&scene, &other);
    assert_serves(&pod);
    let old: Vec<_> = agent::remains(&scene).into_iter().filter(|what| what.contains("route")).collect();
    assert_eq!(old, Vec::<String>::new(), "the old ranges' routes are gone");
    assert_ends_clean(&scene, second);
}

#[test]
fn a_replaced_cgroup_is_noticed_and_attached_to_anew() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let mut agent = Agent::start(&scene, &config(&scene));
    // The control: a pod's cgroup below it that comes and goes is kubelet's daily work.
    let below = scene.kubepods().join("besteffort/pod1");
    std::fs::create_dir_all(&below).expect("made");
    std::fs::remove_dir(&below).expect("removed");
    std::fs::remove_dir(below.parent().expect("besteffort")).expect("removed");
    // Long enough for the look that comes every second: the condition is that nothing happens.
    let until = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < until {
        assert_eq!(agent.get("/readyz").expect("it answers").0, 200);
        assert!(agent.is_alive());
    }

    std::fs::remove_dir(scene.kubepods()).expect("no pod is there");
    let not_ready = |why: &str| {
        let (status, body) = agent.get("/readyz").expect("it answers");
        status == 503 && body.contains(why)
    };
    eventually(END, "not ready while there is no cgroup to hang on", || not_ready("cannot attach anew yet"));
    std::fs::create_dir(scene.kubepods()).expect("made again");
    eventually(END, "ready again", || agent.get("/readyz").expect("it answers").0 == 200);
    assert_serves(&scene.pod());
    // And enforced there, not only served.
    let pod = scene.pod();
    agent.kill();
    assert_refused_while_dead(&pod, &manager);
    let next = Agent::start(&scene, &config(&scene));
    assert_serves(&pod);
    assert_ends_clean(&scene, next);
}

#[test]
fn a_second_agent_is_refused_and_disturbs_nothing() {
    let scene = Scene::for_test();
    let (_manager, pod) = (scene.strict_manager(), scene.pod());
    let first = Agent::start(&scene, &config(&scene));
    let kept = agent::remains(&scene);
    let second = Agent::spawn(scene.host_network_pod(), &config(&scene), CAPABILITIES).wait(END);
    assert!(!second.status.success(), "{second}");
    for word in ["another agent is running", &format!("process {}", first.pid())] {
        assert!(second.stderr.contains(word), "{word}: {second}");
    }
    assert_eq!(agent::remains(&scene), kept);
    assert_serves(&pod);
    assert_ends_clean(&scene, first);
}

fn config(scene: &Scene) -> Config {
    scene.config().route(scene.route())
}

#[track_caller]
fn assert_serves(place: &Place) {
    let targets = [MANAGER4.into(), MANAGER6.into()]
        .map(|addr: std::net::IpAddr| Target::new((addr, 80), MANAGER_NAME, "manager"))
        .to_vec();
    client::run(place, &Job::Short { targets, total: 4, concurrency: 1 }).assert_all_ok(4);
}

/// ECONNREFUSED, and the manager has seen no request.
#[track_caller]
fn assert_refused_while_dead(place: &Place, manager: &Manager) {
    let before = manager.request_count();
    for addr in [(MANAGER4, 80).into(), std::net::SocketAddr::from((MANAGER6, 80))] {
        let text = format!("GET / HTTP/1.1\r\nhost: {MANAGER_NAME}\r\n\r\n");
        let end = client::raw(place, addr, vec![RawCase::new(text)]).remove(0).end;
        assert!(matches!(&end, End::NotConnected(why) if why.contains("refused")), "{addr}: {end:?}");
    }
    assert_eq!(manager.request_count(), before);
}

#[track_caller]
fn assert_ends_clean(scene: &Scene, agent: Agent) {
    let ended = agent.stop(END);
    assert!(ended.status.success(), "{ended}");
    let cleaned = Agent::clean_up(scene);
    assert!(cleaned.status.success(), "{cleaned}");
    assert_eq!(agent::remains(scene), Vec::<String>::new());
}
