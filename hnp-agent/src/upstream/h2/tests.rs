//! Streams over a connection in memory: the test is the upstream, with the library's own server.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason as Code, RecvStream};
use hnp_common::Reason;
use http::{HeaderMap, Request, Response, StatusCode};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::{JoinSet, LocalSet};

use super::*;
use crate::telemetry::record::{HttpVersion, WayRecord};

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: up.test\r\n\r\n";
const PING: Duration = Duration::from_secs(10);

type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// Both ends of a connection, and the task that drives ours.
struct Pair {
    link: Rc<Link>,
    server: server::Connection<DuplexStream, Bytes>,
    drivers: JoinSet<()>,
}

impl Pair {
    async fn new() -> Self {
        Self::with(&server::Builder::new()).await
    }

    async fn with(builder: &server::Builder) -> Self {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let terms = Terms { head_limit: 8192, keep: true, ping: PING };
        let settings = Settings { streams: STREAMS, terms };
        let mut drivers = JoinSet::new();
        let begin = async {
            let (link, driver) = Link::begin(ours, info(), 1, settings).await.unwrap();
            drivers.spawn_local(driver);
            link
        };
        let (link, server) = tokio::join!(begin, builder.handshake(theirs));
        Self { link, server: server.unwrap(), drivers }
    }

    fn stream(&self) -> Exchange {
        Exchange::new(self.link.clone())
    }

    async fn accept(&mut self) -> Asked {
        self.server.accept().await.unwrap().unwrap()
    }

    /// Lets the connection work until `done` has its result.
    async fn until<T>(&mut self, done: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            result = done => result,
            more = self.server.accept() => panic!("another request, or the end: {more:?}"),
        }
    }

    /// One exchange: the request is `message`, `answer` answers it; what the client's side reads.
    async fn exchange(&mut self, message: &[u8], answer: impl AsyncFnOnce(Asked)) -> io::Result<Vec<u8>> {
        let mut stream = self.stream();
        let client = async {
            let _ = stream.write_all(message).await;
            let _ = stream.flush().await;
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.map(|_| read)
        };
        tokio::pin!(client);
        let asked = tokio::select! {
            read = &mut client => return read,
            asked = self.server.accept() => asked.unwrap().unwrap(),
        };
        self.until(async { tokio::join!(client, answer(asked)).0 }).await
    }
}

fn info() -> Rc<ConnectionInfo> {
    let addr: std::net::SocketAddr = "192.0.2.1:443".parse().unwrap();
    Rc::new(ConnectionInfo {
        way: Arc::new(WayRecord::direct(addr.to_string())),
        addr,
        connect: Duration::ZERO,
        tls_version: None,
        key_exchange: None,
        protocol: Some(HttpVersion::H2),
        resumed: false,
        identity_generation: None,
        spiffe_id: None,
    })
}

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(Box::pin(test)).await;
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn ok() -> Response<()> {
    Response::new(())
}

async fn body_of(mut stream: RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data.unwrap();
        stream.flow_control().release_capacity(data.len()).unwrap();
        body.extend_from_slice(&data);
    }
    (body, stream.trailers().await.unwrap())
}

/// Sends all of it, as the windows go.
async fn send_all(stream: &mut h2::SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let n = poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        stream.send_data(data.split_to(n.min(data.len())), false).unwrap();
    }
}

fn reason(read: io::Result<Vec<u8>>) -> Reason {
    let error = read.unwrap_err();
    fault_reason(&error).unwrap_or_else(|| panic!("{error:?}"))
}

#[tokio::test]
async fn a_request_and_its_answer_with_trailers_both_ways() {
    local(async {
        let mut pair = Pair::new().await;
        let message = b"POST /a?b HTTP/1.1\r\nHost: up.test\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n\
                        3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n";
        let read = pair
            .exchange(message, async |(request, mut respond)| {
                assert_eq!(request.uri(), "https://up.test/a?b");
                assert_eq!(request.headers()["x-a"], "1");
                let (body, trailers) = body_of(request.into_body()).await;
                assert_eq!((&*body, &trailers.unwrap()["x-sum"]), (&b"abcde"[..], &"5".parse().unwrap()));
                let mut stream = respond.send_response(ok(), false).unwrap();
                send_all(&mut stream, Bytes::from_static(b"hello")).await;
                stream
                    .send_trailers(
                        [("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect(),
                    )
                    .unwrap();
            })
            .await
            .unwrap();
        let expected =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\ngrpc-status: 0\r\n\r\n";
        assert_eq!(String::from_utf8(read).unwrap(), expected);
        assert!(pair.link.has_room(Instant::now()) && pair.link.idle(Instant::now()).is_some());
    })
    .await;
}

#[tokio::test]
async fn answers_without_a_body() {
    local(async {
        let mut pair = Pair::new().await;
        let head = b"HEAD /a HTTP/1.1\r\nHost: up.test\r\n\r\n";
        for (message, status, length, expected) in [
            (&head[..], 200, Some("7"), "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n"),
            (GET, 204, None, "HTTP/1.1 204 No Content\r\n\r\n"),
            (GET, 304, Some("7"), "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n"),
            (GET, 200, None, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ] {
            let read = pair.exchange(message, async |(_, mut respond)| {
                let mut answer = Response::builder().status(status);
                if let Some(length) = length {
                    answer = answer.header("content-length", length);
                }
                respond.send_response(answer.body(()).unwrap(), true).unwrap();
            });
            assert_eq!(String::from_utf8(read.await.unwrap()).unwrap(), expected);
        }
    })
    .await;
}

#[tokio::test]
async fn interim_answers_come_first() {
    local(async {
        let mut pair = Pair::new().await;
        let read = pair.exchange(GET, async |(_, mut respond)| {
            let interim = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
            respond.send_informational(interim).unwrap();
            respond.send_response(ok(), true).unwrap();
        });
        let expected =
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(String::from_utf8(read.await.unwrap()).unwrap(), expected);
    })
    .await;
}

#[tokio::test]
async fn what_was_not_processed_is_told_from_what_may_have_been() {
    local(async {
        for (code, unprocessed) in [
            (Code::REFUSED_STREAM, Some(Unprocessed::Anew)),
            (Code::HTTP_1_1_REQUIRED, Some(Unprocessed::OverHttp1)),
            (Code::INTERNAL_ERROR, None),
            (Code::CANCEL, None),
        ] {
            let mut pair = Pair::new().await;
            let mut stream = pair.stream();
            stream.write_all(GET).await.unwrap();
            let (_, mut respond) = pair.accept().await;
            respond.send_reset(code);
            let error = pair.until(stream.read_u8()).await.unwrap_err();
            assert_eq!(fault_reason(&error), Some(Reason::UpstreamReset), "{error}");
            assert_eq!(stream.unprocessed(), unprocessed, "{code:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_goaway_lets_go_what_it_names_and_finishes_the_rest() {
    local(async {
        let mut pair = Pair::new().await;
        let mut before = pair.stream();
        before.write_all(GET).await.unwrap();
        let (_, mut respond) = pair.accept().await;
        pair.server.abrupt_shutdown(Code::NO_ERROR);
        let mut after = pair.stream();
        after.write_all(GET).await.unwrap();
        let (error, more) = tokio::join!(after.read_u8(), pair.server.accept());
        assert!(!matches!(more, Some(Ok(_))), "nothing is accepted");
        assert_eq!(fault_reason(&error.unwrap_err()), Some(Reason::UpstreamClosed));
        assert_eq!(after.unprocessed(), Some(Unprocessed::Anew));
        assert!(!pair.link.has_room(Instant::now()));
        let _ = respond.send_response(ok(), true);
        // Refused before anything was sent: the same.
        let mut late = pair.stream();
        assert!(late.write_all(GET).await.is_err());
        assert_eq!(late.unprocessed(), Some(Unprocessed::Anew));
        assert!(late.read_u8().await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_ends_is_no_promise_about_its_requests() {
    local(async {
        let mut pair = Pair::new().await;
        let mut stream = pair.stream();
        stream.write_all(GET).await.unwrap();
        let asked = pair.accept().await;
        drop((asked, pair.server));
        let error = stream.read_u8().await.unwrap_err();
        // A drop resets what is open, or the connection ends first.
        assert!(error.kind() == io::ErrorKind::UnexpectedEof || fault_reason(&error).is_some(), "{error:?}");
        assert_eq!(stream.unprocessed(), None);
    })
    .await;
}

#[tokio::test]
async fn answers_that_break_the_rules_are_not_passed_on() {
    local(async {
        for case in ["length", "huge"] {
            let mut pair = Pair::new().await;
            let read = pair.exchange(GET, async |(_, mut respond)| {
                let answer = Response::builder();
                let answer = match case {
                    "length" => answer.header("content-length", "5"),
                    _ => answer.header("x-huge", "a".repeat(10_000)),
                };
                let mut stream = respond.send_response(answer.body(()).unwrap(), false).unwrap();
                stream.send_data(Bytes::from_static(b"not five"), true).unwrap();
            });
            assert_eq!(reason(read.await), Reason::UpstreamBadResponse, "{case}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_in_full_may_end_the_request_early() {
    local(async {
        let mut pair = Pair::new().await;
        let message = b"POST /a HTTP/1.1\r\nHost: up.test\r\nContent-Length: 100\r\n\r\nsome";
        let read = pair.exchange(message, async |(_, mut respond)| {
            let answer = Response::builder().status(413).header("content-length", "4").body(()).unwrap();
            let mut stream = respond.send_response(answer, false).unwrap();
            stream.send_data(Bytes::from_static(b"much"), true).unwrap();
            // The library would throw away what is not yet written.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            respond.send_reset(Code::NO_ERROR);
        });
        let read = String::from_utf8(read.await.unwrap()).unwrap();
        assert!(read.ends_with("\r\n\r\nmuch"), "{read}");
    })
    .await;
}

#[tokio::test]
async fn a_dropped_stream_is_cancelled_and_too_many_of_them_end_the_sharing() {
    local(async {
        let mut pair = Pair::new().await;
        for n in 1.. {
            let mut stream = pair.stream();
            stream.write_all(GET).await.unwrap();
            let (_, mut respond) = pair.accept().await;
            drop(stream);
            let code = pair.until(poll_fn(|cx| respond.poll_reset(cx))).await.unwrap();
            assert_eq!(code, Code::CANCEL);
            if !pair.link.has_room(Instant::now()) {
                assert!(n > 50, "not before there were many: {n}");
                break;
            }
            assert!(n < 100, "below what servers take");
        }
    })
    .await;
}

#[tokio::test]
async fn an_end_in_a_frame_of_its_own_is_no_cancel() {
    local(async {
        let mut pair = Pair::new().await;
        let mut stream = pair.stream();
        stream.write_all(GET).await.unwrap();
        let (_, mut respond) = pair.accept().await;
        let answer = Response::builder().header("content-length", "2").body(()).unwrap();
        let mut sending = respond.send_response(answer, false).unwrap();
        send_all_now(&mut sending, b"ok");
        let mut read = vec![0; "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".len()];
        pair.until(stream.read_exact(&mut read)).await.unwrap();
        drop(stream);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        sending.send_data(Bytes::new(), true).unwrap();
        let reset = pair
            .until(async { timeout(Duration::from_millis(50), poll_fn(|cx| sending.poll_reset(cx))).await });
        assert!(!matches!(reset.await, Ok(Ok(_))), "it was cancelled");
        assert!(pair.link.idle(Instant::now()).is_some());
    })
    .await;
}

fn send_all_now(stream: &mut h2::SendStream<Bytes>, data: &'static [u8]) {
    stream.reserve_capacity(data.len());
    stream.send_data(Bytes::from_static(data), false).unwrap();
}

#[tokio::test]
async fn the_end_of_a_body_needs_no_window() {
    local(async {
        let mut pair = Pair::with(server::Builder::new().initial_window_size(5)).await;
        let message =
            b"POST /a HTTP/1.1\r\nHost: up.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        let read = pair.exchange(message, async |(request, mut respond)| {
            let mut body = request.into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "hello");
            // Nothing is given back to the window, and the end comes all the same.
            assert!(body.data().await.is_none());
            respond.send_response(ok(), true).unwrap();
        });
        read.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn slow_readers_do_not_stop_the_others() {
    local(async {
        let mut pair = Pair::new().await;
        let mut slow = Vec::new();
        let big = Bytes::from(vec![7; 1 << 20]);
        let mut answering = JoinSet::new();
        for _ in 0..STREAMS - 1 {
            let mut stream = pair.stream();
            stream.write_all(GET).await.unwrap();
            let (_, mut respond) = pair.accept().await;
            let (mut sending, big) = (respond.send_response(ok(), false).unwrap(), big.clone());
            answering.spawn_local(async move { send_all(&mut sending, big).await });
            // It reads the head and stops.
            slow.push(stream);
        }
        let read = pair.exchange(GET, async |(_, mut respond)| {
            let mut sending = respond.send_response(ok(), false).unwrap();
            send_all(&mut sending, big.clone()).await;
            sending.send_data(Bytes::new(), true).unwrap();
        });
        let read = timeout(Duration::from_secs(60), read).await.expect("it is not stopped").unwrap();
        assert!(read.len() > 1 << 20);
        assert!(answering.try_join_next().is_none(), "the control: theirs wait for their readers");
        assert_eq!(slow.len(), STREAMS - 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_given_up_and_one_that_answers_is_not() {
    local(Box::pin(async {
        // The control: its server answers PINGs, and nothing else.
        let mut alive = Pair::new().await;
        let mut waiting = alive.stream();
        waiting.write_all(GET).await.unwrap();
        let _asked = alive.accept().await;
        let patient = timeout(PING * 10, waiting.read_u8());
        assert!(alive.until(patient).await.is_err(), "it waits");

        let dead = Pair::new().await;
        let mut stream = dead.stream();
        stream.write_all(GET).await.unwrap();
        let started = Instant::now();
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(fault_reason(&error), Some(Reason::UpstreamResponseTimeout), "{error}");
        assert!(started.elapsed() <= PING * 3, "{:?}", started.elapsed());
        assert!(!dead.link.has_room(Instant::now()));
    }))
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_holds_ends() {
    local(async {
        // The polite way, and where nobody takes our last bytes.
        for polite in [true, false] {
            let Pair { link, mut server, mut drivers } = Pair::new().await;
            drop(link);
            if polite {
                assert!(!matches!(server.accept().await, Some(Ok(_))));
            }
            let ended = timeout(PING * 4, drivers.join_next()).await;
            assert!(ended.is_ok(), "polite: {polite}");
        }
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However the exchange cuts what it writes, and whatever it reads at a time, bodies arrive as they were.
    #[test]
    fn bodies_arrive_whatever_the_pieces(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..9000), 0..5),
        // Not all of them small: the library at the other end takes frames of some bytes, one after another, for a flood.
        cuts in proptest::collection::vec(1_usize..7000, 1..10)
            .prop_filter("on average large", |cuts| cuts.iter().sum::<usize>() / cuts.len() >= 1000),
        room in 1_usize..5000,
        chunked: bool,
    ) {
        block_on(async {
            let body = chunks.concat();
            let (head, wire) = if chunked {
                let mut wire = Vec::new();
                for chunk in &chunks {
                    crate::http2::chunk(chunk.len(), &mut wire);
                    wire.extend_from_slice(chunk);
                    wire.extend_from_slice(b"\r\n");
                }
                crate::http2::last_chunk(None, &mut wire);
                ("Transfer-Encoding: chunked".to_owned(), wire)
            } else {
                (format!("Content-Length: {}", body.len()), body.clone())
            };
            let head = format!("POST /a HTTP/1.1\r\nHost: up.test\r\n{head}\r\n\r\n");
            let mut pair = Pair::new().await;
            let mut stream = pair.stream();
            let client = async {
                stream.write_all(head.as_bytes()).await.unwrap();
                let (mut rest, mut cuts) = (&*wire, cuts.iter().cycle());
                while !rest.is_empty() {
                    let n = (*cuts.next().unwrap()).min(rest.len());
                    stream.write_all(&rest[..n]).await.unwrap();
                    rest = &rest[n..];
                }
                stream.flush().await.unwrap();
                let (mut read, mut buf) = (Vec::new(), vec![0; room]);
                loop {
                    match stream.read(&mut buf).await.unwrap() {
                        0 => return read,
                        n => read.extend_from_slice(&buf[..n]),
                    }
                }
            };
            tokio::pin!(client);
            let (request, mut respond) = tokio::select! {
                _ = &mut client => panic!("answered by nobody"),
                asked = pair.server.accept() => asked.unwrap().unwrap(),
            };
            let answer = async {
                let (seen, _) = body_of(request.into_body()).await;
                assert!(seen == body, "the request's body");
                let mut sending = respond.send_response(Response::builder().status(StatusCode::OK).body(()).unwrap(), false).unwrap();
                send_all(&mut sending, Bytes::from(seen)).await;
                sending.send_data(Bytes::new(), true).unwrap();
            };
            let (read, ()) = pair.until(async { tokio::join!(client, answer) }).await;
            let at = read.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
            let mut decoder = crate::proxy::http1::body::Decoder::new(crate::proxy::http1::body::Framing::Chunked);
            let (mut at, mut payload) = (at, Vec::new());
            while at < read.len() {
                let step = decoder.step(&read[at..]).unwrap();
                at += step.wire;
                payload.extend_from_slice(&read[at - step.payload..at]);
            }
            assert!(decoder.is_done() && payload == body, "the answer's body");
        });
    }
}
