//! Between the agent and the runtime: a socket of the node behind which is the runtime's own, and which can be held up.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::shutdown;

use super::Node;
use super::cri::Cri;

/// A relay of the node's. Dropping it closes its connections.
#[derive(Debug)]
pub struct Relay {
    path: PathBuf,
    listener: UnixListener,
    gate: Arc<Gate>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    paused: bool,
    /// One end of each connection, to end it by.
    open: Vec<UnixStream>,
}

impl Relay {
    /// Listens at a path of the node, in front of its runtime.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn start(node: &Node<'_>, socket: &str) -> Self {
        let (path, behind) = (node.path(socket), node.socket());
        let folder = path.parent().expect("a socket lies in a folder");
        std::fs::create_dir_all(folder).expect("the node's files are ours");
        let listener = UnixListener::bind(&path).expect("nobody else listens there");
        let gate = Arc::<Gate>::default();
        let (own, ours) = (Arc::clone(&gate), listener.try_clone().expect("descriptors are left"));
        let accepting = std::thread::spawn(move || {
            while let Ok((near, _)) = ours.accept() {
                // Without a runtime behind it, who dialled is let go.
                let Ok(far) = UnixStream::connect(&behind) else { continue };
                let _ = own.carry(near, far);
            }
        });
        Self { path, listener, gate, accepting: Some(accepting) }
    }

    /// From now on nothing passes, in either direction; or everything does.
    ///
    /// # Panics
    /// When a thread of the relay has panicked.
    pub fn pause(&self, paused: bool) {
        self.gate.change(|state| state.paused = paused);
    }

    /// How long the runtime takes to answer through it.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn ask(&self) -> Duration {
        let started = Instant::now();
        Cri::connect(&self.path).unwrap_or_else(|error| panic!("{error:#}"));
        started.elapsed()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.gate.change(|state| {
            state.paused = false;
            for stream in state.open.drain(..) {
                // Whoever has ended in between needs nothing.
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        // Wakes who accepts, also when the node has gone before.
        let _ = shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Gate {
    fn change(&self, how: impl FnOnce(&mut State)) {
        how(&mut self.state.lock().expect("no panic while held"));
        self.changed.notify_all();
    }

    fn carry(self: &Arc<Self>, near: UnixStream, far: UnixStream) -> io::Result<()> {
        let ends = [near.try_clone()?, far.try_clone()?];
        self.change(|state| state.open.extend(ends));
        for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
            let gate = Arc::clone(self);
            std::thread::spawn(move || gate.pass(from, to));
        }
        Ok(())
    }

    fn pass(&self, mut from: UnixStream, mut to: UnixStream) {
        let mut piece = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            let state = self.state.lock().expect("no panic while held");
            drop(self.changed.wait_while(state, |state| state.paused).expect("no panic while held"));
            if to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        // The other direction of a connection that has ended is over, too.
        let _ = to.shutdown(Shutdown::Both);
    }
}
