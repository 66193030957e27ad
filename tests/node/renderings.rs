//! Each rendering of the chart that its check judges, and the plain manifest, really starts: over the runtime interface, from the
//! image, with exactly its security context, mounts, variables and words, and with the configuration that is in it. Its
//! own probes say that it is ready, and a pod's POST arrives over mutual TLS.
//!
//! What a rendering names is there under that name: the manager, a corporate proxy, the node's root store, the API
//! server with the startup taint.

use std::path::Path;
use std::time::Duration;

use hnp_tests::aloud::say;
use hnp_tests::api_server::Cluster;
use hnp_tests::corporate::{Corporate, PROXY4, Squid, SquidSetup};
use hnp_tests::kernel;
use hnp_tests::manager::{Manager, Mode, Setup};
use hnp_tests::node::{AgentPod, Manifest, Node, Pod, Relay, Spec, rendering, renderings};
use hnp_tests::poll::eventually;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER4, MANAGER6};
use serde_json::{Value, json};

use super::first_act::assert_attributed;
use super::manifest;

/// As of the oldest Kubernetes that the chart is for, and of the first one with a field for AppArmor.
const VERSIONS: [&str; 2] = ["1.28", "1.30"];
/// What the values files name.
pub(super) const MANAGER: &str = "manager.example";
const VENDORS: &str = "customer.agent.app.example";
const PROXY: &str = "proxy.corp.example";
/// What a node of Debian's kin has its roots in.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
const TAINT: &str = "hnp.dev/agent-not-ready";
/// `CAP_SYS_RESOURCE` of linux/capability.h.
const SYS_RESOURCE: u32 = 24;

/// The names of the values files, in `deploy/helm/hnp/ci/`.
const VALUES: [&str; 6] =
    ["everything", "gateway-only", "plain", "runtime-socket", "vendor", "vendor-chart-spelling"];
/// What `runtime-socket` names.
pub(super) const SOCKET: &str = "/run/crio/crio.sock";

/// An emulated processor takes long for each: there the newer one alone.
fn all(values: &str) -> Vec<Manifest> {
    let versions = if kernel::in_a_guest() { &VERSIONS[1..] } else { &VERSIONS[..] };
    versions.iter().map(|version| rendering(values, version)).collect()
}

#[test]
fn each_values_file_has_its_scenario() {
    assert_eq!(renderings().iter().collect::<Vec<_>>(), VALUES.iter().collect::<Vec<_>>());
}

#[test]
fn the_few_values_of_a_first_installation_and_the_plain_manifest() {
    let others = all("plain");
    captured(MANAGER, 8443, &[&others[..], &[manifest()]].concat());
}

#[test]
fn everything_switched_on() {
    captured(MANAGER, 8443, &all("everything"));
}

/// The socket is another runtime's by its path, and by what it says.
#[test]
fn the_runtimes_socket_is_mounted() {
    let scene = scene(MANAGER);
    let node = node(&scene);
    let _relay = Relay::start(&node, SOCKET);
    captured_on(node, &scene, MANAGER, 8443, &all("runtime-socket"));
}

#[test]
fn the_vendors_values() {
    captured(VENDORS, 443, &all("vendor"));
}

#[test]
fn the_vendors_values_in_the_other_spelling_behind_a_corporate_proxy() {
    let scene = scene(VENDORS);
    scene.add_host(PROXY, &[PROXY4.into()]);
    let corporate = Corporate::lay(&scene);
    let setup = SquidSetup { manager: &[VENDORS], ..SquidSetup::default() };
    let squid = Squid::start(&scene, &corporate, 3128, &setup);
    captured_in(&scene, VENDORS, 8443, &all("vendor-chart-spelling"));
    let expected = all("vendor-chart-spelling").len();
    let tunnels = || squid.tunnels().iter().filter(|line| line.contains(&format!("{VENDORS}:8443"))).count();
    eventually(Duration::from_secs(10), "a tunnel for each agent", || tunnels() >= expected);
}

/// Without capture: no capability, no root, the pod's own network.
#[test]
fn the_gateway_and_nothing_else() {
    let scene = scene(MANAGER);
    let node = node(&scene);
    let manager = manager(&scene, MANAGER, 8443);
    for (number, manifest) in all("gateway-only").iter().enumerate() {
        let agent = AgentPod::as_rendered(&node, &scene, manifest);
        agent.wait_until_ready();
        let gateway = agent.address().expect("a pod of its own network has an address").to_string();
        let to = (&*gateway, 7777);
        let spec =
            Spec::post("shop", "told", to, MANAGER, &format!("http://{MANAGER}/hello?token=told-{number}"));
        let (_, ended) = node.run(&spec).expect("a pod runs");
        assert!(ended.output.contains("HTTP/1.1 200 "), "{ended:?}");
        assert_eq!(manager.request(&format!("told-{number}")).client_serial(), scene.client_serial);

        // The control: who was not told reaches nobody.
        let (_, ended) = node.run(&post("untold", MANAGER)).expect("a pod runs");
        assert!(ended.output.contains("Connection refused"), "{ended:?}");
        agent.stop();
    }
}

/// The control of all of them: what the security context gives is needed, and the probes tell.
#[test]
fn without_a_capability_it_is_not_ready_and_says_why() {
    let scene = scene(MANAGER);
    let cluster = Cluster::new(&scene);
    let node = node(&scene).in_cluster(&cluster);
    let _manager = manager(&scene, MANAGER, 8443);
    let agent = AgentPod::as_rendered(&node, &scene, &manifest().without_capability("BPF"));
    agent.wait_for_words("CAP_BPF");
    let said = agent.ready().expect_err("it cannot capture");
    eprintln!("the probe: {said}");
    let (_, ended) = node.run(&post("direct", MANAGER)).expect("a pod runs");
    assert!(ended.output.contains("Connection refused"), "{ended:?}");
}

fn captured(host: &str, port: u16, manifests: &[Manifest]) {
    captured_in(&scene(host), host, port, manifests);
}

/// Starts one after the other on one node, and has a pod dial the host's port 80 under each.
fn captured_in(scene: &Scene, host: &str, port: u16, manifests: &[Manifest]) {
    captured_on(node(scene), scene, host, port, manifests);
}

fn captured_on(node: Node<'_>, scene: &Scene, host: &str, port: u16, manifests: &[Manifest]) {
    let cluster = Cluster::new(scene);
    let node = &node.in_cluster(&cluster);
    let manager = manager(scene, host, port);

    // The control: nobody listens there.
    let (_, ended) = node.run(&post("without", host)).expect("a pod runs");
    assert!(ended.output.contains("Connection refused"), "{ended:?}");

    for (number, manifest) in manifests.iter().enumerate() {
        let api = cluster.start(json!([{"key": TAINT, "effect": "NoSchedule"}]));
        api.install();
        let manifest = as_far_as_this_machine_can(manifest.clone());
        let agent = AgentPod::as_rendered(node, scene, &manifest);
        agent.wait_until_ready();
        eventually(Duration::from_secs(30), "the startup taint is gone", || api.taints() == json!([]));

        let spec = post(&format!("job-{number}"), host);
        let (pod, ended): (Pod, _) = node.run(&spec).expect("a pod runs");
        assert_eq!(ended.status, 0, "{ended:?}");
        assert!(ended.output.contains("HTTP/1.1 200 "), "{ended:?}");
        assert_eq!(manager.request(&spec.name).client_serial(), scene.client_serial);
        let lines: Vec<Value> = agent.wait_for_lines(1, |line| line["path"] == "/hello");
        assert_attributed(&lines[0], &pod, &spec);
        assert_eq!((&lines[0]["namespace"], &lines[0]["pod"]), (&json!("shop"), &json!(spec.name)));
        agent.stop();
    }
}

/// What this machine has not to give is taken out, and named.
fn as_far_as_this_machine_can(mut manifest: Manifest) -> Manifest {
    let name = manifest.name().to_owned();
    let status = std::fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("a bounding set");
    let bounding = u64::from_str_radix(bounding.trim(), 16).expect("a number");
    let wanted = manifest.capabilities().contains(&"SYS_RESOURCE".to_owned());
    if wanted && bounding & (1 << SYS_RESOURCE) == 0 {
        say(&format!("{name}: WITHOUT SYS_RESOURCE, which this machine has not to give"));
        manifest = manifest.without_capability("SYS_RESOURCE");
    }
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if manifest.wants_no_app_armor() && enabled.trim() != "Y" {
        say(&format!("{name}: no AppArmor in this kernel: being unconfined by it shows nothing here"));
    }
    if manifest.has_se_linux_options() && !Path::new("/sys/fs/selinux/enforce").exists() {
        say(&format!("{name}: no SELinux in this kernel: its type shows nothing here"));
    }
    manifest
}

pub(super) fn scene(host: &str) -> Scene {
    let scene = Scene::for_test();
    scene.add_host(host, &[MANAGER4.into(), MANAGER6.into()]);
    scene
}

pub(super) fn node(scene: &Scene) -> Node<'_> {
    Node::with_files(scene, &[(&scene.roots, SYSTEM_ROOTS)])
}

pub(super) fn manager(scene: &Scene, host: &str, port: u16) -> Manager {
    let leaf = scene.servers.server(&[host]);
    Manager::start(scene, Setup::new("manager", port).tls(Mode::Strict, &leaf, &scene.clients))
}

pub(super) fn post(name: &str, host: &str) -> Spec {
    Spec::post("shop", name, (&MANAGER4.to_string(), 80), host, &format!("/hello?token={name}"))
}
