//! Trust: what the agent accepts from the other side.

pub mod snapshot;
