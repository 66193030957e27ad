//! The access log: one line per request or connection, formatted on the worker that served it and
//! written by a thread of its own.
//!
//! Workers never wait for the log. A line goes into the worker's buffer, full buffers into a queue
//! that is bounded in bytes; when stdout does not keep up, whole lines are dropped and counted.

use std::io::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::line::Format;
use super::record::AccessRecord;

/// A worker hands its buffer over when it holds this much: few wake-ups of the writer under load.
const HAND_OVER_BYTES: usize = 32 * 1024;
/// A worker whose buffers nobody takes keeps at most this much, then drops lines.
const WORKER_BYTES: usize = 128 * 1024;
/// Waiting for the writer, all workers together: a second of heavy load, and small beside the rest.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// The channel's own bound; bytes run out first.
const QUEUE_BUFFERS: usize = 1024;
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

    /// Whether lines are written at all.
    pub(super) fn is_on(&self) -> bool {
        self.format.is_some()
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
        format.line(&mut lines.bytes, record);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::telemetry::line::tests::record;

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
        let workers = [telemetry.worker(0).of(&plan), telemetry.worker(1).of(&plan)];
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
