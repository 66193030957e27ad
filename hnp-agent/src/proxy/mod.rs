//! The data path: accept -> flow -> classify -> serve.

pub mod flow;
