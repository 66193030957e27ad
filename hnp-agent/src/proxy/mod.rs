//! The data path: accept -> flow -> classify -> mode -> upstream -> relay -> one access line.
//!
//! It goes down this list once and never comes back up. It knows no BPF map and no file path: it is
//! handed a Plan, flows and handles ([`worker::Worker`]). A worker's connections share that worker
//! and nothing else.

pub mod answer;
pub mod authority;
pub mod buffer;
pub mod client_io;
pub mod connection;
pub mod flow;
pub mod gate;
pub mod gateway;
mod handshakes;
pub(crate) mod hello;
pub mod http1;
mod http2;
pub mod listener;
pub mod opaque;
mod paced;
pub mod places;
pub mod police;
pub mod pulse;
pub mod record;
pub mod relay;
pub mod thread;
mod tls;
mod turned_away;
pub mod worker;

#[cfg(test)]
mod tests;
