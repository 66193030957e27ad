//! A worker thread: one current-thread runtime, its listeners, its connections, its housekeeping.
//!
//! Nothing here is shared with another worker but counters that only this one writes. It ends when
//! it was told to stop and its last connection is gone, or when it is told to end now.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;

use super::gate::Gate;
use super::listener::{self, Listeners};
use super::pulse::Pulse;
use super::worker::{Lanes, Surroundings};
use crate::generation::Generation;

/// How often a quiet worker's access lines are handed to the writer.
const FLUSH: Duration = Duration::from_millis(100);
/// How many of those pass between two looks at the pool.
const SWEEP: u32 = 10;

/// What a worker is made of; all of it may cross to its thread.
pub struct Parts {
    /// The worker's number, from 0.
    pub index: usize,
    /// What it begins with; the next ones come with the VIP table.
    pub generation: Arc<Generation>,
    /// Its listening sockets.
    pub listeners: Listeners,
    /// Whether it accepts; its own.
    pub gate: Gate,
    /// Says that it answers.
    pub pulse: Pulse,
    /// What does not depend on the configuration.
    pub around: Surroundings,
}

/// Starts the thread. It returns how many connections were cut at the drain's deadline.
///
/// # Errors
/// The thread could not be made.
pub fn spawn(parts: Parts) -> io::Result<JoinHandle<io::Result<usize>>> {
    std::thread::Builder::new().name(format!("worker-{}", parts.index)).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, run(parts))
    })
}

async fn run(parts: Parts) -> io::Result<usize> {
    let plan = &parts.generation.plan;
    let permits = plan.limits.connections / plan.workers;
    let lanes = Rc::new(Lanes::new(parts.generation, parts.around).map_err(io::Error::other)?);
    let connections = TaskTracker::new();
    let serve = listener::serve(lanes.clone(), parts.listeners, parts.gate, permits, connections.clone());
    let until_done = async {
        serve.await?;
        connections.close();
        tokio::select! {
            () = connections.wait() => Ok(0),
            () = lanes.around.kill.cancelled() => {
                let cut = connections.len();
                connections.wait().await;
                Ok(cut)
            }
        }
    };
    tokio::select! {
        cut = until_done => cut,
        never = keep_house(&lanes, &parts.pulse) => never,
    }
}

async fn keep_house(lanes: &Lanes, pulse: &Pulse) -> ! {
    let mut tick = interval(FLUSH);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        lanes.sweep();
        for _ in 0..SWEEP {
            tick.tick().await;
            pulse.beat();
            lanes.look_at_policies();
            lanes.around.counters.flush();
        }
    }
}
