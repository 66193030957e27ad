//! Where the gateway dials when a client said where, which only names that are let through come to: the
//! addresses they resolve to, and not those at which nobody else's server is.
//!
//! Whoever runs a name's DNS could have it resolve to the node's metadata service, to hnp itself or to
//! loopback, and the agent would dial it from the node. An address in another address's clothes counts
//! as what it stands for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use hnp_common::Reason;

use super::Wanted;
use crate::config::plan::{CaptureMode, Plan};
use crate::proxy::connection::Client;
use crate::proxy::worker::Worker;
use crate::upstream::{DialError, UpstreamConnection};

/// Cloud metadata services at addresses that are not link-local: Azure, Alibaba, Oracle; AWS, Google.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// A connection to where the client was going, past every route's upstream.
///
/// # Errors
/// See [`DialError`].
pub(in crate::proxy) async fn connect(
    worker: &Worker,
    client: &Client,
    deadline: Duration,
) -> Result<UpstreamConnection, DialError> {
    let Some(asked) = &client.asked else {
        return worker.upstreams.connect_direct(client.destination, deadline).await;
    };
    let Some(Wanted { host, port }) = asked.wanted() else {
        let detail = "a request that named no destination was let through".to_owned();
        return Err(DialError::new(Reason::Internal, detail, None));
    };
    let forbidden = |addr| forbidden(addr, &worker.plan);
    worker.upstreams.connect_unless(forbidden, host, *port, deadline).await
}

/// Why an address is none that a client may be let through to.
fn forbidden(addr: SocketAddr, plan: &Plan) -> Option<&'static str> {
    let ip = addr.ip().to_canonical();
    if METADATA.contains(&ip) {
        return Some("a cloud's metadata service");
    }
    if plan.capture.vips4.contains(ip) || plan.capture.vips6.contains(ip) {
        return Some("a VIP of this node");
    }
    let special = match ip {
        IpAddr::V4(addr) => special4(addr),
        IpAddr::V6(addr) => special6(addr),
    };
    special.or_else(|| (is_own_port(addr.port(), plan) && is_own(ip)).then_some("the agent itself"))
}

fn special4(addr: Ipv4Addr) -> Option<&'static str> {
    match addr.octets() {
        [0, ..] => Some("no host's address"),
        [127, ..] => Some("loopback"),
        [169, 254, ..] => Some("link-local"),
        [224..=239, ..] => Some("multicast"),
        [240..=255, ..] => Some("broadcast or reserved"),
        _ => None,
    }
}

fn special6(addr: Ipv6Addr) -> Option<&'static str> {
    if addr.is_unspecified() {
        return Some("no host's address");
    }
    if addr.is_loopback() {
        return Some("loopback");
    }
    if addr.is_multicast() {
        return Some("multicast");
    }
    if addr.segments()[0] & 0xffc0 == 0xfe80 {
        return Some("link-local");
    }
    let inner = embedded(addr)?;
    if METADATA.contains(&IpAddr::V4(inner)) { Some("a cloud's metadata service") } else { special4(inner) }
}

/// The IPv4 address that an IPv6 address is translated to on its way: IPv4-compatible (RFC 4291 section
/// 2.5.5.1), NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056).
fn embedded(addr: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match addr.segments() {
        [0, 0, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => Some(from(high, low)),
        _ => None,
    }
}

fn is_own_port(port: u16, plan: &Plan) -> bool {
    let captures = plan.capture.mode == CaptureMode::On && port == plan.capture.port;
    let gateway = plan.gateway.iter().flat_map(|gateway| &gateway.listen).any(|addr| addr.port() == port);
    captures || gateway || plan.admin.listen.is_some_and(|admin| admin.port() == port)
}

/// Whether the kernel calls an address local: only then a socket can be bound to it.
fn is_own(addr: IpAddr) -> bool {
    UdpSocket::bind((addr, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_let_through_to_what_is_no_server_of_others() {
        let plan = crate::config::parse(
            "capture: off\ngateway: {sources: [10.0.0.0/8]}\nidentities: {i: {certificate: /c, key: /k}}\nroutes:\n\
             - {name: r, destinations: ['a.test:80'], upstream: 'https://u.test', identity: i}\n",
            std::path::Path::new("test.yaml"),
        )
        .unwrap();
        let why = |text: &str| forbidden(text.parse().unwrap(), &plan);
        for text in [
            "127.0.0.1:80",
            "127.9.9.9:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[::127.0.0.1]:80",
            "[64:ff9b::7f00:1]:80",
            "[2002:7f00:1::]:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "[::]:80",
            "169.254.169.254:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[64:ff9b:1::a9fe:a9fe]:80",
            "169.254.77.9:80",
            "[fd00:77::9]:80",
            "[fe80::1]:80",
            "[febf::1]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "255.255.255.255:80",
            "[fd00:ec2::254]:80",
            "168.63.129.16:80",
            "[64:ff9b::a83f:8110]:80",
            "100.100.100.200:80",
        ] {
            assert!(why(text).is_some(), "{text}");
        }
        for text in [
            "198.18.0.9:80",
            "10.0.0.1:80",
            "192.168.1.1:443",
            "[fd00::9]:80",
            "[2001:db8::1]:443",
            "8.8.8.8:7777",
        ] {
            assert_eq!(why(text), None, "{text}");
        }
        assert!(is_own("127.0.0.1".parse().unwrap()) && !is_own("192.0.2.1".parse().unwrap()));
    }
}
