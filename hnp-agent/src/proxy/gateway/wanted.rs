//! What a client asks the gateway for, and which route that is. Pure: nothing here knows a socket, and
//! nothing is resolved.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use hnp_common::Reason;

use crate::config::gateway::Gateway;
use crate::config::plan::{Enforcement, Host, Plan, RouteIndex, Target};
use crate::proxy::authority::{Choice, choose};

/// A host and a port that a client wrote. An address is canonical: IPv4 in IPv6's clothes is IPv4.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// The host.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
}

/// What becomes of a request that names its destination, or none.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// This choice; it is a route's own or lets through.
    Go(Choice),
    /// Nowhere.
    Refuse(Reason, String),
}

impl Wanted {
    /// `HOST[:PORT]` as it stands in a target or a Host field. `None`: it is none, or has no port where
    /// there is no default.
    pub(super) fn parse(text: &[u8], default_port: Option<u16>) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (literal, port) = rest.split_once(']')?;
            (Host::Addr(IpAddr::V6(literal.parse::<Ipv6Addr>().ok()?).to_canonical()), port)
        } else {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let bare = name.strip_suffix('.').unwrap_or(name);
            let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            // An empty label is in no name, and one at the end would be read as another dot of the root.
            if bare.split('.').any(str::is_empty) || bare.len() > 253 || !bare.bytes().all(byte) {
                return None;
            }
            let host = match bare.parse::<IpAddr>() {
                Ok(addr) => Host::Addr(addr),
                Err(_) => Host::Name(bare.to_ascii_lowercase().into()),
            };
            (host, port)
        };
        let port = match port.strip_prefix(':') {
            Some(digits) if digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port != 0)?
            }
            None if port.is_empty() => default_port?,
            Some(_) | None => return None,
        };
        Some(Self { host, port })
    }

    /// The routes whose destinations contain it, in the order of the Plan.
    pub(super) fn listed_by(&self, plan: &Plan) -> Vec<RouteIndex> {
        let is_meant = |target: &Target| match (target, &self.host) {
            (Target::Name(listed), Host::Name(name)) => listed == name,
            (Target::Net(range), Host::Addr(addr)) => range.contains(*addr),
            (Target::Name(_), Host::Addr(_)) | (Target::Net(_), Host::Name(_)) => false,
        };
        let lists = |route: &RouteIndex| {
            plan.routes[*route].destinations.iter().any(|d| d.port == self.port && is_meant(&d.target))
        };
        (0..plan.routes.len()).filter(lists).collect()
    }

    /// The first route that lets it through: it lists the name, and has a destination on the port.
    pub(super) fn passed_by(&self, plan: &Plan) -> Option<RouteIndex> {
        let Host::Name(name) = &self.host else { return None };
        plan.routes.iter().position(|route| {
            route.destinations.iter().any(|destination| destination.port == self.port)
                && route.passthrough.iter().any(|pattern| pattern.matches(name))
        })
    }

    /// What becomes of a plaintext request for it.
    pub(super) fn judge_request(&self, plan: &Plan) -> Verdict {
        let routes = self.listed_by(plan);
        if routes.is_empty() {
            return match self.passed_by(plan) {
                Some(route) => Verdict::Go(Choice::Passthrough(route)),
                None => self.refused(),
            };
        }
        let (place, host) = (self.place(), self.bare_host());
        match choose(plan, &routes, place, place.ip(), Enforcement::Strict, Some(&host)) {
            Choice::Serve(route) if plan.routes[route].is_opaque() => {
                let what = format!(
                    "route {:?} takes bytes and no requests; allowed: CONNECT",
                    plan.routes[route].name
                );
                Verdict::Refuse(Reason::DestinationRefused, what)
            }
            go @ (Choice::Serve(_) | Choice::Passthrough(_)) => Verdict::Go(go),
            Choice::Refuse(_) => self.refused(),
        }
    }

    fn refused(&self) -> Verdict {
        let (reason, what) = self.unlisted();
        Verdict::Refuse(reason, what)
    }

    /// Why nothing becomes of it.
    pub(super) fn unlisted(&self) -> (Reason, String) {
        let what = format!("no route lists {self} under its destinations or lets it through");
        (Reason::DestinationRefused, what)
    }

    /// As a Host is compared: without brackets.
    fn bare_host(&self) -> String {
        match &self.host {
            Host::Name(name) => name.to_string(),
            Host::Addr(addr) => addr.to_string(),
        }
    }
}

/// What becomes of a request that has no authority in its target. `host`: what its Host field says.
pub(super) fn judge_origin_form(plan: &Plan, gateway: &Gateway, host: Option<&Wanted>) -> Verdict {
    if let Some(wanted) = host.filter(|wanted| !wanted.listed_by(plan).is_empty()) {
        return wanted.judge_request(plan);
    }
    match gateway.default_route(plan) {
        Some(route) => Verdict::Go(Choice::Serve(route)),
        None => {
            let named = host.map_or_else(|| "no Host".to_owned(), |host| format!("Host {host}"));
            let what = format!(
                "{named} names no destination, and there are several routes; set `gateway.route` to the one that is \
                 meant, or have the client send a destination as Host"
            );
            Verdict::Refuse(Reason::NoDefaultRoute, what)
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(text: &str) -> Wanted {
        Wanted::parse(text.as_bytes(), Some(80)).unwrap()
    }

    /// Routes as (destination, what else the route says); each has an identity unless it tunnels.
    fn plan(routes: &[(&str, &str)], gateway: &str) -> Plan {
        let mut text = format!(
            "capture: off\ngateway: {{sources: [10.0.0.0/8]{gateway}}}\nidentities: {{i: {{certificate: /c, key: /k}}}}\nroutes:\n"
        );
        for (index, (destination, more)) in routes.iter().enumerate() {
            let identity = if more.contains("tunnel") { "" } else { ", identity: i" };
            text.push_str(&format!(
                "- {{name: r{index}, destinations: [\"{destination}\"], upstream: \"https://u{index}.test\"{identity}{more}}}\n"
            ));
        }
        crate::config::parse(&text, std::path::Path::new("test.yaml")).unwrap()
    }

    fn refused(verdict: &Verdict) -> Option<Reason> {
        match verdict {
            Verdict::Refuse(reason, _) => Some(*reason),
            Verdict::Go(_) => None,
        }
    }

    #[test]
    fn authorities() {
        for (text, shown) in [
            ("Manager.Test:80", "manager.test:80"),
            ("manager.test.", "manager.test:80"),
            ("10.0.0.1:443", "10.0.0.1:443"),
            ("[FD00::1]:443", "[fd00::1]:443"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("[::ffff:a9fe:a9fe]", "169.254.169.254:80"),
        ] {
            assert_eq!(wanted(text).to_string(), shown, "{text}");
        }
        for text in [
            "",
            ":80",
            "a:0",
            "a:",
            "a:65536",
            "a:80:80",
            "a b:80",
            "user@a:80",
            "::1",
            "[::1",
            "[a]:80",
            "a/b",
            "[fe80::1%1]:80",
            "a%2e:80",
            "ä:80",
            "a:+80",
            ".",
        ] {
            assert_eq!(Wanted::parse(text.as_bytes(), Some(80)), None, "{text}");
        }
        assert_eq!(Wanted::parse(b"a.test", None), None, "CONNECT has no default port");
    }

    #[test]
    fn what_a_route_lists_is_served_by_it_and_nothing_else_is() {
        let plan = plan(&[("a.test:80", ""), ("198.18.0.0/16:80", ""), ("198.18.0.9:80", "")], "");
        for (text, route) in [("a.test", 0), ("198.18.0.1", 1), ("198.18.0.9", 2), ("[::ffff:198.18.0.9]", 2)]
        {
            assert_eq!(wanted(text).judge_request(&plan), Verdict::Go(Choice::Serve(route)), "{text}");
        }
        for text in [
            "b.test",
            "a.test:81",
            "u0.test",
            "198.19.0.1",
            "198.18.0.9:81",
            "127.0.0.1",
            "[::1]",
            "0.0.0.0",
            "[::]",
            "169.254.77.1",
            "169.254.169.254",
            "2130706433",
            "0x7f.1",
            "127.1",
        ] {
            assert_eq!(
                refused(&wanted(text).judge_request(&plan)),
                Some(Reason::DestinationRefused),
                "{text}"
            );
        }
    }

    #[test]
    fn a_name_that_is_let_through_is_so_on_the_routes_ports() {
        let plan = plan(&[("a.test:80", ", passthrough: [docs.test, '*.cdn.test']")], "");
        for text in ["docs.test", "x.cdn.test"] {
            assert_eq!(wanted(text).judge_request(&plan), Verdict::Go(Choice::Passthrough(0)), "{text}");
        }
        for text in ["docs.test:22", "cdn.test", "x.docs.test"] {
            assert_eq!(
                refused(&wanted(text).judge_request(&plan)),
                Some(Reason::DestinationRefused),
                "{text}"
            );
        }
    }

    #[test]
    fn a_request_for_an_opaque_route_is_refused_and_a_tunnel_is_its_own_matter() {
        let plan = plan(&[("a.test:80", ", protocol: opaque"), ("b.test:80", ", mode: tunnel")], "");
        assert_eq!(refused(&wanted("a.test").judge_request(&plan)), Some(Reason::DestinationRefused));
        assert_eq!(wanted("b.test").judge_request(&plan), Verdict::Go(Choice::Serve(1)));
    }

    #[test]
    fn what_names_no_destination_has_a_route_or_is_told_what_to_set() {
        let ask = |plan: &Plan, host: Option<&str>| {
            judge_origin_form(plan, plan.gateway.as_ref().unwrap(), host.map(wanted).as_ref())
        };
        let one = plan(&[("a.test:80", ""), ("t.test:443", ", mode: tunnel")], "");
        for host in [None, Some("node:7777"), Some("a.test"), Some("169.254.169.254")] {
            assert_eq!(
                ask(&one, host),
                Verdict::Go(Choice::Serve(0)),
                "the only one that takes requests: {host:?}"
            );
        }
        let two = [("a.test:80", ""), ("b.test:80", "")];
        let several = plan(&two, "");
        assert_eq!(ask(&several, Some("b.test")), Verdict::Go(Choice::Serve(1)));
        assert_eq!(refused(&ask(&several, Some("node:7777"))), Some(Reason::NoDefaultRoute));
        let written = plan(&two, ", route: r1");
        assert_eq!(ask(&written, Some("node:7777")), Verdict::Go(Choice::Serve(1)));
        assert_eq!(ask(&written, Some("a.test")), Verdict::Go(Choice::Serve(0)));
    }

    #[test]
    fn a_name_has_no_empty_label() {
        for text in ["", ".", "..", "a..", ".a", "a..b"] {
            assert_eq!(Wanted::parse(text.as_bytes(), Some(80)), None, "{text}");
        }
        assert!(Wanted::parse(b"a.b.", Some(80)).is_some(), "the control");
    }

    proptest! {
        #[test]
        fn nothing_a_client_writes_is_read_as_two_things(text in "[a-zA-Z0-9:.\\[\\]%_@/-]{0,24}") {
            if let Some(wanted) = Wanted::parse(text.as_bytes(), Some(80)) {
                let again = Wanted::parse(wanted.to_string().as_bytes(), None);
                prop_assert_eq!(again, Some(wanted));
            }
        }
    }
}
