//! What is not plain HTTP/1.1 is refused with a reason and never forwarded. Each case has a
//! well-formed twin that is, so that a refusal means the rule and not the rest of the request.

use hnp_tests::agent::Agent;
use hnp_tests::client::{self, RawAnswer, RawCase};
use hnp_tests::manager::Manager;
use hnp_tests::scene::Scene;
use hnp_tests::topology::{MANAGER_NAME, MANAGER4, Pod};

const BAD: &str = "bad_request";
const AMBIGUOUS: &str = "ambiguous_framing";

#[test]
fn ambiguous_framing_is_refused() {
    Desk::open().all_refused(&[
        ("two lengths", AMBIGUOUS, post("content-length: 5\r\ncontent-length: 6", "hello")),
        ("two lengths in one line", AMBIGUOUS, post("content-length: 5, 6", "hello")),
        ("equal lengths in one line", AMBIGUOUS, post("content-length: 5, 5", "hello")),
        ("a signed length", AMBIGUOUS, post("content-length: +5", "hello")),
        ("a negative length", AMBIGUOUS, post("content-length: -5", "hello")),
        ("a hexadecimal length", AMBIGUOUS, post("content-length: 0x5", "hello")),
        ("an empty length", AMBIGUOUS, post("content-length:", "hello")),
        ("a length that overflows", AMBIGUOUS, post("content-length: 18446744073709551621", "hello")),
        (
            "length and chunks",
            AMBIGUOUS,
            post("content-length: 5\r\ntransfer-encoding: chunked", "0\r\n\r\n"),
        ),
        (
            "chunks and length",
            AMBIGUOUS,
            post("transfer-encoding: chunked\r\ncontent-length: 5", "0\r\n\r\n"),
        ),
        ("an unknown coding", AMBIGUOUS, post("transfer-encoding: gzip", "hello")),
        ("a coding before chunks", AMBIGUOUS, post("transfer-encoding: gzip, chunked", "0\r\n\r\n")),
        ("chunks twice", AMBIGUOUS, post("transfer-encoding: chunked, chunked", "0\r\n\r\n")),
        (
            "two codings in two lines",
            AMBIGUOUS,
            post("transfer-encoding: x\r\ntransfer-encoding: chunked", "0\r\n\r\n"),
        ),
        ("identity", AMBIGUOUS, post("transfer-encoding: identity", "hello")),
        ("a quoted coding", AMBIGUOUS, post("transfer-encoding: \"chunked\"", "0\r\n\r\n")),
        ("a parameter", AMBIGUOUS, post("transfer-encoding: chunked;q=1", "0\r\n\r\n")),
        (
            "chunks in HTTP/1.0",
            AMBIGUOUS,
            post("transfer-encoding: chunked", "0\r\n\r\n").replace("1.1", "1.0"),
        ),
        ("space before the colon", BAD, post("content-length : 5", "hello")),
        ("space before transfer-encoding's colon", BAD, post("transfer-encoding : chunked", "0\r\n\r\n")),
        ("a tab in the name", BAD, post("transfer-encoding\t: chunked", "0\r\n\r\n")),
        ("a vertical tab before the coding", BAD, post("transfer-encoding: \u{b}chunked", "0\r\n\r\n")),
    ]);
}

#[test]
fn malformed_lines_are_refused() {
    Desk::open().all_refused(&[
        ("a folded line", BAD, get("x-a: 1\r\n folded: 2")),
        ("a line folded by a tab", BAD, get("x-a: 1\r\n\tfolded")),
        ("a fold before the first field", BAD, get("").replacen("\r\nhost", "\r\n x: 1\r\nhost", 1)),
        ("a bare LF after a field", BAD, get("x-a: 1\nx-b: 2")),
        ("bare LFs throughout", BAD, get("x-a: 1").replace("\r\n", "\n")),
        ("a bare LF at the end of the head", BAD, get("x-a: 1").replace("\r\n\r\n", "\r\n\n")),
        ("a bare CR in a value", BAD, get("x-a: 1\rx-b: 2")),
        ("a bare CR in the request line", BAD, get("").replacen("/hello", "/hel\rlo", 1)),
        ("NUL in a value", BAD, get("x-a: 1\0 2")),
        ("NUL in a name", BAD, get("x\0a: 1")),
        ("NUL in the target", BAD, get("").replacen("/hello", "/hel\0lo", 1)),
        ("DEL in a value", BAD, get("x-a: 1\u{7f}")),
        ("a field without a colon", BAD, get("x-a")),
        ("a field without a name", BAD, get(": 1")),
        ("a name with a space", BAD, get("x a: 1")),
        ("a name in parentheses", BAD, get("(x): 1")),
        ("two spaces in the request line", BAD, get("").replacen(" HTTP", "  HTTP", 1)),
        ("a target with a space", BAD, get("").replacen("/hello", "/hel lo", 1)),
        ("no target", BAD, get("").replacen("/hello ", "", 1)),
        ("a relative target", BAD, get("").replacen("/hello", "hello", 1)),
        ("HTTP/1.2", BAD, get("").replacen("HTTP/1.1", "HTTP/1.2", 1)),
        ("HTTP/0.9", BAD, get("").replacen("HTTP/1.1", "HTTP/0.9", 1)),
        ("a lower-case version", BAD, get("").replacen("HTTP/1.1", "http/1.1", 1)),
        ("an unknown expectation", BAD, get("expect: 200-maybe")),
    ]);
}

#[test]
fn hosts_that_could_mislead_are_refused() {
    let host = |value: &str| get("").replacen(&format!("host: {MANAGER_NAME}"), value, 1);
    Desk::open().all_refused(&[
        ("no Host", BAD, host("x-no-host: 1")),
        ("two Hosts", BAD, host(&format!("host: {MANAGER_NAME}\r\nhost: other.test"))),
        ("two equal Hosts", BAD, host(&format!("host: {MANAGER_NAME}\r\nhost: {MANAGER_NAME}"))),
        ("an empty Host", BAD, host("host:")),
        ("a Host with a path", BAD, host(&format!("host: {MANAGER_NAME}/path"))),
        ("a Host with a user", BAD, host(&format!("host: user@{MANAGER_NAME}"))),
        ("a Host with a space", BAD, host(&format!("host: {MANAGER_NAME} other.test"))),
        ("a Host list", BAD, host(&format!("host: {MANAGER_NAME}, other.test"))),
        ("a Host with a bad port", BAD, host(&format!("host: {MANAGER_NAME}:80x"))),
        ("a header through the Host", BAD, host(&format!("host: {MANAGER_NAME}\rx-injected: 1"))),
        ("a header through the Host by LF", BAD, host(&format!("host: {MANAGER_NAME}\nx-injected: 1"))),
        ("another host in the target", BAD, get("").replacen("/hello", "http://other.test/hello", 1)),
    ]);
}

#[test]
fn connection_may_not_name_what_must_reach_the_manager() {
    let cases: Vec<_> =
        ["host", "content-length", "authorization", "transfer-encoding", "Cookie", "x-access-key"]
            .into_iter()
            .map(|name| (name, BAD, get(&format!("connection: close, {name}"))))
            .collect();
    Desk::open().all_refused(&cases);
}

#[test]
fn malformed_chunks_are_not_completed() {
    let chunked = |body: &str| post("transfer-encoding: chunked", body);
    let desk = Desk::open();
    for (what, body) in [
        ("no digit", "\r\nhello\r\n0\r\n\r\n"),
        ("not hexadecimal", "5g\r\nhello\r\n0\r\n\r\n"),
        ("a sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("an underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
        ("a size that overflows", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("a bare LF after the size", "5\nhello\r\n0\r\n\r\n"),
        ("a bare CR in the extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        ("a bare LF in the extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("a longer chunk than said", "4\r\nhello\r\n0\r\n\r\n"),
        ("a bare LF after the chunk", "5\r\nhello\n0\r\n\r\n"),
        ("a forbidden trailer", "5\r\nhello\r\n0\r\ncontent-length: 5\r\n\r\n"),
    ] {
        desk.refused(what, BAD, &chunked(body));
    }
    // The same, when the head came before and the request is under way: cut, never completed.
    let head = chunked("");
    for body in ["zz\r\nhello\r\n0\r\n\r\n", "4\r\nhello\r\n0\r\n\r\n"] {
        let answer = client::raw(
            &desk.pod,
            (MANAGER4, 80),
            vec![RawCase::in_parts(&[head.as_bytes(), body.as_bytes()], 300)],
        );
        assert_ne!(answer[0].status(), Some(200), "{}", answer[0].text());
        let complete = |request: &hnp_tests::manager::Request| request.body_bytes.is_some();
        assert!(!desk.manager.requests().iter().any(complete), "{:#?}", desk.manager.requests());
    }
    // The control: extensions and trailers that are allowed.
    desk.forwarded("well-formed chunks", &chunked("5;name=value\r\nhello\r\n0\r\nx-trailer: 1\r\n\r\n"));
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let desk = Desk::open();
    let with = |length: usize| get(&format!("x-large: {}", "a".repeat(length)));
    desk.refused("64 KiB of one field", "head_too_large", &with(65_536));
    let many: Vec<String> = (0..10_000).map(|n| format!("x-{n}: 1")).collect();
    desk.refused("ten thousand fields", "head_too_large", &get(&many.join("\r\n")));
    desk.forwarded("48 KiB", &with(48 * 1024));
}

#[test]
fn methods_that_are_not_served_are_refused() {
    let desk = Desk::open();
    let connect =
        format!("CONNECT other.test:443 HTTP/1.1\r\nhost: {MANAGER_NAME}\r\nconnection: close\r\n\r\n");
    desk.refused("CONNECT", "not_implemented", &connect);
    desk.forwarded("an unknown method", &get("").replacen("GET", "PROPFIND", 1));
}

#[test]
fn nothing_behind_a_refused_request_is_served() {
    let desk = Desk::open();
    let smuggled = get("x-token: smuggled");
    let outer = post("content-length: 5\r\ntransfer-encoding: chunked", "0\r\n\r\n");
    let answer = desk.send(&format!("{outer}{smuggled}"));
    assert_eq!(answer.status(), Some(400), "{}", answer.text());
    assert_eq!(answer.text().matches("HTTP/1.1 ").count(), 1, "{}", answer.text());
    assert_eq!(desk.manager.request_count(), 0);
}

#[test]
fn a_head_that_does_not_end_in_time_is_ended() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let route = hnp_tests::agent::Route::strict(
        "manager",
        hnp_tests::scene::DESTINATIONS,
        hnp_tests::scene::UPSTREAM,
    );
    let agent = scene.agent_with(route.set("timeouts", "{head: 1s}"));
    let slow = RawCase { quiet_ms: 15_000, ..RawCase::new("GET /hello HTTP/1.1\r\nhost: ") };
    let answer = client::raw(&scene.pod(), (MANAGER4, 80), vec![slow]).remove(0);
    assert_eq!(answer.status(), Some(408), "{}", answer.text());
    agent.access_line_with("head_timeout");
    assert_eq!(manager.request_count(), 0);
}

/// Where requests are handed in: a strict manager behind an agent.
struct Desk {
    pod: Pod,
    agent: Agent,
    manager: Manager,
    _scene: Scene,
}

impl Desk {
    fn open() -> Self {
        let scene = Scene::for_test();
        let manager = scene.strict_manager();
        let (agent, pod) = (scene.agent(), scene.pod());
        let desk = Self { pod, agent, manager, _scene: scene };
        // The twins of everything below.
        desk.forwarded("a well-formed GET", &get("x-a: 1"));
        desk.forwarded("a well-formed POST", &post("content-length: 5", "hello"));
        desk.forwarded("well-formed chunks", &post("transfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"));
        desk
    }

    fn send(&self, bytes: &str) -> RawAnswer {
        client::raw(&self.pod, (MANAGER4, 80), vec![RawCase::new(bytes)]).remove(0)
    }

    #[track_caller]
    fn forwarded(&self, what: &str, bytes: &str) {
        let before = self.manager.request_count();
        let answer = self.send(bytes);
        assert_eq!(answer.status(), Some(200), "{what}: {}", answer.text());
        assert_eq!(self.manager.request_count(), before + 1, "{what}");
        self.manager.forget();
    }

    #[track_caller]
    fn all_refused(&self, cases: &[(&str, &str, String)]) {
        let mut wrong = Vec::new();
        for (what, reason, bytes) in cases {
            if let Err(error) = self.try_refused(what, reason, bytes) {
                wrong.push(error);
            }
        }
        assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    }

    #[track_caller]
    fn refused(&self, what: &str, reason: &str, bytes: &str) {
        if let Err(error) = self.try_refused(what, reason, bytes) {
            panic!("{error}");
        }
    }

    fn try_refused(&self, what: &str, reason: &str, bytes: &str) -> Result<(), String> {
        let count = || self.agent.metrics().sum("hnp_requests", &[("reason", reason)]);
        let before = count();
        let answer = self.send(bytes);
        let text = answer.text();
        let seen = self.manager.requests();
        self.manager.forget();
        if !seen.is_empty() {
            return Err(format!("{what}: forwarded as {:?}", String::from_utf8_lossy(&seen[0].head.raw)));
        }
        if !text.contains(&format!("\"reason\":\"{reason}\"")) {
            return Err(format!("{what}: expected {reason}, got {text:?} and {:?}", answer.end));
        }
        self.agent.wait_for_count("hnp_requests", &[("reason", reason)], before, 1.0);
        Ok(())
    }
}

fn get(field: &str) -> String {
    request("GET", field, "")
}

fn post(field: &str, body: &str) -> String {
    request("POST", field, body)
}

fn request(method: &str, field: &str, body: &str) -> String {
    let line = if field.is_empty() { String::new() } else { format!("{field}\r\n") };
    // The host comes first, so that a fold or an injection has something to attach itself to.
    format!("{method} /hello HTTP/1.1\r\nhost: {MANAGER_NAME}\r\n{line}connection: close\r\n\r\n{body}")
}
