//! What the load client inside a pod is asked to do, and what it reports. The program itself is
//! `src/bin/hnp-test-load.rs`; it is given a [`Job`] as JSON and prints a [`Report`] as JSON.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::poll::patience;
use crate::process::{Cmd, Place};
use crate::tools;

/// What to dial and what to expect from it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Target {
    /// The address to dial, as a pod would after resolving the name.
    pub addr: SocketAddr,
    /// The Host header.
    pub host: String,
    /// The request target.
    pub path: String,
    /// The name of the manager that must answer; another one is a misrouted request.
    pub expect: String,
    /// POST with a small body instead of GET, where the job asks and nothing else: not idempotent.
    #[serde(default)]
    pub post: bool,
}

impl Target {
    /// A target; requests go to `/hello`.
    pub fn new(addr: impl Into<SocketAddr>, host: &str, expect: &str) -> Self {
        Self {
            addr: addr.into(),
            host: host.to_owned(),
            path: "/hello".to_owned(),
            expect: expect.to_owned(),
            post: false,
        }
    }

    /// The same with POST.
    #[must_use]
    pub fn post(mut self) -> Self {
        self.post = true;
        self
    }

    /// The same with another request target.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }
}

/// One thing for the load client to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum Job {
    /// Connections with one request each; SIGTERM ends it early, with a report.
    Short {
        /// Taken in turn.
        targets: Vec<Target>,
        /// How many connections in all.
        total: u64,
        /// How many at a time.
        concurrency: u64,
    },
    /// All connections are opened first, then each is used once while all the others stay open.
    Held {
        /// Taken in turn.
        targets: Vec<Target>,
        /// How many.
        connections: u64,
    },
    /// Connections that are used once, each, and then do nothing until SIGTERM.
    Idle {
        /// Where to.
        target: Target,
        /// How many.
        connections: u64,
        /// Not a request but a line, which is to come back: for opaque routes.
        opaque: bool,
    },
    /// Requests at a fixed rate on connections that are kept alive.
    Steady {
        /// Where to.
        target: Target,
        /// Requests per second over all connections.
        rate: u64,
        /// How many connections.
        connections: u64,
        /// For how long.
        seconds: f64,
    },
    /// A new connection with one request at a fixed rate, whatever becomes of the others; SIGTERM ends it
    /// early, with a report.
    Storm {
        /// Where to.
        target: Target,
        /// Connections per second.
        rate: u64,
        /// How many may be open at a time: where the answers do not keep up, fewer are made.
        at_most: u64,
        /// For how long.
        seconds: f64,
    },
    /// Each case on a connection of its own: exact bytes out, all bytes in.
    Raw {
        /// The address to dial.
        addr: SocketAddr,
        /// What to send.
        cases: Vec<RawCase>,
    },
    /// Connects and says what getpeername and getsockname tell.
    Peer {
        /// The address to dial.
        addr: SocketAddr,
    },
    /// One POST of a [`crate::pattern`] stream; the answer's `body_sha256` is compared.
    Upload {
        /// Where to; the path should be `/sink`.
        target: Target,
        /// Length of the body.
        bytes: u64,
        /// Seed of the stream.
        seed: u64,
        /// Chunked instead of with a length.
        chunked: bool,
    },
    /// One GET; the body's length and hash are reported.
    Download {
        /// Where to; the path should be `/bytes/N`.
        target: Target,
    },
    /// Long transfers, so many at a time: where one has ended, another one begins. Every second one is an
    /// upload. After SIGTERM none begins any more, and those that run go to their ends.
    Transfers {
        /// Where to; the paths are made here.
        target: Target,
        /// How many at a time.
        at_a_time: u64,
        /// Blocks of a [`crate::pattern`] in each.
        blocks: u64,
        /// Milliseconds between two blocks.
        pause_ms: u64,
    },
    /// Sends a datagram and reports whether the kernel took it.
    Datagram {
        /// The address to send to.
        addr: SocketAddr,
    },
    /// Binds a listening socket with SO_REUSEPORT and reports whether the kernel allowed it.
    Bind {
        /// The address to bind.
        addr: SocketAddr,
    },
}

/// Bytes to send on a connection of their own.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RawCase {
    /// Sent one after the other, with a pause of `pause_ms` between.
    pub parts: Vec<Vec<u8>>,
    /// Milliseconds between parts.
    pub pause_ms: u64,
    /// Whether the sending direction is closed after the last part.
    pub half_close: bool,
    /// Reading ends after this many milliseconds without a byte; [`patience`] is added when it is sent.
    pub quiet_ms: u64,
}

impl RawCase {
    /// Sent in one piece; reading ends at the end of the stream or after two quiet seconds.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { parts: vec![bytes.into()], pause_ms: 0, half_close: false, quiet_ms: 2000 }
    }

    /// Sent in pieces, each on its own.
    pub fn in_parts(parts: &[&[u8]], pause_ms: u64) -> Self {
        Self { parts: parts.iter().map(|part| part.to_vec()).collect(), pause_ms, ..Self::new("") }
    }

    /// Closes the sending direction after the last byte.
    #[must_use]
    pub fn then_half_close(mut self) -> Self {
        self.half_close = true;
        self
    }
}

/// What came back for one [`RawCase`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RawAnswer {
    /// All bytes received.
    pub bytes: Vec<u8>,
    /// How it ended.
    pub end: End,
}

impl RawAnswer {
    /// The bytes as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The status of the first answer in it.
    pub fn status(&self) -> Option<u16> {
        self.text().strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
    }
}

/// How a connection ended, as its client saw it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The other side closed.
    Eof,
    /// The other side was quiet for too long.
    Quiet,
    /// The connection could not be made, with the error's words.
    NotConnected(String),
    /// The connection broke, with the error's words.
    Broken(String),
}

/// What the load client did.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Report {
    /// Requests answered as expected.
    pub ok: u64,
    /// Requests or connections that failed, misrouted, mixed-up and unmasked ones included.
    pub failed: u64,
    /// Answers by another manager than expected.
    pub misrouted: u64,
    /// Answers that carried another request's token.
    pub mixed_up: u64,
    /// Connections whose getpeername showed something else than was dialled; failed ones, too.
    pub unmasked: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// How long it took.
    pub seconds: f64,
    /// The longest time of one request in milliseconds.
    pub slowest_ms: f64,
    /// The median of those times ([`Job::Steady`]).
    pub p50_ms: f64,
    /// The time that 99 of 100 took at most ([`Job::Steady`]).
    pub p99_ms: f64,
    /// What getpeername said ([`Job::Peer`]).
    pub peer: Option<SocketAddr>,
    /// What getsockname said ([`Job::Peer`]).
    pub local: Option<SocketAddr>,
    /// Payload bytes ([`Job::Upload`], [`Job::Download`]).
    pub bytes: u64,
    /// Their hash.
    pub sha256: String,
    /// One per case ([`Job::Raw`]).
    pub answers: Vec<RawAnswer>,
    /// One per connection, in the order of their ends ([`Job::Storm`]).
    pub dials: Vec<Dial>,
    /// In the order of their ends ([`Job::Transfers`]).
    pub transfers: Vec<Transfer>,
}

/// One of [`Job::Transfers`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Transfer {
    /// A part of the request's path, and of no other's.
    pub name: String,
    /// From the pod to the manager.
    pub upload: bool,
    /// When it began, in microseconds since 1970.
    pub began_us: u64,
    /// When it ended, likewise.
    pub ended_us: u64,
    /// How.
    pub end: TransferEnd,
}

/// How a long transfer ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TransferEnd {
    /// Every byte came, and each was the right one.
    Whole,
    /// It was broken off. What had come was right.
    Cut(String),
    /// Something came that does not belong there.
    Wrong(String),
    /// connect() failed.
    NotConnected(String),
}

/// One connection of a [`Job::Storm`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Dial {
    /// When it began, in microseconds since 1970.
    pub at_us: u64,
    /// How long it took to its end, in microseconds.
    pub took_us: u64,
    /// How long connect() took, in microseconds.
    pub connect_us: u64,
    /// What became of it.
    pub met: Met,
    /// Why it failed, with the errno where there is one; empty where it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What a plaintext request of a storm met.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Met {
    /// The manager answered, and saw TLS: an agent carried the request.
    Carried,
    /// The manager answered, and saw plaintext.
    Direct,
    /// connect() gave ECONNREFUSED.
    Refused,
    /// connect() gave something else.
    NotConnected,
    /// The connection was made, and broke before the answer was whole.
    Broken,
}

impl Report {
    /// Asserts that `total` requests went well and nothing else happened.
    ///
    /// # Panics
    /// When it did not; the first failures are shown.
    #[track_caller]
    pub fn assert_all_ok(&self, total: u64) {
        assert_eq!(
            (self.ok, self.failed, self.misrouted, self.mixed_up),
            (total, 0, 0, 0),
            "(ok, failed, misrouted, mixed up): {:#?}",
            self.failures
        );
    }
}

/// The load client with a job, ready to run in a place.
pub fn load(place: &Place, job: &Job) -> Cmd {
    let mut job = job.clone();
    if let Job::Raw { cases, .. } = &mut job {
        for case in cases {
            let quiet = patience(Duration::from_millis(case.quiet_ms));
            case.quiet_ms = u64::try_from(quiet.as_millis()).expect("no test waits for ages");
        }
    }
    let text = serde_json::to_vec(&job).expect("jobs are plain data");
    place.command(tools::sibling("hnp-test-load")).stdin(text).deadline(Duration::from_secs(120))
}

/// Runs a job to its end.
///
/// # Panics
/// When the client itself fails; failures of requests are in the report.
#[track_caller]
pub fn run(place: &Place, job: &Job) -> Report {
    load(place, job).run().json()
}

/// Sends raw cases, each on its own connection.
///
/// # Panics
/// When the client itself fails.
#[track_caller]
pub fn raw(place: &Place, addr: impl Into<SocketAddr>, cases: Vec<RawCase>) -> Vec<RawAnswer> {
    let count = cases.len();
    let report = run(place, &Job::Raw { addr: addr.into(), cases });
    assert_eq!(report.answers.len(), count, "one answer per case");
    report.answers
}
