//! When several names share one address, Host decides, per request and not per connection. Another
//! name passes through untouched to where it was going, unless the route is strict: then a forged
//! Host would be a way out, and it is refused.

use hnp_tests::agent::{Agent, Route};
use hnp_tests::client::{self, RawAnswer, RawCase};
use hnp_tests::manager::{Manager, Mode, Setup};
use hnp_tests::scene::{IDENTITY, Scene, TRUST};
use hnp_tests::topology::{MANAGER4, Pod};

const A: &str = "a.hnp.test";
const B: &str = "b.hnp.test";

#[test]
fn each_request_of_one_connection_goes_where_its_host_says() {
    let names = Names::with("loose", "loose");
    let answer = names.ask(&[A, B, "c.hnp.test", A, "A.HNP.test:80", "b.hnp.test."]);
    assert_eq!(answered_by(&answer), ["a", "b", "original", "a", "a", "b"], "{}", answer.text());
    let line = names.agent.access_line_with("passthrough");
    assert_eq!(line["mode"], "passthrough", "{line}");
}

#[test]
fn another_name_passes_through_untouched() {
    let names = Names::with("loose", "loose");
    let sent = "POST /echo?x=%2F HTTP/1.1\r\nhOST: Elsewhere.test\r\nX-odd:   1  \r\nx-token: p\r\n\
                Content-Length: 4\r\nConnection: close\r\n\r\nbody";
    let answer = names.raw(sent);
    assert_eq!(answered_by(&answer), ["original"], "{}", answer.text());
    assert!(answer.text().ends_with("body"), "{}", answer.text());
    let seen = names.original.request("p");
    let (head, _) = sent.split_at(sent.len() - 4);
    assert_eq!(seen.head.raw, head.as_bytes(), "byte for byte");
    assert!(seen.tls.is_none());
    assert_eq!((names.a.request_count(), names.b.request_count()), (0, 0));
}

#[test]
fn a_strict_route_refuses_other_names() {
    let names = Names::with("strict", "strict");
    let refused = names.raw("GET /x HTTP/1.1\r\nhost: elsewhere.test\r\n\r\n");
    assert_eq!(refused.status(), Some(421), "{}", refused.text());
    assert!(refused.text().contains("\"reason\":\"host_refused\""), "{}", refused.text());
    assert_eq!(names.original.request_count(), 0, "nothing went where it was going");
    names.agent.access_line_with("host_refused");
    // The controls: names that are listed are served.
    assert_eq!(answered_by(&names.ask(&[A, B])), ["a", "b"]);
}

#[test]
fn one_strict_route_makes_the_address_strict() {
    let names = Names::with("loose", "strict");
    assert_eq!(names.raw("GET /x HTTP/1.1\r\nhost: elsewhere.test\r\n\r\n").status(), Some(421));
    assert_eq!(names.original.request_count(), 0);
    assert_eq!(answered_by(&names.ask(&[A, B])), ["a", "b"]);
}

/// Two names for one address, each with a manager of its own behind the agent; and what listens on
/// the address itself, in plaintext.
struct Names {
    pod: Pod,
    agent: Agent,
    a: Manager,
    b: Manager,
    original: Manager,
    _scene: Scene,
}

impl Names {
    fn with(enforcement_a: &str, enforcement_b: &str) -> Self {
        let scene = Scene::for_test();
        for name in [A, B, "c.hnp.test"] {
            scene.add_host(name, &[MANAGER4.into()]);
        }
        let start = |name: &str, port| {
            let server = scene.servers.server(&[&format!("{name}.hnp.test")]);
            Manager::start(&scene, Setup::new(name, port).tls(Mode::Strict, &server, &scene.clients))
        };
        let (a, b) = (start("a", 443), start("b", 444));
        let original = Manager::start(&scene, Setup::new("original", 80));
        let route = |name: &str, host: &str, port: u16, enforcement: &str| {
            let (destination, upstream) = (format!("{host}:80"), format!("https://{host}:{port}"));
            let route = match enforcement {
                "strict" => Route::strict(name, &[&destination], &upstream),
                _ => Route::loose(name, &[&destination], &upstream),
            };
            route.with(IDENTITY, TRUST)
        };
        let config =
            scene.config().route(route("a", A, 443, enforcement_a)).route(route("b", B, 444, enforcement_b));
        let agent = Agent::start(&scene, &config);
        let pod = scene.pod();
        Self { pod, agent, a, b, original, _scene: scene }
    }

    /// One request per host, all on one connection.
    fn ask(&self, hosts: &[&str]) -> RawAnswer {
        let mut text = String::new();
        for (number, host) in hosts.iter().enumerate() {
            let end = if number + 1 == hosts.len() { "connection: close\r\n" } else { "" };
            text += &format!("GET /hello HTTP/1.1\r\nhost: {host}\r\nx-token: n{number}\r\n{end}\r\n");
        }
        self.raw(&text)
    }

    fn raw(&self, bytes: &str) -> RawAnswer {
        client::raw(&self.pod, (MANAGER4, 80), vec![RawCase::new(bytes)]).remove(0)
    }
}

/// The managers that answered, in order.
fn answered_by(answer: &RawAnswer) -> Vec<String> {
    let text = answer.text();
    text.lines().filter_map(|line| line.strip_prefix("x-manager: ")).map(str::to_owned).collect()
}
