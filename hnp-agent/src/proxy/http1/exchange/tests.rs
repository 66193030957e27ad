//! Exchanges over real sockets on loopback: the test is client and upstream.

use std::task::{Context, Waker};
use std::time::Duration;

use hnp_common::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::proxy::buffer::Stock;
use crate::upstream::Transport;

const GET: Asked = Asked { head: false, upgrade: false, http10: false };

/// What one exchange came to, and what the client read.
struct Outcome {
    ended: Ended,
    client_read: Vec<u8>,
    leftover: Vec<u8>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (a.unwrap(), b.unwrap().0)
}

fn terms(framing: Framing, asked: Asked) -> Terms {
    Terms {
        framing,
        asked,
        close: false,
        verbatim: false,
        dated: false,
        head_limit: 8192,
        response: Duration::from_secs(20),
        idle: Duration::from_secs(20),
        cut: Cut::new(tokio_util::sync::CancellationToken::new(), std::rc::Rc::default()),
    }
}

/// The client has sent `body`; the upstream waits for `wait_for` bytes and then writes `answer`, in
/// pieces, and closes where `close` says so.
async fn run_one(terms: Terms, body: &[u8], wait_for: usize, answer: &[&[u8]], close: bool) -> Outcome {
    let (mut client, client_end) = pair().await;
    let mut client_end = ClientIo::Tcp(client_end);
    let (upstream, mut upstream_end) = pair().await;
    let mut io = Io::Plain(Transport::Tcp(upstream));
    let stock = Stock::new(65536);
    let (mut bytes, mut down) = (stock.buffer(), stock.buffer());
    client.write_all(body).await.unwrap();
    let serve = async {
        let mut seen = vec![0; wait_for];
        upstream_end.read_exact(&mut seen).await.unwrap();
        for piece in answer {
            upstream_end.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        if close {
            drop(upstream_end);
            None
        } else {
            Some(upstream_end)
        }
    };
    let exchange = run(&mut client_end, &mut io, b"HEAD\r\n\r\n", &mut bytes, &mut down, &terms);
    let (ended, _keep_open) = tokio::join!(exchange, serve);
    drop(client_end);
    let mut client_read = Vec::new();
    let _ = client.read_to_end(&mut client_read).await;
    Outcome { ended, client_read, leftover: down.filled().to_vec() }
}

fn complete(ended: &Ended) -> (bool, bool) {
    match ended.end {
        End::Complete { upstream_reusable, client_reusable, .. } => (upstream_reusable, client_reusable),
        ref other => panic!("not complete: {other:?}"),
    }
}

fn failed(ended: &Ended) -> (Reason, bool) {
    match &ended.end {
        End::Failed(failure) => (failure.reason, failure.answer_begun),
        other => panic!("did not fail: {other:?}"),
    }
}

#[tokio::test]
async fn an_exact_exchange_leaves_both_connections_usable() {
    let answer: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 5\r\n\r\nhel", b"lo"];
    let out = run_one(terms(Framing::Length(3), GET), b"abc", 11, answer, false).await;
    assert_eq!(complete(&out.ended), (true, true));
    assert_eq!(out.client_read, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!((out.ended.up, out.ended.status), (3, 200));
}

#[tokio::test]
async fn unsolicited_bytes_end_the_upstream_connection_and_reach_nobody() {
    let answer: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n"];
    let out = run_one(terms(Framing::None, GET), b"", 8, answer, false).await;
    assert_eq!(complete(&out.ended), (false, true));
    assert!(out.client_read.ends_with(b"\r\n\r\nok"));
    assert!(out.leftover.starts_with(b"HTTP/1.1"));
}

#[tokio::test]
async fn an_early_answer_is_carried_and_the_connection_not_used_again() {
    let answer: &[&[u8]] = &[b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"];
    let out = run_one(terms(Framing::Length(100), GET), b"abc", 11, answer, false).await;
    assert_eq!(complete(&out.ended), (false, false));
    assert!(out.client_read.starts_with(b"HTTP/1.1 413"));
}

#[tokio::test]
async fn truncated_answers_are_named_and_never_look_whole() {
    for (answer, begun) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhell"[..], true),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", true),
        (b"HTTP/1.1 200 OK\r\nContent-Le", false),
    ] {
        let out = run_one(terms(Framing::None, GET), b"", 8, &[answer], true).await;
        assert_eq!(failed(&out.ended), (Reason::UpstreamTruncated, begun), "{answer:?}");
    }
    let out = run_one(terms(Framing::None, GET), b"", 8, &[], true).await;
    assert_eq!(failed(&out.ended), (Reason::UpstreamClosed, false));
}

#[tokio::test]
async fn malformed_answers_are_not_passed_on() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 1\n\na",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    ] {
        let out = run_one(terms(Framing::None, GET), b"", 8, &[answer], false).await;
        assert_eq!(failed(&out.ended), (Reason::UpstreamBadResponse, false), "{answer:?}");
        assert!(out.client_read.is_empty());
    }
}

#[tokio::test]
async fn interim_answers_come_first_and_not_to_http10() {
    let answer: &[&[u8]] = &[
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ];
    let out = run_one(terms(Framing::None, GET), b"", 8, answer, false).await;
    assert_eq!(complete(&out.ended), (true, true));
    assert!(out.client_read.starts_with(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"));
    assert!(out.client_read.ends_with(b"2\r\nok\r\n0\r\n\r\n"));

    let old = Asked { http10: true, ..GET };
    let out = run_one(terms(Framing::None, old), b"", 8, answer, false).await;
    assert_eq!(complete(&out.ended), (true, false));
    assert_eq!(out.client_read, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok");
}

#[tokio::test]
async fn what_was_there_before_the_request_answers_nobody() {
    let (mut client, client_end) = pair().await;
    let mut client_end = ClientIo::Tcp(client_end);
    let (upstream, mut upstream_end) = pair().await;
    upstream_end.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nXX").await.unwrap();
    upstream.readable().await.unwrap();
    let mut io = Io::Plain(Transport::Tcp(upstream));
    let stock = Stock::new(65536);
    let (mut bytes, mut down) = (stock.buffer(), stock.buffer());
    let terms = terms(Framing::None, GET);
    let ended = run(&mut client_end, &mut io, b"HEAD\r\n\r\n", &mut bytes, &mut down, &terms).await;
    assert_eq!(failed(&ended), (Reason::UpstreamBadResponse, false));
    drop((io, client_end));
    let mut seen = (Vec::new(), Vec::new());
    client.read_to_end(&mut seen.0).await.unwrap();
    // Closed with bytes unread, so it may end in a reset; what matters is that nothing was sent.
    let _ = upstream_end.read_to_end(&mut seen.1).await;
    assert_eq!(seen, (Vec::new(), Vec::new()), "neither side got a byte");
}

#[tokio::test]
async fn a_head_that_ends_just_past_the_limit_is_too_large_and_not_a_hang() {
    let mut answer = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
    answer.resize(8191, b'a');
    answer.extend_from_slice(b"\r\n\r\n");
    let out = run_one(terms(Framing::None, GET), b"", 8, &[&answer], false).await;
    assert_eq!(failed(&out.ended), (Reason::UpstreamBadResponse, false));
}

#[tokio::test(start_paused = true)]
async fn after_an_interim_answer_ours_can_still_be_final() {
    let terms = Terms { response: Duration::from_secs(2), ..terms(Framing::None, GET) };
    let out = run_one(terms, b"", 8, &[b"HTTP/1.1 100 Continue\r\n\r\n"], false).await;
    assert_eq!(failed(&out.ended), (Reason::UpstreamResponseTimeout, false));
}

#[tokio::test]
async fn an_answer_until_close_ends_the_clients_connection_too() {
    let answer: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\n\r\n", b"all of it"];
    let out = run_one(terms(Framing::None, GET), b"", 8, answer, true).await;
    assert_eq!(complete(&out.ended), (false, false));
    assert_eq!(out.client_read, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it");
}

#[tokio::test]
async fn nginx_pages_about_certificates_are_recognised() {
    let page = b"<html><head><title>400 No required SSL certificate was sent</title></head></html>";
    let head = format!("HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nContent-Length: {}\r\n\r\n", page.len());
    for (body, expected) in [(page.to_vec(), true), (vec![b'x'; page.len()], false)] {
        let out = run_one(terms(Framing::None, GET), b"", 8, &[head.as_bytes(), &body], false).await;
        match out.ended.end {
            End::Complete { certificate_refused, .. } => assert_eq!(certificate_refused, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_given_up_at_its_own_deadline() {
    let started = Instant::now();
    let terms = Terms { response: Duration::from_secs(2), ..terms(Framing::None, GET) };
    let out = run_one(terms, b"", 8, &[], false).await;
    assert_eq!(failed(&out.ended), (Reason::UpstreamResponseTimeout, false));
    assert!(started.elapsed() < Duration::from_secs(5), "not the idle deadline: {:?}", started.elapsed());
}

#[test]
fn a_head_takes_along_what_of_the_body_has_come() {
    let stock = Stock::new(65536);
    let first_write = |bytes: &[u8]| {
        let mut answer = stock.buffer();
        let read = answer.poll_fill(&mut &*bytes, &mut Context::from_waker(Waker::noop()), 0);
        assert!(read.is_ready());
        let mut down = Down::new(&mut answer);
        assert!(down.take_buffered(&terms(Framing::None, GET), true, None).unwrap());
        (down.out.len(), down.ready)
    };
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(first_write(&[head, &b"hello"[..]].concat()), (head.len(), 5));
    assert_eq!(first_write(&[head, &b"hel"[..]].concat()), (head.len(), 3));
    assert_eq!(first_write(head), (head.len(), 0), "the control");
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(first_write(chunked).1, 15);
}
