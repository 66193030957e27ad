//! Bytes that betray where they came from: bulk bodies whose every 64 KiB block carries the stream's
//! seed and its own number, so that a lost, doubled or foreign block changes the hash, and the hash
//! of the whole can be computed without the data.

use sha2::{Digest as _, Sha256};

/// Bytes in a block.
pub const BLOCK: usize = 64 * 1024;

/// The stream of one seed, block by block.
#[derive(Debug)]
pub struct Pattern {
    block: Vec<u8>,
    number: u64,
    left: u64,
}

impl Pattern {
    /// A stream of `length` bytes.
    pub fn new(seed: u64, length: u64) -> Self {
        let mut block = Vec::with_capacity(BLOCK);
        // An LCG (Knuth's MMIX constants): quick, and no two 8-byte groups of a block are equal.
        let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
        while block.len() < BLOCK {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            block.extend_from_slice(&state.to_le_bytes());
        }
        block[8..16].copy_from_slice(&seed.to_le_bytes());
        Self { block, number: 0, left: length }
    }

    /// The next block; the last one may be short; `None` at the end.
    pub fn next_block(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            return None;
        }
        self.block[..8].copy_from_slice(&self.number.to_le_bytes());
        self.number += 1;
        let length = usize::try_from(self.left).unwrap_or(BLOCK).min(BLOCK);
        self.left -= length as u64;
        Some(&self.block[..length])
    }
}

/// The SHA-256 of a whole stream, in hexadecimal.
pub fn sha256_of(seed: u64, length: u64) -> String {
    let mut pattern = Pattern::new(seed, length);
    let mut hash = Sha256::new();
    while let Some(block) = pattern.next_block() {
        hash.update(block);
    }
    hex(&hash.finalize())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("strings grow");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Pattern, sha256_of};

    #[test]
    fn streams_have_their_length_and_differ_by_seed_and_place() {
        let mut pattern = Pattern::new(1, BLOCK as u64 + 5);
        let first = pattern.next_block().map(<[u8]>::to_vec);
        let second = pattern.next_block().map(<[u8]>::to_vec);
        assert_eq!(first.as_deref().map(<[u8]>::len), Some(BLOCK));
        assert_eq!(second.as_deref().map(<[u8]>::len), Some(5));
        assert!(pattern.next_block().is_none());
        assert_ne!(first.map(|block| block[..5].to_vec()), second);
        assert_ne!(sha256_of(1, 100), sha256_of(2, 100));
    }
}
