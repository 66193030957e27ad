//! YAML -> a validated [`plan::Plan`]. Parsed once; no other room reads raw configuration.

pub mod plan;
