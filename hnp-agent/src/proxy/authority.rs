//! Which route serves a request, when several names share one address.
//!
//! Decided per request from its Host, because one connection may carry requests for many, and per
//! connection from the SNI of a client that speaks TLS. A pure function: nothing here knows a socket.

use std::net::{IpAddr, SocketAddr};

use crate::config::plan::{AddrRange, Enforcement, Plan, RouteIndex, Target};

/// What to do with a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// This route carries it.
    Serve(RouteIndex),
    /// Another name on a loose route, or one that is listed: on to where the client was going, untouched.
    Passthrough(RouteIndex),
    /// Another name on a strict route: a forged Host would be a way out.
    Refuse(RouteIndex),
}

/// Chooses among the routes that include `destination`, which must not be empty. `host` is the
/// request's, lower case, without port; `None` (HTTP/1.0) names nothing else, so the first route serves.
///
/// A tunnel serves the names it carries and no others, whatever its destinations are.
///
/// `enforcement` is what holds for this client. A name that a route lists goes to that route. One that is
/// listed under `passthrough` goes on: by every strict route here, for each of them promises that nothing else
/// does. Otherwise the route that lists the address itself, or the narrowest range around it, takes every
/// Host. A Host that is the dialled address names nothing else either.
pub fn choose(
    plan: &Plan,
    routes: &[RouteIndex],
    destination: SocketAddr,
    dialled: IpAddr,
    enforcement: Enforcement,
    host: Option<&str>,
) -> Choice {
    let first = routes[0];
    let Some(host) = host else { return Choice::Serve(first) };
    let lists = |route: &RouteIndex, wanted: &dyn Fn(&Target) -> bool| {
        plan.routes[*route].destinations.iter().any(|d| d.port == destination.port() && wanted(&d.target))
    };
    let carries = |route: &RouteIndex| plan.routes[*route].tunnel().map(|tunnel| tunnel.carries(host));
    let names = |route: &&RouteIndex| {
        carries(route)
            .unwrap_or_else(|| lists(route, &|h| matches!(h, Target::Name(name) if **name == *host)))
    };
    if let Some(route) = routes.iter().find(names) {
        return Choice::Serve(*route);
    }
    let passes = |route: &&RouteIndex| passes(plan, **route, host);
    let mut strict =
        routes.iter().filter(|r| plan.routes[**r].strictest_enforcement() == Enforcement::Strict);
    if strict.clone().all(|route| passes(&route))
        && let Some(route) = strict.clone().next().or_else(|| routes.iter().find(passes))
    {
        return Choice::Passthrough(*route);
    }
    let takes_all = routes.iter().filter(|route| carries(route).is_none());
    let nearest = takes_all.filter_map(|route| Some((narrowest(plan, *route, destination)?, *route)));
    // Of several that are as narrow, the first of the Plan.
    if let Some((_, route)) = nearest.max_by_key(|(prefix, route)| (*prefix, std::cmp::Reverse(*route))) {
        return Choice::Serve(route);
    }
    if let Ok(addr) = host.parse::<IpAddr>()
        && (addr.to_canonical() == destination.ip() || addr.to_canonical() == dialled)
    {
        return Choice::Serve(first);
    }
    match enforcement {
        Enforcement::Strict => Choice::Refuse(strict.find(|route| !passes(route)).copied().unwrap_or(first)),
        Enforcement::Loose | Enforcement::Observe => Choice::Passthrough(first),
    }
}

/// Whether a name goes on even where every one of these routes is strict: all of them list it.
pub fn is_let_through(plan: &Plan, routes: &[RouteIndex], host: &str) -> bool {
    routes.iter().all(|route| passes(plan, *route, host))
}

fn passes(plan: &Plan, route: RouteIndex, host: &str) -> bool {
    plan.routes[route].passthrough.iter().any(|pattern| pattern.matches(host))
}

/// The prefix length of the narrowest range of this route that holds the destination.
fn narrowest(plan: &Plan, route: RouteIndex, destination: SocketAddr) -> Option<u8> {
    let ranges = plan.routes[route].destinations.iter().filter_map(|d| match d.target {
        Target::Net(net) => Some(AddrRange { net, port: d.port }),
        Target::Name(_) => None,
    });
    ranges.filter(|range| range.contains(destination)).map(|range| range.net.prefix).max()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Routes with a destination, and an enforcement with what else the route says.
    fn plan(routes: &[(&str, &str)]) -> Plan {
        let mut text = String::from(
            "identities: {i: {certificate: /c, key: /k}}\ntrusts: {t: {roots: system}}\nroutes:\n",
        );
        for (index, (destination, enforcement)) in routes.iter().enumerate() {
            text.push_str(&format!(
                "  - {{name: r{index}, destinations: [\"{destination}\"], upstream: \"https://u{index}.test\", \
                 enforcement: {enforcement}, identity: i, trust: t}}\n"
            ));
        }
        crate::config::parse(&text, std::path::Path::new("test.yaml"))
            .expect("the test's configuration is valid")
    }

    fn ask(plan: &Plan, host: Option<&str>) -> Choice {
        let routes: Vec<_> = (0..plan.routes.len()).collect();
        let destination: SocketAddr = "198.18.0.9:80".parse().unwrap();
        let enforcement = plan.routes.iter().map(|route| route.enforcement).max().unwrap();
        choose(plan, &routes, destination, "169.254.77.5".parse().unwrap(), enforcement, host)
    }

    #[test]
    fn a_tunnel_serves_its_names_and_no_others() {
        let text = "routes:\n  - {name: t, destinations: [\"198.18.0.0/16:80\"], upstream: \"https://u.test\", \
                    mode: tunnel, enforcement: strict, tunnel: {names: [a.test]}}\n";
        let mut plan = crate::config::parse(text, std::path::Path::new("test.yaml")).unwrap();
        assert_eq!(ask(&plan, Some("a.test")), Choice::Serve(0));
        assert_eq!(ask(&plan, Some("u.test")), Choice::Refuse(0), "the range takes no other name");
        Arc::make_mut(&mut plan.routes[0]).enforcement = Enforcement::Loose;
        assert_eq!(ask(&plan, Some("u.test")), Choice::Passthrough(0));
    }

    #[test]
    fn names_on_one_address_go_to_their_routes() {
        let plan = plan(&[("a.test:80", "loose"), ("b.test:80", "loose")]);
        assert_eq!(ask(&plan, Some("a.test")), Choice::Serve(0));
        assert_eq!(ask(&plan, Some("b.test")), Choice::Serve(1));
        assert_eq!(ask(&plan, Some("c.test")), Choice::Passthrough(0));
        assert_eq!(ask(&plan, None), Choice::Serve(0));
    }

    #[test]
    fn strict_lets_no_other_name_by_even_beside_a_loose_route() {
        let plan = plan(&[("a.test:80", "loose"), ("b.test:80", "strict")]);
        assert_eq!(ask(&plan, Some("c.test")), Choice::Refuse(1));
        assert_eq!(ask(&plan, Some("a.test")), Choice::Serve(0));
    }

    #[test]
    fn a_listed_address_takes_every_host_that_no_name_claims() {
        let plan = plan(&[("198.18.0.9:80", "strict"), ("b.test:80", "loose")]);
        assert_eq!(ask(&plan, Some("anything.test")), Choice::Serve(0));
        assert_eq!(ask(&plan, Some("b.test")), Choice::Serve(1));
    }

    #[test]
    fn the_narrowest_range_around_the_address_takes_hosts_that_no_name_claims() {
        let plan =
            plan(&[("198.18.0.0/16:80", "loose"), ("198.18.0.0/24:80", "loose"), ("b.test:80", "loose")]);
        assert_eq!(ask(&plan, Some("anything.test")), Choice::Serve(1));
        assert_eq!(ask(&plan, Some("b.test")), Choice::Serve(2));
    }

    #[test]
    fn the_dialled_address_as_host_names_nothing_else() {
        let plan = plan(&[("a.test:80", "strict")]);
        assert_eq!(ask(&plan, Some("198.18.0.9")), Choice::Serve(0));
        assert_eq!(ask(&plan, Some("169.254.77.5")), Choice::Serve(0));
        assert_eq!(ask(&plan, Some("198.18.0.10")), Choice::Refuse(0));
    }

    #[test]
    fn a_listed_name_passes_a_strict_route_and_no_other_does() {
        let plan = plan(&[("a.test:80", "strict, passthrough: [c.test, '*.cdn.test']")]);
        assert_eq!(ask(&plan, Some("c.test")), Choice::Passthrough(0));
        assert_eq!(ask(&plan, Some("x.cdn.test")), Choice::Passthrough(0));
        assert_eq!(ask(&plan, Some("cdn.test")), Choice::Refuse(0));
        assert_eq!(ask(&plan, Some("a.test")), Choice::Serve(0));
        assert_eq!(ask(&plan, None), Choice::Serve(0));
    }

    #[test]
    fn every_strict_route_of_an_address_must_list_what_passes() {
        let one = plan(&[("a.test:80", "strict, passthrough: [c.test]"), ("b.test:80", "strict")]);
        assert_eq!(ask(&one, Some("c.test")), Choice::Refuse(1));
        let loose = plan(&[("a.test:80", "loose"), ("b.test:80", "strict, passthrough: [c.test]")]);
        assert_eq!(ask(&loose, Some("c.test")), Choice::Passthrough(1));
        let only_loose = plan(&[("a.test:80", "loose, passthrough: [c.test]"), ("b.test:80", "strict")]);
        assert_eq!(ask(&only_loose, Some("c.test")), Choice::Refuse(1));
    }

    #[test]
    fn a_listed_name_passes_where_the_address_itself_is_a_destination() {
        for enforcement in ["strict, passthrough: [c.test]", "loose, passthrough: [c.test]"] {
            let plan = plan(&[("198.18.0.9:80", enforcement)]);
            assert_eq!(ask(&plan, Some("c.test")), Choice::Passthrough(0));
            assert_eq!(ask(&plan, Some("d.test")), Choice::Serve(0), "the address takes every other Host");
        }
    }

    #[test]
    fn a_name_on_another_port_is_another_destination() {
        let plan = plan(&[("a.test:81", "loose"), ("a.test:80", "loose")]);
        assert_eq!(ask(&plan, Some("a.test")), Choice::Serve(1));
    }
}
