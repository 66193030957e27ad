//! A hostile pod: all that it can think of with connections, at fixed rates, so that what it does depends on nobody's
//! answers. It gives way to everything else on the machine: what its own work takes from its neighbours is not what is measured.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// It ends by itself.
const LIFE: Duration = Duration::from_secs(120);
/// New connections a second while it takes what it is going to hold.
const TAKING: u32 = 2000;
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it does, as JSON on the command line.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Job {
    /// Where to.
    pub(crate) to: SocketAddr,
    /// Where each connection costs a handshake.
    pub(crate) opaque: SocketAddr,
    /// The header Host.
    pub(crate) host: String,
    /// Connections that say one letter and no more.
    pub(crate) silent: usize,
    /// Connections that ask for a megabyte and read none of it.
    pub(crate) slow: usize,
    /// Connections a second that ask once and end.
    pub(crate) new: u32,
    /// Connections a second that say what is none of a protocol's, or half of it.
    pub(crate) garbage: u32,
    /// Connections a second to [`Job::opaque`].
    pub(crate) handshakes: u32,
    /// The same, but all of a second's at the same time.
    pub(crate) at_once: u32,
}

/// Prints a line once it holds what it wants, and goes on until it is killed.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let &[job] = words else { bail!("a hostile pod wants its job") };
    let job: Job = serde_json::from_str(job).context("the job")?;
    give_way()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let _ = timeout(LIFE, attack(&job)).await;
    });
    Ok(())
}

/// This thread, and those that it starts, run when nobody else on the machine wants to. Nice 19 is not enough: since Linux 6.6
/// (EEVDF) who wakes up waits for the end of the other's slice, whatever their weights. It is among those of one cgroup of the
/// controller `cpu`, which the bench's pods do not have.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn give_way() -> Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: it reads what it is given, and changes how this thread is scheduled.
    let changed = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const none) };
    ensure!(changed == 0, "SCHED_IDLE: {}", std::io::Error::last_os_error());
    Ok(())
}

async fn attack(job: &Job) {
    let ask = |path: &str, end: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: {}\r\nx-token: hostile\r\n{end}\r\n", job.host).into_bytes()
    };
    let (bytes, once) = (ask("/bytes/1000000?seed=1", ""), ask("/hello", "connection: close\r\n"));
    let mut held = take(job.to, job.slow, &bytes).await;
    // What it takes to get there is over once their answers have begun, or they were refused.
    for stream in &held {
        let _ = timeout(PATIENCE, stream.readable()).await;
    }
    held.extend(take(job.to, job.silent, b"G").await);
    println!("{}", held.len());
    tokio::join!(
        keep(job.to, held),
        each(job.new, |_| ask_once(job.to, once.clone())),
        each(job.handshakes, |_| ask_once(job.opaque, once.clone())),
        each(job.at_once.min(1), |_| at_once(job.opaque, once.clone(), job.at_once)),
        each(job.garbage, |number| garbage(job.to, number, once.repeat(50))),
    );
}

/// So many, but for those that are refused at once.
async fn take(to: SocketAddr, count: usize, what: &[u8]) -> VecDeque<TcpStream> {
    let (mut held, mut tick) = (VecDeque::new(), interval(Duration::from_secs(1) / TAKING));
    for _ in 0..count {
        tick.tick().await;
        held.extend(open(to, what).await);
    }
    held
}

async fn open(to: SocketAddr, what: &[u8]) -> Option<TcpStream> {
    let mut stream = timeout(PATIENCE, TcpStream::connect(to)).await.ok()?.ok()?;
    stream.write_all(what).await.ok()?;
    Some(stream)
}

/// Looks at one after the other; what was closed is made again.
async fn keep(to: SocketAddr, mut held: VecDeque<TcpStream>) {
    let mut tick = interval(Duration::from_millis(1));
    while let Some(stream) = held.pop_front() {
        tick.tick().await;
        // So a slow reader does read, a little.
        let ended = match stream.try_read(&mut [0; 512]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        held.extend(if ended { open(to, b"G").await } else { Some(stream) });
    }
}

/// So many a second, whatever becomes of them.
async fn each<F: Future<Output = ()> + 'static>(rate: u32, what: impl Fn(u32) -> F) {
    if rate == 0 {
        return;
    }
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let (mut tick, mut under_way) = (interval(Duration::from_secs(1) / rate), JoinSet::new());
            tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
            for number in 0.. {
                tick.tick().await;
                while under_way.try_join_next().is_some() {}
                if under_way.len() < 1000 {
                    under_way.spawn_local(what(number));
                }
            }
        })
        .await;
}

async fn ask_once(to: SocketAddr, request: Vec<u8>) {
    if let Some(mut stream) = open(to, &request).await {
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
    }
}

async fn at_once(to: SocketAddr, request: Vec<u8>, count: u32) {
    (0..count).map(|_| ask_once(to, request.clone())).collect::<JoinSet<_>>().join_all().await;
}

async fn garbage(to: SocketAddr, number: u32, pipelined: Vec<u8>) {
    // What is no protocol, the beginning of a ClientHello, fifty requests at once whose answers nobody waits for.
    let noise: Vec<u8> = (0..200_u32).map(|at| (at.wrapping_mul(number | 1) >> 3) as u8 | 0x80).collect();
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    let what = [noise, hello, pipelined].into_iter().nth(number as usize % 3).unwrap_or_default();
    let began = Instant::now();
    if let Some(stream) = open(to, &what).await {
        sleep(Duration::from_millis(5).saturating_sub(began.elapsed())).await;
        drop(stream);
    }
}
