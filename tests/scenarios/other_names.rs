//! When several names share one address, Host decides, per request and not per connection, and SNI where
//! a client speaks TLS. Another name passes through untouched to where it was going, unless the route is
//! strict: then a forged Host or SNI would be a way out, and it is refused unless the operator lists it.

use hnp_tests::agent::{Agent, Route};
use hnp_tests::client::{self, RawAnswer, RawCase};
use hnp_tests::manager::{Manager, Mode, Setup};
use hnp_tests::process::{Finished, Place};
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

#[test]
fn a_listed_name_passes_a_strict_route_and_the_others_are_refused_on_the_same_connection() {
    let names = Names::listing("[docs.hnp.test, '*.cdn.hnp.test']");
    let answer = names.ask(&[A, "docs.hnp.test", B, "x.cdn.hnp.test"]);
    assert_eq!(answered_by(&answer), ["a", "original", "b", "original"], "{}", answer.text());
    let before = names.original.request_count();
    // The second request of a connection is judged as the first: what it passed before opens nothing.
    let forged = names.ask(&["docs.hnp.test", "elsewhere.test", "docs.hnp.test"]);
    assert_eq!(answered_by(&forged), ["original"], "{}", forged.text());
    assert!(forged.text().contains("\"reason\":\"host_refused\""), "{}", forged.text());
    assert_eq!(names.original.request_count(), before + 1, "nothing after the refusal went anywhere");
}

#[test]
fn absolute_form_and_http2_are_no_way_round_a_strict_route() {
    let names = Names::with("strict", "strict");
    let absolute = |host: &str, target: &str| {
        names.raw(&format!("GET http://{target}/x HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
    };
    assert_eq!(absolute("elsewhere.test", "elsewhere.test").status(), Some(421));
    // A target and a Host that disagree are refused before anybody is asked which of them counts.
    for (host, target) in [(A, "elsewhere.test"), ("elsewhere.test", A)] {
        assert_eq!(absolute(host, target).status(), Some(400), "{host} {target}");
    }
    let h2 = |host: &str| {
        let url = format!("http://{host}/x");
        let resolve = format!("{host}:80:{MANAGER4}");
        let arguments =
            ["-sS", "--http2-prior-knowledge", "-w", " %{http_code}", "--resolve", &resolve, &url];
        names.pod.command("curl").args(arguments).run().ok()
    };
    let refused = h2("elsewhere.test");
    assert!(refused.contains("\"reason\":\"host_refused\"") && refused.ends_with(" 421"), "{refused}");
    let seen = [&names.a, &names.b, &names.original].map(Manager::payload_received);
    assert_eq!(seen, [0, 0, 0], "not one byte went anywhere");
    // The control: the same forms with a name that is served.
    assert_eq!(answered_by(&absolute(A, A)), ["a"]);
    assert!(h2(A).contains("\"manager\":\"a\""));
}

#[test]
fn tls_of_another_name_passes_a_loose_route_untouched_and_is_refused_on_a_strict_one() {
    let loose = Names::with("loose", "loose");
    let answer = loose.curl("elsewhere.test", &["-w", " %{http_code}"]);
    assert!(answer.ok().contains("\"manager\":\"original\""));
    let seen = loose.original.last_request().expect("one came");
    let tls = seen.tls.expect("its own TLS, end to end");
    assert!(tls.client.is_none(), "the node's certificate is not lent to it");
    // Whatever its end is called: curl leaves with a reset where the server still has a ticket to give.
    let line = loose.agent.access_line("what passed", |line| line["mode"] == "passthrough");
    assert_eq!((&line["route"], &line["tls"]), (&"a".into(), &serde_json::Value::Null), "{line}");

    let strict = Names::with("strict", "loose");
    let refused = strict.curl("elsewhere.test", &[]);
    assert!(!refused.status.success() && refused.stderr.contains("unrecognized name"), "{refused}");
    strict.agent.access_line_with("sni_refused");
    assert_eq!(strict.original.connections().len(), 0, "nobody was dialled for it");

    // The control: what is listed passes the strict route too.
    let listed = Names::listing("[elsewhere.test]");
    assert!(listed.curl("elsewhere.test", &[]).ok().contains("\"manager\":\"original\""));
    assert!(!listed.curl("further.test", &[]).status.success());
    listed.agent.access_line_with("sni_refused");
    assert_eq!(listed.original.connections().len(), 1);
}

#[test]
fn tls_of_the_routes_own_name_or_of_none_is_refused_on_a_strict_route() {
    let names = Names::with("strict", "strict");
    let own = names.curl(A, &[]);
    assert!(!own.status.success() && own.stderr.contains("alert"), "{own}");
    let line = names.agent.access_line_with("tls_from_client");
    assert_eq!(line["route"], "a", "{line}");
    let refused = names.curl_the_address();
    assert!(!refused.status.success() && refused.stderr.contains("alert"), "{refused}");
    names.agent.access_line_with("tls_without_name");
    names.refuse_what_is_no_hello();
    assert_eq!(names.a.connections().len() + names.original.connections().len(), 0);
    // The control: outside the pod's cgroup the same address takes that name's TLS. On a loose route, for the
    // guard keeps even those who are outside from a strict one's.
    let names = Names::with("loose", "loose");
    assert!(names.curl_in(names.pod.outside_cgroup(), A, &[]).status.success());
}

#[test]
fn tls_of_the_routes_own_name_or_of_none_goes_to_the_upstream_on_a_loose_route() {
    let names = Names::with("loose", "loose");
    // A certificate of the pod's own: that of the node is not lent to it.
    let own = names.scene.clients.client();
    let files = own.write(names.scene.dir(), "pod");
    let (certificate, key) = (files.certificate.display().to_string(), files.key.display().to_string());
    let answer = names.curl(A, &["--cert", &certificate, "--key", &key]);
    assert!(answer.ok().contains("\"manager\":\"a\""), "{answer}");
    let seen = names.a.last_request().expect("one came").tls.expect("its own TLS").client;
    assert_ne!(seen.expect("its own certificate").serial, names.scene.client_serial);
    let line = names.agent.access_line("what was carried", |line| line["mode"] == "tunnel");
    assert_eq!((&line["route"], &line["tls"]), (&"a".into(), &serde_json::Value::Null), "{line}");
    // Without one, the strict upstream itself refuses it.
    let refused = names.curl(A, &[]);
    assert!(!refused.status.success() && refused.stderr.contains("certificate required"), "{refused}");
    let before = names.a.connections().len();
    let nameless = names.curl_the_address();
    assert!(!nameless.status.success() && nameless.stderr.contains("certificate required"), "{nameless}");
    assert_eq!(names.a.connections().len(), before + 1, "it is taken for the first route's own");
    names.refuse_what_is_no_hello();
    assert_eq!(names.original.connections().len(), 0);
}

/// Two names for one address, each with a manager of its own behind the agent; and what listens on
/// the address itself, in plaintext.
struct Names {
    pod: Pod,
    agent: Agent,
    a: Manager,
    b: Manager,
    original: Manager,
    scene: Scene,
}

impl Names {
    fn with(enforcement_a: &str, enforcement_b: &str) -> Self {
        Self::start(enforcement_a, enforcement_b, "[]")
    }

    /// Both strict, and both let these names through.
    fn listing(passthrough: &str) -> Self {
        Self::start("strict", "strict", passthrough)
    }

    fn start(enforcement_a: &str, enforcement_b: &str, passthrough: &str) -> Self {
        let scene = Scene::for_test();
        for name in [A, B, "c.hnp.test"] {
            scene.add_host(name, &[MANAGER4.into()]);
        }
        let start = |name: &str, port| {
            let server = scene.servers.server(&[&format!("{name}.hnp.test")]);
            Manager::start(&scene, Setup::new(name, port).tls(Mode::Strict, &server, &scene.clients))
        };
        let (a, b) = (start("a", 443), start("b", 444));
        // Takes TLS as well as plaintext, and nobody's certificate.
        let server = scene.servers.server(&[A, "elsewhere.test", "further.test"]);
        let tls = Setup::new("original", 80).tls(Mode::Loose, &server, &scene.clients);
        let original = Manager::start(&scene, tls);
        let route = |name: &str, host: &str, port: u16, enforcement: &str| {
            let (destination, upstream) = (format!("{host}:80"), format!("https://{host}:{port}"));
            let route = match enforcement {
                "strict" => Route::strict(name, &[&destination], &upstream),
                _ => Route::loose(name, &[&destination], &upstream),
            };
            route.with(IDENTITY, TRUST).set("passthrough", passthrough)
        };
        let config =
            scene.config().route(route("a", A, 443, enforcement_a)).route(route("b", B, 444, enforcement_b));
        let agent = Agent::start(&scene, &config);
        let pod = scene.pod();
        Self { pod, agent, a, b, original, scene }
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

    /// A GET over TLS of the client's own, with this name as SNI and Host.
    fn curl(&self, name: &str, more: &[&str]) -> Finished {
        self.curl_in(&self.pod, name, more)
    }

    fn curl_in(&self, place: &Place, name: &str, more: &[&str]) -> Finished {
        let (resolve, url) = (format!("{name}:80:{MANAGER4}"), format!("https://{name}:80/hello"));
        let command = place.command("curl").args(["-sS", "--resolve", &resolve, &url, "--cacert"]);
        command.arg(&self.scene.roots).args(more).run()
    }

    /// Over TLS without a server name: an address is none.
    fn curl_the_address(&self) -> Finished {
        let url = format!("https://{MANAGER4}:80/hello");
        self.pod.command("curl").args(["-sSk", &url]).run()
    }

    fn refuse_what_is_no_hello(&self) {
        let garbage = self.raw("\x16\x03\x01\0\x05hello");
        assert_eq!(garbage.bytes.first(), Some(&21), "an alert: {garbage:?}");
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
