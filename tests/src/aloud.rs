//! What a run is to show of scenarios that hold, too: the test harness keeps what those print to itself.

use std::io::Write as _;

/// Says a line past the test harness.
///
/// # Panics
/// When standard error is closed.
pub fn say(line: &str) {
    // One write, so that lines of scenarios that run side by side stay whole.
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).expect("standard error is open");
}
