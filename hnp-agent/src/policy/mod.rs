//! What a workload may do to its neighbours, and what it may use: limits that hold for each, counted over all workers.
//!
//! The data path asks here and nowhere else. What is decided is pure and takes the time as an argument; waiting and
//! answering are the proxy's.

mod decide;
mod limits;
mod pace;

pub use decide::{Decision, Subject, Why, decide};
pub use limits::{Key, Queued, Refused, Seat, Usages};
pub use pace::Pace;
