//! Datagrams to a destination are refused: QUIC would be a way around the agent.

use hnp_tests::evasion::{Technique, Trial, v4_mapped};
use hnp_tests::topology::{MANAGER4, MANAGER6};

use super::judge;

/// What clients fall back from at once.
const REFUSED: &str = "ECONNREFUSED";

judge! {
    udp_connected: Trial::new(Technique::UdpConnected).refused(REFUSED);
    udp_connected_over_ipv6: Trial::new(Technique::UdpConnected).to((MANAGER6, 80)).refused(REFUSED);
    udp_unconnected: Trial::new(Technique::UdpUnconnected).refused(REFUSED);
    udp_unconnected_over_ipv6: Trial::new(Technique::UdpUnconnected).to((MANAGER6, 80)).refused(REFUSED);
    udp_unconnected_as_ipv6:
        Trial::new(Technique::UdpUnconnected).to(v4_mapped((MANAGER4, 80).into())).refused(REFUSED);
    udp_connected_elsewhere: Trial::new(Technique::UdpElsewhere).refused(REFUSED);
    udp_ipv4_address_on_an_ipv6_socket: Trial::new(Technique::UdpMixedFamily).refused(REFUSED);
    udp_lite_unconnected: Trial::new(Technique::UdpLiteUnconnected).refused(REFUSED);
    udp_lite_unconnected_over_ipv6: Trial::new(Technique::UdpLiteUnconnected).to((MANAGER6, 80)).refused(REFUSED);
}
