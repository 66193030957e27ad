//! HTTP/1.1 as the relay speaks it: strict heads, bodies followed byte for byte, one exchange at a
//! time on each connection.
//!
//! `head`, `request`, `response` and `body` are pure: bytes in, ranges and decisions out. `exchange`
//! moves the bytes of one request and its answer; `forward` chooses the upstream, retries and records;
//! `serve` repeats that over a client connection.

pub mod body;
pub mod exchange;
pub mod forward;
pub mod head;
pub mod request;
pub mod response;
pub mod serve;
pub mod syntax;
