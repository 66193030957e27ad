//! The attacker: runs inside a pod, carries out one technique (JSON on standard input), prints what the
//! kernel answered (a line of JSON per attempt). Knows nothing of hnp; what it calls is what any
//! program with the container's capabilities could call.
//!
//! `hnp-test-evader lend PATH` is its accomplice outside the pod's cgroup, which makes sockets and hands
//! them out over a UNIX socket.

mod datagrams;
mod frames;
mod lend;
mod older;
mod packets;
mod places;
mod route;
mod streams;
mod sys;
mod uring;

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hnp_tests::evasion::{Attack, Attempt, Ending, Technique};
use hnp_tests::poll::patience;

/// Nothing that works takes this long; what is silently dropped does.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two attempts: many a second, and the machine remains usable. As much longer as deadlines are.
const PAUSE: Duration = Duration::from_millis(2);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, path] = arguments.as_slice()
        && verb == "lend"
    {
        return lend::serve(Path::new(path));
    }
    let attack: Attack = serde_json::from_reader(std::io::stdin()).context("the attack on standard input")?;
    let mut hideout = places::Home::find()?;
    loop {
        let started = Instant::now();
        let end = carry_out(&attack, &mut hideout).unwrap_or_else(|no| no.into_ending());
        tell(end, started)?;
        if !attack.repeat || attack.technique.waits() {
            return Ok(());
        }
        hideout.return_to()?;
        std::thread::sleep(patience(PAUSE));
    }
}

fn tell(end: Ending, started: Instant) -> Result<()> {
    let attempt = Attempt { end, ms: started.elapsed().as_secs_f64() * 1e3 };
    let mut line = serde_json::to_vec(&attempt)?;
    line.push(b'\n');
    Ok(std::io::stdout().write_all(&line)?)
}

fn carry_out(attack: &Attack, home: &mut places::Home) -> sys::Outcome {
    use Technique as T;
    match attack.technique {
        T::Connect
        | T::NonBlocking
        | T::FixedPort
        | T::BoundToDevice
        | T::Mptcp
        | T::Smc
        | T::FastOpenSendto
        | T::FastOpenConnect
        | T::ForgedMark
        | T::ReconnectFromElsewhere
        | T::Reconnect
        | T::BoundToTarget
        | T::Vsock
        | T::TakePort => streams::carry_out(attack),
        T::IoUring => uring::carry_out(attack, false),
        T::IoUringSqpoll => uring::carry_out(attack, true),
        T::ChildCgroup | T::CgroupNamespace | T::OtherNetns | T::FreshNetns | T::MovedBetween | T::Lent => {
            places::carry_out(attack, home)
        }
        T::OlderSocket | T::OlderFlow | T::OlderDatagrams => older::carry_out(attack),
        T::UdpConnected
        | T::UdpUnconnected
        | T::UdpElsewhere
        | T::UdpMixedFamily
        | T::UdpLiteConnected
        | T::UdpLiteUnconnected => datagrams::carry_out(attack),
        T::RawTcp
        | T::RawHeader
        | T::PacketSyn
        | T::PacketData
        | T::PacketOptions
        | T::PacketFragments
        | T::PacketSecondFragment
        | T::PacketVlan
        | T::PacketTwoVlans
        | T::PacketExtension
        | T::PacketManyExtensions
        | T::PacketUdp
        | T::PacketUdpLite
        | T::PacketOffload => packets::carry_out(attack),
    }
}
