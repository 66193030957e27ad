//! What no socket hook sees: sockets made outside the pod's cgroup, frames written by hand, flows that
//! were there first. The guard on the node's end of the pod's interface closes these.

use std::cell::RefCell;

use hnp_tests::evasion::{Attack, Technique, Trial};
use hnp_tests::process::{Place, Running};
use hnp_tests::scene::Scene;
use hnp_tests::tools;
use hnp_tests::topology::{MANAGER6, NODE4, Pod};

use super::judge;

/// A SYN is answered with RST: at once, and as if nobody listened.
const REFUSED: &str = "ECONNREFUSED";
/// A segment of a connection that was there before is answered with RST.
const RESET: &str = "ECONNRESET";

judge! {
    moved_in_after_socket: Trial::new(Technique::MovedBetween).from(outside).arranged(inwards).refused(REFUSED);
    moved_in_after_socket_over_ipv6:
        Trial::new(Technique::MovedBetween).to((MANAGER6, 80)).from(outside).arranged(inwards).refused(REFUSED);
    outside_the_cgroup: Trial::new(Technique::Connect).from(outside).refused(REFUSED);
    datagrams_from_outside_the_cgroup: Trial::new(Technique::UdpUnconnected).from(outside);
    flow_older_than_the_agent: Trial::new(Technique::OlderFlow).refused(RESET);
    flow_older_than_the_agent_over_ipv6: Trial::new(Technique::OlderFlow).to((MANAGER6, 80)).refused(RESET);
    datagrams_of_a_socket_older_than_the_agent: Trial::new(Technique::OlderDatagrams);

    // No socket hook runs for a UDP-Lite socket that is connected.
    udp_lite_connected: Trial::new(Technique::UdpLiteConnected);
    udp_lite_connected_over_ipv6: Trial::new(Technique::UdpLiteConnected).to((MANAGER6, 80));

    // Not for the guard, there is no veth between: the connect hook sees an address of zeros, and the
    // kernel then takes that of the socket's own end.
    unspecified_address_from_the_managers: Trial::new(Technique::BoundToTarget)
        .to((NODE4, 80))
        .manager_on_the_node()
        .from(|scene: &Scene, _: &Pod| scene.host_network_pod())
        .served();

    raw_tcp: Trial::new(Technique::RawTcp);
    raw_tcp_over_ipv6: Trial::new(Technique::RawTcp).to((MANAGER6, 80));
    raw_with_a_header: Trial::new(Technique::RawHeader);
    raw_with_a_header_over_ipv6: Trial::new(Technique::RawHeader).to((MANAGER6, 80));

    packet_syn: Trial::new(Technique::PacketSyn);
    packet_syn_over_ipv6: Trial::new(Technique::PacketSyn).to((MANAGER6, 80));
    packet_without_a_syn: Trial::new(Technique::PacketData);
    packet_without_a_syn_over_ipv6: Trial::new(Technique::PacketData).to((MANAGER6, 80));
    packet_with_ip_options: Trial::new(Technique::PacketOptions);
    packet_in_fragments: Trial::new(Technique::PacketFragments);
    packet_in_fragments_over_ipv6: Trial::new(Technique::PacketFragments).to((MANAGER6, 80));
    packet_second_fragment: Trial::new(Technique::PacketSecondFragment);
    packet_second_fragment_over_ipv6: Trial::new(Technique::PacketSecondFragment).to((MANAGER6, 80));
    packet_with_a_vlan_tag: Trial::new(Technique::PacketVlan);
    packet_with_a_vlan_tag_over_ipv6: Trial::new(Technique::PacketVlan).to((MANAGER6, 80));
    packet_with_two_vlan_tags: Trial::new(Technique::PacketTwoVlans);
    packet_with_two_vlan_tags_over_ipv6: Trial::new(Technique::PacketTwoVlans).to((MANAGER6, 80));
    packet_behind_an_extension_header: Trial::new(Technique::PacketExtension).to((MANAGER6, 80));
    packet_behind_many_extension_headers: Trial::new(Technique::PacketManyExtensions).to((MANAGER6, 80));
    packet_of_udp: Trial::new(Technique::PacketUdp);
    packet_of_udp_over_ipv6: Trial::new(Technique::PacketUdp).to((MANAGER6, 80));
    packet_of_udp_lite: Trial::new(Technique::PacketUdpLite);
    packet_to_be_cut_by_the_card: Trial::new(Technique::PacketOffload);
    packet_to_be_cut_by_the_card_over_ipv6: Trial::new(Technique::PacketOffload).to((MANAGER6, 80));
}

#[test]
fn lent_socket() {
    lent((hnp_tests::topology::MANAGER4, 80).into());
}

#[test]
fn lent_socket_over_ipv6() {
    lent((MANAGER6, 80).into());
}

/// The lender is in the pod's network namespace, but not in its cgroup.
fn lent(target: std::net::SocketAddr) {
    let lender: RefCell<Option<Running>> = RefCell::default();
    let lender = std::rc::Rc::new(lender);
    let keep = std::rc::Rc::clone(&lender);
    let arrange = move |scene: &Scene, pod: &Pod, attack: &mut Attack| {
        let path = scene.path("lender.sock");
        let command = pod.outside_cgroup().command(tools::sibling("hnp-test-evader"));
        *keep.borrow_mut() = Some(command.arg("lend").arg(&path).spawn());
        hnp_tests::poll::eventually(std::time::Duration::from_secs(10), "the lender listens", || {
            path.exists()
        });
        attack.lender = Some(path);
    };
    Trial::new(Technique::Lent).to(target).arranged(arrange).refused(REFUSED).judge();
    drop(lender);
}

fn outside(_: &Scene, pod: &Pod) -> Place {
    pod.outside_cgroup().clone()
}

fn inwards(_: &Scene, pod: &Pod, attack: &mut Attack) {
    attack.cgroup = Some(pod.cgroup().to_owned());
}
