//! The section `gateway`, and what `capture.mode: off` asks of it.

use std::net::SocketAddr;

use super::modes;
use super::routes::References;
use crate::config::defaults;
use crate::config::end_to_end::{ClientAuth, PodTls};
use crate::config::gateway::{Gateway, GatewayTimeouts, carries_requests};
use crate::config::hosts;
use crate::config::plan::{CaptureMode, Cidr, Plan};
use crate::config::read::{Reader, Section};
use crate::config::values::{self, Value, Wrong};

pub(super) const KEYS: &[&str] = &["listen", "sources", "route", "tls", "timeouts"];
pub(super) const TIMEOUTS: &[&str] = &["head", "idle", "caller"];

/// On what terms TLS ends on the gateway's own port, if it does.
pub(super) fn tls(r: &mut Reader, s: &Section<'_>, named: &mut References<'_>) -> Option<PodTls> {
    s.get("tls")?;
    let t = r.section(s, "tls", modes::END_TO_END);
    modes::pod_tls(r, &t, named, false)
}

/// The section, judged with the rest of the Plan, which has no gateway yet.
pub(super) fn gateway(
    r: &mut Reader,
    top: &Section<'_>,
    s: &Section<'_>,
    tls: Option<PodTls>,
    plan: &Plan,
) -> Option<Gateway> {
    let off = plan.capture.mode == CaptureMode::Off;
    if top.get("gateway").is_none() {
        if off {
            let what = "is off, and there is no gateway: nobody could reach the agent; allowed: with a section `gateway`";
            r.mistake(top.mark_of("capture"), "capture.mode", what);
        }
        return None;
    }
    if off && top.get("kubernetes").is_some() {
        let what = "means nothing while capture is off: no taint is taken off, and callers are told by `gateway.sources`";
        r.warning(top.mark_of("kubernetes"), "kubernetes", what);
    }
    if off && plan.routes.iter().any(|route| !route.overrides.is_empty()) {
        let what =
            "has overrides, which mean nothing while capture is off: the strictest of each route holds";
        r.warning(top.mark_of("routes"), "routes", what);
    }
    let listen = listen(r, s, plan);
    let sources = sources(r, s);
    let certified = tls.as_ref().is_some_and(|tls| tls.client_auth != ClientAuth::None);
    if sources.is_empty() && !plan.knows_callers() && !certified {
        let why =
            if off { "capture is off" } else { "no API server is known that could tell the node's pods" };
        let what = format!(
            "is empty, and {why}; allowed: the ranges that may be lent the node's identity, such as 10.244.0.0/16"
        );
        r.mistake(s.mark_of("sources"), s.key("sources"), what);
    }
    let route = r.optional(s, "route", values::name);
    if let Some(name) = &route {
        let able: Vec<&str> =
            plan.routes.iter().filter(|route| carries_requests(route)).map(|route| &*route.name).collect();
        if !able.contains(&&**name) {
            let what =
                format!("{name:?} is no route that carries HTTP requests; allowed: {}", able.join(", "));
            r.mistake(s.mark_of("route"), s.key("route"), what);
        }
    }
    let t = r.section(s, "timeouts", TIMEOUTS);
    let timeouts = GatewayTimeouts {
        head: r.or(&t, "head", defaults::TIMEOUT_HEAD, values::duration),
        idle: r.or(&t, "idle", defaults::TIMEOUT_IDLE, values::duration),
        caller: r.or(&t, "caller", defaults::TIMEOUT_CALLER, values::duration),
    };
    Some(Gateway { listen, sources, route, tls, timeouts })
}

fn listen(r: &mut Reader, s: &Section<'_>, plan: &Plan) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for (index, node) in r.list(s, "listen").iter().enumerate() {
        let key = format!("{}[{index}]", s.key("listen"));
        let Some(addr) = r.item(node, &key, address) else { continue };
        let taken = if all.contains(&addr) {
            Some("is already listed; allowed: once".to_owned())
        } else if plan.capture.mode == CaptureMode::On && addr.port() == plan.capture.port {
            Some(format!(
                "port {} is the one connections are captured on; allowed: another port",
                addr.port()
            ))
        } else if plan.admin.listen.is_some_and(|admin| admin.port() == addr.port()) {
            Some(format!("port {} is the admin port; allowed: another port", addr.port()))
        } else {
            None
        };
        match taken {
            Some(what) => r.mistake(node.mark, key, what),
            None => all.push(addr),
        }
    }
    if s.get("listen").is_none() {
        return defaults::GATEWAY_LISTEN.to_vec();
    }
    if all.is_empty() {
        r.mistake(s.mark_of("listen"), s.key("listen"), "has no address; allowed: a list of IP:PORT");
    }
    all
}

fn sources(r: &mut Reader, s: &Section<'_>) -> Vec<Cidr> {
    let mut all: Vec<Cidr> = Vec::new();
    for (index, node) in r.list(s, "sources").iter().enumerate() {
        let key = format!("{}[{index}]", s.key("sources"));
        let Some(range) = r.item(node, &key, hosts::range) else { continue };
        if range.prefix == 0 {
            let what = "everybody who reaches the port is lent the node's identity";
            r.warning(node.mark, key, what);
        }
        all.push(range);
    }
    all
}

/// `IP:PORT`, never an IPv4 address in IPv6's clothes.
fn address(text: &str) -> Value<SocketAddr> {
    const ALLOWED: &str = "IP:PORT, such as 0.0.0.0:7777 or [::]:7777";
    let addr: SocketAddr = text.parse().map_err(|_| Wrong::not(text, "an address to listen on", ALLOWED))?;
    if addr.port() == 0 || addr.ip().to_canonical() != addr.ip() || addr.ip().is_multicast() {
        return Err(Wrong::not(text, "an address to listen on", ALLOWED));
    }
    Ok(addr)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse::plan;
    use crate::config::surroundings::Surroundings;

    const ROUTES: &str = "identities: {i: {certificate: /c, key: /k}}\nroutes:\n\
        - {name: a, destinations: ['a.test:80'], upstream: 'https://a.test', identity: i}\n\
        - {name: b, destinations: ['b.test:443'], upstream: 'https://b.test', mode: tunnel}\n";

    fn read(text: &str, cluster: bool) -> Result<Plan, String> {
        let around = Surroundings {
            workers: 1,
            node_name: cluster.then(|| "n".into()),
            api: cluster.then(|| "https://10.96.0.1:443".into()),
            ..Surroundings::default()
        };
        let read = plan(&format!("{ROUTES}{text}"), Path::new("x.yaml"), &around);
        read.map(|(plan, _)| plan).map_err(|errors| errors.to_string())
    }

    #[test]
    fn who_is_served_has_to_be_known_or_written() {
        assert!(read("", false).unwrap().gateway.is_none());
        let known = read("gateway: {}", true).unwrap();
        let gateway = known.gateway.as_ref().unwrap();
        assert!(known.knows_callers() && gateway.sources.is_empty());
        assert_eq!(
            (&gateway.listen[..], gateway.default_route(&known)),
            (&defaults::GATEWAY_LISTEN[..], Some(0))
        );
        let addr = "10.0.0.1".parse().unwrap();
        assert!(
            gateway.serves(addr, true) && !gateway.serves(addr, false),
            "nobody knows him: nobody is served"
        );
        for (text, cluster) in [("gateway: {}", false), ("capture: off\ngateway: {}", true)] {
            assert!(read(text, cluster).unwrap_err().contains("gateway.sources: is empty"), "{text}");
        }
        let off = read("capture: off\ngateway: {sources: [10.0.0.0/8, 'fd00::1']}", true).unwrap();
        assert_eq!((off.capture.mode, off.knows_callers()), (CaptureMode::Off, false));
        let same = read("capture: {mode: off}\ngateway: {sources: [10.0.0.0/8]}", false).unwrap();
        assert_eq!(same.capture.mode, CaptureMode::Off);
        let warned = |text: &str| {
            let around = Surroundings { workers: 1, ..Surroundings::default() };
            let text = format!("{ROUTES}capture: off\ngateway: {{sources: [10.0.0.1]}}\n{text}");
            let (_, warnings) = plan(&text, Path::new("x.yaml"), &around).unwrap();
            warnings.iter().any(|warning| warning.key == "kubernetes")
        };
        assert!(warned("kubernetes: {service_account: /sa}") && !warned(""));
        let nobody = read("capture: off", false).unwrap_err();
        assert!(nobody.contains("capture.mode: is off, and there is no gateway"), "{nobody}");
    }

    #[test]
    fn mistakes_have_their_key() {
        for (text, key) in [
            ("sources: [10.0.0.1/8]", "gateway.sources[0]"),
            ("sources: ['::ffff:10.0.0.0/104']", "gateway.sources[0]"),
            ("sources: [pods]", "gateway.sources[0]"),
            ("listen: [7777]", "gateway.listen[0]"),
            ("listen: ['0.0.0.0:0']", "gateway.listen[0]"),
            ("listen: ['0.0.0.0:15001']", "gateway.listen[0]"),
            ("listen: ['0.0.0.0:15090']", "gateway.listen[0]"),
            ("listen: ['0.0.0.0:1', '0.0.0.0:1']", "gateway.listen[1]"),
            ("listen: []", "gateway.listen"),
            ("route: b", "gateway.route"),
            ("route: c", "gateway.route"),
            ("timeouts: {caller: 0s}", "gateway.timeouts.caller"),
            ("source: [10.0.0.0/8]", "gateway.source"),
        ] {
            let errors = read(&format!("gateway: {{{text}}}"), true).unwrap_err();
            assert!(errors.lines().any(|line| line.contains(&format!(": {key}: "))), "{text}: {errors}");
        }
        // Nothing is captured, so the port is free.
        assert!(
            read("capture: off\ngateway: {sources: [10.0.0.1], listen: ['0.0.0.0:15001']}", false).is_ok()
        );
    }
}
