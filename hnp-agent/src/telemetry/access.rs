//! The access log: one line per request or connection, formatted on the worker that served it and
//! written by a thread of its own.
//!
//! Workers never wait for the log. A line goes into the worker's buffer, full buffers into a queue
//! that is bounded in bytes; when stdout does not keep up, whole lines are dropped and counted.
//! Values come from the network, so everything that could break a line or move a terminal's cursor
//! is escaped; query strings and header values never get here ([`AccessRecord`] has none).

use std::io::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::record::AccessRecord;
use super::time::write_rfc3339;
use crate::config::plan::LogFormat;

/// A worker hands its buffer over when it holds this much: few wake-ups of the writer under load.
const HAND_OVER_BYTES: usize = 32 * 1024;
/// A worker whose buffers nobody takes keeps at most this much, then drops lines.
const WORKER_BYTES: usize = 128 * 1024;
/// Waiting for the writer, all workers together: a second of heavy load, and small beside the rest.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// The channel's own bound; bytes run out first.
const QUEUE_BUFFERS: usize = 1024;
/// The longest value a client can put into a line; longer ones are cut, so that one line stays
/// within what log collectors accept (16 KiB).
const VALUE_BYTES: usize = 4096;

/// Every field of an access line, in the order they are written. Fields without a value are left out.
pub const FIELDS: [&str; 26] = [
    "ts",
    "kind",
    "flow",
    "route",
    "mode",
    "reason",
    "pod_uid",
    "container",
    "cgroup",
    "client",
    "destination",
    "upstream",
    "upstream_addr",
    "reused",
    "method",
    "path",
    "status",
    "bytes_up",
    "bytes_down",
    "duration_ms",
    "connect_ms",
    "first_byte_ms",
    "tls",
    "kx",
    "identity_generation",
    "detail",
];

/// How lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// `key=value` pairs; values with blanks or quotes are quoted.
    Text,
}

impl From<LogFormat> for Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Json => Self::Json,
            LogFormat::Text => Self::Text,
        }
    }
}

/// The writer's side and the queue to it.
#[derive(Debug)]
pub(super) struct AccessLog {
    format: Option<Format>,
    queue: Mutex<SyncSender<Message>>,
    queued_bytes: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

/// A worker's lines that were not handed over yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    count: u64,
}

#[derive(Debug)]
enum Message {
    Lines(Lines),
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Starts the writer thread; `None` writes no lines at all.
    pub(super) fn start(format: Option<Format>, out: Box<dyn Write + Send>) -> Self {
        let (sender, receiver) = mpsc::sync_channel(QUEUE_BUFFERS);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let dropped = Arc::new(AtomicU64::new(0));
        let (bytes, lost) = (Arc::clone(&queued_bytes), Arc::clone(&dropped));
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_out(out, &receiver, &bytes, &lost))
            .expect("a thread can be started before the agent serves");
        Self { format, queue: Mutex::new(sender), queued_bytes, dropped }
    }

    /// Formats a record into the worker's buffer and hands the buffer over when it is full.
    pub(super) fn write(&self, record: &AccessRecord, lines: &mut Lines) {
        let Some(format) = self.format else { return };
        if lines.bytes.len() >= WORKER_BYTES {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        if lines.bytes.capacity() == 0 {
            lines.bytes.reserve(HAND_OVER_BYTES + HAND_OVER_BYTES / 8);
        }
        match format {
            Format::Json => Json::line(&mut lines.bytes, record),
            Format::Text => Text::line(&mut lines.bytes, record),
        }
        lines.count += 1;
        if lines.bytes.len() >= HAND_OVER_BYTES {
            self.hand_over(lines);
        }
    }

    /// Gives the worker's lines to the writer, or leaves them where they are when the queue is full;
    /// true when none are left.
    pub(super) fn hand_over(&self, lines: &mut Lines) -> bool {
        let len = lines.bytes.len();
        if len == 0 {
            return true;
        }
        if self.queued_bytes.fetch_add(len, Relaxed) + len > QUEUE_BYTES {
            self.queued_bytes.fetch_sub(len, Relaxed);
            return false;
        }
        let sent = self.sender().try_send(Message::Lines(std::mem::take(lines)));
        if let Err(mpsc::TrySendError::Full(message) | mpsc::TrySendError::Disconnected(message)) = sent {
            self.queued_bytes.fetch_sub(len, Relaxed);
            if let Message::Lines(kept) = message {
                *lines = kept;
            }
            return false;
        }
        true
    }

    /// Waits until everything handed over so far is written; false when `end` came first.
    pub(super) fn flush(&self, end: Instant) -> bool {
        let (done, wait) = mpsc::sync_channel(1);
        let mut message = Message::Flush(done);
        // A queue full of small buffers has no place for the request either.
        while let Err(refused) = self.sender().try_send(message) {
            let (mpsc::TrySendError::Full(back) | mpsc::TrySendError::Disconnected(back)) = refused;
            if Instant::now() >= end {
                return false;
            }
            message = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        wait.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok()
    }

    /// Lines that were dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn sender(&self) -> std::sync::MutexGuard<'_, SyncSender<Message>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer thread: ends when the last sender is gone. A failing stdout (closed pipe, full disk)
/// loses lines and counts them; the agent serves on.
fn write_out(
    mut out: Box<dyn Write + Send>,
    queue: &Receiver<Message>,
    queued_bytes: &AtomicUsize,
    dropped: &AtomicU64,
) {
    for message in queue {
        match message {
            Message::Lines(lines) => {
                if out.write_all(&lines.bytes).and_then(|()| out.flush()).is_err() {
                    dropped.fetch_add(lines.count, Relaxed);
                }
                queued_bytes.fetch_sub(lines.bytes.len(), Relaxed);
            }
            // The other side gave up waiting when this fails.
            Message::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// Where the fields of a line go: the list of fields is written once, for both formats.
trait Sink {
    fn raw(&mut self, key: &'static str, value: impl std::fmt::Display);
    fn text(&mut self, key: &'static str, value: &str);

    fn display(&mut self, key: &'static str, value: impl std::fmt::Display);
    fn millis(&mut self, key: &'static str, value: Duration) {
        let micros = value.as_micros();
        self.raw(key, format_args!("{}.{:03}", micros / 1000, micros % 1000));
    }
}

fn fields(record: &AccessRecord, sink: &mut impl Sink) {
    sink.raw("flow", record.flow_id);
    if let Some(route) = &record.route {
        sink.text("route", route);
    }
    sink.text("mode", record.mode);
    sink.text("reason", record.reason.code());
    for (key, value) in [
        ("pod_uid", &record.workload.pod_uid),
        ("container", &record.workload.container_id),
        ("cgroup", &record.workload.cgroup),
    ] {
        if let Some(value) = value {
            sink.text(key, value);
        }
    }
    sink.display("client", record.client);
    if let Some(destination) = record.destination {
        sink.display("destination", destination);
    }
    if let Some(upstream) = &record.upstream {
        sink.text("upstream", &upstream.authority);
        if let Some(addr) = upstream.addr {
            sink.display("upstream_addr", addr);
        }
        sink.raw("reused", upstream.reused);
    }
    if let Some(http) = &record.http {
        sink.text("method", &http.method);
        sink.text("path", without_query(&http.path));
        sink.raw("status", http.status);
    }
    sink.raw("bytes_up", record.bytes_up);
    sink.raw("bytes_down", record.bytes_down);
    sink.millis("duration_ms", record.duration);
    if let Some(upstream) = &record.upstream {
        sink.millis("connect_ms", upstream.connect);
        if let Some(first_byte) = upstream.first_byte {
            sink.millis("first_byte_ms", first_byte);
        }
        if let Some(tls) = upstream.tls_version {
            sink.text("tls", tls);
        }
        if let Some(kx) = upstream.key_exchange {
            sink.text("kx", kx);
        }
        if let Some(generation) = upstream.identity_generation {
            sink.raw("identity_generation", generation);
        }
    }
    if let Some(detail) = &record.detail {
        sink.text("detail", detail);
    }
}

/// The record promises a path without a query; a mistake there must not put keys into a log.
fn without_query(path: &str) -> &str {
    path.split_once(['?', '#']).map_or(path, |(path, _)| path)
}

struct Json<'a>(&'a mut Vec<u8>);

impl<'a> Json<'a> {
    fn line(out: &'a mut Vec<u8>, record: &AccessRecord) {
        out.extend_from_slice(b"{\"ts\":\"");
        write_rfc3339(out, record.started + record.duration);
        out.extend_from_slice(b"\",\"kind\":\"access\"");
        let mut json = Self(out);
        fields(record, &mut json);
        json.0.extend_from_slice(b"}\n");
    }

    fn key(&mut self, key: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }
}

impl Sink for Json<'_> {
    fn raw(&mut self, key: &'static str, value: impl std::fmt::Display) {
        self.key(key);
        push(self.0, value);
    }

    fn display(&mut self, key: &'static str, value: impl std::fmt::Display) {
        self.key(key);
        self.0.push(b'"');
        push(self.0, value);
        self.0.push(b'"');
    }

    fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        self.0.push(b'"');
        escape(self.0, value);
        self.0.push(b'"');
    }
}

struct Text<'a>(&'a mut Vec<u8>);

impl<'a> Text<'a> {
    fn line(out: &'a mut Vec<u8>, record: &AccessRecord) {
        write_rfc3339(out, record.started + record.duration);
        out.extend_from_slice(b" access");
        let mut text = Self(out);
        fields(record, &mut text);
        text.0.push(b'\n');
    }

    fn key(&mut self, key: &str) {
        self.0.push(b' ');
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
    }
}

impl Sink for Text<'_> {
    fn raw(&mut self, key: &'static str, value: impl std::fmt::Display) {
        self.key(key);
        push(self.0, value);
    }

    fn display(&mut self, key: &'static str, value: impl std::fmt::Display) {
        self.raw(key, value);
    }

    fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        let plain = !value.is_empty()
            && value.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'='));
        if plain && value.len() <= VALUE_BYTES {
            self.0.extend_from_slice(value.as_bytes());
        } else {
            self.0.push(b'"');
            escape(self.0, value);
            self.0.push(b'"');
        }
    }
}

fn push(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    write!(out, "{value}").expect("a Vec takes every write");
}

/// JSON's escapes, and beyond them everything that is invisible or moves text about: C0, DEL, C1,
/// line and paragraph separators, and the bidirectional overrides that make a line read backwards.
fn escape(out: &mut Vec<u8>, value: &str) {
    let mut room = VALUE_BYTES;
    for c in value.chars() {
        let Some(left) = room.checked_sub(c.len_utf8()) else {
            out.extend_from_slice("…".as_bytes());
            return;
        };
        room = left;
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c if c.is_control()
                || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}') =>
            {
                push(out, format_args!("\\u{:04x}", u32::from(c)));
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::UNIX_EPOCH;

    use hnp_common::Reason;
    use proptest::prelude::*;

    use super::*;
    use crate::telemetry::record::{HttpRecord, UpstreamRecord};
    use crate::workload::Workload;

    pub(crate) fn record() -> AccessRecord {
        AccessRecord {
            started: UNIX_EPOCH + Duration::from_millis(1_000_000_000_000),
            duration: Duration::from_micros(12_345),
            flow_id: 7,
            route: Some("manager".into()),
            mode: "reverse-proxy",
            workload: Arc::new(Workload {
                cgroup: Some("/kubepods/podx/c".into()),
                pod_uid: Some("x".into()),
                container_id: Some("c".into()),
            }),
            client: "10.244.1.2:40000".parse().unwrap(),
            destination: Some("198.18.0.9:80".parse().unwrap()),
            upstream: Some(UpstreamRecord {
                authority: "manager.hnp.test:8443".into(),
                addr: Some("192.0.2.1:8443".parse().unwrap()),
                reused: false,
                connect: Duration::from_millis(3),
                first_byte: Some(Duration::from_micros(1500)),
                tls_version: Some("TLSv1.3"),
                key_exchange: Some("X25519MLKEM768"),
                identity_generation: Some(2),
            }),
            http: Some(HttpRecord { method: "GET".into(), path: "/api/version".into(), status: 200 }),
            bytes_up: 100,
            bytes_down: 2000,
            reason: Reason::Ok,
            detail: None,
        }
    }

    fn json_line(record: &AccessRecord) -> String {
        let mut out = Vec::new();
        Json::line(&mut out, record);
        String::from_utf8(out).unwrap()
    }

    fn text_line(record: &AccessRecord) -> String {
        let mut out = Vec::new();
        Text::line(&mut out, record);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_json_line_has_every_field_once_and_in_order() {
        let line = json_line(&AccessRecord { detail: Some("x".into()), ..record() });
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let object = value.as_object().unwrap();
        assert_eq!(object.len(), FIELDS.len());
        let mut at = 0;
        for field in FIELDS {
            assert!(object.contains_key(field), "{field}");
            let found = line.find(&format!("\"{field}\":")).unwrap();
            assert!(found > at || field == "ts", "{field} is out of order");
            at = found;
        }
        assert_eq!(value["ts"], "2001-09-09T01:46:40.012Z");
        assert_eq!(value["kind"], "access");
        assert_eq!(value["duration_ms"], 12.345);
        assert_eq!(value["first_byte_ms"], 1.5);
        assert_eq!(value["status"], 200);
        assert_eq!(value["reused"], false);
        assert_eq!(value["destination"], "198.18.0.9:80");
    }

    #[test]
    fn a_text_line_reads_like_this() {
        let short = AccessRecord {
            upstream: None,
            http: None,
            route: None,
            reason: Reason::NoFlow,
            mode: "opaque",
            workload: Arc::default(),
            destination: None,
            detail: Some("no flow for this \"port\"\n".into()),
            ..record()
        };
        assert_eq!(
            text_line(&short),
            "2001-09-09T01:46:40.012Z access flow=7 mode=opaque reason=no_flow client=10.244.1.2:40000 \
             bytes_up=100 bytes_down=2000 duration_ms=12.345 detail=\"no flow for this \\\"port\\\"\\n\"\n"
        );
    }

    #[test]
    fn queries_never_reach_a_line() {
        let mut record = record();
        record.http.as_mut().unwrap().path = "/a?accountId=SECRET".into();
        for line in [json_line(&record), text_line(&record)] {
            assert!(!line.contains("SECRET") && line.contains("/a"), "{line}");
        }
    }

    proptest! {
        #[test]
        fn nothing_a_client_writes_breaks_a_line(path in "\\PC*|(?s).*", method in "(?s).{0,20}") {
            let mut record = record();
            record.http = Some(HttpRecord { method: method.clone(), path: path.clone(), status: 0 });
            let json = json_line(&record);
            prop_assert!(json.bytes().filter(|b| *b == b'\n').count() == 1 && json.ends_with('\n'));
            prop_assert!(!json.trim_end().chars().any(char::is_control));
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(value["method"].as_str().unwrap(), method);
            prop_assert_eq!(value["path"].as_str().unwrap(), without_query(&path));
            let text = text_line(&record);
            prop_assert!(!text.strip_suffix('\n').unwrap().chars().any(char::is_control));
        }
    }

    #[test]
    fn long_values_are_cut() {
        let mut record = record();
        record.http.as_mut().unwrap().path = "/é".repeat(100_000);
        assert!(json_line(&record).len() < VALUE_BYTES + 1000);
        assert!(text_line(&record).len() < VALUE_BYTES + 1000);
        serde_json::from_str::<serde_json::Value>(&json_line(&record)).unwrap();
    }

    /// Collects what is written; blocks while the gate is closed.
    #[derive(Clone, Default)]
    struct Gate {
        closed: Arc<AtomicBool>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            while self.closed.load(Relaxed) {
                std::thread::yield_now();
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Gate {
        fn lines(&self) -> u64 {
            self.written.lock().unwrap().iter().filter(|b| **b == b'\n').count() as u64
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_drain_writes_what_did_not_fit_into_the_queue() {
        let plan = crate::config::parse(
            "identities: {c: {certificate: /c, key: /k}}\n\
             routes: [{name: m, destinations: ['m.test:80'], upstream: 'https://m.test', identity: c}]\n\
             workers: 2",
            std::path::Path::new("x"),
        )
        .unwrap();
        // given a blocked stdout, a full queue, and workers that hold lines of their own
        let gate = Gate::default();
        gate.closed.store(true, Relaxed);
        let telemetry = crate::telemetry::Telemetry::writing_to(&plan, Box::new(gate.clone()));
        let workers = [telemetry.worker(0), telemetry.worker(1)];
        let mut lines = 0;
        while telemetry.access.dropped() == 0 {
            workers.iter().for_each(|worker| worker.finish(&record()));
            lines += 2;
        }
        assert!(!telemetry.flush(Duration::from_millis(1)), "nothing can be written yet");
        // when stdout opens during the drain
        gate.closed.store(false, Relaxed);
        assert!(telemetry.flush(Duration::from_secs(10)));
        // then all lines but the counted ones are there
        assert_eq!(gate.lines(), lines - telemetry.access.dropped());
    }

    #[test]
    fn flush_loses_nothing() {
        let gate = Gate::default();
        let log = AccessLog::start(Some(Format::Json), Box::new(gate.clone()));
        let mut lines = Lines::default();
        for _ in 0..10_000 {
            log.write(&record(), &mut lines);
            // A real worker is slower than the writer; keep that so, or lines are rightly dropped.
            while log.queued_bytes.load(Relaxed) > QUEUE_BYTES / 2 {
                std::thread::yield_now();
            }
        }
        log.hand_over(&mut lines);
        assert!(log.flush(soon()));
        assert_eq!((gate.lines(), log.dropped()), (10_000, 0));
    }

    #[test]
    fn a_blocked_stdout_drops_whole_lines_counts_them_and_never_blocks_the_worker() {
        let gate = Gate::default();
        gate.closed.store(true, Relaxed);
        let log = AccessLog::start(Some(Format::Json), Box::new(gate.clone()));
        let mut lines = Lines::default();
        let total = 20_000; // some 10 MiB, more than queue and buffers hold
        let begin = Instant::now();
        for _ in 0..total {
            log.write(&record(), &mut lines);
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "the worker waited for stdout");
        assert!(log.dropped() > 0);
        assert!(lines.bytes.len() < WORKER_BYTES + 16 * 1024);
        assert!(!log.flush(Instant::now()), "nothing can be written yet");
        gate.closed.store(false, Relaxed);
        while log.queued_bytes.load(Relaxed) > 0 {
            std::thread::yield_now();
        }
        log.hand_over(&mut lines);
        assert!(log.flush(soon()));
        assert_eq!(gate.lines() + log.dropped(), total);
        for line in gate.written.lock().unwrap().split_inclusive(|b| *b == b'\n') {
            serde_json::from_slice::<serde_json::Value>(line).unwrap();
        }
    }

    #[test]
    fn a_failing_stdout_is_counted() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let log = AccessLog::start(Some(Format::Text), Box::new(Broken));
        let mut lines = Lines::default();
        log.write(&record(), &mut lines);
        log.hand_over(&mut lines);
        assert!(log.flush(soon()));
        assert_eq!(log.dropped(), 1);
    }
}
