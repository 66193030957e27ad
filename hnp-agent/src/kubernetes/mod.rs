//! What the agent asks of the API server of the cluster its node belongs to.
//!
//! Only this: that the taint with which a new node registers is taken off once the agent is ready, so that
//! no pod starts where nothing is captured yet. Nothing here is needed for capture or the relay; an API
//! server that cannot be reached costs the node its pods, not its enforcement. `client` reaches the server,
//! `patch` says what to change (pure), `startup_taint` is the loop around them.

mod client;
mod patch;
mod startup_taint;

pub use startup_taint::{TaintStatus, take_off};
