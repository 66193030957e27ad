//! Around capture, to the agent itself; and ways that lead nowhere near the manager.

use hnp_tests::evasion::{Technique, Trial};
use hnp_tests::process::Place;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{NODE4, Pod};

use super::judge;

/// The agent's port.
const PORT: u16 = 15001;
/// The first address of the range, and so that of the scene's one IPv4 destination.
const VIP: [u8; 4] = [169, 254, 77, 1];

judge! {
    pod_dials_the_vip: agents_port(VIP).served();
    pod_dials_the_node: agents_port(NODE4.octets()).ignored();
    neighbour_dials_the_vip: agents_port(VIP).from(neighbour).ignored();
    neighbour_dials_the_node: agents_port(NODE4.octets()).from(neighbour).ignored();
    process_of_the_node_dials_the_vip: agents_port(VIP).from(|scene: &Scene, _: &Pod| scene.node()).ignored();
    outsider_in_the_pods_network_dials_the_vip: agents_port(VIP).from(outsider).ignored();
    agents_port_taken:
        agents_port([0; 4]).with_technique(Technique::TakePort).from(host_network).refused("EADDRINUSE");
    vsock: Trial::new(Technique::Vsock);
    unspecified_address: Trial::new(Technique::Connect).to(([0, 0, 0, 0], 80)).inside_the_pod();
    unspecified_address_over_ipv6: Trial::new(Technique::Connect).to(([0_u16; 8], 80)).inside_the_pod();
}

fn agents_port(addr: [u8; 4]) -> Trial {
    Trial::new(Technique::Connect).to((addr, PORT)).at_the_agents_port()
}

/// Nodes forward, so a neighbour that adds a route reaches the range.
fn neighbour(scene: &Scene, _: &Pod) -> Place {
    let place = scene.manager_side();
    place.netns().ip(&format!("route replace 169.254.77.0/24 via {NODE4}")).expect("a route");
    place
}

fn outsider(_: &Scene, pod: &Pod) -> Place {
    pod.outside_cgroup().clone()
}

fn host_network(scene: &Scene, _: &Pod) -> Place {
    scene.host_network_pod()
}
