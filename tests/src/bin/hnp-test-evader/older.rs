//! What was there before the agent: sockets, connections, connected datagram sockets. They are made, and
//! used when it is time.

use std::time::Instant;

use hnp_tests::evasion::{Attack, Ending, Technique};
use hnp_tests::poll::patience;
use socket2::{Domain, Socket};

use crate::streams::{converse, dial, tcp};
use crate::sys::{Answer as _, No, Outcome};
use crate::{PAUSE, datagrams, tell};

/// How many are kept when they are to be used one after the other.
const KEPT: usize = 40;

pub(crate) fn carry_out(attack: &Attack) -> Outcome {
    let count = if attack.repeat { KEPT } else { 1 };
    let sockets: Vec<Socket> = (0..count).map(|_| make(attack)).collect::<Outcome<_>>()?;
    wait_for_go(attack)?;
    let mut last = Ending::Waiting;
    for socket in &sockets {
        let started = Instant::now();
        last = match attack.technique {
            Technique::OlderSocket => dial(socket, attack),
            Technique::OlderFlow => converse(socket, &attack.bytes),
            _ => datagrams::send(socket, attack),
        }
        .unwrap_or_else(No::into_ending);
        if attack.repeat {
            tell(last.clone(), started).map_err(|_| No::missing("reader"))?;
            // Spread over the agent's restarts.
            std::thread::sleep(patience(10 * PAUSE));
        }
    }
    Ok(last)
}

fn make(attack: &Attack) -> Outcome<Socket> {
    let target = attack.target;
    let socket = match attack.technique {
        Technique::OlderSocket => return tcp(target),
        Technique::OlderFlow => tcp(target)?,
        _ => datagrams::new(Domain::for_address(target), libc::IPPROTO_UDP)?,
    };
    socket.connect(&target.into()).of("connect")?;
    Ok(socket)
}

/// Says that all is made, and waits until it may go on.
fn wait_for_go(attack: &Attack) -> Outcome<()> {
    let go = attack.go.as_deref().ok_or_else(|| No::missing("file to wait for"))?;
    tell(Ending::Waiting, Instant::now()).map_err(|_| No::missing("reader"))?;
    while !go.exists() {
        std::thread::sleep(patience(PAUSE));
    }
    Ok(())
}
