//! A long way to the manager, as a fault injector makes one: what leaves the node for it waits for a while, what comes
//! back does not. By the kernel's own sch_netem; by a relay where the kernel has none, which the run says. Guests
//! are to have it: there is no relay there.

mod relay;

use std::any::Any;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use self::relay::Relay;
use crate::netns::Netns;
use crate::topology::{MANAGER4, World};
use crate::{aloud, kernel, tools};

/// The node's interface on the manager's side.
const INTERFACE: &str = "mgr0";

/// What `tc` says where the kernel has no such queue.
const NOT_THERE: &str = "qdisc kind is unknown";

/// The delay; it ends when this is dropped.
pub struct Delay {
    port: u16,
    /// Ends it.
    _means: Box<dyn Any>,
}

impl Delay {
    /// Delays what goes to a port on which the manager listens; `elsewhere` is a free one, for a relay.
    ///
    /// # Panics
    /// When neither can be had, and in a guest without sch_netem.
    #[track_caller]
    pub fn start(world: &World, port: u16, elsewhere: u16, delay: Duration) -> Self {
        let manager = |port| SocketAddr::from((MANAGER4, port));
        let (means, port, words): (Box<dyn Any>, _, _) =
            match Netem::start(world.node_netns(), manager(port), delay) {
                Ok(netem) => (Box::new(netem), port, "sch_netem on the node's egress"),
                Err(why) if why.contains(NOT_THERE) && !kernel::in_a_guest() => {
                    let relay = Relay::start(world.manager_netns(), manager(elsewhere), manager(port), delay);
                    (Box::new(relay), elsewhere, "a RELAY: this kernel has no sch_netem")
                }
                Err(why) => panic!("sch_netem, which guests have by xtask/src/vm/modules.rs: {why}"),
            };
        aloud::say(&format!("{}: {delay:?} of delay by {words}", world.name()));
        Self { port, _means: means }
    }

    /// Where the manager is a long way off.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// A delaying queue on [`INTERFACE`], until it is dropped.
struct Netem {
    node: Netns,
}

impl Netem {
    /// With what `tc` said, where it refuses.
    fn start(node: &Netns, manager: SocketAddr, delay: Duration) -> Result<Self, String> {
        node.run(|| {
            // The queue would hold back ARP as well, which is no part of any later round trip.
            drop(TcpStream::connect(manager).map_err(|error| format!("{manager}: {error}"))?);
            let milliseconds = format!("{}ms", delay.as_millis());
            // The usual limit is 1,000 packets, which a burst of connections passes.
            tc(&["add", "dev", INTERFACE, "root", "netem", "delay", &milliseconds, "limit", "1000000"])
        })?;
        Ok(Self { node: node.clone() })
    }
}

impl Drop for Netem {
    fn drop(&mut self) {
        // It goes with its interface at the latest.
        let _ = self.node.run(|| tc(&["del", "dev", INTERFACE, "root"]));
    }
}

fn tc(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(tools::need("tc")).arg("qdisc").args(arguments).output();
    let output = output.map_err(|error| format!("tc: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(said.trim().to_owned()) }
}
