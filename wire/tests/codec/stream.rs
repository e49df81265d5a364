//! A connection as the decoder sees it: bytes arrive in chunks of any size,
//! packets are taken off the front as they complete.

use proptest::prelude::*;
use std::collections::VecDeque;

/// Cuts `bytes` at pseudo-random borders; the cuts differ with `seed`.
pub(crate) fn chunks(bytes: &[u8], seed: u64) -> Vec<&[u8]> {
    let mut random = Random(seed);
    let mut rest = bytes;
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        // Mostly a few bytes, so that cuts fall inside fields.
        let most = if random.below(4) == 0 { 200 } else { 5 };
        let (chunk, later) = rest.split_at((1 + random.below(most)).min(rest.len()));
        chunks.push(chunk);
        rest = later;
    }
    chunks
}

/// Feeds `chunks` to a connection's buffer and lets `take` drain it after
/// each; `take` says how many bytes one packet took, or that it needs more.
pub(crate) fn drain(chunks: &[&[u8]], mut take: impl FnMut(&[u8]) -> Option<usize>) {
    let mut buffer = VecDeque::new();
    for chunk in chunks {
        buffer.extend(*chunk);
        while !buffer.is_empty() {
            let Some(len) = take(buffer.make_contiguous()) else { break };
            buffer.drain(..len);
        }
    }
    assert!(buffer.is_empty(), "{} bytes were left over", buffer.len());
}

/// A small seeded generator (SplitMix64): the same seed gives the same bytes
/// on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

proptest! {
    #[test]
    fn chunks_are_the_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600), seed: u64) {
        prop_assert_eq!(chunks(&bytes, seed).concat(), bytes);
    }
}
