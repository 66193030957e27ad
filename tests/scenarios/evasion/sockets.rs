//! TCP sockets of the pod, connected in every way there is: each passes the connect hook.

use hnp_tests::evasion::{Technique, Trial, v4_mapped};
use hnp_tests::topology::{MANAGER4, MANAGER6};

use super::judge;

judge! {
    ipv4: Trial::new(Technique::Connect).served();
    ipv6: Trial::new(Technique::Connect).to((MANAGER6, 80)).served();
    ipv4_as_ipv6: Trial::new(Technique::Connect).to(v4_mapped((MANAGER4, 80).into())).served();
    non_blocking: Trial::new(Technique::NonBlocking).served();
    fixed_source_port: Trial::new(Technique::FixedPort).served();
    bound_to_a_device: Trial::new(Technique::BoundToDevice).served();
    multipath_tcp: Trial::new(Technique::Mptcp).served();
    smc: Trial::new(Technique::Smc).served();
    fast_open_by_sendto: Trial::new(Technique::FastOpenSendto).served();
    fast_open_by_sendto_over_ipv6: Trial::new(Technique::FastOpenSendto).to((MANAGER6, 80)).served();
    fast_open_by_connect: Trial::new(Technique::FastOpenConnect).served();
    io_uring: Trial::new(Technique::IoUring).served();
    io_uring_over_ipv6: Trial::new(Technique::IoUring).to((MANAGER6, 80)).served();
    io_uring_with_a_kernel_thread: Trial::new(Technique::IoUringSqpoll).served();
    forged_mark: Trial::new(Technique::ForgedMark).served();
    reconnected_from_elsewhere: Trial::new(Technique::ReconnectFromElsewhere).served();
    reconnected: Trial::new(Technique::Reconnect).served();
    socket_older_than_the_agent: Trial::new(Technique::OlderSocket).served();
}
