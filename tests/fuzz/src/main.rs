//! libFuzzer around one of the agent's targets, which the environment names: HNP_FUZZ_TARGET.

#![no_main]

use std::sync::LazyLock;

use hnp_agent::fuzzing::TARGETS;
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("HNP_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|(name, _)| *name == wanted);
    let names = TARGETS.map(|(name, _)| name).join(", ");
    found.unwrap_or_else(|| panic!("HNP_FUZZ_TARGET is {wanted:?}; allowed: {names}")).1
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));
