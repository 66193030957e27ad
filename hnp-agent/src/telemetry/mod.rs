//! Reasons, metrics and the access log. Known by all rooms, knows none.

pub mod record;
