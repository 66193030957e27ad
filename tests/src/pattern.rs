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

/// Compares a stream, as it comes, with what it has to be.
#[derive(Debug)]
pub struct Comparison {
    pattern: Pattern,
    /// What must come next of the block that has begun.
    expected: Vec<u8>,
    bytes: u64,
    holds: bool,
}

impl Comparison {
    /// With the stream of a seed, from its beginning.
    pub fn new(seed: u64) -> Self {
        Self { pattern: Pattern::new(seed, u64::MAX), expected: Vec::new(), bytes: 0, holds: true }
    }

    /// Takes what came next.
    pub fn take(&mut self, mut piece: &[u8]) {
        self.bytes += piece.len() as u64;
        while !piece.is_empty() {
            if self.expected.is_empty() {
                self.expected.extend_from_slice(self.pattern.next_block().unwrap_or_default());
            }
            let length = piece.len().min(self.expected.len());
            self.holds &= piece[..length] == self.expected[..length];
            self.expected.drain(..length);
            piece = &piece[length..];
        }
    }

    /// Whether every byte was the right one so far.
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// How many bytes came so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
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
    use super::{BLOCK, Comparison, Pattern, sha256_of};

    #[test]
    fn a_comparison_finds_the_byte_that_is_wrong() {
        let mut pattern = Pattern::new(3, 2 * BLOCK as u64 + 7);
        let mut stream = Vec::new();
        while let Some(block) = pattern.next_block() {
            stream.extend_from_slice(block);
        }
        let compare = |stream: &[u8], seed| {
            let mut comparison = Comparison::new(seed);
            stream.chunks(1000).for_each(|piece| comparison.take(piece));
            assert_eq!(comparison.bytes(), stream.len() as u64);
            comparison.holds()
        };
        assert!(compare(&stream, 3));
        assert!(!compare(&stream, 4), "another stream");
        assert!(!compare(&stream[BLOCK..], 3), "a block is lost");
        *stream.last_mut().expect("not empty") ^= 1;
        assert!(!compare(&stream, 3));
    }

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
