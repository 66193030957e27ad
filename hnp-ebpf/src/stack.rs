//! Keys and values on the stack, written in whole words of eight bytes.
//!
//! The verifier remembers what each word of the stack was stored with. Without CAP_PERFMON, Linux 5.16
//! to 6.8 refuse a narrower store to a word that holds a known number ("attempt to corrupt spilled
//! pointer on stack"), and the compiler, which stores field by field and gives one place to several
//! variables, knows nothing of it. A store of eight bytes is always right.

use core::mem::MaybeUninit;
use core::ptr::{read_volatile, write_volatile};

use hnp_common::layout::Address;

/// `N` words on the stack, for a helper to read.
pub(crate) struct Words<const N: usize>(MaybeUninit<[u64; N]>);

impl<const N: usize> Words<N> {
    /// Writes the words.
    #[inline(always)]
    pub(crate) fn new(words: [u64; N]) -> Self {
        let mut on_stack = MaybeUninit::<[u64; N]>::uninit();
        for (i, word) in words.into_iter().enumerate() {
            // SAFETY: `i` is below `N`. Volatile, so that no store is split, merged or left out.
            unsafe { write_volatile(on_stack.as_mut_ptr().cast::<u64>().add(i), word) };
        }
        Self(on_stack)
    }

    /// The words as a key or a value of a map; bytes beyond its size are not looked at.
    ///
    /// # Safety
    /// The words must be a `T` in memory.
    #[inline(always)]
    pub(crate) unsafe fn as_ref<T>(&self) -> &T {
        const { assert!(size_of::<T>() <= 8 * N && align_of::<T>() <= 8) };
        // SAFETY: big enough, aligned, and the caller says what it is.
        unsafe { &*self.0.as_ptr().cast::<T>() }
    }
}

/// Two fields of four bytes as they lie in memory, one after the other (BPF is little-endian here).
#[inline(always)]
pub(crate) fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

/// An address out of a map's value, read word by word. Copied as a whole it would be put on the stack in
/// pieces of four bytes.
#[inline(always)]
pub(crate) fn read_address(from: &Address) -> Address {
    let [a, b, c, d] = &from.0;
    // SAFETY: references can be read. Volatile, so that the compiler does not make a copy of it.
    let read = |word: &u32| unsafe { read_volatile(word) };
    Address([read(a), read(b), read(c), read(d)])
}
