//! The load client: runs inside a pod, does one job (JSON as its argument, or on standard input), prints one report
//! (JSON on standard output). Knows nothing of hnp; it dials destinations like any workload.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use hnp_tests::client::{Dial, End, Job, Met, RawAnswer, RawCase, Report, Target, Transfer, TransferEnd};
use hnp_tests::pattern::{BLOCK, Comparison, Pattern, hex};
use hnp_tests::wire::{Framing, Wire};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant as TokioInstant, sleep, sleep_until, timeout};

/// No single exchange may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many failures are reported in words.
const WORDS: usize = 20;

fn main() -> Result<()> {
    let job: Job = match std::env::args().nth(1) {
        Some(text) => serde_json::from_str(&text).context("the job in the argument")?,
        None => serde_json::from_reader(std::io::stdin()).context("the job on standard input")?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started = Instant::now();
    let mut report = runtime.block_on(perform(job))?;
    report.seconds = started.elapsed().as_secs_f64();
    serde_json::to_writer(std::io::stdout(), &report)?;
    Ok(())
}

async fn perform(job: Job) -> Result<Report> {
    match job {
        Job::Short { targets, total, concurrency } => short(targets, total, concurrency).await,
        Job::Held { targets, connections } => Ok(held(targets, connections).await),
        Job::Idle { target, connections, opaque } => idle(target, connections, opaque).await,
        Job::Steady { target, rate, connections, seconds } => {
            Ok(steady(target, rate, connections, Duration::from_secs_f64(seconds)).await)
        }
        Job::Storm { target, rate, at_most, seconds } => {
            storm(target, rate, at_most, Duration::from_secs_f64(seconds)).await
        }
        Job::Transfers { target, at_a_time, blocks, pause_ms } => {
            transfers(target, at_a_time, blocks, Duration::from_millis(pause_ms)).await
        }
        Job::Raw { addr, cases } => {
            let mut answers = Vec::new();
            for case in &cases {
                answers.push(raw(addr, case).await);
            }
            Ok(Report { answers, ..Report::default() })
        }
        Job::Peer { addr } => {
            let stream = TcpStream::connect(addr).await?;
            let (peer, local) = (Some(stream.peer_addr()?), Some(stream.local_addr()?));
            Ok(Report { ok: 1, peer, local, ..Report::default() })
        }
        Job::Upload { target, bytes, seed, chunked } => upload(&target, bytes, seed, chunked).await,
        Job::Download { target } => download(&target).await,
        Job::Datagram { addr } => Ok(one(datagram(addr))),
        Job::Bind { addr } => Ok(one(bind(addr))),
    }
}

/// The outcome of something that happens once.
fn one(outcome: Result<()>) -> Report {
    match outcome {
        Ok(()) => Report { ok: 1, ..Report::default() },
        Err(error) => Report { failed: 1, failures: vec![format!("{error:#}")], ..Report::default() },
    }
}

fn datagram(addr: SocketAddr) -> Result<()> {
    let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    std::net::UdpSocket::bind(any)?.send_to(b"anybody there?", addr)?;
    Ok(())
}

fn bind(addr: SocketAddr) -> Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.listen(1)?)
}

/// Counts what many tasks do.
#[derive(Default)]
struct Tally {
    report: Mutex<Report>,
    tokens: AtomicU64,
    /// Milliseconds.
    times: Mutex<Vec<f64>>,
}

impl Tally {
    /// A token that no other request of this run carries.
    fn token(&self) -> String {
        format!("{:x}-{}", std::process::id(), self.tokens.fetch_add(1, Ordering::Relaxed))
    }

    async fn count(&self, what: impl Future<Output = Result<()>>) {
        let started = Instant::now();
        let outcome = timeout(PATIENCE, what).await.unwrap_or_else(|_| bail!("no answer in {PATIENCE:?}"));
        let took = started.elapsed().as_secs_f64() * 1e3;
        self.times.lock().expect("no panic while held").push(took);
        let mut report = self.report.lock().expect("no panic while held");
        report.slowest_ms = report.slowest_ms.max(took);
        let Err(error) = outcome else {
            report.ok += 1;
            return;
        };
        report.failed += 1;
        match error.downcast_ref::<Wrong>() {
            Some(Wrong::Manager(..)) => report.misrouted += 1,
            Some(Wrong::Token(..)) => report.mixed_up += 1,
            Some(Wrong::Peer(..)) => report.unmasked += 1,
            None => {}
        }
        if report.failures.len() < WORDS {
            report.failures.push(format!("{error:#}"));
        }
    }

    fn into_report(self: Arc<Self>) -> Report {
        let mut report = std::mem::take(&mut *self.report.lock().expect("no panic while held"));
        let mut times = std::mem::take(&mut *self.times.lock().expect("no panic while held"));
        times.sort_by(f64::total_cmp);
        let share = |percent: usize| times.get((times.len() * percent / 100).min(times.len().max(1) - 1));
        report.p50_ms = share(50).copied().unwrap_or_default();
        report.p99_ms = share(99).copied().unwrap_or_default();
        report
    }
}

/// An answer that belongs to somebody else, or an address that does.
#[derive(Debug)]
enum Wrong {
    Manager(String, String),
    Token(String, String),
    Peer(SocketAddr, SocketAddr),
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Manager(expected, got) => write!(f, "answered by {got:?}, expected {expected:?}"),
            Self::Peer(dialled, got) => write!(f, "dialled {dialled}, getpeername says {got}"),
            Self::Token(expected, got) => write!(f, "token {got:?} in the answer to {expected:?}"),
        }
    }
}

impl std::error::Error for Wrong {}

async fn short(targets: Vec<Target>, total: u64, concurrency: u64) -> Result<Report> {
    let (tally, next) = (Arc::new(Tally::default()), Arc::new(AtomicU64::new(0)));
    let targets = Arc::new(targets);
    let mut workers = JoinSet::new();
    for _ in 0..concurrency {
        let (tally, next, targets) = (Arc::clone(&tally), Arc::clone(&next), Arc::clone(&targets));
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return;
                }
                let target = &targets[usize::try_from(number).unwrap_or(0) % targets.len()];
                tally
                    .count(async {
                        let mut wire = dial(target).await?;
                        exchange(&mut wire, target, &tally.token(), true).await
                    })
                    .await;
            }
        });
    }
    // SIGTERM: what has begun is finished, and reported.
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            joined = workers.join_next() => if joined.is_none() { break },
            _ = terminate.recv() => next.store(total, Ordering::Relaxed),
        }
    }
    Ok(tally.into_report())
}

async fn held(targets: Vec<Target>, connections: u64) -> Report {
    let tally = Arc::new(Tally::default());
    let mut open = Vec::new();
    for number in 0..connections {
        let target = &targets[usize::try_from(number).unwrap_or(0) % targets.len()];
        match dial(target).await {
            Ok(wire) => open.push((wire, target.clone())),
            Err(error) => tally.count(async { Err(error) }).await,
        }
    }
    let mut tasks = JoinSet::new();
    for (mut wire, target) in open {
        let tally = Arc::clone(&tally);
        tasks.spawn(async move {
            tally.count(exchange(&mut wire, &target, &tally.token(), false)).await;
            wire
        });
    }
    // Every connection stays open until the last one has been used.
    let _still_open: Vec<Wire> = tasks.join_all().await;
    tally.into_report()
}

async fn idle(target: Target, connections: u64, opaque: bool) -> Result<Report> {
    let mut terminate = signal(SignalKind::terminate())?;
    let (tally, mut open) = (Arc::new(Tally::default()), Vec::new());
    for _ in 0..connections {
        tally
            .count(async {
                let mut wire = dial(&target).await?;
                if opaque {
                    line(&mut wire, &tally.token()).await?;
                } else {
                    exchange(&mut wire, &target, &tally.token(), false).await?;
                }
                open.push(wire);
                Ok(())
            })
            .await;
    }
    terminate.recv().await;
    Ok(tally.into_report())
}

/// A line to an echo, and what it says up to then.
async fn line(wire: &mut Wire, token: &str) -> Result<()> {
    wire.write(format!("{token}\n").as_bytes()).await.context("sending a line")?;
    let mut seen = Vec::new();
    while !seen.ends_with(format!("{token}\n").as_bytes()) {
        let piece = wire.read_some().await.context("reading it again")?;
        ensure!(!piece.is_empty(), "closed before the line came back");
        seen.extend_from_slice(&piece);
    }
    Ok(())
}

async fn steady(target: Target, rate: u64, connections: u64, length: Duration) -> Report {
    let tally = Arc::new(Tally::default());
    let begin = TokioInstant::now();
    let interval = Duration::from_secs_f64(connections as f64 / rate as f64);
    let mut tasks = JoinSet::new();
    for number in 0..connections {
        let (tally, target) = (Arc::clone(&tally), target.clone());
        // Spread evenly over the first interval.
        let mut due = begin + interval.mul_f64(number as f64 / connections as f64);
        tasks.spawn(async move {
            let mut wire = None;
            while due < begin + length {
                sleep_until(due).await;
                due += interval;
                tally
                    .count(async {
                        let mut open = match wire.take() {
                            Some(open) => open,
                            None => dial(&target).await?,
                        };
                        exchange(&mut open, &target, &tally.token(), false).await?;
                        wire = Some(open);
                        Ok(())
                    })
                    .await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    tally.into_report()
}

/// Dials at a fixed rate, and notes what became of each.
async fn storm(target: Target, rate: u64, at_most: u64, length: Duration) -> Result<Report> {
    let tally = Arc::new(Tally::default());
    let target = Arc::new(target);
    let dials = Arc::new(Mutex::new(Vec::new()));
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / rate as f64));
    // A hiccup of the machine is made up for: the rate is an average.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let end = TokioInstant::now() + length;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut tasks = JoinSet::new();
    while TokioInstant::now() < end {
        tokio::select! {
            _ = tick.tick() => {}
            _ = terminate.recv() => break,
        }
        while tasks.try_join_next().is_some() {}
        if tasks.len() as u64 >= at_most {
            tasks.join_next().await;
            tick.reset();
        }
        let (tally, target, dials) = (Arc::clone(&tally), Arc::clone(&target), Arc::clone(&dials));
        tasks.spawn(async move {
            let dial = one_dial(&target, &tally.token()).await;
            dials.lock().expect("no panic while held").push(dial);
        });
    }
    while tasks.join_next().await.is_some() {}
    let dials = std::mem::take(&mut *dials.lock().expect("no panic while held"));
    Ok(Report { dials, ..Report::default() })
}

async fn one_dial(target: &Target, token: &str) -> Dial {
    let (at_us, began) = (now_us(), Instant::now());
    let since = || u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let connected = timeout(PATIENCE, TcpStream::connect(target.addr)).await;
    let connect_us = since();
    let outcome = match connected {
        Ok(Ok(stream)) => timeout(PATIENCE, ask_once(stream, target, token))
            .await
            .unwrap_or_else(|_| Err((Met::Broken, format!("no answer in {PATIENCE:?}")))),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Err((Met::Refused, error.to_string()))
        }
        Ok(Err(error)) => Err((Met::NotConnected, error.to_string())),
        Err(_) => Err((Met::NotConnected, format!("not in {PATIENCE:?}"))),
    };
    let (met, why) = match outcome {
        Ok(met) => (met, String::new()),
        Err(failed) => failed,
    };
    Dial { at_us, took_us: since(), connect_us, met, why }
}

async fn ask_once(stream: TcpStream, target: &Target, token: &str) -> Result<Met, (Met, String)> {
    let broken = |error: anyhow::Error| (Met::Broken, format!("{error:#}"));
    let peer = stream.peer_addr().map_err(|error| broken(error.into()))?;
    if peer != target.addr {
        return Err(broken(Wrong::Peer(target.addr, peer).into()));
    }
    let mut wire = Wire::new(Box::new(stream), Arc::default());
    wire.write(request(target, token, true).as_bytes())
        .await
        .context("sending the request")
        .map_err(broken)?;
    let answer = read_answer(&mut wire).await.map_err(broken)?;
    check(&answer, target, token).map_err(broken)?;
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    Ok(if body["tls"].is_null() { Met::Direct } else { Met::Carried })
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Before another transfer begins where one could not connect.
const AGAIN: Duration = Duration::from_millis(50);

async fn transfers(target: Target, at_a_time: u64, blocks: u64, pause: Duration) -> Result<Report> {
    let (tally, target) = (Arc::new(Tally::default()), Arc::new(target));
    let ended = Arc::new(AtomicBool::new(false));
    let all = Arc::new(Mutex::new(Vec::new()));
    let mut slots = JoinSet::new();
    for slot in 0..at_a_time {
        let (tally, target, all) = (Arc::clone(&tally), Arc::clone(&target), Arc::clone(&all));
        let ended = Arc::clone(&ended);
        slots.spawn(async move {
            let mut upload = slot % 2 == 0;
            // Spread over one pause.
            sleep(pause.mul_f64(slot as f64 / at_a_time as f64)).await;
            while !ended.load(Ordering::Relaxed) {
                let (name, began_us) = (tally.token(), now_us());
                let end = one_transfer(&target, &name, upload, blocks, pause).await;
                let failed = matches!(end, TransferEnd::NotConnected(_));
                let transfer = Transfer { name, upload, began_us, ended_us: now_us(), end };
                all.lock().expect("no panic while held").push(transfer);
                upload = !upload;
                if failed {
                    sleep(AGAIN).await;
                }
            }
        });
    }
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            joined = slots.join_next() => if joined.is_none() { break },
            _ = terminate.recv() => ended.store(true, Ordering::Relaxed),
        }
    }
    let transfers = std::mem::take(&mut *all.lock().expect("no panic while held"));
    Ok(Report { transfers, ..Report::default() })
}

async fn one_transfer(
    target: &Target,
    name: &str,
    upload: bool,
    blocks: u64,
    pause: Duration,
) -> TransferEnd {
    let stream = match TcpStream::connect(target.addr).await {
        Ok(stream) => stream,
        Err(error) => return TransferEnd::NotConnected(error.to_string()),
    };
    let mut wire = Wire::new(Box::new(stream), Arc::default());
    let moved = if upload {
        send_slowly(&mut wire, target, name, blocks, pause).await
    } else {
        receive(&mut wire, target, name, blocks, pause).await
    };
    match moved {
        Ok(()) => TransferEnd::Whole,
        Err(error) if error.downcast_ref::<Foreign>().is_some() => TransferEnd::Wrong(format!("{error:#}")),
        Err(error) => TransferEnd::Cut(format!("{error:#}")),
    }
}

/// The manager compares every byte as it comes, and says how many there were.
async fn send_slowly(
    wire: &mut Wire,
    target: &Target,
    name: &str,
    blocks: u64,
    pause: Duration,
) -> Result<()> {
    let (seed, bytes) = (seed_of(name), blocks * BLOCK as u64);
    let head = format!(
        "POST /sink/{name}?seed={seed} HTTP/1.1\r\nhost: {}\r\nx-token: {name}\r\ncontent-length: {bytes}\r\n\r\n",
        target.host
    );
    wire.write(head.as_bytes()).await.context("sending the request")?;
    let mut pattern = Pattern::new(seed, bytes);
    let mut first = true;
    while let Some(block) = pattern.next_block() {
        if !std::mem::take(&mut first) {
            sleep(pause).await;
        }
        wire.write(block).await.context("sending")?;
    }
    let answer = read_answer(wire).await?;
    check(&answer, target, name)?;
    let body: serde_json::Value = serde_json::from_slice(&answer.body)?;
    ensure!(body["body_bytes"] == bytes, Foreign(format!("the manager counted {}", body["body_bytes"])));
    Ok(())
}

async fn receive(wire: &mut Wire, target: &Target, name: &str, blocks: u64, pause: Duration) -> Result<()> {
    let (seed, bytes) = (seed_of(name), blocks * BLOCK as u64);
    let request = format!(
        "GET /bytes/{name}/{bytes}?seed={seed}&ms={} HTTP/1.1\r\nhost: {}\r\nx-token: {name}\r\n\r\n",
        pause.as_millis(),
        target.host
    );
    wire.write(request.as_bytes()).await.context("sending the request")?;
    let head = wire.read_head().await.context("reading the answer")?.context("closed before the answer")?;
    ensure!(head.status()? == 200, "{}", head.start_line);
    let token = head.header("x-token").unwrap_or_default();
    ensure!(token == name, Foreign(format!("the answer to {token}")));
    let mut comparison = Comparison::new(seed);
    let read = wire.read_body(head.framing(Framing::UntilClose)?, &mut |piece| comparison.take(piece)).await;
    ensure!(comparison.holds(), Foreign(format!("a byte among the first {}", comparison.bytes())));
    let length = read.with_context(|| format!("after {} bytes", comparison.bytes()))?;
    ensure!(length == bytes, Foreign(format!("{length} bytes")));
    Ok(())
}

/// Bytes that do not belong where they came.
#[derive(Debug)]
struct Foreign(String);

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not what was sent: {}", self.0)
    }
}

impl std::error::Error for Foreign {}

/// The same for the same name alone.
fn seed_of(name: &str) -> u64 {
    let hash = Sha256::digest(name.as_bytes());
    hash.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

async fn dial(target: &Target) -> Result<Wire> {
    let stream = TcpStream::connect(target.addr).await.with_context(|| format!("connect {}", target.addr))?;
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    ensure!(peer == target.addr, Wrong::Peer(target.addr, peer));
    Ok(Wire::new(Box::new(stream), Arc::default()))
}

/// One request with a token of its own; the answer must carry it and come from the expected manager.
async fn exchange(wire: &mut Wire, target: &Target, token: &str, close: bool) -> Result<()> {
    wire.write(request(target, token, close).as_bytes()).await.context("sending the request")?;
    let answer = read_answer(wire).await?;
    check(&answer, target, token)
}

fn request(target: &Target, token: &str, close: bool) -> String {
    let Target { host, path, .. } = target;
    let connection = if close { "connection: close\r\n" } else { "" };
    let (method, length, body) =
        if target.post { ("POST", "content-length: 4\r\n", "once") } else { ("GET", "", "") };
    format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nx-token: {token}\r\n{length}{connection}\r\n{body}")
}

struct Answer {
    status: u16,
    token: String,
    body: Vec<u8>,
}

async fn read_answer(wire: &mut Wire) -> Result<Answer> {
    let head = wire.read_head().await.context("reading the answer")?.context("closed before the answer")?;
    let mut body = Vec::new();
    let framing = head.framing(Framing::UntilClose)?;
    wire.read_body(framing, &mut |piece| body.extend_from_slice(piece)).await.context("reading the body")?;
    let token = head.header("x-token").unwrap_or_default().to_owned();
    Ok(Answer { status: head.status()?, token, body })
}

fn check(answer: &Answer, target: &Target, token: &str) -> Result<()> {
    let text = String::from_utf8_lossy(&answer.body);
    ensure!(answer.status == 200, "status {}: {text}", answer.status);
    let body: serde_json::Value =
        serde_json::from_slice(&answer.body).with_context(|| format!("body {text:?}"))?;
    for got in [answer.token.as_str(), body["token"].as_str().unwrap_or_default()] {
        ensure!(got == token, Wrong::Token(token.to_owned(), got.to_owned()));
    }
    let manager = body["manager"].as_str().unwrap_or_default();
    ensure!(manager == target.expect, Wrong::Manager(target.expect.clone(), manager.to_owned()));
    Ok(())
}

async fn upload(target: &Target, bytes: u64, seed: u64, chunked: bool) -> Result<Report> {
    let mut wire = dial(target).await?;
    let framing =
        if chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {bytes}") };
    let Target { host, path, .. } = target;
    let head = format!("POST {path} HTTP/1.1\r\nhost: {host}\r\nx-token: upload\r\n{framing}\r\n\r\n");
    wire.write(head.as_bytes()).await?;
    let (mut pattern, mut hash) = (Pattern::new(seed, bytes), Sha256::new());
    while let Some(block) = pattern.next_block() {
        hash.update(block);
        if chunked {
            wire.write(format!("{:x}\r\n", block.len()).as_bytes()).await?;
            wire.write(block).await?;
            wire.write(b"\r\n").await?;
        } else {
            wire.write(block).await?;
        }
    }
    if chunked {
        wire.write(b"0\r\n\r\n").await?;
    }
    let answer = read_answer(&mut wire).await?;
    check(&answer, target, "upload")?;
    let body: serde_json::Value = serde_json::from_slice(&answer.body)?;
    let sha256 = hex(&hash.finalize());
    ensure!(
        body["body_sha256"] == sha256.as_str(),
        "the manager hashed {}, sent {sha256}",
        body["body_sha256"]
    );
    Ok(Report { ok: 1, bytes, sha256, ..Report::default() })
}

async fn download(target: &Target) -> Result<Report> {
    let mut wire = dial(target).await?;
    let Target { host, path, .. } = target;
    wire.write(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await?;
    let head = wire.read_head().await?.context("closed before the answer")?;
    ensure!(head.status()? == 200, "{}", head.start_line);
    let mut hash = Sha256::new();
    let framing = head.framing(Framing::UntilClose)?;
    let bytes = wire.read_body(framing, &mut |piece| hash.update(piece)).await?;
    Ok(Report { ok: 1, bytes, sha256: hex(&hash.finalize()), ..Report::default() })
}

async fn raw(addr: SocketAddr, case: &RawCase) -> RawAnswer {
    let quiet = Duration::from_millis(case.quiet_ms);
    let mut bytes = Vec::new();
    let stream = match timeout(quiet, TcpStream::connect(addr)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return RawAnswer { bytes, end: End::NotConnected(error.to_string()) },
        Err(_) => return RawAnswer { bytes, end: End::NotConnected("timed out".to_owned()) },
    };
    // Sent and read at the same time: an answer may come before all is sent.
    let (mut reader, mut writer) = stream.into_split();
    let send = async {
        for (number, part) in case.parts.iter().enumerate() {
            if number > 0 {
                sleep(Duration::from_millis(case.pause_ms)).await;
            }
            // A peer that refuses early closes early; what it said is what counts.
            if writer.write_all(part).await.is_err() {
                break;
            }
        }
        if case.half_close {
            let _ = writer.shutdown().await;
        }
        // Kept until reading has ended, or dropping it would end the stream.
        writer
    };
    let receive = async {
        let mut buffer = vec![0; 16384];
        loop {
            match timeout(quiet, reader.read(&mut buffer)).await {
                Err(_) => return End::Quiet,
                Ok(Ok(0)) => return End::Eof,
                Ok(Ok(count)) => bytes.extend_from_slice(&buffer[..count]),
                Ok(Err(error)) => return End::Broken(error.to_string()),
            }
        }
    };
    let (_writer, end) = tokio::join!(send, receive);
    RawAnswer { bytes, end }
}
