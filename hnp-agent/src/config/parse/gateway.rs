//! The section `gateway`, and what `capture.mode: off` asks of it.

use std::net::SocketAddr;

use crate::config::defaults;
use crate::config::gateway::{Gateway, GatewayTimeouts, carries_requests};
use crate::config::hosts;
use crate::config::plan::{CaptureMode, Cidr, Plan};
use crate::config::read::{Reader, Section};
use crate::config::values::{self, Value, Wrong};

pub(super) const KEYS: &[&str] = &["listen", "sources", "route", "timeouts"];
pub(super) const TIMEOUTS: &[&str] = &["head", "idle", "caller"];

/// The section, judged with the rest of the Plan, which has no gateway yet.
pub(super) fn gateway(r: &mut Reader, top: &Section<'_>, plan: &Plan) -> Option<Gateway> {
    let off = plan.capture.mode == CaptureMode::Off;
    if top.get("gateway").is_none() {
        if off {
            let what = "is off, and there is no gateway: nobody could reach the agent; allowed: with a section `gateway`";
            r.mistake(top.mark_of("capture"), "capture.mode", what);
        }
        return None;
    }
    let s = r.section(top, "gateway", KEYS);
    let listen = listen(r, &s, plan);
    let sources = sources(r, &s);
    if sources.is_empty() && !plan.knows_callers() {
        let why =
            if off { "capture is off" } else { "no API server is known that could tell the node's pods" };
        let what = format!(
            "is empty, and {why}; allowed: the ranges that may be lent the node's identity, such as 10.244.0.0/16"
        );
        r.mistake(s.mark_of("sources"), s.key("sources"), what);
    }
    let route = r.optional(&s, "route", values::name);
    if let Some(name) = &route {
        let able: Vec<&str> =
            plan.routes.iter().filter(|route| carries_requests(route)).map(|route| &*route.name).collect();
        if !able.contains(&&**name) {
            let what =
                format!("{name:?} is no route that carries HTTP requests; allowed: {}", able.join(", "));
            r.mistake(s.mark_of("route"), s.key("route"), what);
        }
    }
    let t = r.section(&s, "timeouts", TIMEOUTS);
    let timeouts = GatewayTimeouts {
        head: r.or(&t, "head", defaults::TIMEOUT_HEAD, values::duration),
        idle: r.or(&t, "idle", defaults::TIMEOUT_IDLE, values::duration),
        caller: r.or(&t, "caller", defaults::TIMEOUT_CALLER, values::duration),
    };
    Some(Gateway { listen, sources, route, timeouts })
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
