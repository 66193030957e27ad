//! The BPF objects inside this binary; `build.rs` decides whether there are any.

use std::borrow::Cow;

/// Calls of a helper that kernels before Linux 5.18 do not have (`bpf_set_retval`, linux/bpf.h).
const SET_RETVAL: i32 = 187;

const OBJECTS: &[&[u8]] = &[
    #[cfg(hnp_bpf_object_that_logs)]
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hnp-debug.bpf.o")),
    #[cfg(hnp_bpf_object)]
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hnp.bpf.o")),
];

/// The objects of this build, the one to try first in front: debug builds also have one that logs.
pub(super) fn embedded() -> &'static [&'static [u8]] {
    OBJECTS
}

/// Those to try, the first in front. One that logs is only worth its while where debug lines are read.
pub(super) fn to_try(debug: bool) -> &'static [&'static [u8]] {
    match OBJECTS {
        [_, plain @ ..] if !debug && !plain.is_empty() => plain,
        all => all,
    }
}

/// The object for this kernel.
///
/// Calls of `bpf_set_retval` are behind a constant that is false where the helper is missing. With
/// CAP_PERFMON the verifier leaves such code out; without, it looks at it as a processor might, for a
/// moment, and refuses a helper that it does not know. So they are taken out here.
pub(super) fn for_kernel(object: &'static [u8], has_set_retval: bool) -> Cow<'static, [u8]> {
    if has_set_retval {
        return Cow::Borrowed(object);
    }
    let mut without = object.to_vec();
    for section in programs(object) {
        if let Some(code) = without.get_mut(section) {
            remove_calls(code, SET_RETVAL);
        }
    }
    Cow::Owned(without)
}

/// Where the sections with programs are: those flagged as executable in a little-endian ELF64 object
/// (elf(5)). Nothing, when it is not one; the loader then says so.
fn programs(object: &[u8]) -> Vec<std::ops::Range<usize>> {
    const SHT_PROGBITS: u64 = 1;
    const SHF_EXECINSTR: u64 = 4;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let field = object.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let place = |at: usize, bytes: usize| number(at, bytes).and_then(|value| usize::try_from(value).ok());
    let headers = || Some((place(0x28, 8)?, place(0x3a, 2)?, place(0x3c, 2)?));
    let Some((first, size, count)) = headers() else { return Vec::new() };
    (0..count)
        .filter_map(|index| {
            let header = first.checked_add(index.checked_mul(size)?)?;
            let is_code = number(header.checked_add(4)?, 4)? == SHT_PROGBITS
                && number(header.checked_add(8)?, 8)? & SHF_EXECINSTR != 0;
            let (offset, length) =
                (place(header.checked_add(0x18)?, 8)?, place(header.checked_add(0x20)?, 8)?);
            is_code.then_some(offset..offset.checked_add(length)?)
        })
        .collect()
}

/// Puts `r0 = 0` in the place of each call of a helper.
fn remove_calls(code: &mut [u8], helper: i32) {
    const CALL: u8 = 0x85;
    const MOV64_IMMEDIATE: u8 = 0xb7;
    for instruction in code.chunks_exact_mut(8) {
        // The second half of a 64-bit load has opcode 0, so no constant is taken for a call.
        if instruction[..4] == [CALL, 0, 0, 0] && instruction[4..] == helper.to_le_bytes() {
            instruction.copy_from_slice(&[MOV64_IMMEDIATE, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_the_helper_are_taken_out() {
        let call = |helper: u8| [0x85, 0, 0, 0, helper, 0, 0, 0];
        let function_call = [0x85, 0x10, 0, 0, 187, 0, 0, 0];
        let mut code = [call(187), call(186), function_call, call(187)].concat();
        remove_calls(&mut code, SET_RETVAL);
        let nothing = [0xb7, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(code, [nothing, call(186), function_call, nothing].concat());
    }

    #[test]
    fn what_is_no_object_has_no_programs() {
        assert!(programs(b"").is_empty() && programs(&[0xff; 64]).is_empty());
    }

    #[test]
    fn an_embedded_object_calls_it_and_without_it_is_as_long() {
        let Some(object) = embedded().last() else { return };
        let calls = |object: &[u8]| {
            let codes = programs(object);
            assert!(!codes.is_empty(), "the object has programs");
            codes
                .into_iter()
                .flat_map(|code| object[code].chunks_exact(8))
                .filter(|instruction| **instruction == [0x85, 0, 0, 0, 187, 0, 0, 0])
                .count()
        };
        assert!(calls(object) > 0);
        let without = for_kernel(object, false);
        assert_eq!((calls(&without), without.len()), (0, object.len()));
        assert!(matches!(for_kernel(object, true), Cow::Borrowed(_)));
    }
}
