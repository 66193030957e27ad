//! Datagrams: QUIC would be one way around the agent, and everything else that is sent without a
//! connection another.

use hnp_tests::evasion::{Attack, Ending, Technique, v4_mapped};
use socket2::{Domain, Socket, Type};

use crate::sys::{Answer as _, Outcome, socket};

const IPPROTO_UDPLITE: i32 = 136;

pub(crate) fn carry_out(attack: &Attack) -> Outcome {
    let (target, udp) = (attack.target, libc::IPPROTO_UDP);
    let family = Domain::for_address(target);
    match attack.technique {
        Technique::UdpUnconnected => send_to(&new(family, udp)?, attack),
        Technique::UdpElsewhere => {
            let socket = new(family, udp)?;
            socket.connect(&attack.elsewhere.into()).of("connect(elsewhere)")?;
            send_to(&socket, attack)
        }
        // The socket is of IPv6 already; only the address is not.
        Technique::UdpMixedFamily => send_to(&new(Domain::for_address(v4_mapped(target)), udp)?, attack),
        Technique::UdpLiteConnected => connected(&new(family, IPPROTO_UDPLITE)?, attack),
        Technique::UdpLiteUnconnected => send_to(&new(family, IPPROTO_UDPLITE)?, attack),
        _ => connected(&new(family, udp)?, attack),
    }
}

pub(crate) fn new(family: Domain, protocol: i32) -> Outcome<Socket> {
    socket(family, Type::DGRAM, protocol)
}

fn connected(socket: &Socket, attack: &Attack) -> Outcome {
    socket.connect(&attack.target.into()).of("connect")?;
    send(socket, attack)
}

pub(crate) fn send(socket: &Socket, attack: &Attack) -> Outcome {
    socket.send(&attack.bytes).of("send")?;
    Ok(Ending::Sent { answer: String::new() })
}

fn send_to(socket: &Socket, attack: &Attack) -> Outcome {
    socket.send_to(&attack.bytes, &attack.target.into()).of("sendto")?;
    Ok(Ending::Sent { answer: String::new() })
}
