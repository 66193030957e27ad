//! The calls that transient pods make, as they stand on the wire: every byte of them reaches the manager but
//! `Host`, no token reaches a log, and a body that is streamed for minutes arrives piece by piece.

use std::time::{Duration, SystemTime};

use hnp_tests::client::{self, RawCase};
use hnp_tests::pattern::hex;
use hnp_tests::poll::until;
use hnp_tests::scene::{Scene, UPSTREAM};
use hnp_tests::topology::MANAGER4;
use sha2::{Digest as _, Sha256};

/// What the pods were given, and nobody else may read.
const SECRETS: &[&str] =
    &["ak-0123456789abcdef", "ht-fedcba9876543210", "agent-token-55aa", "log-key-secret"];

/// `{"services":[{"name":"cart","pods":3}]}`, compressed.
const GZIPPED: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xabV*N-*\xcbLN-V\xb2\x8a\xaeV\xcaK\xccMU\xb2RJN,*Q\xd2Q*\xc8O\x01\x0a\x1b\xd7\xc6\xd6\x02\x00\xd0\xce^\x16'\x00\x00\x00";

const RESULT: &[u8] = b"{\"taskId\":\"t-1\",\"result\":\"{\\\"verdict\\\":\\\"Pass\\\",\\\"note\\\":\\\"\xc3\xa4 %2F \\u0000\\\"}\"}";
const LINES: &[u8] =
    b"[{\"level\":\"info\",\"pos\":0,\"out\":\"killed pod\\n\",\"time\":\"2026-01-01T00:00:00Z\"}]\n";

/// Request line and fields behind `Host`, and the body.
const CALLS: &[(&str, &[u8])] = &[
    (
        "POST /gateway/chaos/kserver/api/infra/v2/task/response/infra-1?environmentIdentifier=e&accountIdentifier=a\
         &organizationIdentifier=o&projectIdentifier=p HTTP/1.1\r\n|User-Agent: Go-http-client/1.1\r\n\
         Content-Type: application/json\r\nX-Access-Key: ak-0123456789abcdef\r\nAccept-Encoding: gzip\r\n",
        RESULT,
    ),
    (
        "GET /gateway/chaos/kserver/api/infra/v2/task/experimentrun/infra-1/exp-1/run-1 HTTP/1.1\r\n\
         |User-Agent: Go-http-client/1.1\r\nX-Access-Key: ak-0123456789abcdef\r\nAccept-Encoding: gzip\r\n",
        b"",
    ),
    (
        "POST /gateway/log-service/stream?accountID=a&key=log-key-secret%2Fpipeline%2Bx HTTP/1.1\r\n\
         |User-Agent: Go-http-client/1.1\r\nX-Harness-Token: ht-fedcba9876543210\r\n",
        b"",
    ),
    (
        "PUT /gateway/log-service/stream?accountID=a&key=log-key-secret%2Fpipeline%2Bx HTTP/1.1\r\n\
         |User-Agent: Go-http-client/1.1\r\nX-Harness-Token: ht-fedcba9876543210\r\n",
        LINES,
    ),
    (
        "DELETE /gateway/log-service/stream?accountID=a&key=log-key-secret%2Fpipeline%2Bx HTTP/1.1\r\n\
         |User-Agent: Go-http-client/1.1\r\nX-Harness-Token: ht-fedcba9876543210\r\n",
        b"",
    ),
    (
        "POST /log-service/blob?accountID=a&key=log-key-secret HTTP/1.1\r\n\
         |X-Harness-Token: ht-fedcba9876543210\r\n",
        LINES,
    ),
    (
        "POST /chaos/collector//services?x=%7B%22a%22%3A1%7D HTTP/1.1\r\n|Content-Encoding: gzip\r\n\
         Content-Type: application/json\r\nAuthorization: Token agent-token-55aa\r\n",
        GZIPPED,
    ),
    (
        "POST /gratis/chaos/lserver/api/infra/task/status/t-1 HTTP/1.1\r\n|Content-Type: application/json\r\n\
         Cookie: token=agent-token-55aa\r\n",
        RESULT,
    ),
];

#[test]
fn every_byte_but_host_reaches_the_manager_and_no_token_a_log() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (agent, pod) = (scene.agent(), scene.pod());
    let mut sent = Vec::new();
    let mut expected = Vec::new();
    for (head, body) in CALLS {
        let (line, fields) = head.split_once('|').expect("a place for Host");
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        sent.extend_from_slice(format!("{line}Host: manager.hnp.test\r\n{fields}{length}\r\n").as_bytes());
        sent.extend_from_slice(body);
        let authority = UPSTREAM.trim_start_matches("https://");
        expected.push((format!("{line}Host: {authority}\r\n{fields}{length}\r\n"), *body));
    }
    // All on one connection, as Go's client does it.
    client::raw(&pod, (MANAGER4, 80), vec![RawCase::new(sent).then_half_close()]);
    let seen = manager.requests();
    assert_eq!(seen.len(), expected.len());
    for (request, (head, body)) in seen.iter().zip(&expected) {
        assert_eq!(String::from_utf8_lossy(&request.head.raw), *head);
        assert_eq!(request.body_bytes, Some(body.len() as u64), "{head}");
        assert_eq!(request.body_sha256.as_deref(), Some(&*hex(&Sha256::digest(body))), "{head}");
        assert_eq!(request.client_serial(), scene.client_serial);
    }
    agent.access_line("the last", |_| agent.access_lines().len() >= expected.len());
    let told = format!("{}{}", agent.access_log(), agent.log());
    assert!(told.contains("/gateway/log-service/stream"), "the control: paths are in the log");
    for secret in SECRETS {
        assert!(!told.contains(secret), "{secret} in\n{told}");
    }
}

/// How many pieces, how long each, and how far apart: 5 s stand for 10 minutes, by a smaller number of pieces.
const PIECES: u64 = 50;
const PIECE: u64 = 700;
const APART: Duration = Duration::from_millis(100);
/// Ten times the 50 ms within which a piece must have arrived.
const ARRIVAL: Duration = Duration::from_millis(500);

#[test]
fn a_body_that_is_streamed_arrives_piece_by_piece() {
    let scene = Scene::for_test();
    let manager = scene.strict_manager();
    let (_agent, pod) = (scene.agent(), scene.pod());
    let script = format!(
        "import socket, sys, time\n\
         s = socket.create_connection(('{MANAGER4}', 80))\n\
         s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n\
         s.sendall(b'PUT /stream?token=pieces HTTP/1.1\\r\\nHost: manager.hnp.test\\r\\nConnection: close\\r\\n'\n\
         \x20         b'Content-Length: {}\\r\\n\\r\\n')\n\
         for piece in range({PIECES}):\n\
         \x20   time.sleep({})\n\
         \x20   print(time.time_ns(), flush=True)\n\
         \x20   s.sendall(bytes([piece]) * {PIECE})\n\
         print(s.recv(12).decode())\n",
        PIECES * PIECE,
        APART.as_secs_f64(),
    );
    let pod_writes = pod.command("python3").args(["-c", &script]).spawn();
    let (head, _) = until(Duration::from_secs(20), "the head arrives", || {
        manager.requests().first().map(|request| request.head.raw.len() as u64)
    });
    let mut arrived = Vec::new();
    for piece in 1..=PIECES {
        let wanted = head + piece * PIECE;
        until(Duration::from_secs(20), &format!("piece {piece} arrives"), || {
            (manager.payload_received() >= wanted).then_some(())
        });
        arrived.push(now_ns());
    }
    let finished = pod_writes.wait(Duration::from_secs(20));
    let text = finished.ok();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.last(), Some(&"HTTP/1.1 200"), "{text}");
    let written = lines.iter().filter_map(|line| line.parse::<u64>().ok());
    let mut late: Vec<_> =
        written.zip(arrived).map(|(written, arrived)| arrived.saturating_sub(written)).collect();
    assert_eq!(late.len() as u64, PIECES);
    late.sort_unstable();
    let (median, worst) = (late[late.len() / 2], late[late.len() - 1]);
    eprintln!(
        "{PIECES} pieces: at the manager {:.1} ms after they were written (median), {:.1} ms (all)",
        median as f64 / 1e6,
        worst as f64 / 1e6
    );
    assert!(Duration::from_nanos(worst) < hnp_tests::poll::patience(ARRIVAL), "{worst} ns");
}

/// The clock of Python's `time.time_ns`.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_nanos()).expect("before the year 2554")
}
