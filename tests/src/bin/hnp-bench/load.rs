//! The load that peers and hnp carry: a thread a connection with blocking sockets, because a client must not
//! be what limits, and two system calls a request are the fewest there are.
//!
//! It reads the proxy's CPU clock itself, at the ends of the window in which it counts: connections that are
//! being set up before are no part of a figure.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hnp_tests::clock::monotonic_ns;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde::{Deserialize, Serialize};

/// Before a figure's window opens: pools are filled and buffers have grown.
const WARM: Duration = Duration::from_millis(150);
/// No exchange takes longer, and no first answer of a connection.
const PATIENCE: Duration = Duration::from_secs(20);
/// Threads that make connections to be held.
const HOLDERS: usize = 8;
/// Larger than what a proxy hands on at a time.
const BUFFER: usize = 256 * 1024;

/// What is to be done, as JSON on the command line.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Job {
    /// How.
    pub(crate) kind: Kind,
    /// Where.
    pub(crate) to: SocketAddr,
    /// The header Host, and the server's name where this is TLS.
    pub(crate) host: String,
    /// The path.
    pub(crate) path: String,
    /// At a time.
    pub(crate) connections: usize,
    /// When the window opens, on [`monotonic_ns`]'s clock: several loads count at the same time, once none of them is starting
    /// any more. As soon as it is warm where this says nothing.
    #[serde(default)]
    pub(crate) opens_ns: Option<u64>,
    /// How long it is counted.
    pub(crate) milliseconds: u64,
    /// Whose CPU clock is read; none where there is no proxy.
    pub(crate) proxy: Option<i32>,
    /// A certificate, its key, and the roots of the server's, in PEM: for mutual TLS of the client's own.
    pub(crate) tls: Option<[String; 3]>,
    /// Each request's time is wanted.
    #[serde(default)]
    pub(crate) samples: bool,
}

/// How requests are made.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) enum Kind {
    /// One after the other on connections that stay.
    KeepAlive,
    /// Each on a connection of its own.
    New,
    /// So many a second, evenly, on connections that stay. What is late counts from when it was due.
    Steady(u32),
    /// One each on connections that are then held, until this is killed.
    Idle,
}

/// What a window showed.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Outcome {
    /// Answers that came whole.
    pub(crate) requests: u64,
    /// Of bodies.
    pub(crate) bytes: u64,
    /// How long the window was.
    pub(crate) seconds: f64,
    /// What the proxy took of its CPU.
    pub(crate) cpu_seconds: f64,
    /// Half of the requests took no longer, in microseconds.
    pub(crate) p50: f64,
    /// 99 of 100.
    pub(crate) p99: f64,
    /// Each request's, where they are wanted, in microseconds.
    #[serde(default)]
    pub(crate) samples: Vec<f64>,
}

/// Shared by the threads of a load.
#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    begun: AtomicU64,
    open: AtomicBool,
    over: AtomicBool,
}

pub(crate) fn run(words: &[&str]) -> Result<()> {
    let &[job] = words else { bail!("a load wants its job") };
    let job: Job = serde_json::from_str(job).context("the job")?;
    let outcome = if job.kind == Kind::Idle { hold(&job)? } else { measure(&Arc::new(job))? };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn measure(job: &Arc<Job>) -> Result<Outcome> {
    let counters = Arc::new(Counters::default());
    let tls = job.tls.as_ref().map(|files| own_tls(files).map(Arc::new)).transpose()?;
    let start = |index| {
        let (job, counters, tls) = (Arc::clone(job), Arc::clone(&counters), tls.clone());
        thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            let outcome = work(&job, index, &counters, tls.as_ref());
            // The others need not go on when one has failed.
            counters.over.fetch_or(outcome.is_err(), Relaxed);
            outcome
        })
    };
    let threads = (0..job.connections).map(start).collect::<Result<Vec<_>, _>>()?;
    let until = Instant::now() + PATIENCE;
    while counters.begun.load(Relaxed) < job.connections as u64 && !counters.over.load(Relaxed) {
        ensure!(Instant::now() < until, "no first answer on each connection within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(WARM);
    if let Some(opens) = job.opens_ns {
        let left =
            opens.checked_sub(monotonic_ns()).context("the window was to open before this was warm")?;
        thread::sleep(Duration::from_nanos(left));
    }
    let look = || -> Result<_> {
        let cpu = job.proxy.map_or(Ok(0.0), cpu_seconds)?;
        Ok((Instant::now(), counters.requests.load(Relaxed), counters.bytes.load(Relaxed), cpu))
    };
    let before = look()?;
    counters.open.store(true, Relaxed);
    thread::sleep(Duration::from_millis(job.milliseconds));
    counters.open.store(false, Relaxed);
    let after = look()?;
    counters.over.store(true, Relaxed);
    let mut took = Vec::new();
    for thread in threads {
        took.extend(thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
    }
    took.sort_unstable();
    let at =
        |share: f64| took.get((took.len() as f64 * share) as usize).map_or(f64::NAN, |&ns| ns as f64 / 1e3);
    let outcome = Outcome {
        requests: after.1 - before.1,
        bytes: after.2 - before.2,
        seconds: (after.0 - before.0).as_secs_f64(),
        cpu_seconds: after.3 - before.3,
        p50: if took.is_empty() { 0.0 } else { at(0.5) },
        p99: if took.is_empty() { 0.0 } else { at(0.99) },
        samples: if job.samples { took.iter().map(|&ns| ns as f64 / 1e3).collect() } else { Vec::new() },
    };
    ensure!(outcome.bytes > 0, "nothing came within {} ms", job.milliseconds);
    Ok(outcome)
}

/// One connection's part; nanoseconds of each request in the window.
fn work(job: &Job, index: usize, counters: &Counters, tls: Option<&Arc<ClientConfig>>) -> Result<Vec<u64>> {
    let mut client = Client::new(job);
    let mut took = Vec::new();
    let mut stays = if job.kind == Kind::New { None } else { Some(connect(job.to)?) };
    let every = match job.kind {
        Kind::Steady(rate) => Duration::from_secs_f64(job.connections as f64 / f64::from(rate)),
        Kind::KeepAlive | Kind::New | Kind::Idle => Duration::ZERO,
    };
    // Connections take their turns within one interval.
    let mut due = Instant::now() + every.mul_f64(index as f64 / job.connections as f64);
    while !counters.over.load(Relaxed) {
        let mut began = Instant::now();
        if !every.is_zero() {
            if began < due {
                thread::sleep(due - began);
                began = Instant::now();
            } else {
                // The last answer came after this was due: it waited.
                began = due;
            }
            due += every;
        }
        let whole = match (&mut stays, tls) {
            (Some(stream), _) => client.exchange(stream, counters)?,
            (None, None) => client.exchange(&mut connect(job.to)?, counters)?,
            (None, Some(tls)) => {
                let name = ServerName::try_from(job.host.clone())?;
                let connection = ClientConnection::new(Arc::clone(tls), name)?;
                client.exchange(&mut StreamOwned::new(connection, connect(job.to)?), counters)?
            }
        };
        if !whole {
            break;
        }
        counters.requests.fetch_add(1, Relaxed);
        client.count_as_begun(counters);
        if counters.open.load(Relaxed) {
            took.push(u64::try_from(began.elapsed().as_nanos())?);
        }
    }
    Ok(took)
}

/// Connections that have answered once, until this process is killed. Some are made at a time: where the
/// machine is busy, each waits for its turns.
fn hold(job: &Job) -> Result<Outcome> {
    let counters = Counters::default();
    let next = AtomicU64::new(0);
    let some = || -> Result<Vec<TcpStream>> {
        let (mut client, mut held) = (Client::new(job), Vec::new());
        while next.fetch_add(1, Relaxed) < job.connections as u64 {
            let mut stream = connect(job.to)?;
            client.exchange(&mut stream, &counters)?;
            held.push(stream);
        }
        Ok(held)
    };
    let held = thread::scope(|scope| {
        let threads: Vec<_> = (0..HOLDERS).map(|_| scope.spawn(some)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|held| held.map_err(|_| anyhow::anyhow!("a client panicked"))?).collect::<Result<Vec<_>>>()
    })?;
    let requests = held.iter().map(Vec::len).sum::<usize>() as u64;
    println!("{}", serde_json::to_string(&Outcome { requests, ..Outcome::default() })?);
    loop {
        thread::park();
    }
}

/// A request and the room for its answer.
struct Client {
    request: Vec<u8>,
    buffer: Vec<u8>,
    begun: bool,
}

impl Client {
    fn new(job: &Job) -> Self {
        let request = format!("GET {} HTTP/1.1\r\nhost: {}\r\n\r\n", job.path, job.host).into_bytes();
        Self { request, buffer: vec![0; BUFFER], begun: false }
    }

    /// A request and its answer; false when the time was over before it was whole.
    fn exchange(&mut self, stream: &mut (impl Read + Write), counters: &Counters) -> Result<bool> {
        stream.write_all(&self.request).context("sending a request")?;
        let mut filled = 0;
        let (head, length) = loop {
            let count = stream.read(&mut self.buffer[filled..]).context("reading an answer")?;
            ensure!(count > 0, "the connection ended before an answer");
            filled += count;
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut answer = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(head) = answer.parse(&self.buffer[..filled])? {
                ensure!(
                    answer.code == Some(200),
                    "answered: {}",
                    String::from_utf8_lossy(&self.buffer[..filled.min(600)])
                );
                let length = answer.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
                let length = length.context("an answer without Content-Length")?;
                break (head, std::str::from_utf8(length.value)?.parse::<usize>()?);
            }
        };
        let mut got = filled - head;
        counters.bytes.fetch_add(got as u64, Relaxed);
        while got < length {
            let count = stream.read(&mut self.buffer).context("reading a body")?;
            ensure!(count > 0, "the connection ended after {got} of {length} bytes");
            got += count;
            counters.bytes.fetch_add(count as u64, Relaxed);
            self.count_as_begun(counters);
            if counters.over.load(Relaxed) {
                return Ok(got == length);
            }
        }
        ensure!(got == length, "{got} bytes of a body of {length}");
        Ok(true)
    }

    /// Its first answer has come.
    fn count_as_begun(&mut self, counters: &Counters) {
        if !self.begun {
            self.begun = true;
            counters.begun.fetch_add(1, Relaxed);
        }
    }
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Without resumption: a short-lived pod has no session from before.
fn own_tls(files: &[String; 3]) -> Result<ClientConfig> {
    let [certificate, key, roots] = files;
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots)? {
        store.add(root?)?;
    }
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let mut config =
        ClientConfig::builder().with_root_certificates(store).with_client_auth_cert(chain, key)?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// User and system time of a whole process, threads that have ended included.
pub(crate) fn cpu_seconds(pid: i32) -> Result<f64> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: clock is ours and written by the call.
    let found = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    ensure!(found == 0, "process {pid} has no CPU clock: {}", std::io::Error::from_raw_os_error(found));
    // SAFETY: time is ours and written by the call.
    let read = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(read == 0, "the CPU clock of process {pid}: {}", std::io::Error::last_os_error());
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}
