//! Facts that the kernel programs and the agent must agree on: map layouts, limits and reasons.
//!
//! `no_std`, padding-free, sizes asserted at compile time. Nothing here does anything; it only says
//! what things are, so that neither side can drift from the other.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod layout;
pub mod reason;
pub mod verdict;

pub use reason::{Reason, Side};
pub use verdict::Verdict;
