//! What arrives on a wire, frame by frame: the judge of whether anything got past capture.
//!
//! An AF_PACKET socket inside a namespace takes every frame on every interface of it, before netfilter,
//! checksums or sockets could drop one. What the namespace itself sends is not looked at. A frame that the kernel had no room for fails the test: a sniffer
//! that missed something proves nothing.

mod analysis;
mod records;

use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use crate::poll::{eventually, patience};
use crate::wire::find;

/// Room for what comes while the sniffer's thread waits for a processor.
const ROOM: usize = 16 << 20;

/// linux/if_packet.h; since Linux 4.20.
const PACKET_IGNORE_OUTGOING: i32 = 23;

/// What is looked for on the wire.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The manager's addresses.
    pub addrs: Vec<IpAddr>,
    /// The manager's port.
    pub port: u16,
    /// Who may open connections to it: the node, for its agent.
    pub clients: Vec<IpAddr>,
}

/// A sniffer at work. Dropping it ends it.
#[derive(Debug)]
pub struct Sniffer {
    watch: Watch,
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    socket: Arc<Socket>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    /// Sniffs on all interfaces of a namespace; what is sent from now on is seen.
    ///
    /// # Panics
    /// Without CAP_NET_RAW.
    pub fn start(netns: &Netns, watch: Watch) -> Self {
        let everything = i32::from(u16::try_from(libc::ETH_P_ALL).expect("two bytes").to_be());
        let socket = netns.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(everything))));
        let socket = Arc::new(socket.expect("an AF_PACKET socket (CONFIG_PACKET)"));
        set_int(&socket, PACKET_IGNORE_OUTGOING, 1);
        setsockopt(&*socket, RcvBufForce, &ROOM).expect("SO_RCVBUFFORCE (CAP_NET_ADMIN)");
        // So that the thread sees when it is to end.
        socket.set_read_timeout(Some(patience(Duration::from_millis(20)))).expect("sockets have timeouts");
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, source, end) = (Arc::clone(&frames), Arc::clone(&socket), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            // The largest frame: a segment that the card was to cut, behind its headers.
            let mut buffer = vec![0; (64 << 10) + 256];
            while !end.load(Ordering::Relaxed) {
                if let Ok(length) = std::io::Read::read(&mut &*source, &mut buffer) {
                    shared.lock().expect("no panic while held").push(buffer[..length].to_vec());
                }
            }
        });
        Self { watch, frames, socket, stop, thread: Some(thread) }
    }

    /// Whether some frame holds these bytes, whatever kind of frame it is.
    pub fn saw(&self, bytes: &[u8]) -> bool {
        self.frames.lock().expect("no panic while held").iter().any(|frame| find(frame, bytes).is_some())
    }

    /// Waits until everything that was sent before has been seen: `send` is to send these bytes
    /// along the same way, and is called until they come.
    ///
    /// # Panics
    /// When they do not come, or when frames were lost.
    #[track_caller]
    pub fn fence(&self, bytes: &[u8], mut send: impl FnMut()) {
        eventually(Duration::from_secs(10), "the fence is seen on the wire", || {
            send();
            self.saw(bytes)
        });
        assert_eq!(lost(&self.socket), 0, "frames were lost: nothing can be said");
    }

    /// What should not have come, in words: frames with one of `markers`, connections that nobody but
    /// [`Watch::clients`] may open, datagrams, and what is not TLS on the manager's port.
    pub fn leaks(&self, markers: &[String]) -> Vec<String> {
        let frames = self.frames.lock().expect("no panic while held");
        analysis::leaks(&frames, &self.watch, markers)
    }

    /// How many connections to the manager's port carried TLS and nothing else.
    pub fn tls_connections(&self) -> usize {
        let frames = self.frames.lock().expect("no panic while held");
        analysis::tls_connections(&frames, &self.watch)
    }

    /// How many frames were seen.
    pub fn frame_count(&self) -> usize {
        self.frames.lock().expect("no panic while held").len()
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic would have been one of a lock that is never poisoned.
            let _ = thread.join();
        }
    }
}

fn set_int(socket: &Socket, name: i32, value: i32) {
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("it is small");
    // SAFETY: one int, and the length says so.
    let result = unsafe {
        let (fd, value) = (socket.as_raw_fd(), (&raw const value).cast());
        libc::setsockopt(fd, libc::SOL_PACKET, name, value, length)
    };
    assert_eq!(result, 0, "setsockopt(SOL_PACKET, {name}): {}", std::io::Error::last_os_error());
}

/// How many frames the kernel had no room for since the last call.
fn lost(socket: &Socket) -> u32 {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = libc::socklen_t::try_from(size_of_val(&stats)).expect("it is small");
    // SAFETY: the kernel writes one tpacket_stats, for which there is room.
    let result = unsafe {
        let (fd, value) = (socket.as_raw_fd(), (&raw mut stats).cast());
        libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, value, &raw mut length)
    };
    assert_eq!(result, 0, "PACKET_STATISTICS: {}", std::io::Error::last_os_error());
    stats.tp_drops
}
