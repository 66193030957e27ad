//! What hnp promises, one module per promise, each with a control that must behave the other way.
//!
//! Needs root: the worlds are made of network namespaces and cgroups. `cargo xtask test --tier host`.

mod world;
