//! Identity sources: publish validated snapshots, keep the last good one.

pub mod snapshot;
